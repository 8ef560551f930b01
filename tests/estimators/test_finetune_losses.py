"""Losses of fine-tuning, and BatchNorm's statistics in it."""

from dataclasses import replace

import pytest
import torch
from test_augment import scene_samples
from test_finetune import CONFIG, make_samples
from torch import Tensor, nn

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.config import FineTuneStageConfig, LossConfig
from posegen_ray.errors import ConfigError
from posegen_ray.estimators.augment import labels_of
from posegen_ray.estimators.base import Estimate, PoseEstimator
from posegen_ray.estimators.crop import CropSpec
from posegen_ray.estimators.finetune import finetune, interpolate
from posegen_ray.estimators.online import FineTuner
from posegen_ray.estimators.supervision import estimate_loss


class Parametric(PoseEstimator):
    """Answers whatever its parameters are; with a BatchNorm and a dropout on the way."""

    name = "parametric"
    joint_names = LIMB_JOINT_NAMES
    crop = CropSpec(size=16)
    cuts = ("image", "late")

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout()
        self.joints = nn.Parameter(torch.zeros(12, 3))
        self.places = nn.Parameter(torch.full((12, 2), 8.0))
        self.rotations = nn.Parameter(torch.eye(3).repeat(24, 1, 1))
        self.shape = nn.Parameter(torch.zeros(2))
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> Estimate:
        assert not self.drop.training
        used = 0.01 * self.drop(self.norm(images.mean((2, 3)))).sum(1)

        def answer(value: Tensor) -> Tensor:
            return value + used.view(-1, *[1] * value.ndim)

        return Estimate(
            answer(self.joints),
            answer(self.rotations),
            answer(self.shape),
            joints_2d=answer(self.places),
        )


def tuned_on(body: str = "smpl", update: bool = False, **weights: float) -> Parametric:
    samples, _ = scene_samples(8)
    losses = LossConfig(**{"joints": 0.0, **weights})
    stages = [FineTuneStageConfig("image", 10, 8, 1e-2)]
    config = replace(CONFIG, stages=stages, losses=losses, update_batch_norm=update)
    samples = replace(samples, shape=torch.ones(8, 2))
    tuned = finetune(Parametric(), samples, config, 0, body=body)
    assert not any(module.training for module in tuned.modules())
    return tuned


@pytest.mark.parametrize(
    ("loss", "moves"),
    [
        ("joints", "joints"),
        ("joints_2d", "places"),
        ("rotations", "rotations"),
        ("shape", "shape"),
    ],
)
def test_each_loss_trains_what_it_is_about(loss, moves):
    tuned, start = tuned_on(**{loss: 1.0}), Parametric()
    changed = [
        name
        for name in ("joints", "places", "rotations", "shape")
        if not torch.equal(getattr(tuned, name), getattr(start, name))
    ]
    assert changed == [moves]


def test_losses_have_the_stated_units():
    samples, _ = scene_samples(4)
    labels = labels_of(samples)
    estimate = Estimate(
        labels.joints + torch.tensor([0.0, 0.0, 0.3]) * torch.tensor([1, -1] * 6)[:, None],
        labels.rotations + 0.5,
        labels.shape + 2,
        joints_2d=(labels.joints_2d + 0.5) * 16 + 4,
    )

    def loss(body: str = "smpl", **weights: float) -> float:
        config = LossConfig(**{"joints": 0.0, **weights})
        return float(estimate_loss(Parametric(), estimate, labels, config, body))

    assert loss(joints=1.0) == pytest.approx(0.1, abs=1e-5)
    assert loss(joints_2d=1.0) == pytest.approx(4 / 16, abs=1e-5)
    assert loss(rotations=1.0) == pytest.approx(0.25, abs=1e-5)
    assert loss(shape=1.0) == pytest.approx(4.0, abs=1e-5)
    assert loss(rotations=2.0, shape=1.0, body="anny") == pytest.approx(0.5, abs=1e-5)


def test_losses_that_cannot_be_had_are_refused():
    with pytest.raises(ConfigError, match=r"None of the weighted finetune\.losses"):
        tuned_on(body="anny", shape=1.0)


def test_batch_norm_statistics_are_frozen_unless_asked_for():
    start = Parametric().norm.running_mean
    assert torch.equal(tuned_on(joints=1.0).norm.running_mean, start)
    moved = tuned_on(joints=1.0, update=True).norm.running_mean
    assert not torch.equal(moved, start)
    estimator = Parametric()
    tuner = FineTuner(estimator, replace(CONFIG, online_cut="image", update_batch_norm=True))
    tuner.step(make_samples(8))
    assert torch.equal(estimator.norm.running_mean, start)
    assert not any(module.training for module in estimator.modules())


def test_statistics_are_interpolated_with_the_weights():
    start, end = Parametric(), Parametric()
    end.norm.running_mean.fill_(1.0)
    interpolate(start, end, 0.25)
    assert torch.allclose(end.norm.running_mean, torch.full((3,), 0.25))
