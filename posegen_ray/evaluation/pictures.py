"""What an estimator answers for the people of a test set, in the crops that it was trained for.

Pictures are read, cropped and forgotten batch by batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from posegen_ray.datasets.public import Picture
from posegen_ray.errors import DataError
from posegen_ray.estimators.base import Estimate, PoseEstimator
from posegen_ray.estimators.pictures import Cutting, cut

P = TypeVar("P", bound=Picture)
P_co = TypeVar("P_co", bound=Picture, covariant=True)


class Pictures(Protocol[P_co]):
    """A test set, as far as its pictures go: `PublicSet`, `KeypointSet`."""

    boxes: str
    crop_scale: float | None

    def __iter__(self) -> Iterator[P_co]: ...


@dataclass(frozen=True)
class Answered(Generic[P]):
    """A batch of people and what the estimator says of them."""

    frames: list[P]  # without their pixels
    cuttings: list[Cutting]  # where their crops lie
    estimate: Estimate

    def finite(self, estimator: PoseEstimator, *answers: Tensor) -> None:
        """Raises DataError, with the first frame, where an answer has NaN or Inf."""
        good = torch.stack([a.isfinite().flatten(1).all(1) for a in answers]).all(0)
        if not good.all():
            labels = [
                frame.label
                for frame, fine in zip(self.frames, good.tolist(), strict=True)
                if not fine
            ]
            raise DataError(
                f"{estimator.name} answers NaN or Inf for {labels[0]} and {len(labels) - 1} more.",
                "Means over the rest would flatter it: find out why it diverges there.",
            )


def answers(
    estimator: PoseEstimator,
    test: Pictures[P],
    batch_size: int = 32,
    advance: Callable[[int], object] = lambda people: None,
) -> Iterator[Answered[P]]:
    """The estimator's answers for every person, in evaluation mode, without gradients.

    Args:
        advance: called with so many people more that are done.

    Raises:
        DataError: a picture cannot be read, or shows nothing of the person.
    """
    device = device_of(estimator)
    was_training = estimator.training
    estimator.eval()
    try:
        reading = iter(test)
        while frames := list(islice(reading, batch_size)):
            cuts = [
                cut(f.pixels, f.box, test.boxes, estimator.crop, f.label, test.crop_scale)
                for f in frames
            ]
            images = torch.stack([crop for crop, _ in cuts]).to(device).float() / 255
            places = [
                cutting.offset(frame.pixels.shape[1], frame.pixels.shape[0])
                for frame, (_, cutting) in zip(frames, cuts, strict=True)
            ]
            with torch.no_grad():
                estimate = estimator.in_picture(images, torch.tensor(places, device=device))
            rest = [replace(frame, pixels=_DROPPED) for frame in frames]
            yield Answered(rest, [cutting for _, cutting in cuts], estimate)
            advance(len(rest))
    finally:
        estimator.train(was_training)


def device_of(estimator: PoseEstimator) -> torch.device:
    """Where its weights are; a black box, which shows none, gets its images on the CPU."""
    return next((weight.device for weight in estimator.parameters()), torch.device("cpu"))


_DROPPED = np.empty((0, 0, 3), np.uint8)
