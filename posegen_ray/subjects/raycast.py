"""A renderer of textured, skinned triangle meshes: the camera that films the demo's people.

Different on purpose from the radiance field that subjects are rendered with in training: surfaces,
textures and lamps instead of a volume. No gradients. Knows nothing of how people are dressed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import warp as wp
from torch import Tensor

from posegen_ray.body.camera import Camera, project, to_camera
from posegen_ray.errors import RenderError
from posegen_ray.seeding import torch_stream
from posegen_ray.subjects import raycast_kernels as kernels
from posegen_ray.subjects.warp_cache import prepare

SUPERSAMPLING = 2  # subpixels per axis
_BATCH = 16  # images rendered at once; bounds the z-buffers' memory (2 MB each at 256 x 256)


@dataclass(frozen=True)
class TexturedMesh:
    """A skinned mesh with texture layers, in the rest pose of its body. Metres, y up, faces +z."""

    vertices: Tensor  # [V, 3]
    normals: Tensor  # [V, 3] smooth, pointing outwards
    weights: Tensor  # [V, 24] skinning weights, rows sum to 1
    faces: Tensor  # [F, 3] int32
    uv: Tensor  # [F, 3, 2] texture coordinates of each triangle's corners, v up
    layers: Tensor  # [F] int32, texture layer of each triangle
    textures: Tensor  # [L, T, T, 4] uint8, row 0 at v = 1
    cutout: Tensor  # [L] uint8; 1: texels with alpha < 1/2 are holes, 0: alpha is ignored

    def __post_init__(self) -> None:
        assert self.textures.dtype == torch.uint8
        assert self.textures.shape[1] == self.textures.shape[2]
        assert self.uv.shape == (*self.faces.shape, 2)
        assert self.weights.shape == (self.vertices.shape[0], 24)

    def to(self, device: torch.device | str) -> TexturedMesh:
        """The same mesh on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items()}
        return replace(self, **moved)


@dataclass(frozen=True)
class Light:
    """A directional lamp and hemispheric ambient light for each image of a batch."""

    toward: Tensor  # [B, 3] unit vectors from the scene to the lamp, world axes
    strength: Tensor  # [B] brightness of a surface that faces the lamp
    ambient: Tensor  # [B] brightness everywhere

    def __len__(self) -> int:
        return self.toward.shape[0]

    def __getitem__(self, index: slice) -> Light:
        return Light(self.toward[index], self.strength[index], self.ambient[index])


def studio_light(batch: int) -> Light:
    """The same soft lamp from the upper front left for every image."""
    toward = torch.nn.functional.normalize(torch.tensor([[0.35, 0.7, 0.6]]), dim=1)
    return Light(toward.expand(batch, 3), torch.full((batch,), 0.5), torch.full((batch,), 0.6))


def random_light(batch: int, seed: int) -> Light:
    """Lamps from anywhere above the horizon, with a random share of ambient light."""
    stream = torch_stream(seed, "light")
    toward = torch.randn(batch, 3, generator=stream)
    toward[:, 1] = toward[:, 1].abs() + 0.4
    ambient = 0.4 + 0.3 * torch.rand(batch, generator=stream)
    brightness = 0.95 + 0.3 * torch.rand(batch, generator=stream)
    return Light(torch.nn.functional.normalize(toward, dim=1), brightness - ambient, ambient)


def raycast(
    mesh: TexturedMesh,
    bones: Tensor,  # [B, 24, 3, 4] rest -> posed, world coordinates
    camera: Camera,
    light: Light | None = None,  # default: studio_light
) -> Tensor:  # [B, H, W, 4] float32, premultiplied RGBA, on the mesh's device
    """Draws the posed mesh. Edges are anti-aliased by 2 x 2 supersampling. Not differentiable."""
    return _draw(mesh, bones, camera, light or studio_light(len(camera)))[0]


def raycast_depth(
    mesh: TexturedMesh,
    bones: Tensor,  # [B, 24, 3, 4]
    camera: Camera,
) -> Tensor:  # [B, H, W] metres along the optical axis, infinite where nothing is seen
    """Depth of the nearest surface in each pixel. Not differentiable."""
    return _draw(mesh, bones, camera, studio_light(len(camera)))[1]


def visible_joints(
    mesh: TexturedMesh,
    bones: Tensor,  # [B, 24, 3, 4]
    camera: Camera,
    joints: Tensor,  # [B, J, 3] world
    margin: float = 0.15,
) -> Tensor:  # [B, J] bool
    """Whether each joint is in the picture with nothing but its own flesh in front of it.

    A joint lies inside the body, so the surface is allowed to be up to `margin` metres nearer.
    """
    depth = raycast_depth(mesh, bones, camera)
    pixels = project(camera, joints).to(depth.device)
    distance = to_camera(camera, joints)[..., 2].to(depth.device)
    columns, rows = pixels.floor().long().unbind(-1)
    inside = (columns >= 0) & (columns < camera.width) & (rows >= 0) & (rows < camera.height)
    columns = columns.clamp(0, camera.width - 1)
    rows = rows.clamp(0, camera.height - 1)
    items = torch.arange(len(camera), device=depth.device)[:, None]
    surface = depth[items, rows, columns]
    return inside & (distance > 0) & (surface > distance - margin)


