"""The canonical pose: legs apart, and the way back to the T-pose."""

from __future__ import annotations

import numpy as np
import torch
from bodies import capsule_body

from posegen_ray.body.model import skin
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import JOINT
from posegen_ray.subjects.canonical import LEGS_APART, canonical_body

SHAPE = torch.zeros(2)
LEFT, RIGHT = JOINT["left_hip"], JOINT["right_hip"]


def test_only_the_legs_are_turned() -> None:
    angles = torch.zeros(1, 24, 3)
    angles[0, LEFT, 2], angles[0, RIGHT, 2] = LEGS_APART, -LEGS_APART
    body = capsule_body()
    posed = body(from_axis_angle(angles), SHAPE[None], vertices=True)
    canonical = canonical_body(body, SHAPE)
    np.testing.assert_allclose(canonical.vertices, posed.vertices[0].numpy(), atol=1e-5)
    spread = [np.ptp(v[v[:, 1] < 0.3, 0]) for v in (canonical.vertices, body.template.numpy())]
    assert spread[0] > spread[1] + 0.2


def test_skinning_leads_from_the_rest_place_to_the_canonical_one() -> None:
    canonical = canonical_body(capsule_body(), SHAPE)
    stream = np.random.default_rng(0)
    places = canonical.vertices[::37] + stream.normal(0, 0.05, canonical.vertices[::37].shape)
    weights, _ = canonical.weights(places)
    rest = canonical.to_rest(places, weights)
    led = skin(
        torch.from_numpy(rest)[None],
        torch.from_numpy(weights),
        torch.from_numpy(canonical.bones)[None],
    )
    np.testing.assert_allclose(led[0].numpy(), places, atol=1e-6)


def test_a_place_at_the_skin_moves_with_it() -> None:
    canonical = canonical_body(capsule_body(), SHAPE)
    weights, distance = canonical.weights(canonical.vertices[::53])
    np.testing.assert_allclose(distance, 0, atol=1e-6)
    np.testing.assert_allclose(weights, canonical.vertex_weights[::53], atol=0.02)


def test_a_place_at_the_skin_looks_where_it_looks() -> None:
    canonical = canonical_body(capsule_body(), SHAPE)
    _, normals, _ = canonical.weights_and_normals(canonical.vertices[::53])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    assert (normals * canonical.vertex_normals[::53]).sum(1).min() > 0.96


def test_far_in_front_of_the_legs_both_have_the_same_say() -> None:
    canonical = canonical_body(capsule_body(), SHAPE)
    height = 0.6  # between hips and knees
    weights, _ = canonical.weights(np.array([[0.0, height, 0.15], [0.0, height, 0.3]]))
    # not quite: the surface's samples are not the same on both sides
    np.testing.assert_allclose(weights[:, LEFT], weights[:, RIGHT], atol=0.06)
    assert (weights[:, LEFT] > 0.2).all()


def test_weights_change_little_by_little_away_from_the_body() -> None:
    canonical = canonical_body(capsule_body(), SHAPE)
    across = np.linspace(-0.25, 0.25, 101)
    places = np.stack([across, np.full(101, 0.6), np.full(101, 0.15)], 1)
    weights, _ = canonical.weights(places)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    assert np.abs(np.diff(weights, axis=0)).max() < 0.1
