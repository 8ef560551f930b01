"""3DPW in its layout: who is measured, by which truth, in which axes; numbers by hand."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_pickles import python2_pickle
from public_files import SIZES, StandIn, h36m_regressor, smplx_points, write_grey, write_smpl
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.transform import Rotation
from torch import Tensor

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.config import DatasetConfig
from posegen_ray.datasets.public import open_public_set
from posegen_ray.datasets.public.frames import Box
from posegen_ray.errors import AssetError, ConfigError, DataError
from posegen_ray.estimators.base import Estimate
from posegen_ray.estimators.crop import HYBRIK_CROP, SPIN_CROP, CropSpec
from posegen_ray.evaluation.public import SmplMeshes, evaluate_public

CONFIG = DatasetConfig(name="3dpw")
COUNT = 4  # frames; frame 1 of the first person and frame 3 of the second are not valid
VALID = [[1, 0, 1, 1], [1, 1, 1, 0]]
LSP = [6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10]  # of the regressor's rows
SHAPES = np.random.default_rng(2).normal(size=(2, 10))
ANGLES = 0.4 * np.random.default_rng(3).normal(size=(2, COUNT, 72))
CAMERAS = Rotation.random(COUNT, random_state=4).as_matrix()


def sequence() -> dict[str, Any]:
    cameras = np.tile(np.eye(4), (COUNT, 1, 1))
    cameras[:, :3, :3] = CAMERAS
    cameras[:, :3, 3] = [1.0, 2.0, 3.0]
    points = np.zeros((COUNT, 3, 18))
    points[:, :, 0] = [10, 20, 0.9]
    points[:, :, 1] = [50, 40, 0.2]
    points[:, :, 2] = [900, 900, 0.0]  # not seen: must not widen the box
    return {
        "sequence": "stroll_00",
        "poses": [ANGLES[0], ANGLES[1]],
        "betas": [SHAPES[0], np.r_[SHAPES[1], 9.0, 9.0]],
        "genders": ["m", "f"],
        "poses2d": [points, points],
        "cam_poses": cameras,
        "campose_valid": [np.array(row) for row in VALID],
        "trans": [np.ones((COUNT, 3))] * 2,
        "img_frame_ids": np.arange(COUNT),
    }


def write(root: Path, content: dict[str, Any]) -> None:
    folder = root / "sequenceFiles" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stroll_00.pkl").write_bytes(python2_pickle(content))
    for frame in range(COUNT):
        write_grey(root / "imageFiles" / "stroll_00" / f"image_{frame:05d}.jpg", frame)


@pytest.fixture(scope="module")
def smpl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smpl")
    write_smpl(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("3dpw")
    write(folder, sequence())
    return folder


def in_camera(person: int) -> np.ndarray:  # [COUNT, 24, 3, 3]
    turns = Rotation.from_rotvec(ANGLES[person].reshape(-1, 3)).as_matrix()
    turns = turns.reshape(COUNT, 24, 3, 3)
    turns[:, 0] = CAMERAS @ turns[:, 0]
    return turns


def true_joints(person: int, gender: str) -> np.ndarray:  # [COUNT, 17, 3]
    shapes = np.repeat(SHAPES[person : person + 1], COUNT, 0)
    return h36m_regressor() @ smplx_points(gender, in_camera(person), shapes)[0]


def answering(person: int) -> StandIn:
    """The right pose and shape of one person, in the camera's axes."""
    return StandIn(
        (), rotations=in_camera(person), shape=np.repeat(SHAPES[person : person + 1], COUNT, 0)
    )


def test_frames_without_a_valid_camera_do_not_count(root: Path) -> None:
    test = open_public_set(CONFIG, root)
    labels = [frame.label.split("/")[-1] for frame in test]
    assert labels == [
        f"stroll_00.pkl (person {person}, frame {frame})"
        for person, frame in ((0, 0), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2))
    ]
    assert len(test) == 6
    assert test.left_out == {"campose_valid is 0": 2}
    assert test.genders == ("female", "male")


