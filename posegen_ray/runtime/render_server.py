"""A Ray actor around a renderer: numpy in, numpy out, no state that a call changes.

Keeps its imports light: torch and the renderer are loaded by the factory, inside the actor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ray

from posegen_ray.errors import PosegenError

if TYPE_CHECKING:
    from posegen_ray.config import RendererConfig
    from posegen_ray.runtime.wire import FloatArray, RequestArrays


class ArrayRenderer(Protocol):
    """What a server hosts. Both methods' answers are pure functions of their arguments."""

    def render_arrays(
        self, request: RequestArrays, keep: bool = False
    ) -> FloatArray:  # [B, H, W, 4]
        """Pictures of one subject; `keep` says that their gradients will be asked for."""

    def vjp_arrays(self, request: RequestArrays, gradient: FloatArray) -> RequestArrays:
        """Gradients of sum(gradient * picture) to the request; renders again where need be."""


@dataclass(frozen=True)
class ServerHealth:
    """A server's answer to "how are you?"; it comes at once, also while it renders."""

    subjects: tuple[str, ...]
    process_id: int
    start_s: float  # loading the renderer took this long
    renders: int  # calls answered since the process started
    gradients: int
    memory_mb: float  # proportional share of memory, as the kernel counts it
    busy: bool


_GROUPS = {"render": 1, "control": 1}  # one thread each: health answers while a render runs


@ray.remote(max_restarts=-1, max_task_retries=-1, concurrency_groups=_GROUPS)  # type: ignore[call-overload]
class RenderServer:
    """Hosts the renderer that `factory` makes.

    A factory's own error (missing subject, wrong body) is kept and told to whoever calls, since Ray
    would report it as a dead actor only.
    """

    def __init__(self, subjects: tuple[str, ...], factory: Callable[[], ArrayRenderer]) -> None:
        started = time.monotonic()
        self._subjects, self._renders, self._gradients, self._busy = subjects, 0, 0, False
        self._failure: PosegenError | None = None
        try:
            self._renderer = factory()
        except PosegenError as failure:
            self._failure = failure
        self._start_s = time.monotonic() - started

    @ray.method(concurrency_group="render")
    def render(self, request: RequestArrays, keep: bool = False) -> FloatArray:
        with self._working():
            image = self._renderer.render_arrays(request, keep)
        self._renders += 1
        return image

    @ray.method(concurrency_group="render")
    def vjp(self, request: RequestArrays, gradient: FloatArray) -> RequestArrays:
        with self._working():
            gradients = self._renderer.vjp_arrays(request, gradient)
        self._gradients += 1
        return gradients

    @ray.method(concurrency_group="control")
    def health(self) -> ServerHealth:
        self._check()
        counts = (self._start_s, self._renders, self._gradients)
        return ServerHealth(self._subjects, os.getpid(), *counts, memory_mb(), self._busy)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _working(self) -> _Busy:
        self._check()
        return _Busy(self)


class _Busy:
    def __init__(self, server: Any) -> None:
        self._server = server

    def __enter__(self) -> None:
        self._server._busy = True

    def __exit__(self, *_: object) -> None:
        self._server._busy = False


def memory_mb(process: str = "self") -> float:
    """Proportional set size of a process in MB; 0 where the kernel does not tell."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


@dataclass(frozen=True)
class SubjectFactory:
    """Loads subjects from their folders and makes their renderer; picklable."""

    folders: dict[str, str]  # subject -> folder
    config: RendererConfig
    device: str = "cpu"
    threads: int = 1

    def __call__(self) -> ArrayRenderer:
        import torch

        from posegen_ray.runtime.wire import TensorRenderer
        from posegen_ray.subjects.render import make_renderer
        from posegen_ray.subjects.store import load_subject

        torch.set_num_threads(self.threads)
        subjects = {name: load_subject(Path(folder)) for name, folder in self.folders.items()}
        return TensorRenderer(make_renderer(self.config, subjects, self.device), self.device)
