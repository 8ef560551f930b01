"""A pool of render servers that looks like one function: RenderRequest -> RenderResult.

Picklable: driver, train workers and stream actors all use the same servers through their own copy.
The answer depends on the request alone, however the work was divided and whoever died meanwhile.
"""

from __future__ import annotations

import functools
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import ray
import torch
from ray import exceptions
from torch import Tensor

from posegen_ray.config import RenderServerConfig
from posegen_ray.errors import PosegenError, RenderError, ResourceError
from posegen_ray.records import RenderFn, RenderRequest, RenderResult
from posegen_ray.runtime.dispatch import Answer, Call, carry_out, raise_cause
from posegen_ray.runtime.pixels import DrawnPixels, FloatArray
from posegen_ray.runtime.placement import Node, server_groups
from posegen_ray.runtime.render_metrics import PoolMeter
from posegen_ray.runtime.render_scaling import ReplicaScaling
from posegen_ray.runtime.render_server import ServerHealth
from posegen_ray.runtime.replicas import Replicas, ServerSpec
from posegen_ray.runtime.subject_loader import SubjectLoader, put_subject
from posegen_ray.runtime.wire import (
    RequestArrays,
    from_parts,
    request_from_tensors,
    request_tensors,
    split,
    to_array,
    to_arrays,
)
from posegen_ray.subjects.heap import keep_freed_memory

if TYPE_CHECKING:
    from posegen_ray.config import RendererConfig

_PIXEL = torch.complex128  # see `pixels`
_METRICS_S = 2.0  # for servers to say what they did; who is silent is left out


class Part(NamedTuple):
    """Some pictures of a request, or their gradient."""

    rows: list[int]  # of the request
    pixels: DrawnPixels
    server: int | None  # that has drawn them


