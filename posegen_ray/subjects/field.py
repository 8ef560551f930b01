"""The canonical radiance field: a sparse voxel grid around the body in its canonical pose.

Grid vertices near the body surface have a colour (linear in [0, 1]) and a density logit;
density = DENSITY_SCALE * (sigmoid(logit) - sigmoid(EMPTY)) per metre, and 0 for logits below EMPTY:
about half of what a ray passes near a person is nothing, and costs nothing. Values are interpolated
trilinearly; a vertex that is not stored counts as grey and empty, so densities fade out
continuously.
Legend: X, Y, Z grid vertices per axis, M stored vertices, N blocks.

Knows nothing of poses or cameras. `body_field` makes one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

CUBE = 3  # cells along the edge of a block
DENSITY_SCALE = 400.0  # per metre: a full cell of 1 cm stops 98 % of the light
LOGIT_LIMIT = 8.0
EMPTY = -6.0  # density logit of nothing at all
ABSENT = (0.5, 0.5, 0.5, -LOGIT_LIMIT)  # the value of a vertex that is not stored


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
