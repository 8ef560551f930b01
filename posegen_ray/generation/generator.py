"""The generator: noise (and, in residual mode, a real pose) -> pose, camera, light and subject.

Knows nothing about rendering or estimators. B is the batch. Differentiable in its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from posegen_ray.body.rotation import from_6d, from_axis_angle, to_6d
from posegen_ray.body.skeleton import NUM_JOINTS
from posegen_ray.config import GeneratorConfig
from posegen_ray.errors import CheckpointError
from posegen_ray.generation.critic import Critic, features
from posegen_ray.generation.lighting import LIGHT_CHANNELS, lighting_from_unit
from posegen_ray.generation.limits import JointLimits
from posegen_ray.generation.proposal import (
    CAMERA_CHANNELS,
    GENERATED,
    PoseBank,
    Proposal,
    asked_for,
    facing,
    recombine,
    tumble,
    view_from_unit,
)
from posegen_ray.records import PoseBatch


@dataclass(frozen=True)
class Latent:
    """All the randomness of a batch of proposals: the same latents give the same proposals."""

    noise: Tensor  # [B, Z] standard normal
    unit: Tensor  # [B, 11] uniform: the prior of camera and light
    turn: Tensor  # [B, 24, 3] standard normal, smaller at joint limits: the residual's prior
    base: PoseBatch  # [B] real poses (only their orientation and place matter in noise mode)
    subject: Tensor  # [B] uniform: which subject

    def __len__(self) -> int:
        return len(self.base)

    def to(self, device: torch.device) -> Latent:
        return Latent(
            self.noise.to(device),
            self.unit.to(device),
            self.turn.to(device),
            self.base.to(device),
            self.subject.to(device),
        )

    def __getitem__(self, index: Tensor) -> Latent:
        return Latent(
            self.noise[index],
            self.unit[index],
            self.turn[index],
            self.base[index],
            self.subject[index],
        )


@dataclass(frozen=True)
class Generated:
    """Proposals and what the losses need to know about their making."""

    proposal: Proposal
    latent: Latent
    unit: Tensor  # [B, 11] in (0, 1): place of camera (7) and light (4) in what is asked for
    shift: Tensor  # [B, 11] in (-1, 1): how far it was moved from the prior, of what is allowed
    circles: Tensor  # [11] which of these numbers are a whole turn: 0 and 1 are the same
    residual: Tensor  # [B, 24, 3] in (-1, 1): change of the base pose, in bounds; 0 in noise mode
    prior_residual: Tensor  # [B, 24, 3] the same before learning
    subject_log_probability: Tensor  # [B] for a score-function gradient to the choice
    log_probability: Tensor  # [B] of what was tried, up to a constant; 0 where nothing was


VIEW_CHANNELS = CAMERA_CHANNELS + LIGHT_CHANNELS
Screen = Callable[[Proposal], Tensor]
_SCREENED_AT_ONCE = 4  # candidates for a place: most of the time one of them passes


class Generator(nn.Module):
    """Proposes poses, cameras, light and subjects.

    Camera and light are drawn from the prior (uniform in the configured range) and moved by a
    learned, bounded shift in logits: an untrained generator shows the prior, and no camera leaves
    its range.

    Residual mode treats poses alike: a real pose (some have limbs of another), whose joints turn
    by random angles, moved by a learned shift, never beyond `residual_degrees` or
    `residual_spread` standard deviations of the joint's real motion. Noise mode makes 6D
    rotations from noise alone.

    Of several candidates, those that `screen` lets pass, the critic chooses the one to keep (at
    random until it has learned). Nothing is rendered for it.

    Args:
        config: sizes and bounds.
        bank: real poses; not part of the state dict.
        num_subjects: rows of the table of people.
        screen: which proposals are possible at all [B] bool; None: all.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        bank: PoseBank,
        num_subjects: int,
        screen: Screen | None = None,
    ) -> None:
        super().__init__()
        self.screen = screen
        self.config = config
        self.bank = bank
        self.base = bank.only(config.condition.clips)
        self.num_subjects = num_subjects
        self.limits = JointLimits.anatomical().widened(bank.poses.rotations, 0.0)
        self.bound: Tensor  # [24, 3] radians
        bound = config.residual_spread * bank.spread()
        bound = bound.clamp_max(math.radians(config.residual_degrees))
        bound[0] = bound[0].clamp_max(math.radians(config.residual_degrees) / 3)
        self.register_buffer("bound", bound)
        circles = torch.zeros(VIEW_CHANNELS, dtype=torch.bool)
        condition = config.condition
        circles[0] = condition.azimuth_high - condition.azimuth_low == 360
        circles[CAMERA_CHANNELS] = config.light.turn == 180
        self.circles: Tensor
        self.register_buffer("circles", circles, persistent=False)
        self.moves: Tensor  # [11] which numbers of camera and light are learned
        of_camera = torch.arange(VIEW_CHANNELS) < CAMERA_CHANNELS
        moves = torch.where(of_camera, "camera" in config.learns, "light" in config.learns)
        self.register_buffer("moves", moves, persistent=False)
        inputs = config.noise + VIEW_CHANNELS + 4  # angles as sine and cosine, and the heading
        if config.mode == "residual":
            inputs += NUM_JOINTS * (6 + 3)
        layers: list[nn.Module] = []
        for _ in range(config.layers):
            layers += [nn.Linear(inputs, config.hidden), nn.LeakyReLU(0.2)]
            inputs = config.hidden
        self.trunk = nn.Sequential(*layers)
        self.pose_head = nn.Linear(inputs, NUM_JOINTS * (3 if config.mode == "residual" else 6))
        self.view_head = nn.Linear(inputs, VIEW_CHANNELS)  # and light
        self.subject_logits = nn.Parameter(torch.zeros(num_subjects))
        self.critic = Critic(num_subjects)
        for head in (self.pose_head, self.view_head):
            nn.init.normal_(head.weight, std=1e-3)
            nn.init.zeros_(head.bias)
        if config.mode == "noise":
            # start around the mean pose with the spread that the hidden layers give
            nn.init.xavier_normal_(self.pose_head.weight, gain=1.0)
            mean = from_6d(to_6d(bank.poses.rotations).mean(0))
            with torch.no_grad():
                self.pose_head.bias.copy_(to_6d(mean).flatten())

    def expected_payment(self, proposal: Proposal) -> Tensor:  # [B]
        """What the critic expects. Differentiable in pose, view and lighting."""
        answer: Tensor = self.critic(features(proposal, self.num_subjects))
        return answer

    def own_parameters(self) -> list[nn.Parameter]:
        """All but the critic's, which learns from other data."""
        return [p for name, p in self.named_parameters() if not name.startswith("critic.")]

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Takes over weights from a checkpoint.

        Raises:
            CheckpointError: they are those of another kind of generator.
        """
        try:
            self.load_state_dict(dict(state))
        except RuntimeError as error:
            raise CheckpointError(
                "The weights of the generator do not fit: they were written with other settings "
                f"of its network, or by another version ({str(error).splitlines()[-1].strip()}).",
                "Train again, or use the version and the settings that wrote them.",
            ) from error

    @torch.no_grad()
    def draw(self, count: int, rng: torch.Generator) -> Latent:
        """Latents of `count` proposals, each chosen from candidates."""
        candidates = self.config.candidates
        latent = self.draw_prior(count * candidates, rng)
        if candidates == 1:
            return latent
        # all candidates for a place show one subject, or the choice would favour the hardest one
        latent = replace(latent, subject=latent.subject[:count].repeat_interleave(candidates))
        # nor may the choice learn what is not to be learned
        one = latent[torch.arange(count, device=self.device).repeat_interleave(candidates)]
        latent = replace(latent, unit=torch.where(self.moves, latent.unit, one.unit))
        if "pose" not in self.config.learns:
            latent = replace(latent, base=one.base, turn=one.turn)
        proposal = self(latent).proposal
        score = self.expected_payment(proposal) / self.config.temperature
        score = torch.nan_to_num(score.cpu(), 0.0, 0.0, 0.0)
        # the largest of scores with Gumbel noise is a draw from their softmax, whatever subset is
        # left: so candidates are screened in this order, and only until one passes
        noise = -torch.log(-torch.log(torch.rand(len(score), generator=rng).clamp(1e-20, 1 - 1e-7)))
        order = (score + noise).unflatten(0, (count, candidates)).argsort(1, descending=True)
        return latent[self._first_to_pass(proposal, order)]

    def _first_to_pass(
        self,
        proposal: Proposal,  # of count * candidates
        order: Tensor,  # [count, candidates]
    ) -> Tensor:  # [count] row of the first candidate for each place that passes; else of the first
        rows = order + order.shape[1] * torch.arange(len(order))[:, None]
        chosen = rows[:, 0].clone()
        if self.screen is None:
            return chosen
        waiting = torch.arange(len(order))
        for start in range(0, order.shape[1], _SCREENED_AT_ONCE):
            some = rows[waiting, start : start + _SCREENED_AT_ONCE]
            passes = self.screen(proposal[some.flatten().tolist()]).cpu().view(some.shape)
            good = passes.any(1)
            first = passes.int().argmax(1)  # of equal values the first
            chosen[waiting[good]] = some[good, first[good]]
            waiting = waiting[~good]
            if len(waiting) == 0:
                break
        return chosen

    @property
    def device(self) -> torch.device:
        """Where proposals are made; what is random is drawn on the CPU."""
        return self.subject_logits.device

    def draw_prior(self, count: int, rng: torch.Generator) -> Latent:
        """Latents without a choice."""
        base = self.base.poses[self.base.draw(count, rng)]
        rotations = recombine(base.rotations, self.base, self.config.recombine, rng)
        turn = torch.randn(count, NUM_JOINTS, 3, generator=rng)
        rotations = tumble(rotations, self.config.tumble, rng)
        made = torch.tanh(self.config.residual_prior * turn) * self.bound.cpu()
        return Latent(
            torch.randn(count, self.config.noise, generator=rng),
            torch.rand(count, VIEW_CHANNELS, generator=rng),
            turn * self.limits.share_within(rotations, made)[..., None],
            PoseBatch(rotations, base.translation),
            torch.rand(count, generator=rng),
        ).to(self.device)

    @property
    def num_actions(self) -> int:
        """How many numbers decide on pose, camera and light: those that `forward` adds noise to."""
        return self.pose_head.out_features + self.view_head.out_features

    def forward(
        self,
        latent: Latent,
        noise: Tensor | None = None,  # [B, num_actions] standard normal
        spread: float = 1.0,
    ) -> Generated:
        """Latents -> proposals. Differentiable in the weights.

        Args:
            noise, spread: what is added to the numbers that decide on pose, camera and light, to
                try what lies around them; `log_probability` says how likely the sums were.
        """
        config = self.config
        base = latent.base
        unit = latent.unit.clamp(1e-3, 1 - 1e-3)
        start = asked_for(unit, config.condition, config.camera)
        # from which side light falls on the body depends on where in the world it faces
        heading = facing(base.rotations)
        lamp = lighting_from_unit(start[:, CAMERA_CHANNELS:], config.light).light[:, 0]
        angles = torch.stack([2 * math.pi * start[:, 0], lamp, heading], 1)
        others = [c for c in range(VIEW_CHANNELS) if c not in (0, CAMERA_CHANNELS)]
        inputs = [latent.noise, angles.cos(), angles.sin(), 2 * start[:, others] - 1]
        if config.mode == "residual":
            # the body's heading is taken out: the azimuth is relative to it
            upright = _without_heading(base.rotations)
            inputs += [to_6d(upright).flatten(1), latent.turn.flatten(1)]
        hidden = self.trunk(torch.cat(inputs, 1))
        raw, camera = self.pose_head(hidden), self.view_head(hidden)
        if "pose" not in config.learns:
            raw = raw.detach() * 0
        camera = torch.where(self.moves, camera, camera.detach() * 0)
        log_probability = raw.new_zeros(len(latent))
        if noise is not None:
            decided = torch.cat([raw, camera], 1)
            tried = decided + spread * noise
            log_probability = -((tried.detach() - decided) / spread).square().sum(1) / 2
            raw, camera = tried.split([raw.shape[1], camera.shape[1]], 1)
        if config.mode == "residual":
            shift = config.residual_shift * torch.tanh(raw.unflatten(-1, (NUM_JOINTS, 3)))
            prior_residual = torch.tanh(config.residual_prior * latent.turn)
            residual = torch.tanh(config.residual_prior * latent.turn + shift)
            turned = base.rotations @ from_axis_angle(residual * self.bound)
            poses = PoseBatch(turned, base.translation)
        else:
            residual = prior_residual = raw.new_zeros(len(latent), NUM_JOINTS, 3)
            rotations = from_6d(raw.unflatten(-1, (NUM_JOINTS, 6)))
            poses = PoseBatch(rotations, base.translation)
        shift = torch.tanh(camera)
        inside = torch.sigmoid(torch.logit(unit) + config.camera_shift * shift)
        # on a circle a shift may carry past the ends, up to half a turn
        limit = min(0.5, config.camera_shift / 4)
        around = torch.remainder(latent.unit + limit * shift, 1.0)
        moved = torch.where(self.circles, around, inside)
        placed = asked_for(moved, config.condition, config.camera)
        # no gradient through the heading: it is undefined for a body that lies on its back
        heading = facing(base.rotations if config.mode == "residual" else poses.rotations).detach()
        view = view_from_unit(placed[:, :CAMERA_CHANNELS], config.camera, heading)
        lighting = lighting_from_unit(placed[:, CAMERA_CHANNELS:], config.light)
        subjects, subject_log_probability = self._subjects(latent.subject)
        proposal = Proposal(poses, view, subjects, lighting)
        return Generated(
            proposal,
            latent,
            moved,
            shift,
            self.circles,
            residual,
            prior_residual,
            subject_log_probability,
            log_probability,
        )

    def sample(self, count: int, rng: torch.Generator) -> Proposal:
        """`count` new proposals. Differentiable in the weights."""
        generated: Generated = self(self.draw(count, rng))
        return generated.proposal

    def _subjects(
        self,
        uniform: Tensor,  # [B]
    ) -> tuple[Tensor, Tensor]:  # rows [B] long, their log-probabilities [B]
        """Inverse CDF of the subjects' probabilities; they are equal unless learned."""
        logits = self.subject_logits if self.config.learn_subject else self.subject_logits * 0
        edges = torch.softmax(logits.detach(), 0).cumsum(0)
        rows = torch.searchsorted(edges, uniform).clamp_max(self.num_subjects - 1)
        return rows, torch.log_softmax(logits, 0)[rows]


class GeneratorSampler:
    """A generator as a `ProposalSampler`: without gradients, and every pose named "generated"."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    @torch.no_grad()
    def __call__(self, count: int, rng: torch.Generator) -> tuple[Proposal, tuple[str, ...]]:
        return self.generator.sample(count, rng), (GENERATED,) * count


def _without_heading(
    rotations: Tensor,  # [B, 24, 3, 3]
) -> Tensor:  # [B, 24, 3, 3]
    """The same poses turned about the up axis to face +z."""
    heading = facing(rotations)
    up = torch.zeros(len(heading), 3, device=heading.device, dtype=heading.dtype)
    up = torch.cat([up[:, :1], -heading[:, None], up[:, 2:]], 1)
    root = from_axis_angle(up) @ rotations[:, 0]
    return torch.cat([root[:, None], rotations[:, 1:]], 1)
