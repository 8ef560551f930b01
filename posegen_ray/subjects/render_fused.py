"""The fast renderer: Warp kernels behind a torch.autograd.Function.

Torch skins the lattice, makes the rays and differentiates both; the kernels find where rays enter
the lattice, walk through it, and pull gradients back. All images of a batch share the launches.
Legend: B images, V lattice vertices, N rays that meet the lattice, M field vertices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from posegen_ray.body.camera import Camera, to_camera
from posegen_ray.config import RendererConfig
from posegen_ray.subjects import grid_kernels, kernels
from posegen_ray.subjects.deform import Lattice, pose_lattice
from posegen_ray.subjects.field import DENSITY_SCALE, Field
from posegen_ray.subjects.warp_cache import prepare, warp_device_name

_IMAGES_AT_ONCE = 16  # bounds the memory of the entry buffers: 3 MB an image at 256 x 256
_NEAR = 0.05  # metres; kernels.NEAR


@dataclass(frozen=True)
class Rays:
    """The pixels whose rays meet the posed lattice, with their sorted entries; no gradients."""

    image: Tensor  # [N] int32, ascending
    row: Tensor  # [N] int64 index into the batch's B * H * W pixels
    centre: Tensor  # [N, 2] pixel centres
    front: Tensor  # [N, LAYERS] int64: depth bits and tetrahedron of each entry, -1: none


class FusedModel:
    """One subject's field and lattice, ready to be drawn.

    Args:
        lattice, field: the subject.
        config: layers, early stop.
        device: "cpu" or a CUDA device.
    """

    def __init__(
        self,
        lattice: Lattice,
        field: Field,
        config: RendererConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        warp_name = warp_device_name(self.device)
        prepare(warp_name, kernels.__name__)
        self.config = config
        self.lattice = lattice.to(self.device)
        self.field = field.to(self.device)
        # Warp arrays below are views: these tensors must stay alive with them
        low = torch.tensor(field.low, device=self.device)
        self._rest = ((self.lattice.rest - low) / field.voxel).contiguous()
        self._boundary = self.lattice.boundary
        self._warp_rest = wp.from_torch(self._rest, dtype=wp.vec3)
        self._warp_tets = wp.from_torch(self.lattice.tets, dtype=wp.vec4i)
        self._warp_neighbours = wp.from_torch(self.lattice.neighbours, dtype=wp.vec4i)
        self._warp_boundary = wp.from_torch(self._boundary, dtype=wp.vec4i)
        grid = grid_kernels.Grid()
        grid.index = wp.from_torch(self.field.index, dtype=wp.int32)
        grid.values = wp.from_torch(self.field.values, dtype=wp.vec4)
        grid.low = wp.vec3(*field.low)
        grid.cells_per_metre = 1.0 / field.voxel
        grid.density_scale = DENSITY_SCALE
        self._grid = grid

    def draw(
        self,
        bones: Tensor,  # [B, 24, 3, 4]
        camera: Camera,
    ) -> Tensor:  # [B, H, W, 4] premultiplied
        """Pictures on transparent ground. Differentiable in bones and every camera tensor."""
        batch = len(camera)
        pieces = [
            self._draw_piece(
                bones[start : start + _IMAGES_AT_ONCE], camera[start : start + _IMAGES_AT_ONCE]
            )
            for start in range(0, batch, _IMAGES_AT_ONCE)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _draw_piece(self, bones: Tensor, camera: Camera) -> Tensor:
        points = pose_lattice(self.lattice, bones)
        rays = self.find_rays(points.detach(), camera.detach())
        origins, directions = world_rays(camera, rays)
        colours: Tensor = _March.apply(  # type: ignore[no-untyped-call]
            self, rays, points, origins, directions
        )
        flat = torch.zeros(len(camera) * camera.height * camera.width, 4, device=self.device)
        flat = flat.index_copy(0, rays.row, colours)
        return flat.view(len(camera), camera.height, camera.width, 4)

    def find_rays(
        self,
        points: Tensor,  # [B, V, 3] world
        camera: Camera,
    ) -> Rays:
        """Rasterises the posed lattice's boundary into sorted entries per pixel."""
        local = to_camera(camera, points).contiguous()
        box = _bounding_boxes(local, camera)
        areas = box[:, 2] * box[:, 3]
        start = areas.cumsum(0) - areas
        total = int(areas.sum())
        front = torch.full((total, kernels.LAYERS), -1, dtype=torch.int64, device=self.device)
        if total:
            batch, tets = len(camera), self.lattice.tets
            flipped = torch.empty(batch, len(tets), dtype=torch.uint8, device=self.device)
            warp_local = wp.from_torch(local, dtype=wp.vec3)
            warp_flipped = wp.from_torch(flipped)
            views = [
                wp.from_torch(camera.focal.contiguous(), dtype=wp.float32),
                wp.from_torch(camera.principal.contiguous(), dtype=wp.vec2),
                wp.from_torch(box, dtype=wp.vec4i),
                wp.from_torch(start.int(), dtype=wp.int32),
                wp.from_torch(front, dtype=wp.uint64),
            ]
            faces = [warp_local, self._warp_boundary]
            self._launch(kernels.rasterise, (batch, len(self._boundary)), [*faces, *views])
            inside = [warp_local, self._warp_tets]
            self._launch(kernels.find_flipped, (batch, len(tets)), [*inside, warp_flipped])
            inside += [self._warp_neighbours, warp_flipped]
            self._launch(kernels.rasterise_holes, (batch, len(tets)), [*inside, *views])
        hit = (front[:, 0] != -1).nonzero()[:, 0]
        image = torch.searchsorted(start + areas, hit, right=True)
        inside_box = hit - start[image]
        x = box[image, 0] + inside_box % box[image, 2]
        y = box[image, 1] + inside_box // box[image, 2]
        return Rays(
            image.int(),
            (image * camera.height + y) * camera.width + x,
            torch.stack([x, y], -1) + 0.5,
            front[hit],
        )

    def march(
        self,
        rays: Rays,
        points: Tensor,  # [B, V, 3]
        origins: Tensor,  # [B, 3]
        directions: Tensor,  # [N, 3]
    ) -> Tensor:  # [N, 4]
        """Premultiplied colour of each ray. Carries no gradient: see `_March`."""
        rgba = torch.empty(len(rays.row), 4, device=self.device)
        if len(rgba):
            inputs = self._ray_inputs(rays, points, origins, directions)
            self._launch(kernels.march, len(rgba), [*inputs, wp.from_torch(rgba, dtype=wp.vec4)])
        return rgba

    def pull_back(
        self,
        rays: Rays,
        points: Tensor,
        origins: Tensor,
        directions: Tensor,
        rgba: Tensor,  # [N, 4] what `march` gave
        grad_rgba: Tensor,  # [N, 4]
        grad_values: Tensor | None = None,  # [M, 4] added to; then poses get no gradient
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of points, origins and directions."""
        to_pose = grad_values is None
        grad_points = torch.zeros_like(points)
        ray_origins = torch.zeros_like(directions)
        grad_directions = torch.zeros_like(directions)
        if grad_values is None:
            grad_values = torch.zeros(1, 4, device=self.device)
        if len(rgba):
            inputs = self._ray_inputs(rays, points, origins, directions)
            self._launch(
                kernels.march_backward,
                len(rgba),
                [
                    *inputs,
                    wp.from_torch(rgba, dtype=wp.vec4),
                    wp.from_torch(grad_rgba.contiguous(), dtype=wp.vec4),
                    int(to_pose),
                    int(not to_pose),
                    wp.from_torch(grad_points, dtype=wp.vec3),
                    wp.from_torch(ray_origins, dtype=wp.vec3),
                    wp.from_torch(grad_directions, dtype=wp.vec3),
                    wp.from_torch(grad_values, dtype=wp.vec4),
                ],
            )
        grad_origins = torch.zeros_like(origins).index_add_(0, rays.image, ray_origins)
        return grad_points, grad_origins, grad_directions

    def _ray_inputs(
        self, rays: Rays, points: Tensor, origins: Tensor, directions: Tensor
    ) -> list[Any]:
        lattice = kernels.Lattice()
        lattice.points = wp.from_torch(points, dtype=wp.vec3)
        lattice.rest = self._warp_rest
        lattice.tets = self._warp_tets
        lattice.neighbours = self._warp_neighbours
        lattice.layers = self.config.layers
        lattice.early_stop = self.config.early_stop
        return [
            wp.from_torch(rays.image, dtype=wp.int32),
            wp.from_torch(origins, dtype=wp.vec3),
            wp.from_torch(directions, dtype=wp.vec3),
            wp.from_torch(rays.front, dtype=wp.uint64),
            lattice,
            self._grid,
        ]

    def _launch(self, kernel: Any, dim: int | tuple[int, int], inputs: Sequence[Any]) -> None:
        launch(kernel, dim, inputs, self.device)


class _March(torch.autograd.Function):
    """`FusedModel.march` with its hand-written adjoint."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        model: FusedModel,
        rays: Rays,
        points: Tensor,
        origins: Tensor,
        directions: Tensor,
    ) -> Tensor:
        geometry = [t.detach().contiguous() for t in (points, origins, directions)]
        rgba = model.march(rays, *geometry)
        ctx.model, ctx.rays = model, rays
        ctx.save_for_backward(*geometry, rgba)
        return rgba

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_rgba: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = [tensor.detach() for tensor in ctx.saved_tensors]
        return None, None, *ctx.model.pull_back(ctx.rays, *saved, grad_rgba)


