"""A fit recovers a person from pictures, and refuses captures it cannot use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bodies import capsule_body, capture_of, painted_subject

from posegen_ray.config import FieldConfig, FitConfig, RegionConfig
from posegen_ray.errors import DataError
from posegen_ray.subjects.capture import Capture
from posegen_ray.subjects.field import body_field
from posegen_ray.subjects.fit import fit_subject
from posegen_ray.subjects.fit_voxels import carve, prune
from posegen_ray.subjects.light import brightness, even_light

FRAMES, SIZE = 24, 96
CONFIG = FitConfig(region=RegionConfig(shell=0.04, voxel=0.015), steps=120)


@pytest.fixture(scope="module")
def capture() -> Capture:
    return capture_of(painted_subject(), FRAMES, SIZE)


def test_a_fit_recovers_the_person_on_held_out_frames(capture: Capture) -> None:
    steps: list[tuple[int, int]] = []
    subject = fit_subject(
        capture, capsule_body(), FieldConfig(), CONFIG, 0, lambda *at: steps.append(at)
    )
    manifest = subject.manifest
    assert manifest.psnr_person > 23
    assert manifest.psnr_full > manifest.psnr_person
    assert (manifest.name, manifest.body, manifest.held_out_frames) == ("painted", "capsules", 6)
    assert manifest.capture_sha256 == capture.sha256()
    assert subject.field.values[:, 3].min() > -6  # nothing is kept that holds nothing
    assert steps == [(i + 1, 120) for i in range(120)]
    assert subject.field.values[:, :3].min() >= 0
    assert subject.field.values[:, :3].max() <= 1


def test_a_fit_finds_the_light(capture: Capture) -> None:
    """Where the painted person is brighter, the fitted one is, and by as much."""
    true = painted_subject().light
    found = fit_subject(capture, capsule_body(), FieldConfig(), CONFIG, 0).light
    assert (found - found.T).abs().max() < 1e-5
    normals = torch.nn.functional.normalize(torch.randn(1, 500, 3), dim=-1)
    expected, ours = brightness(true, normals)[0], brightness(found, normals)[0]
    expected, ours = expected / expected.mean(), ours / ours.mean()  # colours make up for the rest
    assert expected.std() > 0.1
    assert (ours - expected).std() < 0.3 * expected.std()
    plain = replace(CONFIG, steps=5, light_rate=0.0)
    assert torch.equal(
        fit_subject(capture, capsule_body(), FieldConfig(), plain, 0).light, even_light()
    )


def test_the_same_seed_gives_the_same_subject(capture: Capture) -> None:
    short = replace(CONFIG, steps=6)
    first, second, other = (
        fit_subject(capture, capsule_body(), FieldConfig(), short, seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first.field.values, second.field.values)
    assert first.manifest == second.manifest
    assert not torch.equal(first.field.values, other.field.values)


def test_carving_keeps_the_person_and_drops_the_air(capture: Capture) -> None:
    body = capsule_body()
    bones = body(capture.poses.rotations, torch.zeros(1, 2)).bones
    field = body_field(body, capture.shape, replace(CONFIG.region, shell=0.09))
    carved = carve(capture, body, bones, field, list(range(FRAMES)))
    assert len(carved.values) < 0.95 * len(field.values)
    # every place inside the body is still there
    inside = field.values[:, 3] > 0
    assert int((carved.values[:, 3] > 0).sum()) >= int(inside.sum())


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
