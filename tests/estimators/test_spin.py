"""SPIN against torchvision's ResNet-50, numpy and the smplx package; its published layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import published_layouts as published
import pytest
import smplx
import torch
from smplx.utils import Struct
from torch import Tensor
from torchvision.models import resnet50

from posegen_ray.body.smpl import load_smpl_body, smpl_origin
from posegen_ray.compose import compose_config
from posegen_ray.errors import AssetError, CheckpointError
from posegen_ray.estimators import build_estimator, limb_joints, load_estimator
from posegen_ray.estimators.checkpoints import read_checkpoint
from posegen_ray.estimators.spin import Spin


def small_spin(folder: Path | None = None, seed: int = 0) -> Spin:
    """The same code, narrow and shallow; its corrections are large enough to matter."""
    torch.manual_seed(seed)
    smpl = (load_smpl_body(folder), smpl_origin(folder)) if folder is not None else (None, None)
    spin = Spin(*smpl, layers=(1, 1, 1, 1), width=16, hidden=32).eval()
    with torch.no_grad():
        for decoder in (spin.decpose, spin.decshape, spin.deccam):
            decoder.weight.mul_(30)
    return spin


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as SPIN's training wrote it."""
    path = tmp_path_factory.mktemp("spin") / "model_checkpoint.pt"
    state = published.random_state(published.spin())
    torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 1, "batch_idx": 0}, path)
    return path


def test_names_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in Spin().state_dict().items()}
    assert ours == published.spin()
    assert len(ours) == 331


def test_smpl_adds_nothing_to_the_layout(smpl):
    folder, _ = smpl
    assert small_spin(folder).state_dict().keys() == published.spin().keys() & set(
        small_spin().state_dict()
    )


def reference(state: dict[str, Tensor], images: Tensor) -> tuple[np.ndarray, ...]:
    """Rotations, shape and camera by torchvision's network and numpy."""
    backbone = resnet50()
    backbone.load_state_dict({k: v for k, v in state.items() if k in backbone.state_dict()}, False)
    backbone.fc = torch.nn.Identity()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        features = backbone.eval()(pixels).numpy()
    weights = {name: value.numpy().astype(float) for name, value in state.items()}

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    pose, shape, camera = (
        np.repeat(weights[f"init_{name}"], len(images), 0) for name in ("pose", "shape", "cam")
    )
    for _ in range(3):
        x = layer("fc2", layer("fc1", np.concatenate([features, pose, shape, camera], 1)))
        pose, shape = pose + layer("decpose", x), shape + layer("decshape", x)
        camera = camera + layer("deccam", x)
    rotations = np.zeros((len(images), 24, 3, 3))
    for index, row in enumerate(pose):
        for joint in range(24):
            first, second = row[6 * joint : 6 * joint + 6].reshape(3, 2).T
            x_axis = first / np.linalg.norm(first)
            y_axis = second - (x_axis @ second) * x_axis
            y_axis = y_axis / np.linalg.norm(y_axis)
            rotations[index, joint] = np.stack([x_axis, y_axis, np.cross(x_axis, y_axis)], 1)
    return rotations, shape, camera


def test_the_published_file_loads_and_answers_as_an_independent_network(file):
    spin = load_estimator("spin", checkpoint=file)
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        estimate, again = spin(images), spin(images)
    rotations, shape, camera = reference(read_checkpoint(file), images)
    assert np.abs(estimate.rotations.numpy() - rotations).max() < 1e-4
    assert np.abs(estimate.shape.numpy() - shape).max() < 1e-4
    assert np.abs(estimate.camera.numpy() - camera).max() < 1e-4
    assert torch.equal(estimate.rotations, again.rotations)
    assert estimate.joints is None
    with pytest.raises(ValueError, match=r"lacks the joints: .*SMPL's files.*smpl_folder"):
        limb_joints(estimate, spin.joint_names)
    assert not any(parameter.requires_grad for parameter in spin.parameters())


