"""The page `atlas.html` and the table `atlas.csv`: what the estimator gets wrong, before and after.

Self-contained like the report: pictures are inside the page. What got worse stands beside what got
better, chosen by the same rule and as many of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt

from posegen_ray.config import EvaluationConfig
from posegen_ray.evaluation import charts, gallery
from posegen_ray.evaluation.failures import (
    LEAST,
    MAIN_PARTS,
    PARTS,
    FailureAtlas,
    FailureCell,
    PartError,
    build_failure_atlas,
    failure_table,
)
from posegen_ray.evaluation.metrics import mpjpe
from posegen_ray.evaluation.names import arm_label
from posegen_ray.evaluation.page import html_page
from posegen_ray.evaluation.store import ReportInputs
from posegen_ray.evaluation.summary import judgement, millimetre_text
from posegen_ray.files import write_text

ATLAS_PAGE = "atlas.html"
ATLAS_TABLE = "atlas.csv"
_SHOWN = 6  # worst cells with pictures
_LISTED = 5  # cells that got better, and as many that got worse

Floats = npt.NDArray[np.float64]


def write_failure_atlas(
    folder: Path, inputs: ReportInputs, arm: str = "", settings: EvaluationConfig | None = None
) -> tuple[Path, Path]:
    """Writes page and table of one arm; returns their paths.

    The report's arm (PoseGen, or the last of a run without it) is `atlas.html`, which the report
    links to; another one is `atlas-<arm>.html`.

    Raises:
        DataError: the run has no such arm.
    """
    settings = settings or EvaluationConfig()
    usual = "posegen" if "posegen" in inputs.arms else inputs.arms[-1]
    arm = arm or usual
    atlas = build_failure_atlas(inputs, arm, settings.clusters, settings.bootstrap)
    page, table = folder / ATLAS_PAGE, folder / ATLAS_TABLE
    if arm != usual:
        page, table = (path.with_stem(f"{path.stem}-{arm}") for path in (page, table))
    text = failure_table(atlas).to_csv(index=False, float_format="%.4g")
    write_text(table, text)
    html = render_failure_page(inputs, atlas)
    write_text(page, html)
    return page, table


def render_failure_page(inputs: ReportInputs, atlas: FailureAtlas) -> str:
    """The whole page as text."""
    arm = arm_label(atlas.arm)
    sections = [
        ("summary", "In short", in_short(atlas)),
        ("parts", "Pose and body part", _parts(atlas)),
        ("worst", "Worst cells", _worst(inputs, atlas)),
        ("changes", "Better and worse", _changes(inputs, atlas)),
        ("cells", "All cells", _cells(atlas)),
    ]
    header = (
        f'<header><p class="kicker">Failure atlas</p><h1>{escape(inputs.title)}</h1>'
        f'<p class="lede">What {escape(inputs.estimator)} gets wrong, and how {escape(arm)} '
        f"changes it: {len(inputs.samples):,} test images of all sets, by pose, viewpoint and body "
        "part.</p></header>"
    )
    return html_page(
        f"Failure atlas – {inputs.title}",
        header,
        sections,
        "Errors are means over seeds and over the joints of a part, hip-centred, in mm. "
        "Left and right are the person's own.",
    )


def in_short(atlas: FailureAtlas) -> str:
    """Threshold, counts, and the worst cells in words: also the report's short form."""
    arm = arm_label(atlas.arm)
    ranked = atlas.ranked
    verdicts = [_judged(cell.parts["all"]) for cell in ranked]
    total = sum(len(cell.rows) for cell in atlas.cells)
    before, after = (
        sum(len(cell.rows) * getattr(cell.parts["all"], name) for cell in atlas.cells) / total
        for name in ("failing_before", "failing_after")
    )
    lines = [
        f"A sample fails above {atlas.threshold_text}. Failing: {before:.0%} of samples before, "
        f"{after:.0%} with {arm}.",
        f"{len(ranked)} of {len(atlas.cells)} cells (pose cluster and viewpoint) hold {LEAST} or "
        f"more samples: {verdicts.count('better')} got better, {verdicts.count('worse')} got "
        f"worse, in {verdicts.count('undecided')} no difference was measured (95 % intervals, not "
        "corrected for looking at many cells).",
    ]
    if not ranked:
        lines.append("Too few test images to rank cells: pose clusters from all viewpoints follow.")
        ranked = tuple(
            sorted(atlas.clusters, key=lambda cell: cell.parts["all"].before_mm, reverse=True)
        )
    text = "".join(f"<p>{escape(line)}</p>" for line in lines)
    items = "".join(_item(cell, cell.worst_part) for cell in ranked[:_LISTED])
    return f"{text}<h3>What is worst before, with its worst part</h3><ul>{items}</ul>"


def _item(cell: FailureCell, part: str) -> str:
    error = cell.parts[part]
    verdict = _judged(error)
    interval = f" ({millimetre_text(error.change)})" if error.change else " (no interval)"
    return (
        f'<li>{escape(cell.sentence(part))}<span class="{verdict}">{escape(interval)}</span></li>'
    )


def _judged(error: PartError) -> str:
    return judgement(error.change) if error.change else "undecided"


