"""Failure modes: clusters do not depend on the view, bins are where they are said to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from posegen_ray.body.camera import orbit, to_camera
from posegen_ray.evaluation.atlas import (
    AZIMUTH_LABELS,
    ELEVATION_LABELS,
    build_atlas,
    cluster_poses,
    pelvis_frame_joints,
    view_bins,
)
from posegen_ray.evaluation.protocol import motion_name
from posegen_ray.records import Samples


def test_a_pose_is_the_same_from_every_side(samples: Samples) -> None:
    count = len(samples)
    world = samples.joints @ samples.camera.rotation  # hip-centred, world axes
    camera = orbit(
        torch.zeros(count, 3),
        torch.rand(count) * 6,
        torch.rand(count) - 0.5,
        torch.rand(count),
        torch.full((count,), 4.0),
        torch.full((count,), 100.0),
        torch.full((count, 2), 32.0),
        64,
        64,
    )
    joints = to_camera(camera, world)
    elsewhere = replace(
        samples, joints=joints - joints[:, 6:8].mean(1, keepdim=True), camera=camera
    )
    np.testing.assert_allclose(
        pelvis_frame_joints(elsewhere), pelvis_frame_joints(samples), atol=1e-5
    )


def test_clusters_find_separated_groups_whatever_the_seed() -> None:
    random = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], [50, 30, 10])
    features = 10.0 * group[:, None] + random.normal(size=(90, 4))
    for seed in range(5):
        labels, nearest = cluster_poses(features, 3, seed)
        assert np.array_equal(labels, group)  # numbered from the largest down
        assert group[nearest].tolist() == [0, 1, 2]
    for number, row in enumerate(nearest):
        members = features[group == number]
        distance = np.linalg.norm(members - members.mean(0), axis=1)
        assert np.linalg.norm(features[row] - members.mean(0)) == pytest.approx(distance.min())


@pytest.mark.parametrize("different", [1, 2])
def test_fewer_poses_than_clusters(different: int) -> None:
    features = np.repeat(np.eye(4)[:different], 5, axis=0)
    labels, nearest = cluster_poses(features, 8, 0)
    assert len(nearest) == different
    assert np.bincount(labels).tolist() == [5] * different


def test_views_fall_into_the_bins_they_are_named_after() -> None:
    degrees = [(0, 0), (-20, 10), (90, -30), (180, 50), (-180, -50), (-90, 16), (350, 0), (45, 89)]
    view = np.deg2rad(np.array([[a, e, 0.0] for a, e in degrees]))
    azimuth, elevation = view_bins(view)
    assert [AZIMUTH_LABELS[i] for i in azimuth] == [
        "front", "front", "left", "back", "back", "right", "front", "front left",
    ]  # fmt: skip
    assert [ELEVATION_LABELS[i] for i in elevation] == [
        "eye level", "eye level", "below", "far above", "far below", "above", "eye level",
        "far above",
    ]  # fmt: skip


def test_the_atlas_accounts_for_every_sample(samples: Samples) -> None:
    random = np.random.default_rng(1)
    before, after = random.uniform(50, 200, size=(2, len(samples)))
    atlas = build_atlas(samples, before, after, clusters=5)
    cells = [mode for line in atlas.viewpoints for mode in line]
    for modes in (atlas.clusters, cells):
        assert sum(mode.count for mode in modes) == len(samples)
        total = sum(mode.count * (mode.before_mm or 0.0) for mode in modes)
        assert total == pytest.approx(before.sum())
        total = sum(mode.count * (mode.after_mm or 0.0) for mode in modes)
        assert total == pytest.approx(after.sum())
    assert {motion_name(clip) for clip in samples.clips} >= {
        mode.label.split()[0] for mode in atlas.clusters
    }
