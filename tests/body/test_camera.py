"""Camera conventions and the crop, against plain projection arithmetic."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from posegen_ray.body.camera import Camera, concatenate, crop, orbit, project, rays, to_camera

BATCH = 6


def cameras(
    seed: int = 0, requires_grad: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[Camera, list[Tensor]]:
    stream = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        value = low + (high - low) * torch.rand(BATCH, *shape, generator=stream)
        return value.to(dtype).requires_grad_(requires_grad)

    inputs = [
        uniform(-1, 1, 3),
        uniform(-3, 3),
        uniform(-1.3, 1.3),
        uniform(-3, 3),
        uniform(3, 6),
        uniform(300, 700),
        uniform(200, 300, 2),
    ]
    return orbit(*inputs, 480, 512), inputs


def test_orbit_looks_at_its_target_from_the_wanted_distance() -> None:
    camera, (target, azimuth, elevation, _, distance, _, principal) = cameras()
    assert torch.allclose(project(camera, target[:, None])[:, 0], principal, atol=1e-2)
    depth = to_camera(camera, target[:, None])[:, 0]
    assert torch.allclose(depth[:, 2], distance, atol=1e-4)
    centre = -(camera.translation[:, None] @ camera.rotation)[:, 0]
    expected = torch.stack(
        [azimuth.sin() * elevation.cos(), elevation.sin(), azimuth.cos() * elevation.cos()], 1
    )
    assert torch.allclose((centre - target) / distance[:, None], expected, atol=1e-5)


def test_orbit_from_the_front_sees_a_person_upright_with_the_left_hand_on_the_right() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    target = torch.tensor([[0.0, 1.0, 0.0]])
    camera = orbit(
        target, zero, zero, zero, 4 * one, 500 * one, torch.full((1, 2), 256.0), 512, 512
    )
    points = torch.tensor([[[0.0, 1.6, 0.0], [0.7, 1.4, 0.0], [0.0, 0.0, 0.0]]])
    head, left_hand, feet = project(camera, points)[0]
    assert head[1] < 256 < feet[1]
    assert left_hand[0] > 256
    above = orbit(
        target, zero, 0.5 * one, zero, 4 * one, 500 * one, torch.full((1, 2), 256.0), 9, 9
    )
    assert (-(above.translation[:, None] @ above.rotation)[0, 0, 1]) > 1.0


def test_positive_roll_turns_the_content_clockwise() -> None:
    zero, one = torch.zeros(1), torch.ones(1)
    camera = orbit(
        torch.zeros(1, 3), zero, zero, 0.3 * one, 4 * one, 500 * one, torch.zeros(1, 2), 512, 512
    )
    top = project(camera, torch.tensor([[[0.0, 1.0, 0.0]]]))[0, 0]
    assert top[0] > 0  # what was up leans to the right
    assert top[1] < 0


def test_rotations_are_right_handed() -> None:
    camera, _ = cameras(1)
    eye = torch.eye(3).expand(BATCH, 3, 3)
    assert torch.allclose(camera.rotation @ camera.rotation.transpose(1, 2), eye, atol=1e-5)
    assert torch.allclose(torch.linalg.det(camera.rotation), torch.ones(BATCH), atol=1e-5)


def test_crop_camera_is_the_similarity_of_the_projected_pixels() -> None:
    camera, (target, *_) = cameras(2)
    stream = torch.Generator().manual_seed(3)
    points = target[:, None] + 0.5 * torch.randn(BATCH, 20, 3, generator=stream)
    centre = 100 + 300 * torch.rand(BATCH, 2, generator=stream)
    side = 100 + 300 * torch.rand(BATCH, generator=stream)
    angle = 6 * torch.rand(BATCH, generator=stream) - 3
    size = 256
    cropped = project(crop(camera, centre, side, angle, size), points)
    pixels = project(camera, points)
    # the crop by hand, in numbers: shift to the centre, turn clockwise, scale, shift to the middle
    offset = pixels - centre[:, None]
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    turned = torch.stack(
        [cos * offset[..., 0] - sin * offset[..., 1], sin * offset[..., 0] + cos * offset[..., 1]],
        -1,
    )
    expected = turned * (size / side)[:, None, None] + size / 2
    assert torch.allclose(cropped, expected, atol=0.02)


def test_crop_of_everything_is_the_same_camera() -> None:
    camera, _ = cameras(4)
    camera = replace(camera, height=512, width=512)
    same = crop(
        camera, torch.full((BATCH, 2), 256.0), torch.full((BATCH,), 512.0), torch.zeros(BATCH), 512
    )
    assert torch.allclose(same.principal, camera.principal, atol=1e-3)
    assert torch.allclose(same.rotation, camera.rotation, atol=1e-6)
    assert torch.allclose(same.focal, camera.focal)


def test_rays_go_through_the_pixels_that_their_points_project_to() -> None:
    camera, _ = cameras(5)
    camera = replace(camera, height=12, width=16, principal=torch.full((BATCH, 2), 7.0))
    origins, directions = rays(camera)
    assert directions.shape == (BATCH, 12, 16, 3)
    points = (origins[:, None, None] + 2.5 * directions).flatten(1, 2)
    pixels = project(camera, points).unflatten(1, (12, 16))
    rows, columns = torch.meshgrid(torch.arange(12) + 0.5, torch.arange(16) + 0.5, indexing="ij")
    assert torch.allclose(pixels, torch.stack([columns, rows], -1).expand_as(pixels), atol=2e-2)
    assert torch.allclose(to_camera(camera, points)[..., 2], torch.tensor(2.5), atol=1e-4)


def test_points_behind_the_camera_project_to_finite_pixels() -> None:
    camera, (target, *_) = cameras(6)
    assert project(camera, target[:, None] + 1000.0).isfinite().all()


def test_gradients_agree_with_finite_differences() -> None:
    _, inputs = cameras(7, requires_grad=True, dtype=torch.float64)
    points = torch.randn(BATCH, 4, 3, dtype=torch.float64) * 0.3

    def pixels(*values: Tensor) -> Tensor:
        camera = orbit(*values, 480, 512)
        middle = values[0].new_full((BATCH, 2), 250.0)
        side = 200 + 10 * values[4]
        return project(crop(camera, middle, side, values[3], 256), points)

    assert torch.autograd.gradcheck(pixels, tuple(inputs), atol=1e-4)


def test_indexing_and_concatenation_are_inverse() -> None:
    camera, _ = cameras(8)
    again = concatenate([camera[:2], camera[2:]])
    assert len(again) == BATCH
    assert torch.equal(again.translation, camera.translation)
    assert (again.height, again.width) == (480, 512)
