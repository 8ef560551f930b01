"""The readable renderer: torch and nerfacc, the same samples as the fused one, no own kernels.

For every ray: intersect all outer faces of the posed lattice, walk from each entry through the
tetrahedra (without gradients), then place the samples on the crossings found, map them back to the
canonical pose by barycentric coordinates, look up the field, composite. Differentiable by autograd.
Slow: meant for tests and for understanding.
Legend: T tetrahedra, F faces, L layers, K crossings a ray.
"""

from __future__ import annotations

import torch
from nerfacc import accumulate_along_rays, render_weight_from_density
from torch import Tensor
from torch.nn.functional import normalize

from posegen_ray.body.camera import Camera, rays
from posegen_ray.config import RendererConfig
from posegen_ray.subjects.deform import FACES, Lattice, pose_normals, pose_vertices
from posegen_ray.subjects.field import ABSENT, Field, density
from posegen_ray.subjects.light import brightness, changed_light

_NEAR = 0.05  # metres
_FLAT = 1e-9  # cubic metres (six times the volume): a tetrahedron inside out
_RAYS_AT_ONCE = 512


class ReferenceModel:
    """One subject's field and lattice, drawn by plain tensor operations."""

    def __init__(
        self,
        lattice: Lattice,
        field: Field,
        light: Tensor,  # [2, 4, 4]
        config: RendererConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.lattice = lattice.to(self.device)
        self.field = field.to(self.device)
        self.light = light.to(self.device)
        self.config = config
        self._tets = self.lattice.tets.long()
        self._neighbours = self.lattice.neighbours.long()
        self._canonical = self.lattice.canonical[self._tets]  # [T, 4, 3]

    def draw(
        self,
        bones: Tensor,  # [B, 24, 3, 4]
        camera: Camera,
        light: Tensor | None = None,  # [B, 3] see `RenderRequest.light`
    ) -> Tensor:  # [B, H, W, 4] premultiplied
        """Pictures on transparent ground. Differentiable in bones, light and every camera
        tensor."""
        points = pose_vertices(self.lattice, bones)
        origins, directions = rays(camera)
        towards = normalize(origins[:, None] - points, dim=-1)
        falls = self.light if light is None else changed_light(self.light, light)
        lit = brightness(falls, pose_normals(self.lattice, bones), towards)
        images = []
        for item in range(len(camera)):
            posed = points[item][self._tets]  # [T, 4, 3]
            faces = self._outer_faces(posed.detach())
            flat = directions[item].flatten(0, 1)
            axis = camera.rotation[item, 2]
            pieces = [
                self._draw_rays(origins[item], piece, axis, posed, lit[item][self._tets], faces)
                for piece in flat.split(_RAYS_AT_ONCE)
            ]
            images.append(torch.cat(pieces).view(camera.height, camera.width, 4))
        return torch.stack(images)

    def _outer_faces(
        self,
        posed: Tensor,  # [T, 4, 3]
    ) -> tuple[Tensor, Tensor]:  # tetrahedra [F], their faces' corners [F, 3, 3]
        """Faces of whole tetrahedra with nothing, or a flipped one, on the other side."""
        whole = _six_volumes(posed) > _FLAT
        beyond = self._neighbours
        open_ = (beyond < 0) | ~whole[beyond]
        tet, corner = (whole[:, None] & open_).nonzero().unbind(1)
        order = torch.from_numpy(FACES).to(tet.device)[corner]  # [F, 3]
        return tet, posed[tet].gather(1, order[..., None].expand(-1, -1, 3))

    def _draw_rays(
        self,
        origin: Tensor,  # [3]
        directions: Tensor,  # [N, 3]
        axis: Tensor,  # [3] the camera's optical axis
        posed: Tensor,  # [T, 4, 3]
        lit: Tensor,  # [T, 4] brightness of the corners
        faces: tuple[Tensor, Tensor],
    ) -> Tensor:  # [N, 4]
        with torch.no_grad():
            first = self._entries(origin, directions, axis, faces)
            path = self._walk(origin, directions, posed, first)
        if path.shape[1] == 0:
            return directions.new_zeros(len(directions), 4)
        there = path >= 0
        tet = path.clamp_min(0)
        offset, rate = _barycentric(origin, directions[:, None], posed[tet])
        begin, end = _ends(offset, rate)
        way = torch.where(there, end - begin, 0.0).clamp_min(0)  # [N, K]
        inside = offset + (begin + 0.5 * way)[..., None] * rate  # [N, K, 4]
        canonical = (inside[..., None] * self._canonical[tet]).sum(-2)
        value = lookup(self.field, canonical)
        thickness = torch.where(way > 0, density(value[..., 3]), 0.0)
        length = way * directions.norm(dim=-1)[:, None]
        weights, _, _ = render_weight_from_density(torch.zeros_like(length), length, thickness)
        bright = (inside * lit[tet]).sum(-1, keepdim=True)
        colour = accumulate_along_rays(weights, bright * value[..., :3])
        return torch.cat([colour, accumulate_along_rays(weights)], -1)

    def _entries(
        self, origin: Tensor, directions: Tensor, axis: Tensor, faces: tuple[Tensor, Tensor]
    ) -> Tensor:  # [N, L] tetrahedra that the ray enters from outside, nearest first; -1: none
        tet, corners = faces
        a, b, c = corners.unbind(1)
        normal = torch.linalg.cross(b - a, c - a)
        facing = directions @ normal.T  # [N, F]
        depth = ((a - origin) * normal).sum(-1) / facing
        sides = [
            directions @ torch.linalg.cross(p - origin, q - origin).T
            for p, q in ((a, b), (b, c), (c, a))
        ]
        inward = (sides[0] <= 0) & (sides[1] <= 0) & (sides[2] <= 0)
        near = ((torch.stack([a, b, c]) - origin) @ axis < _NEAR).any(0)
        hit = inward & (facing < 0) & ~near
        depth, face = torch.where(hit, depth, torch.inf).sort(-1)
        layers = self.config.layers
        return torch.where(depth.isfinite(), tet[face], -1)[:, :layers]

    def _walk(
        self, origin: Tensor, directions: Tensor, posed: Tensor, first: Tensor
    ) -> Tensor:  # [N, K] tetrahedra crossed, in the order of depth; -1: none
        here = first.clone()  # [N, L]
        steps, depths = [], []
        latest = torch.zeros_like(here, dtype=posed.dtype)
        while bool((here >= 0).any()):
            tet = here.clamp_min(0)
            corners = posed[tet]
            offset, rate = _barycentric(origin, directions[:, None], corners)
            begin, _ = _ends(offset, rate)
            good = (here >= 0) & (_six_volumes(corners) > _FLAT)
            steps.append(torch.where(good, here, -1))
            latest = torch.maximum(latest, torch.where(good, begin, 0.0))
            depths.append(torch.where(good, latest, torch.inf))
            exits = torch.where(rate < 0, -offset / rate, torch.inf).argmin(-1)
            onward = self._neighbours[tet].gather(-1, exits[..., None])[..., 0]
            here = torch.where(good, onward, -1)
        if not steps:
            return first[:, :0]
        order = torch.cat(depths, 1).sort(dim=1, stable=True).indices
        path = torch.cat(steps, 1).gather(1, order)
        return path[:, : int((path >= 0).sum(1).max())]


def _six_volumes(
    corners: Tensor,  # [..., 4, 3]
) -> Tensor:  # [...]
    sides = corners[..., 1:, :] - corners[..., :1, :]
    volume: Tensor = torch.linalg.det(sides)
    return volume


def _barycentric(
    origin: Tensor,  # [3]
    directions: Tensor,  # [N, 1, 3]
    corners: Tensor,  # [N, K, 4, 3]
) -> tuple[Tensor, Tensor]:  # offset, rate [N, K, 4]: coordinates of origin + t direction
    """Barycentric coordinates along rays. Differentiable; of no meaning for flat tetrahedra."""
    p = corners[..., 0, :]
    side = corners[..., 1:, :] - p[..., None, :]
    rows = torch.stack(
        [
            torch.linalg.cross(side[..., (i + 1) % 3, :], side[..., (i + 2) % 3, :])
            for i in range(3)
        ],
        -2,
    )
    volume = (side[..., 0, :] * rows[..., 0, :]).sum(-1)
    volume = torch.where(volume > _FLAT, volume, torch.ones_like(volume))
    rows = rows / volume[..., None, None]
    offset = (rows * (origin - p)[..., None, :]).sum(-1)
    rate = (rows * directions[..., None, :]).sum(-1)
    offset = torch.cat([1 - offset.sum(-1, keepdim=True), offset], -1)
    return offset, torch.cat([-rate.sum(-1, keepdim=True), rate], -1)


def _ends(
    offset: Tensor,  # [..., 4]
    rate: Tensor,  # [..., 4]
) -> tuple[Tensor, Tensor]:  # depths [...]
    """Where a ray enters and leaves a tetrahedron: the last coordinate to rise, the first to fall
    through zero."""
    safe = torch.where(rate == 0, torch.ones_like(rate), rate)
    t = -offset / safe
    begin = torch.where(rate > 0, t, -torch.inf).amax(-1)
    end = torch.where(rate < 0, t, torch.inf).amin(-1)
    return begin, end


def lookup(
    field: Field,
    places: Tensor,  # [..., 3] metres, canonical pose
) -> Tensor:  # [..., 4]: red, green, blue, density logit
    """Trilinear interpolation in the sparse grid. Differentiable in places and values."""
    low = torch.tensor(field.low, device=places.device)
    scaled = (places - low) / field.voxel
    size = torch.tensor(field.index.shape, device=places.device)
    corner = scaled.detach().floor().long()
    values = torch.cat([field.values, field.values.new_tensor([ABSENT])])
    total = places.new_zeros(*places.shape[:-1], 4)
    for offset in torch.cartesian_prod(*[torch.arange(2, device=places.device)] * 3):
        vertex = corner + offset
        known = ((vertex >= 0) & (vertex < size)).all(-1)
        x, y, z = vertex.clamp_min(0).minimum(size - 1).unbind(-1)
        row = torch.where(known, field.index[x, y, z].long(), -1)  # -1: the last, `ABSENT`
        fraction = scaled - corner
        weight = torch.where(offset == 1, fraction, 1 - fraction).prod(-1)
        total = total + weight[..., None] * values[row]
    return total