def test_joints_and_their_picture_agree_with_smplx(smpl):
    folder, arrays = smpl
    spin = small_spin(folder)
    with torch.no_grad():
        estimate = spin(torch.rand(2, 3, 224, 224))
    theirs = smplx.SMPL("", data_struct=Struct(**arrays), batch_size=2)
    with torch.no_grad():
        posed = theirs(
            betas=estimate.shape,
            global_orient=estimate.rotations[:, :1],
            body_pose=estimate.rotations[:, 1:],
            pose2rot=False,
        ).joints[:, :24]
    assert torch.allclose(estimate.joints, posed - posed[:, :1], atol=1e-5)
    s, x, y = estimate.camera.T
    moved = posed + torch.stack([x, y, 2 * 5000 / (224 * s + 1e-9)], 1)[:, None]
    pixels = 112 + 5000 * moved[..., :2] / moved[..., 2:]
    assert torch.allclose(estimate.joints_2d, pixels, rtol=1e-4, atol=1e-2)
    assert limb_joints(estimate, spin.joint_names).shape == (2, 12, 3)


@pytest.mark.parametrize("cut", Spin.cuts)
def test_the_part_behind_a_cut_makes_the_same_answer_and_alone_gets_gradients(smpl, cut):
    spin = small_spin(smpl[0])
    images = torch.rand(1, 3, 224, 224)
    whole = spin(images)
    tail = spin.tail_parameters(cut)
    spin.requires_grad_(True)
    estimate = spin.head(spin.stem(images, cut).detach(), cut)
    assert torch.allclose(estimate.joints, whole.joints, atol=1e-6)
    (estimate.joints.square().sum() + estimate.camera.sum()).backward()
    trained = [p for p in spin.parameters() if p.grad is not None]
    assert {id(p) for p in trained} == {id(p) for p in tail}


def test_features_go_from_cut_to_cut():
    spin = small_spin()
    images = torch.rand(1, 3, 224, 224)
    step = spin.stem(spin.stem(images, "early"), "late", "early")
    assert torch.equal(step, spin.stem(images, "late"))


def test_the_gradient_reaches_the_image(smpl):
    images = torch.rand(1, 3, 224, 224, requires_grad=True)
    spin = small_spin(smpl[0])
    spin(images).joints.square().sum().backward()
    assert torch.isfinite(images.grad).all()
    assert images.grad.abs().max() > 0


def spoiled(file: Path, path: Path, change) -> Path:
    content = torch.load(file, weights_only=True)
    change(content["model"])
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer2.1.bn3.weight"), r"1 missing: layer2\.1\.bn3\.weight"),
        (lambda state: state.update(head=torch.zeros(1)), "1 unknown: head"),
        (
            lambda state: state.update({"deccam.bias": torch.zeros(1)}),
            r"1 of another shape: deccam\.bias \(1,\) instead of \(3,\)",
        ),
    ],
)
def test_keys_that_do_not_fit_are_named(file, tmp_path, change, message):
    path = spoiled(file, tmp_path / "other.pt", change)
    with pytest.raises(CheckpointError, match=message):
        load_estimator("spin", checkpoint=path)


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    hostile, text, other = (tmp_path / name for name in ("hostile.pt", "text.pt", "other.pt"))
    torch.save({"model": Payload(tmp_path / "ran")}, hostile)
    text.write_text("no checkpoint")
    torch.save([1, 2], other)
    for path, message in (
        (hostile, "nothing of it was run"),
        (text, "damaged"),
        (other, "holds no weights"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_estimator("spin", checkpoint=path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["spin", "hybrik_res34", "hybrik_w48"])
def test_missing_files_are_named_with_their_source(kind, file, tmp_path):
    config = compose_config([f"estimator={kind}"])
    with pytest.raises(CheckpointError, match=rf"estimator={kind} is not named.*github\.com"):
        build_estimator(config.estimator)
    with pytest.raises(CheckpointError, match=r"nowhere\.pt' is no file"):
        load_estimator(kind, checkpoint="nowhere.pt")
    with pytest.raises(AssetError, match=r"smpl_folder .*SMPL_NEUTRAL.*smpl\.is\.tue\.mpg\.de"):
        load_estimator(kind, checkpoint=file, smpl=tmp_path)
