"""Fine-tuning a pre-trained estimator on labelled crops.

Offline (`finetune`): stages with frozen, cached features, each a pure function of the weights it
starts from, the samples and the seed; at the end the weights are interpolated with the pre-trained
ones (WiSE-FT, Wortsman et al. 2022). Online (`FineTuner`): single steps on a stream.

Knows nothing of where samples come from or of other processes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.config import FineTuneConfig, FineTuneStageConfig
from posegen_ray.errors import CheckpointError, DataError, ResourceError, TrainingError
from posegen_ray.estimators.augment import augment, mirror
from posegen_ray.estimators.base import PoseEstimator, centred, limb_joints
from posegen_ray.records import Samples
from posegen_ray.seeding import torch_stream

log = logging.getLogger(__name__)

_BETAS = (0.9, 0.99)
_MAX_GRADIENT_NORM = 1.0
_FEATURE_BATCH = 16


@dataclass(frozen=True)
class FineTuneProgress:
    """Where fine-tuning is; handed to the `progress` callback."""

    phase: str  # "features", then e.g. "late: training"
    done: int
    total: int
    loss: float  # metres, mean absolute error per coordinate; NaN while features are computed


ProgressFn = Callable[[FineTuneProgress], None]
# called with "start", each stage's cut, and "end"
ValidateFn = Callable[[str, PoseEstimator], None]
# averages gradients over processes, in place
ReduceFn = Callable[[list[Tensor]], None]


def finetune(
    estimator: PoseEstimator,
    samples: Samples,
    config: FineTuneConfig,
    seed: int,
    progress: ProgressFn | None = None,
    validate: ValidateFn | None = None,
) -> PoseEstimator:
    """A fine-tuned copy of the estimator; the original is not touched.

    The same arguments give the same weights. For a checkpoint between stages, call
    `keep_features`, `run_stage` and `interpolate` yourself: that is all this function does.

    Raises:
        DataError: no samples, wrong image size, or labels that are not finite.
        ResourceError: the kept features would not fit into config.max_feature_mb.
        TrainingError: a gradient is not finite.
    """
    tuned = deepcopy(estimator)
    stages = [stage for stage in config.stages if stage.steps > 0]
    if validate is not None:
        validate("start", tuned)
    if stages:
        kept = keep_features(tuned, samples, config, seed, progress)
        for stage in stages:
            run_stage(tuned, kept, stage, seed, progress)
            if validate is not None:
                validate(stage.cut, tuned)
    interpolate(estimator, tuned, config.interpolation)
    if validate is not None:
        validate("end", tuned)
    return tuned


@dataclass(frozen=True)
class KeptFeatures:
    """Features at the first cut that any stage needs, and their labels."""

    cut: str
    features: Tensor  # [N, ...] float16
    labels: Tensor  # [N, 12, 3] metres, mid-hip at 0


def run_stage(
    estimator: PoseEstimator,
    kept: KeptFeatures,
    stage: FineTuneStageConfig,
    seed: int,
    progress: ProgressFn | None = None,
) -> None:
    """One stage, in place: Adam on the L1 error of the 12 joints, cosine decay to zero."""
    features, labels = _advance(estimator, kept, stage.cut), kept.labels
    device = next(estimator.parameters()).device
    parameters = estimator.tail_parameters(stage.cut)
    order = _batches(len(labels), stage.batch_size, torch_stream(seed, "finetune", stage.cut))
    with _open_for_training(parameters):
        optimizer = torch.optim.Adam(parameters, stage.learning_rate, betas=_BETAS, fused=True)
        for step in range(stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * _schedule(step, stage)
            rows = next(order)
            estimate = estimator.head(features[rows].to(device).float(), stage.cut)
            loss = _loss(limb_joints(estimate, estimator.joint_names), labels[rows].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
            if not torch.isfinite(norm):
                raise TrainingError(
                    f"Fine-tuning of {estimator.name} diverged at step {step} of the stage "
                    f"{stage.cut!r} (gradient norm {norm.item()}).",
                    f"Lower its learning rate ({stage.learning_rate}).",
                )
            optimizer.step()
            if progress is not None:
                phase = f"{stage.cut}: training"
                progress(FineTuneProgress(phase, step + 1, stage.steps, loss.item()))


def interpolate(
    pretrained: PoseEstimator,
    tuned: PoseEstimator,
    share: float,
) -> None:
    """Moves `tuned`, in place, to (1 - share) · pretrained + share · tuned."""
    with torch.no_grad():
        for start, end in zip(pretrained.parameters(), tuned.parameters(), strict=True):
            end.copy_(torch.lerp(start, end, share))


def check_samples(estimator: PoseEstimator, samples: Samples) -> None:
    """Raises DataError unless the samples can train this estimator."""
    size = (3, estimator.input_size, estimator.input_size)
    if len(samples) == 0:
        raise DataError("There are no samples to train on.", "Generate some first.")
    if tuple(samples.images.shape[1:]) != size:
        raise DataError(
            f"The samples' images are {tuple(samples.images.shape[1:])}, "
            f"but {estimator.name} takes {size}.",
            "Generate the samples with this estimator's crop.",
        )
    bad = (~torch.isfinite(samples.joints)).flatten(1).any(1).nonzero()[:, 0].tolist()
    if bad:
        raise DataError(
            f"{len(bad)} of {len(samples)} samples have labels that are not finite "
            f"(the first: row {bad[0]}, seed {int(samples.seeds[bad[0]])}).",
            "Drop them, and look for what made them: a broken pose or camera.",
        )


# --- offline: kept features -----------------------------------------------------------------------


def keep_features(
    estimator: PoseEstimator,
    samples: Samples,
    config: FineTuneConfig,
    seed: int,
    progress: ProgressFn | None = None,
) -> KeptFeatures:
    """Features of every image, its mirrored and its augmented copies, for all stages.

    They are taken at the first cut of any stage: no stage trains what lies before it, so they stay
    true, and can be made again when fine-tuning is resumed between stages.

    Raises:
        DataError, ResourceError: as `finetune`.
    """
    check_samples(estimator, samples)
    cut = min((stage.cut for stage in config.stages), key=estimator.cuts.index)
    device = next(estimator.parameters()).device
    generator = torch_stream(seed, "finetune", "augment")
    total = len(samples) * (1 + int(config.mirrored) + config.augmented_copies)
    features = torch.empty(0)
    labels = torch.empty(total, len(LIMB_JOINT_NAMES), 3)
    done = 0
    with torch.no_grad():
        for first in range(0, len(samples), _FEATURE_BATCH):
            rows = slice(first, first + _FEATURE_BATCH)
            images = samples.images[rows].float() / 255
            joints = centred(samples.joints[rows].float())
            copies = [(images, joints)]
            if config.mirrored:
                copies.append(mirror(images, joints))
            for _ in range(config.augmented_copies):
                copies.append(augment(images, joints, generator))
            for picture, label in copies:
                value = estimator.stem(picture.to(device), cut).cpu()
                if done == 0:
                    features = _room(value.shape[1:], total, config.max_feature_mb, cut)
                features[done : done + len(value)] = value
                labels[done : done + len(value)] = label
                done += len(value)
            if progress is not None:
                progress(FineTuneProgress("features", done, total, math.nan))
    return KeptFeatures(cut, features, labels)


def _advance(estimator: PoseEstimator, kept: KeptFeatures, cut: str) -> Tensor:  # [N, ...] float16
    """The kept features carried on to a later cut, by the weights as they are now."""
    if cut == kept.cut:
        return kept.features
    device = next(estimator.parameters()).device
    parts = []
    with torch.no_grad():
        for part in kept.features.split(_FEATURE_BATCH):
            value = estimator.stem(part.to(device).float(), cut, kept.cut)
            parts.append(value.half().cpu())
    return torch.cat(parts)


def _room(shape: torch.Size, count: int, max_mb: int, cut: str) -> Tensor:
    need = 2 * count * shape.numel() / 1e6
    if need > max_mb:
        raise ResourceError(
            f"The features of {count} images at the cut {cut!r} take {need:.0f} MB, more than "
            f"max_feature_mb={max_mb}.",
            "Use fewer images or copies, a later cut, or raise max_feature_mb.",
        )
    return torch.empty(count, *shape, dtype=torch.float16)


# --- offline: training ----------------------------------------------------------------------------


def _loss(
    predicted: Tensor,  # [B, 12, 3] mid-hip at 0
    true: Tensor,  # [B, 12, 3] mid-hip at 0
) -> Tensor:
    return (predicted - true).abs().mean()


def _schedule(step: int, stage: FineTuneStageConfig) -> float:
    """Linear warm-up, then a cosine to zero; a factor of the learning rate."""
    warm = min(1.0, (step + 1) / (stage.warm_up + 1))
    return warm * 0.5 * (1 + math.cos(math.pi * step / stage.steps))


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of row numbers; every row comes once before any comes twice."""
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]


