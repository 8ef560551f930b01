"""What a sweep's trials are said to show: the best, the verdict, the line to paste, the page."""

import math
import shlex

import numpy as np
import pandas as pd
import pytest

from posegen_ray.compose import compose_config
from posegen_ray.config import ParameterConfig, setting
from posegen_ray.errors import DataError
from posegen_ray.evaluation.parallel import Axis, Line, parallel_coordinates
from posegen_ray.evaluation.sweep import (
    Confirmation,
    Sweep,
    TrialRecord,
    judge,
    load_sweep,
    override_line,
    save_sweep,
    sweep_text,
    trials_table,
)
from posegen_ray.evaluation.sweep_report import sweep_page, write_sweep_report

SPACE = [
    ParameterConfig("feedback.weight", "loguniform", 0.1, 10.0),
    ParameterConfig("generator.mode", "choice", choices=["residual", "noise"]),
]
DEFAULT = {"feedback.weight": 1.0, "generator.mode": "residual"}
OTHER = {"feedback.weight": 0.4321, "generator.mode": "noise"}
CLIPS = [f"clip{index % 5}" for index in range(40)]
PEOPLE = [f"person{index % 4}" for index in range(40)]


def record(number, settings, *errors, status="finished", failure=""):
    return TrialRecord(number, settings, status, errors, 12.0, failure)


def sweep(*records, **more):
    default = record(0, DEFAULT, 150.0, 140.0)
    return Sweep("Sweep", "stub", 2, SPACE, [default, *records], ["experiment=tiny"], **more)


def confirmed(shift, noise, seed=0):
    """Errors of a default, and of a best that differs by `shift` mm in the mean."""
    rng = np.random.default_rng(seed)
    default = 140 + rng.normal(0, 20, (3, 40))
    best = default + shift + rng.normal(0, noise, (3, 40))
    return Confirmation(default.tolist(), best.tolist(), CLIPS, PEOPLE)


def test_best_is_the_lowest_of_those_that_went_to_the_end():
    result = sweep(
        record(1, OTHER, 145.0, 138.0),
        record(2, OTHER, 100.0, status="stopped"),  # after one round: not comparable
        record(3, OTHER, math.inf, status="failed", failure="NaN"),
        record(4, OTHER, 145.0, 138.0),
    )
    assert result.best.number == 1


@pytest.mark.parametrize(
    ("shift", "noise", "expected", "words"),
    [
        (-15.0, 1.0, "better", "beats the default on validation"),
        (0.0, 30.0, "undecided", "does not beat the default beyond noise"),
        (15.0, 1.0, "worse", "does not beat the default"),
    ],
)
def test_verdict_is_that_of_the_confirmation(shift, noise, expected, words):
    verdict = judge(sweep(record(1, OTHER, 120.0, 110.0), confirmation=confirmed(shift, noise)))
    assert verdict.judgement == expected
    assert words in verdict.text
    assert verdict.interval.low < verdict.interval.mean < verdict.interval.high


def test_gain_within_noise_is_rarely_claimed():
    """Best and default that differ by luck alone, in 40 worlds."""
    claims = 0
    for seed in range(40):
        confirmation = confirmed(0.0, 30.0, seed)
        claims += confirmation.difference().high < 0
    assert claims <= 2


def test_without_confirmation_no_gain_is_claimed():
    verdict = judge(sweep(record(1, OTHER, 20.0, 10.0)))
    assert verdict.judgement == "undecided"
    assert "no gain yet" in verdict.text


def test_default_that_is_best_is_said_to_be():
    result = sweep(record(1, OTHER, 160.0, 150.0))
    assert result.best.number == 0
    assert "does not beat the default settings" in judge(result).text
    assert override_line(result) == "posegen demo experiment=tiny"


def test_without_the_default_there_is_nothing_to_compare_with():
    failed = record(0, DEFAULT, status="failed", failure="10 steps were not finite")
    with pytest.raises(DataError, match=r"own trial failed: 10 steps were not finite"):
        Sweep("Sweep", "stub", 2, SPACE, [failed, record(1, OTHER, 1.0, 1.0)], [])


