"""Trains a small loop on Ray in a process of its own, which the fault matrix then disturbs.

`python training_driver.py '{"folder": …}'`; prints RESULT and what the loop gave, as JSON, or
ERROR and the message.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from runtime_draws import JitterDraw
from runtime_loops import QuadraticLoop

from posegen_ray.checkpoint_store import CheckpointStore
from posegen_ray.config import RoleResources, RuntimeConfig, StreamConfig
from posegen_ray.context import TrainContext
from posegen_ray.errors import PosegenError
from posegen_ray.local import draw_plan
from posegen_ray.records import Samples
from posegen_ray.runtime.generator_store import GeneratorStore
from posegen_ray.runtime.session import RaySession
from posegen_ray.runtime.stream import sample_stream
from posegen_ray.runtime.train import fit_with_ray

ROUNDS = 5


@dataclass
class PacedLoop(QuadraticLoop):
    """Notes in a folder who begins which round (round, rank, process), and takes its time."""

    notes: str = ""
    pause_s: float = 0.7

    def before(self, context: TrainContext, number: int) -> None:
        name = f"{number}-{context.rank}-{context.world_size}-{os.getpid()}-{time.monotonic_ns()}"
        (Path(self.notes) / name).touch()
        time.sleep(self.pause_s)


@dataclass
class StreamedLoop(PacedLoop):
    """Its batches come from a stream that draws them with the weights of the round before."""

    versions: GeneratorStore | None = None
    _stream: Iterator[Samples] | None = field(default=None, init=False, repr=False)

    def targets(self, number: int, weight: torch.Tensor) -> torch.Tensor:
        assert self.versions is not None
        self.versions.publish(number, {"weight": weight.detach()})
        if self._stream is None:
            plan = draw_plan(3, range(number, self.rounds), batches_per_round=1, batch_size=4)
            config = StreamConfig(resources=RoleResources(0.25), wait_s=200)
            self._stream = sample_stream(plan, JitterDraw(), self.versions, config)
        return next(self._stream).view


def main(settings: dict) -> None:
    folder = Path(settings["folder"])
    notes = folder / "notes"
    notes.mkdir(exist_ok=True)
    config = RuntimeConfig(
        address=settings.get("address", ""),
        num_cpus=4,
        object_store_mb=100,
        train_workers=settings.get("workers", 2),
        min_train_workers=settings.get("fewest", 0),
        train_resources=RoleResources(settings.get("cpus", 0.5)),
        max_train_failures=3,
        train_start_s=120,
    )
    store = CheckpointStore(settings.get("store", str(folder / "kept")))
    resume = settings.get("resume", False)
    try:
        with RaySession(config):
            loop = PacedLoop(ROUNDS, notes=str(notes))
            if settings.get("stream"):
                versions = GeneratorStore(folder / "versions", clear=not resume)
                loop = StreamedLoop(ROUNDS, notes=str(notes), versions=versions)
            result = fit_with_ray(loop, config, store, folder, resume, lambda t: print("SAID", t))
    except PosegenError as error:
        print("ERROR", error, flush=True)
        sys.exit(1)
    print("RESULT", json.dumps(result.value), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
