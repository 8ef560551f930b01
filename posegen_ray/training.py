"""Adversarial training: rounds of generator steps, each followed by updates of the live estimator.

One loop for every runtime: it is told how to render, where samples stream from, and its place in a
training group (`posegen_ray.context`). All randomness comes from the seed, round, step and rank, so
a resumed run equals an uninterrupted one with as many workers. With another number of them it goes
on from the same state, in the same rounds and with the same batches for the estimator; each worker
proposes `training.batch_size` poses a step, so the steps that follow see more or fewer of them.
Knows nothing of Ray.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from posegen_ray.adversary import Adversary
from posegen_ray.checkpoint import load_checkpoint, save_checkpoint
from posegen_ray.config import RunConfig, settings_that_decide
from posegen_ray.context import TrainContext
from posegen_ray.errors import CheckpointError
from posegen_ray.estimators.base import PoseEstimator, predict
from posegen_ray.estimators.online import FineTuner
from posegen_ray.estimators.registry import build_estimator
from posegen_ray.evaluation.metrics import mpjpe
from posegen_ray.generation.histories import history_of
from posegen_ray.records import Samples
from posegen_ray.scene import seeded_backgrounds
from posegen_ray.seeding import derive_seed, torch_stream
from posegen_ray.studio import Drawer, Folders, RenderSource, TestShoot, studio_of

Advance = Callable[[int], object]
STATE = "state"  # the checkpoint's folder inside what is reported


class SampleStream(Protocol):
    """Where the live estimator's batches come from. Picklable."""

    def publish(self, version: int, state: Mapping[str, Tensor]) -> None:
        """Makes the generator's weights of a round available to whoever draws samples."""

    def batches(self, first_round: int, rank: int, world_size: int) -> Iterator[Samples]:
        """The training batches from a round on, in order, lazily."""