def test_line_gives_the_best_trials_settings_when_it_is_pasted():
    given = [
        "experiment=tiny",
        "tune=asha",
        "n_trials=8",
        "tune.space=[{name:feedback.weight,low:0,high:2}]",
        "run_dir=some where",
        "feedback.weight=1.5",
        "motion.paths=[a b.bvh]",
    ]
    result = Sweep(
        "Sweep",
        "stub",
        2,
        SPACE,
        [record(0, DEFAULT, 150.0, 140.0), record(1, OTHER, 130.0, 120.0)],
        given,
    )
    program, command, *overrides = shlex.split(override_line(result))
    assert (program, command) == ("posegen", "demo")
    config = compose_config(overrides)
    assert {name: setting(config, name) for name in OTHER} == OTHER
    assert config.motion.paths == ["a b.bvh"]
    assert config.tune.space == []
    assert config.run_dir == "runs/tiny"


def test_table_json_and_line_survive_on_disk(tmp_path):
    result = sweep(
        record(1, OTHER, 145.0, 138.0),
        record(2, OTHER, 151.0, status="stopped"),
        record(3, OTHER, math.inf, status="failed", failure="NaN, again"),
        confirmation=confirmed(-1.0, 3.0),
        facts={"search": "random"},
    )
    save_sweep(tmp_path, result)
    table = pd.read_csv(tmp_path / "trials.csv")
    assert list(table["trial"]) == [0, 1, 2, 3]
    assert list(table["status"]) == ["finished", "finished", "stopped", "failed"]
    assert list(table["rounds"]) == [2, 2, 1, 0]
    assert list(table["validation_mpjpe_mm"]) == [140.0, 138.0, 151.0, math.inf]
    assert list(table["feedback.weight"]) == [1.0, 0.4321, 0.4321, 0.4321]
    assert table["failure"][3] == "NaN, again"
    pd.testing.assert_frame_equal(trials_table(load_sweep(tmp_path)), trials_table(result))
    assert judge(load_sweep(tmp_path)) == judge(result)
    assert (tmp_path / "best_overrides.txt").read_text() == f"{override_line(result)}\n"
    with pytest.raises(DataError, match="not the result of a sweep"):
        load_sweep(tmp_path / "none")


def test_terminal_shows_table_verdict_and_line():
    result = sweep(record(1, OTHER, 145.0, 138.0), record(2, OTHER, 151.0, status="stopped"))
    text = sweep_text(result)
    lines = text.splitlines()
    assert lines[1].split()[:4] == ["1", "finished", "2", "138.0"]  # the best comes first
    assert lines[2].split()[:3] == ["0", "(default)", "finished"]
    assert lines[3].split()[:3] == ["2", "stopped", "1"]
    assert lines[-1] == override_line(result)
    assert judge(result).text in lines


def test_axes_place_values_by_their_scale():
    log = Axis("rate", 1e-4, 1e-2, log=True)
    assert [log.height(value) for value in (1e-4, 1e-3, 1e-2)] == pytest.approx([0, 0.5, 1])
    assert log.marks()[1] == (0.5, "0.001")
    assert Axis("roll", 5.0, 40.0).height(22.5) == pytest.approx(0.5)
    assert Axis("mode", choices=("a", "b", "c")).height("b") == 0.5
    assert Axis("flat", 3.0, 3.0).height(3.0) == 0.5


def test_lines_of_trials_without_a_result_end_before_the_last_axis():
    axes = [Axis("a"), Axis("b"), Axis("mm")]
    chart = parallel_coordinates(
        axes,
        [Line("one", "trial-finished", [0, 1, 0.5]), Line("two", "trial-stopped", [0, 1, None])],
    )
    points = [part.split('"')[0].split() for part in chart.split('points="')[1:]]
    assert [len(line) for line in points] == [3, 2]


def test_page_shows_every_trial_and_is_self_contained(tmp_path):
    result = sweep(
        record(1, OTHER, 145.0, 138.0),
        record(2, OTHER, 151.0, status="stopped"),
        record(3, OTHER, math.inf, status="failed", failure="<NaN>"),
        confirmation=confirmed(-15.0, 1.0),
    )
    page = sweep_page(result)
    assert write_sweep_report(tmp_path, result).read_text() == page
    assert page.count('class="trial ') >= 4
    assert "&lt;NaN&gt;" in page
    assert "Better than the default" in page
    assert override_line(result) in page
    assert "http" not in page.replace("http://www.w3.org", "")