def test_the_box_is_of_the_joints_that_were_seen(root: Path) -> None:
    frame = next(iter(open_public_set(CONFIG, root)))
    assert frame.box == Box(10, 20, 50, 40)


def test_gendered_truth_through_the_regressor_by_hand(root: Path, smpl: Path) -> None:
    """The neutral model is the male one divided by 1.25, and 1 / 0.9 times the female one. So the
    right pose and shape leave, of each pelvis-centred joint, the fixed part |1 / size - 1|."""
    test = open_public_set(CONFIG, root)
    result = evaluate_public(answering(0), test, SmplMeshes(str(smpl)), batch_size=4)
    rows = result.frames[:3]  # the male person's
    joints = true_joints(0, "male")[[0, 2, 3]]
    reach = 1000 * np.linalg.norm(joints[:, LSP] - joints[:, :1], axis=-1).mean(1)
    np.testing.assert_allclose(rows["mpjpe_mm"], (1 - 1 / 1.25) * reach, rtol=1e-4)
    np.testing.assert_allclose(rows["pa_mpjpe_mm"], 0, atol=1e-2)
    vertices = smplx_points("male", in_camera(0), np.repeat(SHAPES[:1], COUNT, 0))[0][[0, 2, 3]]
    extent = 1000 * np.linalg.norm(vertices - joints[:, :1], axis=-1).mean(1)
    np.testing.assert_allclose(rows["pve_mm"], (1 - 1 / 1.25) * extent, rtol=1e-4)
    assert result.joints == "14, pelvis at 0"
    female = evaluate_public(answering(1), test, SmplMeshes(str(smpl))).frames[3:]
    joints = true_joints(1, "female")[:3]
    reach = 1000 * np.linalg.norm(joints[:, LSP] - joints[:, :1], axis=-1).mean(1)
    np.testing.assert_allclose(female["mpjpe_mm"], (1 / SIZES["female"] - 1) * reach, rtol=1e-4)


def test_neutral_truth_is_an_option_and_another_number(root: Path, smpl: Path) -> None:
    test = open_public_set(replace(CONFIG, ground_truth="neutral"), root)
    assert test.genders == ("neutral",)
    rows = evaluate_public(answering(0), test, SmplMeshes(str(smpl))).frames[:3]
    np.testing.assert_allclose(rows[["mpjpe_mm", "pve_mm"]], 0, atol=1e-2)


