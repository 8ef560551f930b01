"""SURREAL (Varol et al. 2017): people rendered by Blender, in clips of up to 100 frames.

    <clip>_info.mat   pose [72, T], shape [10, T], joints2D [2, 24, T], joints3D [3, 24, T] in
                      metres, zrot [T], camLoc [3], gender [T] (0 female, 1 male)
    <clip>.mp4        T frames of 320 x 240
    <clip>_segm.mat   segm_1 … segm_T [240, 320]: body part, 0 where there is none

The person: the root's rotation in the world is Rx(90 degrees) Rz(zrot) R(pose[:3]), and the pelvis
is joints3D's first; -y is up. The camera: 60 mm lens on a 32 mm sensor (f = 600 pixels), middle of
the picture, at camLoc.

**The pictures are mirror images.** The camera matrix of the published generation and projection
code has determinant -1, so what it draws has left and right exchanged (the authors' notes and
users' reports say the same of joints2D). No rotation describes such a camera; here the pictures and
masks are mirrored back, and the camera with them. joints2D are whole numbers, y down; a frame whose
joints3D do not land on them, or whose pose does not give joints3D, is refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import loadmat
from torch import Tensor

from posegen_ray.body.camera import Camera, project
from posegen_ray.body.rotation import about_axis
from posegen_ray.config import BodyConfig, ConvertConfig
from posegen_ray.errors import DataError
from posegen_ray.subjects.capture import Capture
from posegen_ray.subjects.converters.assembly import (
    Picture,
    Pose,
    assemble,
    checked_pose,
    chosen_moments,
    smpl_pose,
)
from posegen_ray.subjects.converters.files import as_mask, read_video
from posegen_ray.subjects.converters.lens import Lens
from posegen_ray.subjects.converters.smpl import Smpl, load_smpl

LICENCE = "SURREAL: the terms at https://www.di.ens.fr/willow/research/surreal/data/license.html"
HEIGHT, WIDTH = 240, 320
FOCAL = 60 / 32 * WIDTH
_GENDERS = {0.0: "female", 1.0: "male"}
# world -> camera of the pictures mirrored back: the first row is the published one's negative
_ROTATION = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
_PIXELS = 2.0  # joints2D are rounded; more is another camera
_METRES = 0.03  # mean over the joints; more is another body or another pose convention
_SAME_SHAPE = 1e-3


def convert_surreal(
    settings: ConvertConfig, body: BodyConfig
) -> tuple[Capture, BodyConfig]:  # the capture, and the body that it is of
    """A capture of one clip: settings.source is its `_info.mat`, or a folder with only one.

    Raises:
        DataError: a file is missing or damaged, or the clip contradicts itself; file and frame are
            named.
        ConfigError: no moment is left.
        AssetError: SMPL's file of the clip's gender is missing, or the package av is.
    """
    path = _info_file(Path(settings.source))
    clip = path.name.removesuffix("_info.mat")
    info = _info(path)
    count = info["pose"].shape[1]
    moments = chosen_moments(settings, count)
    smpl = load_smpl(body, _gender(path, info["gender"]))
    shape = info["shape"][:, moments[0]]
    camera = -_ROTATION @ info["camLoc"]
    poses = [_pose(path, info, moment, smpl, shape) for moment in moments]
    _compare(path, info, moments, poses, smpl, shape, camera)
    masks = _masks(path.with_name(f"{clip}_segm.mat"), moments)
    video = read_video(path.with_name(f"{clip}.mp4"), moments, count, str(path))
    matrix = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    pictures = [
        Picture(
            f"{path} (frame {moment})",
            moment,
            np.ascontiguousarray(pixels[:, ::-1]),
            np.ascontiguousarray(as_mask(mask)[:, ::-1]),
            Lens(matrix, np.zeros(0)),
            _ROTATION,
            camera,
            pose,
        )
        for moment, pixels, mask, pose in zip(moments, video, masks, poses, strict=True)
    ]
    if pictures[0].pixels.shape[:2] != (HEIGHT, WIDTH):
        raise DataError(
            f"{clip}.mp4 beside {path} is {video[0].shape[1]} x {video[0].shape[0]} pixels.",
            f"SURREAL's clips have {WIDTH} x {HEIGHT}, and their camera is made for that.",
        )
    capture = assemble(
        pictures,
        settings,
        smpl.body,
        shape,
        "-y",
        clip,
        LICENCE,
        f"SURREAL {clip}, rendered, mirrored back; SMPL {smpl.config.gender}",
    )
    return capture, smpl.config


def _info_file(source: Path) -> Path:
    if source.is_dir():
        found = sorted(source.glob("*_info.mat"))
        if len(found) != 1:
            raise DataError(
                f"{source} holds {len(found)} clips (*_info.mat), and a capture is of one.",
                "Name its _info.mat: convert.source=….",
            )
        return found[0]
    if not source.name.endswith("_info.mat"):
        raise DataError(
            f"{source} is not a clip of SURREAL.", "Name its _info.mat: convert.source=…."
        )
    return source


def _load(path: Path, names: list[str] | None = None) -> dict[str, Any]:
    try:
        return dict(loadmat(str(path), appendmat=False, variable_names=names))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing.", "Is the download complete?") from error
    except Exception as error:  # scipy raises half a dozen kinds for damaged files
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}).",
            "It may be truncated; copy it again.",
        ) from error


def _info(path: Path) -> dict[str, np.ndarray]:
    content = _load(path)
    tails = {"pose": (72,), "shape": (10,), "joints2D": (2, 24), "joints3D": (3, 24)}
    missing = [name for name in (*tails, "zrot", "camLoc", "gender") if name not in content]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}.", "Is it an _info.mat of SURREAL?")
    info = {name: np.asarray(content[name], np.float64) for name in tails}
    for name, tail in tails.items():
        if info[name].shape == tail:  # a clip of one frame
            info[name] = info[name][..., None]
    count = info["pose"].shape[-1]
    for name, tail in tails.items():
        if info[name].shape != (*tail, count):
            raise DataError(
                f"{path}: {name} has shape {info[name].shape} instead of {(*tail, count)}.",
                "All arrays must describe the same frames.",
            )
    for name, size in (("zrot", count), ("gender", count), ("camLoc", 3)):
        info[name] = np.asarray(content[name], np.float64).ravel()
        if info[name].size != size:
            raise DataError(
                f"{path}: {name} has {info[name].size} numbers instead of {size}.",
                "All arrays must describe the same frames.",
            )
    return info


def _gender(path: Path, numbers: np.ndarray) -> str:
    gender = _GENDERS.get(numbers[0])
    if gender is None or (numbers != numbers[0]).any():
        raise DataError(
            f"{path}: gender is {sorted(set(numbers.tolist()))}.", "All 0 (female) or 1 (male)."
        )
    return gender


def _pose(
    path: Path, info: dict[str, np.ndarray], moment: int, smpl: Smpl, shape: np.ndarray
) -> Pose:
    label = f"{path} (frame {moment})"
    if not np.allclose(info["shape"][:, moment], shape, atol=_SAME_SHAPE):
        raise DataError(
            f"{label}: shape differs from the frames before.",
            "A capture is of one person with one shape.",
        )
    pose = smpl_pose(label, info["pose"][:, moment], info["joints3D"][:, 0, moment])
    lie = about_axis(0, torch.tensor(math.pi / 2, dtype=torch.float64))
    turn = about_axis(2, torch.tensor(info["zrot"][moment], dtype=torch.float64))
    root = lie @ turn @ pose.rotations[:1]
    return checked_pose(label, torch.cat([root, pose.rotations[1:]]), pose.pelvis)


def _compare(
    path: Path,
    info: dict[str, np.ndarray],
    moments: list[int],
    poses: list[Pose],
    smpl: Smpl,
    shape: np.ndarray,
    translation: np.ndarray,
) -> None:
    """Raises DataError where the clip's joints contradict its camera or its poses."""
    count = len(moments)
    joints = _joints(info["joints3D"], moments)
    camera = Camera(
        torch.from_numpy(_ROTATION).float().expand(count, 3, 3),
        torch.from_numpy(translation).float().expand(count, 3),
        torch.full((count,), FOCAL),
        torch.tensor([[WIDTH / 2, HEIGHT / 2]]).expand(count, 2),
        HEIGHT,
        WIDTH,
    )
    seen = _joints(info["joints2D"], moments)
    seen[..., 0] = WIDTH - seen[..., 0]
    off = (project(camera, joints) - seen).norm(dim=-1).amax(1)
    betas = torch.from_numpy(shape).float()[None]
    posed = smpl.body(torch.stack([pose.rotations for pose in poses]).float(), betas).joints
    posed = posed - posed[:, :1] + joints[:, :1]
    apart = (posed - joints).norm(dim=-1).mean(1)
    for i, moment in enumerate(moments):
        if not float(off[i]) <= _PIXELS:
            raise DataError(
                f"{path} (frame {moment}): joints3D seen from camLoc are {float(off[i]):.1f} "
                "pixels from joints2D.",
                "The camera is not the published one; this clip cannot be converted.",
            )
        if not float(apart[i]) <= _METRES:
            raise DataError(
                f"{path} (frame {moment}): SMPL {smpl.config.gender} posed by pose, zrot and shape "
                f"is {1000 * float(apart[i]):.0f} mm from joints3D.",
                f"Is SMPL_{smpl.config.gender.upper()} in body.smpl_folder the right file?",
            )


def _joints(array: np.ndarray, moments: list[int]) -> Tensor:  # [N, 24, 2 or 3]
    return torch.from_numpy(array[..., moments].transpose(2, 1, 0).copy()).float()


def _masks(path: Path, moments: list[int]) -> list[np.ndarray]:
    names = [f"segm_{moment + 1}" for moment in moments]
    content = _load(path, names)
    for name, moment in zip(names, moments, strict=True):
        if name not in content:
            raise DataError(
                f"{path} lacks {name} (frame {moment}): the mask is missing.",
                "Is the download complete?",
            )
    return [np.asarray(content[name]) for name in names]
