"""What every public test set gives: pictures, the person's box, and what is true of the person.

Metres, camera axes (x right, y down, z forward) of the picture. Knows nothing of estimators, whose
crops are cut elsewhere, and nothing of SMPL's files: a truth that is an SMPL pose stays one.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posegen_ray.body.skeleton import (
    H36M_JOINT_NAMES,
    JOINT_NAMES,
    LIMB_JOINT_NAMES,
    LSP_JOINT_NAMES,
)
from posegen_ray.config import DatasetConfig
from posegen_ray.errors import DataError

# by the names of posegen_ray.config.JOINT_SETS
JOINT_SETS: dict[str, tuple[str, ...]] = {
    "lsp14": LSP_JOINT_NAMES,
    "h36m17": (*LSP_JOINT_NAMES, "pelvis", "spine", "jaw"),
    "smpl24": JOINT_NAMES,
    "limbs12": LIMB_JOINT_NAMES,
}
# what a box is: that of the 2D joints, a wider one that the data set states, or the crop itself
AROUND_JOINTS, AROUND_PERSON, CROP = BOXES = ("joints", "person", "crop")
_LISTED = 3  # missing pictures of a folder that an error names


@dataclass(frozen=True)
class Box:
    """The part of a picture that a person takes up, in pixels; pixel (i, j) is at (i, j)."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class SmplPose:
    """A person as SMPL's parameters."""

    rotations: np.ndarray  # [24, 3, 3] local; the root's in camera axes
    shape: np.ndarray  # [10]
    gender: str  # neutral | female | male


@dataclass(frozen=True)
class Picture:
    """One person in one picture."""

    label: str  # the file and the frame (and the person)
    pixels: np.ndarray  # [H, W, 3] uint8 RGB
    box: Box


@dataclass(frozen=True)
class Frame(Picture):
    """A picture whose truth is known in 3D."""

    sequence: str
    joints: np.ndarray | None  # [J, 3] metres, in the order of the set's joint_names
    smpl: SmplPose | None


class PublicSet(ABC):
    """A test set: iterating reads its pictures one by one, in a fixed order.

    Attributes:
        title: for tables, e.g. "3DPW test".
        joint_names: the joints that the truth has.
        root: the joint that is at zero for MPJPE.
        measured: the joints that errors are taken over.
        states_joints: frames have joints; else these are those of their SMPL poses.
        genders: of the SMPL poses; empty where there are none.
        left_out: how many frames the protocol leaves out, by reason.
        boxes: what the frames' boxes are (BOXES).
        crop_scale: a crop's side / the longer side of its box; None: the estimator's own.
    """

    title: str
    root = "pelvis"
    states_joints = True
    boxes = AROUND_JOINTS

    def __init__(self, config: DatasetConfig) -> None:
        self.crop_scale = config.crop_scale
        self.measured = JOINT_SETS[config.joints]
        self.joint_names = JOINT_NAMES if config.joints == "smpl24" else H36M_JOINT_NAMES
        self.genders: tuple[str, ...] = ()
        self.left_out: dict[str, int] = {}

    @abstractmethod
    def __len__(self) -> int:
        """How many frames the protocol measures."""

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Reads the frames.

        Raises:
            DataError: a picture is missing or damaged; file and frame are named.
        """

    def _leave_out(self, reason: str, count: int = 1) -> None:
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count


def box_around(
    points: np.ndarray,  # [P, 2] pixels
) -> Box:
    """The points' bounds."""
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    return Box(left, top, right, bottom)


def missing_pictures(folder: Path, names: Iterable[str]) -> list[str]:
    """What a folder lacks, in words; empty when it has all of the files."""
    if not folder.is_dir():
        return [str(folder)]
    there = set(os.listdir(folder))
    lacking = [name for name in names if name not in there]
    if not lacking:
        return []
    more = f" and {len(lacking) - _LISTED} more" if len(lacking) > _LISTED else ""
    return [f"{folder}: {', '.join(lacking[:_LISTED])}{more}"]


def missing_under(root: Path, names: Iterable[str]) -> list[str]:
    """What is missing of files named from one folder on, in words: an item for each folder."""
    folders: dict[Path, list[str]] = {}
    for name in set(names):
        folders.setdefault((root / name).parent, []).append(Path(name).name)
    return [m for at in sorted(folders) for m in missing_pictures(at, sorted(folders[at]))]


def require_complete(title: str, missing: Sequence[str], source: str) -> None:
    """Raises DataError with the whole list unless nothing is missing.

    Args:
        source: where the files come from, and under which terms.
    """
    if missing:
        lines = "".join(f"\n  {item}" for item in missing)
        raise DataError(f"{title} is incomplete; missing:{lines}", f"\n{source}")
