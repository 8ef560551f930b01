"""The numbers of a comparison: `summary.json`, the table on the terminal, and the verdict in words.

All three come from one `Summary`; the verdict says what the intervals say, whichever way they fall.
"""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from posegen_ray.evaluation.names import arm_in_text, arm_label, is_variant, set_label
from posegen_ray.evaluation.protocol import (
    SETS,
    Interval,
    MeanSd,
    PairedInterval,
    SetMetrics,
    evaluate,
    mean_sd,
    paired_interval,
    set_metrics,
)
from posegen_ray.evaluation.store import RenderSpeed, ReportInputs, SampleCounts
from posegen_ray.files import write_json

SUMMARY_FILE = "summary.json"
_COLUMNS = 100
# of fine-tuned arms' MPJPE on OOD over five seeds (docs/results.md)
SEED_SPREAD_MM = (2, 6)
_PACKAGES = ("posegen-ray", "torch", "ray", "warp-lang", "anny", "nerfacc", "numpy", "scipy")


@dataclass(frozen=True)
class SetSummary:
    """One arm on one test set, over seeds."""

    mpjpe_mm: MeanSd
    pa_mpjpe_mm: MeanSd
    pck150: MeanSd  # percent
    auc: MeanSd  # percent
    worst_decile_mm: MeanSd


@dataclass(frozen=True)
class Comparison:
    """One arm against another on the OOD set (paired samples)."""

    mpjpe: Interval
    pa_mpjpe: Interval


@dataclass(frozen=True)
class Summary:
    """What `summary.json` holds. Absent arms and empty sets have no entry."""

    estimator: str
    seeds: tuple[int, ...]
    arms: Mapping[str, Mapping[str, SetSummary]]
    # (baseline - arm) / baseline, a fraction: positive is better
    relative_improvement: Mapping[str, Comparison]
    # PoseGen - other, mm: negative is better
    posegen_against: Mapping[str, Comparison]
    samples: SampleCounts
    timing_s: Mapping[str, float]
    render: RenderSpeed
    versions: Mapping[str, str]
    # a row a set of poses and reference, as in pose_sets.csv
    pose_sets: tuple[Mapping[str, object], ...] = ()


@dataclass(frozen=True)
class Standing:
    """PoseGen against one other arm in one metric, on the OOD set."""

    other: str
    metric: str  # MPJPE | PA-MPJPE
    change: Interval  # PoseGen minus the other: negative is better
    text: str  # the change with its unit

    @property
    def judgement(self) -> str:
        return judgement(self.change)


def evaluate_arms(inputs: ReportInputs) -> dict[str, list[pd.DataFrame]]:
    """The per-sample tables of each arm, one per seed."""
    return {
        arm: [evaluate(joints, inputs.samples, inputs.sets) for joints in inputs.predictions[arm]]
        for arm in inputs.arms
    }


def build_summary(
    inputs: ReportInputs,
    n_boot: int = 4000,
    tables: Mapping[str, list[pd.DataFrame]] | None = None,  # from evaluate_arms, when at hand
) -> Summary:
    """Computes every number of `summary.json` from predictions and labels."""
    tables = tables or evaluate_arms(inputs)

    def compare(reference: str, arm: str) -> dict[str, PairedInterval]:
        return {
            metric: _paired(tables[reference], tables[arm], f"{metric}_mm", n_boot)
            for metric in ("mpjpe", "pa_mpjpe")
        }

    has_ood = "ood" in inputs.sets
    relative: dict[str, Comparison] = {}
    against: dict[str, Comparison] = {}
    for arm in inputs.arms[1:] if has_ood else ():
        pair = compare("baseline", arm)
        relative[arm] = Comparison(pair["mpjpe"].relative, pair["pa_mpjpe"].relative)
    if has_ood and "posegen" in inputs.arms:
        for other in (arm for arm in inputs.arms if arm not in ("baseline", "posegen")):
            pair = compare(other, "posegen")
            against[other] = Comparison(pair["mpjpe"].difference, pair["pa_mpjpe"].difference)
    return Summary(
        estimator=inputs.estimator,
        seeds=inputs.seeds,
        arms={arm: _over_seeds([set_metrics(t) for t in tables[arm]]) for arm in inputs.arms},
        relative_improvement=relative,
        posegen_against=against,
        samples=inputs.counts,
        timing_s=dict(inputs.timing_s),
        render=inputs.render,
        versions=dict(inputs.versions),
        pose_sets=tuple(
            {str(name): value for name, value in row.items()}
            for row in inputs.pose_sets.to_dict("records")
        ),
    )


