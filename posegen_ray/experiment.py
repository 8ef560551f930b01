"""A comparison of fine-tuning data: people, test sets, training, arms, evaluation, report.

The same sequence for every runtime. What a phase leaves is kept in the run folder at once, so a run
that was interrupted goes on where it stopped and ends with the same numbers.

    runs/<name>/config.yaml             all settings
                checkpoint/             joint map, generators, fine-tuned estimators
                training/               adversarial training's own checkpoints
                samples/*.parquet       what every training and test image was made from
                drawn/                  test and training images, while the run needs them
                tensorboard/            curves, histograms, generated images
                evaluation.*            predictions and test images: all that the report needs
                summary.json comparison.csv report.html
                pose_sets.csv           what the training poses are like, against motion capture
                failure_finding.csv     how hard they are, and which failures they reach
                atlas.html atlas.csv    failures by pose, viewpoint and body part
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from posegen_ray import findings
from posegen_ray.arms import fine_tuned_arms
from posegen_ray.compose import change_config, dump_config, read_config
from posegen_ray.config import EvaluationConfig, RunConfig
from posegen_ray.console import Console
from posegen_ray.errors import (
    ConfigError,
    ResourceError,
)
from posegen_ray.estimators.registry import check_estimator
from posegen_ray.evaluation.comparison import comparison_table, write_comparison
from posegen_ray.evaluation.failure_page import write_failure_atlas
from posegen_ray.evaluation.pose_sets import POSE_SETS_TABLE
from posegen_ray.evaluation.report import write_report
from posegen_ray.evaluation.store import ReportInputs, load_evaluation, save_evaluation
from posegen_ray.evaluation.summary import (
    build_summary,
    collect_versions,
    evaluate_arms,
    terminal_table,
    write_summary,
)
from posegen_ray.export import export_run
from posegen_ray.files import write_text
from posegen_ray.generation.losses import joint_weights
from posegen_ray.local import Backend
from posegen_ray.photographs import check_photographs
from posegen_ray.run import Run

# --- run folders --------------------------------------------------------------------------------


def check_run(config: RunConfig, compared: bool = True) -> None:
    """Whether a run can begin with this estimator and these settings; opens none of its files
    but those that label photographs.

    Args:
        compared: it is a comparison, whose arms are fine-tuned; not training alone.

    Raises:
        ConfigError, CheckpointError, AssetError: as `check_estimator`.
        ConfigError: a variant's settings are wrong, or feedback.joint_weights.
        ConfigError, DataError: as `check_photographs`.
    """
    compared = compared and set(config.experiment.arms) != {"baseline"}
    check_estimator(config.estimator, config.finetune, compared)
    for one in (config, *(arm.config for arm in fine_tuned_arms(config))):
        joint_weights(one.feedback.joint_weights)
    check_photographs(config, config.finetune.losses)


def open_run_folder(
    config: RunConfig,
    overrides: Sequence[str],
    say: Callable[[str], None],
    check: Callable[[RunConfig], None] = check_run,
) -> tuple[RunConfig, Path]:
    """A fresh run folder, or the one that resume= names, with the settings it was started with.

    What lies in a fresh run's folder already is moved aside, never overwritten, and `say` is told.

    Args:
        check: raises where a run with these settings cannot begin.

    Raises:
        ConfigError: resume= names no run, or comes with settings that differ from the run's.
        ConfigError, CheckpointError, AssetError: as `check`.
        ResourceError: the folder cannot be written.
    """
    if config.resume:
        folder = Path(config.resume)
        loaded = read_config(folder / "config.yaml")
        others = [o for o in overrides if not o.lstrip("+").startswith("runtime")]
        if others:
            raise ConfigError(
                f"resume={folder} goes on with the run's own settings; {others[0]!r} would "
                "change them.",
                "Leave all settings but runtime=… out, or start a new run.",
            )
        check(loaded)
        runtime = config.runtime if overrides else loaded.runtime
        return replace(loaded, resume=str(folder), runtime=runtime), folder
    check(config)
    folder = Path(config.run_dir)
    try:
        if folder.exists() and any(folder.iterdir()):
            aside = _free_name(folder)
            os.replace(folder, aside)
            say(f"{folder} holds an earlier run: it is now {aside}")
        folder.mkdir(parents=True, exist_ok=True)
        dump_config(config, folder / "config.yaml")
    except OSError as error:
        raise ResourceError(
            f"The run folder {folder} cannot be written ({error.strerror or error}).",
            "Choose a writable one with run_dir=…, or free space.",
        ) from error
    return config, folder


# what a command says of its own work, not of the run's
_OWN = ("run", "runtime", "n", "out", "format", "export")


def open_finished_run(
    config: RunConfig, overrides: Sequence[str] = (), may_change: Sequence[str] = ()
) -> tuple[Path, RunConfig]:
    """The run that run= names, and its settings (with what this command says of its own work).

    Args:
        overrides: the command line, which `config` was composed of.
        may_change: the settings of the run that this command may change; a prefix of their names.

    Raises:
        ConfigError: run= names no run, or other settings are to be changed.
    """
    if not config.run:
        raise ConfigError("No run is named.", "Add run=<run folder>, for example run=runs/demo.")
    folder = Path(config.run)
    loaded = read_config(folder / "config.yaml")
    changes = [o for o in overrides if o.split("=")[0].split(".")[0] not in _OWN]
    for change in changes:
        key = change.split("=")[0]
        if not any(key == name or key.startswith(f"{name}.") for name in may_change):
            can = f" but {', '.join(f'{name}…' for name in may_change)}" if may_change else ""
            raise ConfigError(
                f"run={folder} keeps the settings it was made with; {change!r} would change them.",
                f"Leave all of them out{can}, or start a new run.",
            )
    return folder, replace(
        change_config(loaded, changes),
        run=config.run,
        n=config.n,
        out=config.out,
        format=config.format,
        export=config.export,
        runtime=config.runtime,
    )


def _free_name(folder: Path) -> Path:
    number = 1
    while (name := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return name


# --- commands -----------------------------------------------------------------------------------


def run_experiment(config: RunConfig, folder: Path, backend: Backend, console: Console) -> str:
    """The whole comparison; returns the table for the terminal."""
    run = Run(config, folder, backend, console)
    tests = run.test_set()
    answers = {"baseline": [run.baseline(tests)]}
    run.trainings()
    run.draw_arms()
    speed, gallery = run.speed(), run.gallery()
    backend.release_renderer()  # nothing is rendered any more, and fine-tuning needs the memory
    answers |= run.arms(tests)
    drawn, valid, reasons = run.notes.candidates()
    predictions = {arm: torch.stack(rows) for arm, rows in answers.items()}
    inputs = ReportInputs(
        estimator=run.estimator_name,
        seeds=tuple(config.experiment.seeds),
        predictions=predictions,
        samples=tests.samples,
        sets=tests.sets,
        train_images=config.experiment.images_per_arm,
        timing_s=dict(console.timing_s),
        versions=collect_versions(),
        render=speed,
        rejected=reasons,
        rejected_total=drawn - valid,
        history=findings.history(run),
        generated=gallery,
        title=f"PoseGen: {config.experiment.name}",
        settings=findings.settings(run),
        pose_sets=findings.pose_sets(run),
        failure_finding=findings.failure_finding(run, tests, predictions["baseline"]),
    )
    save_evaluation(folder, inputs)
    run.tidy()
    return _write_results(folder, inputs, config.evaluation)


_BAND_OF = {"source": "source images", "prior": "what the untrained generator proposes"}


def run_training(config: RunConfig, folder: Path, backend: Backend, console: Console) -> str:
    """Adversarial training for each seed."""
    run = Run(config, folder, backend, console)
    lines = []
    for seed in config.experiment.seeds:
        result = run.training(seed)
        last = [row["error_mm"] for row in result.history[-20:] if row["error_mm"] > 0]
        median = float(np.median(last)) if last else float("nan")
        lines.append(
            f"seed {seed}: the estimator's median error is {result.reference_mm:.0f} mm on "
            f"{_BAND_OF[config.feedback.band_of]}, {median:.0f} mm on the last generated ones; "
            f"{folder / 'checkpoint'}"
        )
    run.tidy()
    return "\n".join(lines)


def run_generation(config: RunConfig, folder: Path, backend: Backend, console: Console) -> str:
    """Writes config.n labelled images from a run's generators into config.out."""
    run = Run(config, folder, backend, console)
    return str(export_run(run, Path(config.out or folder / "generated")))