def _draw(
    mesh: TexturedMesh, bones: Tensor, camera: Camera, light: Light
) -> tuple[Tensor, Tensor]:  # [B, H, W, 4], [B, H, W]
    if bones.shape[1:] != (24, 3, 4) or not len(bones) == len(camera) == len(light):
        raise RenderError(
            f"Cannot draw bones of shape {tuple(bones.shape)} with {len(camera)} cameras and "
            f"{len(light)} lights.",
            "Pass bones [B, 24, 3, 4] and as many cameras and lights.",
        )
    with torch.no_grad():
        parts = [
            _draw_chunk(
                mesh,
                bones[start : start + _BATCH],
                camera[start : start + _BATCH],
                light[start : start + _BATCH],
            )
            for start in range(0, len(bones), _BATCH)
        ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _draw_chunk(
    mesh: TexturedMesh, bones: Tensor, camera: Camera, light: Light
) -> tuple[Tensor, Tensor]:
    device = mesh.vertices.device
    prepare(str(device), kernels.__name__)
    batch, vertices, faces = len(bones), mesh.vertices.shape[0], mesh.faces.shape[0]
    height, width = camera.height, camera.width
    blended = mesh.weights @ bones.detach().to(device).float().flatten(2)  # [B, V, 12]
    views: Any = wp.array(_view_records(camera), dtype=kernels.View, device=str(device))
    lamps: Any = wp.array(_lamp_records(light), dtype=kernels.Lamp, device=str(device))
    points = torch.empty(batch, vertices, 3, device=device)
    normals = torch.empty_like(points)
    z_buffer = torch.full(
        (batch, height * SUPERSAMPLING, width * SUPERSAMPLING), -1, dtype=torch.int64, device=device
    )
    rgba = torch.empty(batch, height, width, 4, device=device)
    depth = torch.empty(batch, height, width, device=device)

    wp_points = wp.from_torch(points, dtype=wp.vec3)
    wp_normals = wp.from_torch(normals, dtype=wp.vec3)
    wp_z_buffer = wp.from_torch(z_buffer, dtype=wp.uint64)
    wp_faces = wp.from_torch(mesh.faces)
    wp_layers = wp.from_torch(mesh.layers)
    wp_uv = wp.from_torch(mesh.uv)
    wp_textures = wp.from_torch(mesh.textures)
    wp.launch(
        kernels.skin_vertices,
        dim=(batch, vertices),
        inputs=[
            wp.from_torch(mesh.vertices, dtype=wp.vec3),
            wp.from_torch(mesh.normals, dtype=wp.vec3),
            wp.from_torch(blended),
            views,
        ],
        outputs=[wp_points, wp_normals],
        device=str(device),
    )
    wp.launch(
        kernels.fill_z_buffer,
        dim=(batch, faces),
        inputs=[
            wp_points,
            wp_faces,
            wp_layers,
            wp_uv,
            wp_textures,
            wp.from_torch(mesh.cutout),
            views,
            height * SUPERSAMPLING,
            width * SUPERSAMPLING,
        ],
        outputs=[wp_z_buffer],
        device=str(device),
    )
    wp.launch(
        kernels.shade,
        dim=(batch, height, width),
        inputs=[
            wp_points,
            wp_normals,
            wp_faces,
            wp_layers,
            wp_uv,
            wp_textures,
            views,
            lamps,
            SUPERSAMPLING,
            wp_z_buffer,
        ],
        outputs=[wp.from_torch(rgba, dtype=wp.vec4), wp.from_torch(depth)],
        device=str(device),
    )
    return rgba, depth


def struct_array(struct: Any, count: int) -> npt.NDArray[Any]:
    """Zeroed records of a Warp struct, to be filled in numpy."""
    return np.zeros(count, dtype=struct.numpy_dtype())


def _view_records(camera: Camera) -> npt.NDArray[Any]:
    """Cameras as rows of the kernels' View struct, in supersampled pixels."""
    camera = camera.detach()
    records = struct_array(kernels.View, len(camera))
    records["rotation"] = camera.rotation.cpu().numpy()
    records["translation"] = camera.translation.cpu().numpy()
    records["focal"] = camera.focal.cpu().numpy() * SUPERSAMPLING
    records["principal_x"] = camera.principal[:, 0].cpu().numpy() * SUPERSAMPLING
    records["principal_y"] = camera.principal[:, 1].cpu().numpy() * SUPERSAMPLING
    return records


def _lamp_records(light: Light) -> npt.NDArray[Any]:
    records = struct_array(kernels.Lamp, len(light))
    records["toward"] = light.toward.cpu().numpy()
    records["strength"] = light.strength.cpu().numpy()
    records["ambient"] = light.ambient.cpu().numpy()
    return records