def world_rays(
    camera: Camera,
    rays: Rays,
) -> tuple[Tensor, Tensor]:  # origins [B, 3], directions [N, 3] with z = 1 in camera space
    """World-space rays through the given pixels. Differentiable in every camera tensor."""
    image = rays.image.long()
    local = (rays.centre - camera.principal[image]) / camera.focal[image, None]
    local = torch.cat([local, torch.ones_like(local[:, :1])], -1)
    directions = (local[:, None] @ camera.rotation[image])[:, 0]
    origins = -(camera.translation[:, None] @ camera.rotation)[:, 0]
    return origins, directions


def _bounding_boxes(
    local: Tensor,  # [B, C, 3] camera space
    camera: Camera,
) -> Tensor:  # [B, 4] int32 x, y, width, height (zero where nothing is in the picture)
    pixels = local[..., :2] / local[..., 2:].clamp_min(_NEAR)
    pixels = pixels * camera.focal[:, None, None] + camera.principal[:, None]
    size = pixels.new_tensor([camera.width, camera.height])
    low = pixels.amin(1).floor().clamp_min(0).minimum(size)
    high = pixels.amax(1).ceil().clamp_min(0).minimum(size)
    return torch.cat([low, high - low], -1).int()


def launch(
    kernel: Any, dim: int | tuple[int, int], inputs: Sequence[Any], device: torch.device
) -> None:
    """Runs a kernel where torch works: on CUDA in torch's current stream."""
    stream: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if device.type == "cuda":
        stream = wp.ScopedStream(wp.stream_from_torch(torch.cuda.current_stream(device)))
    with stream:
        wp.launch(kernel, dim, inputs, device=warp_device_name(device))
