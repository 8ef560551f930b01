"""Training labels in the layouts of SPIN, MPII and COCO."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from posegen_ray.datasets.image_labels import (
    SPIN_JOINT_NAMES,
    read_coco_json,
    read_mpii_json,
    read_spin_npz,
)
from posegen_ray.errors import DataError

MPII = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis",
    "thorax", "neck", "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder",
    "left_elbow", "left_wrist",
)  # fmt: skip
COCO = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee",
    "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip


def spin() -> dict[str, np.ndarray]:
    stream = np.random.default_rng(0)
    return {
        "imgname": np.array(["S1/a.jpg", "S1/b.jpg", "S2/c.jpg"]),
        "center": np.array([[10.0, 20], [30, 40], [50, 60]]),
        "scale": np.array([0.5, 1.0, 1.5]),
        "part": stream.normal(size=(3, 24, 3)),
        "S": stream.normal(size=(3, 24, 4)),
        "openpose": stream.normal(size=(3, 25, 3)),
        "pose": 0.5 * stream.normal(size=(3, 72)),
        "shape": stream.normal(size=(3, 10)),
        "has_smpl": np.array([1, 0, 1]),
        "gender": np.array(["m", "f", ""]),
    }


def test_spins_npz_is_read_whole(tmp_path: Path) -> None:
    content = spin()
    np.savez(tmp_path / "train.npz", **content)
    labels = read_spin_npz(tmp_path / "train.npz")
    assert len(labels) == 3
    assert labels.images == ("S1/a.jpg", "S1/b.jpg", "S2/c.jpg")
    assert labels.side.tolist() == [100, 200, 300]
    assert labels.centre.tolist() == content["center"].tolist()
    for name, ours in (
        ("part", labels.keypoints),
        ("S", labels.joints),
        ("openpose", labels.openpose),
        ("shape", labels.shape),
    ):
        np.testing.assert_allclose(ours, content[name], rtol=1e-6)
    turns = Rotation.from_rotvec(content["pose"].reshape(-1, 3)).as_matrix()
    np.testing.assert_allclose(labels.rotations.flatten(0, 1), turns, atol=1e-6)
    assert labels.has_smpl.tolist() == [True, False, True]
    assert labels.genders == ("male", "female", "neutral")


def test_what_spins_npz_does_not_state_has_no_confidence(tmp_path: Path) -> None:
    content = spin()
    few = {name: content[name] for name in ("imgname", "center", "scale", "part")}
    np.savez(tmp_path / "coco.npz", **few)
    labels = read_spin_npz(tmp_path / "coco.npz")
    assert not labels.has_smpl.any()
    assert labels.joints.abs().max() == labels.openpose.abs().max() == 0
    np.savez(tmp_path / "3dpw.npz", **few, pose=content["pose"], shape=content["shape"])
    assert read_spin_npz(tmp_path / "3dpw.npz").has_smpl.all()  # a test file has no has_smpl
    np.savez(tmp_path / "coco.npz", **few, has_smpl=np.ones(3))
    assert not read_spin_npz(tmp_path / "coco.npz").has_smpl.any()  # no pose is no T-pose


def test_a_wrong_npz_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.npz"
    with pytest.raises(DataError, match=r"train\.npz is missing"):
        read_spin_npz(path)
    np.savez(path, **(spin() | {"pose": np.zeros((3, 66))}))
    with pytest.raises(DataError, match=r"pose has shape \(3, 66\), not \(3, 72\)"):
        read_spin_npz(path)
    np.savez(path, center=np.zeros((3, 2)))
    with pytest.raises(DataError, match="lacks imgname, scale"):
        read_spin_npz(path)
    np.savez(path, imgname=np.array([print], object))
    with pytest.raises(DataError, match="without Python objects"):
        read_spin_npz(path)


def test_mpiis_pixels_count_from_zero_and_go_to_their_joints(tmp_path: Path) -> None:
    points = [[10.0 + i, 100.0 + i] for i in range(16)]
    seen = [1] * 16
    points[3], seen[3] = [0.0, 0.0], 0
    person = {
        "image": "015601864.jpg",
        "center": [594.0, 257.0],
        "scale": 3.0,
        "joints": points,
        "joints_vis": seen,
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps([person]))
    labels = read_mpii_json(path)
    assert labels.centre.tolist() == [[593, 301]]  # 257 + 15 · 3 - 1
    assert labels.side.tolist() == [750]  # 200 · 3 · 1.25
    for i, name in enumerate(MPII):
        expected = [0, 0, 0] if i == 3 else [9 + i, 99 + i, 1]
        assert labels.keypoints[0, SPIN_JOINT_NAMES.index(name)].tolist() == expected, name
    assert labels.keypoints[0, :, 2].sum() == 15
    path.write_text(json.dumps([{**person, "joints": points[:15]}]))
    with pytest.raises(DataError, match="no list of MPII's people"):
        read_mpii_json(path)


def test_cocos_people_with_all_limbs_are_read(tmp_path: Path) -> None:
    points = np.array([[20 + i, 40 + i, 1 + i % 2] for i in range(17)], float)
    points[1] = 0  # an eye may be missing
    half = points.copy()
    half[16] = 0  # an ankle may not
    people = [
        {"image_id": 7, "keypoints": p.ravel().tolist(), "bbox": [10, 20, 50, 80]}
        for p in (points, half)
    ]
    content = {"images": [{"id": 7, "file_name": "000000000007.jpg"}], "annotations": people}
    path = tmp_path / "person_keypoints_train2014.json"
    path.write_text(json.dumps(content))
    labels = read_coco_json(path)
    assert labels.images == ("000000000007.jpg",)
    assert labels.centre.tolist() == [[35, 60]]
    assert labels.side.tolist() == pytest.approx([96])
    for i, name in enumerate(COCO):
        expected = [0, 0, 0] if i == 1 else [20 + i, 40 + i, 1]
        assert labels.keypoints[0, SPIN_JOINT_NAMES.index(name)].tolist() == expected, name
    path.write_text(json.dumps({**content, "annotations": []}))
    assert len(read_coco_json(path)) == 0
    path.write_text("[]")
    with pytest.raises(DataError, match="no file of COCO's keypoints"):
        read_coco_json(path)
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_coco_json(path)
