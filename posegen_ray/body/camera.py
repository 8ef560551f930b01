"""Pinhole cameras, stated once: OpenCV axes (x right, y down, z forward), extrinsics world ->
camera, pixel centres at +0.5, world y-up and right-handed, metres and radians.

A pixel (column i, row j) covers [i, i+1) x [j, j+1); its centre is (i + 0.5, j + 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posegen_ray.body.rotation import about_axis


@dataclass(frozen=True)
class Camera:
    """A batch of cameras that share one image size. Everything but the size is differentiable."""

    rotation: Tensor  # [B, 3, 3] world -> camera
    translation: Tensor  # [B, 3] metres: x_camera = rotation @ x_world + translation
    focal: Tensor  # [B] pixels
    principal: Tensor  # [B, 2] pixels (x, y)
    height: int
    width: int

    def __len__(self) -> int:
        return self.rotation.shape[0]

    def __getitem__(self, index: slice | Tensor | list[int]) -> Camera:
        return replace(
            self,
            rotation=self.rotation[index],
            translation=self.translation[index],
            focal=self.focal[index],
            principal=self.principal[index],
        )

    def to(self, device: torch.device | str) -> Camera:
        return replace(
            self,
            rotation=self.rotation.to(device),
            translation=self.translation.to(device),
            focal=self.focal.to(device),
            principal=self.principal.to(device),
        )

    def detach(self) -> Camera:
        return replace(
            self,
            rotation=self.rotation.detach(),
            translation=self.translation.detach(),
            focal=self.focal.detach(),
            principal=self.principal.detach(),
        )


def concatenate(cameras: list[Camera]) -> Camera:
    """One batch from several; they must share the image size."""
    first = cameras[0]
    assert all((c.height, c.width) == (first.height, first.width) for c in cameras)
    return Camera(
        torch.cat([c.rotation for c in cameras]),
        torch.cat([c.translation for c in cameras]),
        torch.cat([c.focal for c in cameras]),
        torch.cat([c.principal for c in cameras]),
        first.height,
        first.width,
    )


def orbit(
    target: Tensor,  # [B, 3] world point that projects to `principal`
    azimuth: Tensor,  # [B] 0: the camera stands on +z of the target (sees a T-pose from the front)
    elevation: Tensor,  # [B] > 0: the camera stands above the target and looks down; |.| < pi/2
    roll: Tensor,  # [B] > 0: the picture's content turns clockwise
    distance: Tensor,  # [B] metres from target to camera centre
    focal: Tensor,  # [B] pixels
    principal: Tensor,  # [B, 2] pixels
    height: int,
    width: int,
) -> Camera:
    """Cameras on spheres around targets. Differentiable in every tensor."""
    cos_a, sin_a = azimuth.cos(), azimuth.sin()
    cos_e, sin_e = elevation.cos(), elevation.sin()
    zero = torch.zeros_like(cos_a)
    forward = -torch.stack([sin_a * cos_e, sin_e, cos_a * cos_e], -1)
    right = torch.stack([cos_a, zero, -sin_a], -1)
    down = torch.linalg.cross(forward, right)
    rotation = about_axis(2, roll) @ torch.stack([right, down, forward], -2)
    ahead = torch.stack([zero, zero, distance], -1)
    translation = ahead - (rotation @ target[..., None])[..., 0]
    return Camera(rotation, translation, focal, principal, height, width)


def to_camera(
    camera: Camera,
    points: Tensor,  # [B, N, 3] world
) -> Tensor:  # [B, N, 3] camera
    """World -> camera coordinates."""
    return points @ camera.rotation.transpose(-1, -2) + camera.translation[:, None]


def project(
    camera: Camera,
    points: Tensor,  # [B, N, 3] world
) -> Tensor:  # [B, N, 2] pixels
    """World points -> pixels. Points at or behind the camera plane are clamped to 1 cm depth."""
    local = to_camera(camera, points)
    depth = local[..., 2:].clamp_min(0.01)
    return local[..., :2] / depth * camera.focal[:, None, None] + camera.principal[:, None]


def crop(
    camera: Camera,
    centre: Tensor,  # [B, 2] pixels of `camera`: becomes the middle of the crop
    side: Tensor,  # [B] pixels of `camera`: the crop's edge length
    angle: Tensor,  # [B] radians: the content is turned clockwise by this much
    size: int,
) -> Camera:
    """The camera whose picture *is* the rotated square crop of `camera`'s picture.

    A similarity of the image plane is itself a pinhole camera: turn the camera about its optical
    axis, scale the focal length, move the principal point. Rendering with it gives the crop without
    resampling, and gradients to centre, side and angle come for free.
    """
    scale = size / side
    turn = about_axis(2, angle)
    offset = (turn[:, :2, :2] @ (camera.principal - centre)[..., None])[..., 0]
    return Camera(
        turn @ camera.rotation,
        (turn @ camera.translation[..., None])[..., 0],
        camera.focal * scale,
        offset * scale[:, None] + size / 2,
        size,
        size,
    )


def rays(
    camera: Camera,
) -> tuple[Tensor, Tensor]:  # origins [B, 3], directions [B, H, W, 3]
    """World-space pixel rays. Directions have z = 1 in camera space (so `t` is the z-depth)."""
    device = camera.focal.device
    xs = torch.arange(camera.width, device=device) + 0.5
    ys = torch.arange(camera.height, device=device) + 0.5
    grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
    u = (grid_x - camera.principal[:, 0, None, None]) / camera.focal[:, None, None]
    v = (grid_y - camera.principal[:, 1, None, None]) / camera.focal[:, None, None]
    local = torch.stack([u, v, torch.ones_like(u)], -1)
    directions = local @ camera.rotation[:, None]
    origins = -(camera.translation[:, None] @ camera.rotation)[:, 0]
    return origins, directions
