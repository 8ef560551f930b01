"""Small, made-up poses and people for the tests of generation and the adversarial step."""

from __future__ import annotations

import math

import torch
from bodies import capsule_body

from posegen_ray.body.rotation import about_axis
from posegen_ray.body.skeleton import JOINT, NUM_JOINTS
from posegen_ray.config import ValidityConfig
from posegen_ray.generation.proposal import PoseBank
from posegen_ray.generation.validity import ValidityChecker
from posegen_ray.motion.clips import Clip
from posegen_ray.records import PoseBatch
from posegen_ray.scene import People


def stride(frames: int, swing: float, heading: float) -> PoseBatch:
    """A simple gait: legs and hanging arms swing, knees and elbows bend, the root has a heading."""
    phase = torch.linspace(0, 2 * math.pi, frames + 1)[:-1]
    rotations = torch.eye(3).repeat(frames, NUM_JOINTS, 1, 1)
    rotations[:, 0] = about_axis(1, heading + 0.1 * phase.sin())
    for side, sign in (("left", 1.0), ("right", -1.0)):
        leg = about_axis(0, sign * swing * phase.sin())
        rotations[:, JOINT[f"{side}_hip"]] = leg
        rotations[:, JOINT[f"{side}_knee"]] = about_axis(0, 0.4 + 0.3 * sign * phase.cos())
        hang = about_axis(2, torch.full((frames,), -sign * 1.2))
        rotations[:, JOINT[f"{side}_shoulder"]] = about_axis(0, -sign * swing * phase.sin()) @ hang
        rotations[:, JOINT[f"{side}_elbow"]] = about_axis(1, -sign * (0.5 + 0.2 * phase.sin()))
    rotations[:, JOINT["spine2"]] = about_axis(1, 0.1 * phase.sin())
    return PoseBatch(rotations, torch.zeros(frames, 3))


def small_bank() -> PoseBank:
    """Two clips of different length."""
    return PoseBank.from_clips(
        [
            Clip("stroll", stride(12, 0.4, 0.0), 30.0),
            Clip("march", stride(30, 0.7, 1.0), 30.0),
        ]
    )


def capsule_people(count: int = 2) -> People:
    """Capsule figures of different size."""
    shapes = torch.zeros(count, 2)
    shapes[:, 0] = torch.linspace(-0.5, 0.5, count) if count > 1 else 0.0
    return People(tuple(f"person{i}" for i in range(count)), shapes, capsule_body())


def capsule_checker(people: People, config: ValidityConfig | None = None) -> ValidityChecker:
    """A checker that has seen the small bank."""
    real = small_bank().poses.rotations
    return ValidityChecker(config or ValidityConfig(), people.body, people.shapes, real)
