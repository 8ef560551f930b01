"""Lighting: how a proposal's person is lit, and how bright it is behind them.

Knows nothing about rendering. B is the batch. Differentiable in every tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posegen_ray.config import LightRangeConfig

LIGHT_CHANNELS = 4  # turn, contrast, exposure, background


@dataclass(frozen=True)
class Lighting:
    """Changes to the light that a subject was filmed in, and to the background."""

    light: Tensor  # [B, 3] turn (radians), contrast, exposure: see `RenderRequest.light`
    background: Tensor  # [B] factor of the background's brightness

    def __len__(self) -> int:
        return self.light.shape[0]

    def to(self, device: torch.device) -> Lighting:
        return Lighting(self.light.to(device), self.background.to(device))

    def __getitem__(self, index: slice | Tensor | list[int]) -> Lighting:
        return Lighting(self.light[index], self.background[index])


def as_filmed(count: int) -> Lighting:
    """Nothing is changed."""
    return Lighting(torch.tensor([0.0, 1.0, 1.0]).expand(count, 3), torch.ones(count))


def concatenate_lighting(parts: Sequence[Lighting]) -> Lighting:
    """One batch from several, in order."""
    return Lighting(
        torch.cat([part.light for part in parts]), torch.cat([part.background for part in parts])
    )


def lighting_from_unit(
    unit: Tensor,  # [B, 4] in (0, 1): turn, contrast, exposure, background
    ranges: LightRangeConfig,
) -> Lighting:
    """Uniform numbers -> lighting, uniform in the ranges (factors: in their logarithm)."""
    turn = math.radians(ranges.turn) * (2 * unit[:, 0] - 1)
    contrast = ranges.contrast_low + (ranges.contrast_high - ranges.contrast_low) * unit[:, 1]
    exposure, background = (
        low * (high / low) ** unit[:, channel]
        for channel, low, high in (
            (2, ranges.exposure_low, ranges.exposure_high),
            (3, ranges.background_low, ranges.background_high),
        )
    )
    return Lighting(torch.stack([turn, contrast, exposure], 1), background)
