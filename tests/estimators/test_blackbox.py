"""Estimators of which only the answers are known."""

import numpy as np
import pytest
import torch

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.config import FineTuneConfig
from posegen_ray.errors import ConfigError
from posegen_ray.estimators import BlackBox, load_estimator, predict
from posegen_ray.estimators.blackbox import litert_blazepose
from posegen_ray.estimators.crop import CropSpec
from posegen_ray.estimators.finetune import finetune


def middle(images: torch.Tensor) -> np.ndarray:
    """Some joints, from the brightness."""
    return images.mean((1, 2, 3)).numpy()[:, None, None] * np.ones((1, 12, 3))


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
    answers = [predict(e, images) for e in (litert_blazepose(), load_estimator("blazepose"))]
    assert torch.allclose(*answers, atol=1e-4)
