"""Measures of pose sets against loops, scipy's matrix root, analytic Gaussians, and hand counts."""

from __future__ import annotations

import time
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.errors import DataError
from posegen_ray.evaluation.pose_sets import (
    average_pairwise_distance,
    beside_yardstick,
    frechet_distance,
    leave_clips_out,
    measure_poses,
    pose_features,
    pose_set_table,
)


def _rows(count: int, seed: int, joints: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3 * joints)) * 0.2


def _by_loops(a: np.ndarray, b: np.ndarray, k: int) -> dict[str, float]:
    def far(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.sqrt(sum((p - q) ** 2 for p, q in zip(x, y, strict=True))))

    def radius(rows: np.ndarray, i: int) -> float:
        return sorted(far(rows[i], rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    radii_a = [radius(a, i) for i in range(len(a))]
    radii_b = [radius(b, i) for i in range(len(b))]
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    joints = a.shape[1] // 3
    apart = [
        np.mean([np.linalg.norm((a[i] - a[j]).reshape(-1, 3)[n]) for n in range(joints)])
        for i, j in pairs
    ]
    nearest = [min(far(x, y) for y in b) / joints**0.5 for x in a]
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    spread = np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    return {
        "apd_mm": 1000 * float(np.mean(apart)),
        "fid_cm2": 1e4 * float(((a.mean(0) - b.mean(0)) ** 2).sum() + spread),
        "precision": float(
            np.mean([any(far(x, b[j]) <= radii_b[j] for j in range(len(b))) for x in a])
        ),
        "recall": float(
            np.mean([any(far(y, a[i]) <= radii_a[i] for i in range(len(a))) for y in b])
        ),
        "nearest_median_mm": 1000 * float(np.median(nearest)),
        "nearest_p90_mm": 1000 * float(np.percentile(nearest, 90)),
    }


@pytest.mark.parametrize("k", [1, 3])
def test_measures_equal_plain_loops(k: int) -> None:
    a, b = _rows(40, 0), 1.2 * _rows(30, 1) + 0.03
    found = asdict(measure_poses("a", a, "b", b, neighbours=k))
    expected = _by_loops(a, b, k)
    assert 0.05 < expected["precision"] < 1
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_of_known_gaussians() -> None:
    random = np.random.default_rng(0)
    sd_a, sd_b, shift = np.array([1.0, 2, 3]), np.array([2.0, 2, 1]), np.array([1.0, 0, -2])
    a = random.normal(size=(200_000, 3)) * sd_a
    b = random.normal(size=(200_000, 3)) * sd_b + shift
    expected = (shift**2).sum() + ((sd_a - sd_b) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=0.02)


def test_frechet_distance_of_fewer_rows_than_features() -> None:
    a = _rows(10, 0, joints=8)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.1) == pytest.approx(24 * 0.01)


def test_precision_and_recall_tell_copies_from_noise() -> None:
    real = _rows(200, 0)
    few = measure_poses("few", np.repeat(real[:4], 4, axis=0), "real", real)
    assert few.precision == 1
    assert few.recall == 4 / 200
    assert few.nearest_p90_mm == 0
    wide = measure_poses("wide", 6 * _rows(200, 1), "real", real)
    assert wide.precision < 0.05
    assert wide.apd_mm > 5 * wide.reference_apd_mm


def test_equal_poses() -> None:
    same = np.tile(_rows(1, 0), (20, 1))
    found = measure_poses("same", same, "same", same)
    assert (found.apd_mm, found.precision, found.recall, found.nearest_p90_mm) == (0, 1, 1, 0)
    assert found.fid_cm2 == pytest.approx(0, abs=1e-9)


def test_mirroring_both_sets_changes_nothing_and_one_does() -> None:
    a, b = _rows(40, 0) + 0.1, _rows(30, 1)
    flip = np.tile([-1.0, 1, 1], 4)
    plain = measure_poses("a", a, "b", b)
    mirrored = measure_poses("a", a * flip, "b", b * flip)
    for name in ("apd_mm", "fid_cm2", "precision", "recall", "nearest_p90_mm"):
        assert getattr(mirrored, name) == pytest.approx(getattr(plain, name), rel=1e-9)
    assert average_pairwise_distance(a * flip) == pytest.approx(plain.apd_mm)
    assert frechet_distance(a, a * flip) > 0.1


def test_unusable_sets_are_refused() -> None:
    good = _rows(10, 0)
    with pytest.raises(DataError, match=r"'few'.*3 neighbours need 4"):
        measure_poses("few", good[:3], "real", good)
    with pytest.raises(DataError, match="'real'"):
        measure_poses("few", good, "real", good[:3])
    broken = good.copy()
    broken[6, 2] = np.nan
    with pytest.raises(DataError, match=r"Pose 6 of 'set' holds NaN"):
        measure_poses("set", broken, "real", good)
    with pytest.raises(DataError, match="12 features, those of 'real' 9"):
        measure_poses("set", good, "real", good[:, :9])
    rotations = torch.eye(3).repeat(5, 24, 1, 1)
    rotations[3, 7] = torch.nan
    with pytest.raises(DataError, match="Pose 3 of 5"):
        pose_features(rotations, torch.zeros(24, 3))


def test_features_do_not_know_heading_and_keep_the_pose() -> None:
    generator = torch.Generator().manual_seed(0)
    rotations = from_axis_angle(0.4 * torch.randn(6, 24, 3, generator=generator))
    rest = torch.randn(24, 3, generator=generator)
    turned = rotations.clone()
    turned[:, 0] = from_axis_angle(torch.randn(6, 3, generator=generator)) @ rotations[:, 0]
    features = pose_features(rotations, rest)
    np.testing.assert_allclose(pose_features(turned, rest), features, atol=1e-6)
    # the left knee (joint 4) hangs on the left hip (1), which hangs on the pelvis
    thigh = (rest[4] - rest[1]).double()
    knee = (rest[1] - rest[0]).double() + rotations[:, 1].double() @ thigh
    np.testing.assert_allclose(features[:, 9:12], knee, atol=1e-5)


def test_the_yardstick_leaves_each_clip_out() -> None:
    clips = {"near": _rows(20, 0), "also": _rows(20, 1), "far": _rows(20, 2) + 1, "x": _rows(2, 3)}
    left_out = leave_clips_out(clips)
    assert [one.name.split()[-1] for one in left_out] == ["near", "also", "far"]
    assert left_out[0].reference_poses == 42
    others = np.concatenate([clips["also"], clips["far"], clips["x"]])
    assert left_out[0] == measure_poses(
        "left-out clip near", clips["near"], "other source clips", others
    )
    assert left_out[2].nearest_median_mm > 2 * left_out[0].nearest_median_mm
    source = np.concatenate(list(clips.values()))
    drawn = [
        measure_poses(name, rows, "source", source)
        for name, rows in {"copies": source, "wild": source + 5}.items()
    ]
    placed = beside_yardstick(pose_set_table([*left_out, *drawn]))
    assert placed == {"copies": 1.0, "wild": 0.0}
    with pytest.raises(DataError, match="One clip"):
        leave_clips_out({"near": clips["near"]})


def test_thousands_of_poses_take_about_a_second() -> None:
    a, b = _rows(2000, 0, joints=23), _rows(1000, 1, joints=23)
    start = time.process_time()
    measure_poses("a", a, "b", b)
    assert time.process_time() - start < 4  # 0.6 s measured
