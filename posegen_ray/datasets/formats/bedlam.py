"""The npz layout of BEDLAM (Black et al. 2023), in its SMPL variant.

A body model turns about its pelvis p, not about its origin, so the two translations differ by more
than the camera's rotation R: with camera = R world + t,

    joints in the world  = model(pose_world, shape) + trans_world
    joints in the camera = model(pose_cam, shape) + trans_cam + t,
                           trans_cam = R (p + trans_world) - p,   cam_ext = [R t]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from posegen_ray.body.skeleton import LIMB_JOINTS
from posegen_ray.datasets.formats.base import Dataset, ImageFolder, ImageFolderSet
from posegen_ray.datasets.formats.labels import (
    About,
    Array,
    Labels,
    axis_angles,
    seen_from_camera,
    smpl_shape,
)


class BedlamFormat(ImageFolder):
    """bedlam.npz and images/.

    Two fields are ours: joints_cam, and has_smpl, which is 0 where the body isn't SMPL. Then shape
    is zero, poses and translations are those of the common skeleton, and joints_cam and gtkps are
    the labels to train on. proj_verts is not written.
    """

    file = "bedlam.npz"

    def fields(self, names: list[str], labels: Labels, about: About) -> dict[str, Array]:
        count = len(labels)
        rotation = labels.extrinsics[:, :3, :3].astype(float)
        offset = labels.extrinsics[:, :3, 3].astype(float)
        pelvis = labels.joints[:, 0].astype(float)  # R (p + trans_world) + t
        in_world = (rotation.transpose(0, 2, 1) @ (pelvis - offset)[..., None])[..., 0]
        at_rest = in_world - labels.translation
        confident = np.ones((*labels.joints_2d.shape[:2], 1), np.float32)
        return {
            "imgname": np.array(names),
            "center": np.full((count, 2), about.size / 2, np.float32),
            "scale": np.full(count, about.size / 200, np.float32),
            "pose_cam": axis_angles(seen_from_camera(labels)),
            "pose_world": axis_angles(labels.rotations),
            "shape": smpl_shape(labels, about),
            "trans_cam": (pelvis - offset - at_rest).astype(np.float32),
            "trans_world": labels.translation,
            "gtkps": np.concatenate([labels.joints_2d, confident], -1),
            "cam_int": labels.intrinsics,
            "cam_ext": labels.extrinsics,
            "gender": np.full(count, about.gender),
            "motion_info": labels.clip,
            "sub": labels.subject,
            "joints_cam": labels.joints,
            "has_smpl": np.full(count, float(about.is_smpl), np.float32),
        }

    def open(self, folder: Path) -> Dataset:
        joints = ("gtkps", list(LIMB_JOINTS))
        return ImageFolderSet(folder / self.file, "imgname", joints, ("sub", "motion_info"))
