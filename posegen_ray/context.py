"""What a training loop needs from whoever runs it: its place in the group, checkpoints, averaging.

Knows nothing about Ray and nothing about models. The same loop runs alone (`LocalContext`) or as
one of many workers (`posegen_ray.runtime.train`), with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from posegen_ray.checkpoint_store import CheckpointStore, Found
from posegen_ray.errors import CheckpointError


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
    """A group of one, in this process. Checkpoints go to a store (or a folder: the newest two).

    Args:
        store: where checkpoints are kept.
        resume: start from the newest whole checkpoint there; without one, from the beginning.
        device: where the models live.
        say: told of newer checkpoints that are broken.

    Raises:
        CheckpointError: there are checkpoints, and `resume` is off or none of them is whole.
    """

    def __init__(
        self,
        store: CheckpointStore | Path,
        resume: bool = False,
        device: str = "cpu",
        say: Callable[[str], None] = print,
    ) -> None:
        self.device = torch.device(device)
        self._store = CheckpointStore(str(store)) if isinstance(store, Path) else store
        self._found = go_on_from(self._store, resume, say)
        self._next = self._found.number + 1 if self._found else 0

    def resume_folder(self) -> Path | None:
        return self._found.folder if self._found else None

    def report(self, metrics: Mapping[str, float], checkpoint_folder: Path | None) -> None:
        if checkpoint_folder is not None:
            self._store.add(self._next, checkpoint_folder, metrics)
            self._next += 1


def go_on_from(store: CheckpointStore, resume: bool, say: Callable[[str], None]) -> Found | None:
    """The checkpoint that a run starts from, if there is one; says which newer ones are broken.

    From now on the store is this run's.

    Raises:
        CheckpointError: there are checkpoints, and `resume` is off or none of them is whole.
    """
    there = store.numbers()
    if there and not resume:
        raise CheckpointError(
            f"{store.url} already holds {len(there)} checkpoint(s) of an earlier run.",
            "Continue it with resume=<run folder>, or choose or empty another run folder.",
        )
    found = store.newest() if there else None
    if found is not None and found.broken:
        for reason in found.broken:
            say(f"  {reason}")
        say(f"  going on from the one before: {store.path(found.number)}")
    store.claim()
    return found
