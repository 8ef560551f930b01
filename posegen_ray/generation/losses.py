"""What the generator and the discriminator are trained on.

Knows nothing about rendering; sees an estimator only through its answers. What is named a loss is a
mean over the batch; errors and payments are one for each sample. Differentiable in their tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES, mirrored
from posegen_ray.config import DiscriminatorConfig, FeedbackConfig
from posegen_ray.errors import ConfigError
from posegen_ray.generation.discriminator import Discriminator
from posegen_ray.generation.generator import Generated
from posegen_ray.generation.limits import JointLimits

_SWAPPED = list(mirrored(LIMB_JOINT_NAMES))


def joint_errors(
    estimate: Tensor,  # [B, 12, 3] metres
    truth: Tensor,  # [B, 12, 3] metres
    weights: Tensor | None = None,  # [12] of a mean of 1; None: all equal
) -> Tensor:  # [B] mm
    """Mean distance per sample. The gradient is 0, not NaN, where they agree exactly."""
    distances = 1000 * ((estimate - truth).square().sum(-1) + 1e-10).sqrt()
    if weights is not None:
        distances = distances * weights.to(distances)
    return distances.mean(-1)


def joint_weights(by_name: Mapping[str, float]) -> Tensor | None:  # [12] of a mean of 1
    """feedback.joint_weights as `joint_errors` wants them.

    Raises:
        ConfigError: a name is no limb joint, or none counts.
    """
    if not by_name:
        return None
    unknown = [name for name in by_name if name not in LIMB_JOINT_NAMES]
    weights = torch.tensor([float(by_name.get(name, 1.0)) for name in LIMB_JOINT_NAMES])
    if unknown or not weights.any():
        raise ConfigError(
            f"feedback.joint_weights: {unknown[0]!r} is no limb joint."
            if unknown
            else "feedback.joint_weights leaves no joint that counts.",
            f"Weigh some of {', '.join(LIMB_JOINT_NAMES)}; those not named weigh 1.",
        )
    return weights / weights.mean()


def ambiguous(
    estimate: Tensor,  # [B, 12, 3]
    truth: Tensor,  # [B, 12, 3] camera axes
) -> Tensor:  # [B] bool
    """Whether a left/right-swapped label, or one that is also mirrored in depth, fits better.

    Such samples are not hard but ambiguous: to learn from them is to learn noise.
    """
    swapped = truth[:, _SWAPPED]
    mirror = torch.tensor([1.0, 1.0, -1.0]).to(truth)
    error = joint_errors(estimate, truth)
    others = torch.stack([joint_errors(estimate, x) for x in (swapped, swapped * mirror)])
    return others.amin(0) < error


def feedback_payment(
    error: Tensor,  # [B] mm
    reference: float,  # mm: the estimator's median error, on what feedback.band_of says
    config: FeedbackConfig,
    progress: float = 1.0,  # of the training, 0 to 1: where feedback.curriculum has got to
) -> Tensor:  # [B] about 0 below the band, 1 at its top, falling slowly beyond
    """Pays for error inside the band [band_low, band_high] * reference, softly at its ends."""
    eased = 1.0 if progress >= config.curriculum else 0.5 + 0.5 * progress / config.curriculum
    reference = reference * eased
    low, high = config.band_low * reference, config.band_high * reference
    place = (error - low) / (high - low)
    soft = config.softness
    rise = soft * (F.softplus(place / soft) - F.softplus((place - 1) / soft))
    return rise - config.overshoot * soft * F.softplus((place - 1 - soft) / soft)


def scored(
    payments: Tensor,  # [B]
    expected: Tensor,  # [B] by the critic; differentiable in the proposals
    log_probability: Tensor,  # [B] of what was tried
    scale: float,
) -> Tensor:  # [B] the payments, with an estimate of their gradient that needs none of theirs
    """Score function with a critic as control variate (Grathwohl et al. 2018, LAX).

    What was paid beyond the critic's expectation, less the mean of the others, weighs the score;
    the expectation itself has a gradient. `scale` sets how much the scores count beside it.
    """
    surplus = (payments - expected).detach()
    if len(surplus) > 1:
        surplus = surplus - (surplus.sum() - surplus) / (len(surplus) - 1)
    surrogate = scale * surplus * log_probability + expected
    return payments.detach() + surrogate - surrogate.detach()


def diversity(
    generated: Generated,
    kept: float = 0.9,
) -> Tensor:  # []
    """Mode seeking (Mao et al. 2019): different randomness must give different answers.

    Distances between the answers to neighbours in the batch, relative to the distances that the
    prior gave for the same randomness (noise mode: between their noises), are rewarded up to
    `kept`. It costs nothing to an untrained generator, and pulls it in no direction.
    """
    ends = generated.circles
    ratios = [_apart(generated.unit, ends) / _apart(generated.latent.unit, ends).clamp_min(1e-6)]
    if bool((generated.prior_residual != 0).any()):
        made, prior = generated.residual.flatten(1), generated.prior_residual.flatten(1)
        ratios.append(_apart(made) / _apart(prior).clamp_min(1e-6))
    else:
        pose = generated.proposal.poses.rotations[:, 1:].flatten(1)
        noise = generated.latent.noise
        scale = 4.0 / math.sqrt(noise.shape[1])  # real poses lie about 4 apart
        ratios.append(_apart(pose) / (scale * _apart(noise)).clamp_min(1e-6))
    loss: Tensor = -torch.stack(ratios).clamp_max(kept).mean()
    return loss


def view_spread(
    unit: Tensor,  # [B, 11] in (0, 1)
    circles: Tensor,  # [11] bool: which of them are whole turns
) -> Tensor:  # [11] in [0, 1]: 1 for the prior's spread, 0 for a constant
    """How much of the prior's spread each channel of camera and light keeps. Differentiable."""
    angle = 2 * math.pi * unit
    length = (angle.cos().mean(0).square() + angle.sin().mean(0).square() + 1e-10).sqrt()
    deviation = (unit.var(0, unbiased=False) + 1e-10).sqrt() * math.sqrt(12)
    return torch.where(circles, 1 - length, deviation).clamp_max(1.0)


