"""SMPL (Loper et al. 2015) for users who have its files; they are licensed and never fetched.

Only the model's arrays are taken from the `smplx` package; posing is our own, and agrees with it.
Two conventions differ: our origin lies on the floor under the pelvis (theirs near the chest), so
joints and vertices are shifted by one constant vector; and the root turns about the pelvis in both.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from pathlib import Path

import numpy as np
import smplx
import torch
from smplx.utils import Struct
from torch import Tensor

from posegen_ray.body.model import BodyModel
from posegen_ray.body.skeleton import PARENTS
from posegen_ray.errors import AssetError

NUM_SHAPE = 10
LICENCE = "SMPL is free for research after registration at https://smpl.is.tue.mpg.de."


def load_smpl_body(folder: str | Path, gender: str = "neutral") -> BodyModel:
    """SMPL with 10 shape directions and pose blend shapes.

    Args:
        folder: holds SMPL_NEUTRAL.npz or SMPL_NEUTRAL.pkl (or MALE, FEMALE). A pkl file runs code
            when it is read: use only files from the source above.
        gender: neutral, male or female.

    Raises:
        AssetError: the file is missing, damaged, or not SMPL.
    """
    model = _load(Path(folder), gender)
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
    return _origin(_load(Path(folder), gender))


def _origin(model: smplx.SMPL) -> Tensor:  # [3]
    """On the floor under the pelvis of the mean shape."""
    template = model.v_template.detach()
    pelvis = model.J_regressor[0] @ template
    return torch.stack([pelvis[0], template[:, 1].min(), pelvis[2]])


def _load(folder: Path, gender: str) -> smplx.SMPL:
    path = _find(folder, gender)
    try:
        model = _read(path)
    except ModuleNotFoundError as error:
        raise AssetError(
            f"{path} needs the package {error.name} to be read.",
            "Remove the chumpy objects from it with tools/clean_ch.py of the smplx project.",
        ) from error
    except (OSError, ValueError, KeyError, AttributeError, EOFError, pickle.PickleError) as error:
        raise AssetError(
            f"{path} cannot be read as an SMPL model ({type(error).__name__}: {error}).",
            f"Download it again. {LICENCE}",
        ) from error
    if tuple(model.parents.tolist()) != PARENTS:
        raise AssetError(
            f"{path} has another skeleton than SMPL's 24 joints.",
            "Give an SMPL file (not SMPL+H or SMPL-X).",
        )
    return model


def _find(folder: Path, gender: str) -> Path:
    paths = [folder / f"SMPL_{gender.upper()}.{ending}" for ending in ("npz", "pkl")]
    for path in paths:
        if path.is_file():
            return path
    raise AssetError(
        f"There is no {paths[0].name} or {paths[1].name} in body.smpl_folder={str(folder)!r}.",
        f"{LICENCE} Put the file there under that name, or use body=anny, which is free.",
    )


def _read(path: Path) -> smplx.SMPL:
    with path.open("rb") as file:
        if path.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                data = dict(arrays)
        else:
            data = pickle.load(file, encoding="latin1")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that 10 directions are all it has
        return smplx.SMPL(
            str(path),
            data_struct=Struct(**data),
            num_betas=NUM_SHAPE,
            create_betas=False,
            create_global_orient=False,
            create_body_pose=False,
            create_transl=False,
        )
