"""Pictures travel without what is empty, and come back as they were."""

import numpy as np
import pytest
import torch
from bodies import capsule_body, painted_subject

from posegen_ray.body.camera import orbit
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.config import RendererConfig
from posegen_ray.records import RenderRequest
from posegen_ray.runtime.pixels import DrawnPixels
from posegen_ray.runtime.wire import TensorRenderer, to_arrays
from posegen_ray.subjects.render import make_renderer


def pictures(count: int = 5, seed: int = 0) -> np.ndarray:
    """Mostly empty, one of them wholly."""
    draw = np.random.default_rng(seed)
    values = draw.standard_normal((count, 6, 7, 4)).astype(np.float32)
    values[draw.random((count, 6, 7)) < 0.8] = 0
    values[1] = 0
    return values


def test_pictures_come_back_as_they_were():
    sent = pictures()
    sent[0, 0, 0] = [0, 0, 0, 1e-30]
    sent[2, 5, 6] = [np.nan, 0, 0, 0]
    drawn = DrawnPixels.of(sent)
    np.testing.assert_array_equal(drawn.pictures(), sent)
    assert len(drawn.row) == (sent != 0).any(-1).sum()
    assert not drawn.finite()
    assert DrawnPixels.of(pictures()).finite()


@pytest.mark.parametrize("cut", [[[0, 1, 2, 3, 4]], [[0, 2], [1, 3, 4]], [[4], [3, 0], [2, 1]]])
def test_pictures_find_their_place_among_others(cut):
    sent = pictures()
    whole = np.zeros_like(sent)
    for positions in cut:
        drawn = DrawnPixels.of(sent[positions])
        whole.reshape(-1, 4)[drawn.row_among(positions)] = drawn.values
    np.testing.assert_array_equal(whole, sent)


def test_pictures_without_anything_on_them():
    empty = np.zeros((2, 3, 4, 4), np.float32)
    drawn = DrawnPixels.of(empty)
    assert len(drawn.row) == len(drawn.row_among([1, 0])) == 0
    np.testing.assert_array_equal(drawn.pictures(), empty)


@pytest.mark.parametrize("kind", ["fused", "reference"])
def test_an_empty_pixel_has_no_gradient(kind):
    """Random weights everywhere pull back as those of the drawn pixels alone."""
    subject = painted_subject()
    config = RendererConfig(kind=kind, early_stop=0.0)
    renderer = TensorRenderer(make_renderer(config, {"capsules": subject}))
    angles = 0.3 * torch.randn(1, 24, 3, generator=torch.Generator().manual_seed(0))
    bones = capsule_body()(from_axis_angle(angles), torch.zeros(1, 2)).bones
    target, none, centre = torch.tensor([[0.0, 0.9, 0.0]]), torch.zeros(1), torch.full((1, 2), 20.0)
    camera = orbit(target, none, none, none, none + 3.0, none + 44.0, centre, 40, 40)
    request = to_arrays(RenderRequest(("capsules",), bones, camera))
    drawn = DrawnPixels.of(renderer.render_arrays(request))
    assert 0.02 < len(drawn.row) / 1600 < 0.5
    weight = np.random.default_rng(1).standard_normal((1, 40, 40, 4)).astype(np.float32)
    there = drawn.with_values(weight.reshape(-1, 4)[drawn.row])
    whole, part = (renderer.vjp_arrays(request, g) for g in (weight, there.pictures()))
    assert any(values.any() for values in whole.parts())
    for ours, theirs in zip(part.parts(), whole.parts(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
