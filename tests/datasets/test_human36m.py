"""Human3.6M in its layout: which frames of which videos; numbers by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from cdflib import cdfwrite
from public_files import StandIn, write_grey, write_grey_video

from posegen_ray.body.skeleton import H36M_JOINT_NAMES
from posegen_ray.config import DatasetConfig
from posegen_ray.datasets.public import Box, open_public_set
from posegen_ray.errors import DataError
from posegen_ray.estimators.crop import HYBRIK_CROP, SPIN_CROP
from posegen_ray.estimators.pictures import square
from posegen_ray.evaluation.public import SmplMeshes, evaluate_public

CONFIG = DatasetConfig(name="h36m", joints="lsp14", every=5)
COUNT = 11  # frames: 0, 5 and 10 are measured
CAMERA = "60457274"
# the 17 joints among the file's 32, by the names of the data set's skeleton
FILE_JOINTS = {
    "pelvis": 0, "right_hip": 1, "right_knee": 2, "right_ankle": 3, "left_hip": 6, "left_knee": 7,
    "left_ankle": 8, "spine": 12, "neck": 13, "jaw": 14, "head_top": 15, "left_shoulder": 17,
    "left_elbow": 18, "left_wrist": 19, "right_shoulder": 25, "right_elbow": 26, "right_wrist": 27,
}  # fmt: skip
POSES = 400 * np.random.default_rng(0).normal(size=(COUNT, 32, 3)) + [0, 0, 5000]  # mm
POSES[:, 11] = POSES[:, 0]  # stored twice: the hips, and where spine and shoulders begin
POSES[:, 16] = POSES[:, 24] = POSES[:, 13]


def write_poses(path: Path, poses: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    file = cdfwrite.CDF(str(path), cdf_spec={"Majority": "row_major"})
    about = {"Variable": "Pose", "Data_Type": 45, "Num_Elements": 1, "Rec_Vary": True}
    file.write_var({**about, "Dim_Sizes": list(poses.shape)}, var_data=poses[None])
    file.close()


def write_sequence(
    root: Path, subject: str, action: str, camera: str = CAMERA, video: bool = True
) -> None:
    folder = root / subject / "MyPoseFeatures" / "D3_Positions_mono"
    write_poses(folder / f"{action}.{camera}.cdf", POSES.reshape(COUNT, 96))
    folder = root / subject / "MySegmentsMat" / "ground_truth_bb"
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{action}.{camera}.mat", "w") as mat:
        references = mat.create_dataset("Masks", (COUNT, 1), dtype=h5py.ref_dtype)
        for frame in range(COUNT):
            mask = np.zeros((48, 64), np.uint8)
            mask[10:40, 20 + frame : 40 + frame] = 1
            references[frame, 0] = mat.create_dataset(f"#refs#/{frame}", data=mask.T).ref
    if video:
        write_grey_video(root / subject / "Videos" / f"{action}.{camera}.mp4", COUNT)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("h36m")
    write_sequence(folder, "S9", "Directions 1")
    write_sequence(folder, "S9", "Directions 1", "54138969")
    write_sequence(folder, "S9", "_ALL")
    write_sequence(folder, "S11", "Walking")
    return folder


def answers(shift: int = 0) -> np.ndarray:  # [COUNT, 17, 3] metres
    """The pose of a frame for the picture of frame + shift."""
    rows = [FILE_JOINTS[name] for name in H36M_JOINT_NAMES]
    return np.roll(POSES, shift, 0)[:, rows] / 1000


def test_every_fifth_frame_of_the_frontal_camera_counts(root: Path) -> None:
    test = open_public_set(CONFIG, root)
    labels = [frame.label.split("/")[-3:] for frame in test]
    assert [f"{s}/{name}" for s, _, name in labels] == [
        f"{video}.60457274.mp4 (frame {frame})"
        for video in ("S9/Directions 1", "S11/Walking")
        for frame in (0, 5, 10)
    ]
    assert len(test) == 6
    assert [frame.sequence for frame in test][::3] == ["S9/Directions 1", "S11/Walking"]
    assert len(open_public_set(replace(CONFIG, every=1), root)) == 22
    with pytest.raises(DataError, match=r"S11/.*54138969\.cdf"):  # S9's is there
        open_public_set(replace(CONFIG, camera="54138969"), root)


def test_pictures_and_poses_belong_together(root: Path) -> None:
    estimator = StandIn(H36M_JOINT_NAMES, joints=answers())
    result = evaluate_public(estimator, open_public_set(CONFIG, root), SmplMeshes(""), 4)
    np.testing.assert_allclose(result.frames["mpjpe_mm"], 0, atol=1e-2)
    assert estimator.seen == [0, 5, 10, 0, 5, 10]


def test_the_pelvis_is_subtracted_by_hand(root: Path) -> None:
    """A pelvis that is 30 mm off, which is not among the 14 joints, costs all of them 30 mm; an
    ankle that is 14 mm off costs 1 mm; scale costs MPJPE alone."""
    wrong = answers()
    wrong[:, 0, 1] += 0.030
    test = open_public_set(CONFIG, root)
    means = evaluate_public(StandIn(H36M_JOINT_NAMES, joints=wrong), test, SmplMeshes("")).means()
    assert means["mpjpe_mm"] == pytest.approx(30, rel=1e-4)
    assert means["pa_mpjpe_mm"] == pytest.approx(0, abs=1e-2)
    wrong = answers()
    wrong[:, H36M_JOINT_NAMES.index("left_ankle"), 0] += 0.014
    means = evaluate_public(StandIn(H36M_JOINT_NAMES, joints=wrong), test, SmplMeshes("")).means()
    assert means["mpjpe_mm"] == pytest.approx(1, rel=1e-3)
    assert 0.5 < means["pa_mpjpe_mm"] < 2
    larger = StandIn(H36M_JOINT_NAMES, joints=2 * answers())
    means = evaluate_public(larger, test, SmplMeshes("")).means()
    assert means["mpjpe_mm"] > 100
    assert means["pa_mpjpe_mm"] == pytest.approx(0, abs=1e-2)


def test_the_boxes_are_the_data_sets_own(root: Path) -> None:
    test = open_public_set(CONFIG, root)
    boxes = [frame.box for frame in test][:3]
    assert boxes == [Box(20 + frame, 10, 40 + frame, 40) for frame in (0, 5, 10)]
    # of the first the middle is (30, 25), and the longer side 30
    of_spin = square(boxes[0], test.boxes, SPIN_CROP.picture, 64, 48)
    assert of_spin == (16, 11, 43, 38)  # 0.9 times: from 16.5 and 11.5, cut to whole pixels
    of_hybrik = square(boxes[0], test.boxes, HYBRIK_CROP.picture, 64, 48)
    assert of_hybrik == (15, 10, 45, 40)


def test_spins_pictures_are_one_frame_late(root: Path) -> None:
    test = open_public_set(replace(CONFIG, video_offset=1), root)
    assert test.left_out == {"after the video's end": 2}
    estimator = StandIn(H36M_JOINT_NAMES, joints=answers(shift=1))
    result = evaluate_public(estimator, test, SmplMeshes(""))
    assert estimator.seen == [1, 6, 1, 6]
    np.testing.assert_allclose(result.frames["mpjpe_mm"], 0, atol=1e-2)


def test_extracted_pictures_take_the_videos_place(tmp_path: Path) -> None:
    for subject, action in (("S9", "Directions 1"), ("S11", "Walking")):
        write_sequence(tmp_path, subject, action, video=False)
        for frame in (0, 5, 10):
            name = f"{subject}_{action.replace(' ', '_')}.{CAMERA}_{frame + 1:06d}.jpg"
            write_grey(tmp_path / "images" / name, frame)
    estimator = StandIn(H36M_JOINT_NAMES, joints=answers())
    result = evaluate_public(estimator, open_public_set(CONFIG, tmp_path), SmplMeshes(""))
    assert estimator.seen == [0, 5, 10, 0, 5, 10]
    np.testing.assert_allclose(result.frames["mpjpe_mm"], 0, atol=1e-2)
    (tmp_path / "images" / f"S11_Walking.{CAMERA}_000006.jpg").unlink()
    with pytest.raises(DataError, match=r"images: S11_Walking\.60457274_000006\.jpg"):
        open_public_set(CONFIG, tmp_path)


def test_all_that_is_missing_is_listed(tmp_path: Path) -> None:
    write_sequence(tmp_path, "S9", "Eating", video=False)
    (tmp_path / "S9" / "MySegmentsMat" / "ground_truth_bb" / f"Eating.{CAMERA}.mat").unlink()
    with pytest.raises(
        DataError,
        match=r"S11/.*D3_Positions_mono/\*\.60457274\.cdf\n.*Eating\.60457274\.mat\n.*Eating.*mp4",
    ) as caught:
        open_public_set(CONFIG, tmp_path)
    assert "http://vision.imar.ro/human3.6m" in str(caught.value)


def test_damage_is_named(tmp_path: Path) -> None:
    for subject in ("S9", "S11"):
        write_sequence(tmp_path, subject, "Eating", video=False)
        write_grey_video(tmp_path / subject / "Videos" / f"Eating.{CAMERA}.mp4", 8)  # too short
    test = open_public_set(CONFIG, tmp_path)
    with pytest.raises(DataError, match=r"Eating\.60457274\.mp4 has 8 frames: frame 10 is missing"):
        list(test)
    file = tmp_path / "S9" / "MyPoseFeatures" / "D3_Positions_mono" / f"Eating.{CAMERA}.cdf"
    write_poses(file, np.zeros((COUNT, 64)))  # D2_Positions
    with pytest.raises(DataError, match=r"Pose has shape \(1, 11, 64\)"):
        open_public_set(CONFIG, tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"Eating\.60457274\.cdf cannot be read"):
        open_public_set(CONFIG, tmp_path)
