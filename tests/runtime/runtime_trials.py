"""Trials without training, for the tests of sweeps."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from posegen_ray.console import Console

if TYPE_CHECKING:  # torch takes its time in each helper's process
    from posegen_ray.context import TrainContext


@ray.remote(num_cpus=0.4)
class Helper:
    """In place of a render server: tells the placement group that it lives in."""

    def group(self) -> str:
        return ray.get_runtime_context().get_placement_group_id()


@dataclass(frozen=True)
class StairTrial:
    """Reports 100 * weight + round, and what it did to `log`; a weight above `broken` fails."""

    rounds: int
    log: str
    broken: float = 9.0

    def run(self, name: str, point: dict, context: TrainContext) -> str:
        helper = Helper.remote()
        mine, helpers = ray.get_runtime_context().get_placement_group_id(), helper.group.remote()
        first, resumed = 1, context.resume_folder()
        if resumed is not None:
            first = json.loads((resumed / "state.json").read_text())["round"] + 1
        weight = point["feedback.weight"]
        for number in range(first, self.rounds + 1):
            if weight > self.broken:
                return f"weight {weight} is broken"
            self._note(weight=weight, seed=point["seed"], round=number, group=mine,
                       helper=ray.get(helpers), working_folder=os.getcwd())  # fmt: skip
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "state.json").write_text(json.dumps({"round": number}))
                metrics = {"round": float(number), "validation_mpjpe_mm": 100 * weight + number}
                context.report(metrics, Path(folder))
        return ""

    def _note(self, **entry: object) -> None:
        with open(self.log, "a", encoding="utf-8") as file:  # short lines are appended whole
            file.write(json.dumps(entry) + "\n")


class ImpatientConsole(Console):
    """Presses Ctrl-C once, when it is told of a round for the `after`th time."""

    def __init__(self, marker: str, after: int) -> None:
        super().__init__(quiet=True)
        self.marker, self.after = marker, after

    def say(self, text: str) -> None:
        if "after round" in text:
            self.after -= 1
        if self.after == 0 and not os.path.exists(self.marker):
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGINT)
