"""Backgrounds and compositing."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from posegen_ray.errors import ConfigError
from posegen_ray.subjects.background import (
    _MATERIALS,
    PHOTOGRAPHS,
    backgrounds,
    composite,
)

WITH_PEOPLE = {"astronaut.png", "camera.png", "lfw_subset.npy", "grace_hopper.jpg"}


def test_no_photograph_is_in_two_splits_and_none_shows_people() -> None:
    for first, second in combinations(PHOTOGRAPHS.values(), 2):
        assert not set(first) & set(second)
    for split, names in PHOTOGRAPHS.items():
        assert not set(names) & WITH_PEOPLE
        assert set(_MATERIALS[split]) <= set(names)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_backgrounds_are_pictures_and_follow_their_seed(split: str) -> None:
    first = backgrounds(split, 12, 64, seed=1)
    assert first.shape == (12, 3, 64, 64)
    assert first.min() >= 0
    assert first.max() <= 1
    assert first.flatten(1).std(1).min() > 0.005  # something is on each of them
    assert torch.equal(first, backgrounds(split, 12, 64, seed=1))
    assert torch.equal(first[:5], backgrounds(split, 5, 64, seed=1))
    assert (first - backgrounds(split, 12, 64, seed=2)).abs().mean((1, 2, 3)).min() > 0.01


def test_splits_differ_for_the_same_seed() -> None:
    pictures = [backgrounds(split, 8, 32, seed=3) for split in PHOTOGRAPHS]
    for first, second in combinations(pictures, 2):
        assert (first - second).abs().mean((1, 2, 3)).min() > 0.01


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="no split 'dev'"):
        backgrounds("dev", 1, 32, 0)


def test_composite_shows_background_where_alpha_is_zero_and_person_where_it_is_one() -> None:
    rgba = torch.zeros(1, 2, 2, 4)
    rgba[0, 0, 0] = torch.tensor([0.2, 0.4, 0.6, 1.0])
    rgba[0, 1, 1] = torch.tensor([0.1, 0.2, 0.3, 0.5])
    behind = torch.full((1, 3, 2, 2), 0.8)
    image = composite(rgba, behind)
    assert image[0, :, 0, 0].tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert image[0, :, 0, 1].tolist() == pytest.approx([0.8] * 3)
    assert image[0, :, 1, 1].tolist() == pytest.approx([0.5, 0.6, 0.7])


def test_composite_has_right_gradients() -> None:
    stream = torch.Generator().manual_seed(0)
    rgba = torch.rand(2, 3, 3, 4, generator=stream, dtype=torch.float64)
    behind = torch.rand(2, 3, 3, 3, generator=stream, dtype=torch.float64)
    assert torch.autograd.gradcheck(composite, (rgba.requires_grad_(), behind.requires_grad_()))
