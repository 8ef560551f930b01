"""What a sweep found: its trials as a table, the best of them, and whether it beats the default.

All errors are MPJPE on validation images, in mm; test images play no part. Knows nothing of Ray.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from posegen_ray.config import ParameterConfig
from posegen_ray.errors import DataError
from posegen_ray.evaluation.protocol import Interval, paired_interval
from posegen_ray.evaluation.summary import judgement, millimetre_text
from posegen_ray.files import write_json, write_text

SWEEP_FILE = "sweep.json"
TABLE_FILE = "trials.csv"
BEST_FILE = "best_overrides.txt"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
_OF_THE_SWEEP = ("tune", "n_trials", "run_dir", "resume")


@dataclass(frozen=True)
class TrialRecord:
    """One trial: what was tried, and the error after each round."""

    number: int  # 0: the default settings
    settings: Mapping[str, Any]  # dotted name -> value
    status: str  # finished | stopped (by the scheduler) | failed
    errors_mm: tuple[float, ...]  # after each round
    seconds: float  # of its process
    failure: str = ""

    @property
    def rounds(self) -> int:
        """How many rounds it was trained for."""
        return sum(map(math.isfinite, self.errors_mm))

    @property
    def last_mm(self) -> float:
        """The error after its last round; NaN when it has none."""
        return self.errors_mm[-1] if self.errors_mm else math.nan


@dataclass(frozen=True)
class Confirmation:
    """Default and best, trained again with other seeds and judged on other validation images."""

    default_mm: Sequence[Sequence[float]]  # [seeds, N]
    best_mm: Sequence[Sequence[float]]  # [seeds, N]
    clips: Sequence[str]  # N
    people: Sequence[str]  # N

    def difference(self) -> Interval:
        """Best minus default in mm, with its 95 % interval over images and seeds."""
        pair = paired_interval(self.default_mm, self.best_mm, self.clips, self.people)
        return pair.difference


@dataclass(frozen=True)
class Sweep:
    """Everything that the sweep's report needs."""

    title: str
    estimator: str
    rounds: int  # of a finished trial
    parameters: Sequence[ParameterConfig]
    records: Sequence[TrialRecord]
    overrides: Sequence[str]  # of the sweep's command
    confirmation: Confirmation | None = None
    facts: Mapping[str, str] = field(default_factory=dict)  # shown as they are

    def __post_init__(self) -> None:
        if self.default.status != FINISHED:
            raise DataError(
                "No trial can be compared with the default settings, since their own trial "
                f"{self.default.status}: {self.default.failure or 'no reason is known'}",
                "See what `posegen train` says to the same settings.",
            )

    @property
    def default(self) -> TrialRecord:
        return next(record for record in self.records if record.number == 0)

    @property
    def best(self) -> TrialRecord:
        """Of the trials that went to the end, the one with the lowest error."""
        return best_trial(self.records)


@dataclass(frozen=True)
class Verdict:
    """Whether the best trial beats the default."""

    judgement: str  # better | worse | undecided
    text: str
    interval: Interval | None = None  # best minus default, mm


def best_trial(records: Sequence[TrialRecord]) -> TrialRecord:
    """The finished trial with the lowest error (the first of equals).

    A trial that was stopped early had less training, so that its error cannot be compared.
    """
    finished = [record for record in records if record.status == FINISHED]
    return min(finished, key=lambda record: (record.last_mm, record.number))


def judge(sweep: Sweep) -> Verdict:
    """Says of the best trial what its confirmation shows, and no more."""
    best, default, count = sweep.best, sweep.default, len(sweep.records)
    if best.number == 0:
        return Verdict(
            "undecided",
            f"The best trial does not beat the default settings: of {count} trials, the default "
            f"itself has the lowest validation error ({default.last_mm:.1f} mm).",
        )
    found = (
        f"Trial {best.number} has the lowest validation error of {count} trials, "
        f"{best.last_mm:.1f} mm against the default's {default.last_mm:.1f} mm."
    )
    if sweep.confirmation is None:
        return Verdict(
            "undecided",
            f"{found} Whether that is more than luck was not examined "
            "(tune.confirm_seeds=0): it is no gain yet.",
        )
    change = sweep.confirmation.difference()
    seeds = len(sweep.confirmation.best_mm)
    again = f"Trained again with {seeds} new seeds and judged on other validation images, it is"
    size = f"{millimetre_text(change)} against the default"
    text = {
        "better": f"{found} {again} better: {size}. It beats the default on validation.",
        "worse": f"{found} {again} worse: {size}. The best trial does not beat the default.",
        "undecided": (
            f"{found} {again} not measurably different: {size}. The best trial does not beat the "
            "default beyond noise."
        ),
    }
    verdict = judgement(change)
    return Verdict(verdict, text[verdict], change)


