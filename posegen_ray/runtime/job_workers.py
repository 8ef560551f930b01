"""Long-lived processes that do jobs, one each at a time. A lost process's job is simply done again.

A task's process might be a new one each time, and importing torch and building a studio takes
longer than most jobs.
"""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import torch
from ray import exceptions

from posegen_ray.config import RuntimeConfig
from posegen_ray.errors import ResourceError
from posegen_ray.local import Job
from posegen_ray.runtime.placement import Node
from posegen_ray.runtime.scheduling import on_node
from posegen_ray.training import Advance

_LOOK_S = 10.0  # without a finished job, before it is asked whether the workers are still there
_GROUPS = {"work": 1, "control": 1}  # one thread each: `alive` answers while a job runs


@ray.remote(max_restarts=-1, max_task_retries=3, concurrency_groups=_GROUPS)  # type: ignore[call-overload]
class JobWorker:
    """Runs any job; a job asks for nothing but itself, so a lost one is simply done again."""

    @ray.method(concurrency_group="work")
    def run(self, number: int, job: Job, advance: Advance) -> tuple[int, Any]:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        return number, job.run(advance)

    @ray.method(concurrency_group="work", max_task_retries=0)  # a killed one's rest is not missed
    def rest(self) -> None:
        give_memory_back()

    @ray.method(concurrency_group="control")
    def alive(self) -> bool:
        return True


class JobWorkers:
    """The job workers of a run.

    Args:
        config: the runtime section.
        nodes: where to start them (see `placement.Plan.nodes_of`); empty: wherever Ray likes.
    """

    def __init__(self, config: RuntimeConfig, nodes: Sequence[Node] = ()) -> None:
        self._config = config
        share = config.job_resources
        self._workers = [
            JobWorker.options(
                num_cpus=share.num_cpus, num_gpus=share.num_gpus, **on_node(nodes, number)
            ).remote()
            for number in range(config.job_workers)
        ]

    def run(
        self, jobs: Sequence[Job], advance: Advance, progress: Callable[[], int], label: str
    ) -> Iterator[tuple[int, Any]]:
        """Every job's number and result, as they finish.

        Args:
            jobs: what to do.
            advance: handed to each job.
            progress: how many units all jobs have reported so far.
            label: what the jobs do, for messages.

        Raises:
            ResourceError: a worker was lost for good, cannot be reached for `job_start_s`, or no
                job made progress for `job_silence_s`.
            Exception: whatever a job raised.
        """
        waiting = deque(enumerate(jobs))
        idle = list(self._workers)
        flying: dict[Any, Any] = {}  # reference -> worker
        silence = _Silence(progress)
        while waiting or flying:
            while waiting and idle:
                worker = idle.pop()
                flying[worker.run.remote(*waiting.popleft(), advance)] = worker
            ready, _ = ray.wait(list(flying), num_returns=1, timeout=_LOOK_S)
            for reference in ready:
                idle.append(flying.pop(reference))
                silence.end()
                yield self._result(reference, label)
            if not ready:
                self._check_reachable(list(flying.values()), label)
                silence.check(self._config.job_silence_s, label)
        for worker in self._workers:
            worker.rest.remote()

    def close(self) -> None:
        """Ends the workers (a joined cluster outlives us)."""
        for worker in self._workers:
            ray.kill(worker)

    def _result(self, reference: Any, label: str) -> tuple[int, Any]:
        try:
            return ray.get(reference, timeout=self._config.job_start_s)
        except exceptions.RayTaskError as error:
            raise error.cause from error
        except exceptions.RayError as error:
            raise ResourceError(
                f"A job worker was lost again and again during {label}: "
                f"{str(error).strip().splitlines()[-1]}",
                "If memory ran out, lower runtime.job_workers; then go on with "
                "resume=<run folder>.",
            ) from error

    def _check_reachable(self, workers: Sequence[Any], label: str) -> None:
        asked = [worker.alive.remote() for worker in workers]
        limit = self._config.job_start_s
        _, silent = ray.wait(asked, num_returns=len(asked), timeout=limit)
        if silent:
            free = ray.available_resources()
            share = self._config.job_resources
            raise ResourceError(
                f"{len(silent)} of {len(workers)} job workers could not be reached for {limit:g} s "
                f"during {label}. Each needs {share.num_cpus:g} logical CPUs and "
                f"{share.num_gpus:g} GPUs; {free.get('CPU', 0):g} and {free.get('GPU', 0):g} are "
                "free now.",
                "If a machine was lost, add one or lower runtime.job_workers; then go on with "
                "resume=<run folder>. Slow machines may need a larger runtime.job_start_s.",
            )


class _Silence:
    """Measures how long nothing happened."""

    def __init__(self, progress: Callable[[], int]) -> None:
        self._progress = progress
        self._done = -1
        self.end()

    def end(self) -> None:
        self._since = time.monotonic()

    def check(self, limit: float, label: str) -> None:
        done = self._progress()
        if done != self._done:
            self._done = done
            self.end()
        if time.monotonic() - self._since > limit:
            raise ResourceError(
                f"No job made progress for {limit:g} s during {label}, though its process answers.",
                "Look for what hangs (a network disk?) with `ray stack` on its machine, or raise "
                "runtime.job_silence_s if a step may take so long; then go on with "
                "resume=<run folder>.",
            )


def give_memory_back() -> None:
    """Returns freed memory to the system: glibc would keep hundreds of MB for its process alone."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
