"""A sweep: many adversarial trainings with other settings, judged on validation images only.

    runs/tune/config.yaml          all settings, the search space among them
              overrides.json       what the command was told
              trials/              Tune's own state: goes on after an interruption
              confirmation/        the same of the best trial's and the default's new seeds
              checkpoint/          joint map, shared by all trials
              tensorboard/         a folder a trial
              trials.csv sweep.json best_overrides.txt report.html

The objective is `validation_mpjpe_mm`: the error of the live estimator, which is fine-tuned on what
the trial's generator makes (and source images) a little in each round, on images of people and
clips of their own. Knows nothing of Ray: whoever runs the trials gives them a renderer and a
`TrainContext`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from posegen_ray.checkpoint import load_checkpoint, save_checkpoint
from posegen_ray.config import RunConfig, TuneConfig, require, setting, with_settings
from posegen_ray.console import Console
from posegen_ray.context import TrainContext
from posegen_ray.errors import ConfigError, TrainingError
from posegen_ray.estimators.base import predict
from posegen_ray.estimators.registry import build_estimator
from posegen_ray.evaluation.metrics import mpjpe
from posegen_ray.evaluation.summary import collect_versions
from posegen_ray.evaluation.sweep import (
    FAILED,
    FINISHED,
    STOPPED,
    SWEEP_FILE,
    Confirmation,
    Sweep,
    TrialRecord,
    load_sweep,
    save_sweep,
    sweep_text,
)
from posegen_ray.evaluation.sweep_report import write_sweep_report
from posegen_ray.files import write_json
from posegen_ray.local import Backend, LocalStream
from posegen_ray.photographs import check_photographs
from posegen_ray.records import Samples
from posegen_ray.run import Run
from posegen_ray.studio import Drawer, Folders, RenderSource, TestShoot
from posegen_ray.training import AdversarialTraining

OBJECTIVE = "validation_mpjpe_mm"  # as the training loop reports it, after each round
ROUND = "round"
OVERRIDES_FILE = "overrides.json"
SEED = "seed"

Point = Mapping[str, Any]  # of a trial: its seed, and the searched settings by dotted name


class TrialWork(Protocol):
    """What one trial does. Picklable."""

    def run(self, name: str, point: Point, renderer: RenderSource, context: TrainContext) -> str:
        """Trains with these settings and reports OBJECTIVE and ROUND after each round.

        Args:
            name: the trial's, for its folders.
            point: what it tries.
            renderer: the trial's own.
            context: its place in a group of one.

        Returns:
            Why these settings cannot be trained to the end, or nothing.
        """


@dataclass(frozen=True)
class Search:
    """Which points are tried, and how."""

    name: str  # folder of its state
    n_trials: int
    points: Sequence[Point]  # tried first; the rest is drawn from the search space
    seeds: Sequence[int]  # that a point may have
    tune: TuneConfig


@dataclass(frozen=True)
class Outcome:
    """What became of a trial."""

    name: str
    point: Point
    errors_mm: tuple[float, ...]  # after each round; infinite where it failed
    seconds: float
    failure: str = ""


class SweepBackend(Backend, Protocol):
    """A runtime that can run trials side by side."""

    def tune(self, work: TrialWork, folders: Folders, search: Search) -> list[Outcome]:
        """Runs a search to its end, or goes on with it; outcomes in the order of trials.

        Raises:
            KeyboardInterrupt: it was interrupted, and all that is needed to go on is kept.
        """


@dataclass(frozen=True)
class Trial:
    """One adversarial training with some settings changed.

    Args:
        config: the run's configuration: the default settings.
        folders: training subjects.
        joint_map: the estimator's (None where it needs none).
        folder: the sweep's, absolute.
        confirming: judge the estimator at the end on validation images that no round looks at.
    """

    config: RunConfig
    folders: Folders
    joint_map: Tensor | None
    folder: str
    confirming: bool = False

    def run(self, name: str, point: Point, renderer: RenderSource, context: TrainContext) -> str:
        config, seed = trial_config(self.config, point), int(point[SEED])
        folder = Path(self.folder) / "tensorboard"
        loop = AdversarialTraining(
            config,
            self.folders,
            renderer,
            LocalStream(config, Drawer(config, self.folders, renderer), seed),
            self.joint_map,
            seed,
            str(folder / "confirmation" / name if self.confirming else folder / name),
            _unnoticed,
        )
        try:
            result = loop.run(context)
        except TrainingError as error:  # settings that lead nowhere are an answer, too
            return str(error)
        if self.confirming and result is not None:
            samples = confirmation_images(config)
            estimator = build_estimator(config.estimator)
            estimator.load_state_dict(result.estimator)
            errors = mpjpe(predict(estimator, samples.images), samples.joints)
            state = {
                "errors_mm": errors.double(),
                "clips": [clip.split(":")[0] for clip in samples.clips],
                "people": list(samples.subjects),
            }
            save_checkpoint(confirmed_folder(Path(self.folder), name), state)
        return ""


def trial_config(config: RunConfig, point: Point) -> RunConfig:
    """The configuration of a point's trial."""
    settings = {p.name: point[p.name] for p in config.tune.space}
    # no trial fine-tunes an estimator before it trains: all attack it as it comes
    training = replace(config.training, attack="pretrained")
    plain = replace(config, tune=TuneConfig(), training=training)
    return with_settings(plain, rounded(config, settings))


