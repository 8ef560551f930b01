"""Proposals: a pose, a view, a subject and its light each; and what draws them without learning.

Knows nothing about rendering or estimators. B is the batch; angles in radians, lengths in metres.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import roma
import torch
from torch import Tensor

from posegen_ray.body.camera import Camera, orbit
from posegen_ray.body.rotation import from_axis_angle, to_axis_angle
from posegen_ray.body.skeleton import JOINT, NUM_JOINTS, PARENTS
from posegen_ray.config import CameraRangeConfig, ConditionConfig, LightRangeConfig
from posegen_ray.errors import ConfigError, DataError
from posegen_ray.generation.lighting import (
    LIGHT_CHANNELS,
    Lighting,
    as_filmed,
    concatenate_lighting,
    lighting_from_unit,
)
from posegen_ray.generation.limits import JointLimits
from posegen_ray.motion.clips import Clip
from posegen_ray.records import PoseBatch

FRAME_SIZE = 512  # pixels: the full frame in which a view's focal length is stated
PERSON_HEIGHT = 1.8  # metres: what `fill` refers to
CAMERA_CHANNELS = 7  # azimuth, elevation, roll, distance, fill, framing x, framing y
GENERATED = "generated"


@dataclass(frozen=True)
class View:
    """A camera relative to a target that it looks at. Every tensor is differentiable."""

    azimuth: Tensor  # [B] in the world; 0: the camera stands on +z of the target
    elevation: Tensor  # [B] |.| < 85 degrees; > 0: the camera stands above the target
    roll: Tensor  # [B] > 0: the picture's content turns clockwise
    distance: Tensor  # [B] metres
    focal: Tensor  # [B] pixels of the 512 x 512 frame
    framing: Tensor  # [B, 2] where the target is (x, y), relative to the frame's middle, in frames

    def __len__(self) -> int:
        return self.azimuth.shape[0]

    def to(self, device: torch.device) -> View:
        return View(*(tensor.to(device) for tensor in vars(self).values()))

    def __getitem__(self, index: slice | Tensor | list[int]) -> View:
        return View(
            self.azimuth[index],
            self.elevation[index],
            self.roll[index],
            self.distance[index],
            self.focal[index],
            self.framing[index],
        )


@dataclass(frozen=True)
class Proposal:
    """What a generator or sampler proposes to render."""

    poses: PoseBatch
    view: View
    subjects: Tensor  # [B] long, rows of the table of people
    lighting: Lighting

    def __len__(self) -> int:
        return len(self.poses)

    def to(self, device: torch.device) -> Proposal:
        return Proposal(
            self.poses.to(device),
            self.view.to(device),
            self.subjects.to(device),
            self.lighting.to(device),
        )

    def __getitem__(self, index: slice | Tensor | list[int]) -> Proposal:
        return Proposal(
            self.poses[index], self.view[index], self.subjects[index], self.lighting[index]
        )


def concatenate_proposals(parts: Sequence[Proposal]) -> Proposal:
    """One batch from several, in order."""
    views = [part.view for part in parts]
    return Proposal(
        PoseBatch(
            torch.cat([part.poses.rotations for part in parts]),
            torch.cat([part.poses.translation for part in parts]),
        ),
        View(
            torch.cat([view.azimuth for view in views]),
            torch.cat([view.elevation for view in views]),
            torch.cat([view.roll for view in views]),
            torch.cat([view.distance for view in views]),
            torch.cat([view.focal for view in views]),
            torch.cat([view.framing for view in views]),
        ),
        torch.cat([part.subjects for part in parts]),
        concatenate_lighting([part.lighting for part in parts]),
    )


def scene_camera(
    view: View,
    target: Tensor,  # [B, 3] world: mid-hip
    size: int = FRAME_SIZE,
) -> Camera:
    """The camera of the full frame. Differentiable in view and target.

    The frame is shifted, not turned, to put the target off its middle (as if it were cut out of a
    larger picture): the person stays on the optical axis, so that framing does not change how the
    estimator's crop and its labels look.
    """
    scale = size / FRAME_SIZE
    return orbit(
        target,
        view.azimuth,
        view.elevation,
        view.roll,
        view.distance,
        view.focal * scale,
        (0.5 + view.framing) * size,
        size,
        size,
    )


def facing(
    rotations: Tensor,  # [B, 24, 3, 3]
) -> Tensor:  # [B] radians
    """Heading of the body about the world's up axis; 0 for a T-pose, which faces +z."""
    forward = rotations[:, 0, :, 2]
    return torch.atan2(forward[:, 0], forward[:, 2])