def _parts(atlas: FailureAtlas) -> str:
    names = [f"{cell.cluster + 1}: {cell.motions}" for cell in atlas.clusters]
    parts = list(PARTS)
    counts = [[len(cell.rows)] * len(parts) for cell in atlas.clusters]

    def table(value: Callable[[PartError], float], diverging: bool = False) -> str:
        values = [[value(cell.parts[part]) for part in parts] for cell in atlas.clusters]
        return charts.heat_map("Pose cluster", parts, names, values, counts, diverging)

    return (
        "<p>Pose clusters from all viewpoints, largest first (k-means on the joints in the "
        f"pelvis' frame), by body part. Pale: fewer than {LEAST} samples.</p>"
        f"<h3>Before, mm</h3>{table(lambda error: error.before_mm)}"
        f"<h3>Change with {arm_label(atlas.arm)}, mm (negative: better)</h3>"
        f"{table(lambda error: error.after_mm - error.before_mm, True)}"
        f"<h3>Share above the threshold before, %</h3>"
        f"{table(lambda error: 100 * error.failing_before)}"
        "<h3>Change of that share, percentage points (negative: better)</h3>"
        f"{table(lambda error: 100 * (error.failing_after - error.failing_before), True)}"
    )


def _worst(inputs: ReportInputs, atlas: FailureAtlas) -> str:
    chosen = atlas.ranked[:_SHOWN] or atlas.cells[:_SHOWN]
    return (
        f"{charts.legend([('Truth', 'truth'), ('Prediction', 'prediction')])}"
        "<p>Largest error before first. Pictures: the sample with the cell's median error before, "
        "then the one with the largest error after (first seed). Cells picked because the "
        "baseline fails there tend to improve by chance alone.</p>"
        + "".join(_cell(inputs, atlas, cell) for cell in chosen)
    )


def _changes(inputs: ReportInputs, atlas: FailureAtlas) -> str:
    def change(cell: FailureCell) -> float:
        return cell.parts["all"].after_mm - cell.parts["all"].before_mm

    ordered = sorted(atlas.ranked or atlas.cells, key=change)
    better = [cell for cell in ordered if change(cell) < 0][:_LISTED]
    worse = [cell for cell in reversed(ordered) if change(cell) > 0][:_LISTED]
    columns = []
    for title, group in (("Got better most", better), ("Got worse most", worse)):
        body = "".join(_item(cell, "all") for cell in group)
        body = f"<ul>{body}</ul>" if group else '<p class="note">No cell did.</p>'
        pictures = _pictures(inputs, atlas, [cell.typical for cell in group[:2]])
        columns.append(f"<div><h3>{title}</h3>{body}{pictures}</div>")
    return f'<div class="two">{"".join(columns)}</div>'


def _cell(inputs: ReportInputs, atlas: FailureAtlas, cell: FailureCell) -> str:
    rows = [cell.typical] if cell.typical == cell.worst else [cell.typical, cell.worst]
    table = _part_table(cell, ("all", *MAIN_PARTS))
    return (
        f"<article><h3>{escape(cell.sentence())}</h3>"
        f"{_pictures(inputs, atlas, rows)}{table}</article>"
    )


def _pictures(inputs: ReportInputs, atlas: FailureAtlas, rows: Sequence[int]) -> str:
    truth = inputs.samples.joints.cpu()
    before, after = (inputs.predictions[arm][0].cpu() for arm in ("baseline", atlas.arm))
    before_mm, after_mm = (
        np.asarray(mpjpe(joints, truth).numpy(), dtype=np.float64) for joints in (before, after)
    )
    labels = (arm_label("baseline"), arm_label(atlas.arm))
    return gallery.before_after_cards(
        inputs.samples, rows, before, after, before_mm, after_mm, labels
    )


def _part_table(cell: FailureCell, parts: Sequence[str]) -> str:
    body = "".join(
        f'<tr><th scope="row">{part}</th>{_error_cells(cell.parts[part])}</tr>' for part in parts
    )
    return (
        '<div class="scroll"><table><thead><tr><th>Part</th><th scope="col">Before</th>'
        '<th scope="col">After</th><th scope="col">Change <small>95 % interval</small></th>'
        '<th scope="col">Failing before</th><th scope="col">After</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _error_cells(error: PartError) -> str:
    change = f"{error.after_mm - error.before_mm:+.1f} mm".replace("-", "−")
    shown = millimetre_text(error.change) if error.change else change
    return (
        f"<td>{error.before_mm:.0f} mm</td><td>{error.after_mm:.0f} mm</td>"
        f'<td class="{_judged(error)}">{shown}</td>'
        f"<td>{error.failing_before:.0%}</td><td>{error.failing_after:.0%}</td>"
    )


def _cells(atlas: FailureAtlas) -> str:
    body = "".join(
        f'<tr><th scope="row">{escape(cell.place)}</th><td>{len(cell.rows)}</td>'
        f"{_error_cells(cell.parts['all'])}<td>{cell.worst_part}</td></tr>"
        for cell in atlas.cells
    )
    return (
        f"<p>Cells of {LEAST} or more samples first, worst before first; intervals where samples, "
        f"clips and people allow. Every body part of every cell is in {ATLAS_TABLE}.</p>"
        '<div class="scroll"><table><thead><tr><th>Cell</th><th scope="col">n</th>'
        '<th scope="col">Before</th><th scope="col">After</th><th scope="col">Change</th>'
        '<th scope="col">Failing before</th><th scope="col">After</th>'
        f'<th scope="col">Worst part</th></tr></thead><tbody>{body}</tbody></table></div>'
    )
