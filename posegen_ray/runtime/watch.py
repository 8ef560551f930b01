"""What servers that take long say that they do, asked without waiting for them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions

if TYPE_CHECKING:
    from posegen_ray.runtime.render_server import ServerLoad

_ANSWER_S = 5.0  # after which a server is silent; otherwise it answers in milliseconds


class Watch:
    """Keeps at most one question open at each server."""

    def __init__(self) -> None:
        self._asked: dict[Any, tuple[Any, float]] = {}  # server -> its answer to come, since when

    def look(self, servers: Iterable[Any]) -> dict[Any, ServerLoad | None]:
        """What is known now: what servers do, None for one that is silent or dead."""
        now = time.monotonic()
        for server in servers:
            if server not in self._asked:
                self._asked[server] = (server.load.remote(), now)
        references = [reference for reference, _ in self._asked.values()]
        if not references:
            return {}
        ready = set(ray.wait(references, num_returns=len(references), timeout=0)[0])
        known: dict[Any, ServerLoad | None] = {}
        for server, (reference, since) in list(self._asked.items()):
            if reference in ready:
                del self._asked[server]
                known[server] = _answer(reference)
            elif now - since > _ANSWER_S:
                known[server] = None
        return known


def _answer(reference: Any) -> ServerLoad | None:
    try:
        return ray.get(reference, timeout=_ANSWER_S)
    except exceptions.RayError:
        return None