def wrap(
    angle: Tensor,  # [...] radians
) -> Tensor:  # [...] in (-pi, pi]
    """The same angle within one turn; keeps the gradient."""
    return angle - 2 * math.pi * torch.round(angle.detach() / (2 * math.pi))


def view_from_unit(
    unit: Tensor,  # [B, 7] in (0, 1): azimuth, elevation, roll, distance, fill, framing x, y
    ranges: CameraRangeConfig,
    heading: Tensor,  # [B] radians: azimuth 0.5 looks at the face of a body with this heading
) -> View:
    """Uniform numbers -> views, uniform in the ranges (elevation: uniform in area)."""
    azimuth = wrap(heading + 2 * math.pi * (unit[:, 0] - 0.5))
    low, high = (math.sin(math.radians(e)) for e in (ranges.elevation_low, ranges.elevation_high))
    elevation = torch.asin(low + (high - low) * unit[:, 1])
    roll = math.radians(ranges.roll) * (2 * unit[:, 2] - 1)
    distance = ranges.distance_low + (ranges.distance_high - ranges.distance_low) * unit[:, 3]
    fill = ranges.fill_low + (ranges.fill_high - ranges.fill_low) * unit[:, 4]
    focal = fill * FRAME_SIZE * distance / PERSON_HEIGHT
    framing = ranges.framing * (2 * unit[:, 5:7] - 1)
    return View(azimuth, elevation, roll, distance, focal, framing)


def asked_for(
    unit: Tensor,  # [B, N] in (0, 1): azimuth and elevation first
    condition: ConditionConfig,
    ranges: CameraRangeConfig,
) -> Tensor:  # [B, N]
    """Azimuth and elevation squeezed into the condition's share of their ranges. Differentiable."""
    low, high = (math.sin(math.radians(e)) for e in (ranges.elevation_low, ranges.elevation_high))
    width = max(high - low, 1e-6)
    heights = [
        min(max((math.sin(math.radians(e)) - low) / width, 0.0), 1.0)
        for e in (condition.elevation_low, condition.elevation_high)
    ]
    turns = [0.5 + angle / 360 for angle in (condition.azimuth_low, condition.azimuth_high)]
    squeezed = [
        first + (last - first) * unit[:, [channel]]
        for channel, (first, last) in enumerate((turns, heights))
    ]
    return torch.cat([*squeezed, unit[:, 2:]], 1)


