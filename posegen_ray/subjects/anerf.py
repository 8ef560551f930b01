"""A-NeRF (Su, Yu, Zollhoefer, Rhodin: A-NeRF, NeurIPS 2021): a network on skeleton-relative
coordinates instead of a grid in the rest pose. The paper's own renderer, and the yardstick of ours.

What a place is said to be: for each of the 24 joints its distance, its direction and the ray's
direction, the last two in the joint's own frame; far joints fade out (eq. 8 to 11 of the paper).
Nothing is deformed, so no inverse skinning is needed; but 144 evaluations of an 8 x 256 network a
ray make it thousands of times slower than `render_fused`. One network serves both passes.
Legend: N rays, S samples a ray.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from nerfacc import accumulate_along_rays, render_weight_from_density
from torch import Tensor, nn
from torch.nn.functional import pad, softplus
from torch.utils.checkpoint import checkpoint

from posegen_ray.body.camera import Camera
from posegen_ray.config import AnerfConfig
from posegen_ray.errors import RenderError

JOINTS = 24
DENSITY_SCALE = 30.0  # densities are 1 / metre; the network's outputs stay small
CUTOFF = 0.5  # metres from a joint at which its say is halved
CUTOFF_SLOPE = 20.0  # 1 / metre
MARGIN = 0.25  # metres around the joints that may belong to the person
DISTANCE_OCTAVES = 7
VIEW_OCTAVES = 4
_PLACE = JOINTS * (1 + 2 * DISTANCE_OCTAVES) + JOINTS * 3
_VIEW = JOINTS * 3 * (1 + 2 * VIEW_OCTAVES)
_SKIP = 4  # the input is shown again after so many layers
_NEAR = 0.05  # metres
_RAYS_AT_ONCE = 512  # bounds the memory: about 0.5 GB with gradients


class SkeletonField(nn.Module):
    """Colour and density of a place, as its surroundings' joints see it.

    Args:
        rest_joints: [24, 3] metres, joints in the rest pose.
        config: size of the network, samples a ray.
    """

    rest_joints: Tensor

    def __init__(self, rest_joints: Tensor, config: AnerfConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("rest_joints", rest_joints.detach().clone())
        width = config.width
        inputs = [_PLACE] + [width] * (config.depth - 1)
        if config.depth > _SKIP + 1:
            inputs[_SKIP + 1] += _PLACE
        self.layers = nn.ModuleList(nn.Linear(size, width) for size in inputs)
        self.density = nn.Linear(width, 1)
        nn.init.constant_(self.density.bias, -3.0)  # thin fog at first
        self.feature = nn.Linear(width, width)
        self.view = nn.Linear(width + _VIEW, width // 2)
        self.colour = nn.Linear(width // 2, 3)

    def forward(
        self,
        places: Tensor,  # [..., 3] metres, world
        directions: Tensor,  # [..., 3] unit, world
        bones: Tensor,  # [24, 3, 4] rest to world
    ) -> Tensor:  # [..., 4] red, green, blue (0 to 1), density (1 / metre)
        """Differentiable in everything."""
        place, view = encode(places, directions, bones, self.rest_joints)
        hidden = place
        for number, layer in enumerate(self.layers):
            if number == _SKIP + 1:
                hidden = torch.cat([place, hidden], -1)
            hidden = layer(hidden).relu()
        # not the paper's ReLU: a network that has become empty would stay so
        density = DENSITY_SCALE * softplus(self.density(hidden))
        seen = self.view(torch.cat([self.feature(hidden), view], -1)).relu()
        colour = self.colour(seen).sigmoid() * 1.002 - 0.001  # so that 0 and 1 can be reached
        return torch.cat([colour, density], -1)


def encode(
    places: Tensor,  # [..., 3]
    directions: Tensor,  # [..., 3] unit
    bones: Tensor,  # [24, 3, 4]
    rest_joints: Tensor,  # [24, 3]
) -> tuple[Tensor, Tensor]:  # [..., 432], [..., 648]
    """The skeleton-relative encoding of places and of the rays through them."""
    turn = bones[:, :, :3]
    joints = (turn @ rest_joints[..., None])[..., 0] + bones[:, :, 3]
    away = places[..., None, :] - joints  # [..., 24, 3]
    distance = away.square().sum(-1).clamp_min(1e-12).sqrt()
    weight = torch.sigmoid(CUTOFF_SLOPE * (CUTOFF - distance))
    direction = torch.einsum("...ji,jik->...jk", away, turn) / distance[..., None]
    along = torch.einsum("...i,jik->...jk", directions, turn)
    near = _waves(distance[..., None], DISTANCE_OCTAVES) * weight[..., None]
    seen = _waves(along, VIEW_OCTAVES) * weight[..., None]
    place = torch.cat([near.flatten(-2), direction.flatten(-2)], -1)
    return place, seen.flatten(-2)


def _waves(
    values: Tensor,  # [..., D]
    octaves: int,
) -> Tensor:  # [..., D * (1 + 2 octaves)]
    """Positional encoding, with the values themselves."""
    angles = [values * 2.0**octave for octave in range(octaves)]
    return torch.cat([values, *(a.sin() for a in angles), *(a.cos() for a in angles)], -1)


class RayBundle(NamedTuple):
    """Rays of one picture that may meet the person."""

    pixel: Tensor  # [N] int64 in the picture's H * W
    origin: Tensor  # [3]
    direction: Tensor  # [N, 3] unit
    near: Tensor  # [N] metres
    far: Tensor  # [N]


class AnerfModel:
    """A skeleton field, ready to be drawn. Slow; memory does not grow with the picture."""

    def __init__(self, field: SkeletonField, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.field = field.to(self.device).requires_grad_(False)

    def draw(
        self,
        bones: Tensor,  # [B, 24, 3, 4]
        camera: Camera,
        light: Tensor | None = None,  # [B, 3] see `RenderRequest.light`; only exposure may change
    ) -> Tensor:  # [B, H, W, 4] premultiplied
        """Pictures on transparent ground. Differentiable in bones, exposure and every camera
        tensor: the samples' places move with both, the choice of rays and depths is held.

        Raises:
            RenderError: the light is turned or its contrast changed; it is part of the colours.
        """
        exposure = torch.ones(len(camera), device=self.device)
        if light is not None:
            if bool((light[:, 0] != 0).any() or (light[:, 1] != 1).any()):
                raise RenderError(
                    "A subject of field=anerf holds the light that it was filmed in; it cannot be "
                    "turned.",
                    "Set generator.light.turn=0 and generator.light.contrast_low and _high to 1.",
                )
            exposure = light[:, 2]
        images = []
        for item in range(len(camera)):
            view = camera[[item]]
            bundle = cast(view, bones[item], self.field.rest_joints)
            pieces = [
                self._draw_piece(bones[item], view, bundle, rows)
                for rows in torch.arange(len(bundle.pixel), device=self.device).split(_RAYS_AT_ONCE)
            ]
            image = torch.zeros(camera.height * camera.width, 4, device=self.device)
            if pieces:
                image = image.index_copy(0, bundle.pixel, torch.cat(pieces))
            bright = torch.cat([exposure[item].expand(3), exposure.new_ones(1)])
            images.append((image * bright).view(camera.height, camera.width, 4))
        return torch.stack(images)

    def _draw_piece(self, bones: Tensor, view: Camera, bundle: RayBundle, rows: Tensor) -> Tensor:
        def shade(bones: Tensor, origin: Tensor, direction: Tensor) -> Tensor:
            with torch.no_grad():
                depths = place_samples(
                    self.field, bones, origin, direction, bundle.near[rows], bundle.far[rows]
                )
            return composite(self.field, bones, origin, direction, *depths).rgba

        # rays again, here with gradients, from the camera
        origin, direction = pixel_rays(view, bundle.pixel[rows])
        if not torch.is_grad_enabled():
            return shade(bones, origin, direction)
        drawn: Tensor = checkpoint(shade, bones, origin, direction, use_reentrant=False)
        return drawn


def cast(
    camera: Camera,  # one
    bones: Tensor,  # [24, 3, 4]
    rest_joints: Tensor,  # [24, 3]
) -> RayBundle:
    """The rays inside the image box of an upright cylinder around the joints, and where they are
    inside that cylinder. No gradients."""
    with torch.no_grad():
        joints = (bones[:, :, :3] @ rest_joints[..., None])[..., 0] + bones[:, :, 3]
        low, high = joints.amin(0) - MARGIN, joints.amax(0) + MARGIN
        centre = joints[0, [0, 2]]
        radius = (joints[:, [0, 2]] - centre).norm(dim=-1).max() + MARGIN
        pixel = _box(camera, centre, radius, low[1], high[1])
        origin, direction = pixel_rays(camera, pixel)
        near, far = _inside(origin, direction, centre, radius, low[1], high[1])
        meets = far > near.clamp_min(_NEAR)
        return RayBundle(
            pixel[meets], origin, direction[meets], near[meets].clamp_min(_NEAR), far[meets]
        )


def _box(
    camera: Camera, centre: Tensor, radius: Tensor, bottom: Tensor, top: Tensor
) -> Tensor:  # [N] pixels
    """Pixels of the box around the cylinder's picture; all when the camera stands beside it."""
    turn = 2 * math.pi / 16 * torch.arange(16, device=centre.device)
    rim = radius / math.cos(math.pi / 16) * torch.stack([turn.cos(), turn.sin()], -1) + centre
    corners = torch.cat(
        [torch.stack([rim[:, 0], y.expand(16), rim[:, 1]], -1) for y in (bottom, top)]
    )
    local = corners @ camera.rotation[0].T + camera.translation[0]
    size = local.new_tensor([camera.width, camera.height])
    first, last = torch.zeros_like(size), size
    if bool((local[:, 2] > _NEAR).all()):
        seen = local[:, :2] / local[:, 2:] * camera.focal[0] + camera.principal[0]
        first = seen.amin(0).floor().clamp_min(0).minimum(size)
        last = seen.amax(0).ceil().clamp_min(0).minimum(size)
    (x0, y0), (x1, y1) = first.int().tolist(), last.int().tolist()
    rows = torch.arange(y0, y1, device=centre.device)
    columns = torch.arange(x0, x1, device=centre.device)
    return (rows[:, None] * camera.width + columns).flatten()


