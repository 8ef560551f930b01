"""Draw functions for the tests of the sample stream."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from posegen_ray.body.camera import Camera
from posegen_ray.records import Samples
from posegen_ray.seeding import numpy_stream, torch_stream


def make_samples(state: dict[str, Tensor], seeds: Sequence[int]) -> Samples:
    """Samples that betray their seed and the generator's version."""
    count, size = len(seeds), 8
    draws = [torch.randn(300, generator=torch_stream(seed)) for seed in seeds]
    values = torch.stack(draws) + state["weight"][0]
    camera = Camera(
        values[:, :9].reshape(count, 3, 3),
        values[:, 9:12],
        values[:, 12],
        values[:, 13:15],
        size,
        size,
    )
    return Samples(
        images=(values[:, : 3 * size * size].abs() * 50).to(torch.uint8).reshape(-1, 3, size, size),
        joints=values[:, :36].reshape(count, 12, 3),
        joints_2d=values[:, :24].reshape(count, 12, 2),
        rotations=values[:, :216].reshape(count, 24, 3, 3),
        shape=values[:, :10],
        camera=camera,
        view=values[:, :3],
        subjects=tuple(f"subject{seed % 3}" for seed in seeds),
        clips=("generated",) * count,
        seeds=torch.tensor(seeds),
    )


class JitterDraw:
    """Takes a different time for each batch, so that actors finish out of order."""

    def __call__(self, state: dict[str, Tensor], seeds: Sequence[int]) -> Samples:
        time.sleep(numpy_stream(seeds[0]).uniform(0, 0.4))
        return make_samples(state, seeds)


class SlowDraw:
    """Takes longer than anybody wants to wait."""

    def __call__(self, state: dict[str, Tensor], seeds: Sequence[int]) -> Samples:
        time.sleep(4)
        return make_samples(state, seeds)
