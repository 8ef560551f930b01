"""Features of images at the first cut that any stage of fine-tuning needs, computed once.

No stage trains what lies before that cut, so they stay true: for every arm that fine-tunes on the
same images, and for the tests of the tuned estimators.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from posegen_ray.checkpoint import load_checkpoint, save_checkpoint
from posegen_ray.config import FineTuneConfig
from posegen_ray.errors import ResourceError
from posegen_ray.estimators.augment import Labels, augment, labels_of, mirror
from posegen_ray.estimators.base import PoseEstimator, limb_joints
from posegen_ray.estimators.progress import (
    FEATURE_BATCH,
    FEATURES,
    FineTuneProgress,
    ProgressFn,
)
from posegen_ray.estimators.supervision import check_samples, layer_modes
from posegen_ray.records import Samples
from posegen_ray.seeding import torch_stream


@dataclass(frozen=True)
class KeptFeatures:
    """Features of images and their copies, and their labels."""

    cut: str
    features: Tensor  # [N, ...] float16
    labels: Labels  # N
    source: Tensor  # [N] bool: made from source data

    def at(self, estimator: PoseEstimator, cut: str) -> Tensor:  # [N, ...] float16
        """The features carried on to a later cut, by the estimator's weights as they are now."""
        if cut == self.cut:
            return self.features
        device = next(estimator.parameters()).device
        parts = []
        with torch.no_grad(), layer_modes(estimator, []):
            for part in self.features.split(FEATURE_BATCH):
                value = estimator.stem(part.to(device).float(), cut, self.cut)
                parts.append(value.half().cpu())
        return torch.cat(parts)

    def write(self, folder: Path) -> None:
        """Keeps them on disk, whole or not at all."""
        labels = {name: getattr(self.labels, name) for name in vars(self.labels)}
        state = {"cut": self.cut, "features": self.features, "source": self.source}
        save_checkpoint(folder, {**state, "labels": labels})

    @classmethod
    def read(cls, folder: Path) -> KeptFeatures:
        """What `write` kept.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        state = load_checkpoint(folder)
        return cls(state["cut"], state["features"], Labels(**state["labels"]), state["source"])


def first_cut(estimator: PoseEstimator, config: FineTuneConfig) -> str:
    """Where the earliest stage of fine-tuning begins; the first cut where there is none."""
    cuts = estimator.cuts
    return min((stage.cut for stage in config.stages), key=cuts.index, default=cuts[0])


def keep_features(
    estimator: PoseEstimator,
    samples: Samples,
    config: FineTuneConfig,
    seed: int,
    progress: ProgressFn | None = None,
    source: int = 0,
    before: KeptFeatures | None = None,
) -> KeptFeatures:
    """Features of every image, its mirrored and its augmented copies, for all stages.

    They can be made again when fine-tuning is resumed between stages.

    Args:
        source: so many of the samples, the first ones, are source data.
        before: features, by the same settings, of images that come before these.

    Raises:
        ConfigError, DataError, ResourceError: as `finetune`.
    """
    check_samples(estimator, samples)
    cut = first_cut(estimator, config)
    assert before is None or before.cut == cut
    device = next(estimator.parameters()).device
    done = start = 0 if before is None else len(before.features)
    labels = [] if before is None else [before.labels]
    from_source = [] if before is None else [before.source]
    generator = torch_stream(seed, "finetune", "augment", start)
    total = start + len(samples) * (1 + int(config.mirrored) + config.augmented_copies)
    features = torch.empty(0)
    with torch.no_grad(), layer_modes(estimator, []):
        for first in range(0, len(samples), FEATURE_BATCH):
            rows = slice(first, first + FEATURE_BATCH)
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
                if done == start:
                    features = _room(value.shape[1:], total, config.max_feature_mb, cut)
                    if before is not None:
                        features[:start] = before.features
                features[done : done + len(value)] = value
                labels.append(label)
                from_source.append(origin)
                done += len(value)
            if progress is not None:
                report = FineTuneProgress(FEATURES, done - start, total - start, math.nan)
                progress(report)
    joined = Labels(
        torch.cat([label.joints for label in labels]),
        torch.cat([label.joints_2d for label in labels]),
        torch.cat([label.rotations for label in labels]),
        torch.cat([label.shape for label in labels]),
    )
    return KeptFeatures(cut, features, joined, torch.cat(from_source))


def _room(shape: torch.Size, count: int, max_mb: int, cut: str) -> Tensor:
    need = 2 * count * shape.numel() / 1e6
    if need > max_mb:
        raise ResourceError(
            f"The features of {count} images at the cut {cut!r} take {need:.0f} MB, more than "
            f"max_feature_mb={max_mb}.",
            "Use fewer images or copies, a later cut, or raise max_feature_mb.",
        )
    return torch.empty(count, *shape, dtype=torch.float16)


def image_features(
    estimator: PoseEstimator,
    images: Tensor,  # [N, 3, S, S] uint8
    config: FineTuneConfig,
    batch: int,
) -> Tensor | None:  # [N, ...] float32
    """Of images that are only looked at: in full precision, so that answers are the same.

    None where there is nothing to gain, where they are larger than max_feature_mb, and for
    estimators that look twice at an image: features of one look are not enough.
    """
    cut = first_cut(estimator, config)
    if cut == estimator.cuts[0] or estimator.looks_twice:
        return None
    device = next(estimator.parameters()).device
    features: Tensor | None = None
    with torch.no_grad():
        for first in range(0, len(images), batch):
            part = images[first : first + batch].to(device).float() / 255
            value = estimator.stem(part, cut).cpu()
            if features is None:
                if 4 * len(images) * value[0].numel() > 1e6 * config.max_feature_mb:
                    return None
                features = torch.empty(len(images), *value.shape[1:])
            features[first : first + len(value)] = value
    return features


def predict_from(
    estimator: PoseEstimator,
    features: Tensor,  # [N, ...] at the cut
    cut: str,
    batch: int,
) -> Tensor:  # [N, 12, 3] metres, mid-hip at 0
    """The limb joints of images whose features are there: as `predict` of the images."""
    device = next(estimator.parameters()).device
    rows = []
    with torch.no_grad():
        for part in features.split(batch):
            estimate = estimator.head(part.to(device), cut)
            rows.append(limb_joints(estimate, estimator.joint_names).cpu())
    return torch.cat(rows)
