"""Rotation conventions, against scipy and against each other."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.transform import Rotation

from posegen_ray.body import rotation


def rotations(count: int = 50, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(Rotation.random(count, random_state=seed).as_matrix()).float()


def test_axis_angle_agrees_with_scipy() -> None:
    vectors = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    expected = Rotation.from_rotvec(vectors.numpy()).as_matrix()
    assert torch.allclose(
        rotation.from_axis_angle(vectors).double(), torch.from_numpy(expected), atol=1e-6
    )


def test_axis_angle_round_trip() -> None:
    turned = rotations()
    assert torch.allclose(
        rotation.from_axis_angle(rotation.to_axis_angle(turned)), turned, atol=1e-5
    )


def test_axis_angle_of_identity_has_finite_gradient() -> None:
    vectors = torch.zeros(2, 3, requires_grad=True)
    rotation.from_axis_angle(vectors)[:, 0, 1].sum().backward()
    assert vectors.grad is not None
    assert torch.allclose(vectors.grad, torch.tensor([0.0, 0.0, -1.0]).expand(2, 3))


def test_6d_round_trip_and_order_of_its_elements() -> None:
    turned = rotations()
    six = rotation.to_6d(turned)
    assert torch.equal(six[:, :3], turned[:, :, 0])
    assert torch.equal(six[:, 3:], turned[:, :, 1])
    assert torch.allclose(rotation.from_6d(six), turned, atol=1e-5)


def test_6d_of_anything_is_a_rotation_with_finite_gradient() -> None:
    raw = torch.randn(100, 6, generator=torch.Generator().manual_seed(2), requires_grad=True)
    turned = rotation.from_6d(raw)
    eye = torch.eye(3).expand_as(turned)
    assert torch.allclose(turned @ turned.transpose(-1, -2), eye, atol=1e-5)
    assert torch.allclose(torch.linalg.det(turned), torch.ones(100), atol=1e-5)
    (turned * torch.randn_like(turned)).sum().backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


def test_quaternions_are_wxyz_and_may_be_of_any_length() -> None:
    reference = Rotation.random(20, random_state=3)
    xyzw = torch.from_numpy(reference.as_quat()).float()
    wxyz = torch.cat([xyzw[:, 3:], xyzw[:, :3]], 1) * 2.5
    expected = torch.from_numpy(reference.as_matrix()).float()
    assert torch.allclose(rotation.from_quaternion_wxyz(wxyz), expected, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_about_axis_agrees_with_scipy(axis: int) -> None:
    angles = torch.linspace(-3, 3, 7)
    expected = Rotation.from_euler("xyz"[axis], angles.numpy()[:, None]).as_matrix()
    turned = rotation.about_axis(axis, angles)
    assert torch.allclose(turned.double(), torch.from_numpy(expected), atol=1e-6)


def test_between_takes_one_direction_to_the_other_by_the_smallest_angle() -> None:
    stream = torch.Generator().manual_seed(4)
    a = torch.randn(30, 3, generator=stream)
    b = torch.randn(30, 3, generator=stream)
    turned = rotation.between(a, b)
    unit_a, unit_b = (torch.nn.functional.normalize(v, dim=1) for v in (a, b))
    assert torch.allclose((turned @ unit_a[..., None])[..., 0], unit_b, atol=1e-5)
    angle = rotation.geodesic_angle(torch.eye(3).expand_as(turned), turned)
    assert torch.allclose(angle, (unit_a * unit_b).sum(1).clamp(-1, 1).acos(), atol=1e-3)


def test_hat_is_the_cross_product() -> None:
    stream = torch.Generator().manual_seed(5)
    v, x = torch.randn(2, 10, 3, generator=stream)
    product = (rotation.hat(v) @ x[..., None])[..., 0]
    assert torch.allclose(product, torch.linalg.cross(v, x), atol=1e-6)
