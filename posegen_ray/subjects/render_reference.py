"""The readable renderer: torch and nerfacc, the same samples as the fused one, no own kernels.

For every ray: intersect all cage triangles, pair the i-th entry with the i-th exit, map the samples
between them back to the T-pose (blending the charts of both ends; see `kernels`), look up the
field, composite. Differentiable by autograd. Slow:
meant for tests and for understanding. Legend: T cage triangles, L layers, S samples per layer.
"""

from __future__ import annotations

import torch
from nerfacc import accumulate_along_rays, render_weight_from_density
from torch import Tensor

from posegen_ray.body.camera import Camera, rays
from posegen_ray.config import RendererConfig
from posegen_ray.subjects.deform import Cage, pose_cage
from posegen_ray.subjects.field import DENSITY_SCALE, Field

_NEAR = 0.05  # metres
_GRAZING = 0.02  # cosine below which the point of intersection counts as fixed
_SAME_LIMB = 0.12  # metres that the two charts may be apart at the exit to be blended
_SHORTEST = 1e-4  # metres; shorter passages are not blended
_RAYS_AT_ONCE = 1024


class ReferenceModel:
    """One subject's field and cage, drawn by plain tensor operations."""

    def __init__(
        self, cage: Cage, field: Field, config: RendererConfig, device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.cage = cage.to(self.device)
        self.field = field.to(self.device)
        self.config = config

    def draw(
        self,
        bones: Tensor,  # [B, 24, 3, 4]
        camera: Camera,
    ) -> Tensor:  # [B, H, W, 4] premultiplied
        """Pictures on transparent ground. Differentiable in bones and every camera tensor."""
        points, inverse = pose_cage(self.cage, bones)
        origins, directions = rays(camera)
        images = []
        for item in range(len(camera)):
            flat = directions[item].flatten(0, 1)
            axis = camera.rotation[item, 2]
            pieces = [
                self._draw_rays(origins[item], piece, axis, points[item], inverse[item])
                for piece in flat.split(_RAYS_AT_ONCE)
            ]
            images.append(torch.cat(pieces).view(camera.height, camera.width, 4))
        return torch.stack(images)

    def _draw_rays(
        self,
        origin: Tensor,  # [3]
        directions: Tensor,  # [N, 3]
        axis: Tensor,  # [3] the camera's optical axis
        points: Tensor,  # [C, 3]
        inverse: Tensor,  # [C, 3, 3]
    ) -> Tensor:  # [N, 4]
        step, layers = self.config.step, self.config.layers
        with torch.no_grad():
            entry, exit_, triangle, exit_triangle = self._passages(origin, directions, axis, points)
            end = torch.minimum(exit_, entry + self.config.thickness)
            first = torch.ceil(entry / step - 0.5)
            last = torch.floor(end / step - 0.5)
            count = torch.where(entry.isfinite(), last - first + 1, 0.0).clamp_min(0)
            most = int(count.max())
        if most == 0:
            return directions.new_zeros(len(directions), 4)
        number = torch.arange(most, device=directions.device)
        valid = number < count[..., None]  # [N, L, S]
        t = (torch.where(count > 0, first, 0.0)[..., None] + number + 0.5) * step

        ray = (origin, directions, points, inverse)
        begin, from_entry, entry_at_exit = self._chart(*ray, entry, triangle, t, exit_)
        finish, from_exit, exit_at_exit = self._chart(*ray, exit_, exit_triangle, t, exit_)
        same_limb = (exit_at_exit - entry_at_exit).detach().norm(dim=-1) < _SAME_LIMB
        long_enough = (exit_ > entry + _SHORTEST) & (exit_ < entry + self.config.thickness)
        blended = (same_limb & long_enough)[..., None]
        length = torch.where(blended[..., 0], finish - begin, 1.0)  # no division by 0
        way = (t - begin[..., None]) / length[..., None]
        share = torch.where(blended, way * way * (3 - 2 * way), 0.0)[..., None]
        canonical = (1 - share) * from_entry + share * from_exit

        value = lookup(self.field, canonical)
        inside = valid & value[..., 4].bool()
        density = torch.where(inside, DENSITY_SCALE * value[..., 3].sigmoid(), 0.0)
        # nerfacc takes distances; each sample stands for the ray's length between two depths
        length = directions.norm(dim=-1)[:, None].expand(-1, layers * most) * step
        weights, _, _ = render_weight_from_density(
            torch.zeros_like(length), length, density.flatten(1)
        )
        colour = accumulate_along_rays(weights, value[..., :3].flatten(1, 2))
        return torch.cat([colour, accumulate_along_rays(weights)], -1)

    def _chart(
        self,
        origin: Tensor,  # [3]
        directions: Tensor,  # [N, 3]
        points: Tensor,  # [C, 3]
        inverse: Tensor,  # [C, 3, 3]
        depth: Tensor,  # [N, L] of the intersections; infinite: none
        triangle: Tensor,  # [N, L]
        t: Tensor,  # [N, L, S] depths of the samples
        until: Tensor,  # [N, L] another depth
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Depths with gradient [N, L], rest-pose places at t [N, L, S, 3] and until [N, L, 3]."""
        corner = self.cage.faces.long()[triangle]  # [N, L, 3]
        share, depth = _intersect(origin, directions, points[corner], depth)
        share = share[..., None]
        chart_inverse = (share[..., None] * inverse[corner]).sum(2)
        rest = (share * self.cage.rest[corner]).sum(2)
        offset = origin - (share * points[corner]).sum(2)
        velocity = (chart_inverse @ directions[:, None, :, None])[..., 0]
        start = rest + (chart_inverse @ offset[..., None])[..., 0]
        until = torch.where(until.isfinite(), until, 0.0)
        return (
            depth,
            start[:, :, None] + t[..., None] * velocity[:, :, None],
            start + until[..., None] * velocity,
        )

    def _passages(
        self, origin: Tensor, directions: Tensor, axis: Tensor, points: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Depths of the nearest entries and exits [N, L] (infinite: none), and their triangles."""
        a, b, c = points[self.cage.faces.long()].unbind(1)
        normal = torch.linalg.cross(b - a, c - a)
        facing = directions @ normal.T  # [N, T]
        depth = ((a - origin) * normal).sum(-1) / facing
        sides = [
            (directions @ torch.linalg.cross(p - origin, q - origin).T)
            for p, q in ((a, b), (b, c), (c, a))
        ]
        inward = (sides[0] >= 0) & (sides[1] >= 0) & (sides[2] >= 0)
        outward = (sides[0] <= 0) & (sides[1] <= 0) & (sides[2] <= 0)
        near = ((torch.stack([a, b, c]) - origin) @ axis < _NEAR).any(0)
        hit = (inward | outward) & ~near
        infinite = torch.full_like(depth, torch.inf)
        layers = self.config.layers
        entry, triangle = torch.where(hit & (facing < 0), depth, infinite).sort(-1)
        exit_, exit_triangle = torch.where(hit & (facing > 0), depth, infinite).sort(-1)
        return (
            entry[:, :layers],
            exit_[:, :layers],
            triangle[:, :layers],
            exit_triangle[:, :layers],
        )


def _intersect(
    origin: Tensor,  # [3]
    directions: Tensor,  # [N, 3]
    corners: Tensor,  # [N, L, 3, 3]
    known: Tensor,  # [N, L] depths; infinite where there is no intersection
) -> tuple[Tensor, Tensor]:  # barycentrics [N, L, 3], depths [N, L] (0 where there is none)
    """Where the rays meet the triangles. Differentiable, but for grazing rays."""
    a, b, c = corners.unbind(2)
    ray = directions[:, None].expand_as(a)
    normal = torch.linalg.cross(b - a, c - a)
    facing = (normal * ray).sum(-1)
    grazing = facing.abs() <= _GRAZING * normal.norm(dim=-1) * ray.norm(dim=-1)
    safe = torch.where(facing.abs() > 1e-12, facing, torch.ones_like(facing))
    depth = ((a - origin) * normal).sum(-1) / safe
    depth = torch.where(grazing, depth.detach(), depth)
    hit = origin + depth[..., None] * ray
    area = (normal * normal).sum(-1)
    second = (torch.linalg.cross(hit - a, c - a) * normal).sum(-1) / area
    third = (torch.linalg.cross(b - a, hit - a) * normal).sum(-1) / area
    share = torch.stack([1 - second - third, second, third], -1)
    share = torch.where(grazing[..., None], share.detach(), share)
    exists = known.isfinite()
    share = torch.where(exists[..., None], share, torch.full_like(share, 1 / 3))
    return share, torch.where(exists, depth, 0.0)


def lookup(
    field: Field,
    places: Tensor,  # [..., 3] metres, rest pose
) -> Tensor:  # [..., 5]: red, green, blue, density logit, 1 inside an active cell (else all 0)
    """Trilinear interpolation in the sparse grid. Differentiable in places and values."""
    low = torch.tensor(field.low, device=places.device)
    scaled = (places - low) / field.voxel
    size = torch.tensor(field.index.shape, device=places.device)
    cell = scaled.detach().floor().long()
    bounded = cell.clamp_min(0).minimum(size - 2)
    x, y, z = bounded.unbind(-1)
    active = (cell == bounded).all(-1) & (field.index[x, y, z] >= 0)
    value = places.new_zeros(*places.shape[:-1], 4)
    fraction = torch.where(active[..., None], scaled - bounded, 0.0)
    for dx in (0, 1):
        for dy in (0, 1):
            for dz in (0, 1):
                code = field.index[x + dx, y + dy, z + dz].long()
                row = torch.where(code < 0, -2 - code, code).clamp_min(0)
                offset = torch.tensor([dx, dy, dz], device=places.device)
                weight = torch.where(offset == 1, fraction, 1 - fraction).prod(-1)
                value = value + weight[..., None] * field.values[row]
    value = torch.where(active[..., None], value, 0.0)
    return torch.cat([value, active[..., None].float()], -1)
