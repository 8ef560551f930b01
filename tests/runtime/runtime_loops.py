"""Small training loops for the tests of the worker group."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from posegen_ray.context import TrainContext
from posegen_ray.errors import TrainingError
from posegen_ray.seeding import torch_stream


@dataclass
class QuadraticLoop:
    """Fits a vector to random targets; each worker takes its share of a global batch of 4."""

    rounds: int
    fail: bool = False

    def run(self, context: TrainContext) -> dict[str, object]:
        weight = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.Adam([weight], lr=0.1)
        first, resumed = 0, context.resume_folder()
        if resumed is not None:
            saved = torch.load(resumed / "state.pt", weights_only=True)
            weight.data.copy_(saved["weight"])
            optimizer.load_state_dict(saved["optimizer"])
            first = saved["round"] + 1
        if self.fail:
            raise TrainingError(f"Too many steps of round {first} were not finite.")
        for number in range(first, self.rounds):
            self.before(context, number)
            targets = self.targets(number, weight)
            mine = targets[context.rank :: context.world_size]
            optimizer.zero_grad()
            (weight - mine).square().mean().backward()
            context.average_gradients([weight])
            optimizer.step()
            loss = float(context.average(weight.detach().square().sum()))
            with tempfile.TemporaryDirectory() as folder:
                state = {"weight": weight.data, "optimizer": optimizer.state_dict()}
                torch.save({**state, "round": number}, Path(folder) / "state.pt")
                metrics = {"round": float(number), "loss": loss}
                context.report(metrics, Path(folder) if context.rank == 0 else None)
        spread = torch.full((2,), float(context.rank))
        context.broadcast([spread])
        return {
            "weight": weight.detach().tolist(),
            "first": first,
            "ranks": context.gather(context.rank),
            "spread": spread.tolist(),
            "working_folder": os.getcwd(),
        }

    def targets(self, number: int, weight: torch.Tensor) -> torch.Tensor:  # [4, 3]
        """A round's global batch."""
        return torch.randn(4, 3, generator=torch_stream(0, number))

    def before(self, context: TrainContext, number: int) -> None:
        """Called as a round begins."""