@dataclass(frozen=True)
class TrainingResult:
    """What training leaves."""

    generators: list[dict[str, Tensor]]  # weights after each round
    estimator: dict[str, Tensor]  # the live estimator's weights at the end
    history: list[dict[str, float]]  # one row a step
    reference_mm: float  # the estimator's median error, in which the band is stated
    rendered: int  # images rendered for feedback, by all workers

    def state(self) -> dict[str, Any]:
        """For `save_checkpoint`."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TrainingResult:
        return cls(**state)


@dataclass(frozen=True)
class AdversarialTraining:
    """The loop. Picklable, so that a cluster can carry it to its workers.

    Args:
        config: the run's configuration.
        folders: training subjects.
        renderer: their NeRFs.
        stream: batches for the live estimator.
        joint_map: the estimator's, fitted on source data (None where it needs none).
        seed: root of all randomness.
        tensorboard: folder for scalars, histograms and image grids (worker 0).
        start: weights of the estimator that is attacked; None: as it comes.
        reference: weights of the reference estimator (feedback.reducible).
        advance: told how many adversarial steps were done since the last call. Picklable.
    """

    config: RunConfig
    folders: Folders
    renderer: RenderSource
    stream: SampleStream
    joint_map: Tensor | None
    seed: int
    tensorboard: str
    advance: Advance
    start: Mapping[str, Tensor] | None = None
    reference: Mapping[str, Tensor] | None = None

    def run(self, context: TrainContext) -> TrainingResult | None:
        """Trains to the end; worker 0 returns the result."""
        return _Run(self, context).to_the_end()


class _Run:
    """One worker's run of the loop."""

    def __init__(self, plan: AdversarialTraining, context: TrainContext) -> None:
        self.plan = plan
        self.config = plan.config
        self.context = context
        self.studio = studio_of(plan.config, plan.folders)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(plan.seed, "initialise"))
            people = self.studio.people.to(context.device)
            self.adversary = Adversary(
                self.studio.generator(people),
                self.config.feedback,
                self.config.discriminator,
                people,
                self.studio.checker,
                self.config.training.max_skipped_steps,
                self.config.training.accumulate,
                self.config.training.precision,
                self._estimator(plan.reference) if plan.reference is not None else None,
            )
        self.estimator = self._estimator(plan.start)
        self.tuner = self._tuner() if self.config.training.estimator_steps else None
        self.render_fn = plan.renderer.render_fn()
        self.background = seeded_backgrounds("train", self.config.training.plain_backgrounds)
        self.round = 0
        self.rendered = 0  # by all workers, in finished rounds
        self._rendering = 0  # by this one, in the round that goes on
        self.generators: list[dict[str, Tensor]] = []
        self.history: list[dict[str, float]] = []
        self._resume()
        self.writer = (
            SummaryWriter(plan.tensorboard, purge_step=len(self.history))
            if context.rank == 0
            else None
        )

    def _estimator(self, weights: Mapping[str, Tensor] | None) -> PoseEstimator:
        """The estimator as it comes, or with these weights, where this worker computes."""
        estimator = build_estimator(self.config.estimator)
        if weights is not None:
            estimator.load_state_dict(weights)
        elif self.plan.joint_map is not None:
            estimator.set_joint_map(self.plan.joint_map)
        return estimator.to(self.context.device)

    def _tuner(self) -> FineTuner:
        return FineTuner(
            self.estimator,
            self.config.finetune,
            self._average if self.context.world_size > 1 else None,
            self.config.body.name,
            self.config.training.accumulate,
            self.config.training.precision,
        )

    def to_the_end(self) -> TrainingResult | None:
        training = self.config.training
        if self.round == 0:
            self._calibrate()
        batches = self.plan.stream.batches(self.round, self.context.rank, self.context.world_size)
        validation = self._validation()
        for number in range(self.round, training.rounds):
            for step in range(training.steps_per_round):
                self._adversarial_step(number, step)
            state = _copied(self.adversary.generator.state_dict())
            self.generators.append(state)
            if self.context.rank == 0:
                self.plan.stream.publish(number, state)
            losses = []
            if self.tuner is not None:
                losses = [self.tuner.step(next(batches)) for _ in range(training.estimator_steps)]
            self.round = number + 1
            self._finish_round(losses, validation)
        if self.writer is not None:
            self.writer.close()
        if self.context.rank != 0:
            return None
        return TrainingResult(
            self.generators,
            _copied(self.estimator.state_dict()),
            self.history,
            self.adversary.reference_mm,
            self.rendered,
        )

    def _average(self, gradients: list[Tensor]) -> None:
        flat = self.context.average(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def _calibrate(self) -> None:
        rng = torch_stream(self.plan.seed, "calibrate")
        self.adversary.calibrate(
            self.render_fn,
            self.estimator,
            self.studio.band_sampler(self.adversary.generator),
            self.background,
            self.config.training.calibration_images,
            rng,
        )

    def _validation(self) -> Samples | None:
        """The validation images (worker 0): people and clips of their own, only ever watched."""
        if self.context.rank != 0:
            return None
        shoot = TestShoot(self.config, "validation")
        return shoot(shoot.seeds(self.config.experiment.validation_images))

    def _adversarial_step(self, number: int, step: int) -> None:
        training = self.config.training
        rng = torch_stream(self.plan.seed, "step", number, step, self.context.rank)
        metrics = self.adversary.step(
            training.batch_size,
            self.render_fn,
            self.estimator,
            self.background,
            rng,
            self.context.average_gradients if self.context.world_size > 1 else None,
            (number + step / training.steps_per_round) / training.rounds,
        )
        if self.config.feedback.weight > 0:  # nothing is rendered without
            self._rendering += round(metrics.valid * training.batch_size)
        row = {"step": float(len(self.history)), "seed": float(self.plan.seed), **metrics.as_dict()}
        self.history.append(row)
        if self.context.rank == 0:
            self.plan.advance(1)
        if self.writer is not None and step % training.log_every == 0:
            for name, value in metrics.as_dict().items():
                if math.isfinite(value):
                    self.writer.add_scalar(f"adversary/{name}", value, len(self.history))

    def _finish_round(self, losses: list[float], validation: Samples | None) -> None:
        metrics = {"round": float(self.round)}
        if losses:
            metrics["estimator_loss"] = sum(losses) / len(losses)
        if validation is not None:
            predicted = predict(self.estimator, validation.images)
            metrics["validation_mpjpe_mm"] = float(mpjpe(predicted, validation.joints).mean())
            self.history[-1].update(
                {name: value for name, value in metrics.items() if name != "round"}
            )
            self._log_round(metrics)
        ranks = self.context.gather(self.adversary.state_dict()["history"])
        self.rendered += sum(map(int, self.context.gather(self._rendering)))  # type: ignore[arg-type]
        self._rendering = 0
        with tempfile.TemporaryDirectory(prefix="posegen_") as scratch:
            folder = None
            if self.context.rank == 0:
                folder = Path(scratch)
                save_checkpoint(folder / STATE, self._state(ranks))
            self.context.report(metrics, folder)

    def _log_round(self, metrics: Mapping[str, float]) -> None:
        assert self.writer is not None
        step = len(self.history)
        for name, value in metrics.items():
            self.writer.add_scalar(f"round/{name}", value, step)
        for name, value in self.plan.renderer.metrics().items():
            self.writer.add_scalar(f"render/{name}", value, step)
        for name, parameter in self.adversary.generator.named_parameters():
            self.writer.add_histogram(f"generator/{name}", parameter.detach(), step)
        drawer = Drawer(self.config, self.plan.folders, self.plan.renderer)
        seeds = [derive_seed(self.plan.seed, "grid", index) for index in range(8)]
        samples, _ = drawer.generated([self.generators[-1]], seeds)
        if len(samples):
            self.writer.add_images("generated", samples.images, step)
        self.writer.flush()

    def _state(self, histories: list[Any]) -> dict[str, Any]:
        return {
            "seed": self.plan.seed,
            "settings": self._settings(),
            "round": self.round,
            "rendered": self.rendered,
            "adversary": self.adversary.state_dict(),
            "histories": histories,
            "tuner": self.tuner.state_dict() if self.tuner is not None else {},
            "generators": self.generators,
            "history": self.history,
        }

    def _resume(self) -> None:
        folder = self.context.resume_folder()
        if folder is None:
            return
        state = load_checkpoint(folder / STATE)
        if state["seed"] != self.plan.seed:
            raise CheckpointError(
                f"{folder} was written by a run with seed {state['seed']}, not {self.plan.seed}.",
                "Resume with the seed that the run was started with.",
            )
        if state["settings"] != self._settings():
            raise CheckpointError(
                f"{folder} was written by a training with other settings or people.",
                "Give each run a place of its own (training.storage), or start a new one there.",
            )
        state["adversary"]["history"] = history_of(
            state["histories"],
            self.context.rank,
            self.context.world_size,
            self.adversary.history.size,
            self.adversary.memory.size,
        )
        self.adversary.load_state_dict(state["adversary"])
        if self.tuner is not None:
            self.tuner.load_state_dict(state["tuner"])
        self.generators = state["generators"]
        self.history = state["history"]
        self.round = state["round"]
        self.rendered = state["rendered"]
        if self.generators and self.context.rank == 0:
            self.plan.stream.publish(self.round - 1, self.generators[-1])
        # nobody streams before later versions, of an attempt that was given up, are gone
        self.context.gather(None)

    def _settings(self) -> str:
        """What a checkpoint must have been written with: a digest."""
        settings = settings_that_decide(self.config)
        for free in ("rounds", "storage", "keep_checkpoints", "best_metric"):
            del settings["training"][free]
        people = [name for name, _ in self.plan.folders]
        return hashlib.sha256(json.dumps([settings, people]).encode()).hexdigest()


def history_table(results: Mapping[str, Sequence[TrainingResult]]) -> pd.DataFrame:
    """All training curves by arm, one row a step."""
    parts = [
        pd.DataFrame(result.history).assign(arm=arm)
        for arm, of_seeds in results.items()
        for result in of_seeds
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}
