"""Fine-tuning a pre-trained estimator on labelled crops.

Offline (`finetune`): stages with frozen, cached features, each a pure function of the weights it
starts from, the samples and the seed; at the end the weights are interpolated with the pre-trained
ones (WiSE-FT, Wortsman et al. 2022). Online (`FineTuner`): single steps on a stream.

Dropout stays off, and BatchNorm layers keep their statistics unless told otherwise: a handful of
images must not move what thousands have settled.

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
from posegen_ray.config import FineTuneConfig, FineTuneStageConfig, LossConfig
from posegen_ray.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ResourceError,
    TrainingError,
)
from posegen_ray.estimators.augment import Labels, augment, labels_of, mirror
from posegen_ray.estimators.base import Estimate, PoseEstimator, computing_in, limb_joints
from posegen_ray.records import Samples
from posegen_ray.seeding import torch_stream

log = logging.getLogger(__name__)

_BETAS = (0.9, 0.99)
_FEATURE_BATCH = 16
_FEATURES = "features"  # what computing them is called in reports


@dataclass(frozen=True)
class FineTuneProgress:
    """Where fine-tuning is; handed to the `progress` callback."""

    phase: str  # _FEATURES, then e.g. "late: training"
    done: int
    total: int
    loss: float  # the weighted sum of config.losses; NaN while features are computed


ProgressFn = Callable[[FineTuneProgress], None]


def finetune_size(config: FineTuneConfig, images: int) -> int:
    """How long fine-tuning on so many images is, for a progress bar: its steps, and one for the
    features of each batch of images."""
    return sum(stage.steps for stage in config.stages) + math.ceil(images / _FEATURE_BATCH)


class FineTuneSteps:
    """A `progress` callback that moves a bar of `finetune_size` forward.

    Args:
        advance: called with how many steps further it is.
        config, images: as for `finetune_size`.
    """

    def __init__(
        self, advance: Callable[[int], object], config: FineTuneConfig, images: int
    ) -> None:
        self._advance = advance
        self._size = finetune_size(config, images)
        self._features = math.ceil(images / _FEATURE_BATCH)
        self._done: dict[str, int] = {}  # by phase

    def __call__(self, report: FineTuneProgress) -> None:
        done = report.done
        if report.phase == _FEATURES:  # counted with the copies: a batch of images is one step
            done = self._features * report.done // report.total
        self._advance(done - self._done.get(report.phase, 0))
        self._done[report.phase] = done

    def finish(self) -> None:
        """Moves the bar to its end, whatever was reported."""
        self._advance(self._size - sum(self._done.values()))


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
    source: int = 0,
    body: str = "",
) -> PoseEstimator:
    """A fine-tuned copy of the estimator; the original is not touched.

    The same arguments give the same weights. For a checkpoint between stages, call
    `keep_features`, `run_stage` and `interpolate` yourself: that is all this function does.

    Args:
        source: so many of the samples, the first ones, are source data (for source_share).
        body: of the people that the samples show; the shape loss needs "smpl".

    Raises:
        ConfigError: source_share without images of both kinds, or no loss that the estimator's
            answer can have.
        DataError: no samples, wrong image size, or labels that are not finite.
        ResourceError: the kept features would not fit into config.max_feature_mb.
        TrainingError: a gradient is not finite.
    """
    tuned = deepcopy(estimator)
    stages = [stage for stage in config.stages if stage.steps > 0]
    if validate is not None:
        validate("start", tuned)
    if stages:
        kept = keep_features(tuned, samples, config, seed, progress, source)
        for stage in stages:
            run_stage(tuned, kept, stage, config, seed, progress, body)
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
    labels: Labels  # N
    source: Tensor  # [N] bool: made from source data


def run_stage(
    estimator: PoseEstimator,
    kept: KeptFeatures,
    stage: FineTuneStageConfig,
    config: FineTuneConfig,
    seed: int,
    progress: ProgressFn | None = None,
    body: str = "",
) -> None:
    """One stage, in place: Adam on the weighted losses, cosine decay to zero."""
    features, labels = _advance(estimator, kept, stage.cut), kept.labels
    device = next(estimator.parameters()).device
    parameters = estimator.tail_parameters(stage.cut)
    stream = torch_stream(seed, "finetune", stage.cut)
    order = _mixed_batches(kept.source, stage.batch_size, config.source_share, stream)
    average = [parameter.detach().clone() for parameter in parameters] if config.ema else []
    with _open_for_training(estimator, parameters, config.update_batch_norm):
        optimizer = torch.optim.Adam(parameters, stage.learning_rate, betas=_BETAS, fused=True)
        for step in range(stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * _schedule(step, stage)
            rows = next(order)
            estimate = estimator.head(features[rows].to(device).float(), stage.cut)
            loss = estimate_loss(estimator, estimate, labels[rows].to(device), config.losses, body)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
            if not torch.isfinite(norm):
                raise TrainingError(
                    f"Fine-tuning of {estimator.name} diverged at step {step} of the stage "
                    f"{stage.cut!r} (gradient norm {norm.item()}).",
                    f"Lower its learning rate ({stage.learning_rate}).",
                )
            optimizer.step()
            if config.ema:
                # the average of the first steps, until there are enough for the decay
                keep = min(config.ema, (step + 1) / (step + 10))
                torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - keep)
            if progress is not None:
                phase = f"{stage.cut}: training"
                progress(FineTuneProgress(phase, step + 1, stage.steps, loss.item()))
    if config.ema:
        with torch.no_grad():
            for parameter, value in zip(parameters, average, strict=True):
                parameter.copy_(value)


def estimate_loss(
    estimator: PoseEstimator,
    estimate: Estimate,
    labels: Labels,
    weights: LossConfig,
    body: str,
) -> Tensor:  # []
    """The weighted sum of the losses that the estimate and the labels have.

    Raises:
        ConfigError: there is none.
    """
    terms = []
    if weights.joints > 0 and estimate.joints is not None:
        predicted = limb_joints(estimate, estimator.joint_names)
        terms.append(weights.joints * (predicted - labels.joints).abs().mean())
    if weights.joints_2d > 0 and estimate.joints_2d is not None:
        rows = [estimator.joint_names.index(name) for name in LIMB_JOINT_NAMES]
        places = estimate.joints_2d[:, rows] / estimator.input_size - 0.5
        terms.append(weights.joints_2d * (places - labels.joints_2d).abs().mean())
    if weights.rotations > 0 and estimate.rotations is not None:
        terms.append(weights.rotations * (estimate.rotations - labels.rotations).square().mean())
    if weights.shape > 0 and estimate.shape is not None and body == "smpl":
        terms.append(weights.shape * (estimate.shape - labels.shape).square().mean())
    if not terms:
        raise ConfigError(
            f"None of the weighted finetune.losses can be had: {estimator.name} answers nothing "
            "that they compare with the labels.",
            "Weight losses on what it answers, or give a parametric estimator SMPL's files.",
        )
    return torch.stack(terms).sum() if len(terms) > 1 else terms[0]


def interpolate(
    pretrained: PoseEstimator,
    tuned: PoseEstimator,
    share: float,
) -> None:
    """Moves `tuned`, in place, to (1 - share) · pretrained + share · tuned, statistics included."""
    ends = tuned.state_dict()
    for name, start in pretrained.state_dict().items():
        if start.is_floating_point():
            ends[name].copy_(torch.lerp(start, ends[name], share))


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
    source: int = 0,
) -> KeptFeatures:
    """Features of every image, its mirrored and its augmented copies, for all stages.

    They are taken at the first cut of any stage: no stage trains what lies before it, so they stay
    true, and can be made again when fine-tuning is resumed between stages.

    Raises:
        ConfigError, DataError, ResourceError: as `finetune`.
    """
    check_samples(estimator, samples)
    _check_mixing(len(samples), source, config.source_share)
    cut = min((stage.cut for stage in config.stages), key=estimator.cuts.index)
    device = next(estimator.parameters()).device
    generator = torch_stream(seed, "finetune", "augment")
    total = len(samples) * (1 + int(config.mirrored) + config.augmented_copies)
    features = torch.empty(0)
    labels: list[Labels] = []
    from_source = []
    done = 0
    with torch.no_grad(), _mode(estimator, []):
        for first in range(0, len(samples), _FEATURE_BATCH):
            rows = slice(first, first + _FEATURE_BATCH)
            images = samples.images[rows].float() / 255
            truth = labels_of(samples[rows])
            origin = torch.arange(first, first + len(truth)) < source
            copies = [(images, truth)]
            if config.mirrored:
                copies.append(mirror(images, truth))
            for _ in range(config.augmented_copies):
                copies.append(augment(images, truth, generator))
            for picture, label in copies:
                value = estimator.stem(picture.to(device), cut).cpu()
                if done == 0:
                    features = _room(value.shape[1:], total, config.max_feature_mb, cut)
                features[done : done + len(value)] = value
                labels.append(label)
                from_source.append(origin)
                done += len(value)
            if progress is not None:
                progress(FineTuneProgress(_FEATURES, done, total, math.nan))
    joined = Labels(
        torch.cat([label.joints for label in labels]),
        torch.cat([label.joints_2d for label in labels]),
        torch.cat([label.rotations for label in labels]),
        torch.cat([label.shape for label in labels]),
    )
    return KeptFeatures(cut, features, joined, torch.cat(from_source))


def _check_mixing(count: int, source: int, share: float) -> None:
    if (share > 0 and source == 0) or (0 <= share < 1 and source == count):
        raise ConfigError(
            f"fine-tuning source_share={share} cannot be had from {source} source images and "
            f"{count - source} others.",
            "Use finetune.source_share=-1, which takes images as often as there are of each kind.",
        )


def _advance(estimator: PoseEstimator, kept: KeptFeatures, cut: str) -> Tensor:  # [N, ...] float16
    """The kept features carried on to a later cut, by the weights as they are now."""
    if cut == kept.cut:
        return kept.features
    device = next(estimator.parameters()).device
    parts = []
    with torch.no_grad(), _mode(estimator, []):
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


def _mixed_batches(
    source: Tensor,  # [N] bool
    size: int,
    share: float,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Endless batches of row numbers, that share of each from the source; -1: as they come."""
    wanted = round(share * size)
    if share < 0 or wanted in (0, size):
        rows = torch.arange(len(source)) if share < 0 else (source == (wanted > 0)).nonzero()[:, 0]
        for batch in _batches(len(rows), size, generator):
            yield rows[batch]
    kinds = [(source.nonzero()[:, 0], wanted), ((~source).nonzero()[:, 0], size - wanted)]
    parts = [(rows, _batches(len(rows), count, generator)) for rows, count in kinds]
    while True:
        yield torch.cat([rows[next(order)] for rows, order in parts])


