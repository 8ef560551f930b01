"""The canonical radiance field: a sparse voxel grid around the T-pose body.

Every grid vertex near the body surface has a colour (linear in [0, 1]) and a density logit;
density = DENSITY_SCALE * sigmoid(logit) per metre. Values are interpolated trilinearly inside
active cells and absent elsewhere. Legend: X, Y, Z grid vertices per axis, M stored vertices.

Knows nothing of poses or cameras.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import warp as wp
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from posegen_ray.body.model import BodyModel
from posegen_ray.config import RegionConfig
from posegen_ray.subjects import grid_kernels
from posegen_ray.subjects.warp_cache import prepare

DENSITY_SCALE = 400.0  # per metre: a full cell of 1 cm stops 98 % of the light
LOGIT_LIMIT = 8.0
_INITIAL_SOFTNESS = 0.004  # metres over which the initial body surface fades


@dataclass(frozen=True)
class Field:
    """A sparse grid. `index` says where each stored vertex lies, and which cells are active.

    index[x, y, z] is >= 0 for the low corner of an active cell (the row in `values`), <= -2 for a
    stored vertex that is no such corner (row = -2 - index), -1 for nothing. Rows follow the grid's
    memory order, so that the row after a cell's corner is its neighbour along z.
    """

    values: Tensor  # [M, 4] float32: red, green, blue, density logit
    index: Tensor  # [X, Y, Z] int32
    low: tuple[float, float, float]  # metres, rest pose: position of vertex (0, 0, 0)
    voxel: float  # metres

    def to(self, device: torch.device | str) -> Field:
        return replace(self, values=self.values.to(device), index=self.index.to(device))

    @property
    def active(self) -> Tensor:  # [X, Y, Z] bool
        """Cells (by their low corner) that hold something."""
        return self.index >= 0

    def positions(self) -> Tensor:  # [M, 3]
        """Rest-pose positions of the stored vertices."""
        places = (self.index != -1).nonzero().float()
        return places * self.voxel + torch.tensor(self.low, device=places.device)

    def neighbours(self) -> Tensor:  # [M, 3] int32
        """Row of the next stored vertex along x, y and z; -1 where there is none."""
        row = torch.where(self.index < -1, -2 - self.index, self.index)
        stored = row >= 0
        columns = []
        for axis in range(3):
            shifted = torch.full_like(row, -1)
            shifted.narrow(axis, 0, row.shape[axis] - 1).copy_(
                row.narrow(axis, 1, row.shape[axis] - 1)
            )
            columns.append(shifted[stored])
        return torch.stack(columns, -1).contiguous()

    def rim(self) -> Tensor:  # [M] bool
        """Stored vertices at the edge of the active cells: where interpolation ends."""
        whole = self.active.clone()
        for axis in range(3):
            # a vertex has eight cells around it: at its own place and one step down each axis
            length = whole.shape[axis]
            shifted = torch.zeros_like(whole)
            shifted.narrow(axis, 1, length - 1).copy_(whole.narrow(axis, 0, length - 1))
            whole &= shifted
        return ~whole[self.index != -1]

    def restricted(self, active: Tensor) -> Field:
        """The same field with only some of its cells; values of the kept vertices stay.

        Args:
            active: [X, Y, Z] bool, a subset of `self.active`.
        """
        kept_index = cell_index(active)
        stored = self.index != -1
        still = (kept_index != -1)[stored]
        return replace(self, values=self.values[still].contiguous(), index=kept_index)


def widened(
    mask: Tensor,  # [X, Y, Z] bool
    rounds: int,
) -> Tensor:  # [X, Y, Z] bool
    """The mask and every place at most `rounds` steps from it, diagonal steps included."""
    wide = mask.clone()
    for axis in range(3):
        length = wide.shape[axis]
        for _ in range(rounds):
            before = wide.clone()
            wide.narrow(axis, 1, length - 1).logical_or_(before.narrow(axis, 0, length - 1))
            wide.narrow(axis, 0, length - 1).logical_or_(before.narrow(axis, 1, length - 1))
    return wide


def cells_touching(
    vertices: Tensor,  # [X, Y, Z] bool
) -> Tensor:  # [X, Y, Z] bool: low corners, none on the high faces
    """The cells with at least one of these vertices at a corner."""
    cells = torch.zeros_like(vertices)
    inner = cells[:-1, :-1, :-1]
    x, y, z = vertices.shape
    for dx in (0, 1):
        for dy in (0, 1):
            for dz in (0, 1):
                inner |= vertices[dx : x - 1 + dx, dy : y - 1 + dy, dz : z - 1 + dz]
    return cells


def cell_index(
    active: Tensor,  # [X, Y, Z] bool: low corners of active cells; none on the high faces
) -> Tensor:  # [X, Y, Z] int32
    """Numbers the vertices of the active cells; see `Field.index`."""
    stored = active.clone()
    for axis in range(3):
        stored.narrow(axis, 1, stored.shape[axis] - 1).logical_or_(
            stored.narrow(axis, 0, stored.shape[axis] - 1).clone()
        )
    row = (stored.flatten().cumsum(0) - 1).view(stored.shape)
    none = torch.full_like(row, -1)
    return torch.where(active, row, torch.where(stored, -2 - row, none)).int().contiguous()


def body_field(
    body: BodyModel,
    shape: Tensor,  # [S]
    config: RegionConfig,
) -> Field:
    """A grey field whose density follows the body surface: where fitting starts."""
    vertices = body.rest_vertices(shape[None])[0].detach().cpu().numpy().astype(np.float64)
    vertices, faces, _ = largest_piece(vertices, body.faces.cpu().numpy())
    margin = config.shell + 3 * config.voxel
    # the grid begins at a multiple of 12 cells: then x = 0, between the legs, is a plane of it, and
    # one of the lattice's (`deform.CUBE`)
    block = 12 * config.voxel
    low = np.floor((vertices.min(0) - margin) / block) * block
    count = np.ceil((vertices.max(0) + margin - low) / config.voxel).astype(int) + 1
    axes = [np.arange(n) * config.voxel + start for n, start in zip(count, low, strict=True)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    distance = _signed_distance(vertices, faces, places, margin).reshape(tuple(count))

    # a cell is active when any of its corners is near, so that density fades before it ends
    near = torch.from_numpy((distance < config.shell) & (distance > -config.inner))
    index = cell_index(cells_touching(near))
    stored = torch.from_numpy(distance)[index != -1]
    values = torch.full((len(stored), 4), 0.5)
    values[:, 3] = (-stored / _INITIAL_SOFTNESS).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
    return Field(values, index, (float(low[0]), float(low[1]), float(low[2])), config.voxel)


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


def _signed_distance(
    vertices: np.ndarray,  # [V, 3]
    faces: np.ndarray,  # [F, 3]
    places: np.ndarray,  # [N, 3]
    farthest: float,
) -> np.ndarray:  # [N] float32, negative inside
    prepare("cpu", grid_kernels.__name__)

    mesh = wp.Mesh(
        wp.array(vertices.astype(np.float32), dtype=wp.vec3, device="cpu"),
        wp.array(faces.astype(np.int32).reshape(-1), dtype=wp.int32, device="cpu"),
        # signs by the nearest face's normal are wrong half-way between two limbs
        support_winding_number=True,
    )
    distance = np.empty(len(places), np.float32)
    wp.launch(
        grid_kernels.signed_distance,
        len(places),
        [
            mesh.id,
            wp.array(places.astype(np.float32), dtype=wp.vec3, device="cpu"),
            farthest,
            wp.array(distance, dtype=float, device="cpu", copy=False),
        ],
        device="cpu",
    )
    return distance
