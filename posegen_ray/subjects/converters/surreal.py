"""SURREAL: one clip becomes a capture. What the clips hold: `posegen_ray.datasets.surreal`.

Pictures and masks are mirrored back, and the camera with them; a frame whose joints3D do not land
on its joints2D, or whose pose does not give joints3D, is refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from posegen_ray.body.camera import Camera, project
from posegen_ray.config import BodyConfig, ConvertConfig
from posegen_ray.datasets.files import as_mask, read_mat, read_video
from posegen_ray.datasets.surreal import (
    CAMERA_ROTATION,
    FOCAL,
    HEIGHT,
    LICENCE,
    WIDTH,
    gender_of,
    read_info,
    upright,
)
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
from posegen_ray.subjects.converters.lens import Lens
from posegen_ray.subjects.converters.smpl import Smpl, load_smpl

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
    info = read_info(path)
    count = info["pose"].shape[1]
    moments = chosen_moments(settings, count)
    smpl = load_smpl(body, gender_of(path, info["gender"]))
    shape = info["shape"][:, moments[0]]
    camera = -CAMERA_ROTATION @ info["camLoc"]
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
            CAMERA_ROTATION,
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
    root = upright(info["zrot"][moment]) @ pose.rotations[:1]
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
        torch.from_numpy(CAMERA_ROTATION).float().expand(count, 3, 3),
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
    content = read_mat(path, names)
    for name, moment in zip(names, moments, strict=True):
        if name not in content:
            raise DataError(
                f"{path} lacks {name} (frame {moment}): the mask is missing.",
                "Is the download complete?",
            )
    return [np.asarray(content[name]) for name in names]
