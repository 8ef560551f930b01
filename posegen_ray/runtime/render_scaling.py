"""How many servers hold a group of subjects: a pure policy, and who carries it out."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import exceptions

from posegen_ray.errors import PosegenError
from posegen_ray.runtime.render_server import ServerLoad
from posegen_ray.runtime.replicas import FOLLOW_S, Replicas

# One more: in three looks in a row calls wait for 0.4 of the time that they take, and servers are
# busy half of the time. One less: for `idle_s` hardly a call waits, and one server less would be
# busy for less than 0.3 of the time. The gap between the two keeps the number from swinging.
_PRESSED, _BUSY, _LOOKS = 0.4, 0.5, 3
_CALM, _SPARE = 0.1, 0.3
_LOOK_S = 1.0
_ANSWER_S = 2.0  # for servers to say what they did
_PAUSE_S = 60.0  # after a server found no room


@dataclass(frozen=True)
class GroupLoad:
    """What the servers of a group did in a while."""

    seconds: float
    busy_s: float  # sum over servers
    waited_s: float  # sum over calls


class ScalingPolicy:
    """Decides on the number of servers of a group, between bounds.

    Args:
        least, most: the bounds.
        idle_s: how long a server must have been unnecessary before it goes.
    """

    def __init__(self, least: int, most: int, idle_s: float) -> None:
        self._least, self._most, self._idle_s = least, most, idle_s
        self._pressed, self._calm_s = 0, 0.0

    def wanted(self, count: int, load: GroupLoad) -> int:
        """How many there should be now, one more or less at the most.

        Args:
            count: how many there are.
            load: since the last call.
        """
        used = load.busy_s / load.seconds
        waits = load.waited_s / max(load.busy_s, 1e-9)
        pressed = waits > _PRESSED and used > _BUSY * count
        calm = waits < _CALM and used < _SPARE * (count - 1)
        self._pressed = self._pressed + 1 if pressed else 0
        self._calm_s = self._calm_s + load.seconds if calm else 0.0
        if self._pressed >= _LOOKS and count < self._most:
            self._pressed = 0
            return count + 1
        if self._calm_s >= self._idle_s and count > self._least:
            self._calm_s = 0.0
            return count - 1
        return count


class ReplicaScaling:
    """Looks at all groups once a second; starts and ends their additional servers.

    Lives in the process that started the pool, so that these servers end with it. Other clients
    ask each group's first server whom else they may use. What goes wrong costs speed only.
    """

    def __init__(self, teams: Sequence[Replicas], say: Callable[[str], None]) -> None:
        self._groups = [_Group(team, say) for team in teams]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the looking, and servers that are not in service."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=2 * _ANSWER_S)
        for group in self._groups:
            group.close()

    def look(self) -> None:
        """Once over all groups."""
        asked = [(group, group.ask()) for group in self._groups]
        every = [reference for _, answers in asked for reference in answers.values()]
        ready = set(ray.wait(every, num_returns=len(every), timeout=_ANSWER_S)[0])
        for group, answers in asked:
            group.decide({server: ref for server, ref in answers.items() if ref in ready})

    def _follow(self) -> None:
        while not self._over.wait(_LOOK_S) and ray.is_initialized():
            self.look()


class _Group:
    """One group's additional servers: those that start, serve, and leave."""

    def __init__(self, team: Replicas, say: Callable[[str], None]) -> None:
        config = team.spec.config
        self._team, self._say = team, say
        self._policy = ScalingPolicy(config.replicas, config.most_replicas, config.idle_s)
        self._seen: dict[Any, ServerLoad] = {}
        self._looked = time.monotonic()
        self._starting: tuple[int, Any, Any, float] | None = None  # number, server, ready, since
        self._leaving: dict[Any, float] = {}  # server -> since when it gets no new calls
        self._resume = 0.0

    def ask(self) -> dict[Any, Any]:
        """Servers and the references of what they do."""
        servers = [*self._team.servers.values(), *self._leaving]
        return {server: server.load.remote() for server in servers}

    def decide(self, answers: dict[Any, Any]) -> None:
        """Acts on what servers answered."""
        loads: dict[Any, ServerLoad] = {}
        for server, reference in answers.items():
            try:
                loads[server] = ray.get(reference, timeout=_ANSWER_S)
            except exceptions.RayActorError:
                self._replace(server)
            except exceptions.RayError:
                continue
        self._end_leaving(loads)
        self._finish_start()
        change = self._change(loads)
        count = len(self._team.servers)
        wanted = self._policy.wanted(count, change)
        if wanted > count and self._starting is None and time.monotonic() > self._resume:
            self._start()
        elif wanted < count and self._team.additional:
            self._retire()
        self._team.permanent[0].colleagues.remote(dict(self._team.additional))

    def close(self) -> None:
        for server in [*self._leaving, *([self._starting[1]] if self._starting else [])]:
            ray.kill(server)

    def _change(self, loads: dict[Any, ServerLoad]) -> GroupLoad:
        """What was done since the last look, by all who answered."""
        now = time.monotonic()
        busy = waited = 0.0
        for server, load in loads.items():
            before = self._seen.get(server)
            same = before is not None and before.process_id == load.process_id
            busy += load.busy_s - (before.busy_s if before and same else 0.0)
            waited += load.waited_s - (before.waited_s if before and same else 0.0)
        known = {*self._team.servers.values(), *self._leaving}
        self._seen = {s: load for s, load in {**self._seen, **loads}.items() if s in known}
        seconds, self._looked = max(now - self._looked, 1e-9), now
        return GroupLoad(seconds, busy, waited)

    def _replace(self, server: Any) -> None:
        """A dead one: the permanent are started again, the others forgotten."""
        self._leaving.pop(server, None)
        for number, known in self._team.servers.items():
            if known == server:
                self._team.replace(number, server)

    def _start(self) -> None:
        number = min(set(range(self._team.spec.config.most_replicas)) - set(self._team.servers))
        server = self._team.spec.start(f"{self._team.name(number)}-{uuid.uuid4().hex[:8]}", number)
        self._starting = (number, server, server.prepare.remote(), time.monotonic())

    def _finish_start(self) -> None:
        if self._starting is None:
            return
        number, server, ready, since = self._starting
        who = ", ".join(self._team.group)
        if ray.wait([ready], timeout=0)[0]:
            self._starting = None
            try:
                ray.get(ready, timeout=_ANSWER_S)
            except (exceptions.RayError, PosegenError) as error:
                self._give_up(server, f"Another render server of {who} failed: {error}")
                return
            self._team.set_additional({**self._team.additional, number: server})
            self._say(f"  {len(self._team.servers)} render servers of {who} (calls queue)")
        elif time.monotonic() - since > self._team.spec.config.start_timeout_s:
            self._starting = None
            self._give_up(server, f"No room for another render server of {who}.")

    def _give_up(self, server: Any, why: str) -> None:
        ray.kill(server)
        self._resume = time.monotonic() + _PAUSE_S
        self._say(f"  {why} Calls go on queueing; tried again in {_PAUSE_S:g} s at the earliest.")

    def _retire(self) -> None:
        """Takes the last one out of service; it ends when all clients know and it has no calls."""
        last = max(self._team.additional)
        rest = dict(self._team.additional)
        self._leaving[rest.pop(last)] = time.monotonic()
        self._team.set_additional(rest)
        who = ", ".join(self._team.group)
        self._say(f"  {len(self._team.servers)} render servers of {who} (not needed)")

    def _end_leaving(self, loads: dict[Any, ServerLoad]) -> None:
        now = time.monotonic()
        for server, since in list(self._leaving.items()):
            if now - since > 2 * FOLLOW_S and server in loads and loads[server].idle:
                ray.kill(server)
                del self._leaving[server]
