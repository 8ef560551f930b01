"""SURREAL (Varol et al. 2017): people rendered by Blender, in clips of up to 100 frames.

    <clip>_info.mat   pose [72, T], shape [10, T], joints2D [2, 24, T], joints3D [3, 24, T] in
                      metres, zrot [T], camLoc [3], gender [T] (0 female, 1 male)
    <clip>.mp4        T frames of 320 x 240
    <clip>_segm.mat   segm_1 … segm_T [240, 320]: body part, 0 where there is none

The person: the root's rotation in the world is Rx(90 degrees) Rz(zrot) R(pose[:3]), and the pelvis
is joints3D's first; -y is up. The camera: 60 mm lens on a 32 mm sensor (f = 600 pixels), middle of
the picture, at camLoc.

**The pictures are mirror images.** The camera matrix of the published generation and projection
code has determinant -1, so what it draws has left and right exchanged (the authors' notes and
users' reports say the same of joints2D). No rotation describes such a camera; whoever reads a
picture mirrors it back, and `CAMERA_ROTATION` is of the pictures mirrored back. joints2D are whole
numbers, y down, of the pictures as they are.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from posegen_ray.body.rotation import about_axis
from posegen_ray.datasets.files import read_mat
from posegen_ray.errors import DataError

LICENCE = "SURREAL: the terms at https://www.di.ens.fr/willow/research/surreal/data/license.html"
HEIGHT, WIDTH = 240, 320
FOCAL = 60 / 32 * WIDTH  # pixels
# world -> camera of the pictures mirrored back: the first row is the published one's negative
CAMERA_ROTATION = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
_GENDERS = {0.0: "female", 1.0: "male"}


def read_info(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an _info.mat, float64, with the frames on the last axis.

    Returns:
        pose [72, T], shape [10, T], joints2D [2, 24, T], joints3D [3, 24, T] metres, zrot [T],
        camLoc [3], gender [T].

    Raises:
        DataError: it is missing or damaged, or its arrays are of different lengths.
    """
    content = read_mat(path)
    tails = {"pose": (72,), "shape": (10,), "joints2D": (2, 24), "joints3D": (3, 24)}
    missing = [name for name in (*tails, "zrot", "camLoc", "gender") if name not in content]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}.", "Is it an _info.mat of SURREAL?")
    info = {name: np.asarray(content[name], np.float64) for name in tails}
    for name, tail in tails.items():
        if info[name].shape == tail:  # a clip of one frame
            info[name] = info[name][..., None]
    count = info["pose"].shape[-1]
    for name, tail in tails.items():
        if info[name].shape != (*tail, count):
            raise DataError(
                f"{path}: {name} has shape {info[name].shape} instead of {(*tail, count)}.",
                "All arrays must describe the same frames.",
            )
    for name, size in (("zrot", count), ("gender", count), ("camLoc", 3)):
        info[name] = np.asarray(content[name], np.float64).ravel()
        if info[name].size != size:
            raise DataError(
                f"{path}: {name} has {info[name].size} numbers instead of {size}.",
                "All arrays must describe the same frames.",
            )
    return info


def upright(zrot: float) -> Tensor:  # [3, 3] float64
    """What the clip's root rotations are turned by in its world (-y up)."""
    lie = about_axis(0, torch.tensor(math.pi / 2, dtype=torch.float64))
    return lie @ about_axis(2, torch.tensor(zrot, dtype=torch.float64))


def gender_of(path: Path, numbers: np.ndarray) -> str:
    """female or male: a clip is of one person.

    Raises:
        DataError: the numbers say anything else.
    """
    name = _GENDERS.get(float(numbers[0]))
    if name is None or (numbers != numbers[0]).any():
        raise DataError(
            f"{path}: gender is {sorted(set(numbers.tolist()))}.", "All 0 (female) or 1 (male)."
        )
    return name