@contextmanager
def _open_for_training(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Lets gradients reach the parameters inside the block; restores what was before."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, was in zip(parameters, before, strict=True):
            parameter.requires_grad_(was)
            parameter.grad = None


# --- online ---------------------------------------------------------------------------------------


class FineTuner:
    """Trains the late part of an estimator, in place, one batch of a stream at a time.

    Between steps the parameters are frozen, so that gradients to images stay cheap. Everything
    needed to go on lies in `state_dict()`, flat tensors only: weights, Adam's moments, counters.

    Args:
        estimator: trained in place.
        config: online_cut and online_learning_rate.
        reduce: averages the gradients over processes; without it they are used as they are.
    """

    def __init__(
        self, estimator: PoseEstimator, config: FineTuneConfig, reduce: ReduceFn | None = None
    ) -> None:
        self.estimator = estimator
        self.cut = config.online_cut
        self.reduce = reduce
        self.steps = 0
        self.skipped = 0  # steps whose gradient was not finite
        self._parameters = estimator.tail_parameters(self.cut)
        self._optimizer = torch.optim.Adam(
            self._parameters, config.online_learning_rate, betas=_BETAS, fused=True
        )
        for parameter in self._parameters:  # so that the state has its full shape from the start
            self._optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def step(self, samples: Samples) -> float:
        """One update; the loss before it, in metres per coordinate.

        A gradient that is not finite (in any process) changes nothing and is counted in `skipped`.

        Raises:
            DataError: the samples cannot train this estimator.
        """
        check_samples(self.estimator, samples)
        device = self._parameters[0].device
        images = samples.images.to(device).float() / 255
        with torch.no_grad():
            features = self.estimator.stem(images, self.cut)
        with _open_for_training(self._parameters):
            estimate = self.estimator.head(features, self.cut)
            predicted = limb_joints(estimate, self.estimator.joint_names)
            loss = _loss(predicted, centred(samples.joints.to(device).float()))
            loss.backward()  # type: ignore[no-untyped-call]
            if self.reduce is not None:
                self.reduce([p.grad for p in self._parameters if p.grad is not None])
            norm = nn.utils.clip_grad_norm_(self._parameters, _MAX_GRADIENT_NORM)
            if torch.isfinite(norm):
                self._optimizer.step()
            else:
                self.skipped += 1
                log.warning("Estimator update %d skipped: gradient norm %s.", self.steps, norm)
        self.steps += 1
        return loss.item()

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all state, as flat tensors."""
        state = {"counters": torch.tensor([self.steps, self.skipped])}
        for number, parameter in enumerate(self._parameters):
            state[f"weight.{number}"] = parameter.detach().clone()
            for name, value in self._optimizer.state[parameter].items():
                state[f"adam.{number}.{name}"] = value.detach().clone()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores weights, moments and counters.

        Raises:
            CheckpointError: the state is not that of this estimator and cut.
        """
        mine = {name: value.shape for name, value in self.state_dict().items()}
        theirs = {name: value.shape for name, value in state.items()}
        if mine != theirs:
            odd = sorted(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n))
            raise CheckpointError(
                f"The estimator's saved training state does not fit {self.estimator.name} at the "
                f"cut {self.cut!r}: {len(odd)} entries differ, the first is {odd[0]}.",
                "Resume with the estimator and online_cut that the run was started with.",
            )
        self.steps, self.skipped = (int(n) for n in state["counters"])
        with torch.no_grad():
            for number, parameter in enumerate(self._parameters):
                parameter.copy_(state[f"weight.{number}"])
                for name, value in self._optimizer.state[parameter].items():
                    value.copy_(state[f"adam.{number}.{name}"])
