"""Estimators of which only the answers are known."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from least import LEAST

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.cli import main
from posegen_ray.compose import compose_config
from posegen_ray.config import FineTuneConfig
from posegen_ray.errors import ConfigError
from posegen_ray.estimators import BlackBox, build_estimator, load_estimator, predict
from posegen_ray.estimators.blackbox import litert_blazepose
from posegen_ray.estimators.crop import CropSpec
from posegen_ray.estimators.finetune import finetune

HERE = "estimator.target=test_blackbox:middle"
FOLDER = Path(__file__).parent


def middle(images: torch.Tensor) -> np.ndarray:
    """Some joints, from the brightness."""
    return images.mean((1, 2, 3)).numpy()[:, None, None] * np.ones((1, 12, 3))


def black_box(*overrides: str):
    return compose_config(["estimator=black_box", *overrides]).estimator


def test_a_function_of_arrays_becomes_an_estimator():
    box = BlackBox(middle, LIMB_JOINT_NAMES, CropSpec(size=8), "mean")
    images = torch.rand(3, 3, 8, 8, requires_grad=True)
    joints = box(images).joints
    assert joints.dtype == torch.float32
    assert not joints.requires_grad
    assert torch.allclose(joints[:, 4, 1], images.mean((1, 2, 3)))
    assert (box.differentiable, load_estimator("blazepose").differentiable) == (False, True)
    assert predict(box, torch.zeros(5, 3, 8, 8, dtype=torch.uint8), batch=2).shape == (5, 12, 3)


def test_answers_of_another_shape_are_refused():
    box = BlackBox(lambda images: images, LIMB_JOINT_NAMES, CropSpec(size=8))
    with pytest.raises(ValueError, match=r"answers \(2, 3, 8, 8\).*12 joint_names.*\(2, 12, 3\)"):
        box(torch.zeros(2, 3, 8, 8))


def test_it_cannot_be_fine_tuned_here():
    from test_finetune import make_samples

    box = BlackBox(middle, LIMB_JOINT_NAMES, CropSpec(size=16))
    with pytest.raises(ConfigError, match="only its answers are known"):
        finetune(box, make_samples(4), FineTuneConfig(), 0)


def test_blazepose_by_another_runtime_answers_the_same():
    images = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
    settings = black_box("estimator.target=posegen_ray.estimators.blackbox:litert_blazepose")
    boxes = [
        build_estimator(settings),
        BlackBox(litert_blazepose, LIMB_JOINT_NAMES, CropSpec(256)),
    ]
    expected = predict(load_estimator("blazepose"), images)
    for box in boxes:
        assert torch.allclose(predict(box, images), expected, atol=1e-4)


def test_the_configuration_names_function_joints_and_crop():
    names = ("pelvis", *LIMB_JOINT_NAMES)
    box = build_estimator(
        black_box(
            HERE,
            f"estimator.joint_names=[{','.join(names)}]",
            "estimator.input_size=64",
            "estimator.crop=aligned",
            "estimator.crop_scale=2.5",
        )
    )
    assert (box.name, box.joint_names) == ("test_blackbox:middle", names)
    assert (box.crop, box.input_size) == (CropSpec(64, "aligned", 2.5), 64)
    assert build_estimator(black_box(HERE)).joint_names == LIMB_JOINT_NAMES


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "not of the form module:name.*my_network:joints_of"),
        ("middle", "not of the form module:name"),
        ("no_such_module:middle", "No module named 'no_such_module'.*PYTHONPATH"),
        ("test_blackbox:no_such", "no attribute 'no_such'"),
        ("test_blackbox:HERE", "is a str, not a function"),
    ],
)
def test_a_target_that_is_none_is_named(target, message):
    with pytest.raises(ConfigError, match=message):
        build_estimator(black_box(f"estimator.target={target}"))


@pytest.mark.parametrize(
    ("command", "overrides", "message"),
    [
        ("demo", [HERE], "cannot be fine-tuned here.*posegen generate run=…"),
        ("train", ["estimator.target=nothing"], "not of the form module:name"),
        ("train", [HERE, "estimator.joint_names=[pelvis]"], "joint_names lacks left_shoulder"),
        ("train", [HERE, "training.estimator_steps=3"], "estimator_steps=3.*cannot be updated"),
        ("train", [HERE, "estimator.crop=round"], "crop='round'"),
        (
            "experiment",
            ["experiment=paper", "estimators=[black_box]", "datasets=[3dpw]", HERE],
            "cannot be fine-tuned here",
        ),
    ],
)
def test_what_a_black_box_cannot_do_is_refused_at_once(
    command, overrides, message, capsys, tmp_path
):
    run = tmp_path / "run"
    assert main([command, "estimator=black_box", *overrides, f"run_dir={run}"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not run.exists()


@pytest.mark.parametrize("runtime", ["inprocess", pytest.param("laptop", marks=pytest.mark.slow)])
def test_a_black_box_is_searched_and_the_images_are_written(runtime, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{FOLDER}:{FOLDER.parent}", prepend=":")
    settings = [HERE, "estimator.input_size=64", *LEAST, f"runtime={runtime}"]
    run, out = tmp_path / "run", tmp_path / "set"
    assert main(["train", "estimator=black_box", *settings, f"run_dir={run}"]) == 0
    assert main(["generate", f"run={run}", "n=5", f"out={out}", f"runtime={runtime}"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["images"] == 5
    assert manifest["image"]["height"] == 64
    assert manifest["config"]["estimator"]["target"] == "test_blackbox:middle"


@pytest.mark.slow
def test_a_black_box_is_measured_on_the_test_images(tmp_path):
    run = tmp_path / "run"
    settings = ["estimator=black_box", HERE, "estimator.input_size=64", "runtime=inprocess"]
    arms = [*LEAST, "experiment.arms=[baseline]", f"run_dir={run}"]
    assert main(["demo", *settings, *arms]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["estimator"] == "test_blackbox:middle"
    assert np.isfinite(summary["arms"]["baseline"]["ood"]["mpjpe_mm"]["mean"])
    assert "test_blackbox:middle" in (run / "report.html").read_text()
