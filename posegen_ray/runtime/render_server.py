"""A Ray actor around renderers: numpy in, numpy out, no state that changes an answer.

Keeps its imports light: torch and the renderers are loaded by the loader, inside the actor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import ray

from posegen_ray.runtime.pixels import DrawnPixels
from posegen_ray.runtime.render_metrics import ServerMetrics
from posegen_ray.runtime.subject_cache import SubjectCache
from posegen_ray.runtime.work_queue import WorkQueue

if TYPE_CHECKING:
    from posegen_ray.runtime.pixels import FloatArray
    from posegen_ray.runtime.wire import RequestArrays


class ArrayRenderer(Protocol):
    """One subject, ready to be drawn. Both methods' answers depend on their arguments alone."""

    def render_arrays(
        self, request: RequestArrays, keep: bool = False
    ) -> FloatArray:  # [B, H, W, 4]
        """Pictures; `keep` says that their gradients will be asked for."""

    def vjp_arrays(self, request: RequestArrays, gradient: FloatArray) -> RequestArrays:
        """Gradients of sum(gradient * picture) to the request; renders again where need be."""


Result = TypeVar("Result")
Load = Callable[[str], ArrayRenderer]  # makes a subject's renderer; picklable


@dataclass(frozen=True)
class ServerLoad:
    """What a server has done and is doing. Totals count from the start of its process."""

    process_id: int
    waiting: int  # calls that wait for their turn now, as far as they have reached the server
    working_s: float  # the present call has taken so long, while no subject is being loaded
    loading_s: float  # the subject being loaded has taken so long
    busy_s: float  # total time in which a call was at work
    waited_s: float  # total time for which calls waited for their turn
    pictures: int  # rendered

    @property
    def idle(self) -> bool:
        """Whether it does nothing now."""
        return not (self.waiting or self.working_s or self.loading_s)


@dataclass(frozen=True)
class ServerHealth:
    """A server's answer to "how are you?"; it comes at once, also while it renders."""

    subjects: tuple[str, ...]
    load: ServerLoad
    renders: int  # calls answered
    gradients: int
    loaded: tuple[str, ...]  # subjects in memory, the least recently used first
    loads: int  # of subjects
    evictions: int
    load_s: float  # total time of loading subjects
    memory_mb: float  # proportional share of memory, as the kernel counts it


# calls wait for their turn inside the server, where they are counted; health answers meanwhile
_GROUPS = {"render": 32, "control": 1}


@ray.remote(max_restarts=-1, max_task_retries=-1, concurrency_groups=_GROUPS)  # type: ignore[call-overload]
class RenderServer:
    """Renders a group of subjects, one call at a time; each call is about one subject.

    Starts at once and loads subjects when they are wanted, so that it can always say what it does.
    What keeps a subject from loading is told to whoever calls.
    """

    def __init__(self, name: str, subjects: tuple[str, ...], load: Load, limit: int) -> None:
        self._subjects, self._limit = subjects, limit or len(subjects)
        self._cache = SubjectCache(load, self._limit)
        self._queue = WorkQueue()
        self._metrics = ServerMetrics(name)
        self._renders, self._gradients, self._pictures = 0, 0, 0
        self._colleagues: Mapping[int, Any] = {}

    @ray.method(concurrency_group="render")
    def prepare(self) -> None:
        """Loads as many subjects as are kept."""
        for subject in self._subjects[: self._limit]:
            self._queue.run(lambda subject=subject: self._cache.get(subject))

    @ray.method(concurrency_group="render")
    def render(self, request: RequestArrays, keep: bool = False) -> DrawnPixels:
        def work(renderer: ArrayRenderer) -> DrawnPixels:
            drawn = DrawnPixels.of(renderer.render_arrays(request, keep))
            self._renders += 1
            self._pictures += len(request)
            return drawn

        return self._answer("render", request, work)

    @ray.method(concurrency_group="render")
    def vjp(self, request: RequestArrays, gradient: DrawnPixels) -> RequestArrays:
        def work(renderer: ArrayRenderer) -> RequestArrays:
            gradients = renderer.vjp_arrays(request, gradient.pictures())
            self._gradients += 1
            return gradients

        return self._answer("vjp", request, work)

    @ray.method(concurrency_group="control")
    def load(self) -> ServerLoad:
        """Costs nothing."""
        return self._load()

    def _load(self) -> ServerLoad:
        loading_s = self._cache.loading_s
        working_s = 0.0 if loading_s else self._queue.present_s
        now = (os.getpid(), self._queue.waiting, working_s, loading_s)
        return ServerLoad(*now, *self._queue.totals(), self._pictures)

    @ray.method(concurrency_group="control")
    def health(self) -> ServerHealth:
        cache = self._cache
        return ServerHealth(
            self._subjects,
            self._load(),
            self._renders,
            self._gradients,
            cache.loaded,
            cache.loads,
            cache.evictions,
            cache.load_s,
            memory_mb(),
        )

    @ray.method(concurrency_group="control")
    def colleagues(self, now: Mapping[int, Any] | None = None) -> Mapping[int, Any]:
        """The additional replicas of its group: what was said last (see `ReplicaScaling`)."""
        if now is not None:
            self._colleagues = now
        return self._colleagues

    def _answer(
        self, method: str, request: RequestArrays, work: Callable[[ArrayRenderer], Result]
    ) -> Result:
        """Works and counts in the queue's one thread, whichever of 32 the call came in."""
        came = time.monotonic()

        def turn() -> Result:
            renderer = self._cache.get(request.subjects[0])
            self._metrics.subjects(self._cache)
            result = work(renderer)
            seconds = time.monotonic() - came
            self._metrics.answered(method, len(request), seconds, self._queue.waiting)
            return result

        return self._queue.run(turn)


def memory_mb(process: str = "self") -> float:
    """Proportional set size of a process in MB; 0 where the kernel does not tell."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
