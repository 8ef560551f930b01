"""What a training loop needs from whoever runs it: its place in the group, checkpoints, averaging.

Knows nothing about Ray and nothing about models. The same loop runs alone (`LocalContext`) or as
one of many workers (`posegen_ray.runtime.train`), with the same numbers.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from posegen_ray.errors import CheckpointError

_METRICS = "metrics.jsonl"


class TrainContext(Protocol):
    """One worker's view of its training group. Every method is called by all workers together."""

    @property
    def rank(self) -> int:
        """This worker's number, 0 .. world_size - 1. Worker 0 writes checkpoints and logs."""

    @property
    def world_size(self) -> int:
        """How many workers train together."""

    @property
    def device(self) -> torch.device:
        """Where this worker should keep its models."""

    def resume_folder(self) -> Path | None:
        """A local folder with the last reported checkpoint, or None at a fresh start.

        The same for all workers. Read it at once: the folder may vanish when the loop goes on.
        """

    def report(self, metrics: Mapping[str, float], checkpoint_folder: Path | None) -> None:
        """Ends a round: keeps the metrics and a copy of `checkpoint_folder` (worker 0; else None).

        When it returns the checkpoint is safe and the given folder may be deleted. A worker that
        dies later makes all workers start again from here.
        """

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replaces each `.grad` by its mean over the workers.

        A gradient missing on some workers counts as zero there; missing on all, it stays missing.
        """

    def average(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the workers. Not differentiable."""

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites the tensors, in place, by worker 0's."""

    def gather(self, value: object) -> list[object]:
        """Every worker's (picklable) value, in the order of ranks, on every worker."""


class TrainLoop(Protocol):
    """A training loop: picklable, so that a cluster can carry it to its workers."""

    def run(self, context: TrainContext) -> object:
        """Trains to the end. Worker 0's answer is handed back to the caller."""


class GroupOfOne:
    """What a lone worker need not ask others for."""

    rank = 0
    world_size = 1

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        pass

    def average(self, values: Tensor) -> Tensor:
        return values.detach().clone()

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        pass

    def gather(self, value: object) -> list[object]:
        return [value]


class LocalContext(GroupOfOne):
    """A group of one, in this process. Checkpoints go to `folder`/checkpoint_000000, ...

    Args:
        folder: where checkpoints and metrics.jsonl are kept; made when missing.
        resume: start from the newest checkpoint there; without one, from the beginning.
        keep: how many of the newest checkpoints stay.
        device: where the models live.
    """

    def __init__(
        self, folder: Path, resume: bool = False, keep: int = 2, device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self._folder = Path(folder)
        self._keep = keep
        self._folder.mkdir(parents=True, exist_ok=True)
        done = local_checkpoints(self._folder)
        if done and not resume:
            raise CheckpointError(
                f"{self._folder} already holds {len(done)} checkpoint(s) of an earlier run.",
                "Continue it with resume=<run folder>, or choose or empty another run folder.",
            )
        self._resume = done[-1] if done else None
        self._next = _number(done[-1]) + 1 if done else 0

    def resume_folder(self) -> Path | None:
        return self._resume

    def report(self, metrics: Mapping[str, float], checkpoint_folder: Path | None) -> None:
        with open(self._folder / _METRICS, "a", encoding="utf-8") as log:
            log.write(json.dumps(dict(metrics)) + "\n")
        if checkpoint_folder is None:
            return
        final = self._folder / f"checkpoint_{self._next:06d}"
        partial = self._folder / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(checkpoint_folder, partial)
        os.replace(partial, final)  # a checkpoint is either whole or not there
        self._next += 1
        for old in local_checkpoints(self._folder)[: -self._keep]:
            shutil.rmtree(old)


def local_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints that `LocalContext` left in a folder, oldest first (no one else's)."""
    return sorted(folder.glob("checkpoint_" + 6 * "[0-9]"), key=_number)


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("_", 1)[1])
