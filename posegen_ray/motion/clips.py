"""A motion clip: poses of the common skeleton at a steady rate.

`translation` of a clip is the pelvis' way from where it is in the T-pose, in metres, for a body
whose pelvis stands 0.95 m above the floor; the floor is y = 0. Readers scale to that body, so one
clip fits every body of roughly adult size. Knows nothing of file formats.

Legend: T frames, K key frames of a file.
"""

from __future__ import annotations

from dataclasses import dataclass

import roma
import torch
from torch import Tensor

from posegen_ray.body.skeleton import NUM_JOINTS, PARENTS
from posegen_ray.errors import DataError
from posegen_ray.records import PoseBatch

FRAMES_PER_SECOND = 30.0
PELVIS_HEIGHT = 0.95  # metres, of the body that translations are scaled to
LEG_LENGTH = 0.86  # its thigh + shin


@dataclass(frozen=True)
class Clip:
    """A piece of motion."""

    name: str
    poses: PoseBatch  # T frames
    frames_per_second: float
    start: int = 0  # number of the first frame in the whole recording (at the same rate)

    def __len__(self) -> int:
        return len(self.poses)

    def part(self, begin: int, end: int) -> Clip:
        """The frames [begin, end) as a clip of the same name."""
        return Clip(
            self.name, self.poses[begin:end], self.frames_per_second, self.start + max(begin, 0)
        )


def resampled(
    source: str,
    rotations: Tensor,  # [K, 24, 3, 3]
    translation: Tensor,  # [K, 3]
    times: Tensor,  # [K] seconds, not decreasing
    frames_per_second: float,
) -> PoseBatch:
    """Poses at a steady rate: rotations by spherical, positions by linear interpolation.

    Raises:
        DataError: a value is not finite; `source` (the file) and the frame are named.
    """
    finite = rotations.flatten(1).isfinite().all(1) & translation.isfinite().all(1)
    finite &= times.isfinite()
    if not bool(finite.all()):
        frame = int((~finite).nonzero()[0, 0])
        raise DataError(
            f"{source}: frame {frame} holds a value that is not a finite number.",
            "Repair or remove that frame.",
        )
    times = times.double() - times[0]
    count = int(torch.floor(times[-1] * frames_per_second + 1e-4)) + 1
    wanted = torch.arange(count, dtype=torch.float64) / frames_per_second
    after = torch.searchsorted(times.contiguous(), wanted, right=True).clamp(1, len(times) - 1)
    before = after - 1
    span = (times[after] - times[before]).clamp_min(1e-9)
    share = ((wanted - times[before]) / span).clamp(0, 1).float()
    turned = between_frames(rotations[before], rotations[after], share[:, None])
    moved = translation[before].lerp(translation[after], share[:, None])
    return PoseBatch(turned, moved)


def between_frames(
    a: Tensor,  # [..., 3, 3]
    b: Tensor,  # [..., 3, 3]
    share: Tensor,  # [...] 0: a, 1: b
) -> Tensor:  # [..., 3, 3]
    """The rotation that lies the given share of the shortest way from a to b."""
    turn: Tensor = roma.rotmat_to_rotvec(a.transpose(-1, -2) @ b)
    step: Tensor = roma.rotvec_to_rotmat(turn * share[..., None])
    return a @ step


def local_from_world(
    world: Tensor,  # [T, 24, 3, 3] orientation of each joint's frame in the world
) -> Tensor:  # [T, 24, 3, 3] relative to the parent's frame
    """The inverse of the kinematic chain's products."""
    local = [world[:, 0]]
    for joint in range(1, NUM_JOINTS):
        local.append(world[:, PARENTS[joint]].transpose(-1, -2) @ world[:, joint])
    return torch.stack(local, 1)
