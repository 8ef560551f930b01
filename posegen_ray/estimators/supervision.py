"""What all training of estimators shares: checked samples, losses, layers that may adapt.

Dropout stays off, and BatchNorm layers keep their statistics unless told otherwise: a handful of
images must not move what thousands have settled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.config import LossConfig
from posegen_ray.errors import ConfigError, DataError
from posegen_ray.estimators.augment import Labels
from posegen_ray.estimators.base import Estimate, PoseEstimator, limb_joints
from posegen_ray.records import Samples


def check_samples(estimator: PoseEstimator, samples: Samples) -> None:
    """Raises ConfigError, DataError unless the samples can train this estimator."""
    if not estimator.differentiable:
        raise ConfigError(
            f"{estimator.name} cannot be fine-tuned here: only its answers are known.",
            "Export the samples (`posegen generate`) and train it where its weights are.",
        )
    size = (3, estimator.input_size, estimator.input_size)
    if len(samples) == 0:
        raise DataError("There are no samples to train on.", "Generate some first.")
    if tuple(samples.images.shape[1:]) != size:
        raise DataError(
            f"The samples' images are {tuple(samples.images.shape[1:])}, "
            f"but {estimator.name} takes {size}.",
            "Generate the samples with this estimator's crop.",
        )
    good = torch.ones(len(samples), dtype=torch.bool)
    for label in (samples.joints, samples.joints_2d, samples.rotations, samples.shape):
        label = label.flatten(1)
        unknown = label.isnan() & samples.photographs[:, None]
        good &= (label.isfinite() | unknown).all(1)
    bad = (~good).nonzero()[:, 0].tolist()
    if bad:
        raise DataError(
            f"{len(bad)} of {len(samples)} samples have labels that are not finite "
            f"(the first: row {bad[0]}, seed {int(samples.seeds[bad[0]])}).",
            "Drop them, and look for what made them: a broken pose or camera.",
        )


def estimate_loss(
    estimator: PoseEstimator,
    estimate: Estimate,
    labels: Labels,
    weights: LossConfig,
    body: str,
) -> Tensor:  # []
    """The weighted sum of the losses that the estimate and the labels have.

    What a label does not say (NaN) counts as answered right, as in SPIN's 2D loss: means are over
    all of a batch, so that its parts add up to it.

    Raises:
        ConfigError: there is none.
    """
    terms = []
    if weights.joints > 0 and estimate.joints is not None:
        predicted = limb_joints(estimate, estimator.joint_names)
        terms.append(weights.joints * _wrong(predicted, labels.joints).abs().mean())
    if weights.joints_2d > 0 and estimate.joints_2d is not None:
        rows = [estimator.joint_names.index(name) for name in LIMB_JOINT_NAMES]
        places = estimate.joints_2d[:, rows] / estimator.input_size - 0.5
        terms.append(weights.joints_2d * _wrong(places, labels.joints_2d).abs().mean())
    if weights.rotations > 0 and estimate.rotations is not None:
        wrong = _wrong(estimate.rotations, labels.rotations)
        terms.append(weights.rotations * wrong.square().mean())
    if weights.shape > 0 and estimate.shape is not None and body == "smpl":
        terms.append(weights.shape * _wrong(estimate.shape, labels.shape).square().mean())
    if not terms:
        raise ConfigError(
            f"None of the weighted finetune.losses can be had: {estimator.name} answers nothing "
            "that they compare with the labels.",
            "Weight losses on what it answers, or give a parametric estimator SMPL's files.",
        )
    return torch.stack(terms).sum() if len(terms) > 1 else terms[0]


def _wrong(answer: Tensor, label: Tensor) -> Tensor:
    """The difference; 0, and without a gradient, where the label is not known."""
    return answer - torch.where(label.isnan(), answer.detach(), label)


@contextmanager
def open_for_training(
    estimator: PoseEstimator, parameters: list[nn.Parameter], update_batch_norm: bool = False
) -> Iterator[None]:
    """Training mode, with gradients for the parameters, inside the block; restores what was."""
    before = [parameter.requires_grad for parameter in parameters]
    with layer_modes(estimator, parameters if update_batch_norm else []):
        try:
            for parameter in parameters:
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter, was in zip(parameters, before, strict=True):
                parameter.requires_grad_(was)
                parameter.grad = None


@contextmanager
def layer_modes(estimator: PoseEstimator, updated: list[nn.Parameter]) -> Iterator[None]:
    """Training mode without dropout; only the BatchNorm layers of these parameters adapt."""
    before = {module: module.training for module in estimator.modules()}
    adapting = {id(parameter) for parameter in updated}
    try:
        estimator.train()
        for module in estimator.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(id(module.weight) in adapting)
            elif isinstance(module, nn.Dropout):
                module.eval()
        yield
    finally:
        for module, was in before.items():
            module.training = was
