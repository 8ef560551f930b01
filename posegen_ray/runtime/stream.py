"""Generated samples as a Ray Data stream that follows training, version by version.

Batch i belongs to a round fixed by the plan, is drawn with exactly that round's generator from its
own seeds, and arrives in order: the same plan gives the same samples however the timing falls.
"""

from __future__ import annotations

import logging
import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import ray
from torch import Tensor

from posegen_ray.config import StreamConfig
from posegen_ray.errors import PosegenError, ResourceError
from posegen_ray.local import DrawBatch
from posegen_ray.records import Samples
from posegen_ray.runtime.capacity import free_nodes
from posegen_ray.runtime.columns import Columns, from_columns, to_columns
from posegen_ray.runtime.generator_store import GeneratorStore
from posegen_ray.runtime.placement import STREAM, Share, place

_PATIENCE = 20  # seconds
_ERROR = "error"  # a column that holds a pickled PosegenError instead of samples

# Draws one sample per seed, with the generator's weights; a pure function of both. Picklable; one
# copy lives in each stream actor, so it may keep models that it builds on first use.
DrawFn = Callable[[dict[str, Tensor], Sequence[int]], Samples]


def sample_stream(
    batches: Sequence[DrawBatch],
    draw: DrawFn,
    store: GeneratorStore,
    config: StreamConfig,
) -> Iterator[Samples]:
    """Draws the batches in stream actors and hands them over in order.

    Lazy: starts with the first `next()`; draws ahead as far as published versions and Ray Data's
    own back-pressure let it. One Samples per batch, of as many rows as the draw function gave.

    Raises:
        ResourceError: no CPU or GPU is free for the stream's actors (Ray Data would wait for ever).
        TrainingError: a version of the generator was not published in time.
    """
    if not batches:
        return
    _check_resources(config)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    items = [{"round": b.round, "seeds": list(b.seeds)} for b in batches]
    # One block a batch, made from items already here: no hidden read task needs a CPU of its own.
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Drawer,
        fn_constructor_args=(draw, store, config.wait_s),
        batch_size=1,
        batch_format="numpy",
        # One batch at a time: of two in a killed actor the later one may be drawn again first, and
        # then waits for a version that follows the earlier one.
        compute=ray.data.ActorPoolStrategy(size=config.actors, max_tasks_in_flight_per_actor=1),
        num_cpus=config.resources.num_cpus,
        num_gpus=config.resources.num_gpus or None,
        # In each actor's order: a batch of the next round, begun before one of this round, would
        # wait for a version that the caller publishes only after this round (Ray Data's default).
        allow_out_of_order_execution=False,
    )
    # No prefetching: a prefetched batch of the next round would wait for a version that the caller
    # publishes only after this batch. Stream actors draw ahead in any case.
    drawn = dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)
    for batch in _in_time(iter(drawn), config.deadline_s):
        columns = cast(Columns, batch)
        if _ERROR in columns:
            raise pickle.loads(columns[_ERROR][0])
        yield from_columns(columns)


def _in_time(batches: Iterator[Any], deadline_s: float) -> Iterator[Any]:
    """The same batches; Ray Data itself would wait for ever.

    Raises:
        ResourceError: one took longer than `deadline_s`.
    """
    over = object()
    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def draw() -> None:
        while asked.get():
            try:
                answers.put((next(batches, over), None))
            except BaseException as error:
                answers.put((over, error))

    # a thread of our own: one of a pool would keep the process from ending while it hangs
    threading.Thread(target=draw, daemon=True).start()
    try:
        while True:
            asked.put(True)
            try:
                batch, error = answers.get(timeout=deadline_s)
            except queue.Empty:
                raise _late(deadline_s) from None
            if error is not None:
                raise error
            if batch is over:
                return
            yield batch
    finally:
        asked.put(False)


def _late(deadline_s: float) -> ResourceError:
    free = ray.available_resources()
    return ResourceError(
        f"The sample stream gave no batch within {deadline_s:g} s; {free.get('CPU', 0):g} logical "
        f"CPUs and {free.get('GPU', 0):g} GPUs are free.",
        "Its actors found no place (runtime.stream.resources), a render server hangs, or a batch "
        "takes so long: then raise runtime.stream.deadline_s.",
    )


class _Drawer:
    """Lives in a stream actor."""

    def __init__(self, draw: DrawFn, store: GeneratorStore, wait_s: float) -> None:
        self._draw, self._store, self._wait_s = draw, store, wait_s
        self._version, self._state = -1, dict[str, Tensor]()

    def __call__(self, batch: dict[str, Any]) -> Columns:
        seeds = [int(seed) for seed in batch["seeds"][0]]
        try:
            return to_columns(self._draw(self._state_of(int(batch["round"][0])), seeds))
        except PosegenError as error:  # Ray Data would hide it in a long internal traceback
            return {_ERROR: np.array([pickle.dumps(error)], dtype=object)}

    def _state_of(self, version: int) -> dict[str, Tensor]:
        if version != self._version:
            self._state = self._store.wait(version, self._wait_s)
            self._version = version
        return self._state


def _check_resources(config: StreamConfig) -> None:
    """Waits a little: the stream of a worker that was killed gives its share back late."""
    share = Share(STREAM, config.actors, config.resources)
    for _ in range(_PATIENCE):
        nodes = free_nodes()
        if not place([share], nodes)[0].homeless:
            return
        total = ray.cluster_resources()
        if total.get("CPU", 0.0) < share.cpus or total.get("GPU", 0.0) < share.gpus:
            break
        time.sleep(1.0)
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    raise ResourceError(
        f"The sample stream needs {share.cpus:g} logical CPUs and {share.gpus:g} GPUs; "
        f"{cpus:g} and {gpus:g} are free on {len(nodes)} node(s).",
        "Raise runtime.num_cpus, or lower runtime.stream.resources, runtime.stream.actors or "
        "another role's share.",
    )