class RenderPool:
    """Routes requests to the servers of their subjects, split, bounded and retried."""

    def __init__(self, specs: Sequence[ServerSpec], name: str) -> None:
        self._config = specs[0].config
        self._teams = [Replicas(spec, f"{name}/{group}") for group, spec in enumerate(specs)]
        self._home = {s: number for number, spec in enumerate(specs) for s in spec.subjects}
        self._meter = PoolMeter()
        self._scaling: ReplicaScaling | None = None

    @property
    def subjects(self) -> tuple[str, ...]:
        """Who can be rendered."""
        return tuple(self._home)

    def render_fn(self) -> RenderFn:
        """The pool as a differentiable function: gradients to bones, light and camera tensors."""
        keep_freed_memory()  # as in the servers: 64 pictures are 50 MB
        return self.render

    def render(self, request: RenderRequest) -> RenderResult:
        """Pictures in the order of the request. Differentiable; see `RemoteRender`.

        Raises:
            RenderError: nothing asked for, unknown subject, or the servers failed for good.
        """
        size = (request.camera.height, request.camera.width)
        tensors = request_tensors(request)
        keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        return RenderResult(RemoteRender.apply(self, request.subjects, size, keep, *tensors))

    def render_arrays(
        self, request: RequestArrays, keep: bool = False
    ) -> FloatArray:  # [B, H, W, 4]
        """The same without gradients, arrays in and out; `keep` where `vjp_arrays` follows."""
        whole = np.empty((len(request), *request.size, 4), np.float32)
        for part in self.draw(request, keep):
            whole[part.rows] = part.pixels.pictures()
        return whole

    def draw(self, request: RequestArrays, keep: bool) -> Iterator[Part]:
        """Asks for the pictures, then gives part after part of them as servers finish."""

        def sound(asked: RequestArrays, _: bool, answer: DrawnPixels) -> bool:
            return answer.finite() or not asked.finite()

        cut = self._cut(request)
        answers = self._each(request, "render", [(rows, keep, None) for rows in cut], sound)
        return (Part(cut[answer.call], answer.value, answer.server) for answer in answers)

    def vjp_arrays(self, request: RequestArrays, gradient: FloatArray) -> RequestArrays:
        """Gradients of sum(gradient * picture) to the request.

        A server that has not kept the picture (another replica, a new process) renders it again.
        """
        parts = [Part(rows, DrawnPixels.of(gradient[rows]), None) for rows in self._cut(request)]
        return self.pull_back(request, parts)

    def pull_back(self, request: RequestArrays, gradient: Sequence[Part]) -> RequestArrays:
        """As `vjp_arrays`; the parts of the gradient are those that `draw` gave of the pictures."""
        whole = [np.empty_like(part) for part in request.parts()]

        def sound(asked: RequestArrays, by: DrawnPixels, answer: RequestArrays) -> bool:
            return answer.finite() or not (asked.finite() and by.finite())

        for answer in self._each(request, "vjp", gradient, sound):
            for values, new in zip(whole, answer.value.parts(), strict=True):
                values[gradient[answer.call].rows] = new
        return from_parts(request.subjects, whole, request.size)

    def health(self, timeout_s: float = 10.0) -> list[ServerHealth]:
        """Every server's health, in order; answers in milliseconds, also while they render.

        Raises:
            RenderError: a server is silent or dead.
        """
        return self._ask_all("health", timeout_s)

    def prepare(self, timeout_s: float) -> None:
        """Waits until every server has loaded its subjects.

        Raises:
            RenderError: a server is silent or dead.
            PosegenError: what kept a subject from loading.
        """
        self._ask_all("prepare", timeout_s)

    def metrics(self) -> dict[str, float]:
        """What happened since the last call, for TensorBoard: see `PoolMeter`."""
        asked = {t.name(n): s.health.remote() for t in self._teams for n, s in t.servers.items()}
        ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=_METRICS_S)
        here, healths = set(ready), {}
        for name, reference in asked.items():
            if reference in here:
                try:
                    healths[name] = ray.get(reference, timeout=_METRICS_S)
                except exceptions.RayError:
                    continue  # who is dead is found out by those who need it
        return self._meter.read(healths)

    def scale(self, say: Callable[[str], None]) -> None:
        """Lets the number of servers follow the load, from this process; see `ReplicaScaling`."""
        self._scaling = ReplicaScaling(self._teams, say)
        self._scaling.start()

    def stop_scaling(self) -> None:
        """The servers stay as many as they are."""
        if self._scaling is not None:
            self._scaling.stop()
            self._scaling = None

    def close(self) -> None:
        """Stops the servers (a joined cluster outlives us)."""
        self.stop_scaling()
        for server in (server for team in self._teams for server in team.servers.values()):
            ray.kill(server)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_meter": PoolMeter(), "_scaling": None}

    def _cut(self, request: RequestArrays) -> list[list[int]]:
        """The rows of each call that a request becomes.

        Raises:
            RenderError: nothing asked for, or an unknown subject.
        """
        if not len(request):
            raise RenderError("The render request is empty.", "Ask for at least one picture.")
        missing = sorted(set(request.subjects) - set(self._home))
        if missing:
            raise RenderError(
                f"No render server holds subject(s) {', '.join(missing)}.",
                f"The pool has {', '.join(self._home)}.",
            )
        return split(request.subjects, self._config.max_batch)

    def _each(
        self,
        request: RequestArrays,
        method: str,
        calls: Sequence[tuple[list[int], Any, int | None]],  # rows, second argument, server
        sound: Callable[[RequestArrays, Any, Any], bool],
    ) -> Iterator[Answer]:
        made, teams = [], {}
        for number, (rows, rest, keeper) in enumerate(calls):
            subject = request.subjects[rows[0]]
            team = self._teams[self._home[subject]]
            teams[team.group] = team
            asked = (request.rows(rows), rest)
            check, first = functools.partial(sound, *asked), self._preferred(subject, number)
            made.append(Call(team.group, method, asked, first, keeper, check))
        return carry_out(made, teams, self._config, self._meter.noted, self._meter.replaced)

    def _preferred(self, subject: str, number: int) -> int:
        """Which of equally busy servers gets the call of this number of a request.

        Where they cannot hold all subjects: for all clients the same, which has it loaded. Else
        clients spread.
        """
        group = self._teams[self._home[subject]].group
        if 0 < self._config.loaded_subjects < len(group):
            return group.index(subject)
        return os.getpid() + number

    def _ask_all(self, method: str, timeout_s: float) -> list[Any]:
        servers = [server for team in self._teams for server in team.servers.values()]
        try:
            return ray.get([getattr(s, method).remote() for s in servers], timeout=timeout_s)
        except exceptions.GetTimeoutError as error:
            raise RenderError(
                f"A render server of {', '.join(self.subjects)} did not answer within "
                f"{timeout_s:g} s.",
                "It may still be starting, or wait for CPUs or a GPU (runtime.render.resources).",
            ) from error
        except exceptions.RayTaskError as error:
            raise_cause(error)
            raise
        except exceptions.RayActorError as error:
            raise RenderError(
                f"A render server could not start: {str(error).strip().splitlines()[-1]}",
                "Its traceback is in Ray's logs; `posegen fit` again if the subject is broken.",
            ) from error


