"""What every public test set gives: pictures, the person's box, and what is true of the person.

Metres, camera axes (x right, y down, z forward) of the picture. Knows nothing of estimators and
nothing of SMPL's files: a truth that is an SMPL pose stays one.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

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
_LISTED = 3  # missing pictures of a folder that an error names


@dataclass(frozen=True)
class Box:
    """An upright square of a picture, in pixels; pixel (i, j) is at (i, j)."""

    centre: tuple[float, float]  # x, y
    side: float

    def corners(self) -> tuple[int, int, int, int]:  # left, top, right, bottom
        """Cut to whole pixels (towards zero), as SPIN's preprocessing does."""
        (x, y), half = self.centre, self.side / 2
        return int(x - half), int(y - half), int(x + half), int(y + half)

    def offset(self, width: int, height: int) -> tuple[float, float]:
        """From the middle of a picture of this size to the box's, as a share of the box's side."""
        left, top, right, bottom = self.corners()
        x, y = (left + right - width) / 2, (top + bottom - height) / 2
        return x / (right - left), y / (bottom - top)


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
    """

    title: str
    root = "pelvis"
    states_joints = True

    def __init__(self, config: DatasetConfig) -> None:
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
    scale: float,
) -> Box:
    """The square about the middle of the points' bounds, `scale` times as long as these."""
    low, high = points.min(0), points.max(0)
    centre = (low + high) / 2
    return Box((float(centre[0]), float(centre[1])), scale * float((high - low).max()))


def cropped(
    pixels: np.ndarray,  # [H, W, 3] uint8
    box: Box,
    size: int,
    label: str,
) -> Tensor:  # [3, S, S] uint8
    """The box's part of a picture, black beyond its edges, resampled bilinearly with averaging.

    Raises:
        DataError: nothing of the picture is in the box; `label` names the frame.
    """
    height, width = pixels.shape[:2]
    left, top, right, bottom = box.corners()
    inside = left < right and top < bottom and left < width and top < height
    if not (inside and right > 0 and bottom > 0):
        raise DataError(
            f"{label}: the person's box ({left}, {top}) to ({right}, {bottom}) shows nothing of "
            f"the {width} x {height} picture.",
            "Do pictures and annotations belong together?",
        )
    part = Image.fromarray(pixels).crop((left, top, right, bottom))
    resized = np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(resized.copy()).permute(2, 0, 1)


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


def require_complete(title: str, missing: Sequence[str], source: str) -> None:
    """Raises DataError with the whole list unless nothing is missing.

    Args:
        source: where the files come from, and under which terms.
    """
    if missing:
        lines = "".join(f"\n  {item}" for item in missing)
        raise DataError(f"{title} is incomplete; missing:{lines}", f"\n{source}")
