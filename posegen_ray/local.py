"""Where a run's work happens: the `Backend` seam, and the backend that does all in this process.

`runtime=inprocess` never imports Ray and gives the same numbers: for debugging, notebooks, and a
lone GPU. `posegen_ray.runtime.backend` is the other implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from posegen_ray.checkpoint_store import CheckpointStore
from posegen_ray.config import RunConfig
from posegen_ray.console import Console
from posegen_ray.context import LocalContext
from posegen_ray.errors import ResourceError
from posegen_ray.records import Samples
from posegen_ray.seeding import derive_seed
from posegen_ray.studio import Drawer, Folders, LocalRenderer, RenderSource
from posegen_ray.training import Advance, AdversarialTraining, SampleStream, TrainingResult

Value_co = TypeVar("Value_co", covariant=True)


class Job(Protocol):
    """A piece of work that any process can do. Picklable; its result depends on itself alone."""

    @property
    def size(self) -> int:
        """How many units of progress it makes."""

    def run(self, advance: Advance) -> Any:
        """Does it; calls advance(n) when n more units are done."""


class Shared(Protocol[Value_co]):
    """A large value that many jobs read. Picklable and small."""

    def get(self) -> Value_co: ...


# told a job's number and its result, as soon as it is done
Keep = Callable[[int, Any], None]

# builds the loop when the backend has made its parts
MakeLoop = Callable[[SampleStream, Advance], AdversarialTraining]


class Backend(Protocol):
    """What an experiment needs from a runtime. A context manager."""

    def __enter__(self) -> Backend: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def run(
        self, jobs: Sequence[Job], label: str, unit: str, keep: Keep | None = None
    ) -> list[Any]:
        """Runs jobs, side by side where it can, with a progress bar; results in order.

        `keep` gets each result at once, in the order in which jobs finish: what it has written
        outlives an interruption of the others.
        """

    def share(self, value: Tensor) -> Shared[Tensor]:
        """Makes a large tensor readable by jobs wherever they run."""

    def renderer(self, folders: Folders) -> RenderSource:
        """Renders these subjects; the same object while the subjects stay the same."""

    def release_renderer(self) -> None:
        """Gives the renderer's memory back; the next `renderer` starts another."""

    def train(
        self, make_loop: MakeLoop, drawer: Drawer, folder: Path, seed: int, resume: bool
    ) -> TrainingResult:
        """Runs adversarial training; its checkpoints go under `folder`."""


@dataclass(frozen=True)
class Held:
    """A shared tensor in this process."""

    value: Tensor

    def get(self) -> Tensor:
        return self.value


class LocalBackend:
    """Everything in this process, one thing after the other."""

    def __init__(self, config: RunConfig, console: Console) -> None:
        self._config = config
        self._console = console
        self._renderer: tuple[Folders, LocalRenderer] | None = None

    def __enter__(self) -> LocalBackend:
        device = torch.device(self._config.runtime.device)
        there = torch.cuda.device_count() if device.type == "cuda" else 1
        if (device.index or 0) >= there:
            raise ResourceError(
                f"runtime.device={device}, but PyTorch can use {there} GPUs of this machine.",
                "Use runtime.device=cpu, or see with nvidia-smi and torch.cuda.is_available() why.",
            )
        torch.set_num_threads(self._config.runtime.threads)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(
        self, jobs: Sequence[Job], label: str, unit: str, keep: Keep | None = None
    ) -> list[Any]:
        bar = self._console.bar(label, sum(job.size for job in jobs), unit)
        results = []
        try:
            for number, job in enumerate(jobs):
                results.append(job.run(bar.update))
                if keep is not None:
                    keep(number, results[-1])
        finally:
            bar.close()
        return results

    def share(self, value: Tensor) -> Shared[Tensor]:
        return Held(value)

    def renderer(self, folders: Folders) -> RenderSource:
        if self._renderer is None or self._renderer[0] != folders:
            self._renderer = (folders, LocalRenderer(self._config, folders))
        return self._renderer[1]

    def release_renderer(self) -> None:
        self._renderer = None

    def train(
        self, make_loop: MakeLoop, drawer: Drawer, folder: Path, seed: int, resume: bool
    ) -> TrainingResult:
        # the drawer's settings: an arm may have its own
        config, device = drawer.config, self._config.runtime.device
        training = config.training
        stream = LocalStream(config, drawer, seed)
        bar = self._console.bar("training", training.rounds * training.steps_per_round, "step")
        try:
            loop = make_loop(stream, bar.update)
            store = checkpoint_store(config, folder)
            context = LocalContext(store, resume, device, self._console.say)
            result = loop.run(context)
        finally:
            bar.close()
        assert isinstance(result, TrainingResult)
        return result


def checkpoint_store(config: RunConfig, folder: Path) -> CheckpointStore:
    """Of a training: in its folder, or under the run's and its folder's names at
    training.storage."""
    training = config.training
    place = f"{training.storage.rstrip('/')}/{Path(config.run_dir).name}/{folder.name}"
    url = place if training.storage else str(folder)
    return CheckpointStore(url, training.keep_checkpoints, training.best_metric)


def stream_plan(
    config: RunConfig, seed: int, first_round: int, rank: int = 0, world_size: int = 1
) -> list[DrawBatch]:
    """The batches of a run's live estimator, from a round on, for one worker."""
    training = config.training
    rounds = range(first_round, training.rounds)
    size = training.estimator_batch_size
    return draw_plan(seed, rounds, training.estimator_steps, size, rank, world_size)


class LocalStream:
    """The live estimator's batches, drawn when they are asked for."""

    def __init__(self, config: RunConfig, drawer: Drawer, seed: int) -> None:
        self._config = config
        self._drawer = drawer
        self._seed = seed
        self._versions: dict[int, dict[str, Tensor]] = {}

    def publish(self, version: int, state: Mapping[str, Tensor]) -> None:
        self._versions = {version: dict(state)}

    def batches(self, first_round: int, rank: int, world_size: int) -> Iterator[Samples]:
        assert (rank, world_size) == (0, 1)
        for batch in stream_plan(self._config, self._seed, first_round):
            yield self._drawer(self._versions[batch.round], batch.seeds)


@dataclass(frozen=True)
class DrawBatch:
    """What one call of the draw function makes: samples of one round."""

    round: int  # also the version of the generator
    seeds: tuple[int, ...]


def draw_plan(
    root_seed: int,
    rounds: range,
    batches_per_round: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> list[DrawBatch]:
    """The batches of these rounds, in the order in which training uses them.

    Seeds depend on round and position alone, so a resumed run (rounds that start later) goes on
    with the same samples. With several workers each gets every `world_size`-th sample of the same
    global batch; `batch_size` is the global one.
    """
    assert batch_size % world_size == 0
    return [
        DrawBatch(
            number,
            tuple(
                derive_seed(root_seed, "stream", number, batch, row)
                for row in range(rank, batch_size, world_size)
            ),
        )
        for number in rounds
        for batch in range(batches_per_round)
    ]