def start_pool(
    config: RenderServerConfig,
    folders: Mapping[str, Path],
    renderer: RendererConfig,
    name: str = "render",
    threads: int = 1,
    nodes: Sequence[Node] = (),
    say: Callable[[str], None] = print,
) -> RenderPool:
    """Puts these subjects into the object store, starts their servers, waits until they are loaded.

    Args:
        config: the runtime.render section.
        folders: subject -> its folder, as `posegen fit` left it.
        renderer: how to render.
        name: begins the servers' names in the cluster.
        threads: numeric threads in a server.
        nodes: where the servers go, a group's replicas one after the other; see `placement`.
        say: told what scaling does.

    Raises:
        SubjectError: a subject is missing or broken.
        ResourceError: the servers found no place within config.start_timeout_s.
    """
    device = "cuda" if config.resources.num_gpus > 0 else "cpu"
    stored = {subject: put_subject(folder) for subject, folder in folders.items()}
    most = config.most_replicas
    specs = [
        ServerSpec(
            group,
            SubjectLoader(
                {s: stored[s] for s in group}, renderer, device, threads, config.kept_calls
            ),
            config,
            tuple(nodes[number * most : (number + 1) * most]),
        )
        for number, group in enumerate(server_groups(list(folders), config.subjects_per_server))
    ]
    return start_servers(specs, name, say)


def start_servers(
    specs: Sequence[ServerSpec], name: str, say: Callable[[str], None] = print
) -> RenderPool:
    """Starts servers of any kind (see `start_pool`) and waits until all have loaded."""
    pool = RenderPool(specs, f"{name}-{uuid.uuid4().hex[:8]}")  # never an earlier pool's servers
    config = specs[0].config
    try:
        pool.prepare(config.start_timeout_s)
    except RenderError as error:
        pool.close()
        free = ray.available_resources()
        raise ResourceError(
            f"{error.what} {free.get('CPU', 0):g} logical CPUs and {free.get('GPU', 0):g} GPUs "
            "are free now.",
            error.fix,
        ) from error
    except PosegenError:
        pool.close()
        raise
    if config.most_replicas > config.replicas:
        pool.scale(say)
    return pool


class RemoteRender(torch.autograd.Function):
    """Rendering far away as one differentiable step.

    Forward sends the request; backward sends it again with the picture's gradient. A server may
    remember the picture in between, but nothing depends on it. Gradients: bones, camera rotation,
    translation, focal length, principal point, light. Not twice differentiable.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        pool: RenderPool,
        subjects: tuple[str, ...],
        size: tuple[int, int],
        keep: bool,  # a gradient follows: inside, torch does not say whether they are off
        *tensors: Tensor,  # bones, rotation, translation, focal, principal, light
    ) -> Tensor:  # [B, H, W, 4]
        ctx.pool, ctx.request = pool, to_arrays(request_from_tensors(subjects, tensors, size))
        ctx.like, device = [(t.device, t.dtype) for t in tensors], tensors[0].device
        ctx.parts = []  # and where their pixels are
        parts = pool.draw(ctx.request, keep)
        whole = torch.zeros(len(subjects) * size[0] * size[1], 4, device=device)
        pixels = whole.view(_PIXEL)
        for part in parts:
            where = torch.from_numpy(part.pixels.row_among(part.rows)).to(device)
            values = torch.tensor(part.pixels.values, device=device)
            pixels.index_copy_(0, where, values.view(_PIXEL))
            ctx.parts.append((part, where))
        return whole.view(len(subjects), *size, 4)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        flat = gradient.flatten(0, 2)
        there = []
        for part, where in ctx.parts:
            values = to_array(flat.index_select(0, where))
            there.append(part._replace(pixels=part.pixels.with_values(values)))
        gradients = ctx.pool.pull_back(ctx.request, there).parts()
        answers = [
            torch.from_numpy(values).to(device, dtype) if wanted else None
            for values, (device, dtype), wanted in zip(
                gradients, ctx.like, ctx.needs_input_grad[4:], strict=True
            )
        ]
        return None, None, None, None, *answers