def view_entropy_loss(
    unit: Tensor,  # [B, 11]
    circles: Tensor,  # [11] bool
    floor: float,
) -> Tensor:  # []
    """Costs nothing while every channel keeps `floor` of the prior's spread."""
    return (floor - view_spread(unit, circles)).clamp_min(0).square().sum()


def joint_limit_loss(
    rotations: Tensor,  # [B, 24, 3, 3]
    limits: JointLimits,
) -> Tensor:  # []
    """Mean squared excess over the limits, summed over joints (radians^2)."""
    return limits.excess(rotations).square().sum((1, 2)).mean()


def realism_loss(scores: Tensor) -> Tensor:  # [B, 7] of made-up poses -> []
    """Least-squares GAN, the generator's side."""
    return (scores - 1).square().mean()


def discriminator_loss(
    discriminator: Discriminator,
    real: Tensor,  # [B, 24, 3, 3]
    fake: Tensor,  # [B, 24, 3, 3] detached
    config: DiscriminatorConfig,
) -> Tensor:  # []
    """Least-squares GAN, the discriminator's side, with an R1 penalty (Mescheder et al. 2018)."""
    real = real.detach().requires_grad_(config.gradient_penalty > 0)
    scores = discriminator(real)
    loss: Tensor = (scores - 1).square().mean() + discriminator(fake).square().mean()
    if config.gradient_penalty > 0:
        (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
        loss = loss + config.gradient_penalty * slope.square().sum((1, 2, 3)).mean()
    return loss


def _apart(
    rows: Tensor,  # [B, N]
    circles: Tensor | None = None,  # [N] bool: which are turns; None: no one is
) -> Tensor:  # [B] distance of each row from the next one
    difference = rows - rows.roll(1, 0)
    if circles is not None:
        around = difference - torch.round(difference.detach())
        difference = torch.where(circles, around, difference)
    return (difference.square().sum(1) + 1e-10).sqrt()
