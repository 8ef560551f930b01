"""The paper's table: several estimators, before and after PoseGen, on several public test sets.

    runs/paper/<estimator>/          that estimator's own comparison, as `posegen demo` leaves it
                          /public/   its results on the test sets
              paper.csv paper.json   the table

The same command goes on where it was interrupted: a finished comparison is not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from posegen_ray.compose import compose_config, read_config
from posegen_ray.config import RunConfig
from posegen_ray.console import Console
from posegen_ray.datasets.public import open_public_set
from posegen_ray.errors import ConfigError
from posegen_ray.evaluation.public import SmplMeshes
from posegen_ray.evaluation.summary import SUMMARY_FILE, collect_versions
from posegen_ray.experiment import check_run, open_run_folder, run_experiment
from posegen_ray.files import write_json
from posegen_ray.local import Backend
from posegen_ray.public_sets import evaluate_on_public_set, write_csv

COMPARED = {"mpjpe_mm": "MPJPE", "pa_mpjpe_mm": "PA-MPJPE"}
AFTER = "posegen"
MEAN = "mean"  # in place of a test set's or an estimator's name
# settings of the table, not of an estimator's run
_OF_THE_TABLE = (
    "estimators",
    "datasets",
    "dataset",
    "data_root",
    "checkpoints",
    "trained_on_3dpw",
    "run_dir",
    "resume",
)

OpenBackend = Callable[[RunConfig, Path], Backend]


def run_paper(overrides: Sequence[str], open_backend: OpenBackend, console: Console) -> str:
    """Fine-tunes and measures every estimator; returns the table.

    Args:
        overrides: the command's settings; each estimator's run is composed from them.

    Raises:
        ConfigError: no estimators or test sets are named, an unknown one, or a run folder that was
            started with other settings.
        DataError, AssetError, CheckpointError: as `evaluate_on_public_set`; for files that a test
            set or an estimator needs, before anything is trained.
    """
    config = compose_config(overrides)
    if not config.estimators or not config.datasets or AFTER not in config.experiment.arms:
        raise ConfigError(
            "The table needs estimators, test sets and the arm posegen.",
            "For example: posegen experiment experiment=paper estimators=[spin] datasets=[3dpw] "
            "data_root=/data.",
        )
    folder = Path(config.run_dir)
    runs = {name: run_config(config, overrides, name) for name in config.estimators}
    sets = {name: compose_config([*overrides, f"dataset={name}"]) for name in config.datasets}
    for run in runs.values():
        check_run(run)
    for name, settings in sets.items():  # what is missing is found before days of work
        test = open_public_set(settings.dataset, _root(config, name))
        if not test.states_joints:
            meshes = SmplMeshes(settings.body.smpl_folder, settings.dataset.joint_regressor)
            meshes.require(test.genders, test.joint_names)
    tables = []
    for name, run in runs.items():
        _finish(run, open_backend, console)
        for dataset, settings in sets.items():
            root = _root(config, dataset)
            measured = replace(settings, run=run.run_dir, data_root=root, out="")
            table = evaluate_on_public_set(measured, console)
            tables.append(table.assign(estimator=name))
    rows = pd.concat(tables, ignore_index=True)
    table = paper_table(rows, config.trained_on_3dpw)
    write_csv(folder / "paper.csv", table)
    write_json(
        folder / "paper.json",
        {
            "table": table.to_dict("records"),
            "results": rows.to_dict("records"),
            "seeds": list(config.experiment.seeds),
            "overrides": list(overrides),
            "versions": collect_versions(),
        },
    )
    return paper_text(table)


def run_config(config: RunConfig, overrides: Sequence[str], name: str) -> RunConfig:
    """One estimator's run: the command's settings without those of the table."""
    return compose_config(run_overrides(config, overrides, name))


def run_overrides(config: RunConfig, overrides: Sequence[str], name: str) -> list[str]:
    """What `run_config` is composed from."""
    keys = {override: override.lstrip("+").split("=")[0] for override in overrides}
    own = [
        override
        for override, key in keys.items()
        if key != "estimator" and key.split(".")[0] not in _OF_THE_TABLE
    ]
    own += [f"estimator={name}", f"run_dir={Path(config.run_dir) / name}"]
    if name in config.checkpoints:
        own.append(f"estimator.checkpoint={config.checkpoints[name]}")
    return own


def paper_table(
    rows: pd.DataFrame,  # of all estimators and test sets, from evaluate_on_public_set
    trained_on_3dpw: Mapping[str, bool],
) -> pd.DataFrame:
    """Before and after, a row an estimator and test set; then means.

    Improvement is (before - after) / before in percent, for each seed; its mean and sample standard
    deviation are over seeds. A mean over test sets (and, in the last row, over estimators) is
    taken seed by seed, too.

    Returns:
        Columns estimator, trained_on_3dpw (yes | no | not stated), dataset, joints, frames, seeds;
        then, for each name of COMPARED: <name>_before, <name>_after, <name>_after_sd,
        <name>_improvement, <name>_improvement_sd (NaN with one seed).
    """
    lines: list[dict[str, object]] = []
    gains: list[pd.DataFrame] = []
    said = {True: "yes", False: "no", None: "not stated"}
    for (estimator, dataset), part in rows.groupby(["estimator", "dataset"], sort=False):
        before, after = part[part["arm"] == "baseline"], part[part["arm"] == AFTER]
        gain = pd.DataFrame({"estimator": estimator, "seed": after["seed"].to_numpy()})
        line: dict[str, object] = {
            "estimator": estimator,
            "trained_on_3dpw": said[trained_on_3dpw.get(str(estimator))],
            "dataset": dataset,
            "joints": before["joints"].iloc[0],
            "frames": before["frames"].iloc[0],
            "seeds": len(after),
        }
        for name in COMPARED:
            start, ends = before[name].iloc[0], after[name]
            gain[name] = 100 * (start - ends.to_numpy()) / start
            line[f"{name}_before"] = start
            line[f"{name}_after"], line[f"{name}_after_sd"] = ends.mean(), ends.std()
            line |= _improvement(name, gain[name])
        lines.append(line)
        gains.append(gain)
    every = pd.concat(gains)
    for estimator in every["estimator"].unique():
        lines.append(_mean_line(str(estimator), every[every["estimator"] == estimator]))
    if every["estimator"].nunique() > 1:
        lines.append(_mean_line(MEAN, every))
    return pd.DataFrame(lines).astype({"frames": "Int64"})


def paper_text(table: pd.DataFrame) -> str:
    """The table for a terminal."""
    shown = table[["estimator", "dataset", "joints", "frames", "seeds"]].astype(object)
    shown.insert(1, "3DPW-train", table["trained_on_3dpw"])
    for name, heading in COMPARED.items():
        shown[heading] = [
            f"{before:.1f} -> {after:.1f}{_spread(sd)}" if before == before else ""
            for before, after, sd in zip(
                table[f"{name}_before"],
                table[f"{name}_after"],
                table[f"{name}_after_sd"],
                strict=True,
            )
        ]
        shown[f"{heading} improvement"] = [
            f"{mean:+.1f} %{_spread(sd)}"
            for mean, sd in zip(
                table[f"{name}_improvement"], table[f"{name}_improvement_sd"], strict=True
            )
        ]
    return shown.where(shown.notna(), "").to_string(index=False)


def _improvement(name: str, gains: pd.Series[float]) -> dict[str, object]:
    return {f"{name}_improvement": gains.mean(), f"{name}_improvement_sd": gains.std()}


def _mean_line(estimator: str, gains: pd.DataFrame) -> dict[str, object]:
    over_sets = gains.groupby("seed")[list(COMPARED)].mean()
    line: dict[str, object] = {"estimator": estimator, "dataset": MEAN, "seeds": len(over_sets)}
    for name in COMPARED:
        line |= _improvement(name, over_sets[name])
    return line


def _spread(sd: float) -> str:
    return f" ± {sd:.1f}" if sd == sd else ""


def _root(config: RunConfig, dataset: str) -> str:
    return str(Path(config.data_root) / dataset)


def _finish(config: RunConfig, open_backend: OpenBackend, console: Console) -> None:
    """An estimator's comparison: started, continued, or already there."""
    folder = Path(config.run_dir)
    if (folder / "config.yaml").exists():
        kept = read_config(folder / "config.yaml")
        if replace(kept, runtime=config.runtime) != config:
            raise ConfigError(
                f"{folder} was started with other settings.",
                "Repeat the command as it was, or choose another run_dir.",
            )
        if (folder / SUMMARY_FILE).exists():
            console.say(f"{folder} is finished")
            return
        config = replace(config, resume=str(folder))
    else:
        open_run_folder(config, [], console.say)
    with open_backend(config, folder) as backend:
        run_experiment(config, folder, backend, console)
