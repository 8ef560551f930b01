"""A-NeRF: what it encodes, its gradients, its rays, and that it learns a person."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bodies import capsule_body, capture_of, painted_subject
from torch import Tensor

from posegen_ray.body.camera import Camera, orbit
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.config import AnerfConfig, FieldConfig, FitConfig, RendererConfig
from posegen_ray.errors import RenderError
from posegen_ray.records import RenderRequest
from posegen_ray.subjects.anerf import (
    AnerfModel,
    SkeletonField,
    cast,
    composite,
    encode,
    place_samples,
)
from posegen_ray.subjects.fit import fit_subject
from posegen_ray.subjects.render import make_renderer
from posegen_ray.subjects.store import load_subject, save_subject

SMALL = AnerfConfig(depth=6, width=32, samples=24, importance=8)


def posed(count: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:  # bones, rest joints
    stream = torch.Generator().manual_seed(seed)
    rotations = from_axis_angle(0.4 * torch.randn(count, 24, 3, generator=stream))
    body, shape = capsule_body(), torch.zeros(1, 2)
    rest = body(torch.eye(3).expand(1, 24, 3, 3), shape).joints[0]
    return body(rotations, shape).bones.detach(), rest


def camera(count: int = 1, size: int = 48) -> Camera:
    ones = torch.ones(count)
    target = torch.tensor([[0.0, 0.9, 0.0]]).expand(count, 3)
    azimuth = 0.7 * torch.arange(count)
    centre = torch.full((count, 2), size / 2)
    return orbit(
        target, azimuth, 0.2 * ones, 0 * ones, 3 * ones, 1.2 * size * ones, centre, size, size
    )


def field(config: AnerfConfig = SMALL) -> SkeletonField:
    torch.manual_seed(0)
    return SkeletonField(posed()[1], config)


def test_encoding_is_that_of_the_paper() -> None:
    """Recomputed for one place, joint by joint, in numpy."""
    (bones,), rest = posed()
    place, direction = torch.tensor([0.2, 1.1, 0.3]), torch.tensor([0.6, 0.0, -0.8])
    ours_place, ours_view = encode(place, direction, bones, rest)
    distances, directions, views = [], [], []
    for joint in range(24):
        turn, shift = bones[joint, :, :3].double().numpy(), bones[joint, :, 3].double().numpy()
        # the place in the joint's frame, through the inverse of its 4 x 4 matrix
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = turn, shift + turn @ rest[joint].double().numpy()
        local = (np.linalg.inv(matrix) @ [*place.double().numpy(), 1])[:3]
        v = np.linalg.norm(local)
        weight = 1 - 1 / (1 + np.exp(-20 * (v - 0.5)))
        ray = turn.T @ direction.double().numpy()
        octaves = 2.0 ** np.arange(7)
        distances += [weight * x for x in (v, *np.sin(octaves * v), *np.cos(octaves * v))]
        directions += list(local / v)
        angles = 2.0 ** np.arange(4)[:, None] * ray
        views += [weight * x for x in (*ray, *np.sin(angles).ravel(), *np.cos(angles).ravel())]
    np.testing.assert_allclose(ours_place.numpy(), distances + directions, atol=2e-5)
    np.testing.assert_allclose(ours_view.numpy(), views, atol=2e-5)


def test_whoever_moves_with_the_scene_sees_no_difference() -> None:
    (bones,), rest = posed()
    turn = from_axis_angle(torch.tensor([0.3, -1.0, 0.5]))
    shift = torch.tensor([1.0, -0.5, 2.0])
    places = torch.randn(5, 3)
    directions = torch.nn.functional.normalize(torch.randn(5, 3), dim=-1)
    moved = turn @ bones
    moved[:, :, 3] += shift
    before = encode(places, directions, bones, rest)
    after = encode(places @ turn.T + shift, directions @ turn.T, moved, rest)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)  # 2^6 times rounding


def test_gradients_agree_with_finite_differences() -> None:
    """To bones, and to the rays' origin and direction, with the samples' depths held."""
    network = field().double()
    (bones,), rest = posed()
    view = camera()
    bundle = cast(view, bones, rest)
    rows = torch.arange(0, len(bundle.pixel), 61)
    bones, origin, direction = (
        bones.double(),
        bundle.origin.double(),
        bundle.direction[rows].double(),
    )
    near, far = bundle.near[rows].double(), bundle.far[rows].double()
    with torch.no_grad():
        depths = place_samples(network, bones, origin, direction, near, far)
    leaves = [bones, origin, direction]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    stream = torch.Generator().manual_seed(1)
    weight = torch.randn(len(rows), 4, generator=stream, dtype=torch.float64)

    def total(*at: Tensor) -> Tensor:
        return (composite(network, *at, *depths).rgba * weight).sum()

    for leaf, gradient in zip(leaves, torch.autograd.grad(total(*leaves), leaves), strict=True):
        nudge = torch.randn(leaf.shape, generator=stream, dtype=torch.float64)
        step = 1e-8  # the network has kinks
        ends = []
        for sign in (1, -1):
            at = [other + sign * step * nudge if other is leaf else other for other in leaves]
            ends.append(total(*(x.detach() for x in at)))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert (gradient * nudge).sum().item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-7)


def test_rays_cover_the_person_and_little_of_an_empty_picture() -> None:
    bones, rest = posed(4)
    views = camera(4, 96)
    request = RenderRequest(("capsules",) * 4, bones, views)
    subject = make_renderer(RendererConfig(), {"capsules": painted_subject()})
    alpha = subject.render_arrays(request)[..., 3]
    for item in range(4):
        bundle = cast(views[[item]], bones[item], rest)
        shown = np.zeros(96 * 96, bool)
        shown[bundle.pixel.numpy()] = True
        person = alpha[item].ravel() > 0.05
        assert shown[person].all()
        assert bool((bundle.far > bundle.near).all())
    away = replace(views, translation=views.translation * torch.tensor([1.0, 1.0, -1.0]))
    assert len(cast(away[[0]], bones[0], rest).pixel) < 96 * 96


def test_a_picture_is_drawn_the_same_whatever_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    bones, _ = posed(2)
    model = AnerfModel(field())
    together = model.draw(bones, camera(2))
    assert float(together[..., 3].max()) > 0.01
    monkeypatch.setattr("posegen_ray.subjects.anerf._RAYS_AT_ONCE", 100)
    for item in range(2):
        alone = model.draw(bones[[item]], camera(2)[[item]])
        torch.testing.assert_close(alone[0], together[item], rtol=0, atol=1e-5)


def test_light_may_be_brighter_but_not_come_from_elsewhere() -> None:
    bones, _ = posed(1)
    model = AnerfModel(field())
    filmed = model.draw(bones, camera(1))
    brighter = model.draw(bones, camera(1), torch.tensor([[0.0, 1.0, 1.5]]))
    torch.testing.assert_close(brighter[..., :3], 1.5 * filmed[..., :3])
    torch.testing.assert_close(brighter[..., 3], filmed[..., 3])
    for light in ([0.5, 1.0, 1.0], [0.0, 1.5, 1.0]):
        with pytest.raises(RenderError, match="cannot be turned"):
            model.draw(bones, camera(1), torch.tensor([light]))


def test_gradients_reach_pose_and_camera_through_a_renderer(tmp_path: Path) -> None:
    capture = capture_of(painted_subject(), frames=4, size=32)
    tiny = replace(SMALL, steps=1, rays=16)
    subject = fit_subject(capture, capsule_body(), FieldConfig("anerf", tiny), FitConfig(), 0)
    save_subject(subject, tmp_path / "person")
    renderer = make_renderer(RendererConfig(), {"person": load_subject(tmp_path / "person")})
    bones, _ = posed(2)
    request = RenderRequest(("person",) * 2, bones, camera(2, 24))
    first = renderer.render_arrays(request)
    again = make_renderer(RendererConfig(), {"person": subject}).render_arrays(request)
    np.testing.assert_array_equal(first, again)
    gradients = renderer.vjp_arrays(request, np.ones_like(first))
    for name, value in zip(gradients._fields, gradients, strict=True):
        assert np.isfinite(value).all(), name
        assert np.abs(value).max() > 0, name


def test_a_small_network_learns_the_person() -> None:
    """Better than an empty picture, on pictures that it was not fitted to; the same each time."""
    capture = capture_of(painted_subject(), frames=12, size=32)
    config = AnerfConfig(
        depth=4,
        width=64,
        samples=16,
        importance=8,
        steps=100,
        pictures=1,
        rays=96,
        learning_rate=2e-3,
        half_life=50,
    )
    subject = fit_subject(capture, capsule_body(), FieldConfig("anerf", config), FitConfig(), 0)
    empty = replace(config, steps=1)
    nothing = fit_subject(capture, capsule_body(), FieldConfig("anerf", empty), FitConfig(), 0)
    assert subject.manifest.psnr_person > nothing.manifest.psnr_person + 2.5
    once = fit_subject(capture, capsule_body(), FieldConfig("anerf", empty), FitConfig(), 0)
    for one, other in zip(nothing.field.parameters(), once.field.parameters(), strict=True):
        assert torch.equal(one, other)
