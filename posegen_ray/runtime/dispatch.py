"""Carries out many independent calls on replicated actors, bounded; answers as they come.

Knows nothing about rendering. Calls must be stateless: each may be carried out more than once.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import ray
from ray import exceptions

from posegen_ray.errors import PosegenError, RenderError
from posegen_ray.runtime.failure_policy import Decision, Failure, decide, hangs
from posegen_ray.runtime.watch import Watch

Group = tuple[str, ...]  # the subjects that live together in a server
_LOOK_S = 1.0  # between two looks at calls that take long
_LATE_S = 10.0  # after which a call's server is asked what it does
_IDLE_LOOKS = 3  # in a row at a server that does nothing, after which a call's answer is lost


class Team(Protocol):
    """Interchangeable servers (`Replicas`)."""

    @property
    def servers(self) -> Mapping[int, Any]:
        """Actors by number, those that may be given work now."""

    def name(self, number: int) -> str:
        """For messages."""

    def replace(self, number: int, failed: Any) -> bool:
        """Puts another in the place of one that failed; False if that was done before."""

    def follow(self) -> None:
        """Looks for changes."""


class Limits(Protocol):
    """How long, how many and how often (the runtime.render section)."""

    max_in_flight: int
    deadline_s: float
    call_deadline_s: float
    start_timeout_s: float
    max_attempts: int


@dataclass(frozen=True)
class Call:
    """One call of an actor's method on any server of a group."""

    group: Group
    method: str
    arguments: tuple[Any, ...]
    first: int = 0  # of servers that are equally busy, the one with this number is asked
    keeper: int | None = None  # the server of this number alone is asked, while there is one
    sound: Callable[[Any], bool] = lambda _: True  # whether an answer can be right


class Answer(NamedTuple):
    """What a call's server answered."""

    call: int  # its position
    value: Any
    server: int  # the number of the one that answered


@dataclass
class _Flight:
    call: int
    number: int
    server: Any
    sent: float
    seen_idle: int = 0


Noted = Callable[[Call, float], None]  # a call that was answered, and its seconds
Replaced = Callable[[str, Failure], None]  # a server's name and why it was replaced


def carry_out(
    calls: Sequence[Call],
    teams: Mapping[Group, Team],
    limits: Limits,
    noted: Noted = lambda call, seconds: None,
    replaced: Replaced = lambda name, failure: None,
) -> Iterator[Answer]:
    """Sends the calls, then gives the answers as they come.

    Args:
        calls: what to do.
        teams: who can do it.
        limits: unanswered calls per server (the rest waits here), deadlines, attempts.
        noted: told of every answer.
        replaced: told of every server that had to be replaced.

    Raises:
        RenderError: nothing answered for `deadline_s`, or a call failed for good.
        PosegenError: what the server itself raised.
    """
    dispatch = _Dispatch(calls, teams, limits, noted, replaced)
    dispatch.send()
    return dispatch.answers()