@dataclass(frozen=True)
class PoseBank:
    """All frames of some clips, to draw real poses from."""

    poses: PoseBatch  # [N]
    clip: Tensor  # [N] long, row of `names`
    frame: Tensor  # [N] long, number in the clip's whole recording
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.poses)

    @classmethod
    def from_clips(cls, clips: Sequence[Clip]) -> PoseBank:
        """Stacks the clips' frames; raises DataError when there are none."""
        lengths = [len(clip.poses) for clip in clips]
        if sum(lengths) == 0:
            raise DataError(
                "There are no motion frames to draw poses from.", "Name at least one clip."
            )
        return cls(
            PoseBatch(
                torch.cat([clip.poses.rotations for clip in clips]),
                torch.cat([clip.poses.translation for clip in clips]),
            ),
            torch.repeat_interleave(torch.arange(len(clips)), torch.tensor(lengths)),
            torch.cat([clip.start + torch.arange(len(clip.poses)) for clip in clips]),
            tuple(clip.name for clip in clips),
        )

    def only(self, patterns: Sequence[str]) -> PoseBank:
        """The frames of the clips whose names match one of the patterns; all, if there is none.

        Raises:
            ConfigError: a pattern matches no clip.
        """
        if not patterns:
            return self
        for pattern in patterns:
            if not fnmatch.filter(self.names, pattern):
                raise ConfigError(
                    f"generator.condition.clips: no source clip is called {pattern!r}.",
                    f"They are {', '.join(self.names)}; * stands for anything.",
                )
        kept = [any(fnmatch.fnmatch(name, one) for one in patterns) for name in self.names]
        rows = torch.tensor(kept)[self.clip].nonzero()[:, 0]
        return PoseBank(
            self.poses[rows],
            (torch.tensor(kept).cumsum(0) - 1)[self.clip[rows]],
            self.frame[rows],
            tuple(name for name, wanted in zip(self.names, kept, strict=True) if wanted),
        )

    def frame_names(self, rows: Tensor) -> tuple[str, ...]:
        """Where poses come from: "clip:frame"."""
        clips, frames = self.clip[rows].tolist(), self.frame[rows].tolist()
        return tuple(f"{self.names[c]}:{f}" for c, f in zip(clips, frames, strict=True))

    def draw(
        self,
        count: int,
        rng: torch.Generator,
    ) -> Tensor:  # [count] long, rows of `poses`
        """Clips are equally likely, and so are the frames of a clip, however long it is."""
        share = 1.0 / torch.bincount(self.clip, minlength=len(self.names)).float()[self.clip]
        return torch.multinomial(share, count, replacement=True, generator=rng)

    def spread(self) -> Tensor:  # [24, 3] radians
        """Standard deviation of each joint's rotation about its axes: 0 where nothing moves.

        Capture leaves some joints still (hands, toes) and bends others about one axis only (knees,
        elbows): perturbations scaled by this stay as plausible.
        """
        rotations = self.poses.rotations
        mean = roma.special_procrustes(rotations.mean(0))
        spread: Tensor = to_axis_angle(mean.transpose(-1, -2) @ rotations).std(0)
        return spread


class ProposalSampler(Protocol):
    """Draws proposals; learned generators and plain samplers look the same to their users."""

    def __call__(self, count: int, rng: torch.Generator) -> tuple[Proposal, tuple[str, ...]]:
        """`count` proposals and where each pose comes from: "clip:frame", or "generated"."""
        ...


class RealPoseSampler:
    """Real frames, seen from cameras and in light of a range, on equally likely subjects.

    Without a range of light people are lit as they were filmed, without a condition everything
    is asked for.
    """

    def __init__(
        self,
        bank: PoseBank,
        camera: CameraRangeConfig,
        num_subjects: int,
        light: LightRangeConfig | None = None,
        condition: ConditionConfig | None = None,
    ) -> None:
        self.bank = bank
        self.camera = camera
        self.condition = condition or ConditionConfig()
        self.base = bank.only(self.condition.clips)
        self.num_subjects = num_subjects
        self.light = light

    def __call__(self, count: int, rng: torch.Generator) -> tuple[Proposal, tuple[str, ...]]:
        rows = self.base.draw(count, rng)
        poses = self.change(self.base.poses[rows], rng)
        unit = torch.rand(count, CAMERA_CHANNELS, generator=rng)
        unit = asked_for(unit, self.condition, self.camera)
        view = view_from_unit(unit, self.camera, facing(poses.rotations))
        subjects = torch.randint(self.num_subjects, (count,), generator=rng)
        lighting = as_filmed(count)
        if self.light is not None:
            unit = torch.rand(count, LIGHT_CHANNELS, generator=rng)
            lighting = lighting_from_unit(unit, self.light)
        return Proposal(poses, view, subjects, lighting), self.base.frame_names(rows)

    def change(self, poses: PoseBatch, rng: torch.Generator) -> PoseBatch:
        """What is done to the real poses; here nothing."""
        return poses


