"""The report's section on poses: every measure of every set, beside the yardstick."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd

from posegen_ray.evaluation.names import arm_label, set_label
from posegen_ray.evaluation.pose_sets import (
    POSE_SETS_TABLE,
    REFERENCES,
    YARDSTICK,
    beside_yardstick,
)

_MM = ("apd_mm", "nearest_median_mm", "nearest_p90_mm")
_COLUMNS = {
    "apd_mm": "APD mm",
    "fid_cm2": "FID cm²",
    "precision": "Precision",
    "recall": "Recall",
    "nearest_median_mm": "Nearest, median mm",
    "nearest_p90_mm": "Nearest, 90 % mm",
    "valid": "Valid",
}


def pose_sets_section(
    table: pd.DataFrame,  # from drawn_sets.drawn_pose_sets
) -> str:
    """HTML: one table a reference, drawn sets averaged over seeds."""
    if not len(table):
        return '<p class="note">No poses were kept in this run.</p>'
    unseen = table["name"].str.startswith(YARDSTICK)
    sets = table[~unseen].assign(name=table["name"].map(_without_seed))
    there = set(sets["reference"])
    parts = [_reference(sets, name) for name in REFERENCES if name in there]
    return (
        "<p>Poses of the training sets against real ones: joints in the pelvis' frame on one body. "
        "No number stands alone: diversity (APD) grows with broken poses, precision (share of the "
        "set inside the real poses' neighbourhoods) with copies, recall (share of real poses "
        "inside the set's) with breadth. Nearest: root-mean-square joint distance to the nearest "
        "real pose. FID and recall depend on the number of poses. Frames of a clip follow each "
        "other closely, so precision of unseen motion is low too: compare with the unseen clips. "
        f"Mean over seeds; each seed is in {POSE_SETS_TABLE}.</p>"
        f"{_yardstick(table, unseen)}{''.join(parts)}"
    )


def _reference(sets: pd.DataFrame, reference: str) -> str:
    rows = sets[sets["reference"] == reference]
    real = rows.iloc[0]
    means = rows.groupby("name", sort=False)[["poses", *_COLUMNS]].mean()
    body = "".join(
        f'<tr><th scope="row">{escape(_label(str(name)))}</th><td>{row["poses"]:,.0f}</td>'
        f"{''.join(f'<td>{_shown(column, row[column])}</td>' for column in _COLUMNS)}</tr>"
        for name, row in means.astype(float).iterrows()
    )
    title = "training frames" if reference == "source" else "clips, never trained on"
    return (
        f"<h3>Against {real['reference_poses']:,} poses of {set_label(reference)} {title} "
        f"(their APD: {real['reference_apd_mm']:.0f} mm)</h3>{_table(body)}"
    )


def _yardstick(table: pd.DataFrame, unseen: pd.Series) -> str:
    clips = table[unseen]
    if not len(clips):
        return ""
    body = "".join(
        f'<tr><th scope="row">{label}</th><td>{_over(clips, "poses", percent):,.0f}</td>'
        + "".join(f"<td>{_shown(name, _over(clips, name, percent))}</td>" for name in _COLUMNS)
        + "</tr>"
        for label, percent in (("Median clip", 50), ("Lowest", 0), ("Highest", 100))
    )
    drawn: dict[str, list[float]] = {}
    for name, share in beside_yardstick(table).items():
        drawn.setdefault(_without_seed(name), []).append(share)
    items = "".join(
        f"<li>{escape(_label(name))}: {np.mean(shares):.0%} of the clips are at least as far</li>"
        for name, shares in drawn.items()
    )
    return (
        f"<h3>The yardstick: each of {len(clips)} source clips against all others</h3>"
        "<p>How far real motion is from real motion that does not hold it. A set whose median "
        "nearest distance to the source is like a left-out clip's is as near as unseen motion "
        f"capture.</p>{_table(body)}<ul>{items}</ul>"
    )


def _over(clips: pd.DataFrame, column: str, percent: float) -> float:
    values = clips[column].astype(float).dropna()
    return float(np.percentile(values, percent)) if len(values) else float("nan")


def _table(body: str) -> str:
    head = "".join(f'<th scope="col">{title}</th>' for title in ("n", *_COLUMNS.values()))
    return (
        f'<div class="scroll"><table><thead><tr><th>Set</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _shown(column: str, value: float) -> str:
    if not np.isfinite(value):
        return "–"
    if column in _MM:
        return f"{value:.0f}"
    return f"{value:,.0f}" if column == "fid_cm2" else f"{value:.0%}"


def _without_seed(name: str) -> str:
    stem, _, seed = name.rpartition("-")
    return stem if stem and seed.isdigit() else name


def _label(name: str) -> str:
    """`posegen` -> `PoseGen half`, `posegen_random` -> `PoseGen, random part`, `ood clips` ->
    `OOD clips`."""
    if name == "source_half":
        return "Source half"
    if name.endswith(" clips"):
        return f"{set_label(name.removesuffix(' clips'))} clips"
    if name.endswith("_random"):  # of an arm whose generator makes a share of its images
        return f"{arm_label(name.removesuffix('_random'))}, random part"
    return f"{arm_label(name)} half"
