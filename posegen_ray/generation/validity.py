"""Which proposals are worth rendering: possible bodies, visible and inside the frame.

Knows nothing about rendering or estimators: bodies are capsules, one a bone. Runs on whole batches
without gradients. B is the batch, C the capsules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from posegen_ray.body.camera import Camera, project, to_camera
from posegen_ray.body.model import BodyModel, PosedBody, forward_kinematics
from posegen_ray.body.skeleton import JOINT, LIMB_JOINTS, PARENTS
from posegen_ray.config import ANYHOW, ValidityConfig
from posegen_ray.generation.limits import JointLimits
from posegen_ray.generation.proposal import Proposal
from posegen_ray.generation.support import overhang

# Capsules run between joints; the head's and the hands' reach beyond their last joint.
_SEGMENTS: tuple[tuple[str, str], ...] = (
    ("pelvis", "spine2"),
    ("spine2", "neck"),
    ("head", "head"),
    ("left_shoulder", "left_elbow"),
    ("right_shoulder", "right_elbow"),
    ("left_elbow", "left_wrist"),
    ("right_elbow", "right_wrist"),
    ("left_wrist", "left_hand"),
    ("right_wrist", "right_hand"),
    ("left_hip", "left_knee"),
    ("right_hip", "right_knee"),
    ("left_knee", "left_ankle"),
    ("right_knee", "right_ankle"),
    ("left_ankle", "left_foot"),
    ("right_ankle", "right_foot"),
)
# shares of the body's mass (de Leva 1996, table 4, mean of both sexes): the trunk in two halves,
# the head, then upper arms, forearms, hands, thighs, shanks and feet, each left and right
_LIMB_MASS = (0.026, 0.015, 0.006, 0.145, 0.046, 0.013)
_MASS = torch.tensor([0.215, 0.215, 0.068, *(share for share in _LIMB_MASS for _ in range(2))])
_AS_REAL = 0.95  # quantile of real poses' overhang: some jump
_START = [JOINT[start] for start, _ in _SEGMENTS]
_END = [JOINT[end] for _, end in _SEGMENTS]
_SHRINK = 0.8  # capsules are this much slimmer when they hide something: limbs are not cylinders


@dataclass(frozen=True)
class Validity:
    """One boolean per sample and reason; True is good."""

    joint_limits: Tensor  # [B]
    self_penetration: Tensor  # [B]
    in_frame: Tensor  # [B]
    visible: Tensor  # [B]
    supported: Tensor  # [B] what touches the ground carries the body (always, if not wanted)
    camera: Tensor  # [B] outside the body, and above the ground where there is one

    @property
    def valid(self) -> Tensor:  # [B]
        """Good for every reason."""
        columns = torch.stack([getattr(self, field.name) for field in fields(self)])
        return columns.all(0)

    def counts(self) -> dict[str, int]:
        """`drawn`, `valid` and how many samples each reason rejects (reasons may overlap)."""
        result = {"drawn": len(self.camera), "valid": int(self.valid.sum())}
        for field in fields(self):
            result[field.name] = int((~getattr(self, field.name)).sum())
        return result

    def __getitem__(self, index: Tensor | list[int]) -> Validity:
        return Validity(*(getattr(self, field.name)[index] for field in fields(self)))


def concatenate_validity(parts: list[Validity]) -> Validity:
    """One record from several, in order."""
    columns = [
        torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Validity)
    ]
    return Validity(*columns)


def add_counts(total: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """The sum of two tables of counts."""
    return {name: total.get(name, 0) + more.get(name, 0) for name in {**total, **more}}


class ValidityChecker:
    """Checks proposals against a body's proportions and what real poses do.

    Args:
        config: thresholds.
        body: gives the capsules' radii (from skinning weights) for every shape.
        shapes: [N, S] of the people.
        real: rotations [M, 24, 3, 3] of real poses: they widen the joint limits, and bones may
            overlap as much as they do there (retargeted poses graze), and the centre of mass may
            overhang as much.
    """

    def __init__(
        self, config: ValidityConfig, body: BodyModel, shapes: Tensor, real: Tensor
    ) -> None:
        self.config = config
        margin = math.radians(config.limit_margin_degrees)
        self.limits = JointLimits.anatomical().widened(real, margin)
        self.radii = torch.stack([capsule_radii(body, shape) for shape in shapes])  # [N, C]
        self.pairs = _separate_pairs()
        mean = self.radii.mean(0, keepdim=True)
        rest = body.rest_joints(shapes.mean(0, keepdim=True))
        overlaps, overhangs = [], []
        for chunk in torch.cat([torch.eye(3).expand(1, 24, 3, 3), real]).split(256):
            joints, bones = forward_kinematics(chunk, rest.expand(len(chunk), -1, -1))
            axes = capsules(joints, bones)
            overlaps.append(self._overlap(*axes, mean))
            overhangs.append(overhang(*axes, mean, _MASS))
        self.allowed = torch.cat(overlaps).amax(0).clamp_min(0)  # [P] metres
        self.allowed_overhang = float(torch.cat(overhangs).quantile(_AS_REAL))  # metres

    @torch.no_grad()
    def check(
        self,
        proposal: Proposal,
        posed: PosedBody,
        frame: Camera,  # the full frame
    ) -> Validity:
        """Judges each sample; nothing is rendered."""
        config = self.config
        start, end = capsules(posed.joints, posed.bones)
        radii = self.radii.to(start)[proposal.subjects]
        overlap = self._overlap(start, end, radii) - self.allowed.to(start)
        centre = -(frame.rotation.transpose(-1, -2) @ frame.translation[..., None])[..., 0]
        clear = (_distance_to(centre, start, end) - radii > config.camera_clearance).all(1)
        if config.above_ground:
            ground = posed.joints[..., 1].amin(1).clamp_max(0.1)
            clear = clear & (centre[:, 1] > ground + config.camera_height)
        supported = torch.ones(len(start), dtype=torch.bool, device=start.device)
        if config.support != ANYHOW:
            hanging = overhang(start, end, radii, _MASS.to(start))
            supported = hanging <= self.allowed_overhang + config.support
        return Validity(
            joint_limits=(self.limits.excess(proposal.poses.rotations) <= 1e-4).all(2).all(1),
            self_penetration=(overlap <= config.penetration).all(1),
            in_frame=_in_frame(frame, torch.cat([posed.joints, end], 1), config.frame_margin),
            visible=_visible(centre, posed.joints, start, end, radii) >= config.visible_joints,
            supported=supported,
            camera=clear,
        )

    def _overlap(self, start: Tensor, end: Tensor, radii: Tensor) -> Tensor:  # [B, P] metres
        first, second = self.pairs[:, 0], self.pairs[:, 1]
        distance = segment_distance(
            start[:, first], end[:, first], start[:, second], end[:, second]
        )
        return radii[:, first] + radii[:, second] - distance


def capsules(
    joints: Tensor,  # [B, 24, 3]
    bones: Tensor,  # [B, 24, 3, 4]
) -> tuple[Tensor, Tensor]:  # start, end [B, C, 3] world
    """Axes of the capsules of a posed body."""
    start, end = joints[:, _START], joints[:, _END].clone()
    # the head's joint is at its base: its axis runs up from there
    end[:, 2] = start[:, 2] + 0.12 * bones[:, JOINT["head"], :, 1]
    return start, end


def capsule_radii(
    body: BodyModel,
    shape: Tensor,  # [S]
) -> Tensor:  # [C] metres
    """Median distance of each bone's own vertices from the bone's axis in the T-pose."""
    joints = body.rest_joints(shape[None])
    bones = torch.cat([torch.eye(3), torch.zeros(3, 1)], 1).expand(1, 24, 3, 4)
    start, end = capsules(joints, bones)
    vertices = body.rest_vertices(shape[None])[0]
    owner = body.skinning_weights.argmax(1)
    radii = []
    for index, (first, last) in enumerate(_SEGMENTS):
        inside = {JOINT[first], *_between(JOINT[first], JOINT[last])}
        mine = vertices[torch.isin(owner, torch.tensor(sorted(inside)))]
        if len(mine) == 0:
            radii.append(torch.tensor(0.05))
            continue
        radii.append(_distance_to(mine, start[:, [index]], end[:, [index]])[:, 0].median())
    return torch.stack(radii)


def segment_distance(
    start_a: Tensor,  # [..., 3]
    end_a: Tensor,
    start_b: Tensor,
    end_b: Tensor,
) -> Tensor:  # [...] metres
    """Smallest distance between segments (Ericson, Real-Time Collision Detection, 5.1.9).

    A segment may be a point.
    """
    along_a, along_b, apart = end_a - start_a, end_b - start_b, start_a - start_b
    tiny = 1e-9
    aa = (along_a * along_a).sum(-1).clamp_min(tiny)
    bb = (along_b * along_b).sum(-1).clamp_min(tiny)
    ab, a_apart, b_apart = (
        (x * y).sum(-1) for x, y in ((along_a, along_b), (along_a, apart), (along_b, apart))
    )
    s = ((ab * b_apart - a_apart * bb) / (aa * bb - ab * ab).clamp_min(tiny)).clamp(0, 1)
    t = ((ab * s + b_apart) / bb).clamp(0, 1)
    s = ((ab * t - a_apart) / aa).clamp(0, 1)
    gap = apart + s[..., None] * along_a - t[..., None] * along_b
    distance: Tensor = torch.linalg.vector_norm(gap, dim=-1)
    return distance


def _between(first: int, last: int) -> list[int]:
    """Joints from `first` (included) down to `last` (left out)."""
    chain = []
    joint = PARENTS[last] if last != first else last
    while joint not in (first, -1):
        chain.append(joint)
        joint = PARENTS[joint]
    return chain


def _separate_pairs() -> Tensor:  # [P, 2]
    """Pairs of capsules that do not meet at a joint, so that they should not touch."""
    near = {
        frozenset(pair)
        for pair in (
            (0, 1), (0, 9), (0, 10), (9, 10), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4),
            (3, 5), (4, 6), (5, 7), (6, 8), (9, 11), (10, 12), (11, 13), (12, 14), (3, 7), (4, 8),
            (9, 13), (10, 14),
        )
    }  # fmt: skip
    count = len(_SEGMENTS)
    return torch.tensor(
        [(i, j) for i in range(count) for j in range(i + 1, count) if frozenset((i, j)) not in near]
    )


def _distance_to(
    points: Tensor,  # [B, 3]
    start: Tensor,  # [B or 1, C, 3]
    end: Tensor,
) -> Tensor:  # [B, C] metres from the capsules' axes
    return segment_distance(points[:, None], points[:, None], start, end)


def _in_frame(camera: Camera, points: Tensor, margin: float) -> Tensor:  # [B]
    pixels = project(camera, points)
    ahead = (to_camera(camera, points)[..., 2] > 0.1).all(1)
    edge = margin * camera.width
    inside = (pixels >= edge) & (pixels <= camera.width - edge)
    return ahead & inside.all(2).all(1)


def _visible(
    centre: Tensor,  # [B, 3] of the camera
    joints: Tensor,  # [B, 24, 3]
    start: Tensor,  # [B, C, 3]
    end: Tensor,
    radii: Tensor,  # [B, C]
) -> Tensor:  # [B] long: how many of the 12 limb joints are not behind another bone
    points = joints[:, list(LIMB_JOINTS)]
    # [B, 12, C]: does the line of sight pass through a capsule that the joint is not part of?
    distance = segment_distance(
        centre[:, None, None], points[:, :, None], start[:, None], end[:, None]
    )
    own = torch.tensor(
        [
            [joint in (begin, finish) or _attached(joint, begin) for begin, finish in _ENDS]
            for joint in LIMB_JOINTS
        ]
    )
    blocked = (distance < _SHRINK * radii[:, None]) & ~own.to(points.device)
    return (~blocked.any(2)).sum(1)


_ENDS = tuple(zip(_START, _END, strict=True))


def _attached(joint: int, begin: int) -> bool:
    """Shoulders and hips lie inside the trunk's capsules, which therefore cannot hide them."""
    name = joint in (JOINT["left_hip"], JOINT["right_hip"])
    upper = joint in (JOINT["left_shoulder"], JOINT["right_shoulder"])
    return (name and begin == JOINT["pelvis"]) or (upper and begin == JOINT["spine2"])
