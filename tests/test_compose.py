"""Configuration: what is wrong is found while it is composed, and the message says how to fix."""

import pytest

from posegen_ray.compose import change_config, compose_config, dump_config, known_keys, read_config
from posegen_ray.config import KEYPOINTS, PUBLIC_SETS, ExperimentConfig, RunConfig
from posegen_ray.errors import ConfigError
from posegen_ray.experiment import check_run


def test_defaults_compose_and_survive_a_round_trip(tmp_path):
    config = compose_config([])
    assert config.run_dir == "runs/demo"
    assert config.runtime.name == "ray"
    dump_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("traning.rounds=3", r"Unknown setting 'traning.rounds'.*Did you mean training.rounds"),
        ("training.round=3", r"Unknown setting 'training.round'.*training.rounds"),
        ("nonsense=1", "Unknown setting 'nonsense'"),
        ("training.rounds=many", r"'many'.*Integer.*training.rounds"),
        ("training.rounds=-1", r"training.rounds=-1 must be at least 1"),
        ("experiment.images_per_arm=-5", "images_per_arm=-5"),
        ("experiment.seeds=[]", "seeds"),
        ("experiment.seeds=[1,1]", "distinct"),
        ("experiment.arms=[posegen]", "baseline"),
        ("experiment.arms=[baseline,magic]", "magic"),
        ("runtime=moonbase", "no configuration runtime/moonbase"),
        ("estimator.variant=huge", "huge"),
        ("training.estimator_batch_size=7", "odd"),
        ("training.accumulate=9", r"accumulate=9 parts .*batch_size=8"),
        ("training.precision=fp8", "Choose one of fp32, bf16"),
        ("training.keep_checkpoints=0", "nothing to go on from"),
        ("training.best_metric=loss", "Choose one of validation_mpjpe_mm, estimator_loss"),
        ("runtime.device=cuda", r"for runtime=inprocess.*num_gpus"),
        ("runtime.device=tpu", "not a device"),
        ("runtime.min_train_workers=2", "min_train_workers=2 is not between 0 and"),
        ("n=0", "n=0"),
        ("generator.mode=dream", "dream"),
        ("motion.ood=[walk]", "walk"),
    ],
)
def test_bad_settings_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        compose_config([override])


def test_batches_must_divide_over_the_workers():
    with pytest.raises(ConfigError, match="3 train worker"):
        compose_config(["runtime.train_workers=3", "training.estimator_batch_size=16"])
    elastic = ["runtime.train_workers=4", "runtime.min_train_workers=2"]
    with pytest.raises(ConfigError, match=r"halves for 3 train worker.*multiple of 24"):
        compose_config([*elastic, "training.estimator_batch_size=16"])
    compose_config([*elastic, "training.estimator_batch_size=24"])


@pytest.mark.parametrize("experiment", ["demo", "small", "tiny"])
def test_every_experiment_composes(experiment):
    config = compose_config([f"experiment={experiment}"])
    assert isinstance(config, RunConfig)
    assert config.experiment.name == experiment


def test_config_of_a_run_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="not the configuration of a run"):
        read_config(tmp_path / "config.yaml")


def test_known_keys_reach_into_every_section():
    assert {"seed", "training.rounds", "runtime.render.replicas"} <= set(known_keys())


def test_dataclass_rules_hold_without_yaml():
    with pytest.raises(ConfigError, match="joint_map_images"):
        ExperimentConfig(joint_map_images=0)


def test_entries_of_a_dict_may_be_new():
    config = compose_config(
        ["experiment=paper", "checkpoints.spin=/a/spin.pt", "trained_on_3dpw.hybrik_w48=true"]
    )
    assert config.checkpoints == {"spin": "/a/spin.pt"}
    assert config.trained_on_3dpw == {"spin": False, "hybrik_w48": True}
    with pytest.raises(ConfigError, match="trained_on_3dpw"):
        compose_config(["trained_on_3dpw.spin=perhaps"])


@pytest.mark.parametrize(
    "override",
    ["feedback.joint_weights={left_wrist: 3, right_hip: 0}", "feedback.joint_weights.left_wrist=3"],
)
def test_joints_are_weighed_from_the_command_line_and_in_a_variant(override):
    config = compose_config([override])
    assert config.feedback.joint_weights["left_wrist"] == 3
    assert change_config(compose_config(), [override]) == config
    check_run(config)
    wrong = compose_config(["feedback.joint_weights={nose: 2}"])
    with pytest.raises(ConfigError, match=r"joint_weights: 'nose'.*left_wrist"):
        check_run(wrong)


def test_an_estimator_overrules_the_budget_where_it_must():
    for experiment in ("tiny", "demo"):
        config = compose_config(["estimator=black_box", f"experiment={experiment}"])
        assert config.training.estimator_steps == 0
    assert compose_config(["experiment=demo"]).training.estimator_steps == 4


def test_every_public_set_has_its_settings():
    for name in (*PUBLIC_SETS, KEYPOINTS):
        assert compose_config([f"dataset={name}"]).dataset.name == name
    assert compose_config([]).dataset.name == ""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.log_every=0"], "training.log_every=0 must be at least 1"),
        (["training.max_skipped_steps=0"], "training.max_skipped_steps=0 must be at least 1"),
        (["experiment=tiny", "generator.share=0.95"], "share=0.95 .*own 8 images.* one part empty"),
        (
            ["finetune.source_share=0.5", "training.attack=source"],
            "source_share=0.5 cannot be had.*source images alone",
        ),
        (["experiment=ood", "subject=makehuman"], "must not be trained on.*test_person_images=0"),
        (["experiment=ood", "body=smpl", "body.smpl_folder=/x"], "wear Anny's body"),
        (["pretrain.finetune.source_share=0.5"], "pre-training has source images only"),
        (["experiment.variants={generator: []}"], "'generator' cannot name an arm"),
        (["experiment.variants={posegen_random: []}"], "'posegen_random' cannot name an arm"),
        (["experiment.variants={reference_half: []}"], "'reference_half' cannot name an arm"),
    ],
)
def test_what_would_fail_later_is_refused_at_once(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose_config(overrides)
