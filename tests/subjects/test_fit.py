"""A fit recovers a person from pictures, and refuses captures it cannot use."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bodies import capsule_body, capture_of, painted_subject, shining
from PIL import Image
from torch.nn.functional import max_pool2d

from posegen_ray.body.camera import Camera, project
from posegen_ray.body.model import skin
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import JOINT
from posegen_ray.config import AnerfConfig, FieldConfig, FitConfig, RegionConfig, RendererConfig
from posegen_ray.errors import DataError, ResourceError
from posegen_ray.subjects.body_field import body_field
from posegen_ray.subjects.canonical import canonical_body
from posegen_ray.subjects.capture import Capture
from posegen_ray.subjects.carving import (
    MovingCubes,
    carve,
    frame_of,
    prune,
    seen,
    survey,
    visual_hull,
)
from posegen_ray.subjects.fit import FitProgress, fit_subject
from posegen_ray.subjects.fit_voxels import VoxelFitter, squared_error
from posegen_ray.subjects.light import brightness, even_light
from posegen_ray.subjects.quality import on_white
from posegen_ray.subjects.render_fused import FusedModel
from posegen_ray.subjects.store import Subject, VoxelSubject, save_subject

FRAMES, SIZE = 24, 96
CONFIG = FitConfig(region=RegionConfig(shell=0.04, voxel=0.015), steps=120)


@pytest.fixture(scope="module")
def capture() -> Capture:
    return capture_of(painted_subject(), FRAMES, SIZE)


def test_a_fit_recovers_the_person_on_held_out_frames(capture: Capture) -> None:
    seen: list[FitProgress] = []
    subject = fit_subject(capture, capsule_body(), FieldConfig(), CONFIG, 0, seen.append)
    manifest = subject.manifest
    assert manifest.psnr_person > 23
    assert manifest.psnr_full > manifest.psnr_person
    assert (manifest.name, manifest.body, manifest.held_out_frames) == ("painted", "capsules", 6)
    assert manifest.capture_sha256 == capture.sha256()
    assert subject.field.values[:, 3].min() > -6  # nothing is kept that holds nothing
    assert [(p.done, p.total) for p in seen] == [(i + 1, 120) for i in range(120)]
    assert seen[-1].psnr > seen[5].psnr + 5
    assert 0.9 < manifest.ssim < 1
    assert math.isnan(manifest.lpips)
    assert subject.field.values[:, :3].min() >= 0
    assert subject.field.values[:, :3].max() <= 1


def test_a_fit_finds_the_light(capture: Capture) -> None:
    """Where the painted person is brighter, the fitted one is, and by as much."""
    true = painted_subject().light
    found = fit_subject(capture, capsule_body(), FieldConfig(), CONFIG, 0).light
    assert (found - found.mT).abs().max() < 1e-5
    assert not found[1].any()  # nothing shines unless asked for
    normals = torch.nn.functional.normalize(torch.randn(1, 500, 3), dim=-1)
    expected, ours = brightness(true, normals)[0], brightness(found, normals)[0]
    expected, ours = expected / expected.mean(), ours / ours.mean()  # colours make up for the rest
    assert expected.std() > 0.1
    assert (ours - expected).std() < 0.3 * expected.std()
    plain = replace(CONFIG, steps=5, light_rate=0.0)
    assert torch.equal(
        fit_subject(capture, capsule_body(), FieldConfig(), plain, 0).light, even_light()
    )


def test_a_fit_that_may_shine_finds_what_depends_on_the_view() -> None:
    capture = capture_of(shining(painted_subject()), FRAMES, SIZE)
    matt, glossy = (
        fit_subject(capture, capsule_body(), FieldConfig(), replace(CONFIG, shine=shine), 0)
        for shine in (False, True)
    )
    assert glossy.light[1].abs().max() > 0.1
    assert glossy.manifest.psnr_person > matt.manifest.psnr_person + 1


def test_the_same_seed_gives_the_same_subject(capture: Capture) -> None:
    short = replace(CONFIG, steps=6)
    first, second, other = (
        fit_subject(capture, capsule_body(), FieldConfig(), short, seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first.field.values, second.field.values)
    assert first.manifest == second.manifest
    assert not torch.equal(first.field.values, other.field.values)


def test_the_error_is_the_mean_over_random_backgrounds() -> None:
    chance = torch.Generator().manual_seed(0)
    rgba, target = torch.rand(2, 50, 4, generator=chance)
    rgba.requires_grad_()
    behind = torch.rand(40_000, 1, 3, generator=chance)
    difference = rgba - target
    drawn = (difference[:, :3] - difference[:, 3:] * behind).square()
    drawn.mean(0).sum().backward()
    error, half_gradient = squared_error(rgba.detach(), target)
    assert error == pytest.approx(float(drawn.detach().mean()), rel=0.01)
    assert rgba.grad is not None
    assert (2 * half_gradient - rgba.grad).abs().max() < 0.03


def test_two_thinned_frames_have_all_rays_of_one(capture: Capture) -> None:
    body = capsule_body()
    bones = body(capture.poses.rotations, torch.zeros(1, 2)).bones
    subject = painted_subject()
    model = FusedModel(subject.lattice, subject.field, subject.light, RendererConfig())
    frame = frame_of(model, capture, bones, 0)
    black, white = frame.thinned(0), frame.thinned(1)
    assert sorted([*black.view.row.tolist(), *white.view.row.tolist()]) == frame.view.row.tolist()
    assert abs(len(black.target) - len(white.target)) < 0.05 * len(frame.target)
    for part in (black, white):
        assert torch.equal(part.target, capture.target(0).view(-1, 4)[part.view.row])
        assert len(part.slopes) == len(part.target)


def test_carving_keeps_the_person_and_drops_the_air(capture: Capture) -> None:
    body = capsule_body()
    bones = body(capture.poses.rotations, torch.zeros(1, 2)).bones
    field = body_field(body, capture.shape, replace(CONFIG.region, shell=0.09))
    carved = carve(capture, body, bones, field, list(range(FRAMES)))
    assert len(carved.values) < 0.95 * len(field.values)
    # every place inside the body is still there
    inside = field.values[:, 3] > 0
    assert int((carved.values[:, 3] > 0).sum()) >= int(inside.sum())


def test_carving_keeps_what_the_masks_show_outside_the_body(capture: Capture) -> None:
    body = capsule_body()
    bones = body(capture.poses.rotations, torch.zeros(1, 2)).bones
    field = body_field(body, capture.shape, replace(CONFIG.region, shell=0.09))
    masks = capture.masks.float()[:, None]
    wider = replace(capture, masks=max_pool2d(masks, 5, stride=1, padding=2)[:, 0].byte())
    kept = []
    for shown in (capture, wider):
        carved = carve(shown, body, bones, field, list(range(FRAMES)))
        outside = field.stored & carved.stored
        outside[field.stored] &= field.values[:, 3] < 0
        kept.append(int(outside.sum()))
    assert kept[1] > 1.3 * kept[0] > 0


def test_cubes_move_as_skinning_moves_their_vertices() -> None:
    body, shape = capsule_body(), torch.zeros(2)
    surface = canonical_body(body, shape)
    field = body_field(body, shape, replace(CONFIG.region, shell=0.06))
    cubes = field.cubes(field.values[:, 3] <= 0)
    rows = field.cube_rows(cubes)
    moving, stored = MovingCubes(surface, field, cubes), rows >= 0
    canonical = moving.vertices(torch.from_numpy(surface.bones).float())
    places = field.positions()[rows[stored].long()]
    torch.testing.assert_close(canonical[:, stored].T, places, rtol=0, atol=1e-5)

    angles = torch.zeros(1, 24, 3)
    angles[0, JOINT["left_knee"], 0], angles[0, JOINT["right_shoulder"], 2] = 1.0, -0.7
    bones = body(from_axis_angle(angles), shape[None]).bones
    middle = torch.tensor(field.low) + (3 * cubes + 1) * field.voxel
    weights, _ = surface.weights(middle.double().numpy())
    weights = weights[np.arange(len(cubes))[:, None].repeat(27, 1)[stored.numpy()]]
    rest = torch.from_numpy(surface.to_rest(places.double().numpy(), weights))
    expected = skin(rest[None].float(), torch.from_numpy(weights).float(), bones)[0]
    moved = moving.vertices(bones[0])[:, stored].T
    assert (moved - places).norm(dim=1).max() > 0.2
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


def test_a_survey_is_spread_over_all_frames() -> None:
    assert survey(range(5)) == [0, 1, 2, 3, 4]
    chosen = survey(range(116))
    assert (len(chosen), chosen[0]) == (24, 0)
    assert {b - a for a, b in pairwise([*chosen, 116])} == {4, 5}


def test_places_are_seen_where_the_mask_is() -> None:
    """At the middle of a pixel, its mask; beside the picture and behind the camera, nothing."""
    mask = torch.randint(0, 256, (8, 10), generator=torch.Generator().manual_seed(0)).byte()
    camera = Camera(
        torch.eye(3)[None],
        torch.zeros(1, 3),
        torch.tensor([20.0]),
        torch.tensor([[4.2, 3.5]]),
        8,
        10,
    )
    row, column = torch.meshgrid(torch.arange(8), torch.arange(10), indexing="ij")
    depth = 1.0 + torch.rand(8, 10, generator=torch.Generator().manual_seed(1))
    x, y = ((column + 0.5 - 4.2) / 20 * depth, (row + 0.5 - 3.5) / 20 * depth)
    places = torch.stack([x, y, depth])
    on_mask, in_picture = seen(camera, mask, places)
    torch.testing.assert_close(on_mask, mask / 255, rtol=0, atol=1e-4)
    torch.testing.assert_close(in_picture, torch.ones(8, 10), rtol=0, atol=1e-4)
    assert not seen(camera, mask, -places).any()
    beside = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    assert not seen(camera, mask, places + beside).any()


def test_the_visual_hull_keeps_the_person_and_drops_the_air(capture: Capture) -> None:
    body = capsule_body()
    bones = body(capture.poses.rotations, torch.zeros(1, 2)).bones
    config = replace(CONFIG.region, shell=0.2)
    possible = visual_hull(capture, body, bones, list(range(FRAMES)), config)
    whole = body_field(body, capture.shape, config)
    within = body_field(body, capture.shape, config, possible)
    assert len(within.values) < 0.7 * len(whole.values)
    solid = [
        {tuple(p) for p in np.round(f.positions()[f.values[:, 3] > -2].numpy(), 4).tolist()}
        for f in (whole, within)
    ]
    assert solid[0] == solid[1]


def test_pruning_keeps_what_is_occupied() -> None:
    subject = painted_subject()
    occupied = subject.field.values[:, 3] > -2
    field = prune(subject.field, occupied, ring=0)
    kept = {tuple(place) for place in np.round(field.positions().numpy(), 4).tolist()}
    wanted = np.round(subject.field.positions()[occupied].numpy(), 4).tolist()
    assert all(tuple(place) in kept for place in wanted)
    assert len(field.values) < len(subject.field.values)
    assert len(prune(subject.field, occupied, ring=1).values) > len(field.values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"body": "anny"}, "was made with the body 'anny'"),
        ({"shape": torch.zeros(3)}, "3 shape values"),
        ({"held_out": torch.ones(FRAMES, dtype=torch.bool)}, "are held out"),
    ],
)
def test_captures_that_cannot_be_fitted_are_refused(
    capture: Capture, change: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fit_subject(replace(capture, **change), capsule_body(), FieldConfig(), CONFIG, 0)  # type: ignore[arg-type]


class Stop(Exception):
    """Ends a fit from outside."""


@pytest.mark.parametrize("settings", [{}, {"refine_rate": 2e-3}, {"kind": "anerf"}])
def test_an_interrupted_fit_goes_on_to_the_same_result(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Stopped after the cells were pruned, 8 steps after its state was last kept."""
    capture = capture_of(painted_subject(), 8, 32)
    settings = dict(settings)
    kind = settings.pop("kind", "voxels")
    tiny = AnerfConfig(depth=2, width=16, samples=8, importance=4, steps=30, pictures=2, rays=32)
    field = FieldConfig(kind, tiny)
    config = replace(CONFIG, steps=30, keep_every=10, preview_every=0, **settings)

    def fit(watch: Callable[[FitProgress], None] | None, folder: Path | None) -> Subject:
        return fit_subject(capture, capsule_body(), field, config, 0, watch, folder)

    def stop(progress: FitProgress) -> None:
        if progress.done == 28:
            raise Stop

    with pytest.raises(Stop):
        fit(stop, tmp_path)
    assert (tmp_path / "state.pt").is_file()
    seen: list[FitProgress] = []
    save_subject(fit(seen.append, tmp_path), tmp_path / "resumed")
    assert seen[0].done == 21
    save_subject(fit(None, None), tmp_path / "straight")
    data = [
        next((tmp_path / name).glob("*.safetensors")).read_bytes()
        for name in ("resumed", "straight")
    ]
    assert data[0] == data[1]
    assert not (tmp_path / "state.pt").exists()


