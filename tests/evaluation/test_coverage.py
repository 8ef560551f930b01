"""Coverage of failure clusters on constructed sets, whose answers were counted by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from posegen_ray.errors import DataError
from posegen_ray.evaluation.coverage import (
    failure_coverage,
    find_failure_clusters,
    pose_view_features,
)
from posegen_ray.records import Samples

# four places in pose x view space; the baseline fails at B and D
_PLACES = {"A": (0.0, 0.0), "B": (10.0, 0.0), "C": (0.0, 10.0), "D": (10.0, 10.0)}
_ERROR = {"A": 80.0, "B": 300.0, "C": 90.0, "D": 260.0}


def _at(places: str) -> np.ndarray:
    random = np.random.default_rng(len(places))
    return np.array([_PLACES[name] for name in places]) + 0.1 * random.normal(size=(len(places), 2))


@pytest.fixture
def clusters():
    held_out = "AAAAAAAABBBBBBCCCCDD"  # sizes 8, 6, 4, 2: in this order
    errors = np.array([_ERROR[name] for name in held_out])
    return find_failure_clusters(_at(held_out), errors, 200.0, clusters=4)


def test_failure_clusters_are_those_with_a_mean_above_the_threshold(clusters) -> None:
    assert clusters.sizes.tolist() == [8, 6, 4, 2]
    assert clusters.mean_mm.tolist() == [80, 300, 90, 260]
    assert clusters.failing.tolist() == [1, 3]


def test_near_and_hard_is_what_counts(clusters) -> None:
    # at B: two hard, one easy; at D: easy only; at A: hard, which is no failure cluster
    errors = np.array([250.0, 201, 150, 199, 200, 400])
    found = failure_coverage(clusters, "generated", _at("BBBDDA"), errors)
    assert found.per_cluster == ((1, 2), (3, 0))
    assert (found.samples, found.failures, found.reached, found.share) == (6, 3, 1, 0.5)
    assert failure_coverage(clusters, "generated", _at("BBBDDA"), errors, least=3).share == 0
    both = failure_coverage(clusters, "all", _at("BD"), np.array([250.0, 250.0]))
    assert (both.reached, both.share) == (2, 1.0)
    none = failure_coverage(clusters, "control", _at("BD"), np.array([100.0, 100.0]))
    assert (none.failures, none.share) == (0, 0.0)


def test_without_failure_clusters_there_is_no_share(clusters) -> None:
    easy = replace(clusters, threshold_mm=1000.0)
    assert failure_coverage(easy, "x", _at("BD"), np.array([2000.0, 9])).share is None


def test_unusable_sets_are_refused(clusters) -> None:
    with pytest.raises(DataError, match="'x' hold NaN"):
        failure_coverage(clusters, "x", _at("BD"), np.array([1.0, np.nan]))
    with pytest.raises(DataError, match="errors of shape"):
        failure_coverage(clusters, "x", _at("BD"), np.array([1.0]))
    with pytest.raises(DataError, match="at least one sample"):
        find_failure_clusters(np.zeros((0, 2)), np.zeros(0), 1.0)
    with pytest.raises(DataError, match="have 3 features, the clusters 2"):
        failure_coverage(clusters, "x", np.zeros((1, 3)), np.zeros(1))


def test_view_and_pose_both_separate_samples(samples: Samples) -> None:
    two = samples[[0, 0]]
    view = torch.tensor([[0.0, 0.0, 0.0], [torch.pi, 0.0, 0.5]])
    features = pose_view_features(replace(two, view=view))
    # seen from the front and from the back: two metres apart, whatever the roll
    assert np.linalg.norm(features[0] - features[1]) == pytest.approx(2)
    wrapped = replace(two, view=view + torch.tensor([2 * torch.pi, 0, 0]))
    np.testing.assert_allclose(pose_view_features(wrapped), features, atol=1e-6)
