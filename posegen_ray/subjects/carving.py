"""Where the person can be, by the masks of a capture: before the fit, and where it begins.

Legend: N places, B frames, M field vertices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, max_pool2d, pad

from posegen_ray.body.camera import Camera, project, to_camera
from posegen_ray.body.model import BodyModel, skin
from posegen_ray.config import RegionConfig
from posegen_ray.subjects.canonical import Bools, CanonicalBody, Floats, canonical_body
from posegen_ray.subjects.capture import Capture
from posegen_ray.subjects.deform import pose_normals, pose_vertices
from posegen_ray.subjects.field import CUBE, EMPTY, Field, widened
from posegen_ray.subjects.light import towards_camera
from posegen_ray.subjects.render_fused import FusedModel, View, ray_slopes, to_camera_bones

_SURVEY = 24  # pictures looked at
_HULL = 0.6  # share of the pictures that must show the person somewhere in a cube
_MAJORITY = 0.95  # share of votes above which a place starts as part of the person
_MINORITY = 0.8  # share of votes below which it cannot become part of it
_CERTAINTY = 20.0  # density logit per unit of share
_NEAREST = 0.05  # metres; places nearer to the camera than this do not count as seen
RING = 1  # vertices kept around what matters, for densities to fade in

Item = TypeVar("Item")


def survey(frames: Sequence[Item]) -> Sequence[Item]:
    """Some of the frames, evenly."""
    count = min(_SURVEY, len(frames))
    return [frames[number * len(frames) // count] for number in range(count)]


def visual_hull(
    capture: Capture,
    body: BodyModel,
    bones: Tensor,  # [B, 24, 3, 4]
    training: list[int],
    config: RegionConfig,
) -> Callable[[Floats], Bools]:
    """Tells which cubes of the field lie within the person's outline in most pictures: those that
    do not are left out at once. (Laurentini 1994, for a body that moves.)"""
    surface = canonical_body(body, capture.shape)
    reach = 0.5 * math.sqrt(3) * CUBE * config.voxel

    def possible(centres: Floats) -> Bools:
        weights, _ = surface.weights(centres)
        rest = torch.from_numpy(surface.to_rest(centres, weights)).float()
        share = torch.from_numpy(weights).float()
        seen, met = torch.zeros(2, len(centres))
        for index in survey(training):
            camera = capture.view(index)
            posed = skin(rest[None], share, bones[index : index + 1].cpu())
            depth = to_camera(camera, posed)[0, :, 2]
            column, row = project(camera, posed)[0].floor().long().unbind(-1)
            shown = (depth > reach) & (column >= 0) & (column < camera.width)
            shown &= (row >= 0) & (row < camera.height)
            if not shown.any():
                continue
            # anything within the cube may show the person
            wide = math.ceil(reach * float(camera.focal) / float(depth[shown].median()))
            mask = (capture.masks[index] > 127).float()[None, None]
            mask = max_pool2d(mask, 2 * wide + 1, stride=1, padding=wide)[0, 0]
            seen += shown
            met[shown] += mask[row[shown], column[shown]]
        return np.asarray(met >= _HULL * seen)

    return possible


def carve(
    capture: Capture,
    body: BodyModel,
    bones: Tensor,  # [B, 24, 3, 4]
    field: Field,
    training: list[int],
    device: torch.device | str = "cpu",
) -> Field:
    """Starts the densities from the masks: what most pictures of a place call person is person.
    A place inside the body needs no votes. Cells without a chance go.
    """
    body_logit = field.values[:, 3]
    cubes = field.cubes(body_logit <= 0)
    moving = MovingCubes(canonical_body(body, capture.shape), field, cubes, device)
    votes = torch.zeros(2, len(cubes), CUBE**3, device=device)
    for index in survey(training):
        camera, posed = capture.view(index, device), bones[index : index + 1].to(device)
        places = moving.vertices(to_camera_bones(camera, posed)[0])
        votes += seen(camera, capture.masks[index].to(device), places)
    rows = field.cube_rows(cubes)
    share = torch.zeros(len(field.values))
    share[rows[rows >= 0]] = (votes[0] / votes[1].clamp_min(1e-6)).cpu()[rows >= 0]
    voted = ((share - _MAJORITY) * _CERTAINTY).clamp(EMPTY + 1, 2.0)
    values = field.values.clone()
    values[:, 3] = torch.where(body_logit > 0, body_logit.clamp_max(4.0), voted)
    return prune(replace(field, values=values), (share > _MINORITY) | (body_logit > 0))


class MovingCubes:
    """Cubes of a field that the body takes along: each moves, whole, as its middle does."""

    def __init__(
        self,
        surface: CanonicalBody,
        field: Field,
        cubes: Tensor,  # [N, 3] int
        device: torch.device | str = "cpu",
    ) -> None:
        middle = np.array(field.low) + (CUBE * cubes.numpy() + CUBE // 2) * field.voxel
        weights, _ = surface.weights(middle)
        # it, and the next vertices along the axes
        places = middle[:, None] + field.voxel * np.eye(4, 3, -1)
        rest = surface.to_rest(places.reshape(-1, 3), weights.repeat(4, 0)).reshape(-1, 4, 3)
        corners = pad(torch.from_numpy(rest), (0, 1), value=1.0).mT  # [N, 4, 4] in columns
        step = torch.tensor(list(np.ndindex(CUBE, CUBE, CUBE))).double().T - CUBE // 2
        shares = torch.cat([1 - step.sum(0, keepdim=True), step])  # [4, 27]
        self._weights = torch.from_numpy(weights).float().to(device)
        self._rest, self._shares = corners.float().to(device), shares.float().to(device)

    def vertices(
        self,
        bones: Tensor,  # [24, 3, 4]
    ) -> Tensor:  # [3, N, 27] where bones lead; see `Field.cube_rows`
        blended = (self._weights @ bones.flatten(1)).unflatten(1, (3, 4))
        moved: Tensor = blended @ self._rest @ self._shares
        return moved.transpose(0, 1)


def seen(
    camera: Camera,  # one
    mask: Tensor,  # [H, W] uint8
    places: Tensor,  # [3, N, 27] camera space
) -> Tensor:  # [2, N, 27]
    """How far each place lies on the mask, and how far in the picture, 0 to 1."""
    picture = torch.stack([mask.float() / 255, torch.ones_like(mask, dtype=torch.float32)])
    size = places.new_tensor([camera.width, camera.height])
    scale, shift = 2 * camera.focal / size, 2 * camera.principal[0] / size - 1
    inverse = 1 / places[2].clamp_min(_NEAREST)
    across = torch.stack(
        [places[0] * inverse * scale[0] + shift[0], places[1] * inverse * scale[1] + shift[1]], -1
    )
    share = grid_sample(picture[None], across[None], align_corners=False)[0]
    return share * (places[2] > _NEAREST)


def prune(
    field: Field,
    matters: Tensor,  # [M] bool
    ring: int = RING,
) -> Field:
    """Keeps the vertices at most `ring` steps away from what matters."""
    grid = torch.zeros(field.index.shape, dtype=torch.bool)
    grid[field.stored] = matters
    return field.restricted(widened(grid, ring))


@dataclass(frozen=True)
class Frame:
    """One training picture, reduced to the rays that can see the person."""

    view: View
    slopes: Tensor  # [N, 2]
    normals: Tensor  # [1, V, 3] of the lattice's vertices, world
    towards: Tensor  # [1, V, 3] from there to the camera, world
    target: Tensor  # [N, 4] premultiplied

    def thinned(self, number: int) -> Frame:
        """Every second of its rays: a chessboard's black squares, with odd numbers the white ones.
        Enough to tell what is seen at all: a field is seldom finer than pixels."""
        squares = self.view.centre.long().sum(-1)
        chosen = (squares + number) % 2 == 0
        view, slopes = self.view.only(chosen), self.slopes[chosen]
        return replace(self, view=view, slopes=slopes, target=self.target[chosen])


def frame_of(model: FusedModel, capture: Capture, bones: Tensor, index: int) -> Frame:
    camera = capture.view(index, model.device)
    posed = bones[index : index + 1].to(model.device)
    points = pose_vertices(model.lattice, to_camera_bones(camera, posed))
    view = model.find_rays(points, camera)
    target = capture.targets([index], view.row)
    normals = pose_normals(model.lattice, posed)
    return Frame(view, ray_slopes(camera, view), normals, towards_camera(points, camera), target)
