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
from torch import Tensor

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
    model = _load(folder, gender)
    template = model.v_template.detach()
    regressor = model.J_regressor
    directions = model.shapedirs
    joints = regressor @ template
    origin = _origin(model)
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


def smpl_origin(folder: str | Path, gender: str = "neutral") -> Tensor:  # [3] metres
    """Where our body's origin lies in SMPL's own coordinates (those of `trans` in SMPL data sets).

    A body that SMPL puts at `v + trans` is ours with `translation = smpl_origin(...) + trans`: the
    root turns about the pelvis in both, so the vector is the same for every pose, shape and frame.

    Raises:
        AssetError: as `load_smpl_body`.
    """
    return _origin(_load(folder, gender))


def _origin(model: smplx.SMPL) -> Tensor:  # [3]
    """On the floor under the pelvis of the mean shape."""
    template = model.v_template.detach()
    pelvis = model.J_regressor[0] @ template
    return torch.stack([pelvis[0], template[:, 1].min(), pelvis[2]])


def _load(folder: str | Path, gender: str) -> smplx.SMPL:
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
        return smplx.SMPL(
            str(path),
            data_struct=data,
            num_betas=NUM_SHAPE,
            create_betas=False,
            create_global_orient=False,
            create_body_pose=False,
            create_transl=False,
        )