def test_a_state_of_other_settings_or_a_damaged_one_is_not_gone_on_from(
    capture: Capture, tmp_path: Path
) -> None:
    config = replace(CONFIG, steps=4, keep_every=2)

    def first_step(config: FitConfig) -> int:
        seen: list[FitProgress] = []

        def stop(progress: FitProgress) -> None:
            seen.append(progress)
            if progress.done == 3:
                raise Stop

        with pytest.raises(Stop):
            fit_subject(capture, capsule_body(), FieldConfig(), config, 0, stop, tmp_path)
        return seen[0].done

    assert first_step(config) == 1
    assert first_step(config) == 3
    assert first_step(replace(config, smoothness=1e-3)) == 1
    (tmp_path / "state.pt").write_bytes(b"not a state")
    assert first_step(config) == 1


def test_previews_show_a_held_out_frame_beside_the_truth(capture: Capture, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=40, preview_every=20)
    fit_subject(capture, capsule_body(), FieldConfig(), config, 0, folder=tmp_path)
    pictures = [np.asarray(Image.open(path), float) for path in sorted(tmp_path.glob("*.png"))]
    assert len(pictures) == 2
    errors = []
    for picture in pictures:
        assert picture.shape == (SIZE, 2 * SIZE, 3)
        errors.append(np.abs(picture[:, :SIZE] - picture[:, SIZE:]).mean())
    assert errors[1] < errors[0] < 30
    truth = on_white(capture.target(3)).numpy()
    np.testing.assert_allclose(pictures[0][:, SIZE:] / 255, truth, atol=1 / 255)


