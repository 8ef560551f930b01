"""The estimator's crop: where it looks, that its picture is the right one, and its gradient."""

import pytest
import torch

from posegen_ray.body.camera import Camera, orbit, project, rays
from posegen_ray.body.skeleton import JOINT, NUM_JOINTS
from posegen_ray.estimators.crop import CropSpec, crop_image, estimator_crop

SPEC = CropSpec(size=256)


def person(count: int, seed: int = 0) -> torch.Tensor:
    """Joints [count, 24, 3] spread about a hip at 0.9 m, shoulders roughly above the hips."""
    generator = torch.Generator().manual_seed(seed)
    joints = torch.randn(count, NUM_JOINTS, 3, generator=generator) * 0.3
    joints[..., 1] += 0.9
    joints[:, [JOINT["left_shoulder"], JOINT["right_shoulder"]], 1] += 0.5
    return joints


def cameras(count: int, seed: int = 0) -> Camera:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    target = torch.tensor([0.0, 0.9, 0.0]).expand(count, 3)
    middle = torch.full((count, 2), 128.0)
    return orbit(
        target,
        draw(-3, 3),
        draw(-1, 1),
        draw(-0.5, 0.5),
        draw(3, 6),
        draw(250, 400),
        middle,
        256,
        256,
    )


def middle_of(pixels: torch.Tensor, part: str) -> torch.Tensor:
    return pixels[:, [JOINT[f"left_{part}"], JOINT[f"right_{part}"]]].mean(1)


def test_hips_are_in_the_middle_and_shoulders_above_them():
    joints, camera = person(16), cameras(16)
    pixels = project(estimator_crop(camera, joints, SPEC), joints)
    assert torch.allclose(middle_of(pixels, "hip"), torch.full((16, 2), 128.0), atol=1e-2)
    up = middle_of(pixels, "shoulder") - middle_of(pixels, "hip")
    assert (up[:, 1] < 0).all()
    assert (up[:, 0].abs() < 1e-3 * up[:, 1].abs()).all()


def test_every_joint_lies_inside_with_room_for_what_is_beyond_it():
    joints, camera = person(16), cameras(16)
    pixels = project(estimator_crop(camera, joints, SPEC), joints)
    reach = (pixels - 128).norm(dim=-1).amax(1)
    assert (reach < 256 / SPEC.scale).all()
    assert (reach > 0.7 * 256 / SPEC.scale).all()


def test_an_upright_crop_does_not_turn_the_picture():
    joints, camera = person(4), cameras(4)
    view = estimator_crop(camera, joints, CropSpec(size=256, kind="upright"))
    assert torch.allclose(view.rotation, camera.rotation, atol=1e-6)


def test_gradient_agrees_with_finite_differences():
    joints, camera = person(2).double(), cameras(2)
    camera = Camera(
        camera.rotation.double(),
        camera.translation.double(),
        camera.focal.double(),
        camera.principal.double(),
        256,
        256,
    )

    def pixels(points: torch.Tensor) -> torch.Tensor:
        return project(estimator_crop(camera, points, SPEC), points)

    # the damping of the angle's gradient is below 1 % for directions of usual length
    assert torch.autograd.gradcheck(pixels, joints.requires_grad_(), rtol=0.02, atol=1.0)


def test_gradient_is_finite_where_the_trunk_points_at_the_camera():
    joints = person(1)
    joints[:, [JOINT["left_hip"], JOINT["right_hip"]]] = torch.tensor([0.0, 0.9, 0.0])
    joints[:, [JOINT["left_shoulder"], JOINT["right_shoulder"]]] = torch.tensor([0.0, 0.9, 0.5])
    joints.requires_grad_()
    zero, one = torch.zeros(1), torch.ones(1)
    target, middle = torch.tensor([[0.0, 0.9, 0.0]]), torch.full((1, 2), 128.0)
    camera = orbit(target, zero, zero, zero, 4 * one, 300 * one, middle, 256, 256)
    view = estimator_crop(camera, joints, SPEC)
    (view.rotation.sum() + view.focal.sum() + view.principal.sum()).backward()
    assert torch.isfinite(joints.grad).all()


def test_a_resampled_photograph_equals_a_picture_taken_with_the_crop_camera():
    joints, camera = person(3), cameras(3)

    def picture(view: Camera) -> torch.Tensor:
        """A smooth scene at infinity: colour is a function of the ray's direction alone."""
        _, directions = rays(view)
        unit = directions / directions.norm(dim=-1, keepdim=True)
        return (0.5 + 0.5 * torch.sin(12 * unit)).permute(0, 3, 1, 2)

    view = estimator_crop(camera, joints, CropSpec(size=64))
    resampled = crop_image(picture(camera), camera, view)
    direct = picture(view)
    inside = crop_image(torch.ones(3, 3, 256, 256), camera, view) > 0.999
    assert inside.float().mean() > 0.3
    assert (resampled - direct)[inside].abs().max() < 0.02


@pytest.mark.parametrize("size", [32, 256])
def test_the_picture_outside_the_photograph_is_black(size):
    joints, camera = person(1), cameras(1)
    view = estimator_crop(camera, joints, CropSpec(size=size, scale=10.0))
    assert crop_image(torch.ones(1, 3, 256, 256), camera, view)[..., 0, 0].abs().max() == 0
