"""A sweep's page `report.html`: verdict, line to paste, parallel coordinates, curves, table."""

from __future__ import annotations

import math
from datetime import date
from html import escape
from pathlib import Path

import numpy as np

from posegen_ray.evaluation import charts
from posegen_ray.evaluation.page import html_page
from posegen_ray.evaluation.parallel import Axis, Line, parallel_coordinates
from posegen_ray.evaluation.summary import millimetre_text, signed
from posegen_ray.evaluation.sweep import (
    FINISHED,
    STOPPED,
    Sweep,
    TrialRecord,
    judge,
    override_line,
    short_names,
    spread,
)
from posegen_ray.files import write_text

_WORDS = {
    "better": "Better than the default",
    "worse": "Worse than the default",
    "undecided": "No gain measured",
}


def write_sweep_report(folder: Path, sweep: Sweep) -> Path:
    """Writes `report.html` into the folder (all or nothing) and returns its path."""
    path = folder / "report.html"
    page = sweep_page(sweep)
    write_text(path, page)
    return path


def sweep_page(sweep: Sweep) -> str:
    """The whole page as text."""
    sections = [
        ("verdict", "Verdict", _verdict(sweep)),
        ("paste", "Best settings", _paste(sweep)),
        ("parallel", "All trials at a glance", _parallel(sweep)),
        ("curves", "Error by round", _curves(sweep)),
        ("trials", "Trials", _table(sweep)),
    ]
    if sweep.facts:
        sections.append(("run", "The sweep", _pairs(sweep)))
    return html_page(
        sweep.title,
        _header(sweep),
        sections,
        "Errors are MPJPE over the 12 limb joints, hip-centred, on validation images: people and "
        "clips that neither training nor test images show. Lower is better.",
    )


def _header(sweep: Sweep) -> str:
    ended = [record.status for record in sweep.records]
    facts = {
        "Estimator": sweep.estimator,
        "Trials": str(len(ended)),
        "To the end": str(ended.count(FINISHED)),
        "Stopped early": str(ended.count(STOPPED)),
        "Rounds a trial": str(sweep.rounds),
        "Written": date.today().isoformat(),
    }
    items = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return (
        f'<header><p class="kicker">Sweep report</p><h1>{escape(sweep.title)}</h1>'
        '<p class="lede">Adversarial training with other settings, judged by the live '
        "estimator's error on validation images. No test image was looked at.</p>"
        f"<dl>{items}</dl></header>"
    )


def _verdict(sweep: Sweep) -> str:
    verdict = judge(sweep)
    parts = [f'<p class="headline">{escape(verdict.text)}</p>']
    if verdict.interval is not None and sweep.confirmation is not None:
        default, best = (
            spread(v) for v in (sweep.confirmation.default_mm, sweep.confirmation.best_mm)
        )
        row = charts.IntervalRow(
            "Best trial", "arm-posegen", verdict.interval, millimetre_text(verdict.interval)
        )
        parts.append(
            f'<div class="verdicts"><article class="verdict"><h3>Confirmation, '
            f"{len(sweep.confirmation.best_mm)} new seeds</h3>"
            f'<p class="judgement {verdict.judgement}"><span>{_WORDS[verdict.judgement]}</span></p>'
            f'<p class="figure"><b>Default</b> {_mean_sd(*default)}</p>'
            f'<p class="figure"><b>Best trial</b> {_mean_sd(*best)}</p></article></div>'
            "<h3>MPJPE, best trial minus default</h3>"
            f"{charts.interval_rows([row], '← better', 'worse →')}"
        )
    parts.append(
        '<p class="note">The lowest of many errors is low by luck in part. A gain is therefore '
        "claimed only where the default and the best trial, both trained again with seeds and "
        "judged on images that played no part in the choice, differ by an interval (95 %, over "
        "clips, people and seeds) that leaves zero out.</p>"
    )
    return "".join(parts)