def test_a_fit_that_no_longer_gains_ends_early(capture: Capture) -> None:
    config = replace(CONFIG, steps=400, colour_rate=1e-6, density_rate=1e-6, patience=15)
    subject = fit_subject(capture, capsule_body(), FieldConfig(), config, 0)
    assert subject.manifest.fit_steps < 200


def test_a_folder_that_cannot_be_written_is_named(capture: Capture, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = replace(CONFIG, steps=2, keep_every=1)
    with pytest.raises(ResourceError, match=r"The fit cannot write to .*file/fit"):
        fit_subject(
            capture, capsule_body(), FieldConfig(), config, 0, folder=tmp_path / "file" / "fit"
        )


def _believed(capture: Capture, config: FitConfig) -> Capture:
    """What a whole fit comes to believe about poses and cameras."""
    fitter = VoxelFitter(capture, capsule_body(), config, seed=0)
    while fitter.done < fitter.total:
        fitter.step()
    _, _, believed = fitter.result()
    return believed


def test_refinement_brings_wrong_poses_nearer_to_the_true_ones(capture: Capture) -> None:
    """Elbows and knees turned by some degrees in every training frame."""
    stream = torch.Generator().manual_seed(1)
    joints = [JOINT[f"{side}_{name}"] for side in ("left", "right") for name in ("elbow", "knee")]
    turns = torch.zeros(FRAMES, 24, 3)
    turns[:, joints] = 0.15 * torch.randn(FRAMES, len(joints), 3, generator=stream)
    turns[capture.held_out] = 0
    true = capture.poses.rotations
    poses = replace(capture.poses, rotations=true @ from_axis_angle(turns))
    wrong = replace(capture, poses=poses)
    config = replace(CONFIG, steps=400, refine_rate=5e-3)
    believed = _believed(wrong, config)

    def off(rotations: torch.Tensor) -> torch.Tensor:
        """Mean distance of wrists and ankles from the true ones, metres."""
        ends = [JOINT[f"{side}_{n}"] for side in ("left", "right") for n in ("wrist", "ankle")]
        shape = torch.zeros(1, 2)
        there, here = (capsule_body()(r, shape).joints[:, ends] for r in (true, rotations))
        return (there - here).norm(dim=-1)[~capture.held_out].mean()

    assert off(believed.poses.rotations) < 0.6 * off(wrong.poses.rotations)
    assert torch.equal(believed.poses.rotations[capture.held_out], true[capture.held_out])


def test_refinement_brings_wrong_cameras_nearer_to_the_true_ones(capture: Capture) -> None:
    """Cameras turned and moved a little in every training frame: joints are seen elsewhere."""
    stream = torch.Generator().manual_seed(1)
    noise = torch.randn(FRAMES, 6, generator=stream) * torch.tensor([0.01] * 3 + [0.02] * 3)
    noise[capture.held_out] = 0
    true = capture.camera
    camera = replace(
        true,
        rotation=from_axis_angle(noise[:, :3]) @ true.rotation,
        translation=true.translation + noise[:, 3:],
    )
    wrong = replace(capture, camera=camera)
    config = replace(CONFIG, steps=300, refine_rate=3e-3)
    believed = _believed(wrong, config)

    def seen_at(some: Capture) -> torch.Tensor:
        posed = capsule_body()(some.poses.rotations, some.shape[None], some.poses.translation)
        return project(some.camera, posed.joints)

    def off(some: Capture) -> torch.Tensor:
        """Mean distance of all joints from where they are, pixels."""
        return (seen_at(some) - seen_at(capture)).norm(dim=-1)[~capture.held_out].mean()

    assert off(wrong) > 1
    assert off(believed) < 0.6 * off(wrong)
    assert not torch.equal(believed.camera.rotation, wrong.camera.rotation)
    assert torch.equal(
        believed.camera.translation[capture.held_out], true.translation[capture.held_out]
    )


def test_a_frame_without_the_body_in_its_mask_is_named(capture: Capture) -> None:
    """A camera that looks elsewhere, or a pose of another frame's place."""
    principal = capture.camera.principal.clone()
    principal[5] += 3 * SIZE
    wrong = replace(capture, camera=replace(capture.camera, principal=principal))
    with pytest.raises(DataError, match=r"'painted', images/00005\.png .*no joint"):
        fit_subject(wrong, capsule_body(), FieldConfig(), CONFIG, 0)


def test_lpips_of_held_out_frames_is_what_the_package_says(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a package that stands in for `lpips`, whose weights cannot be had offline."""

    class Stand(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            assert net == "alex"

        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            assert one.shape == other.shape == (1, 3, SIZE, SIZE)
            assert -1 <= one.min() < -0.2  # as LPIPS wants them
            assert one.max() <= 1
            return (one - other).abs().mean().view(1, 1, 1, 1)

    module = types.ModuleType("lpips")
    module.LPIPS = Stand  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", module)
    config = replace(CONFIG, steps=20, lpips=True)
    subject = fit_subject(capture, capsule_body(), FieldConfig(), config, 0)
    assert isinstance(subject, VoxelSubject)
    model = FusedModel(subject.lattice, subject.field, subject.light, RendererConfig())
    bones, distances = capture.bones(capsule_body()), []
    for i in capture.held_out.nonzero()[:, 0].tolist():
        ours = on_white(model.draw(bones[i : i + 1], capture.view(i))[0])
        distances.append(2 * (ours - on_white(capture.target(i))).abs().mean())
    assert subject.manifest.lpips == pytest.approx(float(torch.stack(distances).mean()), rel=1e-4)
    assert f"LPIPS {subject.manifest.lpips:.3f}" in subject.manifest.quality


def test_lpips_that_is_not_installed_is_said_before_the_fit(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ResourceError, match=r"posegen-ray\[lpips\]"):
        fit_subject(capture, capsule_body(), FieldConfig(), replace(CONFIG, lpips=True), 0)
