"""What to do when a render call fails. Pure: the pool classifies and carries out, this decides."""

from __future__ import annotations

from enum import Enum


class Failure(Enum):
    """What went wrong with one call, as far as its caller can know."""

    SERVER_LOST = "its server went away and may come back"
    SERVER_DEAD = "its server died for good"
    SERVER_HANGS = "its server hangs"
    NOT_FINITE = "its server answered NaN or infinite values"
    OBJECT_LOST = "its data were lost with a node"
    OUT_OF_MEMORY = "its server ran out of memory"
    BAD_REQUEST = "the renderer refused it"


class Decision(Enum):
    """What the pool does next."""

    RETRY = "retry"  # send the same call again, to any replica
    REPLACE = "replace"  # start a new server in the failed one's place, then retry
    RAISE = "raise"  # give up and tell the user
    ACCEPT = "accept"  # hand the answer on as it is


def decide(failure: Failure, attempt: int, max_attempts: int, again: bool = False) -> Decision:
    """The next step after attempt number `attempt` (1 is the first) of a call failed.

    Calls are stateless, so a repeated one does no harm. A refused request would be refused again.

    Args:
        again: the call failed in this way before. What two servers answer with NaN is what there is
            to answer; a training skips and counts such a step, as it does without servers.
    """
    if failure is Failure.NOT_FINITE and (again or attempt >= max_attempts):
        return Decision.ACCEPT
    if failure is Failure.BAD_REQUEST or attempt >= max_attempts:
        return Decision.RAISE
    if failure in (Failure.SERVER_DEAD, Failure.SERVER_HANGS, Failure.NOT_FINITE):
        return Decision.REPLACE
    return Decision.RETRY


def hangs(
    working_s: float, loading_s: float, call_deadline_s: float, start_timeout_s: float
) -> bool:
    """Whether a server that answers has been at its present work for too long.

    Args:
        working_s: since it began the present call, while it is not loading a subject.
        loading_s: since it began to load the present subject; the first time compiles kernels.
    """
    return working_s > call_deadline_s or loading_s > start_timeout_s