def _paste(sweep: Sweep) -> str:
    best, default = sweep.best, sweep.default
    rows = "".join(
        f'<tr><th scope="row">{escape(p.name)}</th>'
        f"<td>{escape(_value(default.settings[p.name]))}</td>"
        f"<td>{escape(_value(best.settings[p.name]))}</td></tr>"
        for p in sweep.parameters
    )
    same = "<p>The default settings are the best trial.</p>" if best.number == 0 else ""
    return (
        f'{same}<pre class="paste">{escape(override_line(sweep))}</pre>'
        '<div class="scroll"><table><thead><tr><th></th><th scope="col">Default</th>'
        f'<th scope="col">Trial {best.number}</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _parallel(sweep: Sweep) -> str:
    names = short_names(sweep.parameters)
    axes = [
        Axis(names[p.name], choices=tuple(p.choices))
        if p.kind == "choice"
        else Axis(names[p.name], p.low, p.high, p.kind == "loguniform")
        for p in sweep.parameters
    ]
    ends = [r.last_mm for r in sweep.records if math.isfinite(r.last_mm)]
    low, high = min(ends), max(ends)
    axes.append(Axis("validation, mm", low, high))
    lines = []
    # the best is drawn last, over the others; the default just below it
    for record in sorted(sweep.records, key=lambda r: (r == sweep.best, r.number == 0)):
        known = math.isfinite(record.last_mm)
        heat = (record.last_mm - low) / ((high - low) or 1.0) if known else 1.0
        values = [record.settings[p.name] for p in sweep.parameters]
        end = record.last_mm if known else None
        lines.append(Line(_named(record), _style(record, sweep), [*values, end], heat))
    legend = charts.legend(
        [("Best", "trial-best"), ("Default", "trial-default"), ("Stopped early", "trial-stopped")]
    )
    return (
        f"{legend}<p>Each line is a trial. The last axis is its error after its last round: a "
        "trial that was stopped early had fewer. The darker a line, the lower its error.</p>"
        f"{parallel_coordinates(axes, lines)}"
    )


def _curves(sweep: Sweep) -> str:
    curves = []
    for record in sorted(sweep.records, key=lambda r: (r == sweep.best, r.number == 0)):
        rounds = np.arange(1, len(record.errors_mm) + 1, dtype=float)
        errors = np.array(record.errors_mm, dtype=float)
        style = f"trial {_style(record, sweep)}"
        curves.append(charts.Curve(f"trial {record.number}", style, rounds, errors))
    chart = charts.curve_chart("Validation MPJPE in mm, by round", curves)
    return f'<div class="wide">{chart}</div>'


def _table(sweep: Sweep) -> str:
    names = short_names(sweep.parameters)
    head = "".join(
        f'<th scope="col">{escape(text)}</th>'
        for text in ("Status", "Rounds", "mm", "Change", *names.values())
    )
    order = sorted(sweep.records, key=lambda r: (-r.rounds, r.last_mm))
    rows = []
    for record in order:
        style = "best" if record == sweep.best else "plain"
        label = f"{record.number} <small>default</small>" if record.number == 0 else record.number
        same = record.rounds == sweep.default.rounds and record.number != 0
        change = signed(record.last_mm - sweep.default.last_mm) if same else ""
        cells = [
            record.status,
            str(record.rounds),
            f"{record.last_mm:.1f}" if math.isfinite(record.last_mm) else "–",
            change,
            *(escape(_value(record.settings[name])) for name in names),
        ]
        rows.append(
            f'<tr><th scope="row">{label}</th>'
            f"{''.join(f'<td class={style!r}>{cell}</td>' for cell in cells)}</tr>"
        )
    failures = "".join(
        f"<p>Trial {record.number} failed: {escape(record.failure)}</p>"
        for record in sweep.records
        if record.failure
    )
    return (
        f'<div class="scroll"><table><thead><tr><th>Trial</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{failures}"
        '<p class="note">Change: against the default after as many rounds, one seed each; what is '
        "luck in it, only a confirmation tells. The same as trials.csv.</p>"
    )


def _pairs(sweep: Sweep) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in sweep.facts.items()
    )
    return f'<table class="pairs-table"><tbody>{rows}</tbody></table>'


def _style(record: TrialRecord, sweep: Sweep) -> str:
    if record.number == 0:  # also where it is the best
        return "trial-default"
    if record == sweep.best:
        return "trial-best"
    return "trial-finished" if record.status == FINISHED else "trial-stopped"


def _named(record: TrialRecord) -> str:
    default = " (default)" if record.number == 0 else ""
    return (
        f"trial {record.number}{default}: {record.last_mm:.1f} mm after "
        f"{record.rounds} rounds, {record.status}"
    )


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _mean_sd(mean: float, sd: float) -> str:
    return f"{mean:.1f} ± {sd:.1f} mm" if math.isfinite(sd) else f"{mean:.1f} mm"
