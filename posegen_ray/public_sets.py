"""Estimators on public test sets, as the user handles them: `posegen evaluate dataset=…`.

    <out>/<dataset>-<estimator>.csv          a row an estimator: frames, joints, errors
                                .json        the same with settings, hash of weights, versions
                                .frames.csv  a row a frame

`out` is by default `public/` in the run's folder, or runs/public.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch

from posegen_ray.checkpoint import load_checkpoint
from posegen_ray.compose import read_config
from posegen_ray.config import KEYPOINTS, DatasetConfig, RunConfig
from posegen_ray.console import Console
from posegen_ray.datasets.public import KeypointSet, PublicSet, open_public_set
from posegen_ray.errors import CheckpointError
from posegen_ray.estimators.base import PoseEstimator
from posegen_ray.estimators.registry import build_estimator
from posegen_ray.evaluation.keypoints import KeypointResult, evaluate_keypoints
from posegen_ray.evaluation.public import (
    PublicResult,
    SmplMeshes,
    evaluate_public,
    weights_sha256,
)
from posegen_ray.evaluation.summary import collect_versions
from posegen_ray.files import write_json, write_text

PRE_TRAINED = "pre-trained"
FOLDER = "public"
_HEADINGS = {
    "mpjpe_mm": "MPJPE",
    "pa_mpjpe_mm": "PA-MPJPE",
    "pve_mm": "PVE",
    "pck150": "PCK@150",
    "auc": "AUC",
    "pa_pck150": "PA-PCK@150",
    "pa_auc": "PA-AUC",
    "pckh": "PCKh@0.5",
}


@dataclass(frozen=True)
class Contestant:
    """An estimator with certain weights."""

    arm: str  # PRE_TRAINED, baseline, or the arm of a run that it was fine-tuned in
    seed: int | None  # of that run's seeds
    estimator: PoseEstimator


def run_public_evaluation(config: RunConfig, console: Console) -> str:
    """Measures config.estimator, or (run=…) the estimators of a run; returns the table."""
    return table_text(evaluate_on_public_set(config, console))


def evaluate_on_public_set(config: RunConfig, console: Console) -> pd.DataFrame:
    """As `run_public_evaluation`; writes the files.

    Returns:
        A row a contestant: dataset, estimator, arm, seed, joints, frames, the metrics (METRICS, or
        pckh), weights_sha256.

    Raises:
        ConfigError: no test set is named.
        DataError: its folder is incomplete or damaged.
        AssetError: SMPL's files, the regressor or the estimator's file are missing.
        CheckpointError: the run has no fine-tuned estimator.
    """
    test = _open(config.dataset, config.data_root)
    left_out = ", ".join(f"{count} ({why})" for why, count in test.left_out.items())
    console.say(f"{test.title}: {len(test)} frames; left out: {left_out or 'none'}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = config.dataset
    meshes = SmplMeshes(config.body.smpl_folder, settings.joint_regressor, device)
    rows, frames = [], []
    for contestant in _contestants(config):
        estimator = contestant.estimator.to(device)
        who = {"estimator": estimator.name, "arm": contestant.arm, "seed": contestant.seed}
        bar = console.bar(f"{estimator.name} {contestant.arm}", len(test), "img")
        try:
            result = _measure(estimator, test, meshes, settings.batch_size, bar.update)
        finally:
            bar.close()
        rows.append(
            {
                "dataset": settings.name,
                **who,
                "joints": result.joints,
                "frames": len(result.frames),
                **result.means(),
                "weights_sha256": weights_sha256(estimator),
            }
        )
        frames.append(result.frames.assign(**who))
    table = pd.DataFrame(rows).astype({"seed": "Int64"})
    folder = Path(
        config.out or (Path(config.run) / FOLDER if config.run else Path("runs") / FOLDER)
    )
    stem = f"{settings.name}-{rows[0]['estimator']}"
    write_csv(folder / f"{stem}.csv", table)
    write_csv(folder / f"{stem}.frames.csv", pd.concat(frames))
    write_json(
        folder / f"{stem}.json",
        {
            "protocol": test.title,
            "left_out": test.left_out,
            "dataset": asdict(settings),
            "crop": asdict(estimator.crop.picture),  # where dataset.crop_scale is null
            "data_root": config.data_root,
            "smpl_folder": config.body.smpl_folder,
            "run": config.run,
            # of a run: in its config.yaml
            "estimator": None if config.run else asdict(config.estimator),
            "results": rows,
            "versions": collect_versions(),
        },
    )
    console.say(f"written: {folder / stem}.csv, .json, .frames.csv")
    return table


def table_text(table: pd.DataFrame) -> str:
    """The rows for a terminal; what was not measured is a dash, and columns of dashes are left
    out."""
    shown = table.drop(columns="weights_sha256").dropna(axis=1, how="all").copy()
    for name in set(_HEADINGS) & set(shown.columns):
        shown[name] = shown[name].map("{:.1f}".format).replace("nan", "–")
    shown = shown.astype(object).where(shown.notna(), "–")
    return shown.rename(columns=_HEADINGS).to_string(index=False)


def _open(settings: DatasetConfig, root: str) -> PublicSet | KeypointSet:
    if settings.name == KEYPOINTS:
        return KeypointSet(root, settings)
    return open_public_set(settings, root)


def _measure(
    estimator: PoseEstimator,
    test: PublicSet | KeypointSet,
    meshes: SmplMeshes,
    batch_size: int,
    advance: Callable[[int], object],
) -> PublicResult | KeypointResult:
    if isinstance(test, KeypointSet):
        return evaluate_keypoints(estimator, test, batch_size, advance)
    return evaluate_public(estimator, test, meshes, batch_size, advance)


def _contestants(config: RunConfig) -> Iterator[Contestant]:
    """One after another, so that only one is in memory."""
    if not config.run:
        yield Contestant(PRE_TRAINED, None, build_estimator(config.estimator))
        return
    folder = Path(config.run)
    run = read_config(folder / "config.yaml")
    kept = folder / "checkpoint"
    baseline = build_estimator(run.estimator)
    if (kept / "joint_map").exists():
        baseline.set_joint_map(load_checkpoint(kept / "joint_map")["matrix"])
    yield Contestant("baseline", None, baseline)
    for arm in run.experiment.arms:
        if arm == "baseline":
            continue
        for seed in run.experiment.seeds:
            if not (kept / f"{arm}-{seed}").exists():
                raise CheckpointError(
                    f"{folder} holds no estimator of arm {arm}, seed {seed}.",
                    f"Finish the run first: posegen demo resume={folder}.",
                )
            estimator = build_estimator(run.estimator)
            estimator.load_state_dict(load_checkpoint(kept / f"{arm}-{seed}")["weights"])
            yield Contestant(arm, seed, estimator)


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """All or nothing."""
    write_text(path, table.to_csv(index=False))