def run_evaluation(config: RunConfig, folder: Path, backend: Backend, console: Console) -> str:
    """Predicts the test images again with the run's estimators, and writes its results again."""
    before = load_evaluation(folder)
    run = Run(config, folder, backend, console)
    tests = run.test_set()
    predictions = {"baseline": torch.stack([run.baseline(tests)])}
    for arm in before.arms:
        if arm != "baseline":
            rows = [run.answer_again(arm, seed, tests) for seed in config.experiment.seeds]
            predictions[arm] = torch.stack(rows)
    inputs = replace(before, predictions=predictions, samples=tests.samples, sets=tests.sets)
    save_evaluation(folder, inputs)
    run.tidy()
    return _write_results(folder, inputs, config.evaluation)


def rewrite_report(folder: Path, settings: EvaluationConfig) -> Path:
    """Writes report.html (and summary.json) from what the run left."""
    _write_results(folder, load_evaluation(folder), settings)
    return folder / "report.html"


def rewrite_atlas(folder: Path, arm: str, settings: EvaluationConfig) -> tuple[Path, Path]:
    """Writes atlas.html and atlas.csv of one arm (empty: the report's) from what the run left."""
    return write_failure_atlas(folder, load_evaluation(folder), arm, settings)


def _write_results(folder: Path, inputs: ReportInputs, settings: EvaluationConfig) -> str:
    tables = evaluate_arms(inputs)
    summary = build_summary(inputs, settings.bootstrap, tables)
    write_summary(folder, summary)
    if len(inputs.pose_sets):
        text = inputs.pose_sets.to_csv(index=False, float_format="%.5g")
        write_text(folder / POSE_SETS_TABLE, text)
    write_failure_atlas(folder, inputs, settings=settings)
    write_comparison(folder, comparison_table(tables, settings.bootstrap))
    if len(inputs.failure_finding):
        text = inputs.failure_finding.to_csv(index=False, float_format="%.5g")
        write_text(folder / "failure_finding.csv", text)
    write_report(folder, inputs, settings)
    return terminal_table(summary)
