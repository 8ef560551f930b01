"""Pictures without their empty pixels: what travels between clients and render servers.

A person covers a tenth of a picture. What is zero in all four channels is left out, on the way back
also the gradient there: no ray that ends in such a pixel meets anything.

Legend: B pictures, N pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class DrawnPixels:
    """Some pixels of some pictures; the others are zero."""

    shape: tuple[int, int, int, int]  # B, height, width, 4
    row: NDArray[np.int64]  # [N] ascending, into the B * height * width pixels
    values: FloatArray  # [N, 4]

    @staticmethod
    def of(pictures: FloatArray) -> DrawnPixels:  # [B, H, W, 4]
        """All pixels that are not zero."""
        flat = np.ascontiguousarray(pictures, np.float32).reshape(-1, 4)
        halves = flat.view(np.int64)  # two numbers at once
        row = np.flatnonzero(halves[:, 0] | halves[:, 1])
        count, height, width, _ = pictures.shape
        return DrawnPixels((count, height, width, 4), row, flat[row])

    def pictures(self) -> FloatArray:  # [B, H, W, 4]
        """The pictures as a whole."""
        whole = np.zeros(self.shape, np.float32)
        whole.reshape(-1, 4)[self.row] = self.values
        return whole

    def finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return bool(np.isfinite(self.values).all())

    def some(self, index: Sequence[int]) -> DrawnPixels:
        """The pictures at these positions."""
        size = self.shape[1] * self.shape[2]
        parts = self._parts()
        pieces = [self.row[parts[i]] + (place - i) * size for place, i in enumerate(index)]
        values = [self.values[parts[i]] for i in index]
        shape = (len(index), *self.shape[1:])
        return DrawnPixels(shape, np.concatenate(pieces), np.concatenate(values))

    def with_values(self, values: FloatArray) -> DrawnPixels:
        """The same pixels with other values [N, 4]."""
        return replace(self, values=values)

    def _parts(self) -> list[slice]:
        """Where each picture's pixels are."""
        size = self.shape[1] * self.shape[2]
        ends = np.searchsorted(self.row, np.arange(self.shape[0] + 1) * size).tolist()
        return [slice(start, end) for start, end in pairwise(ends)]


def joined(
    pieces: Iterable[
        tuple[Sequence[int], DrawnPixels]
    ],  # at least one, and each picture's position
) -> DrawnPixels:
    """The inverse of `DrawnPixels.some`, for pieces that together have every position once."""
    order: list[int] = []
    parts = []
    for index, part in pieces:
        order += index
        parts.append(part)
    size = parts[0].shape[1] * parts[0].shape[2]
    before = np.cumsum([0, *(part.shape[0] for part in parts[:-1])])  # pictures before each part
    row = np.concatenate([part.row + n * size for part, n in zip(parts, before, strict=True)])
    values = np.concatenate([part.values for part in parts])
    whole = DrawnPixels((len(order), *parts[0].shape[1:]), row, values)
    if order == sorted(order):
        return whole
    return whole.some(np.argsort(order).tolist())