class _Dispatch:
    def __init__(
        self,
        calls: Sequence[Call],
        teams: Mapping[Group, Team],
        limits: Limits,
        noted: Noted,
        replaced: Replaced,
    ) -> None:
        self._calls, self._teams, self._limits = calls, teams, limits
        self._noted, self._replaced = noted, replaced
        self._attempts = [0] * len(calls)
        self._not_finite: set[int] = set()  # calls that a server answered NaN
        self._avoid: dict[int, int] = {}  # call -> the server that failed it
        self._waiting: dict[Group, deque[int]] = {group: deque() for group in teams}
        for index, call in enumerate(calls):
            self._waiting[call.group].append(index)
        self._flying: dict[Any, _Flight] = {}  # reference -> where it is
        self._in_flight: Counter[tuple[Group, int]] = Counter()
        self._watch = Watch()
        self._starting: set[Any] = set()  # servers in another's place that have not answered yet
        self._heard = self._looked = time.monotonic()

    def answers(self) -> Iterator[Answer]:
        limits = self._limits
        pause_s = min(_LOOK_S, limits.deadline_s, limits.call_deadline_s)
        try:
            while self._flying or any(self._waiting.values()):
                self.send()
                ready, _ = ray.wait(list(self._flying), num_returns=1, timeout=pause_s)
                for reference in ready:
                    flight = self._land(reference)
                    try:
                        value = self._answer(reference, flight)
                    except _Failed as failed:
                        self._recover(flight, failed)
                    else:
                        yield Answer(flight.call, value, flight.number)
                if time.monotonic() - self._looked > pause_s:
                    self._look()
        finally:
            for reference in self._flying:
                ray.cancel(reference, force=False, recursive=False)

    def send(self) -> None:
        for group, queue in self._waiting.items():
            team = self._teams[group]
            team.follow()
            servers = team.servers
            for index in list(queue):
                number = self._idlest(group, servers, index)
                if number is None and self._calls[index].keeper is None:
                    break  # all are at the bound, so those behind it would be looked at in vain
                if number is None:
                    continue
                queue.remove(index)
                call = self._calls[index]
                reference = getattr(servers[number], call.method).remote(*call.arguments)
                self._flying[reference] = _Flight(index, number, servers[number], time.monotonic())
                self._in_flight[group, number] += 1
                self._attempts[index] += 1

    def _idlest(self, group: Group, servers: Mapping[int, Any], index: int) -> int | None:
        """The server with the fewest of our calls, None when all that may be asked are at the
        bound."""
        numbers = sorted(servers)
        avoided, keeper = self._avoid.get(index), self._calls[index].keeper
        able = [n for n in numbers if n != avoided] or numbers
        able = [keeper] if keeper in able else able
        start = self._calls[index].first % len(able)
        order = able[start:] + able[:start]
        best = min(order, key=lambda number: self._in_flight[group, number])
        return best if self._in_flight[group, best] < self._limits.max_in_flight else None

    def _land(self, reference: Any) -> _Flight:
        flight = self._flying.pop(reference)
        self._in_flight[self._calls[flight.call].group, flight.number] -= 1
        return flight

    def _answer(self, reference: Any, flight: _Flight) -> Any:
        call = self._calls[flight.call]
        self._heard = time.monotonic()
        try:
            answer = ray.get(reference, timeout=self._limits.deadline_s)  # it may have to move
        except exceptions.RayError as error:
            raise _Failed(classify(error), error) from error
        if not call.sound(answer) and not self._accepts_nan(flight.call):
            raise _Failed(Failure.NOT_FINITE)
        self._starting.discard(flight.server)
        self._noted(call, time.monotonic() - flight.sent)
        return answer

    def _accepts_nan(self, index: int) -> bool:
        again = index in self._not_finite
        self._not_finite.add(index)
        attempts = self._attempts[index], self._limits.max_attempts
        return decide(Failure.NOT_FINITE, *attempts, again) is Decision.ACCEPT

    def _recover(self, flight: _Flight, failed: _Failed) -> None:
        call, attempt = self._calls[flight.call], self._attempts[flight.call]
        team = self._teams[call.group]
        decision = decide(failed.failure, attempt, self._limits.max_attempts)
        if decision is Decision.RAISE:
            raise_cause(failed.error)
            raise RenderError(
                f"{call.method} of subject(s) {', '.join(call.group)} failed after {attempt} "
                f"attempt(s), the last on server {team.name(flight.number)}: "
                f"{failed.failure.value}. {_last_line(failed.error)}".strip(),
                "Ray's logs under its session folder tell more; runtime.render.max_attempts sets "
                "how often a call is tried.",
            ) from failed.error
        if decision is Decision.REPLACE:
            self._avoid[flight.call] = flight.number
            if team.replace(flight.number, flight.server):
                self._replaced(team.name(flight.number), failed.failure)
                self._starting.add(team.servers.get(flight.number))
        else:
            time.sleep(min(0.1 * 2**attempt, 2.0))
        self._waiting[call.group].appendleft(flight.call)

    def _look(self) -> None:
        """Asks the servers of calls that take long, and deals with what they say."""
        self._looked = now = time.monotonic()
        limits = self._limits
        if now - self._heard > limits.deadline_s:
            raise self._silence()
        late_s = min(_LATE_S, limits.call_deadline_s)
        known = self._watch.look({f.server for f in self._flying.values() if now - f.sent > late_s})
        for reference, flight in list(self._flying.items()):
            if flight.server in known:
                failure = self._judge(flight, known[flight.server], now)
                if failure is not None:
                    self._recover(self._land(reference), _Failed(failure))

    def _judge(self, flight: _Flight, load: Any, now: float) -> Failure | None:
        """What is wrong with a call, by what its server does (None: it is silent)."""
        limits = self._limits
        if load is None:
            starts = flight.server in self._starting
            limit_s = limits.start_timeout_s if starts else limits.call_deadline_s
            return Failure.SERVER_HANGS if now - flight.sent > limit_s else None
        work = (load.working_s, load.loading_s)
        if hangs(*work, limits.call_deadline_s, limits.start_timeout_s):
            return Failure.SERVER_HANGS
        flight.seen_idle = flight.seen_idle + 1 if load.idle else 0
        return Failure.OBJECT_LOST if flight.seen_idle == _IDLE_LOOKS else None

    def _silence(self) -> RenderError:
        calls = self._calls
        silent = sorted({", ".join(calls[f.call].group) for f in self._flying.values()})
        left = len(self._flying) + sum(map(len, self._waiting.values()))
        return RenderError(
            f"No render server of {'; '.join(silent)} answered within "
            f"{self._limits.deadline_s:g} s ({left} of {len(calls)} calls open).",
            "If pictures are large or cores few, raise runtime.render.deadline_s or lower "
            "runtime.render.max_batch; if a server cannot restart, free CPUs or memory for it.",
        )


class _Failed(Exception):
    """A call that has no usable answer."""

    def __init__(self, failure: Failure, error: exceptions.RayError | None = None) -> None:
        super().__init__(failure.value)
        self.failure, self.error = failure, error


def classify(error: exceptions.RayError) -> Failure:
    """What a Ray exception means for a stateless call."""
    if isinstance(error, exceptions.OutOfMemoryError):
        return Failure.OUT_OF_MEMORY
    if isinstance(error, exceptions.ActorUnavailableError):
        return Failure.SERVER_LOST
    if isinstance(error, exceptions.RayActorError):
        return Failure.SERVER_DEAD
    if isinstance(error, exceptions.ObjectLostError):
        return Failure.OBJECT_LOST
    if isinstance(error, exceptions.RayTaskError):
        return Failure.BAD_REQUEST
    return Failure.SERVER_LOST


def raise_cause(error: BaseException | None) -> None:
    """Raises the PosegenError that a remote process raised, if that is what happened."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, PosegenError):
        raise cause from error


def _last_line(error: BaseException | None) -> str:
    lines = [line for line in str(error or "").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
