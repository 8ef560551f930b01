"""The adversarial step: the generator proposes, the estimator errs, and the generator is paid.

Takes a `render_fn`; knows nothing of Ray, of processes, or of where the pictures come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from posegen_ray.config import DiscriminatorConfig, FeedbackConfig
from posegen_ray.errors import ConfigError, TrainingError
from posegen_ray.estimators.base import PoseEstimator, computing_in, limb_joints
from posegen_ray.generation import losses
from posegen_ray.generation.critic import CriticMemory, features
from posegen_ray.generation.discriminator import Discriminator, HistoryPool
from posegen_ray.generation.generator import Generated, Generator
from posegen_ray.generation.proposal import Proposal, ProposalSampler, scene_camera
from posegen_ray.generation.validity import ValidityChecker, add_counts
from posegen_ray.judging import Answer, Rules, frozen, judge, judge_in_parts, limit_gradient
from posegen_ray.records import RenderFn
from posegen_ray.scene import BackgroundFn, People, mid_hip, pose_people

# averages the gradients of these parameters over the workers, in place
ReduceFn = Callable[[Sequence[nn.Parameter]], None]


@dataclass(frozen=True)
class StepMetrics:
    """What one step did. Errors in mm; shares in [0, 1]; NaN where nothing was rendered."""

    error_mm: float  # the estimator's median error on the valid proposals
    in_band: float  # share of them whose error lies inside the band
    ambiguous: float  # share of them that a mirrored or swapped label fits better
    payment: float
    realism: float
    diversity: float
    view_spread: float  # smallest over the channels of camera and light; 1: the prior's
    joint_limits: float
    residual: float  # mean turn of a joint away from the real pose, as a share of its bound
    discriminator: float
    critic: float  # its mean squared error on past payments
    gradient_norm: float  # the generator's, before clipping
    valid: float  # share of valid proposals
    skipped: float  # 1 when the step was skipped because of NaN or Inf

    def as_dict(self) -> dict[str, float]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


class Adversary:
    """Generator, discriminator, their optimisers and the history of fakes.

    Args:
        generator: moves with this object's optimiser.
        feedback, discriminator: settings.
        people: subjects that the generator's rows refer to.
        checker: rejects proposals before they are rendered.
        max_skipped_steps: so many non-finite steps in a row raise TrainingError.
        accumulate: in so many parts a step's proposals are rendered and judged.
        precision: of the estimator; see `computing_in`.
        reference: what it gets wrong, too, is paid less (feedback.reducible).

    It works where the generator's and the people's tensors are; randomness is drawn on the CPU, so
    that a seed proposes the same everywhere.
    """

    def __init__(
        self,
        generator: Generator,
        feedback: FeedbackConfig,
        discriminator: DiscriminatorConfig,
        people: People,
        checker: ValidityChecker,
        max_skipped_steps: int = 10,
        accumulate: int = 1,
        precision: str = "fp32",
        reference: PoseEstimator | None = None,
    ) -> None:
        self.generator = generator
        self.reference = reference
        self.feedback = feedback
        self.people = people
        self.checker = checker
        self.max_skipped_steps = max_skipped_steps
        self.accumulate = accumulate
        self.precision = precision
        self.joint_weights = losses.joint_weights(feedback.joint_weights)
        self.device = generator.device
        self.discriminator = Discriminator(discriminator).to(self.device)
        self.history = HistoryPool(discriminator.history)
        self.generator_optimizer = torch.optim.Adam(
            generator.own_parameters(), lr=feedback.learning_rate, betas=(0.5, 0.99)
        )
        self.memory = CriticMemory(feedback.critic_memory, generator.num_subjects)
        self.critic_optimizer = torch.optim.Adam(
            generator.critic.parameters(), lr=feedback.critic_learning_rate
        )
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=discriminator.learning_rate, betas=(0.5, 0.99)
        )
        self.reference_mm = 0.0  # the estimator's median error; see `calibrate`
        self.skipped = 0  # non-finite steps in a row
        self.skipped_total = 0
        self.counts: dict[str, int] = {}  # proposals drawn, valid, and rejected by reason

    @torch.no_grad()
    def calibrate(
        self,
        render_fn: RenderFn,
        estimator: PoseEstimator,
        sampler: ProposalSampler,
        background: BackgroundFn,
        count: int,
        rng: torch.Generator,
        batch_size: int = 16,
    ) -> float:
        """Measures the estimator's median error, in which the band is stated (mm)."""
        errors = []
        for start in range(0, count, batch_size):
            proposal = sampler(min(batch_size, count - start), rng)[0].to(self.device)
            pictures = background(_seeds(len(proposal), rng), estimator.crop.size)
            with frozen(estimator):
                errors.append(
                    judge(proposal, self.people, render_fn, estimator, pictures, self._rules).error
                )
        self.reference_mm = float(torch.cat(errors).median())
        return self.reference_mm

    def step(
        self,
        count: int,
        render_fn: RenderFn,
        estimator: PoseEstimator,
        background: BackgroundFn,
        rng: torch.Generator,
        reduce_fn: ReduceFn | None = None,
        progress: float = 1.0,
    ) -> StepMetrics:
        """One step of the generator, then one of the discriminator.

        `progress` is the share of the training that is done (for feedback.curriculum).

        The estimator is not changed. Where its answers have no gradient, the generator tries what
        lies around its proposals and learns by score function. A step with a NaN or Inf loss or
        gradient leaves the generator as it is. Raises TrainingError after `max_skipped_steps` of
        them in a row.
        """
        metrics, generated = self._generator_step(
            count, render_fn, estimator, background, rng, reduce_fn, progress
        )
        metrics["discriminator"] = self._discriminator_step(generated, rng, reduce_fn)
        metrics["critic"] = self._critic_steps(rng, reduce_fn)
        return StepMetrics(**metrics)

    def _generator_step(
        self,
        count: int,
        render_fn: RenderFn,
        estimator: PoseEstimator,
        background: BackgroundFn,
        rng: torch.Generator,
        reduce_fn: ReduceFn | None,
        progress: float,
    ) -> tuple[dict[str, float], Generated]:
        config = self.feedback
        by_score = self._by_score(estimator)
        latent = self.generator.draw(count, rng)
        noise = None
        if by_score:
            noise = torch.randn(count, self.generator.num_actions, generator=rng).to(self.device)
        generated: Generated = self.generator(latent, noise, config.score_noise)
        proposal = generated.proposal
        rows = self._valid_rows(proposal)
        pictures = background(_seeds(count, rng), estimator.crop.size)
        payment = generated.unit.new_zeros(())
        measured = dict.fromkeys(("error_mm", "in_band", "ambiguous"), float("nan"))
        if config.weight > 0 and rows:
            assert self.reference_mm > 0, "calibrate() comes before the first step"
            with frozen(estimator), torch.set_grad_enabled(not by_score):
                answer = judge_in_parts(
                    math.ceil(count / self.accumulate),
                    limit_gradient(proposal[rows], config.max_sample_gradient / count),
                    self.people,
                    render_fn,
                    estimator,
                    pictures[rows],
                    self._rules,
                )
            payments = self._payments(answer, progress)
            self._remember(proposal, rows, payments)
            payment = self._to_learn_from(payments, generated, rows, by_score).sum() / count
            measured = self._measured(answer)
        loss, terms = self._loss(generated, payment, rng)
        norm = self._update(
            loss,
            self.generator.own_parameters(),
            self.generator_optimizer,
            config.max_gradient_norm,
            reduce_fn,
        )
        self._count_skip(norm is None)
        spread = losses.view_spread(generated.unit.detach(), generated.circles)
        metrics = {
            **measured,
            **{name: float(term.detach()) for name, term in terms.items()},
            "payment": float(payment.detach()),
            "view_spread": float(spread.min()),
            "residual": float(generated.residual.detach().abs().mean()),
            "gradient_norm": float("nan") if norm is None else norm,
            "valid": len(rows) / count,
            "skipped": float(norm is None),
        }
        return metrics, generated

    def _payments(self, answer: Answer, progress: float) -> Tensor:  # [B]
        """What each judged proposal is paid. Differentiable in its error."""
        config = self.feedback
        payments = losses.feedback_payment(answer.error, self.reference_mm, config, progress)
        if config.reducible > 0:
            payments = payments - config.reducible * self._paid_to_reference(answer, progress)
        if not config.pay_ambiguous:
            payments = payments * (~answer.ambiguous)
        return payments * (answer.present >= self.checker.config.present_joints)

    def _to_learn_from(
        self,
        payments: Tensor,  # [R] of the valid proposals
        generated: Generated,
        rows: list[int],  # R
        by_score: bool,
    ) -> Tensor:  # [R]
        """Their mean's gradient is the generator's: by the payments' own gradient, or by score
        function; the choice of people always by the latter."""
        config = self.feedback
        if by_score:
            # so that a payment of 1 moves a sample as much as a bounded gradient would
            scale = config.max_sample_gradient * config.score_noise
            scale = scale / math.sqrt(self.generator.num_actions)
            expected = self.generator.expected_payment(generated.proposal[rows])
            payments = losses.scored(payments, expected, generated.log_probability[rows], scale)
        if self.generator.config.learn_subject:
            gain = (payments - payments.mean()).detach()
            payments = payments + gain * generated.subject_log_probability[rows]
        return payments

    def _measured(self, answer: Answer) -> dict[str, float]:
        config, error = self.feedback, answer.error.detach()
        place = error / self.reference_mm
        return {
            "error_mm": float(error.median()),
            "in_band": _share((place >= config.band_low) & (place <= config.band_high)),
            "ambiguous": _share(answer.ambiguous),
        }

    def _loss(
        self, generated: Generated, payment: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss, and those of its terms that are worth watching."""
        config = self.feedback
        expected = payment.new_zeros(())
        if config.weight > 0 and config.critic > 0:
            wide = self.generator(self.generator.draw_prior(config.critic_batch, rng))
            expected = self.generator.expected_payment(wide.proposal).mean()
        rotations = generated.proposal.poses.rotations
        terms = {
            "realism": losses.realism_loss(self.discriminator(rotations)),
            "diversity": losses.diversity(generated),
            "joint_limits": losses.joint_limit_loss(rotations, self.checker.limits),
        }
        loss = (
            -config.weight * (payment + config.critic * expected)
            + config.view_prior * generated.shift.square().sum(1).mean()
            + config.realism * terms["realism"]
            + config.diversity * terms["diversity"]
            + config.joint_limits * terms["joint_limits"]
            + config.residual * generated.residual.square().mean()
            + config.view_entropy
            * losses.view_entropy_loss(generated.unit, generated.circles, config.view_entropy_floor)
        )
        return loss, terms

    @torch.no_grad()
    def _paid_to_reference(self, answer: Answer, progress: float) -> Tensor:  # [B]
        """What the reference estimator's errors on the same pictures would be paid, at least 0."""
        assert self.reference is not None, "feedback.reducible needs a reference estimator"
        with frozen(self.reference), computing_in(self.precision, answer.images.device):
            estimate = self.reference(answer.images).full()
        joints = limb_joints(estimate, self.reference.joint_names)
        errors = losses.joint_errors(joints, answer.truth, self.joint_weights)
        paid = losses.feedback_payment(errors, self.reference_mm, self.feedback, progress)
        return paid.clamp_min(0)

    @property
    def _rules(self) -> Rules:
        config = self.feedback
        return Rules(
            config.through_image, config.through_ground_truth, self.precision, self.joint_weights
        )

    def _by_score(self, estimator: PoseEstimator) -> bool:
        wanted = self.feedback.estimator_gradient
        if wanted == "image" and not estimator.differentiable:
            raise ConfigError(
                f"feedback.estimator_gradient=image: {estimator.name} has no gradient.",
                "Use feedback.estimator_gradient=auto or score.",
            )
        return wanted == "score" or not estimator.differentiable

    def _discriminator_step(
        self, generated: Generated, rng: torch.Generator, reduce_fn: ReduceFn | None
    ) -> float:
        config = self.discriminator.config
        bank = self.generator.bank
        fake = generated.proposal.poses.rotations.detach()
        rows = bank.draw(len(fake), rng)
        fake = self.history.mix(fake, config.history_share, rng)
        real = bank.poses.rotations[rows].to(fake)
        loss = losses.discriminator_loss(self.discriminator, real, fake, config)
        parameters = list(self.discriminator.parameters())
        self._update(loss, parameters, self.discriminator_optimizer, 10.0, reduce_fn)
        return float(loss.detach())

    def _critic_steps(self, rng: torch.Generator, reduce_fn: ReduceFn | None) -> float:
        """The critic learns from the payments in its memory."""
        config, critic = self.feedback, self.generator.critic
        if config.weight == 0:
            return float("nan")
        losses_seen = []
        for _ in range(config.critic_updates):
            if len(self.memory):
                inputs, payments = self.memory.draw(config.critic_batch, rng)
                inputs, payments = inputs.to(self.device), payments.to(self.device)
                loss = (critic(inputs) - payments).square().mean()
            else:  # other workers may have a memory: take part in their averages
                loss = torch.stack([p.sum() for p in critic.parameters()]).sum() * 0
            self._update(loss, list(critic.parameters()), self.critic_optimizer, 10.0, reduce_fn)
            losses_seen.append(float(loss.detach()))
        return sum(losses_seen) / len(losses_seen)

    @torch.no_grad()
    def _remember(self, proposal: Proposal, rows: list[int], payments: Tensor) -> None:
        inputs = features(proposal, self.generator.num_subjects)
        paid = torch.full((len(proposal),), self.feedback.invalid_payment).to(inputs)
        paid[rows] = payments.detach().to(inputs)
        self.memory.add(inputs, paid)

    def _update(
        self,
        loss: Tensor,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        max_norm: float,
        reduce_fn: ReduceFn | None,
    ) -> float | None:
        """Backward, average over workers, clip, step. None, and no change, when not finite."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in parameters:  # workers must agree on what there is to average
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if reduce_fn is not None:
            reduce_fn(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        if not bool(torch.isfinite(norm)):
            optimizer.zero_grad(set_to_none=True)
            return None
        optimizer.step()
        return float(norm)

    def _valid_rows(self, proposal: Proposal) -> list[int]:
        with torch.no_grad():
            posed = pose_people(proposal, self.people)
            frame = scene_camera(proposal.view, mid_hip(posed.joints))
            validity = self.checker.check(proposal, posed, frame)
        self.counts = add_counts(self.counts, validity.counts())
        rows: list[int] = validity.valid.nonzero()[:, 0].tolist()
        return rows

    def _count_skip(self, skipped: bool) -> None:
        self.skipped = self.skipped + 1 if skipped else 0
        self.skipped_total += int(skipped)
        if self.skipped >= self.max_skipped_steps:
            raise TrainingError(
                f"{self.skipped} adversarial steps in a row had a NaN or infinite gradient.",
                "Lower feedback.learning_rate or feedback.weight, or check the renders. "
                "The last checkpoint is intact.",
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if uninterrupted."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "generator_optimizer": self.generator_optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            # what this worker has seen: each worker has its own
            "history": {"fakes": self.history.state_dict(), "payments": self.memory.state_dict()},
            "reference_mm": self.reference_mm,
            "skipped": self.skipped,
            "skipped_total": self.skipped_total,
            "counts": dict(self.counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_weights(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.generator_optimizer.load_state_dict(state["generator_optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.history.load_state_dict(state["history"]["fakes"])
        self.memory.load_state_dict(state["history"]["payments"])
        self.reference_mm = float(state["reference_mm"])
        self.skipped = int(state["skipped"])
        self.skipped_total = int(state["skipped_total"])
        self.counts = dict(state["counts"])


def _seeds(count: int, rng: torch.Generator) -> list[int]:
    seeds: list[int] = torch.randint(2**31, (count,), generator=rng).tolist()
    return seeds


def _share(mask: Tensor) -> float:
    return float(mask.float().mean())
