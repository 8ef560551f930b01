"""The common skeleton: SMPL's 24 joints, its tree, and the joint sets that are derived from it.

Left and right are the person's own.
"""

from __future__ import annotations

JOINT_NAMES: tuple[str, ...] = (
    "pelvis",
    "left_hip",
    "right_hip",
    "spine1",
    "left_knee",
    "right_knee",
    "spine2",
    "left_ankle",
    "right_ankle",
    "spine3",
    "left_foot",
    "right_foot",
    "neck",
    "left_collar",
    "right_collar",
    "head",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hand",
    "right_hand",
)
NUM_JOINTS = len(JOINT_NAMES)
JOINT = {name: index for index, name in enumerate(JOINT_NAMES)}

# parent of each joint; -1 for the root. Parents always come before their children.
PARENTS: tuple[int, ...] = (
    -1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21,
)  # fmt: skip

# the 12 limb joints that errors are measured on (shoulders to wrists, hips to ankles)
LIMB_JOINT_NAMES: tuple[str, ...] = (
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
LIMB_JOINTS: tuple[int, ...] = tuple(JOINT[name] for name in LIMB_JOINT_NAMES)


# the 17 joints that SPIN's J_regressor_h36m makes of SMPL's vertices, in its rows' order
H36M_JOINT_NAMES: tuple[str, ...] = (
    "pelvis",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_hip",
    "right_knee",
    "right_ankle",
    "spine",
    "neck",
    "jaw",
    "head_top",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
)
# 14 of them, named and ordered as in the Leeds Sports Poses: what 3DPW and Human3.6M report on
LSP_JOINT_NAMES: tuple[str, ...] = tuple(
    H36M_JOINT_NAMES[row] for row in (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10)
)


def mirrored(names: tuple[str, ...]) -> tuple[int, ...]:
    """Index of each name's left/right counterpart (itself for joints on the midline)."""

    def other(name: str) -> str:
        if name.startswith("left_"):
            return "right_" + name[5:]
        if name.startswith("right_"):
            return "left_" + name[6:]
        return name

    return tuple(names.index(other(name)) for name in names)


# the skeleton drawn as lines between the 12 limb joints (indices into LIMB_JOINT_NAMES)
LIMB_EDGES: tuple[tuple[int, int], ...] = (
    (0, 1), (0, 2), (2, 4), (1, 3), (3, 5), (0, 6), (1, 7), (6, 7), (6, 8), (8, 10), (7, 9),
    (9, 11),
)  # fmt: skip
