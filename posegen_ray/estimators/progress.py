"""How fine-tuning tells how far it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from posegen_ray.config import FineTuneConfig

FEATURE_BATCH = 16  # images whose features are computed together
FEATURES = "features"  # what that is called in reports


@dataclass(frozen=True)
class FineTuneProgress:
    """Where fine-tuning is; handed to the `progress` callback."""

    phase: str  # FEATURES, then e.g. "late: training"
    done: int
    total: int
    loss: float  # the weighted sum of config.losses; NaN while features are computed


ProgressFn = Callable[[FineTuneProgress], None]


def finetune_size(config: FineTuneConfig, images: int) -> int:
    """How long fine-tuning on so many images is, for a progress bar: its steps, and one for the
    features of each batch of images."""
    return sum(stage.steps for stage in config.stages) + math.ceil(images / FEATURE_BATCH)


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
        self._features = math.ceil(images / FEATURE_BATCH)
        self._done: dict[str, int] = {}  # by phase

    def __call__(self, report: FineTuneProgress) -> None:
        done = report.done
        if report.phase == FEATURES:  # counted with the copies: a batch of images is one step
            done = self._features * report.done // report.total
        self._advance(done - self._done.get(report.phase, 0))
        self._done[report.phase] = done

    def finish(self) -> None:
        """Moves the bar to its end, whatever was reported."""
        self._advance(self._size - sum(self._done.values()))
