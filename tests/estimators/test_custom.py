"""An estimator of the user's own, named on the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from least import LEAST
from torch import Tensor, nn

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.cli import main
from posegen_ray.compose import compose_config
from posegen_ray.errors import CheckpointError, ConfigError
from posegen_ray.estimators import Estimate, PoseEstimator, build_estimator
from posegen_ray.estimators.crop import CropSpec
from posegen_ray.estimators.registry import crop_spec

HERE = "estimator.target=test_custom:Linear"
FOLDER = Path(__file__).parent


class Linear(PoseEstimator):
    """A linear layer on 8 x 8 grey cells: all that a class of one's own must have."""

    joint_names = LIMB_JOINT_NAMES
    crop = CropSpec(size=32, kind="box", scale=1.2)

    def __init__(self, checkpoint: str | Path | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 36)
        nn.init.constant_(self.layer.weight, 0.01)
        nn.init.zeros_(self.layer.bias)
        if checkpoint is not None:
            nn.init.constant_(self.layer.bias, float(Path(checkpoint).read_text()))

    def forward(self, images: Tensor) -> Estimate:
        cells = nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 8)
        return Estimate(self.layer(cells.flatten(1)).unflatten(1, (12, 3)))


class Cropless(PoseEstimator):
    joint_names = LIMB_JOINT_NAMES

    def forward(self, images: Tensor) -> Estimate:
        return Estimate(images.new_zeros(len(images), 12, 3))


class Armless(Linear):
    joint_names = LIMB_JOINT_NAMES[:6]


class Silent(PoseEstimator):
    joint_names = LIMB_JOINT_NAMES
    crop = CropSpec(size=32)


def custom(*overrides: str):
    return compose_config(["estimator=custom", *overrides]).estimator


def test_the_class_is_built_with_its_checkpoint_and_frozen(tmp_path):
    weights = tmp_path / "weights"
    weights.write_text("0.25")
    plain, loaded = (
        build_estimator(custom(HERE, *more)) for more in ([], [f"estimator.checkpoint={weights}"])
    )
    black = torch.zeros(1, 3, 32, 32)
    assert plain(black).joints.abs().max() == 0
    assert loaded(black).joints.unique().tolist() == [0.25]
    assert (plain.name, plain.input_size, plain.training) == ("Linear", 32, False)
    assert not any(parameter.requires_grad for parameter in plain.parameters())
    assert crop_spec(custom(HERE)) == Linear.crop
    with pytest.raises(CheckpointError, match="'none', does not exist"):
        build_estimator(custom(HERE, "estimator.checkpoint=none"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["estimator.target=Linear"], "not of the form module:name.*my_network:MyEstimator"),
        (["estimator.target=no_such:Linear"], "No module named 'no_such'.*PYTHONPATH"),
        (["estimator.target=test_custom:custom"], "not a class.*estimator=black_box"),
        (["estimator.target=test_custom:Cropless"], "which crop.*CropSpec"),
        (["estimator.target=test_custom:Armless"], "lacks left_hip, right_hip"),
        (["estimator.target=test_custom:Silent"], "lacks forward"),
        ([HERE, "finetune.online_cut=late"], "finetune.online_cut=late.*It has image"),
        ([HERE, "finetune.stages=[{cut: early}]"], r"finetune.stages\[0\].cut=early.*has image"),
    ],
)
def test_what_the_class_lacks_is_said_before_anything_starts(overrides, message, capsys, tmp_path):
    run = tmp_path / "run"
    assert main(["demo", "estimator=custom", *overrides, f"run_dir={run}"]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not run.exists()


def test_a_cut_that_an_estimator_lacks_is_a_configuration_error():
    with pytest.raises(ConfigError, match=r"Linear has no cut 'late'.*one of image"):
        build_estimator(custom(HERE)).stem(torch.zeros(1, 3, 32, 32), "late")


@pytest.mark.parametrize("runtime", ["inprocess", pytest.param("laptop", marks=pytest.mark.slow)])
def test_it_is_attacked_fine_tuned_and_compared(runtime, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{FOLDER}:{FOLDER.parent}", prepend=":")
    run = tmp_path / "run"
    settings = [*LEAST, f"runtime={runtime}", f"run_dir={run}"]
    stages = "finetune.stages=[{cut: image, steps: 60, batch_size: 8, learning_rate: 0.02}]"
    assert main(["demo", "estimator=custom", HERE, stages, *settings]) == 0
    table = pd.read_csv(run / "comparison.csv")
    rows = table[(table["set"] == "source") & (table["metric"] == "mpjpe")]
    errors = dict(zip(rows["arm"], rows["mean"], strict=True))
    assert errors["source_adapted"] < 0.9 * errors["baseline"]
