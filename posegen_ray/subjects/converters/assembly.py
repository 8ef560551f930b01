"""Pictures of a data set, in its own world, -> a checked `Capture` in ours.

Every format gives where the pelvis is in its world: a root turns about the pelvis in every
convention, so pose and place need no knowledge of another body's origin here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from posegen_ray.body.camera import Camera
from posegen_ray.body.model import BodyModel
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import NUM_JOINTS
from posegen_ray.config import ConvertConfig
from posegen_ray.errors import ConfigError, DataError
from posegen_ray.records import PoseBatch
from posegen_ray.subjects.capture import Capture
from posegen_ray.subjects.converters.lens import Lens, fault, rectify

# ours = _UPRIGHT[axis] @ theirs, by the axis that points up in theirs
_UPRIGHT = {
    "y": torch.eye(3, dtype=torch.float64),
    "-y": torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)),
    "z": torch.tensor([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64),
}
UP_AXES = tuple(_UPRIGHT)


@dataclass(frozen=True)
class Pose:
    """One moment of the person, in the data set's world. float64."""

    rotations: Tensor  # [24, 3, 3] local; the root's is in the world
    pelvis: Tensor  # [3] metres, where the root joint is


@dataclass(frozen=True)
class Picture:
    """One picture of one moment."""

    label: str  # file and frame, for messages
    moment: int  # pictures of one moment are held out together
    pixels: np.ndarray  # [H, W, 3] uint8 RGB
    mask: np.ndarray  # [H, W] uint8: 255 on the person
    lens: Lens
    rotation: np.ndarray  # [3, 3] world -> camera, OpenCV axes
    translation: np.ndarray  # [3] metres
    pose: Pose


def smpl_pose(
    label: str,
    angles: np.ndarray,  # 72 numbers: axis-angle of 24 joints
    pelvis: np.ndarray | Tensor,  # [3]
) -> Pose:
    """A pose from SMPL's axis-angles.

    Raises:
        DataError: there are not 72 finite numbers, or the pelvis is nowhere; `label` is named.
    """
    flat = np.asarray(angles, np.float64).ravel()
    if flat.size != 3 * NUM_JOINTS:
        raise DataError(
            f"{label}: a pose of {flat.size} numbers is not SMPL's.",
            f"{3 * NUM_JOINTS} are expected (24 axis-angles).",
        )
    rotations = from_axis_angle(torch.from_numpy(flat).reshape(NUM_JOINTS, 3))
    return checked_pose(label, rotations, torch.as_tensor(pelvis, dtype=torch.float64))


def checked_pose(label: str, rotations: Tensor, pelvis: Tensor) -> Pose:
    """A pose whose numbers are finite.

    Raises:
        DataError: they are not; `label` is named.
    """
    if not (rotations.isfinite().all() and pelvis.isfinite().all()):
        raise DataError(
            f"{label}: the pose holds NaN or infinite values.",
            "Correct it, or leave the frame out (convert.start, convert.stride).",
        )
    return Pose(rotations, pelvis)


