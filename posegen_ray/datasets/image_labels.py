"""Training labels of photographs: SPIN's npz files, and 2D keypoints in MPII's and COCO's json.

All become one record, with SPIN's 24 joints; what a file does not state has confidence 0. Knows
nothing of pictures beyond their names.

Legend: N people in pictures.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import LSP_JOINT_NAMES, NUM_JOINTS
from posegen_ray.errors import DataError

# SPIN's `part` and `S`: the joints of the Leeds Sports Poses, MPII, Human3.6M and COCO. Its jaw and
# spine are Human3.6M's; `head` is that data set's top of the head
SPIN_JOINT_NAMES: tuple[str, ...] = (
    *LSP_JOINT_NAMES,
    "pelvis",
    "thorax",
    "spine",
    "jaw",
    "head",
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
)
OPENPOSE_JOINTS = 25
# where the joints of MPII and COCO are among SPIN's, in these files' own orders
_MPII = [0, 1, 2, 3, 4, 5, 14, 15, 12, 13, 6, 7, 8, 9, 10, 11]
_COCO = [19, 20, 21, 22, 23, 9, 8, 10, 7, 11, 6, 3, 2, 4, 1, 5, 0]
_BOX_SCALE = 1.2  # of COCO's boxes
_BODY_KEYPOINTS = 12  # of COCO's, without the face: a person needs all of them
_PIXELS = 200  # what `scale` counts in
_GENDERS = {"m": "male", "f": "female"}


@dataclass(frozen=True)
class ImageLabels:
    """What is known of people in pictures."""

    images: tuple[str, ...]  # N names, relative to the data set's folder
    centre: Tensor  # [N, 2] pixels, of the square crop
    side: Tensor  # [N] pixels
    keypoints: Tensor  # [N, 24, 3] x, y in pixels, confidence; SPIN_JOINT_NAMES
    openpose: Tensor  # [N, 25, 3] x, y in pixels, confidence; OpenPose's BODY_25
    joints: Tensor  # [N, 24, 4] metres in camera axes, confidence; SPIN_JOINT_NAMES
    rotations: Tensor  # [N, 24, 3, 3] local, the root's in camera axes; identity where unknown
    shape: Tensor  # [N, 10]
    has_smpl: Tensor  # [N] bool: rotations and shape are known
    genders: tuple[str, ...]  # N: neutral (also: not stated), male or female

    def __len__(self) -> int:
        return len(self.images)


def read_labels(path: Path) -> ImageLabels:
    """Labels in any of these layouts: an npz file is SPIN's, a json list MPII's, else COCO's.

    Raises:
        DataError: it is missing, damaged, or none of them.
    """
    if path.suffix == ".npz":
        return read_spin_npz(path)
    if path.suffix != ".json":
        raise DataError(
            f"{path} is no file of labels.", "It is SPIN's .npz, or MPII's or COCO's .json."
        )
    content = _json(path)
    return _mpii(content, path) if isinstance(content, list) else _coco(content, path)


def read_spin_npz(path: Path) -> ImageLabels:
    """A file of SPIN's `datasets/preprocess`, for training or for testing.

    Raises:
        DataError: it is missing, damaged, or no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing.", "Make it with SPIN's preprocessing.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read as an npz file ({type(error).__name__}: {error}).",
            "Is it complete, and without Python objects?",
        ) from error
    missing = [name for name in ("imgname", "center", "scale") if name not in content]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}.", "Is it an npz file of SPIN?")
    count = len(content["imgname"])

    def field(name: str, *shape: int) -> Tensor:
        if name not in content:
            return torch.zeros(count, *shape)
        if content[name].shape != (count, *shape):
            raise DataError(
                f"{path}: {name} has shape {content[name].shape}, not {(count, *shape)}.",
                "Is it an npz file of SPIN?",
            )
        return torch.from_numpy(np.asarray(content[name], np.float32))

    known = "pose" in content and "shape" in content
    has_smpl = torch.full((count,), known)
    if known and "has_smpl" in content:
        has_smpl = field("has_smpl") > 0
    angles = field("pose", 3 * NUM_JOINTS).view(count, NUM_JOINTS, 3)
    genders = content.get("gender", np.full(count, ""))
    return ImageLabels(
        images=tuple(str(name) for name in content["imgname"]),
        centre=field("center", 2),
        side=_PIXELS * field("scale"),
        keypoints=field("part", len(SPIN_JOINT_NAMES), 3),
        openpose=field("openpose", OPENPOSE_JOINTS, 3),
        joints=field("S", len(SPIN_JOINT_NAMES), 4),
        rotations=from_axis_angle(angles),
        shape=field("shape", 10),
        has_smpl=has_smpl,
        genders=tuple(_GENDERS.get(str(gender), "neutral") for gender in genders),
    )


