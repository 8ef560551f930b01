"""Controls and variants: what each arm's images are made of, in a whole comparison on next to
nothing."""

import itertools
from pathlib import Path

import pandas as pd
import pytest
import torch

from posegen_ray.arms import fine_tuned_arms, rendered_for_feedback, trained_arms
from posegen_ray.checkpoint import load_checkpoint
from posegen_ray.cli import main
from posegen_ray.compose import change_config, compose_config
from posegen_ray.config import ExperimentConfig
from posegen_ray.errors import ConfigError
from posegen_ray.evaluation.store import load_evaluation

ARMS = (
    "random_double",
    "random_more",
    "real_poses",
    "hard_mined",
    "no_feedback",
    "posegen",
    "level",
    "mixed",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("arms") / "run"
    overrides = [
        "experiment=tiny",
        "runtime=inprocess",
        f"run_dir={folder}",
        f"experiment.arms=[baseline,{','.join(ARMS)}]",
        "experiment.variants={level: ['generator.camera.elevation_high=20',"
        "'training.attack=source', 'feedback.reducible=0.5'],"
        "mixed: ['training.attack=random', 'generator.share=0.5', 'feedback.band_of=prior',"
        "'validity.unambiguous=true']}",
        "generator.camera.elevation_low=-5",
        "experiment.test_view_images=4",
        "experiment.test_motion_images=4",
    ]
    assert main(["experiment", *overrides]) == 0
    return folder


def drawn(folder: Path, arm: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "samples" / f"{arm}-0.parquet")


def test_arms_have_as_many_images_of_the_kind_that_they_are_named_for(finished):
    feedback = rendered_for_feedback(compose_config(["experiment=tiny"]))
    assert feedback == 2 * 2 * 4
    workers = ["experiment=tiny", "runtime.train_workers=3", "training.estimator_batch_size=6"]
    assert rendered_for_feedback(compose_config(workers)) == 3 * feedback
    workers[1:1] = ["runtime=inprocess"]
    assert rendered_for_feedback(compose_config(workers)) == feedback
    for arm in ARMS:
        more = {"random_more": feedback, "random_double": 8}.get(arm, 0)
        assert len(drawn(finished, arm)) == 8 + more, arm
    assert list(drawn(finished, "mixed")["clip"] == "generated") == [True] * 4 + [False] * 4
    assert set(drawn(finished, "mixed_random")["seed"]) < set(drawn(finished, "mixed")["seed"])
    for arm in ("no_feedback", "posegen", "level"):
        assert set(drawn(finished, arm)["clip"]) == {"generated"}
    for arm in ("random_more", "real_poses", "hard_mined"):
        assert "generated" not in set(drawn(finished, arm)["clip"])


def test_a_variant_draws_with_its_own_settings_and_the_others_do_not(finished):
    assert drawn(finished, "level")["elevation"].max() < 0.36  # 20 degrees
    assert drawn(finished, "posegen")["elevation"].max() > 0.36


def test_who_is_attacked_and_who_is_the_reference_is_fine_tuned_once(finished):
    weights = [
        load_checkpoint(finished / "checkpoint" / f"{name}-0")["weights"]
        for name in ("adapted", "reference", "mixed_random.attacked", "posegen")
    ]
    for first, second in itertools.combinations(weights, 2):
        assert any(not torch.equal(first[name], second[name]) for name in first)
    assert len(drawn(finished, "reference_half")) == 8
    seeds = [set(drawn(finished, name)["seed"]) for name in ("reference_half", "random_more")]
    assert not seeds[0] & seeds[1]


def test_without_feedback_nothing_is_rendered_for_it(finished):
    state = {
        name: load_checkpoint(finished / "checkpoint" / f"{name}-0")
        for name in ("generator", "no_feedback.generator", "level.generator")
    }
    assert state["no_feedback.generator"]["rendered"] == 0
    assert state["generator"]["rendered"] > 0
    weights = [part["generators"][-1] for part in state.values()]
    assert not torch.equal(weights[0]["pose_head.weight"], weights[2]["pose_head.weight"])


def test_every_arm_and_set_is_in_the_table(finished):
    table = pd.read_csv(finished / "comparison.csv")
    assert list(dict.fromkeys(table["arm"])) == ["baseline", *ARMS]
    assert set(table["set"]) == {"source", "wild", "view", "motion", "ood", "unseen"}
    assert load_evaluation(finished).arms == ("baseline", *ARMS)
    assert "Level" in (finished / "report.html").read_text()


def test_the_images_of_every_arm_are_measured(finished):
    poses = pd.read_csv(finished / "pose_sets.csv")
    assert {f"{arm}-0" for arm in ARMS} <= set(poses["name"])
    known = poses[poses["reference"] == "source"].set_index("name")["nearest_median_mm"]
    assert known["real_poses-0"] == pytest.approx(0, abs=1e-2)
    assert (known[["posegen-0", "hard_mined-0"]] > 1).all()
    found = pd.read_csv(finished / "failure_finding.csv").set_index("arm")
    assert set(found.index) == set(ARMS)
    assert (found["error_median_mm"] > 0).all()
    assert found["generated_median_mm"].isna()["random_more"]
    assert found.loc["posegen", "generated_median_mm"] == found.loc["posegen", "error_median_mm"]
    assert found.loc["mixed", "generated_median_mm"] > 0
    assert found.loc["mixed", "ambiguous"] == 0  # asked for
    assert found["ambiguous"].drop("mixed").max() > 0
    assert found["coverage"].dropna().between(0, 1).all()


def test_the_shipped_comparisons_compose():
    ood = compose_config(["experiment=ood"])
    trained = [arm.name for arm in trained_arms(fine_tuned_arms(ood))]
    assert trained == ["no_feedback", "posegen", "all_learned"]
    full = compose_config(["experiment=full"])
    assert full.experiment.arms == ood.experiment.arms
    assert full.experiment.images_per_arm > 4 * ood.experiment.images_per_arm
    counts = [getattr(ood.experiment, f"test_{n}_images") for n in ("source", "wild", "view")]
    assert min(counts) > 0
    ablation = compose_config(["experiment=ablation"])
    arms = {arm.name: arm.config for arm in fine_tuned_arms(ablation)}
    for name in ablation.experiment.variants:
        assert arms[name] != ablation, name
    assert arms["camera_only"].generator.learns == ["camera", "light"]


def test_a_changed_configuration_is_checked_as_a_composed_one():
    config = compose_config([])
    assert change_config(config, ["subject.names=[ben]"]).subject.names == ["ben"]
    with pytest.raises(ConfigError, match="Unknown setting"):
        change_config(config, ["feedback.wieght=0"])
    with pytest.raises(ConfigError, match="band"):
        change_config(config, ["feedback.band_low=-1"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"variants": {"quick": ["finetune.interpolation=1"]}}, "all arms share"),
        ({"variants": {"random": []}}, "cannot name an arm"),
        ({"arms": ["baseline", "unheard"]}, "unknown arms"),
        ({"arms": ["baseline", "random", "random"]}, "twice"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        ExperimentConfig(**settings)
