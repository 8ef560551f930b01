"""Measures of pose sets against scipy, loops, and sets whose answers are known."""

import numpy as np
import pytest
import torch
from bodies import capsule_body
from scipy.linalg import sqrtm

from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.errors import DataError
from posegen_ray.evaluation.pose_sets import (
    frechet_distance,
    joint_features,
    left_out,
    pose_set_measures,
    share_within,
)

REST = capsule_body().joint_template


def poses(count: int, spread: float = 0.3, seed: int = 0, bend: float = 0.0) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    turns = spread * torch.randn(count, 24, 3, generator=stream)
    turns[:, 18, 1] += bend
    return from_axis_angle(turns)


def test_joints_do_not_know_where_the_body_faces():
    some = poses(5)
    turned = some.clone()
    turned[:, 0] = from_axis_angle(torch.tensor([[0.3, 2.0, -1.0]])) @ some[:, 0]
    np.testing.assert_allclose(joint_features(some, REST), joint_features(turned, REST), atol=1e-9)
    posed = capsule_body()(some, torch.zeros(1, capsule_body().num_shape)).joints
    local = (posed - posed[:, :1]) @ some[:, 0]  # another way there: through the posed body
    np.testing.assert_allclose(
        joint_features(some, REST), 1000 * local[:, 1:].flatten(1).numpy(), atol=1e-2
    )


def test_frechet_distance_is_that_of_scipy_and_of_known_gaussians():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(400, 6)), random.normal(size=(300, 6)) @ random.normal(size=(6, 6))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.square(a.mean(0) - b.mean(0)).sum()
    expected += np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a + 2.0) == pytest.approx(6 * 4.0)
    assert frechet_distance(a, 3 * a) == pytest.approx(
        np.square(2 * a.mean(0)).sum() + 4 * np.trace(cov_a)
    )


def test_precision_and_recall_are_those_of_a_loop():
    random = np.random.default_rng(1)
    points, of = random.normal(size=(40, 3)), 0.7 * random.normal(size=(30, 3))
    inside = 0
    for point in points:
        for one in of:
            radius = sorted(np.linalg.norm(of - one, axis=1))[3]  # the first is itself
            if np.linalg.norm(point - one) <= radius:
                inside += 1
                break
    assert share_within(points, of) == inside / 40
    assert 0 < inside < 40


def test_nearest_and_pairwise_distances_are_those_of_a_loop():
    a, b = poses(12), poses(15, seed=1)
    measured = pose_set_measures(a, b, REST)
    x, y = (joint_features(part, REST).reshape(len(part), 23, 3) for part in (a, b))
    nearest = [min(np.linalg.norm(p - q, axis=1).mean() for q in y) for p in x]
    assert measured.nearest_mm == pytest.approx(np.median(nearest))
    assert measured.nearest_p90_mm == pytest.approx(np.percentile(nearest, 90))
    pairs = [np.linalg.norm(x[i] - x[j], axis=1).mean() for i in range(12) for j in range(i)]
    assert measured.apd_mm == pytest.approx(np.mean(pairs))


def test_sets_whose_answers_are_known():
    real = poses(60)
    same = pose_set_measures(real, real, REST)
    assert (same.precision, same.recall) == (1.0, 1.0)
    assert same.fid_mm == pytest.approx(0, abs=0.1)
    assert same.nearest_mm == pytest.approx(0, abs=1e-6)
    copies = pose_set_measures(real[:1].expand(60, -1, -1, -1), real, REST)
    assert copies.precision == 1.0  # perfect, and worthless:
    assert copies.recall < 0.2
    assert copies.apd_mm == pytest.approx(0, abs=1e-6)
    far = pose_set_measures(poses(60, 1.5, seed=2), real, REST)
    assert far.precision < 0.1
    assert far.nearest_mm > 50
    assert far.apd_mm > same.apd_mm


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(DataError, match="too few"):
        pose_set_measures(poses(10), poses(3), REST)
    broken = poses(10)
    broken[3, 4] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        pose_set_measures(broken, poses(10), REST)


def test_a_clip_of_its_own_kind_is_far_from_the_others():
    clips = {"a": poses(30, 0.05), "b": poses(30, 0.05, 1), "c": poses(30, 0.05, 2, bend=1.5)}
    table = left_out(clips, REST).set_index("clip")
    assert table["nearest_mm"].idxmax() == "c"
    assert table.loc["c", "count"] == 30
