"""Fine-tuning a pre-trained estimator on labelled crops, offline.

Stages on frozen, kept features, each a pure function of the weights it starts from, the samples and
the seed; at the end the weights are interpolated with the pre-trained ones (WiSE-FT, Wortsman et
al. 2022). Single steps on a stream: posegen_ray.estimators.online.

Knows nothing of where samples come from or of other processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn

from posegen_ray.config import FineTuneConfig, FineTuneStageConfig
from posegen_ray.errors import ConfigError, TrainingError
from posegen_ray.estimators.base import PoseEstimator
from posegen_ray.estimators.features import KeptFeatures, keep_features
from posegen_ray.estimators.progress import FineTuneProgress, ProgressFn
from posegen_ray.estimators.supervision import estimate_loss, open_for_training
from posegen_ray.records import Samples
from posegen_ray.seeding import torch_stream

ADAM_BETAS = (0.9, 0.99)


# called with "start", each stage's cut, and "end"
ValidateFn = Callable[[str, PoseEstimator], None]


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

    The same arguments give the same weights: `keep_features`, then `finetune_kept`.

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
    kept = None
    if any(stage.steps > 0 for stage in config.stages):
        kept = keep_features(estimator, samples, config, seed, progress, source)
    return finetune_kept(estimator, kept, config, seed, progress, validate, body)


def finetune_kept(
    estimator: PoseEstimator,
    kept: KeptFeatures | None,
    config: FineTuneConfig,
    seed: int,
    progress: ProgressFn | None = None,
    validate: ValidateFn | None = None,
    body: str = "",
) -> PoseEstimator:
    """`finetune` on features that are there already (None where no stage has steps).

    For a checkpoint between stages, call `run_stage` and `interpolate` yourself: that is all this
    function does. The features stay true, whatever the stages train.
    """
    tuned = deepcopy(estimator)
    if validate is not None:
        validate("start", tuned)
    for stage in config.stages:
        if stage.steps == 0:
            continue
        assert kept is not None, "keep_features comes before a stage"
        run_stage(tuned, kept, stage, config, seed, progress, body)
        if validate is not None:
            validate(stage.cut, tuned)
    interpolate(estimator, tuned, config.interpolation)
    if validate is not None:
        validate("end", tuned)
    return tuned


def run_stage(
    estimator: PoseEstimator,
    kept: KeptFeatures,
    stage: FineTuneStageConfig,
    config: FineTuneConfig,
    seed: int,
    progress: ProgressFn | None = None,
    body: str = "",
) -> None:
    """One stage, in place: Adam on the weighted losses, cosine decay to zero.

    Raises:
        ConfigError: source_share without images of both kinds, or no loss.
        TrainingError: a gradient is not finite.
    """
    _check_mixing(kept.source, config.source_share)
    features, labels = kept.at(estimator, stage.cut), kept.labels
    device = next(estimator.parameters()).device
    parameters = estimator.tail_parameters(stage.cut)
    stream = torch_stream(seed, "finetune", stage.cut)
    order = _mixed_batches(kept.source, stage.batch_size, config.source_share, stream)
    average = [parameter.detach().clone() for parameter in parameters] if config.ema else []
    with open_for_training(estimator, parameters, config.update_batch_norm):
        optimizer = torch.optim.Adam(parameters, stage.learning_rate, betas=ADAM_BETAS, fused=True)
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


def _check_mixing(
    source: Tensor,  # [N] bool
    share: float,
) -> None:
    count, of_source = len(source), int(source.sum())
    if (share > 0 and of_source == 0) or (0 <= share < 1 and of_source == count):
        raise ConfigError(
            f"fine-tuning source_share={share} cannot be had from {of_source} source images and "
            f"{count - of_source} others, copies counted.",
            "Use finetune.source_share=-1, which takes images as often as there are of each kind.",
        )


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
