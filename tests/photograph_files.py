"""Photographs and their labels in SPIN's layout: every limb joint that is marked is a white dot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.config import PhotographsConfig
from posegen_ray.datasets.image_labels import SPIN_JOINT_NAMES

LIMBS = [SPIN_JOINT_NAMES.index(name) for name in LIMB_JOINT_NAMES]
SIZE = 400, 300  # of the pictures


def people(count: int) -> dict[str, np.ndarray]:
    """Labels in SPIN's layout, of pictures that `write` makes."""
    stream = np.random.default_rng(0)
    part = np.ones((count, 24, 3))
    part[..., :2] = stream.uniform((60, 40), (340, 260), (count, 24, 2)).round()
    return {
        "imgname": np.array([f"pictures/{number}.png" for number in range(count)]),
        "center": np.tile([190.0, 160.0], (count, 1)),
        "scale": np.full(count, 1.6),  # 320 pixels
        "part": part,
    }


def write(folder: Path, content: dict[str, np.ndarray]) -> PhotographsConfig:
    """The labels, and black pictures with a white square of 3 x 3 pixels at each limb joint."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for name, part in zip(content["imgname"], content["part"], strict=True):
        pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
        for x, y, seen in part[LIMBS].round().astype(int):
            if seen:
                pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
        Image.fromarray(pixels).save(folder / name)
    np.savez(folder / "labels.npz", **content)
    return PhotographsConfig([str(folder / "labels.npz")], [str(folder)])
