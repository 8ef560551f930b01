"""Fits A-NeRF's network to a capture: rays of several training pictures a step, Adam,
squared error before random backgrounds (Su et al. 2021, section 4).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posegen_ray.body.model import BodyModel
from posegen_ray.config import AnerfConfig
from posegen_ray.errors import TrainingError
from posegen_ray.seeding import numpy_stream, torch_stream
from posegen_ray.subjects.anerf import (
    RayBundle,
    SkeletonField,
    cast,
    composite,
    place_samples,
)
from posegen_ray.subjects.capture import Capture


def fit_anerf(
    capture: Capture,
    body: BodyModel,
    bones: Tensor,  # [B, 24, 3, 4]
    config: AnerfConfig,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | str = "cpu",
) -> SkeletonField:
    """The network that looks like the training frames.

    Raises:
        TrainingError: its loss is not finite.
    """
    device = torch.device(device)
    training = (~capture.held_out).nonzero()[:, 0].tolist()
    with torch.no_grad():
        rest = body(torch.eye(3).expand(1, 24, 3, 3), capture.shape[None]).joints[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        field = SkeletonField(rest, config).to(device)
    order = numpy_stream(seed, "fit", "order")
    chance = torch_stream(seed, "fit", "rays", device=device.type)
    optimiser = torch.optim.Adam(field.parameters(), config.learning_rate, betas=(0.9, 0.999))
    cache: dict[int, tuple[RayBundle, Tensor]] = {}
    queue: list[int] = []
    for step in range(config.steps):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * 0.5 ** (step / config.half_life)
        optimiser.zero_grad(set_to_none=True)
        for _ in range(config.pictures):
            if not queue:
                queue = order.permutation(training).tolist()
            index = queue.pop()
            if index not in cache:
                cache[index] = _rays(capture, index, bones[index], rest, device)
            loss = _loss(field, bones[index].to(device), *cache[index], chance)
            if not bool(loss.isfinite()):
                raise TrainingError(
                    f"The fit of {capture.name!r} diverged at step {step} (loss {loss.item()}).",
                    f"Lower field.anerf.learning_rate ({config.learning_rate}).",
                )
            (loss / config.pictures).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if progress is not None:
            progress(step + 1, config.steps)
    return field.requires_grad_(False)


def _rays(
    capture: Capture, index: int, bones: Tensor, rest: Tensor, device: torch.device
) -> tuple[RayBundle, Tensor]:  # rays, what they should show [N, 4]
    bundle = cast(capture.view(index), bones, rest)
    target = capture.target(index).view(-1, 4)[bundle.pixel]
    return RayBundle(*(part.to(device) for part in bundle)), target.to(device)


def _loss(
    field: SkeletonField,
    bones: Tensor,
    bundle: RayBundle,
    target: Tensor,
    chance: torch.Generator,
) -> Tensor:
    config, device = field.config, target.device
    # half of them on the person: of all rays most see nothing, and the network would forget it
    person = (target[:, 3] > 0).nonzero()[:, 0]
    share = config.rays // 2 if len(person) else 0
    rows = torch.cat(
        [
            person[torch.randint(max(len(person), 1), (share,), generator=chance, device=device)],
            torch.randint(len(target), (config.rays - share,), generator=chance, device=device),
        ]
    )
    direction, near, far = bundle.direction[rows], bundle.near[rows], bundle.far[rows]
    behind = torch.rand(config.rays, 3, generator=chance, device=device)

    with torch.no_grad():
        begin, end = place_samples(field, bones, bundle.origin, direction, near, far, chance)
    rgba = composite(field, bones, bundle.origin, direction, begin, end).rgba
    difference = rgba - target[rows]
    return (difference[:, :3] - difference[:, 3:] * behind).square().mean()
