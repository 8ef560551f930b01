"""What a run knows of itself when all is done: what the report shows beside the errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from posegen_ray.arms import trained_arms
from posegen_ray.body import load_body
from posegen_ray.evaluation.coverage import (
    failure_coverage,
    find_failure_clusters,
    pose_view_features,
)
from posegen_ray.evaluation.drawn_sets import drawn_pose_sets
from posegen_ray.evaluation.failures import THRESHOLD_FACTOR
from posegen_ray.evaluation.protocol import SOURCE_SETS
from posegen_ray.generation import losses
from posegen_ray.motion.splits import load_splits
from posegen_ray.run import Run, TestSet
from posegen_ray.training import history_table

REACHED = 3  # failures that an arm's images show in a failure cluster to reach it


def pose_sets(run: Run) -> pd.DataFrame:
    """What the drawn sets' poses are like, against real motion capture."""
    with run.console.phase("pose_sets", "measuring the drawn poses"):
        rest = load_body(run.config.body).joint_template
        return drawn_pose_sets(run.notes.folder, load_splits(run.config.motion), rest)


def history(run: Run) -> pd.DataFrame:
    """The training curves of all seeds."""
    seeds = run.config.experiment.seeds
    return history_table(
        {
            arm.name: [run.trained(seed, arm.name) for seed in seeds]
            for arm in trained_arms(run.fine_tuned)
        }
    )


def failure_finding(
    run: Run,
    tests: TestSet,
    baseline: Tensor,  # [1, N, 12, 3] the starting estimator's answers on the tests
) -> pd.DataFrame:
    """How hard the arms' own images are for the starting estimator, and which share of its
    failure clusters on the tests they reach. One row an arm and seed."""
    errors = losses.joint_errors(baseline[0], tests.samples.joints).double().numpy()
    known = np.isin(tests.sets, SOURCE_SETS)
    threshold = THRESHOLD_FACTOR * float(np.median(errors[known] if known.any() else errors))
    clusters = find_failure_clusters(pose_view_features(tests.samples), errors, threshold)
    rows = []
    for arm in run.fine_tuned:
        for seed in run.config.experiment.seeds:
            noted = run.notes.read_errors(f"{arm.name}-{seed}")
            if noted is None:
                continue
            found = failure_coverage(clusters, arm.name, noted.features, noted.errors_mm, REACHED)
            rows.append(
                {
                    "arm": arm.name,
                    "seed": seed,
                    "images": found.samples,
                    "error_median_mm": float(np.median(noted.errors_mm)),
                    "generated_median_mm": float(np.median(noted.errors_mm[noted.generated]))
                    if noted.generated.any()
                    else np.nan,
                    "ambiguous": float(noted.ambiguous.mean()),
                    "failures": found.failures / found.samples,
                    "coverage": np.nan if found.share is None else found.share,
                }
            )
    return pd.DataFrame(rows)


def settings(run: Run) -> dict[str, str]:
    """What the report shows of the configuration."""
    config = run.config
    stages = ", ".join(f"{stage.steps} at {stage.cut}" for stage in config.finetune.stages)
    training = config.training
    rendered = [
        f"{arm.name} {run.trained(seed, arm.name).rendered}"
        for arm in trained_arms(run.fine_tuned)
        for seed in config.experiment.seeds
    ]
    joint_map = f"fitted on {config.experiment.joint_map_images} source images, for all arms"
    photographs = config.photographs
    return {
        "photographs": f"{photographs.share:.0%} of the source images, from "
        + ", ".join(Path(file).name for file in photographs.labels)
        if photographs.labels
        else "none",
        "joint map": "none" if run.drawing.joint_map() is None else joint_map,
        "images per arm": str(config.experiment.images_per_arm),
        "fine-tuning steps": stages,
        "adversarial steps": f"{training.rounds} rounds of {training.steps_per_round}",
        "images rendered for feedback": ", ".join(rendered) or "none",
        "subjects": ", ".join(name for name, _ in run.drawing.subjects()),
        "body": config.body.name,
        "runtime": config.runtime.name,
    }
