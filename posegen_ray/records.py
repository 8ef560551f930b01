"""Frozen batches that cross boundaries: between modules, and between processes.

Every record is plain tensors plus names; none has optional required fields. `Camera` lives in
`posegen_ray.body.camera`, beside its conventions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from posegen_ray.body.camera import Camera, concatenate


@dataclass(frozen=True)
class PoseBatch:
    """Poses in the common skeleton."""

    rotations: Tensor  # [B, 24, 3, 3] local; [:, 0] is the root orientation in the world
    translation: Tensor  # [B, 3] metres, added to the posed body

    def __len__(self) -> int:
        return self.rotations.shape[0]

    def to(self, device: torch.device) -> PoseBatch:
        return PoseBatch(self.rotations.to(device), self.translation.to(device))

    def __getitem__(self, index: slice | Tensor | list[int]) -> PoseBatch:
        return PoseBatch(self.rotations[index], self.translation[index])


@dataclass(frozen=True)
class RenderRequest:
    """What a renderer needs to draw a batch. Differentiable: bones, light and every camera tensor.

    Item i shows subject `subjects[i]` posed by `bones[i]`, seen by camera i. A batch may mix
    subjects; all items share the camera's image size.

    `light` changes the light that a subject was filmed in: by how many radians it turns about the
    world's up axis, by which factor light and shade differ more, and by which all is brighter.
    """

    subjects: tuple[str, ...]  # B names
    bones: Tensor  # [B, 24, 3, 4] rest -> posed, world coordinates
    camera: Camera
    light: Tensor | None = None  # [B, 3] turn, contrast, exposure; None: as filmed, (0, 1, 1)

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: list[int]) -> RenderRequest:
        return RenderRequest(
            tuple(self.subjects[i] for i in index),
            self.bones[index],
            self.camera[index],
            None if self.light is None else self.light[index],
        )


def lit(request: RenderRequest) -> Tensor:  # [B, 3]
    """A request's light, also where it says nothing about it."""
    if request.light is not None:
        return request.light
    return request.bones.new_tensor([0.0, 1.0, 1.0]).expand(len(request), 3)


@dataclass(frozen=True)
class RenderResult:
    """Rendered pictures, in the order of the request."""

    rgba: Tensor  # [B, H, W, 4] float32, premultiplied by alpha, linear in [0, 1]


# The seam between everything and rendering: an in-process renderer or a pool of render servers.
# The result's gradient flows back to the request's bones, light and camera.
RenderFn = Callable[[RenderRequest], RenderResult]


PHOTOGRAPH = "photograph/"  # what the clip's name of a sample that was not rendered begins with


@dataclass(frozen=True)
class Samples:
    """Labelled images: each row is one sample, its image and all its labels written together.

    `joints` are the 12 limb joints in the coordinates of the *crop* camera (the camera that the
    estimator sees), centred between the hips: what `PoseEstimator.forward` should answer.

    Everything is known of rendered people; of photographs, what is not is NaN.
    """

    images: Tensor  # [B, 3, S, S] uint8 RGB, the estimator's crop
    joints: Tensor  # [B, 12, 3] metres, crop-camera axes, mid-hip at 0
    joints_2d: Tensor  # [B, 12, 2] pixels in the crop
    rotations: Tensor  # [B, 24, 3, 3]
    shape: Tensor  # [B, S]
    camera: Camera  # the crop cameras
    view: Tensor  # [B, 3] azimuth relative to the body's facing, elevation, roll; radians
    subjects: tuple[str, ...]
    clips: tuple[
        str, ...
    ]  # where the pose comes from: "clip:frame", "generated", or "photograph/file"
    seeds: Tensor  # [B] int64, the seed that drew the sample

    def __len__(self) -> int:
        return self.images.shape[0]

    def __getitem__(self, index: slice | list[int]) -> Samples:
        rows = list(range(len(self)))[index] if isinstance(index, slice) else index
        values: dict[str, object] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            values[field.name] = (
                tuple(value[i] for i in rows) if isinstance(value, tuple) else value[rows]
            )
        return Samples(**values)  # type: ignore[arg-type]

    @property
    def photographs(self) -> Tensor:  # [B] bool
        """Which of them were not rendered."""
        return torch.tensor([clip.startswith(PHOTOGRAPH) for clip in self.clips], dtype=torch.bool)

    def rendered(self) -> Samples:
        """Those of them that are no photographs."""
        return self[(~self.photographs).nonzero()[:, 0].tolist()]


def concatenate_samples(parts: list[Samples]) -> Samples:
    """One batch from several, in order."""
    values: dict[str, object] = {}
    for field in fields(Samples):
        column = [getattr(part, field.name) for part in parts]
        if isinstance(column[0], tuple):
            values[field.name] = tuple(name for part in column for name in part)
        elif isinstance(column[0], Camera):
            values[field.name] = concatenate(column)
        else:
            values[field.name] = torch.cat(column)
    return Samples(**values)  # type: ignore[arg-type]
