"""Fits a voxel field to a capture: optimises its colours and densities by the fused renderer.

Legend: B frames, N rays, M field vertices, V lattice vertices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import warp as wp
from torch import Tensor
from torch.nn.functional import pad

from posegen_ray.body.model import BodyModel
from posegen_ray.config import FitConfig, RendererConfig
from posegen_ray.seeding import numpy_stream, torch_stream
from posegen_ray.subjects import grid_kernels
from posegen_ray.subjects.capture import Capture
from posegen_ray.subjects.deform import Lattice, build_lattice, pose_normals, pose_vertices
from posegen_ray.subjects.field import EMPTY, LOGIT_LIMIT, Field, body_field, widened
from posegen_ray.subjects.light import brightness, even_light
from posegen_ray.subjects.render_fused import (
    FusedModel,
    View,
    launch,
    ray_slopes,
    to_camera_bones,
)
from posegen_ray.subjects.warp_cache import prepare, warp_device_name

_SURVEY = 24  # pictures looked at for carving and for pruning
_MAJORITY = 0.95  # share of votes above which a place starts as part of the person
_MINORITY = 0.88  # share of votes below which it cannot become part of it
_CERTAINTY = 20.0  # density logit per unit of share
_SHOWN = 0.012  # rays per picture that a vertex must colour to stay
_SOLID = 2.0  # density logit above which it stays anyway
_RING = 1  # vertices kept around what matters, for densities to fade in
_FINAL_RATE = 0.05  # the learning rates end at this fraction of their start


@dataclass(frozen=True)
class _Frame:
    """One training picture, reduced to the rays that can see the person."""

    view: View
    slopes: Tensor  # [N, 2]
    normals: Tensor  # [1, V, 3] of the lattice's vertices, world
    target: Tensor  # [N, 4] premultiplied


def fit_voxels(
    capture: Capture,
    body: BodyModel,
    bones: Tensor,  # [B, 24, 3, 4]
    config: FitConfig,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Lattice, Field, Tensor]:
    """The field that looks like the training frames, the lattice that moves it, and the light.

    Each step renders one training picture before a random background (against floaters), pulls the
    squared error back to the field, and takes an Adam step. Part of the way through, and at the
    end, empty places go, which makes every later rendering faster.
    """
    training = (~capture.held_out).nonzero()[:, 0].tolist()
    start = body_field(body, capture.shape, config.region)
    field = carve(capture, body, bones, start, training, device)
    prune_step = round(config.prune_at * config.steps)
    order = numpy_stream(seed, "fit", "order")
    backgrounds = torch_stream(seed, "fit", "background", device=torch.device(device).type)
    lattice = build_lattice(body, capture.shape, field)
    outside = _outside(start, field)
    light = even_light()
    optimiser = _FieldOptimiser(lattice, field, light, outside, config, device)
    frames = [_frame(optimiser.model, capture, bones, i) for i in training]
    queue: list[int] = []
    for step in range(config.steps):
        if step == prune_step:
            field = prune(optimiser.field(), _shown(optimiser.model, frames))
            lattice = build_lattice(body, capture.shape, field)
            outside = _outside(start, field)
            light = optimiser.light()
            optimiser = _FieldOptimiser(lattice, field, light, outside, config, device, step)
            frames = [_frame(optimiser.model, capture, bones, i) for i in training]
        if not queue:
            queue = order.permutation(len(frames)).tolist()
        optimiser.step(frames[queue.pop()], backgrounds)
        if progress is not None:
            progress(step + 1, config.steps)
    field = optimiser.field()
    field = prune(field, field.values[:, 3] > EMPTY, ring=0)
    return build_lattice(body, capture.shape, field), field, optimiser.light()


def carve(
    capture: Capture,
    body: BodyModel,
    bones: Tensor,  # [B, 24, 3, 4]
    field: Field,
    training: list[int],
    device: torch.device | str = "cpu",
) -> Field:
    """Starts the densities from the masks: what most rays through a place call person is person.

    The rays pass an almost transparent field, so that every place gets its votes; a place inside
    the body needs none. Cells without a chance go.
    """
    faint = field.values.clone()
    faint[:, 3] = EMPTY + 0.1
    lattice = build_lattice(body, capture.shape, field)
    config = RendererConfig(early_stop=0.0)
    model = FusedModel(lattice, replace(field, values=faint), even_light(), config, device)
    lit = torch.ones(1, len(lattice.rest), device=model.device)
    votes = torch.zeros_like(model.field.values)
    for index in training[:: max(1, len(training) // _SURVEY)]:
        frame = _frame(model, capture, bones, index)
        mask = frame.target[:, 3:]
        # gradients of the colours are sums of weights: red counts for the person, green against
        counted = torch.cat([mask, 1 - mask, torch.zeros_like(frame.target[:, :2])], -1)
        model.pull_back_to_field(
            frame.view, frame.slopes, lit, torch.zeros_like(counted), counted, votes
        )
    yes, no = votes[:, 0].cpu(), votes[:, 1].cpu()
    share = yes / (yes + no).clamp_min(1e-12)
    body_logit = field.values[:, 3]
    voted = ((share - _MAJORITY) * _CERTAINTY).clamp(EMPTY + 1, 2.0)
    values = field.values.clone()
    values[:, 3] = torch.where(body_logit > 0, body_logit.clamp_max(4.0), voted)
    return prune(replace(field, values=values), (share > _MINORITY) | (body_logit > 0))


def prune(
    field: Field,
    matters: Tensor,  # [M] bool
    ring: int = _RING,
) -> Field:
    """Keeps the vertices at most `ring` steps away from what matters."""
    grid = torch.zeros(field.index.shape, dtype=torch.bool)
    grid[field.stored] = matters
    return field.restricted(widened(grid, ring))


def _shown(model: FusedModel, frames: list[_Frame]) -> Tensor:  # [M] bool
    """Which field vertices colour enough rays, or lie deep in the person: these are seldom seen,
    but must stay."""
    sums = torch.zeros_like(model.field.values)
    lit = torch.ones(1, len(model.lattice.rest), device=model.device)
    surveyed = frames[:: max(1, len(frames) // _SURVEY)]
    for frame in surveyed:
        rgba = model.march(frame.view, frame.slopes, lit)
        count = torch.zeros_like(rgba)
        count[:, 0] = 1.0
        model.pull_back_to_field(frame.view, frame.slopes, lit, rgba, count, sums)
    shown = sums[:, 0] / len(surveyed) > _SHOWN
    return (shown | (model.field.values[:, 3] > _SOLID)).cpu()


def _outside(start: Field, field: Field) -> Tensor:  # [M] bool
    """Which vertices of `field` lie outside the naked body, from which `start` was made."""
    outside = torch.zeros(start.index.shape, dtype=torch.bool)
    outside[start.stored] = start.values[:, 3] <= 0
    return outside[field.stored]


class _FieldOptimiser:
    """Adam on a field's values and on the light, with the gradient of the renderer's kernels."""

    def __init__(
        self,
        lattice: Lattice,
        field: Field,
        light: Tensor,  # [4, 4]
        outside: Tensor,  # [M] bool: field vertices outside the naked body
        config: FitConfig,
        device: torch.device | str,
        done: int = 0,
    ) -> None:
        prepare(warp_device_name(torch.device(device)), grid_kernels.__name__)
        field = Field(field.values.clone(), field.index, field.low, field.voxel)
        self.model = FusedModel(
            lattice, field, light.clone(), RendererConfig(early_stop=1e-3), device
        )
        self._config = config
        self._done = done  # steps taken so far, for the learning rate
        self._since = 0  # steps taken since the moments were zero
        values = self.model.field.values
        self._grad = torch.zeros_like(values)
        self._moments = (torch.zeros_like(values), torch.zeros_like(values))
        self._neighbours = self.model.field.neighbours()
        # [M] against fog in the air, and for a solid inside
        self._push = torch.where(outside.to(device), config.sparsity, -config.solidity)
        self._light = torch.optim.Adam([self.model.light], config.light_rate, betas=(0.9, 0.99))

    def field(self) -> Field:
        """The field as it stands."""
        return self.model.field.to("cpu")

    def light(self) -> Tensor:  # [4, 4]
        """The light as it stands."""
        return self.model.light.detach().cpu().clone()

    def step(self, frame: _Frame, backgrounds: torch.Generator) -> None:
        model = self.model
        lit = brightness(model.light, frame.normals)
        rgba = model.march(frame.view, frame.slopes, lit)
        behind = torch.rand(len(rgba), 3, generator=backgrounds, device=rgba.device)
        difference = rgba - frame.target
        residual = difference[:, :3] - difference[:, 3:] * behind
        grad_rgba = torch.cat([residual, -(residual * behind).sum(-1, keepdim=True)], -1)
        grad_lit = model.pull_back_to_field(
            frame.view, frame.slopes, lit, rgba, grad_rgba, self._grad
        )
        self._grad[:, 3] += self._push
        values = wp.from_torch(model.field.values, dtype=wp.vec4)
        grad = wp.from_torch(self._grad, dtype=wp.vec4)
        smoothness = self._config.smoothness
        launch(
            grid_kernels.smooth,
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
        decay = _FINAL_RATE ** (self._done / self._config.steps)
        self._done += 1
        colour, density = decay * self._config.colour_rate, decay * self._config.density_rate
        extended = pad(frame.normals[0], (0, 1), value=1.0)
        model.light.grad = (grad_lit[0, :, None] * extended).T @ extended
        self._light.param_groups[0]["lr"] = decay * self._config.light_rate
        self._light.step()
        launch(
            grid_kernels.adam,
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


def _frame(model: FusedModel, capture: Capture, bones: Tensor, index: int) -> _Frame:
    camera = capture.view(index, model.device)
    posed = bones[index : index + 1].to(model.device)
    points = pose_vertices(model.lattice, to_camera_bones(camera, posed))
    view = model.find_rays(points, camera)
    target = capture.target(index).to(model.device).view(-1, 4)[view.row]
    normals = pose_normals(model.lattice, posed)
    return _Frame(view, ray_slopes(camera, view), normals, target)