def write_summary(folder: Path, summary: Summary) -> Path:
    """Writes `summary.json` (all or nothing) and returns its path."""
    path = folder / SUMMARY_FILE
    write_json(path, asdict(summary))
    return path


def collect_versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on, as far as installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def terminal_table(summary: Summary) -> str:
    """The comparison as plain text, at most 100 columns wide; the verdict ends it."""
    sets = [name for name in SETS if name in summary.arms["baseline"]]
    lines = [
        f"Estimator {summary.estimator}, {_seeds_text(summary)}, "
        f"{summary.samples.test:,} test images. Errors in mm.",
        "",
    ]
    for some in (sets[:3], sets[3:]):  # no more fit beside one another
        if not some:
            continue
        heads = [f"{set_label(name)} (MPJPE  PA-MPJPE)" for name in some]
        lines.append(f"{'':15}" + "".join(f" {head:>26}" for head in heads))
        for arm, per_set in summary.arms.items():
            cells = [
                f"{_cell(per_set[name].mpjpe_mm)} {_cell(per_set[name].pa_mpjpe_mm)}"
                for name in some
            ]
            lines.append(f"{arm_label(arm):15}" + "".join(f" {cell:>26}" for cell in cells))
        lines.append("")
    if "ood" in sets:
        lines += [*_ood_lines(summary), ""]
    for sentence in verdict(summary):
        lines += textwrap.wrap(sentence, _COLUMNS, subsequent_indent="  ") or [""]
    return "\n".join(line.rstrip() for line in lines)


def verdict(summary: Summary) -> list[str]:
    """How PoseGen stands against the other arms on the OOD set: the outcome, then the numbers."""
    found = standings(summary)
    if not found:
        return ["PoseGen was not compared on the OOD set in this run."]
    numbers = [_sentence(mpjpe, pa) for mpjpe, pa in zip(found[::2], found[1::2], strict=True)]
    return [headline(summary), *numbers, *caveats(summary)]


