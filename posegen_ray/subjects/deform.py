"""The cage: a coarse, dilated copy of the body surface that carries skinning into space.

A ray is followed only inside the posed cage; where it enters and leaves, the cage's vertices say
how to go back to the T-pose (inverse linear blend skinning).

Legend: C cage vertices, T cage triangles, B batch. Knows nothing of rays or colours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import fast_simplification
import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from posegen_ray.body.model import BodyModel
from posegen_ray.config import CageConfig

# two body parts move against each other when their skinning weights overlap less than this
_SAME_PART = 0.25
# a cage vertex goes at most this fraction of the way to a part that moves against its own
_SHARE_OF_GAP = 0.45


@dataclass(frozen=True)
class Cage:
    """A closed triangle mesh around the T-pose body, with skinning weights."""

    surface: Tensor  # [C, 3] on the body (rest pose), metres
    normals: Tensor  # [C, 3] outward, unit length
    dilation: Tensor  # [C] metres that each vertex stands off the body
    weights: Tensor  # [C, 24] rows sum to 1
    faces: Tensor  # [T, 3] int32, counter-clockwise from outside

    @property
    def rest(self) -> Tensor:  # [C, 3]
        """Rest position of the cage's vertices."""
        return self.surface + self.dilation[:, None] * self.normals

    def to(self, device: torch.device | str) -> Cage:
        return Cage(*(getattr(self, name).to(device) for name in CAGE_TENSORS))

    def shrunk(self, dilation: Tensor) -> Cage:
        """The same cage with other distances from the body."""
        return replace(self, dilation=dilation)


CAGE_TENSORS = ("surface", "normals", "dilation", "weights", "faces")


def pose_cage(
    cage: Cage,
    bones: Tensor,  # [B, 24, 3, 4]
) -> tuple[Tensor, Tensor]:  # points [B, C, 3] world, inverse [B, C, 3, 3] posed -> rest
    """Skins the cage and inverts each vertex's skinning matrix. Differentiable in `bones`.

    The inverse is the adjugate over the determinant: cheaper than a batched solve, and safe here,
    since blended rotations of a body stay far from singular.
    """
    blended = (cage.weights @ bones.flatten(2)).unflatten(-1, (3, 4))
    points = (blended[..., :3] @ cage.rest[..., None])[..., 0] + blended[..., 3]
    x, y, z = blended[..., :3].unbind(-1)
    rows = torch.stack(
        [torch.linalg.cross(y, z), torch.linalg.cross(z, x), torch.linalg.cross(x, y)], -2
    )
    determinant = (x * rows[..., 0, :]).sum(-1)
    determinant = determinant.sign() * determinant.abs().clamp_min(1e-3)
    return points, rows / determinant[..., None, None]


def build_cage(
    body: BodyModel,
    shape: Tensor,  # [S]
    config: CageConfig,
) -> Cage:
    """Decimates the T-pose body (quadric edge collapse) and moves it outwards.

    Only the largest connected piece counts (eyes and teeth lie inside it). Between parts that move
    against each other (thighs, arm and trunk) the cage stays inside its half of the gap, so that it
    never joins them.
    """
    vertices = body.rest_vertices(shape[None])[0].detach().cpu().numpy().astype(np.float64)
    body_vertices, body_faces, kept = largest_piece(vertices, body.faces.cpu().numpy())
    body_weights = body.skinning_weights.cpu().numpy()[kept]
    surface, faces = _decimate(body_vertices, body_faces, config.vertices)
    tree = cKDTree(body_vertices)
    distance, nearest = tree.query(surface, k=4)
    share = 1.0 / np.maximum(distance, 1e-4)
    weights = (body_weights[nearest] * share[..., None]).sum(1)
    weights /= weights.sum(1, keepdims=True)
    normals = vertex_normals(surface, faces)
    dilation = _dilation(surface, normals, weights, body_vertices, body_weights, config.shell)
    return Cage(
        torch.from_numpy(surface).float(),
        torch.from_numpy(normals).float(),
        torch.from_numpy(dilation).float(),
        torch.from_numpy(weights).float(),
        torch.from_numpy(faces.astype(np.int32)),
    )


def largest_piece(
    vertices: np.ndarray,  # [V, 3]
    faces: np.ndarray,  # [F, 3]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # vertices, faces, indices of the kept vertices
    """The connected component with the most vertices."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=[len(vertices)] * 2)
    _, label = connected_components(graph, directed=False)
    biggest = np.bincount(label).argmax()
    kept = np.nonzero(label == biggest)[0]
    number = np.full(len(vertices), -1)
    number[kept] = np.arange(len(kept))
    return vertices[kept], number[faces[label[faces[:, 0]] == biggest]], kept


def vertex_normals(
    vertices: np.ndarray,  # [V, 3]
    faces: np.ndarray,  # [F, 3]
) -> np.ndarray:  # [V, 3]
    """Area-weighted unit normals."""
    corners = vertices[faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], across)
    unit: np.ndarray = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return unit


def _decimate(
    vertices: np.ndarray,  # [V, 3]
    faces: np.ndarray,  # [F, 3]
    target: int,
) -> tuple[np.ndarray, np.ndarray]:
    if len(vertices) > target:
        # a closed surface has about twice as many faces as vertices
        vertices, faces = fast_simplification.simplify(
            vertices.astype(np.float32), faces.astype(np.int32), target_count=2 * target, agg=5
        )
    vertices, faces, _ = largest_piece(vertices.astype(np.float64), faces)
    return vertices, faces


def _dilation(
    surface: np.ndarray,  # [C, 3]
    normals: np.ndarray,  # [C, 3]
    weights: np.ndarray,  # [C, 24]
    body_vertices: np.ndarray,  # [V, 3]
    body_weights: np.ndarray,  # [V, 24]
    shell: float,
) -> np.ndarray:  # [C]
    """How far each vertex may go: the shell, or its share of the gap to a part that moves away.

    A body vertex q limits the vertex p with normal n to the sphere through p and q that touches p:
    radius |q - p|^2 / (2 n.(q - p)), the distance at which both are equally near.
    """
    tree = cKDTree(body_vertices)
    allowed = np.full(len(surface), shell)
    for index, near in enumerate(tree.query_ball_point(surface, 2.5 * shell)):
        away = body_vertices[near] - surface[index]
        along = away @ normals[index]
        unlike = (np.minimum(body_weights[near], weights[index]).sum(1) < _SAME_PART) & (along > 0)
        if unlike.any():
            radius = (away[unlike] ** 2).sum(1) / (2 * along[unlike])
            allowed[index] = min(shell, max(2 * _SHARE_OF_GAP * radius.min(), 0.5 * shell))
    return allowed
