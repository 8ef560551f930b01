"""BlazePose in torch against the LiteRT runtime, its gradient, its cuts and its joint map."""

import numpy as np
import pytest
import torch

from posegen_ray import assets
from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.config import EstimatorConfig
from posegen_ray.errors import ConfigError, DataError
from posegen_ray.estimators import load_estimator, predict
from posegen_ray.estimators.base import Estimate, centred, limb_joints
from posegen_ray.estimators.blazepose import (
    MIRRORED_LANDMARKS,
    OBVIOUS_LANDMARKS,
    BlazePose,
    fit_joint_map,
    obvious_joint_map,
)


@pytest.fixture(scope="module")
def estimator() -> BlazePose:
    return load_estimator("blazepose")


def pictures() -> torch.Tensor:  # [3, 3, 256, 256]
    """A photograph of a person, smooth noise, and plain noise."""
    skimage_data = pytest.importorskip("skimage.data")
    photo = torch.from_numpy(skimage_data.astronaut()).permute(2, 0, 1)[None].float() / 255
    photo = torch.nn.functional.interpolate(photo, (256, 256), mode="area")
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, 256, 256, generator=generator)
    smooth = torch.nn.functional.interpolate(noise[..., :9, :9], (256, 256), mode="bicubic")
    return torch.cat([photo, smooth.clamp(0, 1), noise])


@pytest.mark.parametrize("variant", ["full", "lite", "heavy"])
def test_agrees_with_the_litert_runtime(variant):
    interpreter_module = pytest.importorskip("ai_edge_litert.interpreter")
    name = f"blazepose-{variant}"
    if variant != "full" and {s.asset.name: s.state for s in assets.status()}[name] != "ready":
        pytest.skip(f"{name} is optional; `posegen assets fetch {name}` brings it")
    model = BlazePose(assets.fetch(name), variant)
    images = pictures()
    runtime = interpreter_module.Interpreter(str(assets.fetch(name)), num_threads=1)
    runtime.allocate_tensors()
    outputs = runtime.get_output_details()
    with torch.no_grad():
        landmarks, presence = model.landmarks(images), model.presence(images)
    for row, image in enumerate(images):
        runtime.set_tensor(
            runtime.get_input_details()[0]["index"], image.permute(1, 2, 0)[None].numpy()
        )
        runtime.invoke()
        reference = runtime.get_tensor(outputs[4]["index"])[0, :99].reshape(33, 3)
        assert np.abs(landmarks[row].numpy() - reference).max() < 1e-4
        assert abs(float(presence[row]) - runtime.get_tensor(outputs[1]["index"]).item()) < 1e-4
    assert presence[0] > 0.5 > presence[2]


def test_gradient_to_the_image_agrees_with_finite_differences(estimator):
    image = pictures()[:1].double()
    twin = load_estimator("blazepose").double()
    generator = torch.Generator().manual_seed(1)
    image.requires_grad_()
    weight = torch.randn(12, 3, generator=generator).double()
    (gradient,) = torch.autograd.grad((twin(image).joints * weight).sum(), image)
    for _ in range(4):
        direction = torch.randn(image.shape, generator=generator).double()
        with torch.no_grad():
            ahead, behind = (
                (twin(image + step * direction).joints * weight).sum() for step in (1e-9, -1e-9)
            )
        expected = (gradient * direction).sum()
        assert abs((ahead - behind) / 2e-9 - expected) < 1e-3 * abs(expected) + 1e-6


def test_split_at_any_cut_it_answers_the_same(estimator):
    images = pictures()
    with torch.no_grad():
        whole = estimator(images).joints
        for cut in estimator.cuts:
            split = estimator.head(estimator.stem(images, cut), cut).joints
            assert torch.equal(split, whole)
    shapes = [tuple(estimator.stem(images[:1], cut).shape[1:]) for cut in ("early", "late")]
    assert shapes == [(88, 16, 16), (144, 8, 8)]
    with pytest.raises(ValueError, match="no cut 'middle'"):
        estimator.stem(images, "middle")


def test_features_survive_half_precision(estimator):
    images = pictures()
    with torch.no_grad():
        whole = estimator(images).joints
        for cut in ("early", "late"):
            kept = estimator.stem(images, cut).half().float()
            assert (estimator.head(kept, cut).joints - whole).abs().max() < 2e-3


