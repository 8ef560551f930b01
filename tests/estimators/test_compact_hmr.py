"""The compact HMR: known photographs, the body's own kinematics, finite differences, its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from bodies import capsule_body
from photograph_files import people, write
from PIL import Image

from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.checkpoint import load_checkpoint, save_checkpoint
from posegen_ray.cli import main
from posegen_ray.config import PhotographsConfig
from posegen_ray.errors import CheckpointError
from posegen_ray.estimators import load_estimator
from posegen_ray.estimators.base import EARLY, LATE, WHOLE
from posegen_ray.estimators.compact_hmr import CompactHMR, imagenet_network, load_imagenet


@pytest.fixture(scope="module")
def estimator() -> CompactHMR:
    """With ImageNet weights, and corrections that are large enough to matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = CompactHMR(capsule_body().joint_template)
        for decoder in (made.decpose, made.decsize, made.deccam):
            torch.nn.init.normal_(decoder.weight, std=0.02)
    load_imagenet(made)
    return made.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("file", "classes"),
    [
        ("chelsea.png", {281, 282, 285}),  # tabby, tiger cat, Egyptian cat
        ("coffee.png", {967}),  # espresso
        ("rocket.jpg", {657}),  # missile
    ],
)
def test_the_published_weights_name_what_photographs_show(estimator, file, classes):
    """Scale of the input, padding and the place of every tensor: one wrong, and this fails."""
    picture = Image.open(Path(skimage.__file__).parent / "data" / file).convert("RGB")
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    picture = picture.crop((left, top, left + edge, top + edge)).resize((224, 224), Image.BICUBIC)
    pixels = torch.from_numpy(np.asarray(picture, np.float32) / 255).permute(2, 0, 1)[None]
    rest = imagenet_network().eval()
    with torch.no_grad():
        x = rest.blocks[6](rest.blocks[5](estimator.stem(pixels, LATE)))
        scores = rest.classifier(rest.bn2(rest.conv_head(x)).mean((2, 3)))
    assert int(scores.argmax()) in classes
    assert float(scores.softmax(1).max()) > 0.2


