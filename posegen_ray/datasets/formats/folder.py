"""Images and labels as simple files: images/*.png and labels.npz, readable by anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from posegen_ray.body.skeleton import LIMB_JOINTS
from posegen_ray.datasets.formats.base import Dataset, ImageFolder, ImageFolderSet
from posegen_ray.datasets.formats.labels import About, Array, Labels


class FolderFormat(ImageFolder):
    """labels.npz holds every field of `Labels`, image names, and the camera in its parts."""

    def fields(self, names: list[str], labels: Labels, about: About) -> dict[str, Array]:
        return {
            "image": np.array(names),
            **labels.arrays(),
            "camera_rotation": labels.extrinsics[:, :3, :3],
            "camera_translation": labels.extrinsics[:, :3, 3],
            "camera_focal": labels.intrinsics[:, 0, 0],
            "camera_principal": labels.intrinsics[:, :2, 2],
        }

    def open(self, folder: Path) -> Dataset:
        joints = ("joints_2d", list(LIMB_JOINTS))
        return ImageFolderSet(folder / self.file, "image", joints, ("subject", "clip"))