def test_tail_parameters_shrink_towards_the_end_and_presence_is_not_among_them(estimator):
    counts = [sum(p.numel() for p in estimator.tail_parameters(cut)) for cut in estimator.cuts]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] < sum(p.numel() for p in estimator.parameters())
    assert not any(p.requires_grad for p in estimator.parameters())


def test_answers_are_hip_centred_limb_joints(estimator):
    estimate = estimator(pictures())
    joints = limb_joints(estimate, estimator.joint_names)
    assert joints.shape == (3, 12, 3)
    assert joints[:, [6, 7]].mean(1).abs().max() < 1e-6


def test_predict_is_forward_in_batches(estimator):
    images = (pictures() * 255).byte()
    with torch.no_grad():
        expected = estimator(images.float() / 255).joints
    assert torch.allclose(predict(estimator, images, batch=2), expected, atol=1e-5)
    assert predict(estimator, images[:0]).shape == (0, 12, 3)


def test_limb_joints_picks_by_name():
    names = ("nose", *reversed(LIMB_JOINT_NAMES))
    joints = torch.randn(2, 13, 3)
    expected = centred(joints[:, 1:].flip(1))
    assert torch.equal(limb_joints(Estimate(joints), names), expected)
    with pytest.raises(ValueError, match="left_shoulder"):
        limb_joints(Estimate(joints[:, :1]), names[:1])
    with pytest.raises(ValueError, match="lacks the joints"):
        limb_joints(Estimate(None), LIMB_JOINT_NAMES)


def true_map() -> torch.Tensor:
    """Each joint lies between its landmark and the same side's next one."""
    start = obvious_joint_map()
    following = torch.tensor([13, 14, 15, 16, 17, 18, 25, 26, 27, 28, 29, 30])
    return 0.8 * start + 0.2 * torch.eye(33)[following]


def test_the_joint_map_is_recovered_in_spite_of_outliers():
    generator = torch.Generator().manual_seed(0)
    landmarks = torch.randn(400, 33, 3, generator=generator) * 0.3
    joints = true_map() @ landmarks
    joints[:40] = torch.randn(40, 12, 3, generator=generator)  # failed images
    fitted = fit_joint_map(landmarks, joints, ridge=1e-3)
    error = (centred(fitted @ landmarks) - centred(joints))[40:].norm(dim=-1).mean()
    start = (centred(obvious_joint_map() @ landmarks) - centred(joints))[40:].norm(dim=-1).mean()
    assert error < 0.1 * start


def test_the_joint_map_is_symmetric_and_stays_obvious_under_a_strong_ridge():
    generator = torch.Generator().manual_seed(0)
    landmarks = torch.randn(50, 33, 3, generator=generator)
    joints = true_map() @ landmarks
    fitted = fit_joint_map(landmarks, joints)
    swap = [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]
    assert torch.allclose(fitted[swap][:, list(MIRRORED_LANDMARKS)], fitted, atol=1e-5)
    assert torch.allclose(fit_joint_map(landmarks, joints, 1e6), obvious_joint_map(), atol=1e-3)
    assert sorted(MIRRORED_LANDMARKS) == list(range(33))
    for left, right in zip(OBVIOUS_LANDMARKS[::2], OBVIOUS_LANDMARKS[1::2], strict=True):
        assert MIRRORED_LANDMARKS[left] == right


def test_the_joint_map_is_saved_with_the_weights(estimator):
    twin = load_estimator("blazepose")
    twin.set_joint_map(true_map())
    other = load_estimator("blazepose")
    other.load_state_dict(twin.state_dict())
    assert torch.equal(other.joint_map, true_map())


@pytest.mark.parametrize("share", [0, 0.0001, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(share, tmp_path):
    data = assets.fetch("blazepose-full").read_bytes()
    path = tmp_path / "broken.tflite"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=r"broken\.tflite.*(damaged|truncated)"):
        BlazePose(path)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        BlazePose(tmp_path / "none.tflite")


def test_unknown_estimators_are_refused():
    with pytest.raises(ConfigError, match=r"estimator\.kind='openpose'.*blazepose"):
        load_estimator("openpose")
    with pytest.raises(ConfigError, match=r"estimator\.variant='huge'"):
        EstimatorConfig(variant="huge")
