"""The backend of a run on Ray: jobs are tasks, subjects live on servers, training has a group."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
import torch
from torch import Tensor

from posegen_ray.config import RunConfig, StreamConfig
from posegen_ray.console import Console
from posegen_ray.errors import ResourceError
from posegen_ray.jobs import training_people
from posegen_ray.local import Job, Keep, MakeLoop, Shared, checkpoint_store, stream_plan
from posegen_ray.records import Samples
from posegen_ray.runtime.capacity import find_places
from posegen_ray.runtime.generator_store import GeneratorStore
from posegen_ray.runtime.job_workers import JobWorkers, give_memory_back
from posegen_ray.runtime.placement import JOB, RENDER, Node, Plan
from posegen_ray.runtime.progress import Bar, Progress
from posegen_ray.runtime.render_pool import RenderPool, start_pool
from posegen_ray.runtime.session import RaySession
from posegen_ray.runtime.stream import sample_stream
from posegen_ray.runtime.train import fit_with_ray
from posegen_ray.studio import Drawer, Folders, RenderSource
from posegen_ray.training import TrainingResult

_FETCH_S = 300.0  # for a shared tensor to come from another machine


class RayBackend:
    """Runs on a private Ray cluster of this machine, or on one that is already there."""

    def __init__(
        self, config: RunConfig, folder: Path, console: Console, serving: bool = True
    ) -> None:
        self._config = config
        self._folder = folder
        self._serving = serving  # False: jobs alone, no render servers and no training
        self._console = console
        self._session = RaySession(config.runtime)
        self._pool: tuple[Folders, RenderPool] | None = None
        self._workers: JobWorkers | None = None

    def __enter__(self) -> RayBackend:
        torch.set_num_threads(self._config.runtime.threads)
        self._console.say("starting Ray …")
        self._session.__enter__()
        try:
            plan = self._plan()
            self._server_nodes: tuple[Node, ...] = plan.nodes_of(RENDER)
            self._job_nodes: tuple[Node, ...] = plan.nodes_of(JOB)
            self._progress = Progress.remote()
        except BaseException:
            self._session.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool[1].stop_scaling()  # it must not speak with Ray any more
        self._session.__exit__(kind, error, trace)

    def run(
        self, jobs: Sequence[Job], label: str, unit: str, keep: Keep | None = None
    ) -> list[Any]:
        results: list[Any] = [None] * len(jobs)
        if self._workers is None:
            self._workers = JobWorkers(self._config.runtime, self._job_nodes)
        with self._bar(label, sum(job.size for job in jobs), unit) as bar:
            for number, result in self._workers.run(jobs, bar.advance, bar.done, label):
                results[number] = result
                if keep is not None:
                    keep(number, result)
        give_memory_back()
        return results

    def _end_job_workers(self) -> None:
        """A rested worker still holds the libraries' 0.5 GB and its studio's 0.2."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def share(self, value: Tensor) -> Shared[Tensor]:
        return _InStore(ray.put(value.numpy()))

    def renderer(self, folders: Folders) -> RenderSource:
        if self._pool is None or self._pool[0] != folders:
            self.release_renderer()
            paths = {name: Path(folder) for name, folder in folders}
            config = self._config
            with self._console.phase("servers", f"starting render servers for {len(paths)} people"):
                pool = start_pool(
                    config.runtime.render,
                    paths,
                    config.renderer,
                    threads=config.runtime.threads,
                    nodes=self._server_nodes,
                    say=self._console.say,
                )
            self._pool = (folders, pool)
        return self._pool[1]

    def release_renderer(self) -> None:
        if self._pool is not None:
            self._pool[1].close()
            self._pool = None

    def train(
        self, make_loop: MakeLoop, drawer: Drawer, folder: Path, seed: int, resume: bool
    ) -> TrainingResult:
        config = drawer.config  # an arm may have settings of its own
        training = config.training
        self._end_job_workers()
        store = GeneratorStore(folder / "versions", clear=not resume)
        stream = RayStream(config, drawer, store, seed)
        with self._bar("training", training.rounds * training.steps_per_round, "step") as bar:
            result = fit_with_ray(
                make_loop(stream, bar.advance),
                self._config.runtime,
                checkpoint_store(config, folder),
                folder,
                resume,
                self._console.say,
            )
        assert isinstance(result.value, TrainingResult)
        return result.value

    def _plan(self) -> Plan:
        """Refuses, or says, what will run."""
        plan = self._find_places(training=self._serving)
        self._console.say(plan.table())
        return plan

    def _find_places(self, training: bool) -> Plan:
        return find_places(
            self._config.runtime,
            self._subjects() if self._serving else 0,
            training,
            self._session.private,
            self._console.say,
        )

    def _subjects(self) -> int:
        return len(self._config.subject.names) or len(training_people(self._config))

    def _bar(self, label: str, total: int, unit: str) -> Bar:
        return Bar(self._console, self._progress, label, total, unit)


@dataclass(frozen=True)
class RayStream:
    """The live estimator's batches as a Ray Data stream; each worker follows its own part."""

    config: RunConfig
    drawer: Drawer
    store: GeneratorStore
    seed: int

    def publish(self, version: int, state: Mapping[str, Tensor]) -> None:
        self.store.publish(version, state)

    def batches(self, first_round: int, rank: int, world_size: int) -> Iterator[Samples]:
        stream: StreamConfig = self.config.runtime.stream
        batches = stream_plan(self.config, self.seed, first_round, rank, world_size)
        return sample_stream(batches, self.drawer, self.store, stream)


@dataclass(frozen=True)
class _InStore:
    """A tensor in the object store, read without a copy."""

    reference: Any

    def get(self) -> Tensor:
        try:
            array = ray.get(self.reference, timeout=_FETCH_S)
        except ray.exceptions.RayError as error:
            raise ResourceError(
                f"Shared images could not be read within {_FETCH_S:g} s: "
                f"{str(error).strip().splitlines()[-1]}",
                "The machine that held them was lost, or its network is slow; go on with "
                "resume=<run folder>.",
            ) from error
        with warnings.catch_warnings():  # the store's arrays are read-only, and are only read
            warnings.simplefilter("ignore")
            return torch.from_numpy(array)
