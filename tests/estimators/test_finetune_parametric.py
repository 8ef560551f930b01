"""SPIN and HybrIK, small, learn from labels of SMPL bodies, offline and online."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_finetune import make_samples
from test_hybrik import small_hrnet, small_res
from test_spin import small_spin
from torch import Tensor

from posegen_ray.body.camera import orbit, project, to_camera
from posegen_ray.body.rotation import from_axis_angle, geodesic_angle
from posegen_ray.body.skeleton import JOINT, LIMB_JOINTS
from posegen_ray.body.smpl import load_smpl_body
from posegen_ray.compose import compose_config
from posegen_ray.config import FineTuneStageConfig, LossConfig
from posegen_ray.estimators.augment import labels_of
from posegen_ray.estimators.base import PoseEstimator, predict
from posegen_ray.estimators.crop import estimator_crop
from posegen_ray.estimators.features import image_features, predict_from
from posegen_ray.estimators.finetune import finetune
from posegen_ray.estimators.online import FineTuner
from posegen_ray.records import Samples


def smpl_samples(folder, estimator: PoseEstimator, count: int = 4) -> Samples:
    """Labels of posed SMPL bodies in the estimator's own crop; the pictures are noise."""
    stream = torch.Generator().manual_seed(0)
    body = load_smpl_body(folder)
    rotations = from_axis_angle(0.3 * torch.randn(count, 24, 3, generator=stream))
    shape = torch.randn(count, 10, generator=stream)
    posed = body(rotations, shape).joints
    hips = posed[:, [JOINT["left_hip"], JOINT["right_hip"]]].mean(1)
    ones = torch.ones(count)
    frame = orbit(
        hips, torch.arange(count) * 0.5, 0.1 * ones, 0 * ones, 5 * ones, 600 * ones,
        torch.full((count, 2), 256.0), 512, 512,
    )  # fmt: skip
    crop = estimator_crop(frame, posed, estimator.crop)
    limbs = posed[:, list(LIMB_JOINTS)]
    size = estimator.input_size
    return replace(
        make_samples(count, size),
        images=torch.randint(0, 256, (count, 3, size, size), generator=stream, dtype=torch.uint8),
        joints=to_camera(crop, limbs) - to_camera(crop, hips[:, None]),
        joints_2d=project(crop, limbs),
        rotations=rotations,
        shape=shape,
        camera=crop,
    )


def make(kind: str, folder, arrays) -> PoseEstimator:
    if kind == "spin":
        return small_spin(folder)
    return {"hybrik_res34": small_res, "hybrik_w48": small_hrnet}[kind](arrays, flip_test=False)


def turn(estimator: PoseEstimator, samples: Samples) -> float:
    """Mean angle between estimated and true rotations, radians."""
    with torch.no_grad():
        rotations: Tensor = estimator(samples.images.float() / 255).rotations
    return float(geodesic_angle(rotations, labels_of(samples).rotations).mean())


@pytest.mark.parametrize("kind", ["spin", "hybrik_res34", "hybrik_w48"])
def test_the_recipe_of_each_estimator_trains_it(smpl, kind):
    folder, arrays = smpl
    estimator = make(kind, folder, arrays)
    samples = smpl_samples(folder, estimator)
    recipe = compose_config([f"estimator={kind}"]).finetune
    assert recipe.losses.rotations > 0
    steps = 4 if kind == "hybrik_w48" else 12
    rate = 1e-4 if kind == "hybrik_w48" else 3e-3
    stages = [FineTuneStageConfig("late", steps, 4, rate, 0), FineTuneStageConfig("early", 1, 4)]
    recipe = replace(recipe, stages=stages, interpolation=1.0, mirrored=False)
    before = {name: value.clone() for name, value in estimator.state_dict().items()}
    losses = []
    tuned = finetune(
        estimator, samples, recipe, 0, lambda p: losses.append(p.loss), source=2, body="smpl"
    )
    assert all(torch.equal(before[name], value) for name, value in estimator.state_dict().items())
    losses = [loss for loss in losses if loss == loss]
    assert losses[-1] < losses[0]
    error = [(predict(e, samples.images) - samples.joints).abs().mean() for e in (estimator, tuned)]
    assert error[1] < error[0]
    statistics = [name for name in before if "running" in name]
    assert statistics
    assert all(torch.equal(before[name], tuned.state_dict()[name]) for name in statistics)


def test_rotations_alone_can_be_learned_without_smpl(smpl):
    estimator = small_spin()
    samples = smpl_samples(smpl[0], estimator)
    recipe = compose_config(["estimator=spin"]).finetune
    losses = LossConfig(joints=1.0, rotations=1.0)  # there are no joints to compare
    stages = [FineTuneStageConfig("late", 40, 4, 3e-3, 0)]
    recipe = replace(recipe, losses=losses, stages=stages, interpolation=1.0, mirrored=False)
    tuned = finetune(estimator, samples, recipe, 0)
    assert turn(tuned, samples) < 0.7 * turn(estimator, samples)


@pytest.mark.parametrize("kind", ["spin", "hybrik_res34"])
def test_online_steps_resume_as_uninterrupted(smpl, kind):
    folder, arrays = smpl
    recipe = compose_config([f"estimator={kind}"]).finetune
    samples = smpl_samples(folder, make(kind, folder, arrays), 2)
    straight = FineTuner(make(kind, folder, arrays), recipe, body="smpl")
    losses = [straight.step(samples) for _ in range(3)]
    first = FineTuner(make(kind, folder, arrays), recipe, body="smpl")
    first.step(samples)
    second = FineTuner(make(kind, folder, arrays), recipe, body="smpl")
    second.load_state_dict(first.state_dict())
    assert [second.step(samples) for _ in range(2)] == losses[1:]
    assert losses[2] < losses[0]
    assert not second.estimator.training


@pytest.mark.parametrize("flip_test", [True, False])
def test_what_was_fine_tuned_is_tested_as_its_start_is(smpl, flip_test):
    """Features of one look are not enough for an estimator that looks twice."""
    estimator = small_res(smpl[1], flip_test).eval()
    images = smpl_samples(smpl[0], estimator).images
    settings = compose_config(["finetune.stages=[{cut: late}]"]).finetune
    features = image_features(estimator, images, settings, 2)
    assert (features is None) == flip_test
    if features is not None:
        answers = predict_from(estimator, features, "late", 2)
        torch.testing.assert_close(answers, predict(estimator, images, 2), atol=1e-5, rtol=1e-4)
