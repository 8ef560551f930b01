"""Pictures to judge a subject by: a turntable, and a sheet of poses. Knows nothing of training.

Legend: F pictures, S their edge in pixels.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from posegen_ray.body.camera import Camera, orbit
from posegen_ray.body.model import BodyModel
from posegen_ray.records import PoseBatch, RenderRequest
from posegen_ray.subjects.render import Renderer
from posegen_ray.subjects.store import SubjectManifest

_BACKGROUND = 0.93  # light grey: white clothes stay visible
_DISTANCE = 4.0  # metres
_ROOM = 2.4  # metres that a picture shows at the person's distance


def turntable(
    subject: SubjectManifest,
    body: BodyModel,
    renderer: Renderer,
    count: int = 36,
    size: int = 256,
) -> np.ndarray:  # [F, S, S, 3] uint8
    """The subject in an A-pose, from all sides."""
    rotations = torch.eye(3).repeat(count, 24, 1, 1)
    rotations[:, 16] = _about_z(-0.9)  # left shoulder: the arm goes down
    rotations[:, 17] = _about_z(0.9)
    poses = PoseBatch(rotations, torch.zeros(count, 3))
    azimuth = 2 * math.pi / count * torch.arange(count)
    return draw(subject, body, renderer, poses, azimuth, size)


def pose_sheet(
    subject: SubjectManifest,
    body: BodyModel,
    renderer: Renderer,
    poses: PoseBatch,  # F
    columns: int = 6,
    size: int = 256,
) -> np.ndarray:  # [rows * S, columns * S, 3] uint8
    """The subject in each of the poses, from front left; pictures are placed row by row."""
    pictures = draw(subject, body, renderer, poses, torch.full((len(poses),), 0.6), size)
    missing = -len(pictures) % columns
    blank = np.full((missing, *pictures.shape[1:]), round(255 * _BACKGROUND), np.uint8)
    grid = np.concatenate([pictures, blank]).reshape(-1, columns, size, size, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(-1, columns * size, 3)


@torch.no_grad()
def draw(
    subject: SubjectManifest,
    body: BodyModel,
    renderer: Renderer,
    poses: PoseBatch,  # F
    azimuth: Tensor,  # [F] radians, 0: from +z
    size: int,
) -> np.ndarray:  # [F, S, S, 3] uint8
    """The subject before light grey, the hips in the middle, a little from above."""
    shape = torch.tensor(subject.shape)[None]
    posed = body(poses.rotations, shape, poses.translation)
    request = RenderRequest(
        (subject.name,) * len(poses), posed.bones, _cameras(posed.joints[:, 0], azimuth, size)
    )
    rgba = renderer.render_arrays(request)
    picture = rgba[..., :3] + (1 - rgba[..., 3:]) * _BACKGROUND
    return np.asarray((picture.clip(0, 1) * 255).round(), np.uint8)


def write_gif(
    pictures: np.ndarray,  # [F, S, S, 3] uint8
    path: str | Path,
    frames_per_second: float = 12.0,
) -> None:
    """An endless animation."""
    frames = [Image.fromarray(picture) for picture in pictures]
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / frames_per_second),
        loop=0,
    )


def _cameras(target: Tensor, azimuth: Tensor, size: int) -> Camera:
    count = len(azimuth)
    return orbit(
        target,
        azimuth,
        torch.full((count,), 0.15),
        torch.zeros(count),
        torch.full((count,), _DISTANCE),
        torch.full((count,), size * _DISTANCE / _ROOM),
        torch.full((count, 2), size / 2),
        size,
        size,
    )


def _about_z(angle: float) -> Tensor:  # [3, 3]
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
