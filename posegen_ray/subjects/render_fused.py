"""The fast renderer: Warp kernels behind a torch.autograd.Function.

Torch skins the lattice into camera space, makes the rays and differentiates both; the kernels find
where rays enter the lattice, walk through it, and pull gradients back. All images of a batch share
the launches. Legend: B images, V lattice vertices, T tetrahedra, N rays that meet the lattice,
M field vertices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from posegen_ray.body.camera import Camera
from posegen_ray.config import RendererConfig
from posegen_ray.subjects import lattice_kernels, march_kernels
from posegen_ray.subjects.deform import PATTERN_PLACES, Lattice, pose_normals, pose_vertices
from posegen_ray.subjects.field import ABSENT, DENSITY_SCALE, EMPTY, Field
from posegen_ray.subjects.heap import keep_freed_memory, mapped, scratch
from posegen_ray.subjects.light import brightness, changed_light, towards_camera
from posegen_ray.subjects.warp_cache import prepare, warp_device_name

# bounds the memory of maps, entries and samples: 10 MB an image at 256 x 256
_IMAGES_AT_ONCE = 16
_NEAR = 0.05  # metres; lattice_kernels.NEAR
_SAMPLES_A_RAY = 12.0  # room for them to begin with, on an average,
_ROOM = 4096  # and so many more: a few rays say little about the average
_SAMPLE_SIZE = wp.types.type_size_in_bytes(march_kernels.Sample) // 4  # its numbers of 4 bytes

Get = Callable[[str, Sequence[int], torch.dtype, torch.device], Tensor]  # see `heap.scratch`


def new_tensor(name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """One of its own, with anything in it."""
    return torch.empty(*shape, dtype=dtype, device=device)


@dataclass(frozen=True)
class View:
    """What a batch of pictures shows of the posed lattice; no gradients."""

    # barycentric coordinates of each tetrahedron; see `march_kernels.Posed`
    maps: Tensor  # [B, T, 4, 4]
    # the pixels whose rays meet the lattice
    image: Tensor  # [N] int32, ascending
    row: Tensor  # [N] int64 index into the batch's B * H * W pixels
    centre: Tensor  # [N, 2] pixel centres
    pixel: Tensor  # [N] int32 row in `front`
    front: Tensor  # [P, LAYERS] int64: depth bits and face of each entry, -1: none

    def only(
        self,
        chosen: Tensor,  # [N] bool
    ) -> View:
        """The view with some of its rays."""
        rays = (self.image, self.row, self.centre, self.pixel)
        image, row, centre, pixel = (tensor[chosen] for tensor in rays)
        return replace(self, image=image, row=row, centre=centre, pixel=pixel)

    def for_adjoint(self) -> View:
        """What is left when `march_noting` has run, but for the maps, which are found again: a
        history of gradients that is kept would hold more of them than of all else."""
        names = ("maps", "row", "centre", "pixel", "front")
        # of their own, as a slice would keep the whole alive
        return replace(self, **{name: getattr(self, name).new_empty(0) for name in names})


@dataclass(frozen=True)
class Samples:
    """What rays have met on their way, for gradients; see `march_kernels.Sample`."""

    met: Tensor  # [S, 9] int32: one after another as marched, some to spare
    last: Tensor  # [N] int32: each ray's last one; -1: none


class FusedModel:
    """One subject's field and lattice, ready to be drawn.

    Args:
        lattice, field, light: the subject.
        config: layers, early stop.
        device: "cpu" or a CUDA device.
    """

    def __init__(
        self,
        lattice: Lattice,
        field: Field,
        light: Tensor,  # [2, 4, 4]
        config: RendererConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        keep_freed_memory()
        self.device = torch.device(device)
        self.light = light.to(self.device)
        self.shines = bool(light[1].any())
        for module in (lattice_kernels, march_kernels):
            prepare(warp_device_name(self.device), module.__name__)
        self.config = config
        self.lattice = lattice.to(self.device)
        field = field.to(self.device)
        # the last row is that of all vertices that are not stored
        self._stored = torch.cat([field.values, torch.tensor([ABSENT], device=self.device)])
        self.values = self._stored[:-1]  # the field's, [M, 4]; its grid is left behind: it is large
        # Warp arrays below are views: these tensors must stay alive with them
        self._boundary = self.lattice.boundary
        self._corners = _corners().to(self.device)
        self._neighbours = self.lattice.neighbouring_faces.flatten()
        self._rows = field.block_rows(self.lattice.cubes).flatten()
        self._values = torch.empty(len(self._rows), 4, device=self.device)
        self._warp_tets = wp.from_torch(self.lattice.tets, dtype=wp.vec4i)
        self._warp_neighbours = wp.from_torch(self._neighbours, dtype=wp.int32)
        self._warp_boundary = wp.from_torch(self._boundary, dtype=wp.vec4i)
        self._warp_corners = wp.from_torch(self._corners, dtype=wp.vec4)
        self._first_odd = 5 * self.lattice.even
        blocks = march_kernels.Blocks()
        blocks.values = wp.from_torch(self._values, dtype=wp.vec4)
        blocks.rows = wp.from_torch(self._rows, dtype=wp.int32)
        blocks.density_scale = DENSITY_SCALE
        blocks.empty = EMPTY
        self._blocks = blocks
        self.refresh()
        self._samples_a_ray = _SAMPLES_A_RAY

    def refresh(self) -> None:
        """Takes over `values`, after they have changed in place."""
        stored = wp.from_torch(self._stored, dtype=wp.vec4)
        filled = [stored, self._blocks.rows, self._blocks.values]
        self._launch(march_kernels.fill_blocks, len(self._values), filled)

    def draw(
        self,
        bones: Tensor,  # [B, 24, 3, 4]
        camera: Camera,
        light: Tensor | None = None,  # [B, 3] see `RenderRequest.light`
    ) -> Tensor:  # [B, H, W, 4] premultiplied
        """Pictures on transparent ground. Differentiable in bones, light and every camera
        tensor."""
        pieces = []
        for start in range(0, len(camera), _IMAGES_AT_ONCE):
            rows = slice(start, start + _IMAGES_AT_ONCE)
            own = None if light is None else light[rows]
            pieces.append(self._draw_piece(bones[rows], camera[rows], own))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _draw_piece(self, bones: Tensor, camera: Camera, light: Tensor | None) -> Tensor:
        points = pose_vertices(self.lattice, to_camera_bones(camera, bones))
        towards = towards_camera(points, camera) if self.shines else None
        falls = self.light if light is None else changed_light(self.light, light)
        lit = brightness(falls, pose_normals(self.lattice, bones), towards)
        view = self.find_rays(points.detach(), camera.detach(), get=scratch)
        slopes = ray_slopes(camera, view)
        if torch.is_grad_enabled() and any(t.requires_grad for t in (points, slopes, lit)):
            colours: Tensor = _March.apply(self, view, points, slopes, lit)  # type: ignore[no-untyped-call]
        else:
            colours = self.march(view, slopes.contiguous(), lit)
        row = view.row
        del view  # room for the pictures
        flat = torch.zeros(len(camera) * camera.height * camera.width, 4, device=self.device)
        flat.index_copy_(0, row, colours)
        return flat.view(len(camera), camera.height, camera.width, 4)

    def find_rays(
        self,
        points: Tensor,  # [B, V, 3] camera space
        camera: Camera,
        get: Get = new_tensor,  # `scratch` where the view is for a moment
    ) -> View:
        """Inverts the posed tetrahedra, and rasterises their boundary into sorted entries."""
        batch = len(camera)
        points = points.contiguous()
        maps, holes, count = self._find_maps(points, get)
        box = _bounding_boxes(points, camera)
        areas = box[:, 2] * box[:, 3]
        start = areas.cumsum(0) - areas
        total = int(areas.sum())
        front = get("front", (total, lattice_kernels.LAYERS), torch.int64, self.device).fill_(-1)
        warp_points = wp.from_torch(points, dtype=wp.vec3)
        warp_maps = wp.from_torch(maps.view(-1, 4), dtype=wp.vec4)
        if total:
            pixels = [
                wp.from_torch(camera.focal.contiguous(), dtype=wp.float32),
                wp.from_torch(camera.principal.contiguous(), dtype=wp.vec2),
                wp.from_torch(box, dtype=wp.vec4i),
                wp.from_torch(start.int(), dtype=wp.int32),
                wp.from_torch(front, dtype=wp.uint64),
            ]
            outer = [warp_points, self._warp_boundary, *pixels]
            self._launch(lattice_kernels.rasterise, (batch, len(self._boundary)), outer)
            inner = [holes, warp_points, self._warp_tets, self._warp_neighbours, warp_maps]
            self._launch(lattice_kernels.rasterise_holes, count, [*inner, *pixels])
        hit = (front[:, 0] != -1).nonzero()[:, 0]
        image = torch.searchsorted(start + areas, hit, right=True)
        inside_box = hit - start[image]
        x = box[image, 0] + inside_box % box[image, 2]
        y = box[image, 1] + inside_box // box[image, 2]
        return View(
            maps,
            image.int(),
            (image * camera.height + y) * camera.width + x,
            torch.stack([x, y], -1) + 0.5,
            hit.int(),
            front,
        )

    def find_maps(
        self,
        points: Tensor,  # [B, V, 3] camera space, contiguous
    ) -> Tensor:  # [B, T, 4, 4] for a moment: see `heap.scratch`
        """The maps of `find_rays` alone."""
        return self._find_maps(points, scratch)[0]

    def _find_maps(self, points: Tensor, get: Get) -> tuple[Tensor, Any, int]:
        """Maps; the tetrahedra that are turned inside out, as a Warp array, and how many."""
        batch, tets = len(points), len(self.lattice.tets)
        maps = get("maps", (batch, tets, 4, 4), torch.float32, self.device)
        holes = wp.empty(batch * tets, dtype=wp.int32, device=warp_device_name(self.device))
        count = torch.zeros(1, dtype=torch.int32, device=self.device)
        inputs = [
            wp.from_torch(points, dtype=wp.vec3),
            self._warp_tets,
            wp.from_torch(maps.view(-1, 4), dtype=wp.vec4),
            holes,
            wp.from_torch(count),
        ]
        self._launch(lattice_kernels.find_maps, (batch, tets), inputs)
        return maps, holes, int(count)

    def march(
        self,
        view: View,
        slopes: Tensor,  # [N, 2]
        lit: Tensor,  # [B, V] brightness of the lattice's vertices
    ) -> Tensor:  # [N, 4]
        """Premultiplied colour of each ray. Carries no gradient: see `_March`."""
        return self._march(view, slopes, lit, None)[0]

    def march_noting(
        self,
        view: View,
        slopes: Tensor,
        lit: Tensor,
        get: Get = new_tensor,  # `mapped` where the samples stay for a while
    ) -> tuple[Tensor, Samples]:  # [N, 4]
        """The same, and what its adjoint needs."""
        rays, device = len(view.row), self.device
        while True:
            room = _ROOM + int(self._samples_a_ray * rays)
            samples = Samples(
                get("met", (room, _SAMPLE_SIZE), torch.int32, device),
                torch.empty(rays, dtype=torch.int32, device=device),
            )
            rgba, count = self._march(view, slopes, lit, samples)
            if count <= room:
                return rgba, samples
            self._samples_a_ray = 1.2 * count / rays

    def _march(
        self, view: View, slopes: Tensor, lit: Tensor, samples: Samples | None
    ) -> tuple[Tensor, int]:  # [N, 4], how many samples there are
        rgba = torch.empty(len(view.row), 4, device=self.device)
        taken = torch.zeros(1, dtype=torch.int32, device=self.device)
        notes = samples or Samples(taken[:0], taken[:0])
        if len(rgba):
            inputs = [
                wp.from_torch(view.image, dtype=wp.int32),
                wp.from_torch(slopes, dtype=wp.vec2),
                wp.from_torch(view.pixel, dtype=wp.int32),
                wp.from_torch(view.front, dtype=wp.uint64),
                self._posed(view, lit),
                self._blocks,
                wp.from_torch(rgba, dtype=wp.vec4),
                int(samples is not None),
                _warp_samples(notes.met),
                wp.from_torch(taken),
                wp.from_torch(notes.last),
            ]
            self._launch(march_kernels.march, len(rgba), inputs)
        return rgba, 0 if samples is None else int(taken)

    def pull_back(
        self,
        view: View,
        points: Tensor,  # [B, V, 3]
        slopes: Tensor,
        lit: Tensor,  # [B, V]
        rgba: Tensor,  # [N, 4] what `march_noting` gave
        samples: Samples,
        grad_rgba: Tensor,  # [N, 4]
        grad_values: Tensor | None = None,  # [M, 4] if given, the field's gradient is added to it
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of points, slopes and brightness."""
        grad_points = torch.zeros_like(points)
        grad_slopes = torch.zeros_like(slopes)
        grad_lit = torch.zeros_like(lit)
        if len(rgba):
            grad_maps = scratch("grad_maps", view.maps.shape, torch.float32, self.device).zero_()
            self._march_backward(
                view,
                slopes,
                lit,
                rgba,
                samples,
                grad_rgba,
                (grad_maps, grad_slopes, grad_lit),
                grad_values,
            )
            self._launch(
                lattice_kernels.pull_back_maps,
                (len(points), len(self.lattice.tets)),
                [
                    self._warp_tets,
                    wp.from_torch(points, dtype=wp.vec3),
                    wp.from_torch(view.maps.view(-1, 4), dtype=wp.vec4),
                    wp.from_torch(grad_maps.view(-1, 4), dtype=wp.vec4),
                    wp.from_torch(grad_points, dtype=wp.vec3),
                ],
            )
        return grad_points, grad_slopes, grad_lit

    def pull_back_to_field(
        self,
        view: View,
        slopes: Tensor,
        lit: Tensor,  # [B, V]
        rgba: Tensor,  # [N, 4] what `march_noting` gave
        samples: Samples,
        grad_rgba: Tensor,  # [N, 4]
        grad_values: Tensor,  # [M, 4] added to
    ) -> Tensor:  # [B, V]
        """Gradient of the field's values, and of the brightness; pose and camera stay."""
        grad_lit = torch.zeros_like(lit)
        if len(rgba):
            self._march_backward(
                view, slopes, lit, rgba, samples, grad_rgba, (None, None, grad_lit), grad_values
            )
        return grad_lit

    def _march_backward(
        self,
        view: View,
        slopes: Tensor,
        lit: Tensor,
        rgba: Tensor,
        samples: Samples,
        grad_rgba: Tensor,
        gradients: tuple[Tensor | None, Tensor | None, Tensor],  # of maps, slopes, brightness
        grad_values: Tensor | None,
    ) -> None:
        maps, by_slope, by_brightness = gradients
        nothing = torch.zeros(1, 4, device=self.device)
        self._launch(
            march_kernels.march_backward,
            len(rgba),
            [
                wp.from_torch(view.image, dtype=wp.int32),
                wp.from_torch(slopes, dtype=wp.vec2),
                self._posed(view, lit),
                self._blocks,
                wp.from_torch(rgba, dtype=wp.vec4),
                _warp_samples(samples.met),
                wp.from_torch(samples.last, dtype=wp.int32),
                wp.from_torch(grad_rgba.contiguous(), dtype=wp.vec4),
                int(maps is not None),
                int(grad_values is not None),
                wp.from_torch(nothing if maps is None else maps.view(-1, 4), dtype=wp.vec4),
                wp.from_torch(nothing[:, :2] if by_slope is None else by_slope, dtype=wp.vec2),
                wp.from_torch(by_brightness.view(-1)),
                wp.from_torch(nothing if grad_values is None else grad_values, dtype=wp.vec4),
            ],
        )

    def _posed(self, view: View, lit: Tensor) -> Any:
        posed = march_kernels.Posed()
        posed.maps = wp.from_torch(view.maps.view(-1, 4), dtype=wp.vec4)
        posed.neighbours = self._warp_neighbours
        posed.corners = self._warp_corners
        posed.tets = self._warp_tets
        posed.brightness = wp.from_torch(lit.contiguous().view(-1))
        posed.vertices = lit.shape[1]
        posed.first_odd = self._first_odd
        posed.layers = self.config.layers
        posed.early_stop = self.config.early_stop
        return posed

    def _launch(self, kernel: Any, dim: int | tuple[int, int], inputs: Sequence[Any]) -> None:
        launch(kernel, dim, inputs, self.device)


