"""The npz layout of SPIN (Kolotouros et al. 2019), which HMR's descendants read.

2D joints are pixels of the image as written, with our pixel centres at +0.5. The image is the
person's crop already, so the box is all of it: center = size / 2, scale = size / 200.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from posegen_ray.body.skeleton import JOINT, LIMB_JOINT_NAMES
from posegen_ray.datasets.formats.base import Dataset, ImageFolder, ImageFolderSet
from posegen_ray.datasets.formats.labels import (
    About,
    Array,
    Labels,
    axis_angles,
    seen_from_camera,
    smpl_shape,
)

# SPIN's 24 joints, those that our skeleton has; neck to ears are other points, and stay unlabelled
PART_JOINTS: tuple[str, ...] = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
    "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
)  # fmt: skip
# OpenPose's BODY_25 from its second on: those that SPIN computes as joints of SMPL's skeleton
OPENPOSE_JOINTS: tuple[str, ...] = (
    "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow",
    "left_wrist", "pelvis", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee",
    "left_ankle",
)  # fmt: skip


class SpinFormat(ImageFolder):
    """spin.npz and images/.

    pose's root is camera <- body. S is centred between the hips, in camera axes; its fourth column
    is the confidence, as the third of part and openpose. has_smpl is 0 and shape zero where the
    body isn't SMPL: pose then holds the rotations of the common skeleton, which SPIN leaves unread.
    """

    file = "spin.npz"

    def fields(self, names: list[str], labels: Labels, about: About) -> dict[str, Array]:
        count = len(labels)
        hips = labels.joints[:, [JOINT["left_hip"], JOINT["right_hip"]]].mean(1, keepdims=True)
        return {
            "imgname": np.array(names),
            "center": np.full((count, 2), about.size / 2, np.float32),
            "scale": np.full(count, about.size / 200, np.float32),
            "pose": axis_angles(seen_from_camera(labels)),
            "shape": smpl_shape(labels, about),
            "has_smpl": np.full(count, float(about.is_smpl), np.float32),
            "part": _placed(labels.joints_2d, PART_JOINTS, 0, 24),
            "openpose": _placed(labels.joints_2d, OPENPOSE_JOINTS, 1, 25),
            "S": _placed(labels.joints - hips, PART_JOINTS, 0, 24),
            "gender": np.full(count, about.gender[0]),
        }

    def open(self, folder: Path) -> Dataset:
        joints = ("part", [PART_JOINTS.index(name) for name in LIMB_JOINT_NAMES])
        return ImageFolderSet(folder / self.file, "imgname", joints, ())


def _placed(
    joints: Array,  # [N, 24, D]
    names: tuple[str, ...],
    first: int,
    count: int,
) -> Array:  # [N, count, D + 1]
    """Joints in another order, from its row `first` on, with confidence 1; other rows are zero."""
    placed = np.zeros((len(joints), count, joints.shape[2] + 1), np.float32)
    rows = slice(first, first + len(names))
    placed[:, rows, :-1] = joints[:, [JOINT[name] for name in names]]
    placed[:, rows, -1] = 1
    return placed