@contextmanager
def _open_for_training(
    estimator: PoseEstimator, parameters: list[nn.Parameter], update_batch_norm: bool = False
) -> Iterator[None]:
    """Training mode, with gradients for the parameters, inside the block; restores what was."""
    before = [parameter.requires_grad for parameter in parameters]
    with _mode(estimator, parameters if update_batch_norm else []):
        try:
            for parameter in parameters:
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter, was in zip(parameters, before, strict=True):
                parameter.requires_grad_(was)
                parameter.grad = None


@contextmanager
def _mode(estimator: PoseEstimator, updated: list[nn.Parameter]) -> Iterator[None]:
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


# --- online ---------------------------------------------------------------------------------------


class FineTuner:
    """Trains the late part of an estimator, in place, one batch of a stream at a time.

    Between steps the parameters are frozen, so that gradients to images stay cheap. Everything
    needed to go on lies in `state_dict()`, flat tensors only: weights, Adam's moments, counters.

    Args:
        estimator: trained in place.
        config: online_cut, online_learning_rate, losses, max_gradient_norm. BatchNorm statistics
            stay frozen.
        reduce: averages the gradients over processes; without it they are used as they are.
        body: of the people that the samples show; the shape loss needs "smpl".
        accumulate: in so many parts a batch passes the estimator. All losses are means over the
            samples and BatchNorm is frozen: the gradient is the whole batch's.
        precision: of the estimator; see `computing_in`. Losses and weights stay fp32.
    """

    def __init__(
        self,
        estimator: PoseEstimator,
        config: FineTuneConfig,
        reduce: ReduceFn | None = None,
        body: str = "",
        accumulate: int = 1,
        precision: str = "fp32",
    ) -> None:
        self.estimator = estimator
        self.config = config
        self.body = body
        self.cut = config.online_cut
        self.reduce = reduce
        self.accumulate = accumulate
        self.precision = precision
        self.steps = 0
        self.skipped = 0  # steps whose gradient was not finite
        self._parameters = estimator.tail_parameters(self.cut)
        self._optimizer = torch.optim.Adam(
            self._parameters, config.online_learning_rate, betas=_BETAS, fused=True
        )
        for parameter in self._parameters:  # so that the state has its full shape from the start
            self._optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    def step(self, samples: Samples) -> float:
        """One update; the loss before it.

        A gradient that is not finite (in any process) changes nothing and is counted in `skipped`.

        Raises:
            DataError: the samples cannot train this estimator.
        """
        check_samples(self.estimator, samples)
        total = 0.0
        with _open_for_training(self.estimator, self._parameters):
            size = math.ceil(len(samples) / self.accumulate)
            for first in range(0, len(samples), size):
                part = samples[first : first + size]
                loss = self._loss(part) * (len(part) / len(samples))
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            if self.reduce is not None:
                self.reduce([p.grad for p in self._parameters if p.grad is not None])
            norm = nn.utils.clip_grad_norm_(self._parameters, self.config.max_gradient_norm)
            if torch.isfinite(norm):
                self._optimizer.step()
            else:
                self.skipped += 1
                log.warning("Estimator update %d skipped: gradient norm %s.", self.steps, norm)
        self.steps += 1
        return total

    def _loss(self, samples: Samples) -> Tensor:  # []
        device = self._parameters[0].device
        images = samples.images.to(device).float() / 255
        labels = labels_of(samples).to(device)
        with computing_in(self.precision, device):
            with torch.no_grad():
                features = self.estimator.stem(images, self.cut)
            estimate = self.estimator.head(features, self.cut).full()
        return estimate_loss(self.estimator, estimate, labels, self.config.losses, self.body)

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
