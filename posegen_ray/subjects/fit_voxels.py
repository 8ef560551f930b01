"""Fits a voxel field to a capture: optimises its colours and densities by the fused renderer.

Legend: B frames, N rays, M field vertices, V lattice vertices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import warp as wp
from torch import Tensor

from posegen_ray.body.camera import Camera, concatenate
from posegen_ray.body.model import BodyModel
from posegen_ray.config import FitConfig, RendererConfig
from posegen_ray.seeding import numpy_stream, torch_stream
from posegen_ray.subjects import fit_kernels
from posegen_ray.subjects.body_field import body_field
from posegen_ray.subjects.build_lattice import build_lattice, restrict_lattice
from posegen_ray.subjects.capture import Capture
from posegen_ray.subjects.carving import (
    RING,
    Frame,
    carve,
    frame_of,
    prune,
    survey,
    visual_hull,
)
from posegen_ray.subjects.deform import LATTICE_TENSORS, Lattice
from posegen_ray.subjects.field import EMPTY, LOGIT_LIMIT, Field
from posegen_ray.subjects.fit_motion import LatticeMotion
from posegen_ray.subjects.fit_poses import FrameCorrections
from posegen_ray.subjects.light import brightness, even_light, towards_camera
from posegen_ray.subjects.render_fused import (
    FusedModel,
    View,
    launch,
    ray_slopes,
)
from posegen_ray.subjects.warp_cache import prepare, warp_device_name

_PRUNE_AGAIN_AT = 0.4  # fraction of the steps after which what has become empty in motion goes, too
_SHOWN = 0.012  # rays per picture that a vertex must colour to stay
_SOLID = 2.0  # density logit above which it stays anyway
_EARLY_STOP = 0.01  # a ray ends when less light is left: what lies behind has nothing to say
_FINAL_RATE = 0.05  # the learning rates end at this fraction of their start


class VoxelFitter:
    """Looks for the field that looks like the training frames, the lattice that moves it, and the
    light.

    Each step renders rays of some training pictures, pulls the squared error that they have
    before random backgrounds (against floaters) back to the field, and takes an Adam step. Part of
    the way through, twice, and at the end, empty places go, which makes every later rendering
    faster. From the first time on the fit also learns how cloth moves, and poses and cameras may be
    corrected.
    """

    def __init__(
        self,
        capture: Capture,
        body: BodyModel,
        config: FitConfig,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.done, self.total = 0, config.steps
        self._capture, self._body, self._config = capture, body, config
        self._seed, self._device = seed, torch.device(device)
        self._training = (~capture.held_out).nonzero()[:, 0].tolist()
        self._bones = capture.bones(body)
        self._first_pruning = max(1, round(config.prune_at * config.steps))
        self._second_pruning = max(self._first_pruning, round(_PRUNE_AGAIN_AT * config.steps))
        self._motion: LatticeMotion | None = None
        self._corrections: FrameCorrections | None = None
        if config.refine_rate > 0:
            self._corrections = FrameCorrections(capture, body, config.refine_rate)
        possible = visual_hull(capture, body, self._bones, self._training, config.region)
        self._start = body_field(body, capture.shape, config.region, possible)
        field = carve(capture, body, self._bones, self._start, self._training, device)
        self._begin(build_lattice(body, capture.shape, field), field, even_light())

    def _begin(self, lattice: Lattice, field: Field, light: Tensor, moving: bool = False) -> None:
        config, outside = self._config, _outside(self._start, field)
        self._optimiser = _FieldOptimiser(lattice, field, light, outside, config, self._device)
        if moving:
            rates = (config.weight_rate, config.shift_rate, config.turn_rate)
            self._motion = LatticeMotion(self._optimiser.model.lattice, *rates)

    def step(self) -> float:
        if self.done in (self._first_pruning, self._second_pruning):
            lattice, field = self._restricted(self._believed())
            self._begin(lattice, field, self._optimiser.light(), moving=True)
        optimiser = self._optimiser
        chance = torch_stream(self._seed, "fit", "rays", self.done, device=self._device.type)
        decay = _FINAL_RATE ** (self.done / self.total)
        indices = self._next()
        if self._motion is None:
            model = optimiser.model
            frames = [frame_of(model, self._capture, self._bones, index) for index in indices]
            error = optimiser.look([frame.thinned(self.done) for frame in frames], chance)
        else:
            error = optimiser.look_in_motion(self._take(indices), self._motion, chance)
        optimiser.move(decay)
        if self._motion is not None:
            self._motion.step(decay)
            if self._corrections is not None:
                self._corrections.step()
        self.done += 1
        return error

    def _next(self) -> list[int]:
        """The training pictures of this step: all of them in a random order, and again."""
        pictures = self._config.pictures
        indices = []
        for number in range(self.done * pictures, (self.done + 1) * pictures):
            lap, place = divmod(number, len(self._training))
            order = numpy_stream(self._seed, "fit", "order", lap).permutation(self._training)
            indices.append(int(order[place]))
        return indices

    def _take(self, indices: list[int]) -> Take:
        """Frames as they are now believed to be."""
        capture, device = self._capture, self._device
        target = partial(capture.targets, indices)
        if self._corrections is None:
            bones, camera = self._bones[indices], capture.camera[indices]
            return Take(bones.to(device), camera.to(device), target)
        frames = [self._corrections.frame(index) for index in indices]
        bones = torch.cat([frame[0] for frame in frames])
        camera = concatenate([frame[1] for frame in frames])
        cost = torch.stack([frame[2] for frame in frames]).sum()
        return Take(bones.to(device), camera.to(device), target, cost)

    def model(self) -> FusedModel:
        if self._motion is None:
            return self._optimiser.model
        return self._model_of(self._lattice(), self._optimiser.field())

    def _lattice(self) -> Lattice:
        if self._motion is None:
            return self._optimiser.model.lattice
        with torch.no_grad():
            return self._motion.lattice()

    def _model_of(self, lattice: Lattice, field: Field) -> FusedModel:
        return FusedModel(lattice, field, self._optimiser.light(), RendererConfig(), self._device)

    def state(self) -> dict[str, Any]:
        state = {"done": self.done, **self._optimiser.state()}
        if self._motion is not None:
            state["motion"] = self._motion.state()
        if self._corrections is not None:
            state["corrections"] = self._corrections.state()
        return state

    def resume(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        field = Field(state["values"], state["index"], tuple(state["low"]), state["voxel"])
        lattice = Lattice(*(state[name] for name in LATTICE_TENSORS))
        self._begin(lattice, field, state["light"], moving="motion" in state)
        self._optimiser.resume(state)
        if self._motion is not None:
            self._motion.resume(state["motion"])
        if self._corrections is not None:
            self._corrections.resume(state["corrections"])

    def result(self) -> tuple[dict[str, Any], FusedModel, Capture]:
        believed = self._believed()
        lattice, field = self._restricted(believed, ring=0)
        parts = {"lattice": lattice, "field": field, "light": self._optimiser.light()}
        return parts, self._model_of(lattice, field), believed

    def _believed(self) -> Capture:
        return self._capture if self._corrections is None else self._corrections.apply()

    def _restricted(self, capture: Capture, ring: int = RING) -> tuple[Lattice, Field]:
        """What the training pictures show of lattice and field, moving as they do now; the
        lattice has what was learned of its motion."""
        model, bones = self.model(), capture.bones(self._body)
        frames = [frame_of(model, capture, bones, i) for i in survey(self._training)]
        matters = _shown(model, frames) & (model.values[:, 3] > EMPTY).cpu()
        field = prune(self._optimiser.field(), matters, ring)
        return restrict_lattice(self._lattice(), field), field


def _shown(model: FusedModel, frames: Sequence[Frame]) -> Tensor:  # [M] bool
    """Which field vertices colour enough rays, or lie deep in the person: these are seldom seen,
    but must stay."""
    sums = torch.zeros_like(model.values)
    lit = torch.ones(1, len(model.lattice.rest), device=model.device)
    for number, whole in enumerate(frames):
        frame = whole.thinned(number)
        rgba, samples = model.march_noting(frame.view, frame.slopes, lit)
        count = torch.zeros_like(rgba)
        count[:, 0] = 1.0
        model.pull_back_to_field(frame.view, frame.slopes, lit, rgba, samples, count, sums)
    shown = 2 * sums[:, 0] / len(frames) > _SHOWN
    return (shown | (model.values[:, 3] > _SOLID)).cpu()


def _outside(start: Field, field: Field) -> Tensor:  # [M] bool
    """Which vertices of `field` lie outside the naked body, from which `start` was made."""
    outside = torch.zeros(start.index.shape, dtype=torch.bool)
    outside[start.stored] = start.values[:, 3] <= 0
    return outside[field.stored.cpu()]


@dataclass(frozen=True)
class Take:
    """Training pictures and what is believed about them."""

    bones: Tensor  # [B, 24, 3, 4]
    camera: Camera
    target: Callable[[Tensor], Tensor]  # rows of the B * H * W pixels [N] -> premultiplied [N, 4]
    cost: Tensor | None = None  # of poses and cameras being so far from what was given


class _FieldOptimiser:
    """Adam on a field's values and on the light, with the gradient of the renderer's kernels."""

    def __init__(
        self,
        lattice: Lattice,
        field: Field,
        light: Tensor,  # [2, 4, 4]
        outside: Tensor,  # [M] bool: field vertices outside the naked body
        config: FitConfig,
        device: torch.device,
    ) -> None:
        prepare(warp_device_name(device), fit_kernels.__name__)
        self.model = FusedModel(
            lattice, field, light.clone(), RendererConfig(early_stop=_EARLY_STOP), device
        )
        self._config = config
        self._since = 0  # steps taken since the moments were zero
        values = self.model.values
        self._field = replace(field.to(device), values=values)
        self._grad = torch.zeros_like(values)
        self._grad_light = torch.zeros_like(self.model.light)
        self._moments = (torch.zeros_like(values), torch.zeros_like(values))
        self._neighbours = self._field.neighbours()
        # [M] against fog in the air, and for a solid inside
        self._push = torch.where(outside.to(device), config.sparsity, -config.solidity)
        self._light = torch.optim.Adam([self.model.light], config.light_rate, betas=(0.9, 0.99))

    def field(self) -> Field:
        """The field as it stands."""
        return self._field.to("cpu")

    def light(self) -> Tensor:  # [2, 4, 4]
        """The light as it stands."""
        return self.model.light.detach().cpu().clone()

    def state(self) -> dict[str, Any]:
        field, lattice = self._field, self.model.lattice
        return {
            "values": field.values,
            "index": field.index,
            "low": list(field.low),
            "voxel": field.voxel,
            **{name: getattr(lattice, name) for name in LATTICE_TENSORS},
            "light": self.model.light,
            "light_moments": self._light.state_dict(),
            "moments": list(self._moments),
            "since": self._since,
        }

    def resume(self, state: dict[str, Any]) -> None:
        for ours, kept in zip(self._moments, state["moments"], strict=True):
            ours.copy_(kept)
        self._light.load_state_dict(state["light_moments"])
        self._since = state["since"]

    def look(self, frames: Sequence[Frame], chance: torch.Generator) -> float:
        """Adds the gradients of some rays of pictures, poses and cameras as given; the mean error
        met."""
        model, errors = self.model, []
        for frame in frames:
            light = model.light.detach().requires_grad_()
            view, chosen = self._some(frame.view, chance)
            slopes = frame.slopes[chosen].contiguous()
            lit = brightness(light, frame.normals, frame.towards if self._config.shine else None)
            under = lit.detach()
            rgba, samples = model.march_noting(view, slopes, under)
            error, grad_rgba = squared_error(rgba, frame.target[chosen])
            by_lit = model.pull_back_to_field(
                view, slopes, under, rgba, samples, grad_rgba, self._grad
            )
            torch.autograd.backward(lit, by_lit / max(1, len(rgba)))
            self._add_to_light(light)
            errors.append(error)
        return sum(errors) / len(errors)

    def look_in_motion(self, take: Take, motion: LatticeMotion, chance: torch.Generator) -> float:
        """The same, and gradients of how the lattice moves; they go back to a take's poses and
        cameras, too, where it wants them."""
        model, light = self.model, self.model.light.detach().requires_grad_()
        camera = take.camera
        points, normals = motion.pose(take.bones, camera)
        view, _ = self._some(model.find_rays(points.detach(), camera.detach()), chance)
        slopes = ray_slopes(camera, view).contiguous()
        towards = towards_camera(points, camera) if self._config.shine else None
        lit = brightness(light, normals, towards)
        at, under = points.detach().contiguous(), lit.detach().contiguous()
        rgba, samples = model.march_noting(view, slopes, under)
        error, grad_rgba = squared_error(rgba, take.target(view.row))
        pulled = model.pull_back(view, at, slopes, under, rgba, samples, grad_rgba, self._grad)
        # a picture's mean over rays: Adam does not care, the pull back to what was given does
        share = len(camera) / max(1, len(rgba))
        ends, gradients = [points, lit], [share * pulled[0], share * pulled[2]]
        if take.cost is not None:
            ends.append(take.cost)
            gradients.append(torch.ones_like(take.cost))
        torch.autograd.backward(ends, gradients)
        self._add_to_light(light)
        return error

    def _some(self, view: View, chance: torch.Generator) -> tuple[View, Tensor | slice]:
        """A random share of the rays, and which they are ([N] bool, or all)."""
        if self._config.ray_share == 1:
            return view, slice(None)
        draw = torch.rand(len(view.row), generator=chance, device=view.row.device)
        chosen = draw < self._config.ray_share
        return view.only(chosen), chosen

    def _add_to_light(self, light: Tensor) -> None:
        assert light.grad is not None
        self._grad_light += light.grad

    def move(self, decay: float) -> None:
        """Takes the step that the gradients say, with rates of `decay` times their start."""
        model, config = self.model, self._config
        self._grad[:, 3] += self._push
        values = wp.from_torch(model.values, dtype=wp.vec4)
        grad = wp.from_torch(self._grad, dtype=wp.vec4)
        smoothness = config.smoothness
        launch(
            fit_kernels.smooth,
            len(self._grad),
            [
                wp.from_torch(self._neighbours, dtype=wp.int32),
                values,
                # a logit spans about ten times the range of a colour
                wp.vec4(smoothness, smoothness, smoothness, 0.01 * smoothness),
                grad,
            ],
            model.device,
        )
        self._since += 1
        colour, density = decay * config.colour_rate, decay * config.density_rate
        launch(
            fit_kernels.adam,
            len(self._grad),
            [
                values,
                grad,
                *(wp.from_torch(moment, dtype=wp.vec4) for moment in self._moments),
                wp.vec4(colour, colour, colour, density),
                1.0 / (1.0 - 0.9**self._since),
                1.0 / (1.0 - 0.99**self._since),
                wp.vec4(0.0, 0.0, 0.0, -LOGIT_LIMIT),
                wp.vec4(1.0, 1.0, 1.0, LOGIT_LIMIT),
            ],
            model.device,
        )
        model.refresh()
        if config.light_rate > 0:
            model.light.grad = self._grad_light
            self._light.param_groups[0]["lr"] = decay * config.light_rate
            self._light.step()
        self._grad_light = torch.zeros_like(self._grad_light)


def squared_error(
    rgba: Tensor,  # [N, 4]
    target: Tensor,  # [N, 4]
) -> tuple[float, Tensor]:  # mean, and half the sum's gradient [N, 4]
    """Before backgrounds of noise, against floaters: the mean over all of them, which are
    independent of each other and even in [0, 1]. Drawn, they would only add to the gradient's
    noise."""
    difference = rgba - target
    colour, alpha = difference[:, :3], difference[:, 3:]
    # E (c - a b)^2 = c^2 - c a + a^2 / 3 for b even in [0, 1]
    squared = colour.square() - colour * alpha + alpha.square() / 3
    error = float(squared.mean()) if len(rgba) else 0.0
    by_alpha = alpha - 0.5 * colour.sum(-1, keepdim=True)
    return error, torch.cat([colour - 0.5 * alpha, by_alpha], -1)
