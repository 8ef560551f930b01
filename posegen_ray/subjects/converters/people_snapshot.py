"""PeopleSnapshot (Alldieck et al. 2018): a person turning in front of one fixed camera.

    camera.pkl                camera_f [2], camera_c [2], camera_k [5], camera_rt [3], camera_t [3]
    masks.hdf5                masks [N, H, W], 0 or 1
    reconstructed_poses.hdf5  pose [N, 72], trans [N, 3], betas [10]
    <name>.mp4                N frames

The world is the camera's up to camera_rt (axis-angle) and camera_t, which are 0 in the published
files: y points down. camera_c has pixel centres at whole numbers: the authors' renderer (OpenDR)
adds half a pixel to it. The consensus mesh's displacements are clothes and no part of SMPL: a
subject's field learns those.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.config import BodyConfig, ConvertConfig
from posegen_ray.datasets.files import as_mask, open_hdf5, read_video
from posegen_ray.errors import DataError
from posegen_ray.pickles import load_pickle
from posegen_ray.subjects.capture import Capture
from posegen_ray.subjects.converters.assembly import Picture, assemble, chosen_moments, smpl_pose
from posegen_ray.subjects.converters.lens import Lens, opencv_lens
from posegen_ray.subjects.converters.smpl import load_smpl

LICENCE = "PeopleSnapshot: the terms at https://graphics.tu-bs.de/people-snapshot"


def convert_people_snapshot(
    settings: ConvertConfig, body: BodyConfig
) -> tuple[Capture, BodyConfig]:  # the capture, and the body that it is of
    """A capture of one person (`female-3-casual`, …): settings.source is their folder.

    The gender is the folder name's first word; where that is none, body.gender.

    Raises:
        DataError: a file is missing or damaged, or says what cannot be; file and frame are named.
        ConfigError: no moment is left.
        AssetError: SMPL's file of the gender is missing, or the packages h5py and av are.
    """
    folder = Path(settings.source)
    name = folder.resolve().name
    word = name.split("-")[0]
    smpl = load_smpl(body, word if word in ("female", "male") else body.gender)
    lens, rotation, translation = _camera(folder / "camera.pkl")
    pose_path, mask_path = folder / "reconstructed_poses.hdf5", folder / "masks.hdf5"
    with open_hdf5(pose_path) as file:
        poses, trans, betas = (np.asarray(file[key], float) for key in ("pose", "trans", "betas"))
    if poses.ndim != 2 or trans.shape != (len(poses), 3) or betas.shape != (10,):
        raise DataError(
            f"{pose_path}: pose, trans and betas have shapes {poses.shape}, {trans.shape} and "
            f"{betas.shape}.",
            "(N, 72), (N, 3) and (10,) are expected.",
        )
    moments = chosen_moments(settings, len(poses))
    with open_hdf5(mask_path) as file:
        masks = file["masks"]
        if len(masks) != len(poses):
            raise DataError(
                f"{mask_path} has {len(masks)} frames, but {pose_path} has {len(poses)}: frame "
                f"{min(len(masks), len(poses))} is only in one of them.",
                "Cut them to the same frames.",
            )
        chosen = [np.asarray(masks[moment]) for moment in moments]
    video = read_video(_video(folder), moments, len(poses), str(pose_path))
    rest = smpl.rest_pelvis(betas)
    pictures = [
        Picture(
            f"{mask_path} (frame {moment})",
            moment,
            pixels,
            as_mask(mask),
            lens,
            rotation,
            translation,
            smpl_pose(
                f"{pose_path} (frame {moment})",
                poses[moment],
                rest + torch.from_numpy(trans[moment]),
            ),
        )
        for moment, pixels, mask in zip(moments, video, chosen, strict=True)
    ]
    capture = assemble(
        pictures,
        settings,
        smpl.body,
        betas,
        "-y",
        name,
        LICENCE,
        f"PeopleSnapshot {name}, one camera; SMPL {smpl.config.gender}",
    )
    return capture, smpl.config


def _camera(path: Path) -> tuple[Lens, np.ndarray, np.ndarray]:
    content = load_pickle(path)
    try:
        values = {
            key: np.asarray(content[f"camera_{key}"], np.float64).ravel()
            for key in ("f", "c", "k", "rt", "t")
        }
        focal_x, focal_y = values["f"]
        centre_x, centre_y = values["c"]
        rotation = from_axis_angle(torch.from_numpy(values["rt"].reshape(3))).numpy()
        translation = values["t"].reshape(3)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not a camera of PeopleSnapshot ({type(error).__name__}: {error}).",
            "camera_f, camera_c, camera_k, camera_rt and camera_t are expected.",
        ) from error
    matrix = np.array([[focal_x, 0, centre_x], [0, focal_y, centre_y], [0, 0, 1]])
    return opencv_lens(matrix, values["k"]), rotation, translation


def _video(folder: Path) -> Path:
    named = folder / f"{folder.resolve().name}.mp4"
    others = sorted(folder.glob("*.mp4"))
    return others[0] if not named.is_file() and len(others) == 1 else named