def _inside(
    origin: Tensor,  # [3]
    direction: Tensor,  # [N, 3]
    centre: Tensor,  # [2] x, z
    radius: Tensor,
    bottom: Tensor,
    top: Tensor,
) -> tuple[Tensor, Tensor]:  # [N] near, far; far < near where a ray misses
    """Where rays are inside an upright cylinder."""
    flat, start = direction[:, [0, 2]], origin[[0, 2]] - centre
    a = flat.square().sum(-1).clamp_min(1e-12)
    b = (flat * start).sum(-1)
    inside = b.square() - a * (start.square().sum() - radius.square())
    root = inside.clamp_min(0).sqrt()
    rise = torch.where(direction[:, 1].abs() < 1e-9, 1e-9, direction[:, 1])
    ends = torch.stack([(bottom - origin[1]) / rise, (top - origin[1]) / rise])
    near = torch.maximum((-b - root) / a, ends.amin(0))
    far = torch.minimum((-b + root) / a, ends.amax(0))
    return near, torch.where(inside > 0, far, near - 1)


def pixel_rays(
    camera: Camera,  # one
    pixel: Tensor,  # [N]
) -> tuple[Tensor, Tensor]:  # [3], [N, 3] unit
    """Differentiable in the camera."""
    centres = torch.stack([pixel % camera.width, pixel // camera.width], -1) + 0.5
    slopes = (centres - camera.principal[0]) / camera.focal[0]
    local = torch.cat([slopes, torch.ones_like(slopes[:, :1])], -1)
    local = local / local.norm(dim=-1, keepdim=True)
    return -camera.rotation[0].T @ camera.translation[0], local @ camera.rotation[0]


def place_samples(
    field: SkeletonField,
    bones: Tensor,  # [24, 3, 4]
    origin: Tensor,  # [3] or [N, 3]
    direction: Tensor,  # [N, 3]
    near: Tensor,  # [N]
    far: Tensor,  # [N]
    jitter: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:  # [N, S] where the samples' stretches begin and end
    """Even stretches, and more of them where a first look finds something (inverse transform of its
    weights, as in NeRF). Without `jitter` always the same."""
    config = field.config
    edges = torch.linspace(0, 1, config.samples + 1, device=near.device)
    edges = near[:, None] + (far - near)[:, None] * edges
    if jitter is not None:
        shift = torch.rand(len(near), 1, generator=jitter, device=near.device) - 0.5
        inner = edges[:, 1:-1] + shift * (far - near)[:, None] / config.samples
        edges = torch.cat([edges[:, :1], inner, edges[:, -1:]], 1)
    if config.importance == 0:
        return edges[:, :-1], edges[:, 1:]
    weights = composite(field, bones, origin, direction, edges[:, :-1], edges[:, 1:]).weights
    share = weights + 1e-5
    grown = pad((share / share.sum(-1, keepdim=True)).cumsum(-1), (1, 0))
    wanted = (torch.arange(config.importance, device=near.device) + 0.5) / config.importance
    wanted = wanted.expand(len(near), -1).contiguous()
    cell = torch.searchsorted(grown, wanted, right=True).clamp(1, config.samples) - 1
    before, after = grown.gather(1, cell), grown.gather(1, cell + 1)
    part = (wanted - before) / (after - before).clamp_min(1e-9)
    left, right = edges.gather(1, cell), edges.gather(1, cell + 1)
    every = torch.cat([edges, left + part.clamp(0, 1) * (right - left)], 1).sort(1).values
    return every[:, :-1], every[:, 1:]


class Composite(NamedTuple):
    """Rays after volume rendering."""

    rgba: Tensor  # [N, 4] premultiplied
    weights: Tensor  # [N, S]


def composite(
    field: SkeletonField,
    bones: Tensor,  # [24, 3, 4]
    origin: Tensor,  # [3] or [N, 3]
    direction: Tensor,  # [N, 3] unit
    begin: Tensor,  # [N, S]
    end: Tensor,  # [N, S]
) -> Composite:
    """Volume rendering with one evaluation in the middle of each stretch."""
    middle = 0.5 * (begin + end)
    start = origin if origin.dim() == 1 else origin[:, None]
    places = start + middle[..., None] * direction[:, None]
    value = field(places, direction[:, None].expand_as(places), bones)
    weights, _, _ = render_weight_from_density(begin, end, value[..., 3])
    colour = accumulate_along_rays(weights, value[..., :3])
    return Composite(torch.cat([colour, accumulate_along_rays(weights)], -1), weights)
