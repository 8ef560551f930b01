"""SMPL (Loper et al. 2015) for users who have its files; they are licensed and never fetched.

The files are read by `posegen_ray.body.smpl_files` and become a body through the `smplx` package;
posing is our own, and agrees with it. Two conventions differ: our origin lies on the floor under
the pelvis (theirs near the chest), so joints and vertices are shifted by one constant vector; and
the root turns about the pelvis in both.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import smplx
import torch
from smplx.utils import Struct

from posegen_ray.body.model import BodyModel
from posegen_ray.body.smpl_files import LICENCE, NUM_SHAPE, find_smpl_file, read_smpl_file
from posegen_ray.errors import AssetError


def load_smpl_body(folder: str | Path, gender: str = "neutral") -> BodyModel:
    """SMPL with 10 shape directions and pose blend shapes.

    Args:
        folder: holds SMPL_NEUTRAL.npz, .safetensors or .pkl (or MALE, FEMALE), or the file under
            its original name; it may also lie in a sub-folder `smpl` or `models`. Of a pkl file
            only the arrays are read: no code in it is run, and chumpy is not needed.
        gender: neutral, male or female.

    Raises:
        AssetError: the file is missing, damaged, or not SMPL.
    """
    path = find_smpl_file(folder, gender)
    if path is None:
        raise AssetError(
            f"There is no SMPL_{gender.upper()}.pkl (or .npz, .safetensors) in "
            f"body.smpl_folder={str(folder)!r}.",
            f"{LICENCE} Put the file there, under that name or its original one, or use "
            "body=anny, which is free.",
        )
    data = Struct(**read_smpl_file(path))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that 10 directions are all it has
        model = smplx.SMPL(
            str(path),
            data_struct=data,
            num_betas=NUM_SHAPE,
            create_betas=False,
            create_global_orient=False,
            create_body_pose=False,
            create_transl=False,
        )
    template = model.v_template.detach()
    regressor = model.J_regressor
    directions = model.shapedirs
    joints = regressor @ template
    origin = torch.stack([joints[0, 0], template[:, 1].min(), joints[0, 2]])
    vertices = template.shape[0]
    return BodyModel(
        "smpl",
        template - origin,
        directions,
        joints - origin,
        torch.einsum("jv,vcs->jcs", regressor, directions),
        model.lbs_weights,
        model.faces_tensor,
        pose_directions=model.posedirs.T.reshape(vertices, 3, -1).contiguous(),
    )