def trials_table(sweep: Sweep) -> pd.DataFrame:
    """One row a trial, in their order.

    Columns: trial, status, rounds, validation_mpjpe_mm (after the last round), seconds, one column
    a searched setting under its dotted name, failure.
    """
    rows = []
    for record in sweep.records:
        row: dict[str, Any] = {
            "trial": record.number,
            "status": record.status,
            "rounds": record.rounds,
            "validation_mpjpe_mm": record.last_mm,
            "seconds": round(record.seconds, 1),
        }
        row |= {p.name: record.settings[p.name] for p in sweep.parameters}
        rows.append({**row, "failure": record.failure})
    return pd.DataFrame(rows)


def override_line(sweep: Sweep) -> str:
    """The command that runs the comparison with the best trial's settings, ready to be pasted.

    Holds what the sweep itself was told, apart from what concerns the sweep alone.
    """
    own = [text for text in sweep.overrides if not _of_the_sweep(text)]
    searched = {parameter.name for parameter in sweep.parameters}
    own = [text for text in own if text.lstrip("+").split("=")[0] not in searched]
    default = sweep.default.settings
    changed = {n: value for n, value in sweep.best.settings.items() if value != default[n]}
    best = [f"{name}={_text(value)}" for name, value in changed.items()]
    return shlex.join(["posegen", "demo", *own, *best])


def sweep_text(sweep: Sweep) -> str:
    """Table, verdict and override line for a terminal."""
    table = trials_table(sweep).drop(columns="failure")
    table = table.sort_values(
        ["rounds", "validation_mpjpe_mm"], ascending=[False, True], kind="stable"
    )
    table = table.rename(columns={"validation_mpjpe_mm": "mm", **short_names(sweep.parameters)})
    table["trial"] = [f"{n} (default)" if n == 0 else str(n) for n in table["trial"]]
    table["mm"] = [f"{error:.1f}" for error in table["mm"]]
    shown = table.to_string(index=False, float_format=lambda value: f"{value:.4g}")
    failures = [f"trial {r.number} failed: {r.failure}" for r in sweep.records if r.failure]
    return "\n".join([shown, *failures, "", judge(sweep).text, "", override_line(sweep)])


def short_names(parameters: Sequence[ParameterConfig]) -> dict[str, str]:
    """Each setting's last word, or its whole name where that is not enough."""
    last = [parameter.name.rsplit(".", 1)[1] for parameter in parameters]
    return {
        parameter.name: word if last.count(word) == 1 else parameter.name
        for parameter, word in zip(parameters, last, strict=True)
    }


def save_sweep(folder: Path, sweep: Sweep) -> None:
    """Writes the sweep's JSON, its table as CSV, and the best trial's override line."""
    write_json(folder / SWEEP_FILE, asdict(sweep))
    table = trials_table(sweep).to_csv(index=False)
    write_text(folder / TABLE_FILE, table)
    line = f"{override_line(sweep)}\n"
    write_text(folder / BEST_FILE, line)


def load_sweep(folder: Path) -> Sweep:
    """What `save_sweep` wrote.

    Raises:
        DataError: it is missing or cannot be read.
    """
    path = folder / SWEEP_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        kept = state.pop("confirmation")
        records = [_record(entry) for entry in state.pop("records")]
        parameters = [ParameterConfig(**entry) for entry in state.pop("parameters")]
        return Sweep(
            **state,
            records=records,
            parameters=parameters,
            confirmation=Confirmation(**kept) if kept else None,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not the result of a sweep ({error}).",
            f"Finish the sweep first: posegen tune resume={folder}.",
        ) from error


def _record(state: dict[str, Any]) -> TrialRecord:
    errors = tuple(math.inf if error is None else error for error in state.pop("errors_mm"))
    return TrialRecord(**state, errors_mm=errors)


def _of_the_sweep(override: str) -> bool:
    return override.lstrip("+~").split("=")[0].split(".")[0] in _OF_THE_SWEEP


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def spread(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Mean over seeds of the mean error, and its standard deviation over seeds."""
    means = np.asarray(values, float).mean(1)
    return float(means.mean()), float(means.std(ddof=1)) if len(means) > 1 else math.nan
