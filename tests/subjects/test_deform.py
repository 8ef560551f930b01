"""The cage encloses the body, follows it, and keeps the limbs apart."""

from __future__ import annotations

import numpy as np
import torch
from bodies import capsule_body
from scipy.spatial import cKDTree

from posegen_ray.body.model import skin
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import JOINT
from posegen_ray.config import CageConfig
from posegen_ray.subjects.deform import build_cage, pose_cage


def _cage(shell: float = 0.05):
    return build_cage(capsule_body(), torch.zeros(2), CageConfig(vertices=800, shell=shell))


def test_the_cage_is_closed_small_and_turned_outwards() -> None:
    cage = _cage()
    assert 600 < len(cage.rest) <= 900
    faces = cage.faces.long()
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    _, count = edges.sort(1).values.unique(dim=0, return_counts=True)
    assert (count == 2).all()
    a, b, c = cage.rest[faces].unbind(1)
    assert (a * torch.linalg.cross(b, c)).sum() > 0
    torch.testing.assert_close(cage.weights.sum(1), torch.ones(len(cage.weights)))


def test_no_triangle_joins_two_limbs() -> None:
    """Between thighs, and between arm and trunk, edges stay within one side."""
    cage = _cage()
    left = cage.weights[:, [JOINT["left_knee"], JOINT["left_ankle"]]].sum(1) > 0.5
    right = cage.weights[:, [JOINT["right_knee"], JOINT["right_ankle"]]].sum(1) > 0.5
    corner_left, corner_right = left[cage.faces.long()], right[cage.faces.long()]
    assert left.any()
    assert not (corner_left.any(1) & corner_right.any(1)).any()
    # dilated legs stay on their own side of the middle
    assert (cage.rest[left, 0] > 0).all()
    assert (cage.rest[right, 0] < 0).all()


def test_the_cage_stands_off_the_body_by_the_shell() -> None:
    cage = _cage(shell=0.04)
    distance, _ = cKDTree(capsule_body().template.numpy()).query(cage.rest.numpy())
    assert np.quantile(distance, 0.1) > 0.02
    assert distance.max() < 0.06


def test_posing_the_cage_and_going_back_is_the_identity() -> None:
    cage = _cage()
    stream = torch.Generator().manual_seed(0)
    rotations = from_axis_angle(0.3 * torch.randn(2, 24, 3, generator=stream))
    bones = capsule_body()(rotations, torch.zeros(1, 2)).bones
    points, inverse = pose_cage(cage, bones)
    expected = skin(cage.rest.expand(2, -1, -1), cage.weights, bones)
    torch.testing.assert_close(points, expected)
    blended = (cage.weights @ bones.flatten(2)).unflatten(-1, (3, 4))[..., :3]
    eye = torch.eye(3).expand_as(blended)
    torch.testing.assert_close(inverse @ blended, eye, atol=1e-4, rtol=0)
