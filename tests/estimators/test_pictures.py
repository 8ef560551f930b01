"""Crops of real pictures, cut by hand and by scipy as SPIN's and HybrIK's evaluations cut them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from posegen_ray.compose import compose_config
from posegen_ray.datasets.public import Box
from posegen_ray.errors import DataError
from posegen_ray.estimators.blazepose import BlazePose
from posegen_ray.estimators.crop import HYBRIK_CROP, SPIN_CROP
from posegen_ray.estimators.pictures import cut, square
from posegen_ray.estimators.registry import crop_spec

WIDTH, HEIGHT = 640, 480
INSIDE = Box(100, 50, 200, 250)  # about (150, 150), 200 long
BEYOND = Box(-60, 100, 90, 700)  # its part in the picture: (0, 100) to (90, 479)


@pytest.mark.parametrize(
    ("picture", "box", "boxes", "scale", "corners"),
    [
        (SPIN_CROP.picture, INSIDE, "joints", None, (30, 30, 270, 270)),  # 1.2 x 200
        (HYBRIK_CROP.picture, INSIDE, "joints", None, (25, 25, 275, 275)),  # 1.25 x 200
        (SPIN_CROP.picture, INSIDE, "person", None, (60, 60, 240, 240)),  # 0.9 x 200
        (HYBRIK_CROP.picture, INSIDE, "person", None, (50, 50, 250, 250)),  # 1 x 200
        (HYBRIK_CROP.picture, INSIDE, "joints", 1.5, (0, 0, 300, 300)),
        # about (15, 400), 600 long: half a side is 360
        (SPIN_CROP.picture, BEYOND, "joints", None, (-345, 40, 375, 760)),
        # about (45, 289.5), 379 long: half a side is 236.875
        (HYBRIK_CROP.picture, BEYOND, "joints", None, (-191.875, 52.625, 281.875, 526.375)),
        # the file's own crop: about (15, 400), 600 long
        (HYBRIK_CROP.picture, BEYOND, "crop", None, (-285, 100, 315, 700)),
        # cut to whole pixels towards zero: from (-0.6, 0.4) to (2.6, 3.6)
        (
            replace(SPIN_CROP.picture, about_joints=1.6),
            Box(0, 1, 2, 3),
            "joints",
            None,
            (0, 0, 2, 3),
        ),
    ],
)
def test_squares_by_hand(picture, box, boxes, scale, corners):
    assert square(box, boxes, picture, WIDTH, HEIGHT, scale) == pytest.approx(corners)


def test_every_estimator_says_its_own_before_it_is_loaded():
    def of(*overrides: str):
        return crop_spec(compose_config(list(overrides)).estimator).picture

    assert of("estimator=spin") == SPIN_CROP.picture
    assert of("estimator=hybrik_res34") == of("estimator=hybrik_w48") == HYBRIK_CROP.picture
    assert of("estimator=blazepose") == BlazePose.crop.picture
    box = ["estimator=black_box", "estimator.target=a:b"]
    assert of(*box, "estimator.crop_scale=1.4").about_joints == 1.4


def test_hybriks_pixels_are_bilinear_samples_as_warp_affine_takes_them():
    """Crop pixel i shows the picture's point left + i / size * side; black beyond the picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    crop, cutting = cut(pixels, BEYOND, "joints", HYBRIK_CROP, "here")
    left, top, right, bottom = cutting.corners
    steps = np.arange(256) / 256
    rows, columns = np.meshgrid(
        top + steps * (bottom - top), left + steps * (right - left), indexing="ij"
    )
    expected = [
        map_coordinates(pixels[..., channel].astype(float), [rows, columns], order=1)
        for channel in range(3)
    ]
    assert np.abs(crop.numpy() - np.array(expected)).max() < 0.6
    assert crop[:, :, 0].max() == 0
    assert crop[:, :, 200].max() > 0


def test_spins_pixels_are_averages_and_black_beyond_the_picture():
    pixels = np.full((40, 60, 3), 200, np.uint8)
    pixels[:, 30:] = 100
    spec = replace(SPIN_CROP, size=30, picture=replace(SPIN_CROP.picture, about_joints=1.5))
    crop, cutting = cut(pixels, Box(20, 10, 40, 50), "joints", spec, "here")
    assert cutting.corners == (0, 0, 60, 60)
    assert crop.shape == (3, 30, 30)
    assert crop[:, 5, 5].tolist() == [200] * 3
    assert crop[:, 5, 25].tolist() == [100] * 3
    assert crop[:, 25].max() == 0


@pytest.mark.parametrize("spec", [SPIN_CROP, HYBRIK_CROP])
def test_a_person_beside_the_picture_is_an_error(spec):
    pixels = np.zeros((40, 60, 3), np.uint8)
    with pytest.raises(DataError, match=r"here: the person's box .* shows nothing"):
        cut(pixels, Box(100, 100, 120, 140), "joints", spec, "here")


@pytest.mark.parametrize(("spec", "side"), [(SPIN_CROP, 60), (HYBRIK_CROP, 62.5)])
def test_points_of_the_crop_are_found_again_in_the_picture(spec, side):
    """A white pixel, from its place in the crop."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[131, 117] = 255
    box = Box(90, 110, 140, 150)  # about (115, 130): the crop is finer than the picture
    crop, cutting = cut(pixels, box, "joints", spec, "here")
    light = crop[0].double()
    cells = torch.arange(spec.size) + 0.5
    middle = torch.stack([(light.sum(0) * cells).sum(), (light.sum(1) * cells).sum()])
    found = cutting.in_picture(middle / light.sum())
    assert found.tolist() == pytest.approx([117, 131], abs=0.01)
    assert cutting.offset(WIDTH, HEIGHT) == pytest.approx((-205 / side, -110 / side))
