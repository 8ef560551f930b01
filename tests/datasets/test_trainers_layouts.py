"""SPIN's and BEDLAM's npz, read as their trainers read them: fields -> SMPL -> joints.

SMPL is the smplx package's own on a small random model, so that nothing of ours computes what ours
wrote.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import smplx
import torch
from made_sets import SIZE, Truth, distance, write_set
from smplx.utils import Struct

from posegen_ray.body.model import BodyModel
from posegen_ray.body.skeleton import JOINT, NUM_JOINTS, PARENTS
from posegen_ray.body.smpl import load_smpl_body, smpl_origin

COUNT, VERTICES = 16, 300
CLOSE = 1e-4  # metres
# the rows of SPIN's 24 joints that SMPL's skeleton has, right ankle to left wrist, in SMPL's order
SPIN_TO_SMPL = [8, 5, 2, 1, 4, 7, 21, 19, 17, 16, 18, 20]
OPENPOSE_TO_SMPL = [12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7]  # neck to left ankle
HIPS = [JOINT["left_hip"], JOINT["right_hip"]]


def _model() -> dict[str, np.ndarray]:
    stream = np.random.default_rng(0)
    regressor = stream.random((NUM_JOINTS, VERTICES)) ** 8
    weights = stream.random((VERTICES, NUM_JOINTS)) ** 8
    return {
        "v_template": 0.4 * stream.normal(size=(VERTICES, 3)) + [0.1, -0.2, 0.3],
        "shapedirs": 0.05 * stream.normal(size=(VERTICES, 3, 10)),
        "posedirs": 0.01 * stream.normal(size=(VERTICES, 3, 207)),
        "J_regressor": regressor / regressor.sum(1, keepdims=True),
        "weights": weights / weights.sum(1, keepdims=True),
        "kintree_table": np.array([PARENTS, range(NUM_JOINTS)]).astype(np.uint32),
        "f": stream.integers(0, VERTICES, (100, 3)).astype(np.uint32),
    }


def smpl_joints(pose: np.ndarray, shape: np.ndarray, move: np.ndarray | None = None) -> np.ndarray:
    """[N, 72], [N, 10], [N, 3] -> [N, 24, 3], by smplx."""
    model = smplx.SMPL("", data_struct=Struct(**_model()), batch_size=len(pose))
    model.vertex_joint_selector.extra_joints_idxs.zero_()  # landmarks of the 6,890 vertices
    angles = torch.from_numpy(pose)
    with torch.no_grad():
        posed = model(
            betas=torch.from_numpy(shape),
            global_orient=angles[:, :3],
            body_pose=angles[:, 3:],
            transl=torch.from_numpy(np.zeros((len(pose), 3), np.float32) if move is None else move),
        )
    return posed.joints[:, :NUM_JOINTS].numpy()


@pytest.fixture(scope="module", params=["spin", "bedlam"])
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, np.ndarray], Truth]:
    """A set on SMPL in either layout: the arrays of its npz."""
    name: str = request.param
    files = tmp_path_factory.mktemp("smpl")
    np.savez(files / "SMPL_NEUTRAL.npz", **_model(), bs_type="lrotmin")
    folder = tmp_path_factory.mktemp(name)
    body, origin = load_smpl_body(files), smpl_origin(files)
    _, _, truth = write_set(folder, name, body, COUNT, images_per_shard=5, origin=origin)
    with np.load(folder / f"{name}.npz") as arrays:
        read = dict(arrays)
    assert all((folder / image).is_file() for image in read["imgname"])
    return name, read, truth


def centred(joints: np.ndarray) -> np.ndarray:
    return joints - joints[:, HIPS].mean(1, keepdims=True)


def test_round_trip_keeps_the_joints(
    written: tuple[str, dict[str, np.ndarray], Truth],
) -> None:
    name, data, truth = written
    expected = truth.in_camera.numpy()
    if name == "spin":
        assert (data["has_smpl"] == 1).all()
        joints = smpl_joints(data["pose"], data["shape"])
        assert distance(centred(joints), centred(expected)) < CLOSE
        assert distance(data["S"][:, :12, :3], centred(expected)[:, SPIN_TO_SMPL]) < CLOSE
        assert (data["S"][:, :12, 3] == 1).all()
        assert (data["S"][:, 12:] == 0).all()
        return
    offset = data["cam_ext"][:, :3, 3]
    in_camera = smpl_joints(data["pose_cam"], data["shape"], data["trans_cam"]) + offset[:, None]
    assert distance(in_camera, expected) < CLOSE
    in_world = smpl_joints(data["pose_world"], data["shape"], data["trans_world"])
    turned = in_world @ data["cam_ext"][:, :3, :3].transpose(0, 2, 1) + offset[:, None]
    assert distance(turned, expected) < CLOSE
    assert (data["cam_ext"][:, 3] == [0, 0, 0, 1]).all()
    assert distance(data["joints_cam"], expected) < CLOSE


def test_keypoints_are_where_the_camera_sees_the_joints(
    written: tuple[str, dict[str, np.ndarray], Truth],
) -> None:
    name, data, truth = written
    joints, camera = truth.in_camera.numpy(), truth.camera
    pixels = joints[..., :2] / joints[..., 2:] * camera.focal.numpy()[:, None, None]
    pixels += camera.principal.numpy()[:, None]
    if name == "spin":
        for field, rows, first in (("part", SPIN_TO_SMPL, 0), ("openpose", OPENPOSE_TO_SMPL, 1)):
            labelled = slice(first, first + len(rows))
            assert distance(data[field][:, labelled, :2], pixels[:, rows]) < 1e-2
            assert (data[field][:, labelled, 2] == 1).all()
            assert data[field][..., 2].sum() == COUNT * len(rows)
    else:
        assert distance(data["gtkps"][..., :2], pixels) < 1e-2
        assert (data["gtkps"][..., 2] == 1).all()
        seen = data["joints_cam"] @ data["cam_int"].transpose(0, 2, 1)
        assert distance(seen[..., :2] / seen[..., 2:], pixels) < 1e-2
    assert (data["center"] == SIZE / 2).all()
    assert distance(data["scale"] * 200, SIZE) < 1e-3


def test_other_bodies_do_not_pass_for_smpl(body: BodyModel, tmp_path: Path) -> None:
    for name in ("spin", "bedlam"):
        _, _, truth = write_set(tmp_path / name, name, body)
        with np.load(tmp_path / name / f"{name}.npz") as data:
            assert (data["has_smpl"] == 0).all()
            assert data["shape"].shape == (7, 10)
            assert not data["shape"].any()
            if name == "bedlam":
                assert distance(data["joints_cam"], truth.in_camera) < CLOSE
