"""Carries out many independent calls on replicated actors, bounded; answers in order.

Knows nothing about rendering. Calls must be stateless: each may be carried out more than once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions

from posegen_ray.errors import PosegenError, RenderError
from posegen_ray.runtime.failure_policy import Decision, Failure, decide

Group = tuple[str, ...]  # the subjects that live together in a server


@dataclass(frozen=True)
class Call:
    """One call of an actor's method on any replica of a group."""

    group: Group
    method: str
    arguments: tuple[Any, ...]


@dataclass
class Replicas:
    """The interchangeable servers of a group; `replace` starts a new one in place of number i."""

    servers: list[Any]
    replace: Callable[[int], Any]
    first: int = 0  # where ties are decided: differs among clients, so that they spread
    in_flight: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.in_flight = [0] * len(self.servers)

    def idlest(self, bound: int) -> int | None:
        """The replica with the fewest unanswered calls, None when all are at the bound."""
        count = len(self.servers)
        order = [(self.first + i) % count for i in range(count)]
        number = min(order, key=lambda i: self.in_flight[i])
        return number if self.in_flight[number] < bound else None


def carry_out(
    calls: Sequence[Call],
    replicas: dict[Group, Replicas],
    max_in_flight: int,
    deadline_s: float,
    max_attempts: int,
) -> list[Any]:
    """Answers of all calls, in their order, whatever the order in which servers answer.

    Args:
        calls: what to do.
        replicas: who can do it.
        max_in_flight: unanswered calls allowed per server; the rest waits here.
        deadline_s: longest time without any answer.
        max_attempts: of a call whose server fails.

    Raises:
        RenderError: nothing answered for `deadline_s`, or a call failed for good.
        PosegenError: what the server itself raised.
    """
    answers: list[Any] = [None] * len(calls)
    attempts = [0] * len(calls)
    waiting = {group: deque[int]() for group in replicas}
    for index, call in enumerate(calls):
        waiting[call.group].append(index)
    flying: dict[Any, tuple[int, int]] = {}  # reference -> call, replica
    try:
        while flying or any(waiting.values()):
            for group, queue in waiting.items():
                team = replicas[group]
                while queue and (number := team.idlest(max_in_flight)) is not None:
                    index = queue.popleft()
                    method = getattr(team.servers[number], calls[index].method)
                    flying[method.remote(*calls[index].arguments)] = (index, number)
                    team.in_flight[number] += 1
                    attempts[index] += 1
            ready, _ = ray.wait(list(flying), num_returns=1, timeout=deadline_s)
            if not ready:
                raise _silence(calls, flying, waiting, deadline_s)
            for reference in ready:
                index, number = flying.pop(reference)
                team = replicas[calls[index].group]
                team.in_flight[number] -= 1
                try:
                    answers[index] = ray.get(reference, timeout=deadline_s)  # it may have to move
                except exceptions.RayError as error:
                    _recover(error, calls[index], attempts[index], max_attempts, team, number)
                    waiting[calls[index].group].appendleft(index)
    finally:
        for reference, (index, number) in flying.items():
            replicas[calls[index].group].in_flight[number] -= 1
            ray.cancel(reference, force=False, recursive=False)
    return answers


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


def raise_cause(error: BaseException) -> None:
    """Raises the PosegenError that a remote process raised, if that is what happened."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, PosegenError):
        raise cause from error


def _recover(
    error: exceptions.RayError,
    call: Call,
    attempt: int,
    max_attempts: int,
    team: Replicas,
    number: int,
) -> None:
    failure = classify(error)
    decision = decide(failure, attempt, max_attempts)
    if decision is Decision.RAISE:
        raise_cause(error)
        raise RenderError(
            f"{call.method} of subject(s) {', '.join(call.group)} failed after {attempt} "
            f"attempt(s): {failure.value}. {_last_line(error)}",
            "Ray's logs under its session folder tell more; runtime.render.max_attempts sets how "
            "often a call is tried.",
        ) from error
    time.sleep(min(0.1 * 2**attempt, 2.0))
    if decision is Decision.REPLACE:
        team.servers[number] = team.replace(number)


def _silence(
    calls: Sequence[Call],
    flying: dict[Any, tuple[int, int]],
    waiting: dict[Group, deque[int]],
    deadline_s: float,
) -> RenderError:
    silent = sorted({", ".join(calls[index].group) for index, _ in flying.values()})
    left = len(flying) + sum(map(len, waiting.values()))
    return RenderError(
        f"No render server of {'; '.join(silent)} answered within {deadline_s:g} s "
        f"({left} of {len(calls)} calls open).",
        "If pictures are large or cores few, raise runtime.render.deadline_s or lower "
        "runtime.render.max_batch; if a server cannot restart, free CPUs or memory for it.",
    )


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