def rounded(config: RunConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are used and shown: drawn numbers have four digits, the default's all."""
    return {
        p.name: settings[p.name]
        if settings[p.name] == setting(config, p.name)
        else p.rounded(settings[p.name])
        for p in config.tune.space
    }


def default_point(config: RunConfig, seed: int) -> dict[str, Any]:
    """The settings as they are: always the first trial."""
    return {SEED: seed, **{p.name: setting(config, p.name) for p in config.tune.space}}


def confirmation_images(config: RunConfig) -> Samples:
    """As many validation images as training watches, of the same people and clips, but others."""
    shoot, count = TestShoot(config, "validation"), config.experiment.validation_images
    return shoot(shoot.seeds(2 * count)[count:])


def confirmed_folder(folder: Path, name: str) -> Path:
    """Where a confirming trial leaves its errors."""
    return folder / "confirmation" / "errors" / name


def check_sweep(config: RunConfig) -> None:
    """Refuses what no sweep could be run with, before a folder is made or anything starts.

    Raises:
        ConfigError: no search space, no Ray, several train workers a trial, or Optuna is missing.
        ConfigError, DataError: as `check_photographs`.
    """
    check_photographs(config, config.finetune.losses)
    require(
        bool(config.tune.space),
        "No search space is configured.",
        "Choose one: posegen tune tune=asha (or random, optuna), or give tune.space=[…].",
    )
    require(
        config.runtime.name != "inprocess",
        "posegen tune runs its trials with Ray Tune, which runtime=inprocess does without.",
        "Use runtime=laptop.",
    )
    require(
        config.runtime.train_workers == 1,
        f"A trial trains in one worker, but runtime.train_workers={config.runtime.train_workers}.",
        "Set runtime.train_workers=1; the other workers' share lets more trials run at once.",
    )
    require(
        config.feedback.reducible == 0
        and all(one.name != "feedback.reducible" for one in config.tune.space),
        "feedback.reducible needs a reference estimator, which a sweep does not fine-tune.",
        "Set feedback.reducible=0 and leave it out of tune.space.",
    )
    if config.tune.search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "tune=optuna needs the package optuna, which is not installed.",
            "Install it: pip install 'posegen-ray[tune]'; or search at random with tune=asha.",
        )


def keep_overrides(folder: Path, overrides: Sequence[str]) -> None:
    """Notes what a new sweep was told; a resumed one knows it already."""
    file = folder / OVERRIDES_FILE
    if not file.exists():
        write_json(file, overrides)