def headline(summary: Summary) -> str:
    """One sentence, from the MPJPE intervals on the OOD set."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for standing in standings(summary):
        if standing.metric == "MPJPE":
            groups[standing.judgement].append(arm_in_text(standing.other))
    parts = []
    if groups["better"]:
        parts.append(f"PoseGen is better than {_joined(groups['better'], 'and')}")
    if groups["worse"]:
        parts.append(f"PoseGen is worse than {_joined(groups['worse'], 'and')}")
    if groups["undecided"]:
        parts.append(f"no difference from {_joined(groups['undecided'], 'or')} was measured")
    how = "MPJPE, in this one training" if one_seed(summary) else "MPJPE"
    return f"On motions that were never trained on, {'; '.join(parts)} ({how})."


def one_seed(summary: Summary) -> bool:
    """Whether intervals know nothing of how much trainings differ."""
    return len(summary.seeds) == 1


def caveats(summary: Summary) -> list[str]:
    """What a reader of the verdict has to know beside it."""
    lines = []
    if "source" in summary.arms.get("posegen", {}):
        before = summary.arms["baseline"]["source"].pa_mpjpe_mm.mean
        change = 100 * (summary.arms["posegen"]["source"].pa_mpjpe_mm.mean / before - 1)
        lines.append(f"On source motions its PA-MPJPE is {signed(change)} % against baseline.")
    if one_seed(summary):
        lines.append(
            "One seed: how much two trainings of an arm differ is not measured. Where it was, with "
            f"more images than the demo's, it was {SEED_SPREAD_MM[0]} to {SEED_SPREAD_MM[1]} mm "
            "(standard deviation on OOD), so this run alone cannot tell trained arms apart that "
            "are less than some 10 mm apart: experiment.seeds=[0,1,2,3,4] does."
        )
    return lines


def standings(summary: Summary) -> list[Standing]:
    """PoseGen on the OOD set against the baseline and the controls that ran, not against its own
    variants: MPJPE, then PA-MPJPE, of each."""
    found = []
    if "posegen" in summary.relative_improvement:
        comparison = summary.relative_improvement["posegen"]
        for metric, interval in _metrics_of(comparison):
            change = flipped(interval)
            found.append(Standing("baseline", metric, change, percent_text(change)))
    for other, comparison in summary.posegen_against.items():
        for metric, interval in () if is_variant(other) else _metrics_of(comparison):
            found.append(Standing(other, metric, interval, millimetre_text(interval)))
    return found


def _sentence(mpjpe: Standing, pa_mpjpe: Standing) -> str:
    other = arm_in_text(mpjpe.other)
    words = {
        "better": "better than",
        "worse": "worse than",
        "undecided": "not measurably different from",
    }
    first, second = (f"{s.metric} {s.text}" for s in (mpjpe, pa_mpjpe))
    if mpjpe.judgement == pa_mpjpe.judgement:
        return f"OOD: {words[mpjpe.judgement]} {other}: {first}, {second}."
    return (
        f"OOD: {words[mpjpe.judgement]} {other} in {first}, "
        f"{words[pa_mpjpe.judgement]} it in {second}."
    )


def _joined(names: list[str], word: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _metrics_of(comparison: Comparison) -> list[tuple[str, Interval]]:
    return [("MPJPE", comparison.mpjpe), ("PA-MPJPE", comparison.pa_mpjpe)]


def judgement(change: Interval) -> str:
    """better | worse | undecided: does a change (negative is better) leave zero out?"""
    if change.high < 0:
        return "better"
    return "worse" if change.low > 0 else "undecided"


def flipped(interval: Interval) -> Interval:
    """An improvement (positive is better) as a change (negative is better)."""
    return Interval(-interval.mean, -interval.high, -interval.low)


def percent_text(interval: Interval) -> str:
    """A fraction with its interval, e.g. `−8.6 % [−12.0, −4.1]`."""
    mean, low, high = (signed(100 * v) for v in (interval.mean, interval.low, interval.high))
    return f"{mean} % [{low}, {high}]"


def millimetre_text(interval: Interval) -> str:
    """Millimetres with their interval, e.g. `−4.2 mm [−6.0, −2.1]`."""
    mean, low, high = (signed(v) for v in (interval.mean, interval.low, interval.high))
    return f"{mean} mm [{low}, {high}]"


def signed(value: float) -> str:
    """One decimal, always with its sign; a true minus, as wide as the plus."""
    return f"{value:+.1f}".replace("-", "−").replace("inf", "∞")


def _cell(value: MeanSd) -> str:
    spread = f"±{value.sd:<5.1f}" if value.sd is not None else " " * 6
    return f"{value.mean:6.1f}{spread}"


def _seeds_text(summary: Summary) -> str:
    return f"{len(summary.seeds)} seed{'s' if len(summary.seeds) != 1 else ''}"


def _ood_lines(summary: Summary) -> list[str]:
    lines = [
        f"{'OOD':15} {'PCK@150 %':>10} {'AUC %':>7} {'worst 10 %':>11}"
        f" {'MPJPE against baseline (95 %)':>31}"
    ]
    for arm, per_set in summary.arms.items():
        ood = per_set["ood"]
        against = summary.relative_improvement.get(arm)
        change = percent_text(flipped(against.mpjpe)) if against else ""
        lines.append(
            f"{arm_label(arm):15} {ood.pck150.mean:10.1f} {ood.auc.mean:7.1f}"
            f" {ood.worst_decile_mm.mean:11.1f} {change:>31}"
        )
    return lines


def _over_seeds(per_seed: list[dict[str, SetMetrics]]) -> dict[str, SetSummary]:
    names = [field.name for field in fields(SetSummary)]
    return {
        name: SetSummary(
            **{metric: mean_sd([getattr(s[name], metric) for s in per_seed]) for metric in names}
        )
        for name in per_seed[0]
        if name in SETS
    }


def _paired(
    reference: list[pd.DataFrame], arm: list[pd.DataFrame], column: str, n_boot: int
) -> PairedInterval:
    ood = reference[0]["set"].to_numpy() == "ood"
    return paired_interval(
        np.stack([table[column].to_numpy(dtype=float)[ood] for table in reference]),
        np.stack([table[column].to_numpy(dtype=float)[ood] for table in arm]),
        reference[0].loc[ood, "clip"].tolist(),
        reference[0].loc[ood, "subject"].tolist(),
        n_boot,
    )