def test_joints_are_those_of_the_body_in_its_rotations(estimator, images):
    body = capsule_body()
    with torch.no_grad():
        estimate = estimator(images)
        posed = body(estimate.rotations, torch.zeros(1, body.num_shape)).joints
    bones = posed - posed[:, :1]
    size = estimate.joints.norm(dim=-1)[:, 1:] / bones.norm(dim=-1)[:, 1:]
    torch.testing.assert_close(size, size[:, :1].expand_as(size))  # one size for all bones
    torch.testing.assert_close(estimate.joints, bones * size[:, :1, None], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(size, torch.ones_like(size), atol=1e-3)


def test_the_picture_of_the_joints_is_a_weak_perspective(estimator, images):
    with torch.no_grad():
        estimate = estimator(images)
    for joints, places, (s, x, y) in zip(
        estimate.joints, estimate.joints_2d, estimate.camera.tolist(), strict=True
    ):
        expected = np.stack([s * (joints[:, 0] + x), s * (joints[:, 1] + y)], 1) * 112 + 112
        np.testing.assert_allclose(places.numpy(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("cut", [WHOLE, EARLY, LATE])
def test_the_part_behind_a_cut_makes_the_same_answer_and_alone_gets_gradients(
    estimator, images, cut
):
    with torch.no_grad():
        features = estimator.stem(images, cut)
        torch.testing.assert_close(
            estimator.head(features, cut).joints, estimator(images).joints, rtol=1e-4, atol=1e-5
        )
    if cut == LATE:
        between = estimator.stem(estimator.stem(images, EARLY), LATE, EARLY)
        torch.testing.assert_close(between, features, rtol=1e-4, atol=1e-4)
    tail = estimator.tail_parameters(cut)
    try:
        estimator.requires_grad_(True)
        estimate = estimator.head(features, cut)
        total = estimate.joints.sum() + estimate.joints_2d.sum() + estimate.rotations.sum()
        total.backward()
        touched = {id(p) for p in estimator.parameters() if p.grad is not None}
    finally:
        estimator.zero_grad(set_to_none=True)
        estimator.requires_grad_(False)
    assert touched == {id(parameter) for parameter in tail}


def test_the_gradient_to_the_image_agrees_with_finite_differences(estimator, images):
    double = CompactHMR().double().eval()
    double.load_state_dict(estimator.state_dict())
    picture = images[:1].double()
    direction = torch.randn(picture.shape, generator=torch.Generator().manual_seed(1)).double()

    def error(x: torch.Tensor) -> torch.Tensor:
        return double(x).joints.square().sum()

    picture.requires_grad_(True)
    (slope,) = torch.autograd.grad(error(picture), picture)
    step = 1e-7
    with torch.no_grad():
        ahead, behind = (error(picture + side * step * direction) for side in (1, -1))
    assert float((slope * direction).sum()) == pytest.approx(
        float((ahead - behind) / (2 * step)), rel=1e-3
    )


def test_what_is_no_compact_hmr_is_refused(tmp_path, estimator):
    with pytest.raises(CheckpointError, match=r"no pre-trained compact HMR.*posegen pretrain"):
        load_estimator("compact_hmr", tmp_path / "none")
    weights = estimator.state_dict()
    save_checkpoint(tmp_path / "other", {"format": 99, "weights": weights})
    with pytest.raises(CheckpointError, match="no compact HMR of format 1"):
        load_estimator("compact_hmr", tmp_path / "other")
    lacking = {name: value for name, value in weights.items() if name != "fc1.weight"}
    lacking["fc9"] = weights["fc1.bias"]
    save_checkpoint(tmp_path / "lacking", {"format": 1, "weights": lacking})
    with pytest.raises(CheckpointError, match=r"missing: fc1\.weight; 1 unknown: fc9"):
        load_estimator("compact_hmr", tmp_path / "lacking")
    save_checkpoint(tmp_path / "cut", {"format": 1, "weights": weights})
    tensors = tmp_path / "cut" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    with pytest.raises(CheckpointError):
        load_estimator("compact_hmr", tmp_path / "cut")


STAGE = "{cut: late, steps: 6, batch_size: 8, learning_rate: 1.0e-3}"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> PhotographsConfig:
    return write(tmp_path_factory.mktemp("photographs"), people(5))


def tiny_pretraining(folder: Path, photographs: PhotographsConfig) -> list[str]:
    return [
        "pretrain",
        "experiment=tiny",
        "runtime=inprocess",
        "pretrain.images=16",
        "pretrain.validation_images=8",
        *(f"photographs.{name}={getattr(photographs, name)}" for name in ("labels", "folders")),
        f"pretrain.finetune.stages=[{STAGE}]",
        f"run_dir={folder}/run",
        f"out={folder}/hmr",
    ]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, photographs) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    assert main(tiny_pretraining(folder, photographs)) == 0
    return folder / "hmr"


def test_pretraining_leaves_an_estimator_that_says_what_it_has_seen(pretrained, photographs):
    """Rendered people and photographs."""
    about = load_checkpoint(pretrained)["about"]
    assert about["photographs"] == photographs.labels
    assert about["images"] == 16
    assert about["subjects"] == ["ada"]
    assert not {"spinkick", "cartwheel"} & set(about["clips"])
    assert about["figures"]["val_source_mpjpe_mm"] > 0
    loaded = load_estimator("compact_hmr", pretrained)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    height = loaded.rest_joints[15, 1] - loaded.rest_joints[7, 1]  # ankle to head
    assert 1.2 < float(height) < 1.7
    assert loaded.init_pose.shape == (144,)
    assert not torch.equal(loaded.rest_joints, torch.zeros(24, 3))
    turned = from_axis_angle(torch.zeros(24, 3))[..., :2]
    assert not torch.allclose(loaded.init_pose, turned.flatten())


def test_interrupted_pretraining_goes_on_and_ends_the_same(
    pretrained, photographs, tmp_path, monkeypatch
):
    """Stopped once before training and once after it: nothing that was done is done again."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def again(*_: object) -> None:
        raise AssertionError("done before")

    resume = ["pretrain", f"resume={tmp_path}/run", "runtime=inprocess"]
    with monkeypatch.context() as patch:
        patch.setattr("posegen_ray.pretrain.Pretrain.run", interrupted)
        assert main(tiny_pretraining(tmp_path, photographs)) == 130
    with monkeypatch.context() as patch:
        patch.setattr("posegen_ray.pretrain.Drawing.draw", again)
        patch.setattr("posegen_ray.pretrain._figures", interrupted)
        assert main(resume) == 130
    assert not (tmp_path / "hmr").exists()
    monkeypatch.setattr("posegen_ray.pretrain.Drawing.draw", again)
    monkeypatch.setattr("posegen_ray.pretrain.Pretrain.run", again)
    assert main(resume) == 0
    straight, resumed = (load_checkpoint(path) for path in (pretrained, tmp_path / "hmr"))
    assert straight["about"] == resumed["about"]
    assert all(
        torch.equal(value, resumed["weights"][name]) for name, value in straight["weights"].items()
    )


@pytest.mark.slow  # SPIN goes the same way in test_parametric_loop.py
def test_the_whole_loop_runs_with_it(pretrained, tmp_path):
    arguments = [
        "demo",
        "estimator=compact_hmr",
        f"estimator.checkpoint={pretrained}",
        "experiment=tiny",
        "runtime=inprocess",
        "experiment.arms=[baseline,posegen]",
        f"run_dir={tmp_path}/run",
    ]
    assert main(arguments) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["estimator"] == "compact-hmr"
    errors = [summary["arms"][arm]["ood"]["mpjpe_mm"]["mean"] for arm in summary["arms"]]
    assert np.isfinite(errors).all()
    assert len(set(errors)) == 2


def test_only_the_compact_hmr_is_pretrained_here(capsys):
    assert main(["pretrain", "estimator=blazepose"]) == 2
    assert "not pre-trained here" in capsys.readouterr().err
