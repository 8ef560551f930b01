"""Fits A-NeRF's network to a capture: rays of several training pictures a step, Adam,
squared error before random backgrounds (Su et al. 2021, section 4).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from posegen_ray.body.camera import Camera
from posegen_ray.body.model import BodyModel
from posegen_ray.config import AnerfConfig, FitConfig
from posegen_ray.errors import TrainingError
from posegen_ray.seeding import numpy_stream, torch_stream
from posegen_ray.subjects.anerf import (
    AnerfModel,
    RayBundle,
    SkeletonField,
    cast,
    composite,
    pixel_rays,
    place_samples,
)
from posegen_ray.subjects.capture import Capture
from posegen_ray.subjects.fit_poses import FrameCorrections


class AnerfFitter:
    """Looks for the network that looks like the training frames."""

    def __init__(
        self,
        capture: Capture,
        body: BodyModel,
        config: AnerfConfig,
        fit: FitConfig,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.done, self.total = 0, config.steps
        self._capture, self._config, self._seed = capture, config, seed
        self._device = torch.device(device)
        self._training = (~capture.held_out).nonzero()[:, 0].tolist()
        self._bones = capture.bones(body)
        with torch.no_grad():
            rest = body(torch.eye(3).expand(1, 24, 3, 3), capture.shape[None]).joints[0]
        self._rest = rest
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._field = SkeletonField(rest, config).to(self._device)
        self._optimiser = torch.optim.Adam(
            self._field.parameters(), config.learning_rate, betas=(0.9, 0.999)
        )
        self._cache: dict[int, tuple[RayBundle, Tensor]] = {}
        self._corrections: FrameCorrections | None = None
        if fit.refine_rate > 0:
            self._corrections = FrameCorrections(capture, body, fit.refine_rate)

    def step(self) -> float:
        """Raises TrainingError when the loss is not finite."""
        config = self._config
        chance = torch_stream(self._seed, "fit", "rays", self.done, device=self._device.type)
        for group in self._optimiser.param_groups:
            group["lr"] = config.learning_rate * 0.5 ** (self.done / config.half_life)
        self._optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for number in range(config.pictures):
            index = self._choose(config.pictures * self.done + number)
            loss = self._loss(index, chance)
            if not bool(loss.isfinite()):
                raise TrainingError(
                    f"The fit of {self._capture.name!r} diverged at step {self.done} "
                    f"(loss {loss.item()}).",
                    f"Lower field.anerf.learning_rate ({config.learning_rate}).",
                )
            (loss / config.pictures).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach()) / config.pictures
            if self._corrections is not None:
                self._corrections.step()
        self._optimiser.step()
        self.done += 1
        return total

    def model(self) -> AnerfModel:
        return AnerfModel(copy.deepcopy(self._field), self._device)

    def state(self) -> dict[str, Any]:
        state = {
            "done": self.done,
            "network": self._field.state_dict(),
            "moments": self._optimiser.state_dict(),
        }
        if self._corrections is not None:
            state["corrections"] = self._corrections.state()
        return state

    def resume(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        self._field.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["moments"])
        if self._corrections is not None:
            self._corrections.resume(state["corrections"])

    def result(self) -> tuple[dict[str, Any], AnerfModel, Capture]:
        believed = self._capture if self._corrections is None else self._corrections.apply()
        model = self.model()
        return {"field": copy.deepcopy(model.field).to("cpu")}, model, believed

    def _choose(self, number: int) -> int:
        """Every training frame once a lap."""
        lap, place = divmod(number, len(self._training))
        order = numpy_stream(self._seed, "fit", "order", lap).permutation(self._training)
        return int(order[place])

    def _loss(self, index: int, chance: torch.Generator) -> Tensor:
        if self._corrections is None:
            if index not in self._cache:
                view, bones = self._capture.view(index), self._bones[index]
                self._cache[index] = self._rays(index, view, bones)
            bundle, target = self._cache[index]
            return _loss(self._field, self._bones[index].to(self._device), bundle, target, chance)
        bones, camera, cost = self._corrections.frame(index)
        bundle, target = self._rays(index, camera, bones[0].detach())
        origin, direction = pixel_rays(camera, bundle.pixel.cpu())
        bundle = bundle._replace(
            origin=origin.to(self._device), direction=direction.to(self._device)
        )
        return _loss(self._field, bones[0].to(self._device), bundle, target, chance) + cost

    def _rays(
        self, index: int, view: Camera, bones: Tensor
    ) -> tuple[RayBundle, Tensor]:  # rays, what they should show [N, 4]
        bundle = cast(view, bones, self._rest)
        target = self._capture.targets([index], bundle.pixel)
        return RayBundle(*(part.to(self._device) for part in bundle)), target.to(self._device)


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
