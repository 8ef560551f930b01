"""The schema of summary.json, its numbers, and a verdict that follows the intervals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from posegen_ray.evaluation.protocol import Interval
from posegen_ray.evaluation.store import ReportInputs
from posegen_ray.evaluation.summary import (
    Comparison,
    Summary,
    build_summary,
    collect_versions,
    headline,
    percent_text,
    terminal_table,
    verdict,
    write_summary,
)

_ARMS = ("baseline", "source_adapted", "random", "posegen")


@pytest.fixture(scope="module")
def summary(inputs: ReportInputs) -> Summary:
    return build_summary(inputs, n_boot=300)


def test_the_file_has_the_promised_schema(summary: Summary, tmp_path: Path) -> None:
    data = json.loads(write_summary(tmp_path, summary).read_text())
    assert data["estimator"] == "blazepose_full"
    assert data["seeds"] == [0, 1]
    assert tuple(data["arms"]) == _ARMS
    for arm in _ARMS:
        assert tuple(data["arms"][arm]) == ("source", "wild", "ood")
        for values in data["arms"][arm].values():
            assert set(values) == {"mpjpe_mm", "pa_mpjpe_mm", "pck150", "auc", "worst_decile_mm"}
            assert all(set(value) == {"mean", "sd"} for value in values.values())
    assert tuple(data["relative_improvement"]) == _ARMS[1:]
    assert tuple(data["posegen_against"]) == ("source_adapted", "random")
    for group in ("relative_improvement", "posegen_against"):
        for comparison in data[group].values():
            assert set(comparison) == {"mpjpe", "pa_mpjpe"}
            for value in comparison.values():
                assert set(value) == {"mean", "low", "high"}
                assert value["low"] <= value["mean"] <= value["high"]
    assert data["samples"] == {"train": 3000, "rejected": 177, "test": 60}
    assert data["timing_s"]["train"] == 210.5
    assert data["render"] == {"images_per_s": 160.0, "images_per_s_with_gradient": 85.0}
    assert data["versions"]["torch"] == "2.13"
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_numbers_agree_with_a_direct_computation(inputs: ReportInputs, summary: Summary) -> None:
    truth, ood = inputs.samples.joints.numpy(), np.array(inputs.sets) == "ood"

    def error(joints: torch.Tensor) -> float:
        centred = joints.numpy() - joints.numpy()[:, 6:8].mean(1, keepdims=True)
        return 1000 * float(np.linalg.norm(centred - truth, axis=-1)[ood].mean())

    means = {arm: [error(j) for j in inputs.predictions[arm]] for arm in ("baseline", "posegen")}
    found = summary.arms["posegen"]["ood"].mpjpe_mm
    assert found.mean == pytest.approx(np.mean(means["posegen"]), rel=1e-5)
    assert found.sd == pytest.approx(np.std(means["posegen"], ddof=1), rel=1e-3)
    improvement = 1 - np.mean(means["posegen"]) / np.mean(means["baseline"])
    assert summary.relative_improvement["posegen"].mpjpe.mean == pytest.approx(
        improvement, rel=1e-5
    )


def test_overlapping_reasons_do_not_inflate_the_rejections(inputs: ReportInputs) -> None:
    assert replace(inputs, rejected_total=150).counts.rejected == 150
    assert inputs.counts.rejected == 120 + 45 + 12


def test_one_seed_has_no_spread(inputs_of_one_seed: ReportInputs, tmp_path: Path) -> None:
    summary = build_summary(inputs_of_one_seed, n_boot=200)
    data = json.loads(write_summary(tmp_path, summary).read_text())
    assert data["arms"]["posegen"]["ood"]["mpjpe_mm"]["sd"] is None
    assert "One seed" in verdict(summary)[-1]
    assert "cannot tell trained arms apart" in verdict(summary)[-1]
    assert "in this one training" in verdict(summary)[0]


def test_several_seeds_are_judged_without_reserve(summary: Summary) -> None:
    assert not any("One seed" in line or "one training" in line for line in verdict(summary))


def test_a_baseline_that_no_seed_changes_is_given_once(inputs: ReportInputs) -> None:
    once = {**inputs.predictions, "baseline": inputs.predictions["baseline"][:1]}
    summary = build_summary(replace(inputs, predictions=once), n_boot=200)
    assert summary.arms["baseline"]["ood"].mpjpe_mm.sd is None
    assert summary.relative_improvement["random"].mpjpe.mean > 0


def test_missing_arms_and_sets_are_left_out(inputs: ReportInputs) -> None:
    two = {arm: inputs.predictions[arm] for arm in ("baseline", "random")}
    summary = build_summary(replace(inputs, predictions=two), n_boot=200)
    assert list(summary.arms) == ["baseline", "random"]
    assert summary.posegen_against == {}
    assert verdict(summary) == ["PoseGen was not compared on the OOD set in this run."]
    rows = [row for row, name in enumerate(inputs.sets) if name == "wild"]
    wild = replace(
        inputs,
        samples=inputs.samples[rows],
        sets=("wild",) * len(rows),
        predictions={arm: joints[:, rows] for arm, joints in inputs.predictions.items()},
    )
    assert "OOD" not in terminal_table(build_summary(wild)).split("PoseGen was not")[0]


def test_unknown_numbers_become_null(inputs: ReportInputs, tmp_path: Path) -> None:
    alone = replace(
        inputs.samples, clips=("walk",) * len(inputs.sets), subjects=("ann",) * len(inputs.sets)
    )
    path = write_summary(tmp_path, build_summary(replace(inputs, samples=alone), n_boot=200))
    data = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert data["relative_improvement"]["posegen"]["mpjpe"]["low"] is None


def _judged(summary: Summary, baseline: float, source_adapted: float, random: float) -> Summary:
    """The summary with PoseGen this much better (positive) than each, with a half-width of 2."""

    def around(value: float) -> Comparison:
        interval = Interval(value, value - 2, value + 2)
        return Comparison(interval, interval)

    return replace(
        summary,
        relative_improvement={**summary.relative_improvement, "posegen": around(baseline)},
        posegen_against={"source_adapted": around(-source_adapted), "random": around(-random)},
    )


def test_the_verdict_follows_the_intervals(summary: Summary) -> None:
    assert "PoseGen is better than baseline, source-adapted and random (" in headline(
        _judged(summary, 5, 5, 5)
    )
    mixed = headline(_judged(summary, 5, -5, 1))
    assert "better than baseline;" in mixed
    assert "worse than source-adapted;" in mixed
    assert "no difference from random was measured" in mixed
    none = headline(_judged(summary, 0, 0, 0))
    assert "better" not in none
    assert "no difference from baseline, source-adapted or random was measured" in none
    numbers = verdict(_judged(summary, 5, -5, 1))[1:4]
    assert "better than baseline" in numbers[0]
    assert "worse than source-adapted: MPJPE +5.0 mm [+3.0, +7.0]" in numbers[1]
    assert "not measurably different from random" in numbers[2]


def test_improvements_are_printed_as_changes() -> None:
    assert percent_text(Interval(-0.086, -0.12, 0.004)) == "−8.6 % [−12.0, +0.4]"


def test_the_terminal_table_fits_and_lines_up(summary: Summary) -> None:
    lines = terminal_table(summary).splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines[3:7]] == [
        "Baseline",
        "Source-adapted",
        "Random",
        "PoseGen",
    ]
    dots = [[at for at, mark in enumerate(line[:90]) if mark == "."] for line in lines[3:7]]
    assert all(columns == dots[0] for columns in dots)


def test_versions_name_what_the_numbers_depend_on() -> None:
    assert {"python", "torch", "numpy"} <= set(collect_versions())
