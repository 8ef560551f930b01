"""Sweeps, without Ray: the search space, the points of trials, and what they are judged on."""

import importlib.util
from dataclasses import dataclass, replace

import pytest

from posegen_ray import studio, tuning
from posegen_ray.cli import main
from posegen_ray.compose import compose_config, dump_config, read_config
from posegen_ray.config import (
    FeedbackConfig,
    ParameterConfig,
    RuntimeConfig,
    TuneConfig,
    setting,
    with_settings,
)
from posegen_ray.context import LocalContext
from posegen_ray.errors import ConfigError, TrainingError
from posegen_ray.subjects.wardrobe import people
from posegen_ray.tuning import (
    SEED,
    Trial,
    check_sweep,
    confirmation_images,
    default_point,
    trial_config,
)


@pytest.fixture(scope="module")
def config():
    return compose_config(["tune=random"])


@pytest.mark.parametrize("name", ["random", "asha", "optuna"])
def test_every_sweep_composes_and_survives_a_round_trip(name, config, tmp_path):
    sweep = compose_config([f"tune={name}", "experiment=tiny", "n_trials=8"])
    assert sweep.run_dir == "runs/tune"
    assert sweep.tune.space == config.tune.space
    dump_config(sweep, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == sweep


def between(name, low, high, kind="uniform"):
    return ParameterConfig(name, kind, low, high)


def among(name, *choices):
    return ParameterConfig(name, "choice", choices=list(choices))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: [between("feedback.weigth", 0.5, 2)],
            r"'feedback.weigth' is not.*Did you mean feedback.weight",
        ),
        (lambda: [among("body.name", "anny", "smpl")], "shared by the trials"),
        (lambda: [between("feedback.weight", 2, 1)], "no values between low=2 and high=1"),
        (lambda: [between("feedback.weight", 0, 2, "gauss")], "kind='gauss'"),
        (lambda: [between("feedback.weight", 0, 2, "loguniform")], "no logarithm"),
        (lambda: [between("feedback.weight", -1, 2)], "weight=-1, which is not allowed"),
        (lambda: [between("feedback.weight", 2, 3)], r"weight=1.0, the default, is not among"),
        (lambda: [between("generator.layers", 1, 4)], "type int.*kind: choice"),
        (lambda: [among("generator.layers", 3)], "at least two"),
        (lambda: [among("generator.layers", 3, 4.5)], "4.5 is no value"),
        (lambda: [among("generator.mode", "residual", "dream")], "dream"),
        (
            lambda: [between("feedback.band_low", 0.5, 1.8), between("feedback.band_high", 1.7, 3)],
            r"band_low=1.8, feedback.band_high=1.7, which is not allowed: .*empty.*Narrow",
        ),
        (lambda: 2 * [between("feedback.weight", 0.5, 2)], "names feedback.weight twice"),
    ],
)
def test_bad_search_spaces_are_refused(make, message, config):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        replace(config, tune=TuneConfig(space=make()))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"search": "magic"}, "'magic' is not a way to search"),
        ({"scheduler": "magic"}, "'magic' is not a scheduler"),
        ({"confirm_seeds": 1}, "One seed cannot tell a gain from luck"),
        ({"reduction_factor": 1.0}, "reduction_factor=1.0 above 1"),
        ({"at_once": -1}, "at_once=-1"),
    ],
)
def test_bad_ways_to_search_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        TuneConfig(**setting)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tune.space=[{nam:feedback.weight}]"], "nam"),
        (["tune.space=[{name:feedback.weigth,low:0,high:2}]"], "Did you mean feedback.weight"),
        (["tune=asha", "feedback.weight=50"], "weight=50.0, the default, is not among"),
        (["tune=asha", "tune.grace_rounds=9"], "grace_rounds=9 is more than training.rounds=4"),
        (["tune=ahsa"], "no configuration tune/ahsa"),
        (["n_trials=1"], "n_trials=1"),
    ],
)
def test_bad_sweeps_are_refused_while_they_are_composed(overrides, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        compose_config(overrides)


def test_every_corner_of_the_shipped_space_is_allowed(config):
    for side in (0, -1):
        corner = {p.name: p.extremes()[side] for p in config.tune.space}
        changed = with_settings(config, corner)
        assert {name: setting(changed, name) for name in corner} == corner


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tune": TuneConfig()}, r"No search space.*tune=asha"),
        ({"runtime": RuntimeConfig(name="inprocess")}, "runtime=inprocess does without"),
        ({"runtime": RuntimeConfig(train_workers=2)}, "train_workers=2"),
        ({"feedback": FeedbackConfig(reducible=0.5)}, "reducible needs a reference estimator"),
    ],
)
def test_what_no_sweep_could_run_with_is_refused(change, message, config):
    with pytest.raises(ConfigError, match=message):
        check_sweep(replace(config, **change))