class SourceSampler(RealPoseSampler):
    """Real frames from eye level: how the source looks."""

    def __init__(
        self, bank: PoseBank, num_subjects: int, light: LightRangeConfig | None = None
    ) -> None:
        super().__init__(bank, CameraRangeConfig.eye_level(), num_subjects, light)


class RandomSampler(RealPoseSampler):
    """Broad and blind: recombined and perturbed real poses, from any camera of the range.

    Args:
        recombine: share of poses that get limbs of other real frames.
        share_tumbling: see `tumble`.
        noise_degrees: standard deviation of each joint's random turn, but no more than that of
            the joint's own motion. Turns that would pass the joint's limits are made smaller.
    """

    def __init__(
        self,
        bank: PoseBank,
        camera: CameraRangeConfig,
        num_subjects: int,
        recombine: float = 0.75,
        share_tumbling: float = 0.0,
        noise_degrees: float = 22.0,
        light: LightRangeConfig | None = None,
        condition: ConditionConfig | None = None,
    ) -> None:
        super().__init__(bank, camera, num_subjects, light, condition)
        self.recombine = recombine
        self.share_tumbling = share_tumbling
        self.scale = bank.spread().clamp_max(math.radians(noise_degrees))  # [24, 3]
        self.limits = JointLimits.anatomical().widened(bank.poses.rotations, 0.0)

    def change(self, poses: PoseBatch, rng: torch.Generator) -> PoseBatch:
        count = len(poses)
        rotations = recombine(poses.rotations, self.base, self.recombine, rng)
        turn = torch.randn(count, NUM_JOINTS, 3, generator=rng) * self.scale
        turn = turn * self.limits.share_within(rotations, turn)[..., None]
        rotations = tumble(rotations @ from_axis_angle(turn), self.share_tumbling, rng)
        return PoseBatch(rotations, poses.translation)


def descendants(name: str) -> tuple[int, ...]:
    """A joint and all below it in the tree."""
    inside = {JOINT[name]}
    for joint, parent in enumerate(PARENTS):
        if parent in inside:
            inside.add(joint)
    return tuple(sorted(inside))


LIMBS = tuple(
    descendants(name) for name in ("left_collar", "right_collar", "left_hip", "right_hip")
)


def recombine(
    rotations: Tensor,  # [B, 24, 3, 3]
    bank: PoseBank,
    share: float,
    rng: torch.Generator,
) -> Tensor:  # [B, 24, 3, 3]
    """That share of the poses takes each of its limbs, by the toss of a coin, from a real pose.

    Each limb comes from another pose, so that arms and legs meet as no clip shows them.
    """
    count = len(rotations)
    chosen = torch.rand(count, generator=rng) < share
    for limb in LIMBS:
        donors = bank.poses.rotations[bank.draw(count, rng)]
        taken = chosen & (torch.rand(count, generator=rng) < 0.5)
        mask = torch.zeros(count, NUM_JOINTS, dtype=torch.bool)
        mask[:, list(limb)] = taken[:, None]
        rotations = torch.where(mask[..., None, None].to(rotations.device), donors, rotations)
    return rotations


def tumble(
    rotations: Tensor,  # [B, 24, 3, 3]
    share: float,
    rng: torch.Generator,
) -> Tensor:  # [B, 24, 3, 3]
    """That share of the bodies turns as a whole about a random level axis, by up to 180 degrees.

    Everyday clips show people on their feet; those who fall, roll or do cartwheels are not. No
    joint bends otherwise than before.
    """
    if share == 0:
        return rotations
    count = len(rotations)
    chosen = torch.rand(count, generator=rng) < share
    angle = math.pi * torch.rand(count, generator=rng) * chosen
    heading = 2 * math.pi * torch.rand(count, generator=rng)
    axis = torch.stack([heading.cos(), torch.zeros(count), heading.sin()], 1)
    turned = from_axis_angle(axis * angle[:, None]).to(rotations) @ rotations[:, 0]
    return torch.cat([turned[:, None], rotations[:, 1:]], 1)
