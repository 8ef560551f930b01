"""A client's view of the interchangeable servers of one group, known to all clients by name."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions

from posegen_ray.config import RenderServerConfig
from posegen_ray.errors import RenderError
from posegen_ray.runtime.dispatch import Group
from posegen_ray.runtime.placement import Node
from posegen_ray.runtime.render_server import Load, RenderServer
from posegen_ray.runtime.scheduling import on_node

FOLLOW_S = 2.0  # between a client's questions for additional servers
_BURIAL_S = 30.0  # for Ray to give a dead server's name free


@dataclass(frozen=True)
class ServerSpec:
    """How to start one server: whom it holds and what makes their renderers."""

    subjects: Group
    load: Load
    config: RenderServerConfig
    nodes: tuple[Node, ...] = ()  # of the replicas; where none is named Ray chooses

    def start(self, name: str, replica: int = 0) -> Any:
        """A server under this name; an existing one of that name is used instead."""
        resources = self.config.resources
        options = RenderServer.options(
            name=name,
            get_if_exists=True,
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus,
            **on_node(self.nodes, replica),
        )
        return options.remote(name, self.subjects, self.load, self.config.loaded_subjects)


class Replicas:
    """The servers of a group by number: `replicas` permanent ones, and additional ones for a while.

    Permanent ones are started by whoever misses them, under a name by which all clients meet the
    same. Additional ones come and go (`ReplicaScaling`); the first server knows them.
    """

    def __init__(self, spec: ServerSpec, name: str) -> None:
        self.spec, self._name = spec, name
        self.permanent = {
            number: spec.start(self.name(number), number) for number in range(spec.config.replicas)
        }
        self.additional: Mapping[int, Any] = {}
        self._gone: set[Any] = set()  # additional ones that turned out to be dead
        self._asked: Any = None
        self._followed = time.monotonic()

    @property
    def group(self) -> Group:
        return self.spec.subjects

    @property
    def servers(self) -> dict[int, Any]:
        """Those that may be given work now."""
        return {**self.permanent, **self.additional}

    def name(self, number: int) -> str:
        """A server's name in the cluster."""
        return f"{self._name}/{number}"

    def replace(self, number: int, failed: Any) -> bool:
        """Ends a server that failed; a permanent one is started anew. False if this was done."""
        if self.servers.get(number) != failed:
            return False
        ray.kill(failed)
        if number not in self.permanent:
            self._gone.add(failed)
            self.set_additional(self.additional)
            return True
        end = time.monotonic() + _BURIAL_S
        while (server := self.spec.start(self.name(number), number)) == failed:
            if time.monotonic() > end:
                raise RenderError(
                    f"The server {self.name(number)} of {', '.join(self.group)} was ended, but "
                    f"its name was not free within {_BURIAL_S:g} s.",
                    "Ray's head is overloaded or lost; go on with resume=<run folder>.",
                )
            time.sleep(0.05)
        self.permanent[number] = server
        return True

    def set_additional(self, servers: Mapping[int, Any]) -> None:
        """From now on these are the additional ones."""
        self.additional = {n: server for n, server in servers.items() if server not in self._gone}

    def follow(self) -> None:
        """Learns of additional servers, now and then, without waiting."""
        config = self.spec.config
        if config.most_replicas == config.replicas:
            return
        if self._asked is None and time.monotonic() - self._followed > FOLLOW_S:
            self._asked = self.permanent[0].colleagues.remote()
            self._followed = time.monotonic()
        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            asked, self._asked = self._asked, None
            try:
                self.set_additional(ray.get(asked, timeout=1))
            except exceptions.RayError:
                return  # a later question is answered by the next one in its place

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_asked": None}
