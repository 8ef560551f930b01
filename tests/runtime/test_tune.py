"""Sweeps on Ray Tune: one placement group a trial, early stopping, interruption, both searchers."""

import json
import math
import os
from collections import Counter, defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ray.tune.schedulers import ASHAScheduler
from runtime_trials import ImpatientConsole, StairTrial

from posegen_ray.compose import compose_config
from posegen_ray.config import ParameterConfig
from posegen_ray.console import Console
from posegen_ray.runtime.placement import Node
from posegen_ray.runtime.trial_placement import plan_trials
from posegen_ray.runtime.tune import PatientAsha, _domain, run_search
from posegen_ray.tuning import Search

ROUNDS = 3
SPACE = "tune.space=[{name:feedback.weight,low:0.1,high:3}]"
DEFAULT = 3.0  # worse than any other: only its standing keeps it from being stopped


def search(n_trials, weights=(DEFAULT,), **changes):
    config = compose_config(["tune=asha", SPACE, f"training.rounds={ROUNDS}"])
    points = [{"seed": 3, "feedback.weight": weight} for weight in weights]
    return config, Search("trials", n_trials, points, [3], replace(config.tune, **changes))


def run(wanted, config, trial, folder, console=None):
    two = [Node("here", 3.0)]  # CPUs: a trial has 1 for itself and 0.4 for its helper
    share = plan_trials(config.runtime, two, num_subjects=2, limit=8)
    assert share.at_once == 2
    return run_search(trial, wanted, share, config, folder, console or Console(quiet=True))


def notes(trial):
    with open(trial.log, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.slow
def test_interrupted_sweep_goes_on_and_no_trial_leaves_its_placement_group(ray_session, tmp_path):
    weights = (DEFAULT, 0.2, 2.5)  # the last one is worse than half of the others
    config, wanted = search(4, weights)
    trial = StairTrial(ROUNDS, str(tmp_path / "log"))
    with pytest.raises(KeyboardInterrupt):
        run(wanted, config, trial, tmp_path, ImpatientConsole(str(tmp_path / "pressed"), 4))
    before = notes(trial)
    outcomes = run(wanted, config, trial, tmp_path)

    drawn = outcomes[3].point["feedback.weight"]
    assert 0.1 <= drawn <= 3.0
    assert [o.point for o in outcomes] == [
        {"seed": 3, "feedback.weight": weight} for weight in (*weights, drawn)
    ]
    for outcome in outcomes:
        weight = outcome.point["feedback.weight"]
        expected = [100 * weight + number + 1 for number in range(len(outcome.errors_mm))]
        assert list(outcome.errors_mm) == pytest.approx(expected)
    rounds = [len(outcome.errors_mm) for outcome in outcomes]
    assert rounds[:2] == [ROUNDS, ROUNDS]  # the default, and the best
    assert rounds[2] < ROUNDS  # stopped by what was known before the interruption

    after = notes(trial)[len(before) :]
    done = {entry["weight"] for entry in before if entry["round"] == ROUNDS}
    assert not done & {entry["weight"] for entry in after}  # nothing finished is run again
    twice = Counter((entry["weight"], entry["round"]) for entry in before + after)
    assert max(twice.values()) <= 2  # the round that was cut short, at most
    for part in (before, after):
        groups = defaultdict(set)
        for entry in part:
            assert entry["helper"] == entry["group"]
            assert entry["working_folder"] == os.getcwd()
            groups[entry["group"]].add(entry["weight"])
        assert None not in groups
        assert all(len(trials) == 1 for trials in groups.values())


def test_optuna_proposes_after_the_default_and_failed_trials_do_not_end_the_sweep(
    ray_session, tmp_path
):
    pytest.importorskip("optuna")
    config, wanted = search(2, search="optuna", scheduler="fifo")
    trial = StairTrial(1, str(tmp_path / "log"), broken=2.9)
    outcomes = run(wanted, config, trial, tmp_path)
    assert all(entry["helper"] == entry["group"] for entry in notes(trial))
    assert outcomes[0].point["feedback.weight"] == 3.0
    assert outcomes[0].failure == "weight 3.0 is broken"
    assert outcomes[0].errors_mm == (math.inf,)
    assert outcomes[1].failure == ""
    assert 0.1 <= outcomes[1].point["feedback.weight"] <= 2.9
    assert len(outcomes) == 2


def asha(weight, folder, schedule):
    """A trial of this weight, made known to a scheduler; its results by round."""
    storage = SimpleNamespace(experiment_fs_path=str(folder))
    trial = SimpleNamespace(trial_id=str(weight), config={"weight": weight}, storage=storage)
    schedule.on_trial_add(None, trial)
    return lambda number: schedule.on_trial_result(
        None, trial, {"round": number, "validation_mpjpe_mm": 100 * weight + number}
    )


def schedule(kind, *arguments):
    options = {"time_attr": "round", "max_t": 4, "grace_period": 1, "reduction_factor": 2}
    made = kind(*arguments, **options)
    made.set_search_properties("validation_mpjpe_mm", "min")
    return made


def test_asha_never_stops_the_default_and_knows_its_rungs_after_a_restart(tmp_path):
    mine = schedule(PatientAsha, {"weight": 3.0})
    default, best, bad = (asha(weight, tmp_path, mine) for weight in (3.0, 0.2, 2.5))
    assert [best(1), default(1), bad(1)] == ["CONTINUE", "CONTINUE", "STOP"]
    assert [best(2), default(2)] == ["CONTINUE", "CONTINUE"]
    later = asha(2.6, tmp_path, schedule(PatientAsha, {"weight": 3.0}))
    assert later(1) == "STOP"
    theirs = schedule(ASHAScheduler)  # what Tune restores by itself
    assert asha(2.6, tmp_path, theirs)(1) == "CONTINUE"
    best, default = (asha(weight, tmp_path, theirs) for weight in (0.2, 3.0))
    assert [best(1), default(1)] == ["CONTINUE", "STOP"]


def test_draws_follow_their_kind():
    uniform = _domain(ParameterConfig("a", "uniform", 1.0, 3.0))
    log = _domain(ParameterConfig("a", "loguniform", 1e-4, 1e-2))
    choice = _domain(ParameterConfig("a", "choice", choices=["x", "y"]))
    rng = np.random.RandomState(0)
    draws = np.array(uniform.sample(size=2000, random_state=rng))
    assert draws.min() >= 1.0
    assert draws.max() <= 3.0
    assert np.median(draws) == pytest.approx(2.0, abs=0.1)
    draws = np.array(log.sample(size=2000, random_state=rng))
    assert draws.min() >= 1e-4
    assert draws.max() <= 1e-2
    assert np.median(np.log10(draws)) == pytest.approx(-3.0, abs=0.1)
    assert set(choice.sample(size=50, random_state=rng)) == {"x", "y"}
