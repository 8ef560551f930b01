"""Makes the lattice of a field: its tetrahedra, and their skinning weights.

Legend: V lattice vertices, T tetrahedra, N cubes.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from posegen_ray.body.model import BodyModel
from posegen_ray.subjects.canonical import Bools, Floats, Ints, canonical_body
from posegen_ray.subjects.deform import CORNERS, FACES, PATTERNS, Lattice
from posegen_ray.subjects.field import CUBE, Field

# two neighbouring cubes move against each other when their skinning weights overlap less than this
_SAME_PART = 0.25
# they are joined all the same where the field between them is denser than this (logit): a skirt
_CONTENT = 1.0
_SMOOTHING = 6  # rounds in which weights away from the surface spread


def build_lattice(
    body: BodyModel,
    shape: Tensor,  # [S]
    field: Field,
) -> Lattice:
    """Tetrahedra over all cells that touch a stored vertex, and over what these enclose.

    Cubes of parts that move against each other (thighs, arm and trunk) are not joined unless the
    field between them is dense: a slit opens between trousers' legs, a skirt stays whole.
    """
    cubes = np.argwhere(_filled(field))
    cubes = cubes[np.argsort(cubes.sum(1) % 2, kind="stable")]
    edge = CUBE * field.voxel
    low = np.array(field.low)
    centres = low + (cubes + 0.5) * edge
    surface = canonical_body(body, shape)
    corner, vertex_of = _join(cubes, _joined(cubes, surface.weights(centres)[0], field))

    count = int(vertex_of.max()) + 1
    places = low + (cubes[:, None] + CORNERS) * edge  # [N, 8, 3]
    canonical, inward = np.empty((count, 3)), np.zeros((count, 3))
    canonical[corner] = places
    np.add.at(inward, corner, centres[:, None] - places)
    inward /= np.bincount(corner.ravel(), minlength=count)[:, None]
    # a vertex on a slit looks for its weights on its own side
    weights, normals, distance = surface.weights_and_normals(canonical + 0.5 * inward)

    odd = cubes.sum(1) % 2
    tets = np.take_along_axis(corner[:, None], PATTERNS[odd], 2).reshape(-1, 4)
    stick = np.exp(-((distance / (0.5 * edge)) ** 2))
    smoothed = _smoothed(np.concatenate([weights, normals], 1), tets, stick)
    weights, normals = smoothed[:, :-3], smoothed[:, -3:]
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
    return Lattice(
        torch.from_numpy(canonical).float(),
        torch.from_numpy(surface.to_rest(canonical, weights)).float(),
        torch.from_numpy(weights).float(),
        torch.from_numpy(normals).float(),
        torch.from_numpy(np.ascontiguousarray(tets, np.int32)),
        torch.from_numpy(np.ascontiguousarray(_across_faces(tets), np.int32)),
        torch.from_numpy(np.ascontiguousarray(cubes, np.int32)),
    )


def restrict_lattice(
    lattice: Lattice,
    field: Field,  # on the grid of the lattice's own field, with some of its vertices
) -> Lattice:
    """The part of a lattice that covers what is left of its field. It moves as it did."""
    lattice = lattice.to("cpu")
    kept = torch.from_numpy(_filled(field))[tuple(lattice.cubes.long().T)]
    used, numbers = (
        lattice.tets.unflatten(0, (-1, 5))[kept].flatten(0, 1).unique(return_inverse=True)
    )
    across = np.ascontiguousarray(_across_faces(numbers.numpy()), np.int32)
    return Lattice(
        lattice.canonical[used],
        lattice.rest[used],
        lattice.weights[used],
        lattice.normals[used],
        numbers.int(),
        torch.from_numpy(across),
        lattice.cubes[kept],
    )


def _filled(field: Field) -> Bools:
    """Which cubes a lattice has: those with content, and what these enclose."""
    return np.asarray(binary_fill_holes(_occupied(field.stored.cpu().numpy())))


def _occupied(stored: Bools) -> Bools:
    """Which cubes hold a cell that touches a stored vertex. No vertex lies on the low faces."""
    size = [-(-n // CUBE) * CUBE for n in stored.shape]
    cells = np.zeros(size, bool)
    cells[tuple(slice(n) for n in stored.shape)] = stored
    for axis in range(3):
        cells |= np.roll(cells, -1, axis)  # a cell touches the vertices at both of its ends
    blocks = cells.reshape(size[0] // CUBE, CUBE, size[1] // CUBE, CUBE, size[2] // CUBE, CUBE)
    return np.asarray(blocks.any((1, 3, 5)))


def _joined(
    cubes: Ints,  # [N, 3]
    weights: Floats,  # [N, 24] at their centres
    field: Field,
) -> list[tuple[int, Ints, Ints]]:  # (axis, rows, rows of the next cube along it)
    """Pairs of neighbouring cubes that move together."""
    number = np.full(cubes.max(0) + 2, -1)
    number[tuple(cubes.T)] = np.arange(len(cubes))
    dense = np.zeros(field.index.shape, bool)
    dense[field.stored.numpy()] = field.values[:, 3].numpy() > _CONTENT
    pairs = []
    for axis in range(3):
        step = np.eye(3, dtype=np.int64)[axis]
        other = number[tuple((cubes + step).T)]
        rows = np.flatnonzero(other >= 0)
        other = other[rows]
        alike = np.minimum(weights[rows], weights[other]).sum(1) >= _SAME_PART
        # only faces in question are looked at closely
        alike[~alike] = [_face_holds(dense, cube, axis) for cube in cubes[rows[~alike]]]
        pairs.append((axis, rows[alike], other[alike]))
    return pairs


def _face_holds(dense: Bools, cube: Ints, axis: int) -> bool:
    """Whether anything dense lies on the face between a cube and the next one along the axis."""
    span: list[slice | int] = [slice(CUBE * c, CUBE * c + CUBE + 1) for c in cube]
    plane = CUBE * (int(cube[axis]) + 1)
    if plane >= dense.shape[axis]:
        return False
    span[axis] = plane
    return bool(dense[tuple(span)].any())


def _join(
    cubes: Ints, pairs: list[tuple[int, Ints, Ints]]
) -> tuple[Ints, Ints]:  # [N, 8] vertex of each corner, and the same flat
    """Numbers the vertices: corners are one vertex where their cubes are joined by a face."""
    ends = []
    for axis, rows, others in pairs:
        bit = 4 >> axis
        far = [c for c in range(8) if c & bit]
        for c in far:
            ends.append(np.stack([8 * rows + c, 8 * others + (c ^ bit)]))
    first, second = np.concatenate(ends, 1)
    size = 8 * len(cubes)
    graph = coo_matrix((np.ones(len(first), bool), (first, second)), shape=(size, size))
    _, vertex_of = connected_components(graph, directed=False)
    return vertex_of.reshape(-1, 8), vertex_of


def _across_faces(tets: Ints) -> Ints:  # [T, 4]
    """The tetrahedron on the other side of each face, or -1."""
    faces = np.sort(tets[:, FACES].reshape(-1, 3), 1)
    order = np.lexsort(faces.T)
    same = (faces[order[1:]] == faces[order[:-1]]).all(1)
    first, second = order[:-1][same], order[1:][same]
    across = np.full(len(faces), -1)
    across[first], across[second] = second // 4, first // 4
    return across.reshape(-1, 4)


def mean_of_neighbours(
    tets: Ints,  # [T, 4]
) -> csr_matrix:  # [V, V]
    """What averages values over the vertices that share a tetrahedron, each counted once for
    every one that they share."""
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    first = np.concatenate([tets[:, i] for i, _ in pairs])
    second = np.concatenate([tets[:, j] for _, j in pairs])
    count = int(tets.max()) + 1
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(count, count)).tocsr()
    return csr_matrix(diags(1 / np.asarray(graph.sum(1))[:, 0]) @ graph)


def _smoothed(
    values: Floats,  # [V, D]
    tets: Ints,  # [T, 4]
    stick: Floats,  # [V] 1: keeps its own values, 0: takes its neighbours'
) -> Floats:
    """Spreads what the surface says into space: nearest neighbours alone would leave seams."""
    mean = mean_of_neighbours(tets)
    mixed = values
    for _ in range(_SMOOTHING):
        mixed = stick[:, None] * values + (1 - stick[:, None]) * (mean @ mixed)
    return mixed