def test_sweep_without_a_search_space_is_told_how_to_choose_one(capsys, tmp_path):
    folder = tmp_path / "sweep"
    assert main(["tune", "n_trials=8", f"run_dir={folder}"]) == 2
    assert "posegen tune tune=asha" in capsys.readouterr().err
    assert not folder.exists()


def test_missing_optuna_is_told_with_the_line_that_installs_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder = tmp_path / "sweep"
    assert main(["tune", "tune=optuna", f"run_dir={folder}"]) == 2
    assert "pip install 'posegen-ray[tune]'" in capsys.readouterr().err
    assert not folder.exists()  # found before anything is made


def test_trial_differs_from_the_run_by_its_point_alone(config):
    config = with_settings(config, {"feedback.diversity": 0.123456})
    point = default_point(config, 7)
    # but for the estimator that it attacks, which no trial fine-tunes first
    training = replace(config.training, attack="pretrained")
    plain = replace(config, tune=TuneConfig(), training=training)
    assert trial_config(config, point) == plain
    point |= {"feedback.weight": 1.23456, "generator.camera.roll": 12.0}
    changed = trial_config(config, point)
    assert changed.feedback.weight == 1.235  # short enough to be pasted
    assert changed.feedback.diversity == 0.123456  # the default is left as it is
    assert changed.generator.camera.roll == 12.0
    expected = {"feedback.weight": 1.235, "generator.camera.roll": 12.0}
    assert changed == with_settings(plain, expected)


def test_rounding_stays_inside_the_bounds():
    parameter = ParameterConfig("feedback.weight", "uniform", 0.10004, 0.99996)
    assert parameter.rounded(0.100041) == 0.10004
    assert parameter.rounded(0.99995) == 0.99996


@dataclass
class Loop:
    """In place of the training loop."""

    arguments: tuple
    error: str = ""

    def run(self, context):
        if self.error:
            raise TrainingError(self.error)


def test_trial_trains_with_its_settings_and_seed(monkeypatch, tmp_path, config):
    loops = []

    def make(*arguments):
        loops.append(Loop(arguments, error="10 steps were not finite" if loops else ""))
        return loops[-1]

    monkeypatch.setattr(tuning, "AdversarialTraining", make)
    trial = Trial(config, (), None, str(tmp_path))
    point = {**default_point(config, 5), "feedback.weight": 2.0}
    assert trial.run("trial_1", point, None, LocalContext(tmp_path)) == ""
    used, seed, tensorboard = (loops[0].arguments[i] for i in (0, 5, 6))
    assert used == trial_config(config, point)
    assert seed == point[SEED] == 5
    assert tensorboard == str(tmp_path / "tensorboard" / "trial_1")
    assert trial.run("trial_1", point, None, LocalContext(tmp_path)) == "10 steps were not finite"


def test_trials_are_judged_on_validation_people_and_clips_and_confirmed_on_other_images():
    config = compose_config(["experiment=tiny", "experiment.validation_images=3"])
    confirming = confirmation_images(config)
    shoot = studio.TestShoot(config, "validation")
    watched = shoot(shoot.seeds(3))
    assert len(confirming) >= 2
    for samples in (watched, confirming):
        assert set(samples.subjects) <= {person.name for person in people("val")}
        assert {clip.split(":")[0] for clip in samples.clips} <= set(config.motion.validation)
    assert not set(watched.seeds.tolist()) & set(confirming.seeds.tolist())
    tested = {
        seed
        for name in ("source", "wild", "ood")
        for seed in studio.TestShoot(config, name).seeds(99)
    }
    assert not tested & {*watched.seeds.tolist(), *confirming.seeds.tolist()}
