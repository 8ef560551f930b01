"""The page `report.html`: one self-contained file that opens offline, without scripts.

Assembles what `results`, `atlas`, `gallery` and `charts` make of the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from posegen_ray.config import EvaluationConfig
from posegen_ray.evaluation import charts, gallery
from posegen_ray.evaluation.atlas import (
    AZIMUTH_LABELS,
    ELEVATION_LABELS,
    Atlas,
    FailureMode,
    build_atlas,
)
from posegen_ray.evaluation.failure_page import ATLAS_PAGE, in_short
from posegen_ray.evaluation.failures import build_failure_atlas
from posegen_ray.evaluation.names import arm_in_text, arm_label, arm_style, set_label
from posegen_ray.evaluation.page import html_page
from posegen_ray.evaluation.pose_sets_section import pose_sets_section
from posegen_ray.evaluation.protocol import SETS, motion_table
from posegen_ray.evaluation.results import results_section, verdict_section
from posegen_ray.evaluation.store import ReportInputs, load_evaluation, save_evaluation
from posegen_ray.evaluation.summary import (
    Summary,
    build_summary,
    evaluate_arms,
)
from posegen_ray.files import write_text

__all__ = ["REPORT_FILE", "ReportInputs", "load_evaluation", "save_evaluation", "write_report"]

REPORT_FILE = "report.html"
Floats = npt.NDArray[np.float64]

_ABBREVIATIONS = {"mpjpe": "MPJPE", "pa": "PA", "ood": "OOD", "pck150": "PCK@150", "auc": "AUC"}
_MOST_MOTIONS = 24  # per set, those with the largest error first


def write_report(
    folder: Path, inputs: ReportInputs, settings: EvaluationConfig | None = None
) -> Path:
    """Writes `report.html` into the folder (all or nothing) and returns its path."""
    page = render_page(inputs, settings or EvaluationConfig())
    path = folder / REPORT_FILE
    write_text(path, page)
    return path


def render_page(inputs: ReportInputs, settings: EvaluationConfig) -> str:
    """The whole page as text."""
    tables = evaluate_arms(inputs)
    summary = build_summary(inputs, settings.bootstrap, tables)
    final = "posegen" if "posegen" in inputs.arms else inputs.arms[-1]
    sections = [
        ("verdict", "Verdict", verdict_section(summary)),
        ("results", "Results", results_section(summary)),
        ("curves", "Training curves", _curves(inputs.history)),
        ("motions", "Error by motion", _motions(tables, final)),
        ("hardest", "Hardest samples", _hardest(inputs, tables, final, settings.hardest)),
        ("atlas", "Failure atlas", _atlas(inputs, tables, final, settings)),
        ("poses", "Poses", pose_sets_section(inputs.pose_sets)),
        ("finding", "Failures found", _failure_finding(inputs.failure_finding)),
        ("generated", "Generated samples", _generated(inputs, settings.generated)),
        ("rejected", "Rejected candidates", _rejected(inputs.rejected, summary.samples.rejected)),
        ("run", "The run", _run(summary, inputs.settings)),
    ]
    return html_page(
        f"{inputs.title} – {inputs.estimator}",
        _header(inputs, summary),
        sections,
        "Errors over the 12 limb joints, hip-centred. PA: after the best rotation, translation and "
        "scale. Lower is better for errors, higher for PCK and AUC.",
    )


# --- sections -----------------------------------------------------------------------------------


def _header(inputs: ReportInputs, summary: Summary) -> str:
    speed = summary.render.images_per_s
    facts = {
        "Estimator": summary.estimator,
        "Seeds": ", ".join(map(str, summary.seeds)),
        "Images per arm": f"{summary.samples.train:,}",
        "Test images": f"{summary.samples.test:,}",
        "Rendering": f"{speed:,.0f} images/s" if speed else "not measured",
        "Written": date.today().isoformat(),
    }
    items = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    fine_tuned = [arm_in_text(arm) for arm in inputs.arms]
    return (
        f'<header><p class="kicker">Comparison report</p><h1>{escape(inputs.title)}</h1>'
        f'<p class="lede">One estimator, {_counted(len(fine_tuned), "version")} of it '
        f"({', '.join(fine_tuned)}), the same test images: people and backgrounds that none of "
        f"them was trained on.</p><dl>{items}</dl></header>"
    )


_FINDING_COLUMNS = (  # column, title, decimals
    ("images", "images", 0),
    ("error_median_mm", "baseline's error, median mm", 0),
    ("generated_median_mm", "of those generated", 0),
    ("failures", "failures", 2),
    ("ambiguous", "ambiguous", 2),
    ("coverage", "failure clusters reached", 2),
)


def _failure_finding(table: pd.DataFrame) -> str:
    if table.empty:
        return _nothing("No arm was fine-tuned.")
    mean = table.groupby("arm", sort=False).mean(numeric_only=True)
    head = "".join(f'<th scope="col">{title}</th>' for _, title, _ in _FINDING_COLUMNS)
    body = "".join(
        f'<tr><th scope="row">{arm_label(str(arm))}</th>'
        + "".join(f"<td>{_number(row[key], digits)}</td>" for key, _, digits in _FINDING_COLUMNS)
        + "</tr>"
        for arm, row in mean.iterrows()
    )
    return (
        "<p>Each arm's own rendered training images, mean over seeds: how wrong the baseline is on "
        "them, which share are failures (1.5 times its median error on source images) or "
        "ambiguous, and which share of its failure clusters on the test images they reach.</p>"
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _number(value: float, digits: int) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


def _curves(history: pd.DataFrame) -> str:
    keys = [name for name in ("step", "arm", "seed") if name in history.columns]
    numeric = [
        str(name) for name in history.select_dtypes("number").columns if str(name) not in keys
    ]
    if not numeric:
        return _nothing("No training curves were recorded in this run.")
    table = history.assign(
        step=history["step"] if "step" in keys else np.arange(len(history)),
        arm=history["arm"].fillna("").astype(str) if "arm" in keys else "",
        seed=history["seed"] if "seed" in keys else 0,
    )
    figures = []
    styles: dict[str, str] = {}
    for name in numeric:
        curves = []
        for (arm, seed), part in table.groupby(["arm", "seed"], sort=False, dropna=False):
            values = part[name].to_numpy(dtype=float)
            if not np.isfinite(values).any():
                continue
            style, label = arm_style(str(arm)), arm_label(str(arm))
            styles[label] = style
            steps = part["step"].to_numpy(dtype=float)
            curves.append(charts.Curve(f"{label} seed {seed}".strip(), style, steps, values))
        figures.append(charts.curve_chart(_readable(name), curves))
    named = [(label, style) for label, style in styles.items() if label]
    return f'{charts.legend(named) if named else ""}<div class="charts">{"".join(figures)}</div>'


def _motions(tables: Mapping[str, list[pd.DataFrame]], final: str) -> str:
    if final == "baseline":
        return _nothing("Only the baseline was evaluated.")
    befores, afters = (motion_table(tables[arm]) for arm in ("baseline", final))
    parts = []
    for name in (name for name in SETS if (befores["set"] == name).any()):
        before = befores[befores["set"] == name].sort_values("mpjpe_mm", ascending=False)
        before = before.head(_MOST_MOTIONS)
        after = afters.loc[before.index]  # the same groups in the same order
        columns = zip(
            before["motion"].tolist(),
            before["samples"].tolist(),
            before["mpjpe_mm"].tolist(),
            after["mpjpe_mm"].tolist(),
            strict=True,
        )
        rows = [charts.PairRow(motion, f"n {n}", first, last) for motion, n, first, last in columns]
        pairs = charts.pair_rows(rows, "mm", "arm-baseline", arm_style(final))
        parts.append(f"<div><h3>{set_label(name)}</h3>{pairs}</div>")
    legend = charts.legend([(arm_label(a), arm_style(a)) for a in ("baseline", final)])
    return f'<p>MPJPE, mean over seeds.</p>{legend}<div class="two">{"".join(parts)}</div>'


def _hardest(
    inputs: ReportInputs, tables: Mapping[str, list[pd.DataFrame]], final: str, count: int
) -> str:
    if final == "baseline":
        return _nothing("Only the baseline was evaluated.")
    samples = inputs.samples
    before, after = (
        tables[arm][0]["mpjpe_mm"].to_numpy(dtype=float) for arm in ("baseline", final)
    )
    labels = (arm_label("baseline"), arm_label(final))
    groups = (
        ("Hardest for the baseline", before, count),
        (f"Hardest for {labels[1]}", after, count // 2),
        (f"Where {labels[1]} lost most", after - before, count // 2),
    )
    parts = []
    shown: list[int] = []
    for title, score, wanted in groups:
        unseen = np.where(np.isin(np.arange(len(score)), shown), -np.inf, score)
        rows = gallery.most_extreme(unseen, samples.clips, max(wanted, 1))
        shown += rows
        cards = gallery.before_after_cards(
            samples, rows, inputs.predictions["baseline"][0], inputs.predictions[final][0],
            before, after, labels,
        )  # fmt: skip
        parts.append(f"<h3>{title}</h3>{cards}")
    return (
        f"{charts.legend([('Truth', 'truth'), ('Prediction', 'prediction')])}"
        "<p>Predictions stand where the true hips are; brighter limbs are the person's left. "
        "First seed; at most two samples of a clip. Samples picked because the baseline fails on "
        "them tend to improve by chance alone, so the opposite choices follow.</p>" + "".join(parts)
    )


def _atlas(
    inputs: ReportInputs,
    tables: Mapping[str, list[pd.DataFrame]],
    final: str,
    settings: EvaluationConfig,
) -> str:
    before, after = (_mean_error(tables[arm]) for arm in ("baseline", final))
    atlas = build_atlas(inputs.samples, before, after, settings.clusters)
    cells = build_failure_atlas(inputs, final, settings.clusters, settings.bootstrap)
    return (
        f'{in_short(cells)}<p>Pictures, body parts and all cells: <a href="{ATLAS_PAGE}">'
        f"{ATLAS_PAGE}</a>.</p><h3>By pose</h3>"
        "<p>Groups of similar poses (k-means on the joints in the pelvis' frame), "
        f"largest first, all sets; MPJPE of baseline → {arm_label(final)}.</p>"
        f"{gallery.cluster_cards(inputs.samples, atlas.clusters)}{_viewpoints(atlas, final)}"
        "<p>Pose by viewpoint by body part, with pictures: atlas.html, "
        "atlas.csv.</p>"
    )


def _viewpoints(atlas: Atlas, final: str) -> str:
    used = [i for i, line in enumerate(atlas.viewpoints) if any(mode.count for mode in line)][::-1]
    lines: list[Sequence[FailureMode]] = [atlas.viewpoints[i] for i in used]
    names = [ELEVATION_LABELS[i] for i in used]
    counts = [[mode.count for mode in line] for line in lines]
    level = [[mode.before_mm for mode in line] for line in lines]
    change = [
        [
            None if m.before_mm is None or m.after_mm is None else m.after_mm - m.before_mm
            for m in line
        ]
        for line in lines
    ]
    corner = "Seen from"
    return (
        "<h3>By viewpoint</h3><p>The camera's place around the person (their own left and "
        "right) and its height. Pale: fewer than five samples.</p>"
        "<h4>Baseline, MPJPE in mm</h4>"
        f"{charts.heat_map(corner, AZIMUTH_LABELS, names, level, counts)}"
        f"<h4>Change with {arm_label(final)}, mm (negative: better)</h4>"
        f"{charts.heat_map(corner, AZIMUTH_LABELS, names, change, counts, diverging=True)}"
    )


def _generated(inputs: ReportInputs, count: int) -> str:
    if inputs.generated is None or len(inputs.generated) == 0:
        return _nothing("No generated samples were kept in this run.")
    return (
        "<p>Images the trained generator made, as the estimator sees them.</p>"
        f"{gallery.picture_wall(inputs.generated, count)}"
    )


def _rejected(rejected: Mapping[str, int], total: int) -> str:
    if not total:
        return _nothing("No candidate was rejected.")
    ordered = sorted(rejected.items(), key=lambda item: -item[1])
    rows = [
        (_readable(reason), float(count), f"{count:,} ({count / total:.0%})")
        for reason, count in ordered
    ]
    return (
        f"<p>{total:,} candidates were turned down before training. Share that failed each check; "
        "one candidate may fail several.</p>"
        f"{charts.bars(rows)}"
    )


def _run(summary: Summary, settings: Mapping[str, str]) -> str:
    slowest = sorted(summary.timing_s.items(), key=lambda item: -item[1])
    timing = charts.bars([(_readable(k), v, _duration(v)) for k, v in slowest])
    speeds = {
        "Images rendered per second": summary.render.images_per_s,
        "… with gradients": summary.render.images_per_s_with_gradient,
    }
    pairs = {name: "not measured" if v is None else f"{v:,.1f}" for name, v in speeds.items()}
    return (
        f'<div class="two"><div><h3>Time</h3>{timing}</div><div><h3>Speed and settings</h3>'
        f"{_pairs_table({**pairs, **settings})}<h3>Versions</h3>{_pairs_table(summary.versions)}"
        "</div></div>"
    )


# --- small parts --------------------------------------------------------------------------------


def _mean_error(tables: list[pd.DataFrame]) -> Floats:
    stacked = np.stack([table["mpjpe_mm"].to_numpy(dtype=float) for table in tables])
    return np.asarray(stacked.mean(0), dtype=np.float64)


def _pairs_table(pairs: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>'
        for name, value in pairs.items()
    )
    return f'<table class="pairs-table"><tbody>{rows}</tbody></table>'


def _readable(name: str) -> str:
    words = [_ABBREVIATIONS.get(word, word) for word in name.replace("/", " · ").split("_")]
    text = " ".join(words).strip()
    return text[:1].upper() + text[1:]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _counted(count: int, noun: str) -> str:
    words = ("no", "one", "two", "three", "four")
    return f"{words[count] if count < len(words) else count} {noun}{'' if count == 1 else 's'}"


def _nothing(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'
