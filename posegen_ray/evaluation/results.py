"""The report's first two sections: the verdict with its intervals, and the tables of results.

Words and numbers come from a `Summary`; nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from posegen_ray.evaluation import charts
from posegen_ray.evaluation.names import (
    arm_in_text,
    arm_label,
    arm_note,
    arm_style,
    set_label,
    set_note,
)
from posegen_ray.evaluation.protocol import SETS, MeanSd
from posegen_ray.evaluation.summary import (
    Standing,
    Summary,
    caveats,
    flipped,
    headline,
    judgement,
    millimetre_text,
    one_seed,
    percent_text,
    standings,
    verdict,
)

_METRICS = (
    ("mpjpe_mm", "MPJPE", "mm", True),
    ("pa_mpjpe_mm", "PA-MPJPE", "mm", True),
    ("pck150", "PCK@150", "%", False),
    ("auc", "AUC", "%", False),
    ("worst_decile_mm", "Worst 10 %", "mm", True),
)
_JUDGEMENTS = {
    "better": ("better", "Better"),
    "worse": ("worse", "Worse"),
    "undecided": ("undecided", "No difference measured"),
}


def verdict_section(summary: Summary) -> str:
    """Better, worse or no difference measured, for each of the other arms, with intervals."""
    found = standings(summary)
    if not found:
        return _paragraphs(verdict(summary))
    where = " in this run" if one_seed(summary) else ""
    cards = [_verdict_card(*pair, where) for pair in zip(found[::2], found[1::2], strict=True)]
    plots = []
    for metric, name in (("mpjpe", "MPJPE"), ("pa_mpjpe", "PA-MPJPE")):
        rows = []
        for arm, comparison in summary.relative_improvement.items():
            change = flipped(getattr(comparison, metric))
            row = charts.IntervalRow(arm_label(arm), arm_style(arm), change, percent_text(change))
            rows.append(row)
        plots.append(
            f"<div><h3>{name} on OOD, change against the baseline</h3>"
            f"{charts.interval_rows(rows, '← better', 'worse →')}</div>"
        )
    return (
        f'<p class="headline">{escape(headline(summary))}</p>'
        f'<div class="verdicts">{"".join(cards)}</div>'
        f'<div class="caveats">{_paragraphs(caveats(summary))}</div>'
        f'<div class="two">{"".join(plots)}</div>'
        '<p class="note">Intervals are 95 %: the same samples are compared, and clips, people '
        "(and seeds, where there are several) are resampled together, since samples of one clip or "
        "one person resemble each other. “Better” or “worse” is said only when the interval leaves "
        "zero out.</p>"
    )


def _verdict_card(mpjpe: Standing, pa_mpjpe: Standing, where: str) -> str:
    lines = []
    for standing in (mpjpe, pa_mpjpe):
        style, word = _JUDGEMENTS[standing.judgement]
        word += where if style != "undecided" else ""
        lines.append(
            f'<p class="judgement {style}"><span>{word}</span></p>'
            f'<p class="figure"><b>{standing.metric}</b> {escape(standing.text)}</p>'
        )
    other = arm_in_text(mpjpe.other)
    return f'<article class="verdict"><h3>PoseGen against {other}</h3>{"".join(lines)}</article>'


def results_section(summary: Summary) -> str:
    """Every metric of every arm on every set, and the paired differences."""
    head = "".join(
        f'<th scope="col">{title} <small>{unit}</small></th>' for _, title, unit, _ in _METRICS
    )
    sets = [name for name in SETS if name in summary.arms["baseline"]]
    groups = "".join(_results_of_set(summary, name) for name in sets)
    spread = "mean ± sd over seeds" if len(summary.seeds) > 1 else "one seed, so no spread"
    arms = "".join(
        f"<div><dt>{_arm(arm)}</dt><dd>{arm_note(arm)}</dd></div>" for arm in summary.arms
    )
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>{groups}</table></div>'
        f'<p class="note">Bold: best mean in its column and set ({spread}); whether a difference '
        f'is more than chance is for the intervals to say.</p><dl class="arms">{arms}</dl>'
        f"{_differences(summary)}"
    )


def _results_of_set(summary: Summary, name: str) -> str:
    rows = []
    for arm, per_set in summary.arms.items():
        cells = []
        for metric, _, _, lower in _METRICS:
            value: MeanSd = getattr(per_set[name], metric)
            means = [getattr(other[name], metric).mean for other in summary.arms.values()]
            style = "best" if value.mean == (min(means) if lower else max(means)) else "plain"
            cells.append(f'<td class="{style}">{_mean_sd(value)}</td>')
        rows.append(f'<tr><th scope="row">{_arm(arm)}</th>{"".join(cells)}</tr>')
    return (
        f'<tbody><tr class="group"><th colspan="{len(_METRICS) + 1}" scope="rowgroup">'
        f"<span>{set_label(name)} <small>{set_note(name)}</small></span></th></tr>"
        f"{''.join(rows)}</tbody>"
    )


def _differences(summary: Summary) -> str:
    rows = []
    for arm, comparison in summary.relative_improvement.items():
        changes = [flipped(comparison.mpjpe), flipped(comparison.pa_mpjpe)]
        rows.append((f"{arm_label(arm)} against baseline", changes, percent_text))
    for other, comparison in summary.posegen_against.items():
        changes = [comparison.mpjpe, comparison.pa_mpjpe]
        rows.append((f"PoseGen against {arm_in_text(other)}", changes, millimetre_text))
    if not rows:
        return ""
    body = ""
    for label, changes, show in rows:
        cells = "".join(
            f'<td class="{judgement(change)}">{_unbroken_interval(show(change))}</td>'
            for change in changes
        )
        body += f'<tr><th scope="row">{label}</th>{cells}</tr>'
    return (
        '<h3>Paired differences on OOD</h3><div class="scroll"><table class="differences">'
        "<thead><tr><th></th>"
        '<th scope="col">MPJPE <small>95 % interval</small></th>'
        '<th scope="col">PA-MPJPE <small>95 % interval</small></th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _arm(arm: str) -> str:
    return (
        f'<span class="arm"><i class="marker swatch {arm_style(arm)}"></i>{arm_label(arm)}</span>'
    )


def _unbroken_interval(text: str) -> str:
    """The text with its [low, high] kept on one line."""
    estimate, _, interval = text.partition(" [")
    return f"{escape(estimate)} <span>[{escape(interval)}</span>"


def _mean_sd(value: MeanSd) -> str:
    spread = "" if value.sd is None else f" <small>± {value.sd:.1f}</small>"
    return f"{value.mean:.1f}{spread}"


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)