def read_mpii_json(path: Path) -> ImageLabels:
    """MPII's keypoints as Xiao et al. (2018) and HRNet publish them: train.json, valid.json.

    The file counts pixels from 1; here they are counted from 0. As there, the crop is lowered by 15
    and widened to 1.25 times `scale`, so that it holds the feet.

    Raises:
        DataError: it is missing, damaged, or no such file.
    """
    return _mpii(_json(path), path)


def _mpii(people: Any, path: Path) -> ImageLabels:
    try:
        images = tuple(str(person["image"]) for person in people)
        centre = np.array([person["center"] for person in people], np.float64).reshape(-1, 2)
        scale = np.array([person["scale"] for person in people], np.float64)
        points = np.array([person["joints"] for person in people], np.float64)
        seen = np.array([person["joints_vis"] for person in people], np.float64)
        keypoints = np.zeros((len(people), len(SPIN_JOINT_NAMES), 3))
        keypoints[:, _MPII, :2] = (points.reshape(-1, 16, 2) - 1) * (seen[..., None] > 0)
        keypoints[:, _MPII, 2] = seen > 0
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{path} is no list of MPII's people ({type(error).__name__}: {error}).",
            "Each has image, center, scale, joints [16, 2] and joints_vis [16].",
        ) from error
    centre[:, 1] += 15 * scale
    return _keypoints_only(images, centre - 1, 1.25 * _PIXELS * scale, keypoints)


def read_coco_json(path: Path) -> ImageLabels:
    """COCO's person_keypoints_*.json: people whose 12 joints of limbs are all annotated.

    Raises:
        DataError: it is missing, damaged, or no such file.
    """
    return _coco(_json(path), path)


def _coco(content: Any, path: Path) -> ImageLabels:
    images, centres, sides, parts = [], [], [], []
    try:
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        for person in content["annotations"]:
            points = np.array(person["keypoints"], np.float64).reshape(17, 3)
            seen = points[:, 2] > 0
            if seen[-_BODY_KEYPOINTS:].sum() < _BODY_KEYPOINTS:
                continue
            part = np.zeros((len(SPIN_JOINT_NAMES), 3))
            part[_COCO] = np.column_stack([points[:, :2] * seen[:, None], seen])
            left, top, width, height = person["bbox"]
            images.append(names[person["image_id"]])
            centres.append([left + width / 2, top + height / 2])
            sides.append(_BOX_SCALE * max(width, height))
            parts.append(part)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is no file of COCO's keypoints ({type(error).__name__}: {error}).",
            "It has images, and annotations with keypoints [51], bbox and image_id.",
        ) from error
    keypoints = np.array(parts).reshape(-1, len(SPIN_JOINT_NAMES), 3)
    return _keypoints_only(
        tuple(images), np.array(centres).reshape(-1, 2), np.array(sides), keypoints
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing.", "Is the download complete?") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}).", "Download it again.") from error


def _keypoints_only(
    images: tuple[str, ...], centre: np.ndarray, side: np.ndarray, keypoints: np.ndarray
) -> ImageLabels:
    count = len(images)
    return ImageLabels(
        images=images,
        centre=torch.from_numpy(centre).float(),
        side=torch.from_numpy(side).float(),
        keypoints=torch.from_numpy(keypoints).float(),
        openpose=torch.zeros(count, OPENPOSE_JOINTS, 3),
        joints=torch.zeros(count, len(SPIN_JOINT_NAMES), 4),
        rotations=torch.eye(3).repeat(count, NUM_JOINTS, 1, 1),
        shape=torch.zeros(count, 10),
        has_smpl=torch.zeros(count, dtype=torch.bool),
        genders=("neutral",) * count,
    )