class _March(torch.autograd.Function):
    """`FusedModel.march_noting` with its hand-written adjoint."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, model: FusedModel, view: View, points: Tensor, slopes: Tensor, lit: Tensor
    ) -> Tensor:
        inputs = [tensor.detach().contiguous() for tensor in (points, slopes, lit)]
        rgba, samples = model.march_noting(view, inputs[1], inputs[2], mapped)
        ctx.model, ctx.view = model, view.for_adjoint()
        ctx.save_for_backward(*inputs, rgba, samples.met, samples.last)
        return rgba

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_rgba: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        points, slopes, lit, rgba, *samples = (tensor.detach() for tensor in ctx.saved_tensors)
        view = replace(ctx.view, maps=ctx.model.find_maps(points))
        pulled = ctx.model.pull_back(view, points, slopes, lit, rgba, Samples(*samples), grad_rgba)
        return None, None, *pulled


def to_camera_bones(
    camera: Camera,
    bones: Tensor,  # [B, 24, 3, 4] rest to world
) -> Tensor:  # [B, 24, 3, 4] rest to camera space
    """Differentiable in both."""
    turned = camera.rotation[:, None] @ bones
    shift = pad(camera.translation[:, None, :, None], (3, 0))
    return turned + shift


def ray_slopes(
    camera: Camera,
    view: View,
) -> Tensor:  # [N, 2]
    """x and y of the rays' directions in camera space, where z = 1. Differentiable in focal length
    and principal point."""
    image = view.image.long()
    return (view.centre - camera.principal[image]) / camera.focal[image, None]


def _corners() -> Tensor:  # [40, 4]
    """Corners of a cube's tetrahedra in cells, and a zero; see `march_kernels.Posed`."""
    places = torch.from_numpy(PATTERN_PLACES).float().view(-1, 3)
    return pad(places, (0, 1)).contiguous()


def _warp_samples(
    met: Tensor,  # [S, 9] int32
) -> Any:
    """The tensor as an array of `march_kernels.Sample`."""
    return wp.array(
        ptr=met.data_ptr(),
        dtype=march_kernels.Sample,
        shape=len(met),
        device=warp_device_name(met.device),
    )


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