def test_means_equal_an_independent_evaluation(root: Path, smpl: Path) -> None:
    """All of it once more, in numpy and scipy, for answers that are wrong in every way."""
    stream = np.random.default_rng(5)
    turns = Rotation.random(COUNT * 24, random_state=6).as_matrix().reshape(COUNT, 24, 3, 3)
    shapes = stream.normal(size=(COUNT, 10))
    estimator = StandIn((), rotations=turns, shape=shapes)
    result = evaluate_public(estimator, open_public_set(CONFIG, root), SmplMeshes(str(smpl)), 4)
    answers = h36m_regressor() @ smplx_points("neutral", turns, shapes)[0]
    errors, aligned = [], []
    for person, gender in enumerate(("male", "female")):
        for frame in np.flatnonzero(VALID[person]):
            truth = true_joints(person, gender)[frame]
            a, t = (x[LSP] - x[0] for x in (answers[frame], truth))
            errors.append(1000 * np.linalg.norm(a - t, axis=1).mean())
            source, target = a - a.mean(0), t - t.mean(0)
            rotation, scale = orthogonal_procrustes(source, target)
            if np.linalg.det(rotation) < 0:
                u, s, vt = np.linalg.svd(source.T @ target)
                rotation, scale = u @ np.diag([1, 1, -1]) @ vt, (s * [1, 1, -1]).sum()
            moved = scale / (source**2).sum() * source @ rotation
            aligned.append(1000 * np.linalg.norm(moved - target, axis=1).mean())
    means = result.means()
    assert means["mpjpe_mm"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert means["pa_mpjpe_mm"] == pytest.approx(np.mean(aligned), rel=1e-4)
    assert estimator.seen == [0, 2, 3, 0, 1, 2]


def test_the_root_is_turned_into_the_camera(root: Path, smpl: Path) -> None:
    turns = Rotation.from_rotvec(ANGLES[0].reshape(-1, 3)).as_matrix().reshape(COUNT, 24, 3, 3)
    world = StandIn((), rotations=turns, shape=np.repeat(SHAPES[:1], COUNT, 0))
    test = open_public_set(CONFIG, root)
    rows = evaluate_public(world, test, SmplMeshes(str(smpl))).frames[:3]
    assert (rows["mpjpe_mm"] > 200).all()
    np.testing.assert_allclose(rows["pa_mpjpe_mm"], 0, atol=1e-2)


def test_joints_alone_are_measured_on_those_that_both_have(root: Path, smpl: Path) -> None:
    limbs = [11, 14, 12, 15, 13, 16, 1, 4, 2, 5, 3, 6]  # LIMB_JOINT_NAMES in the regressor's rows
    joints = true_joints(0, "male")[:, limbs]
    joints[..., 0] += 0.5  # a constant offset does not count
    joints[:, 0, 0] += 0.012  # one joint of twelve is 12 mm off
    estimator = StandIn(LIMB_JOINT_NAMES, joints=joints)
    result = evaluate_public(estimator, open_public_set(CONFIG, root), SmplMeshes(str(smpl)))
    assert result.joints == "12 of 14, mid_hip at 0"
    np.testing.assert_allclose(result.frames["mpjpe_mm"][:3], 1.0, atol=1e-3)
    assert result.frames["pve_mm"].isna().all()
    few = StandIn(("left_hip", "right_hip", "nose"), joints=joints[:, :3])
    with pytest.raises(DataError, match="stand-in has 2 of the joints of 3DPW test"):
        evaluate_public(few, open_public_set(CONFIG, root), SmplMeshes(str(smpl)))


def test_smpls_own_24_joints_need_no_regressor(root: Path, smpl: Path, tmp_path: Path) -> None:
    for file in smpl.glob("*.npz"):
        (tmp_path / file.name).symlink_to(file)
    test = open_public_set(replace(CONFIG, joints="smpl24", ground_truth="neutral"), root)
    result = evaluate_public(answering(0), test, SmplMeshes(str(tmp_path)))
    assert result.joints == "24, pelvis at 0"
    np.testing.assert_allclose(result.frames["mpjpe_mm"][:3], 0, atol=1e-2)


@pytest.mark.parametrize(
    ("old", "new"), [("genders", "gender"), ("poses2d", "poses2D")], ids=["gender", "poses2D"]
)
def test_the_readmes_spellings_are_read(root: Path, tmp_path: Path, old: str, new: str) -> None:
    content = sequence()
    content[new] = content.pop(old)
    write(tmp_path, content)
    assert len(open_public_set(CONFIG, tmp_path)) == 6


def test_a_person_that_was_never_seen_cannot_be_cropped_and_is_counted(tmp_path: Path) -> None:
    content = sequence()
    content["poses2d"][0] = content["poses2d"][0] * [[1], [1], [0]]
    write(tmp_path, content)
    test = open_public_set(CONFIG, tmp_path)
    assert len(test) == 3
    assert test.left_out["no 2D joint to crop by"] == 3


def test_all_that_is_missing_is_listed_with_its_source(tmp_path: Path, smpl: Path) -> None:
    with pytest.raises(DataError, match=r"missing:\n.*sequenceFiles/test/\*\.pkl\n.*imageFiles"):
        open_public_set(CONFIG, tmp_path)
    write(tmp_path, sequence())
    for frame in (2, 3):
        (tmp_path / "imageFiles" / "stroll_00" / f"image_{frame:05d}.jpg").unlink()
    with pytest.raises(DataError, match=r"image_00002\.jpg, image_00003\.jpg \n.*virtualhumans"):
        open_public_set(CONFIG, tmp_path)
    with pytest.raises(ConfigError, match="data_root"):
        open_public_set(CONFIG, "")


def test_missing_smpl_files_are_listed_before_a_picture_is_read(root: Path, tmp_path: Path) -> None:
    estimator = answering(0)
    with pytest.raises(
        AssetError, match=r"SMPL_FEMALE\.pkl .*SMPL_MALE\.pkl .*J_regressor_h36m\.npy"
    ) as caught:
        evaluate_public(estimator, open_public_set(CONFIG, root), SmplMeshes(str(tmp_path)))
    assert "https://smpl.is.tue.mpg.de" in str(caught.value)
    assert "nkolot/SPIN" in str(caught.value)
    assert estimator.seen == []


@pytest.mark.parametrize("table", [np.ones((24, 300)) / 300, np.ones((17, 300))])
def test_another_regressor_is_refused(
    root: Path, smpl: Path, tmp_path: Path, table: np.ndarray
) -> None:
    np.save(tmp_path / "J.npy", table)
    meshes = SmplMeshes(str(smpl), str(tmp_path / "J.npy"))
    with pytest.raises(AssetError, match="is no joint regressor"):
        evaluate_public(answering(0), open_public_set(CONFIG, root), meshes)


def test_damage_is_named_with_file_and_frame(tmp_path: Path, smpl: Path) -> None:
    write(tmp_path, sequence())
    picture = tmp_path / "imageFiles" / "stroll_00" / "image_00002.jpg"
    picture.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(DataError, match=r"image_00002\.jpg .*person 0, frame 2.* cannot be read"):
        evaluate_public(answering(0), open_public_set(CONFIG, tmp_path), SmplMeshes(str(smpl)))
    content = sequence()
    content["poses"][1] = content["poses"][1][:-1]
    write(tmp_path, content)
    with pytest.raises(DataError, match=r"person 1\): poses has shape \(3, 72\)"):
        open_public_set(CONFIG, tmp_path)
    file = tmp_path / "sequenceFiles" / "test" / "stroll_00.pkl"
    file.write_bytes(pickle.dumps({"sequence": print}))
    with pytest.raises(DataError, match="asks for builtins"):
        open_public_set(CONFIG, tmp_path)


def test_an_estimator_that_answers_nan_is_an_error_that_names_the_frame(
    root: Path, smpl: Path
) -> None:
    estimator = answering(0)
    estimator.answers[1][2] = float("nan")
    with pytest.raises(DataError, match=r"NaN or Inf for .*person 0, frame 2\)"):
        evaluate_public(estimator, open_public_set(CONFIG, root), SmplMeshes(str(smpl)))


@pytest.mark.parametrize(
    ("spec", "scale", "offset"),
    [  # points (10, 20) and (50, 40): a square about (30, 30), in a picture of 64 x 48
        (SPIN_CROP, None, (-2 / 48, 6 / 48)),
        (HYBRIK_CROP, None, (-2 / 50, 6 / 50)),
        (HYBRIK_CROP, 2.0, (-2 / 80, 6 / 80)),
    ],
    ids=["SPIN", "HybrIK", "dataset.crop_scale"],
)
def test_each_estimator_gets_its_own_crop_and_learns_where_it_lies(
    root: Path, smpl: Path, spec: CropSpec, scale: float | None, offset: tuple[float, float]
) -> None:
    class Asks(StandIn):
        crop = replace(spec, size=32)

        def in_picture(self, images: Tensor, offset: Tensor) -> Estimate:
            told.append(offset)
            return self(images)

    told: list[Tensor] = []
    test = open_public_set(replace(CONFIG, crop_scale=scale), str(root))
    joints = np.random.default_rng(0).normal(size=(COUNT, 12, 3))
    evaluate_public(Asks(LIMB_JOINT_NAMES, joints), test, SmplMeshes(str(smpl)), batch_size=4)
    assert torch.allclose(torch.cat(told), torch.tensor(offset).expand(len(test), 2))
