"""The canonical radiance field: a sparse voxel grid around the body in its canonical pose.

Grid vertices near the body surface have a colour (linear in [0, 1]) and a density logit;
density = DENSITY_SCALE * (sigmoid(logit) - sigmoid(EMPTY)) per metre, and 0 for logits below EMPTY:
about half of what a ray passes near a person is nothing, and costs nothing. Values are interpolated
trilinearly; a vertex that is not stored counts as grey and empty, so densities fade out
continuously.
Legend: X, Y, Z grid vertices per axis, M stored vertices, N blocks.

Knows nothing of poses or cameras.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import warp as wp
from torch import Tensor
from torch.nn.functional import pad

from posegen_ray.body.model import BodyModel
from posegen_ray.config import RegionConfig
from posegen_ray.subjects import fit_kernels
from posegen_ray.subjects.canonical import Bools, CanonicalBody, Floats, canonical_body
from posegen_ray.subjects.warp_cache import prepare

CUBE = 3  # cells along the edge of a block
DENSITY_SCALE = 400.0  # per metre: a full cell of 1 cm stops 98 % of the light
LOGIT_LIMIT = 8.0
EMPTY = -6.0  # density logit of nothing at all
ABSENT = (0.5, 0.5, 0.5, -LOGIT_LIMIT)  # the value of a vertex that is not stored
_INITIAL_SOFTNESS = 0.004  # metres over which the initial body surface fades


@dataclass(frozen=True)
class Field:
    """A sparse grid."""

    values: Tensor  # [M, 4] float32: red, green, blue, density logit
    index: Tensor  # [X, Y, Z] int32: row of each vertex in `values`, in memory order; -1: none
    low: tuple[float, float, float]  # metres, canonical pose: position of vertex (0, 0, 0)
    voxel: float  # metres

    def to(self, device: torch.device | str) -> Field:
        return replace(self, values=self.values.to(device), index=self.index.to(device))

    @property
    def stored(self) -> Tensor:  # [X, Y, Z] bool
        return self.index >= 0

    def positions(self) -> Tensor:  # [M, 3]
        """Positions of the stored vertices in the canonical pose."""
        places = self.stored.nonzero().float()
        return places * self.voxel + torch.tensor(self.low, device=places.device)

    def neighbours(self) -> Tensor:  # [M, 3] int32
        """Row of the next stored vertex along x, y and z; -1 where there is none."""
        columns = []
        for axis in range(3):
            length = self.index.shape[axis]
            shifted = torch.full_like(self.index, -1)
            shifted.narrow(axis, 0, length - 1).copy_(self.index.narrow(axis, 1, length - 1))
            columns.append(shifted[self.stored])
        return torch.stack(columns, -1).contiguous()

    def restricted(
        self,
        kept: Tensor,  # [X, Y, Z] bool
    ) -> Field:
        """The same field with only some of its vertices; their values stay."""
        kept = kept & self.stored
        values = self.values[kept[self.stored]].contiguous()
        return replace(self, values=values, index=number(kept))

    def block_rows(
        self,
        cubes: Tensor,  # [N, 3] int: a block covers vertices CUBE * cube to CUBE * cube + CUBE
    ) -> Tensor:  # [N, 64] int32, z fastest; -1: not stored
        """Rows of the vertices of each block: neighbours share those on the face between them."""
        return self._rows(cubes, CUBE + 1)

    def cubes(
        self,
        chosen: Tensor,  # [M] bool
    ) -> Tensor:  # [N, 3] int64
        """The cubes that the chosen vertices belong to; see `cube_rows`."""
        places = self.stored.nonzero()[chosen] // CUBE
        filled = torch.zeros([-(-n // CUBE) for n in self.index.shape], dtype=torch.bool)
        filled[tuple(places.T)] = True
        return filled.nonzero()

    def cube_rows(
        self,
        cubes: Tensor,  # [N, 3] int
    ) -> Tensor:  # [N, 27] int32, z fastest; -1: not stored
        """The same without the high faces: no vertex belongs to two cubes."""
        return self._rows(cubes, CUBE)

    def _rows(self, cubes: Tensor, width: int) -> Tensor:
        size = (CUBE * (cubes.amax(0) + 1) + 1).tolist()
        missing = [max(0, want - have) for want, have in zip(size, self.index.shape, strict=True)]
        grid = pad(self.index, (0, missing[2], 0, missing[1], 0, missing[0]), value=-1)
        step = torch.arange(width, device=cubes.device)
        x, y, z = (CUBE * cubes.long()).unbind(1)
        rows = grid[
            (x[:, None] + step)[:, :, None, None],
            (y[:, None] + step)[:, None, :, None],
            (z[:, None] + step)[:, None, None, :],
        ]
        return rows.flatten(1).contiguous()


def density(
    logit: Tensor,  # [...]
) -> Tensor:  # [...] per metre
    """Differentiable."""
    nothing = torch.sigmoid(torch.tensor(EMPTY, device=logit.device))
    return DENSITY_SCALE * (torch.sigmoid(logit) - nothing).clamp_min(0)


def number(
    stored: Tensor,  # [X, Y, Z] bool
) -> Tensor:  # [X, Y, Z] int32
    """Numbers the vertices of a field; see `Field.index`."""
    rows = stored.flatten().cumsum(0, dtype=torch.int32).view(stored.shape) - 1
    return torch.where(stored, rows, -1)


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


def body_field(
    body: BodyModel,
    shape: Tensor,  # [S]
    config: RegionConfig,
    possible: Callable[[Floats], Bools] | None = None,
) -> Field:
    """A grey field whose density follows the body surface: where fitting starts.

    Args:
        possible: tells from the centres [N, 3] of cubes (CUBE cells wide, canonical pose) which of
            those outside the body may hold a part of the person [N]. None: all.
    """
    surface = canonical_body(body, shape)
    # the grid begins at a multiple of 12 cells: then x = 0, between the legs, is a plane of it, and
    # a face of blocks
    block, edge = 12 * config.voxel, CUBE * config.voxel
    margin = config.shell + 3 * config.voxel
    low = np.floor((surface.vertices.min(0) - margin) / block) * block
    count = np.ceil((surface.vertices.max(0) + margin - low) / edge).astype(int)
    cubes = np.argwhere(np.ones(count, bool))
    centres = low + (cubes + 0.5) * edge
    reach = 0.5 * math.sqrt(3) * edge
    distance = _distance(surface, centres, margin + reach)
    near = (distance < config.shell + reach) & (distance > -config.inner - reach)
    if possible is not None:
        outside = np.flatnonzero(near & (distance > 0))
        near[outside] = possible(centres[outside])

    # only near the surface does a vertex's own distance matter; elsewhere its cube's will do, but
    # the region's rim is then no finer than cubes
    steep = np.abs(distance) < LOGIT_LIMIT * _INITIAL_SOFTNESS + reach
    grid = np.full(CUBE * count + 1, np.inf, np.float32)
    exact = np.zeros(grid.shape, bool)
    for offset in np.ndindex(CUBE + 1, CUBE + 1, CUBE + 1):
        grid[tuple((CUBE * cubes[near] + offset).T)] = distance[near]
        exact[tuple((CUBE * cubes[near & steep] + offset).T)] = True
    places, of_cube = low + np.argwhere(exact) * config.voxel, grid[exact]
    away = _distance(surface, places, margin, signed=False)
    # on the other side of the surface than the cube's centre it would be farther from it than this
    unsure = away + np.abs(of_cube) <= reach
    away = np.copysign(away, of_cube)
    away[unsure] = _distance(surface, places[unsure], margin)
    grid[exact] = away
    wanted = np.isfinite(grid)
    distance = grid[wanted]
    inside = (distance < config.shell) & (distance > -config.inner)
    wanted[wanted] = inside
    depth = -torch.from_numpy(distance[inside])
    values = torch.full((len(depth), 4), 0.5)
    values[:, 3] = (depth / _INITIAL_SOFTNESS).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
    x, y, z = low.tolist()
    return Field(values, number(torch.from_numpy(wanted)), (x, y, z), config.voxel)


def _distance(
    body: CanonicalBody,
    places: Floats,  # [N, 3]
    farthest: float,
    signed: bool = True,
) -> np.ndarray:  # [N] float32, negative inside
    prepare("cpu", fit_kernels.__name__)

    mesh = wp.Mesh(
        wp.array(body.vertices.astype(np.float32), dtype=wp.vec3, device="cpu"),
        wp.array(body.faces.astype(np.int32).reshape(-1), dtype=wp.int32, device="cpu"),
        # signs by the nearest face's normal are wrong half-way between two limbs
        support_winding_number=signed,
    )
    distance = np.empty(len(places), np.float32)
    wp.launch(
        fit_kernels.signed_distance,
        len(places),
        [
            mesh.id,
            wp.array(places.astype(np.float32), dtype=wp.vec3, device="cpu"),
            farthest,
            int(signed),
            wp.array(distance, dtype=float, device="cpu", copy=False),
        ],
        device="cpu",
    )
    return distance
