"""People whose joints are marked in pictures: MPII, and what else is in SPIN's npz or MPII's json.

    data_root/…               the pictures, by the names in the file
    dataset.labels=FILE       .npz of SPIN's preprocessing, or MPII's .json (train.json, valid.json)
    dataset.head_boxes=FILE   MPII's gt_valid.mat, optional: `headboxes_src` [2, 2, N] pixels, two
                              corners (x, y) a person, in the order of valid.json

What is measured in heads (PCKh) needs a head: MPII's own is 0.6 times the diagonal of its box;
without boxes it is the distance from the neck to the top of the head, as far as both are marked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.config import DatasetConfig
from posegen_ray.datasets.files import read_image, read_mat
from posegen_ray.datasets.image_labels import (
    SPIN_JOINT_NAMES,
    ImageLabels,
    read_mpii_json,
    read_spin_npz,
)
from posegen_ray.datasets.public.frames import (
    CROP,
    Box,
    Picture,
    missing_under,
    require_complete,
)
from posegen_ray.errors import ConfigError, DataError

SOURCE = (
    "The names are those in the file of labels; data_root is the folder that they start from. MPII "
    "is free for research at http://human-pose.mpi-inf.mpg.de."
)
_HEAD_BOX_SHARE = 0.6  # of a head box's diagonal (Andriluka et al. 2014)
_LIMBS = [SPIN_JOINT_NAMES.index(name) for name in LIMB_JOINT_NAMES]
_NECK, _TOP = SPIN_JOINT_NAMES.index("neck"), SPIN_JOINT_NAMES.index("head_top")


@dataclass(frozen=True)
class MarkedPerson(Picture):
    """A person in a picture, whose joints are marked in it."""

    joints_2d: np.ndarray  # [12, 2] pixels, LIMB_JOINT_NAMES
    visible: np.ndarray  # [12] bool: the joints that are marked
    head_length: float  # pixels


class KeypointSet:
    """Marked people, one after another; iterating reads their pictures.

    Attributes:
        title: for tables.
        left_out: how many people are not measured, by reason.
        boxes, crop_scale: as `PublicSet`; the file's boxes are crops.

    Raises:
        ConfigError: no folder or no file of labels is named.
        DataError: pictures are missing (all are listed), or a file is damaged.
    """

    boxes = CROP

    def __init__(self, root: str | Path, config: DatasetConfig) -> None:
        if not config.labels or not str(root):
            raise ConfigError(
                "No file of labels, or no folder of pictures, is named.",
                "Add dataset.labels=<npz or json> data_root=<folder>; see "
                "docs/public-test-sets.md.",
            )
        file = Path(config.labels)
        labels = read_mpii_json(file) if file.suffix == ".json" else read_spin_npz(file)
        self.title = f"2D keypoints of {file.name}"
        self.left_out: dict[str, int] = {}
        self._root, self._labels = Path(root), labels
        self.crop_scale = config.crop_scale
        self._heads = _head_lengths(labels, config.head_boxes)
        marked = (labels.keypoints[:, _LIMBS, 2] > 0).any(1).numpy()
        with_head = self._heads > 0
        for good, reason in ((with_head, "no head"), (marked | ~with_head, "no joint of a limb")):
            if not good.all():
                self.left_out[reason] = int((~good).sum())
        self._rows = np.flatnonzero(marked & with_head).tolist()
        missing = missing_under(self._root, (labels.images[row] for row in self._rows))
        require_complete(self.title, missing, SOURCE)

    def __len__(self) -> int:
        """How many people are measured."""
        return len(self._rows)

    def __iter__(self) -> Iterator[MarkedPerson]:
        """Reads their pictures.

        Raises:
            DataError: one is missing or damaged.
        """
        labels = self._labels
        for row in self._rows:
            name = labels.images[row]
            (x, y), half = labels.centre[row].tolist(), float(labels.side[row]) / 2
            points = labels.keypoints[row, _LIMBS].double().numpy()
            label = f"{self._root / name} (person {row})"
            yield MarkedPerson(
                label,
                read_image(self._root / name, label),
                Box(x - half, y - half, x + half, y + half),
                points[:, :2],
                points[:, 2] > 0,
                float(self._heads[row]),
            )


def _head_lengths(labels: ImageLabels, boxes: str) -> np.ndarray:  # [N] pixels, 0: not known
    if boxes:
        content = read_mat(Path(boxes), ["headboxes_src"])
        corners = np.asarray(content.get("headboxes_src", ()), np.float64)
        if corners.shape != (2, 2, len(labels)):
            raise DataError(
                f"{boxes}: headboxes_src has shape {corners.shape}, not {(2, 2, len(labels))} as "
                "the file of labels wants.",
                "MPII's gt_valid.mat belongs to its valid.json.",
            )
        diagonals: np.ndarray = np.linalg.norm(corners[1] - corners[0], axis=0)
        return _HEAD_BOX_SHARE * diagonals
    neck, top = labels.keypoints[:, _NECK], labels.keypoints[:, _TOP]
    marked = (neck[:, 2] > 0) & (top[:, 2] > 0)
    lengths: np.ndarray = ((neck - top)[:, :2].double().norm(dim=1) * marked).numpy()
    return lengths
