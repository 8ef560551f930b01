"""Skeletons land where the joints are; grids keep their pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from posegen_ray.body.camera import orbit, project, to_camera
from posegen_ray.errors import DataError
from posegen_ray.evaluation.drawing import (
    PREDICTION,
    contact_sheet,
    draw_skeleton,
    hip_positions,
    image_grid,
    place_joints,
    to_picture,
)
from posegen_ray.records import Samples


def test_hips_are_found_from_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(6, 12, 3, generator=generator, dtype=torch.float64) * 0.4
    camera = orbit(
        torch.zeros(6, 3, dtype=torch.float64),
        torch.rand(6, generator=generator).double() * 6,
        torch.rand(6, generator=generator).double() - 0.5,
        torch.rand(6, generator=generator).double(),
        torch.linspace(3, 8, 6).double(),
        torch.linspace(200, 600, 6).double(),
        torch.full((6, 2), 120.0, dtype=torch.float64),
        256,
        256,
    )
    local = to_camera(camera, points)
    middle = local[:, 6:8].mean(1)
    found = hip_positions(local - middle[:, None], project(camera, points), camera)
    torch.testing.assert_close(found, middle)


def test_true_joints_land_on_their_pixels(samples: Samples) -> None:
    hips = hip_positions(samples.joints, samples.joints_2d, samples.camera)
    placed = place_joints(samples.joints, hips, samples.camera)
    torch.testing.assert_close(placed, samples.joints_2d.double(), atol=1e-2, rtol=0)


def test_joints_are_drawn_at_their_pixels_in_their_colours() -> None:
    joints = torch.tensor([[20.0 + 17 * (i % 6), 30.0 + 60 * (i // 6)] for i in range(12)])
    drawn = np.asarray(draw_skeleton(Image.new("RGB", (128, 128), "#000080"), joints, PREDICTION))
    left, right = np.array([255, 179, 71]), np.array([232, 89, 12])
    for index, (x, y) in enumerate(joints.int().tolist()):
        wanted, other = (left, right) if index % 2 == 0 else (right, left)
        colour = drawn[y, x].astype(int)
        assert np.abs(colour - wanted).sum() < np.abs(colour - other).sum()
    assert drawn[2, 2].tolist() == [0, 0, 128]


def test_joints_far_outside_do_no_harm() -> None:
    joints = torch.full((12, 2), 1e9)
    joints[0], joints[1] = 10.0, float("nan")
    assert draw_skeleton(Image.new("RGB", (64, 64)), joints).size == (64, 64)


def test_tensors_become_pictures_and_back() -> None:
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    assert to_picture(image).size == (7, 5)
    assert np.array_equal(np.asarray(to_picture(image)), image.permute(1, 2, 0).numpy())
    assert np.array_equal(np.asarray(to_picture(image / 255)), image.permute(1, 2, 0).numpy())
    with pytest.raises(DataError, match=r"\(5, 7\)"):
        to_picture(image[0])


def test_grids_hold_every_picture_in_order() -> None:
    colours = ["#ff0000", "#00ff00", "#0000ff", "#ffff00", "#00ffff"]
    pictures = [Image.new("RGB", (10, 8), colour) for colour in colours]
    grid = image_grid(pictures, columns=3, gap=2)
    assert grid.size == (34, 18)
    assert grid.getpixel((5, 4)) == (255, 0, 0)
    assert grid.getpixel((17, 14)) == (0, 255, 255)
    assert contact_sheet(pictures, list("abcde"), columns=5).size == (66, 24)
    with pytest.raises(DataError, match="no pictures"):
        image_grid([], 3)
