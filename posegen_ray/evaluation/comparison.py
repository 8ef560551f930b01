"""Every arm on every test set, as one table: `comparison.csv` in the run folder.

One row for each arm, set and metric: mean and spread over seeds, and how the arm stands against the
baseline and against PoseGen on the same samples, with clustered 95 % intervals.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from posegen_ray.evaluation.metrics import worst_decile
from posegen_ray.evaluation.protocol import SETS, mean_sd, paired_interval
from posegen_ray.files import write_text

COMPARISON_FILE = "comparison.csv"
METRICS = ("mpjpe_mm", "pa_mpjpe_mm")
OOD_SETS = (
    "wild",
    "view",
    "person",
    "motion",
    "ood",
    "validation",
)  # what the source does not show
UNSEEN = "unseen"  # all of them together


def comparison_table(
    tables: Mapping[str, list[pd.DataFrame]],  # arm -> one per seed, from protocol.evaluate
    n_boot: int = 4000,
) -> pd.DataFrame:
    """The whole comparison.

    Columns: arm, set (protocol.SETS, and "unseen": all but the source), metric, samples, mean, sd
    (over seeds; NaN with one), worst_decile (mean of the worst tenth, mean over seeds), change,
    change_low, change_high (percent of the baseline; negative: better), against_posegen,
    against_posegen_low, against_posegen_high (mm, PoseGen minus the arm; negative: PoseGen is
    better). NaN where there is nothing to compare.
    """
    reference = tables["baseline"][0]
    sets = {name: (reference["set"] == name).to_numpy() for name in SETS}
    sets[UNSEEN] = reference["set"].isin(OOD_SETS).to_numpy()
    rows = []
    for name, mask in sets.items():
        if not mask.any():
            continue
        clips = reference.loc[mask, "clip"].tolist()
        people = reference.loc[mask, "subject"].tolist()
        for metric in METRICS:
            errors = {
                arm: np.stack([table.loc[mask, metric].to_numpy(dtype=float) for table in of_seeds])
                for arm, of_seeds in tables.items()
            }
            pair = functools.partial(
                paired_interval, clusters_clip=clips, clusters_person=people, n_boot=n_boot
            )
            for arm, values in errors.items():
                spread = mean_sd(values.mean(1).tolist())
                row = {
                    "arm": arm,
                    "set": name,
                    "metric": metric.removesuffix("_mm"),
                    "samples": int(mask.sum()),
                    "mean": spread.mean,
                    "sd": np.nan if spread.sd is None else spread.sd,
                    "worst_decile": float(
                        np.mean([worst_decile(torch.tensor(of_seed)) for of_seed in values])
                    ),
                }
                if arm != "baseline":
                    change = pair(errors["baseline"], values).relative
                    row["change"] = -100 * change.mean
                    row["change_low"], row["change_high"] = -100 * change.high, -100 * change.low
                if arm not in ("baseline", "posegen") and "posegen" in errors:
                    other = pair(values, errors["posegen"]).difference
                    row["against_posegen"] = other.mean
                    row["against_posegen_low"] = other.low
                    row["against_posegen_high"] = other.high
                rows.append(row)
    return pd.DataFrame(rows)


def write_comparison(folder: Path, table: pd.DataFrame) -> Path:
    """Writes `comparison.csv` (all or nothing) and returns its path."""
    path = folder / COMPARISON_FILE
    text = table.to_csv(index=False, float_format="%.3f")
    write_text(path, text)
    return path
