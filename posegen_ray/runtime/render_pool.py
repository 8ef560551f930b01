"""A pool of render servers that looks like one function: RenderRequest -> RenderResult.

Picklable: driver, train workers and stream actors all use the same servers through their own copy.
The answer depends on the request alone, however the work was divided and whoever died meanwhile.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from ray import exceptions
from torch import Tensor

from posegen_ray.config import RenderServerConfig
from posegen_ray.errors import PosegenError, RenderError, ResourceError
from posegen_ray.records import RenderFn, RenderRequest, RenderResult
from posegen_ray.runtime.dispatch import Call, Group, Replicas, carry_out, raise_cause
from posegen_ray.runtime.placement import Node, server_groups
from posegen_ray.runtime.render_server import (
    ArrayRenderer,
    RenderServer,
    ServerHealth,
    SubjectFactory,
)
from posegen_ray.runtime.scheduling import on_node
from posegen_ray.runtime.wire import (
    FloatArray,
    RequestArrays,
    from_parts,
    request_from_tensors,
    request_tensors,
    split,
    to_array,
    to_arrays,
)

if TYPE_CHECKING:
    from posegen_ray.config import RendererConfig


@dataclass(frozen=True)
class ServerSpec:
    """How to start one server: whom it holds and what makes its renderer."""

    subjects: Group
    factory: Callable[[], ArrayRenderer]
    config: RenderServerConfig
    nodes: tuple[Node, ...] = ()  # of the replicas; where none is named Ray chooses

    def start(self, life: str, replica: int = 0) -> Any:
        """A server under this name; an existing one of that name is used instead."""
        resources = self.config.resources
        options = RenderServer.options(
            name=life,
            get_if_exists=True,
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus,
            **on_node(self.nodes, replica),
        )
        return options.remote(self.subjects, self.factory)


class RenderPool:
    """Routes requests to the servers of their subjects, split, bounded and retried."""

    def __init__(self, specs: Sequence[ServerSpec], name: str) -> None:
        self._specs = tuple(specs)
        self._name = name
        self._config = specs[0].config
        self._lives = [[0] * self._config.replicas for _ in specs]
        self._home = {s: number for number, spec in enumerate(specs) for s in spec.subjects}
        self._servers = [
            [spec.start(self._life(g, r), r) for r in range(self._config.replicas)]
            for g, spec in enumerate(specs)
        ]

    @property
    def subjects(self) -> tuple[str, ...]:
        """Who can be rendered."""
        return tuple(self._home)

    def render_fn(self) -> RenderFn:
        """The pool as a differentiable function (gradients to bones and every camera tensor)."""
        return self.render

    def render(self, request: RenderRequest) -> RenderResult:
        """Pictures in the order of the request. Differentiable; see `RemoteRender`.

        Raises:
            RenderError: unknown subject, or the servers failed for good.
        """
        size = (request.camera.height, request.camera.width)
        tensors = request_tensors(request)
        return RenderResult(RemoteRender.apply(self, request.subjects, size, *tensors))

    def render_arrays(
        self, request: RequestArrays, keep: bool = False
    ) -> FloatArray:  # [B, H, W, 4]
        """The same without gradients, arrays in and out; `keep` where `vjp_arrays` follows."""
        pieces = self._split(request)
        calls = [(group, "render", (request.rows(rows), keep)) for group, rows in pieces]
        image = np.empty((len(request), request.height, request.width, 4), np.float32)
        for (_, rows), part in zip(pieces, self._carry_out(calls), strict=True):
            image[rows] = part
        return image

    def vjp_arrays(self, request: RequestArrays, gradient: FloatArray) -> RequestArrays:
        """Gradients of sum(gradient * picture) to the request.

        A server that has not kept the picture (another replica, a new process) renders it again.
        """
        pieces = self._split(request)
        calls = [(group, "vjp", (request.rows(rows), gradient[rows])) for group, rows in pieces]
        whole = [np.empty_like(part) for part in request.parts()]
        for (_, rows), part in zip(pieces, self._carry_out(calls), strict=True):
            for values, new in zip(whole, part.parts(), strict=True):
                values[rows] = new
        return from_parts(request.subjects, whole, request.size)

    def health(self, timeout_s: float = 10.0) -> list[ServerHealth]:
        """Every server's health, in order; answers in milliseconds, also while they render.

        Raises:
            RenderError: a server is silent or dead.
            PosegenError: what kept a server from starting.
        """
        calls = [server.health.remote() for team in self._servers for server in team]
        try:
            return ray.get(calls, timeout=timeout_s)
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

    def close(self) -> None:
        """Stops the servers (a joined cluster outlives us)."""
        for server in (server for team in self._servers for server in team):
            ray.kill(server)

    def _split(self, request: RequestArrays) -> list[tuple[int, list[int]]]:
        missing = sorted(set(request.subjects) - set(self._home))
        if missing:
            raise RenderError(
                f"No render server holds subject(s) {', '.join(missing)}.",
                f"The pool has {', '.join(self._home)}.",
            )
        return split(request.subjects, self._home, self._config.max_batch)

    def _carry_out(self, calls: list[tuple[int, str, tuple[Any, ...]]]) -> list[Any]:
        config = self._config
        used = sorted({number for number, _, _ in calls})
        teams = {
            self._specs[g].subjects: Replicas(self._servers[g], self._replacer(g), os.getpid())
            for g in used
        }
        work = [Call(self._specs[g].subjects, method, rest) for g, method, rest in calls]
        limits = (config.max_in_flight, config.deadline_s, config.max_attempts)
        return carry_out(work, teams, *limits)

    def _replacer(self, group: int) -> Callable[[int], Any]:
        def replace(replica: int) -> Any:
            self._lives[group][replica] += 1  # all clients count alike, so they meet the same one
            return self._specs[group].start(self._life(group, replica), replica)

        return replace

    def _life(self, group: int, replica: int) -> str:
        return f"{self._name}/{group}/{replica}/{self._lives[group][replica]}"


def start_pool(
    config: RenderServerConfig,
    folders: Mapping[str, Path],
    renderer: RendererConfig,
    name: str = "render",
    threads: int = 1,
    nodes: Sequence[Node] = (),
) -> RenderPool:
    """Starts the servers of these subjects and waits until all have loaded.

    Args:
        config: the runtime.render section.
        folders: subject -> its folder, as `posegen fit` left it.
        renderer: how to render.
        name: begins the servers' names in the cluster.
        threads: numeric threads in a server.
        nodes: where the servers go, a group's replicas one after the other; see `placement`.

    Raises:
        SubjectError: a subject is missing or broken.
        ResourceError: the servers found no place within config.start_timeout_s.
    """
    device = "cuda" if config.resources.num_gpus > 0 else "cpu"
    specs = [
        ServerSpec(
            group,
            SubjectFactory({s: str(folders[s]) for s in group}, renderer, device, threads),
            config,
            tuple(nodes[number * config.replicas : (number + 1) * config.replicas]),
        )
        for number, group in enumerate(server_groups(list(folders), config.subjects_per_server))
    ]
    return start_servers(specs, name)


def start_servers(specs: Sequence[ServerSpec], name: str) -> RenderPool:
    """Starts servers of any kind (see `start_pool`) and waits until all have loaded."""
    pool = RenderPool(specs, f"{name}-{uuid.uuid4().hex[:8]}")  # never an earlier pool's servers
    timeout_s = specs[0].config.start_timeout_s
    try:
        pool.health(timeout_s)
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
    return pool


class RemoteRender(torch.autograd.Function):
    """Rendering far away as one differentiable step.

    Forward sends the request; backward sends it again with the picture's gradient. A server may
    remember the picture in between, but nothing depends on it. Gradients: bones, camera rotation,
    translation, focal length, principal point. Not twice differentiable.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        pool: RenderPool,
        subjects: tuple[str, ...],
        size: tuple[int, int],
        *tensors: Tensor,  # bones, rotation, translation, focal, principal
    ) -> Tensor:  # [B, H, W, 4]
        ctx.pool, ctx.request = pool, to_arrays(request_from_tensors(subjects, tensors, size))
        ctx.like = [(t.device, t.dtype) for t in tensors]
        wanted = any(ctx.needs_input_grad)
        return torch.from_numpy(pool.render_arrays(ctx.request, wanted)).to(tensors[0].device)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradients = ctx.pool.vjp_arrays(ctx.request, to_array(gradient)).parts()
        answers = [
            torch.from_numpy(values).to(device, dtype) if wanted else None
            for values, (device, dtype), wanted in zip(
                gradients, ctx.like, ctx.needs_input_grad[3:], strict=True
            )
        ]
        return None, None, None, *answers
