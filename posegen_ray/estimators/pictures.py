"""Crops of real pictures, cut by the person's box as an estimator's published evaluation cuts them.

Pixel (i, j) of a picture is at (i, j), as data sets count; in crops its middle is at (i + 0.5,
j + 0.5), as everywhere else. Knows nothing of networks and nothing of truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from posegen_ray.datasets.public.frames import AROUND_JOINTS, AROUND_PERSON, CROP, Box
from posegen_ray.errors import DataError
from posegen_ray.estimators.crop import CropSpec, PictureCrop


@dataclass(frozen=True)
class Cutting:
    """Where in a picture a square crop was cut, and how it was resampled."""

    corners: tuple[float, float, float, float]  # left, top, right, bottom in the picture
    size: int  # pixels of the crop
    sampled: bool  # crop pixel i shows the point left + i / size * side, not a cell around it

    def offset(self, width: int, height: int) -> tuple[float, float]:
        """From the middle of a picture of this size to the crop's, as a share of its side."""
        left, top, right, bottom = self.corners
        x, y = (left + right - width) / 2, (top + bottom - height) / 2
        return x / (right - left), y / (bottom - top)

    def in_picture(
        self,
        points: Tensor,  # [..., 2] pixels of the crop
    ) -> Tensor:  # [..., 2] pixels of the picture
        """Where in the picture points of the crop are."""
        start, end = points.new_tensor(self.corners).view(2, 2)
        in_crop, in_picture = self._shifts
        found: Tensor = start + (points - in_crop) / self.size * (end - start) - in_picture
        return found

    def in_crop(
        self,
        points: Tensor,  # [..., 2] pixels of the picture
    ) -> Tensor:  # [..., 2] pixels of the crop
        """Where in the crop points of the picture are."""
        start, end = points.new_tensor(self.corners).view(2, 2)
        in_crop, in_picture = self._shifts
        found: Tensor = (points + in_picture - start) / (end - start) * self.size + in_crop
        return found

    @property
    def _shifts(self) -> tuple[float, float]:
        """What is added to a place in the crop, and in the picture, before both are compared."""
        return (0.5, 0.0) if self.sampled else (0.0, 0.5)


def square(
    box: Box,
    boxes: str,  # what it is: frames.BOXES
    picture: PictureCrop,
    width: int,
    height: int,
    crop_scale: float | None = None,
) -> tuple[float, float, float, float]:  # left, top, right, bottom
    """The square that the estimator wants of a picture of this size.

    Args:
        crop_scale: its side / the longer side of the box; None: the estimator's own for such boxes.
    """
    scales = {AROUND_JOINTS: picture.about_joints, AROUND_PERSON: picture.about_person, CROP: 1.0}
    x = np.array([box.left, box.right])
    y = np.array([box.top, box.bottom])
    if picture.clipped and boxes != CROP:
        x, y = x.clip(0, width - 1), y.clip(0, height - 1)
    half = (scales[boxes] if crop_scale is None else crop_scale) * max(np.ptp(x), np.ptp(y)) / 2
    corners = x.mean() - half, y.mean() - half, x.mean() + half, y.mean() + half
    left, top, right, bottom = (float(c) if picture.sampled else float(int(c)) for c in corners)
    return left, top, right, bottom


def cut(
    pixels: np.ndarray,  # [H, W, 3] uint8 RGB
    box: Box,
    boxes: str,  # what it is: frames.BOXES
    spec: CropSpec,
    label: str,
    crop_scale: float | None = None,
) -> tuple[Tensor, Cutting]:  # [3, S, S] uint8
    """The crop of a person that an estimator wants, black beyond the picture's edges.

    Args:
        crop_scale: as in `square`.

    Raises:
        DataError: nothing of the picture is in the crop; `label` names the frame.
    """
    height, width = pixels.shape[:2]
    corners = square(box, boxes, spec.picture, width, height, crop_scale)
    left, top, right, bottom = corners
    inside = left < right and top < bottom and left < width and top < height
    if not (inside and right > 0 and bottom > 0):
        raise DataError(
            f"{label}: the person's box ({left:g}, {top:g}) to ({right:g}, {bottom:g}) shows "
            f"nothing of the {width} x {height} picture.",
            "Do pictures and annotations belong together?",
        )
    resample = _sampled if spec.picture.sampled else _averaged
    return resample(pixels, corners, spec.size), Cutting(corners, spec.size, spec.picture.sampled)


def _averaged(
    pixels: np.ndarray, corners: tuple[float, float, float, float], size: int
) -> Tensor:  # [3, S, S] uint8
    left, top, right, bottom = map(int, corners)
    part = Image.fromarray(pixels).crop((left, top, right, bottom))
    resized = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(resized.copy()).permute(2, 0, 1)


def _sampled(
    pixels: np.ndarray, corners: tuple[float, float, float, float], size: int
) -> Tensor:  # [3, S, S] uint8
    height, width = pixels.shape[:2]
    left, top, right, bottom = corners
    steps = torch.arange(size) / size
    x = (2 * (left + steps * (right - left)) + 1) / width - 1  # grid_sample's -1 to 1
    y = (2 * (top + steps * (bottom - top)) + 1) / height - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    picture = torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]
    return F.grid_sample(picture, grid, align_corners=False)[0].round().byte()