def chosen_moments(
    settings: ConvertConfig,
    count: int,  # moments that the data set has
    views: int = 1,  # pictures of each
) -> list[int]:
    """Which moments are converted: from `start`, every `stride`-th, at most `max_frames` pictures.

    Raises:
        ConfigError: none are left.
    """
    available = range(settings.start, count)
    if not available:
        raise ConfigError(
            f"convert.start={settings.start} is past the last of {count} moments.",
            f"Choose 0 to {max(count - 1, 0)}.",
        )
    wanted = settings.max_frames // views
    if not wanted:
        raise ConfigError(
            f"convert.max_frames={settings.max_frames} is less than one picture of each of "
            f"{views} views.",
            "Raise it, or choose fewer cameras with convert.views.",
        )
    stride = settings.stride or -(-len(available) // wanted)
    return list(available[::stride][:wanted])


def assemble(
    pictures: Sequence[Picture],
    settings: ConvertConfig,
    body: BodyModel,
    shape: np.ndarray,  # [S]
    up: str,  # the axis of the data set's world that points up: y, -y or z
    name: str,
    licence: str,
    source: str,
) -> Capture:
    """Checks the pictures and makes a capture of them.

    Pictures are resampled only where the lens asks for it. The world is turned so that y is up:
    root rotations, places and cameras together, so every pixel stays where it is.

    Raises:
        DataError: a camera, mask or size cannot be right; the picture's label is named.
    """
    assert pictures, "chosen_moments never chooses none"
    height, width = pictures[0].mask.shape
    for picture in pictures:
        _check(picture, height, width, pictures[0].label)
    if shape.shape != (body.num_shape,) or not np.isfinite(shape).all():
        raise DataError(
            f"{settings.source}: the person's shape is no list of {body.num_shape} finite numbers "
            f"(it has shape {shape.shape}).",
            f"{body.name} has {body.num_shape} shape directions.",
        )
    betas = torch.from_numpy(shape).float()
    turn = _UPRIGHT[up]
    rotations = torch.stack([picture.pose.rotations for picture in pictures])
    root = turn @ rotations[:, :1]
    pelvis = torch.stack([turn @ picture.pose.pelvis for picture in pictures])
    rest = body.rest_joints(betas[None])[0, 0].double()
    rectified = [rectify(p.lens, p.pixels, p.mask) for p in pictures]
    camera = Camera(
        torch.stack([torch.from_numpy(p.rotation) @ turn.T for p in pictures]).float(),
        torch.stack([torch.from_numpy(p.translation) for p in pictures]).float(),
        torch.tensor([p.lens.focal for p in pictures]),
        torch.from_numpy(np.stack([p.lens.principal for p in pictures])).float(),
        height,
        width,
    )
    return Capture(
        name=settings.name or name,
        body=body.name,
        shape=betas,
        images=torch.from_numpy(np.stack([pixels for pixels, _ in rectified])),
        masks=torch.from_numpy(np.stack([mask for _, mask in rectified])),
        poses=PoseBatch(torch.cat([root, rotations[:, 1:]], 1).float(), (pelvis - rest).float()),
        camera=camera,
        held_out=_held_out([picture.moment for picture in pictures], settings.held_out),
        licence=settings.licence or licence,
        source=source,
    )


def _check(picture: Picture, height: int, width: int, first: str) -> None:
    label = picture.label
    if picture.pixels.shape[:2] != (height, width):
        raise DataError(
            f"{label} is {picture.pixels.shape[1]} x {picture.pixels.shape[0]} pixels, but {first} "
            f"is {width} x {height}.",
            "All pictures of a capture must have one size.",
        )
    if picture.mask.shape != picture.pixels.shape[:2]:
        raise DataError(
            f"{label} is {picture.pixels.shape[1]} x {picture.pixels.shape[0]} pixels, but its "
            f"mask is {picture.mask.shape[1]} x {picture.mask.shape[0]}.",
            "Masks must have the size of their pictures.",
        )
    if not picture.mask.any():
        raise DataError(
            f"{label}: the mask is empty.",
            "Paint the person into it, or leave the frame out (convert.start, convert.stride).",
        )
    wrong = fault(picture.lens, height, width)
    if wrong:
        raise DataError(f"{label}: {wrong}.", "Correct the camera's intrinsics (pixels).")
    rotation, translation = picture.rotation, picture.translation
    if rotation.shape != (3, 3) or translation.shape != (3,):
        raise DataError(
            f"{label}: the camera has R of shape {rotation.shape}, t of shape {translation.shape}.",
            "(3, 3) and (3,) are expected.",
        )
    if not (np.isfinite(rotation).all() and np.isfinite(translation).all()):
        raise DataError(f"{label}: the camera holds NaN or infinite values.", "Correct it.")
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        raise DataError(
            f"{label}: the camera's R is not a rotation matrix.",
            "World -> camera; rows must be orthonormal and right-handed.",
        )


def _held_out(
    moments: Sequence[int],  # of each picture
    share: float,
) -> Tensor:  # [N] bool
    """Whole moments, evenly spread; never all of them."""
    distinct = sorted(set(moments))
    count = min(round(share * len(distinct)), len(distinct) - 1)
    if share > 0 and len(distinct) > 1:
        count = max(count, 1)
    chosen = {distinct[int((k + 0.5) * len(distinct) / count)] for k in range(count)}
    return torch.tensor([moment in chosen for moment in moments])