def run_sweep(config: RunConfig, folder: Path, backend: SweepBackend, console: Console) -> str:
    """The whole sweep, or the rest of an interrupted one; returns the text for the terminal.

    Raises:
        ConfigError, ResourceError: before any trial starts.
        DataError: the default settings' trial failed, so that there is nothing to compare with.
        KeyboardInterrupt: interrupted; resume= goes on.
    """
    run = Run(config, folder, backend, console)
    folders, joint_map = run.drawing.subjects(), run.drawing.joint_map()
    trial = Trial(config, folders, joint_map, str(folder.absolute()))
    root = run.root(config.experiment.seeds[0])
    search = Search("trials", config.n_trials, [default_point(config, root)], [root], config.tune)
    with console.phase("trials", f"{config.n_trials} trials"):
        outcomes = backend.tune(trial, folders, search)
    sweep = Sweep(
        title=f"PoseGen sweep: {config.experiment.name}",
        estimator=run.estimator_name,
        rounds=config.training.rounds,
        parameters=config.tune.space,
        records=[_record(config, number, o) for number, o in enumerate(outcomes)],
        overrides=json.loads((folder / OVERRIDES_FILE).read_text(encoding="utf-8")),
        facts=_facts(config),
    )
    if config.tune.confirm_seeds and sweep.best.number != 0:
        sweep = replace(sweep, confirmation=_confirm(sweep, trial, root, backend, console))
    save_sweep(folder, sweep)
    write_sweep_report(folder, sweep)
    return sweep_text(sweep)


def is_sweep(folder: Path) -> bool:
    """Whether a run folder is a sweep's."""
    return (folder / SWEEP_FILE).exists()


def rewrite_sweep_report(folder: Path) -> Path:
    """Writes a sweep's report again from what it left."""
    return write_sweep_report(folder, load_sweep(folder))


def _confirm(
    sweep: Sweep, trial: Trial, root: int, backend: SweepBackend, console: Console
) -> Confirmation:
    """Trains the best trial's settings and the default's again, with seeds that nobody has seen."""
    config = trial.config
    seeds = [root + 1 + number for number in range(config.tune.confirm_seeds)]
    sides = (sweep.default.settings, sweep.best.settings)
    points = [{SEED: seed, **side} for seed in seeds for side in sides]
    every = replace(config.tune, search="random", scheduler="fifo")
    search = Search(f"confirmation/trial_{sweep.best.number}", len(points), points, seeds, every)
    text = f"training the best and the default again with {len(seeds)} new seeds"
    with console.phase("confirmation", text):
        outcomes = backend.tune(replace(trial, confirming=True), trial.folders, search)
    failed = [outcome.failure for outcome in outcomes if outcome.failure]
    if failed:
        raise TrainingError(
            f"A trial failed when it was trained again with another seed: {failed[0]}",
            "Its settings are at the edge of what can be trained: narrow tune.space.",
        )
    assert [outcome.point for outcome in outcomes] == points
    states = [
        load_checkpoint(confirmed_folder(Path(trial.folder), outcome.name)) for outcome in outcomes
    ]
    errors = [state["errors_mm"].tolist() for state in states]
    return Confirmation(errors[::2], errors[1::2], states[0]["clips"], states[0]["people"])


def _record(config: RunConfig, number: int, outcome: Outcome) -> TrialRecord:
    done = len(outcome.errors_mm) >= config.training.rounds
    status = FAILED if outcome.failure else FINISHED if done else STOPPED
    return TrialRecord(
        number,
        rounded(config, outcome.point),
        status,
        outcome.errors_mm,
        outcome.seconds,
        outcome.failure,
    )


def _facts(config: RunConfig) -> dict[str, str]:
    training, tune = config.training, config.tune
    return {
        "search": tune.search,
        "scheduler": tune.scheduler,
        "adversarial steps a round": str(training.steps_per_round),
        "estimator's steps a round": str(training.estimator_steps),
        "validation images": str(config.experiment.validation_images),
        "seed of the search": str(config.seed),
        **collect_versions(),
    }


def _unnoticed(count: int) -> None:
    """Steps of a trial: a sweep's progress is told in rounds."""
