"""What several modules ask of a triangle mesh. Legend: V vertices, F triangles."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Floats = npt.NDArray[Any]
Ints = npt.NDArray[Any]


def smooth_normals(vertices: Floats, faces: Ints) -> Floats:  # [V, 3]
    """Area-weighted vertex normals."""
    corner = vertices[faces]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    total = np.zeros_like(vertices)
    for side in range(3):
        np.add.at(total, faces[:, side], normal)
    length: Floats = np.linalg.norm(total, axis=1, keepdims=True)
    return total / np.maximum(length, 1e-12)


def largest_piece(
    vertices: np.ndarray,  # [V, 3]
    faces: np.ndarray,  # [F, 3]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # vertices, faces, indices of the kept vertices
    """The connected component with the most vertices (eyes and teeth lie inside it)."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=[len(vertices)] * 2)
    _, label = connected_components(graph, directed=False)
    biggest = np.bincount(label).argmax()
    kept = np.nonzero(label == biggest)[0]
    number = np.full(len(vertices), -1)
    number[kept] = np.arange(len(kept))
    return vertices[kept], number[faces[label[faces[:, 0]] == biggest]], kept
