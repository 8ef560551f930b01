"""The failure atlas as a page: the worst cells first; what got worse is as plain as the rest."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from posegen_ray.errors import ConfigError
from posegen_ray.evaluation import gallery, metrics
from posegen_ray.evaluation.failures import FAILS, FEWEST, PARTS, cells_of, failure_table
from posegen_ray.evaluation.names import arm_in_text, arm_label
from posegen_ray.evaluation.page import html_page
from posegen_ray.evaluation.store import ReportInputs, write_atomically

PAGE_FILE, TABLE_FILE = "atlas.html", "atlas.csv"
_CARDS = 12  # cells that are shown with pictures, of each kind
_ROWS = 40  # of the table on the page; the file has all


def write_atlas(folder: Path, inputs: ReportInputs, arm: str = "", clusters: int = 12) -> Path:
    """Writes `atlas.html` and `atlas.csv` (all or nothing each); returns the page's path.

    Args:
        arm: whose errors are shown after; empty: PoseGen, or the last one.

    Raises:
        ConfigError: the run has no such arm.
    """
    arm = arm or ("posegen" if "posegen" in inputs.arms else inputs.arms[-1])
    if arm not in inputs.arms:
        raise ConfigError(f"The run has no arm {arm!r}.", f"It compared {', '.join(inputs.arms)}.")
    errors = [
        np.stack(
            [
                metrics.joint_errors(joints.cpu(), inputs.samples.joints.cpu()).numpy()
                for joints in inputs.predictions[name]
            ]
        )
        for name in ("baseline", arm)
    ]
    cells = cells_of(inputs.samples, clusters)
    table = failure_table(inputs.samples, inputs.sets, errors[0], errors[1], cells)
    text = table.to_csv(index=False, float_format="%.3f")
    write_atomically(folder / TABLE_FILE, lambda file: file.write(text.encode()))
    page = _page(inputs, table, arm)
    path = folder / PAGE_FILE
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def sentence(row: pd.Series) -> str:
    """A cell in words: `roll 80 %, from the back, above: ankles 310 mm → 240 mm; 34 samples`."""
    part = row["worst_part"]
    before, after = row[f"{part}_before_mm"], row[f"{part}_after_mm"]
    return (
        f"{row['poses']}, {row['viewpoint']}: {row['before_mm']:.0f} → {row['after_mm']:.0f} mm; "
        f"{part}s {before:.0f} → {after:.0f} mm; {_samples(row['samples'])}"
    )


def _page(inputs: ReportInputs, table: pd.DataFrame, arm: str) -> str:
    known = table[table["samples"] >= FEWEST]
    failing = table[table["fails"]]
    better = known[known["change_high"] < 0].sort_values("change_mm")
    worse = known[known["change_low"] > 0].sort_values("change_mm", ascending=False)
    threshold = float(table["threshold_mm"].iloc[0])
    head = (
        f'<header><p class="kicker">Failure atlas</p><h1>{escape(inputs.estimator)}</h1>'
        f'<p class="lede">Where it goes wrong, and what fine-tuning with {arm_in_text(arm)} '
        f"changes. {len(table)} kinds of pose and viewpoint, {len(failing)} of them fail: at least "
        f"half of their samples are more than {threshold:.0f} mm off ({FAILS:g} times the median "
        "on source images). Cells of fewer than "
        f"{FEWEST} samples are in {TABLE_FILE} alone.</p></header>"
    )
    sections = [
        ("worst", "Where it fails most", _cards(inputs, known.head(_CARDS), arm)),
        ("better", "What got better", _cards(inputs, better.head(_CARDS), arm)),
        ("worse", "What got worse", _cards(inputs, worse.head(_CARDS), arm)),
        ("parts", "By body part", _parts(table)),
        ("table", "All cells", _table(known.head(_ROWS))),
    ]
    return html_page(
        f"Failure atlas – {inputs.estimator}",
        head,
        sections,
        "Means over samples and seeds of the error of the 12 limb joints, hip-centred. Better and "
        "worse: the 95 % interval of the cell's change leaves zero out; of many cells a few do so "
        "by chance.",
    )


def _cards(inputs: ReportInputs, rows: pd.DataFrame, arm: str) -> str:
    if rows.empty:
        return '<p class="note">No cell.</p>'
    truth = inputs.samples.joints.cpu()
    both = [inputs.predictions[name][0].cpu() for name in ("baseline", arm)]
    before, after = (metrics.joint_errors(joints, truth).mean(1).numpy() for joints in both)
    parts = []
    for _, row in rows.iterrows():
        cards = gallery.before_after_cards(
            inputs.samples, [int(row["typical"])], both[0], both[1], before, after,
            (arm_label("baseline"), arm_label(arm)),
        )  # fmt: skip
        trend = "better" if row["change_mm"] < 0 else "worse"
        parts.append(
            f'<p><b>{escape(sentence(row))}</b> <em class="{trend}">{row["change_mm"]:+.0f} mm '
            f"[{row['change_low']:+.0f}, {row['change_high']:+.0f}]</em></p>{cards}"
        )
    return "".join(parts)


def _parts(table: pd.DataFrame) -> str:
    weight = table["samples"] / table["samples"].sum()
    rows = []
    for part in PARTS:
        before, after = (
            float((table[f"{part}_{when}_mm"] * weight).sum()) for when in ("before", "after")
        )
        figures = [f"{before:.0f}", f"{after:.0f}", f"{after - before:+.0f}"]
        rows.append((f"{part.capitalize()}s", figures))
    return _html_table(("before, mm", "after, mm", "change"), rows)


def _table(table: pd.DataFrame) -> str:
    rows = [
        (
            f"{row['poses']}, {row['viewpoint']}",
            [
                f"{row['samples']}",
                f"{row['before_mm']:.0f}",
                f"{row['after_mm']:.0f}",
                f"{row['change_mm']:+.0f} [{row['change_low']:+.0f}, {row['change_high']:+.0f}]",
                f"{row['failing_before']:.0%} → {row['failing_after']:.0%}",
                f"{row['worst_part']}s",
            ],
        )
        for _, row in table.iterrows()
    ]
    titles = ("samples", "before, mm", "after, mm", "change, mm", "failing", "worst part")
    return _html_table(titles, rows)


def _html_table(titles: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> str:
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, cells in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _samples(count: int) -> str:
    return f"{count} sample{'' if count == 1 else 's'}"
