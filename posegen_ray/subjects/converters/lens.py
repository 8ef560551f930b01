"""Cameras of data sets -> pictures of a camera that `Camera` can describe: one focal length, no
skew, no lens distortion.

Pixel coordinates have pixel centres at +0.5 throughout, as everywhere in this package.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

_MOVED = 0.01  # pixels: pictures whose pixels would all move by less stay as they are
_ORDERS = (0, 4, 5, 8)  # lengths that a vector of distortion coefficients may have


@dataclass(frozen=True)
class Lens:
    """A camera's intrinsics.

    Attributes:
        matrix: [3, 3] K: pixel = K @ (x/z, y/z, 1), pixel centres at +0.5.
        distortion: [0, 4, 5 or 8] OpenCV's k1, k2, p1, p2, k3, k4, k5, k6; empty: none.
    """

    matrix: np.ndarray
    distortion: np.ndarray

    @property
    def focal(self) -> float:
        """Of the rectified picture, pixels."""
        return float(self.matrix[0, 0] + self.matrix[1, 1]) / 2

    @property
    def principal(self) -> np.ndarray:  # [2] pixels (x, y)
        """Of the rectified picture."""
        return np.asarray(self.matrix[:2, 2])


def opencv_lens(matrix: np.ndarray, distortion: np.ndarray | None = None) -> Lens:
    """The lens of an OpenCV calibration, whose K has pixel centres at whole numbers."""
    shifted = np.array(matrix, dtype=np.float64)
    if shifted.shape == (3, 3):
        shifted[:2] += 0.5 * shifted[2]
    return Lens(shifted, np.zeros(0) if distortion is None else np.ravel(distortion))


def fault(lens: Lens, height: int, width: int) -> str:
    """What is wrong with a lens, in words; empty: nothing."""
    matrix = np.asarray(lens.matrix)
    if matrix.shape != (3, 3):
        return f"K has shape {matrix.shape} instead of (3, 3)"
    if not np.isfinite(matrix).all():
        return "K holds NaN or infinite values"
    if np.abs(matrix[[1, 2, 2], [0, 0, 1]]).max() > 1e-6 or abs(matrix[2, 2] - 1) > 1e-6:
        return "K is not upper triangular with a 1 at its end"
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        return f"K has focal lengths {matrix[0, 0]:g} and {matrix[1, 1]:g}, not positive ones"
    x, y = matrix[:2, 2]
    if not (0 <= x <= width and 0 <= y <= height):
        return (
            f"K has its principal point ({x:g}, {y:g}) outside the picture of "
            f"{width} x {height} pixels"
        )
    if lens.distortion.shape not in [(order,) for order in _ORDERS]:
        return f"the distortion has {lens.distortion.size} coefficients instead of 4, 5 or 8"
    if not np.isfinite(lens.distortion).all():
        return "the distortion holds NaN or infinite values"
    return ""


def rectify(
    lens: Lens,
    pixels: np.ndarray,  # [H, W, 3] uint8
    mask: np.ndarray,  # [H, W] uint8
) -> tuple[np.ndarray, np.ndarray]:
    """The picture and mask of a camera with `lens.focal` and `lens.principal`, same size.

    Bilinear; beyond the source's edge the mask is empty. Pictures that need no change are returned
    unchanged, not resampled.
    """
    height, width = mask.shape
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    source_x, source_y = distorted(lens, x, y)
    if max(np.abs(source_x - x).max(), np.abs(source_y - y).max()) < _MOVED:
        return pixels, mask
    places = np.stack([source_y - 0.5, source_x - 0.5])
    channels = [
        ndimage.map_coordinates(pixels[..., c].astype(np.float32), places, order=1, mode="nearest")
        for c in range(3)
    ]
    soft = ndimage.map_coordinates(mask.astype(np.float32), places, order=1, mode="constant")
    return np.stack(channels, -1).round().astype(np.uint8), soft.round().astype(np.uint8)


def distorted(
    lens: Lens,
    x: np.ndarray,  # [...] pixels of the rectified picture
    y: np.ndarray,  # [...]
) -> tuple[np.ndarray, np.ndarray]:
    """Where the lens puts what the rectified picture shows at (x, y). OpenCV's model."""
    u = (x - lens.principal[0]) / lens.focal
    v = (y - lens.principal[1]) / lens.focal
    k1, k2, p1, p2, k3, k4, k5, k6 = np.pad(lens.distortion, (0, 8 - lens.distortion.size))
    square = u * u + v * v
    radial = (1 + square * (k1 + square * (k2 + square * k3))) / (
        1 + square * (k4 + square * (k5 + square * k6))
    )
    bent_u = u * radial + 2 * p1 * u * v + p2 * (square + 2 * u * u)
    bent_v = v * radial + 2 * p2 * u * v + p1 * (square + 2 * v * v)
    (fx, skew, cx), (_, fy, cy), _ = lens.matrix
    return fx * bent_u + skew * bent_v + cx, fy * bent_v + cy
