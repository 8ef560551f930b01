"""SURREAL as a test set: mirrored back, in the camera's axes, by the clip's gender."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from public_files import StandIn, smplx_points, write_grey_video, write_smpl
from scipy.io import savemat
from scipy.spatial.transform import Rotation

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES, LIMB_JOINTS
from posegen_ray.config import DatasetConfig
from posegen_ray.datasets.public import open_public_set
from posegen_ray.errors import AssetError, DataError
from posegen_ray.evaluation.public import SmplMeshes, evaluate_public

CONFIG = DatasetConfig(name="surreal", joints="smpl24")
COUNT = 5
ZROT = 2.2
CAM_LOC = np.array([7.3, -0.4, 0.5])
ANGLES = 0.3 * np.random.default_rng(0).normal(size=(COUNT, 24, 3))
SHAPE = np.random.default_rng(1).normal(size=10)
# the columns of the published camera matrix: where its x, y (up) and z (backwards) lie
X, Y, Z = np.array([[0.0, 0, -1], [0, -1, 0], [1, 0, 0]])


def turned(root: np.ndarray) -> np.ndarray:  # [COUNT, 24, 3, 3]
    turns = Rotation.from_rotvec(ANGLES.reshape(-1, 3)).as_matrix().reshape(COUNT, 24, 3, 3)
    turns[:, 0] = root @ turns[:, 0]
    return turns


def upright() -> np.ndarray:  # [3, 3]: Rx(90 degrees) Rz(zrot)
    lie = Rotation.from_rotvec([np.pi / 2, 0, 0]).as_matrix()
    return lie @ Rotation.from_rotvec([0, 0, ZROT]).as_matrix()


def seen(points: np.ndarray) -> np.ndarray:  # world -> axes of the picture mirrored back
    """Right is -x of the published camera (it is mirrored back), down is -y, forward is -z."""
    return np.stack([-(points @ X), -(points @ Y), -(points @ Z)], -1)


def joints(gender: str = "female") -> np.ndarray:  # [COUNT, 24, 3] metres, world
    return smplx_points(gender, turned(upright()), np.tile(SHAPE, (COUNT, 1)))[1] + [0.1, -0.2, 0.3]


def write_clip(
    folder: Path, clip: str, gender: int = 0, count: int = COUNT, aside: float = 0.0
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    points = joints("male" if gender else "female")[:count]
    offset = points - CAM_LOC
    depth = -(offset @ Z)
    pixels = np.stack([160 + 600 * (offset @ X) / depth, 120 - 600 * (offset @ Y) / depth])
    info = {
        "pose": ANGLES[:count].reshape(count, 72).T,
        "shape": np.repeat(SHAPE[:, None], count, 1),
        "joints3D": points.transpose(2, 1, 0),
        "joints2D": np.add(pixels.transpose(0, 2, 1).round(), [[[aside]], [[0]]]),
        "zrot": np.full(count, ZROT),
        "gender": np.full(count, gender, np.uint8),
        "camLoc": CAM_LOC,
    }
    savemat(folder / f"{clip}_info.mat", info)
    write_grey_video(folder / f"{clip}.mp4", count, 320, 240)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("surreal")
    for clip in ("01_01_c0001", "01_01_c0002", "01_01_c0003"):
        write_clip(folder / "cmu" / "test" / "run0" / "01_01", clip)
    write_clip(folder / "cmu" / "test" / "run1" / "02_04", "02_04_c0001", gender=1)
    return folder


@pytest.fixture(scope="module")
def smpl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smpl")
    write_smpl(folder)
    return folder


def test_the_middle_frame_of_the_middle_clip_counts(root: Path) -> None:
    test = open_public_set(CONFIG, root)
    assert [frame.label.split("/")[-1] for frame in test] == [
        "01_01_c0002.mp4 (frame 2)",
        "02_04_c0001.mp4 (frame 2)",
    ]
    assert test.genders == ("female", "male")
    assert len(open_public_set(replace(CONFIG, middle_frame=False), root)) == 4 * COUNT
    every = open_public_set(replace(CONFIG, middle_frame=False, every=3), root)
    assert [frame.label[-2] for frame in every] == ["0", "3"] * 4


def test_frames_that_show_nobody_are_left_out_and_counted(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cmu" / "test" / "run0"
    write_clip(folder / "01_01", "01_01_c0001")
    write_clip(folder / "01_02", "01_02_c0001", aside=-900.0)
    test = open_public_set(CONFIG, tmp_path)
    assert [frame.sequence for frame in test] == ["01_01"]
    assert test.left_out == {"nobody in the picture": 1}


def test_a_list_names_the_clips(root: Path, tmp_path: Path) -> None:
    names = tmp_path / "namescmu.txt"
    names.write_text(
        "/data/cmu/test/run1/02_04/02_04_c0001.mp4\t100\n/x/test/run0/01_01/01_01_c0003.mp4\t3\n"
    )
    listed = replace(CONFIG, clips=str(names))
    labels = [frame.label.split("/")[-1] for frame in open_public_set(listed, root)]
    assert labels == ["02_04_c0001.mp4 (frame 2)", "01_01_c0003.mp4 (frame 2)"]
    names.write_text("run9/01_01/01_01_c0003.mp4")
    with pytest.raises(DataError, match=r"run9/01_01/01_01_c0003_info\.mat\n.*c0003\.mp4"):
        open_public_set(listed, root)
    with pytest.raises(DataError, match=r"nowhere\.txt cannot be read"):
        open_public_set(replace(CONFIG, clips=str(tmp_path / "nowhere.txt")), root)


def test_joints_are_in_the_axes_of_the_picture_mirrored_back(root: Path) -> None:
    frames = list(open_public_set(CONFIG, root))
    np.testing.assert_allclose(frames[0].joints, seen(joints())[2], atol=1e-6)
    local = seen(joints()[2] - CAM_LOC)  # lands where the mirrored pixels of joints2D are
    pixels = 600 * local[:, :2] / local[:, 2:] + [159, 120]  # the last column is 319
    box = frames[0].box
    assert (box.left, box.top) == pytest.approx(tuple(pixels.min(0)), abs=1)
    assert (box.right, box.bottom) == pytest.approx(tuple(pixels.max(0)), abs=1)


def test_pictures_are_mirrored_back(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "cmu" / "test" / "run0" / "01_01"
    write_clip(folder, "01_01_c0001", count=1)
    pixels = np.full((240, 320, 3), 40, np.uint8)
    pixels[:, :160] = 200
    with av.open(str(folder / "01_01_c0001.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
            container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    frame = next(iter(open_public_set(CONFIG, tmp_path)))
    assert frame.pixels[100, [40, 280], 0].tolist() == pytest.approx([40, 200], abs=4)


def test_the_right_answer_has_no_error_but_the_models(root: Path, smpl: Path) -> None:
    """The female model is 0.9 times the neutral one that answers are posed with."""
    camera = np.stack([-X, -Y, -Z]) @ upright()
    shapes = np.tile(SHAPE, (COUNT, 1))
    estimator = StandIn((), rotations=turned(camera), shape=shapes)
    result = evaluate_public(estimator, open_public_set(CONFIG, root), SmplMeshes(str(smpl)))
    own = joints()[2]
    reach = 1000 * np.linalg.norm(own - own[:1], axis=1).mean()
    row = result.frames.iloc[0]
    assert row["mpjpe_mm"] == pytest.approx((1 / 0.9 - 1) * reach, rel=1e-3)
    assert row["pa_mpjpe_mm"] == pytest.approx(0, abs=0.01)
    vertices = smplx_points("female", turned(upright()), shapes)[0][2]
    pelvis = smplx_points("female", turned(upright()), shapes)[1][2, :1]
    extent = 1000 * np.linalg.norm(vertices - pelvis, axis=1).mean()
    assert row["pve_mm"] == pytest.approx((1 / 0.9 - 1) * extent, rel=1e-3)
    assert result.joints == "24, pelvis at 0"
    neutral = open_public_set(replace(CONFIG, ground_truth="neutral"), root)
    assert neutral.genders == ("neutral",)
    row = evaluate_public(estimator, neutral, SmplMeshes(str(smpl))).frames.iloc[0]
    assert row["pve_mm"] == pytest.approx(0, abs=0.05)  # the joints stay those of the file


def test_joints_alone_need_no_smpl(root: Path) -> None:
    answers = seen(joints())[:, list(LIMB_JOINTS)]
    answers[:, 3] += [0, 0.024, 0]
    test = open_public_set(replace(CONFIG, joints="limbs12"), root)
    estimator = StandIn(LIMB_JOINT_NAMES, joints=answers)
    result = evaluate_public(estimator, test, SmplMeshes(""))
    assert result.joints == "12, mid_hip at 0"
    assert result.frames["mpjpe_mm"][0] == pytest.approx(2.0, rel=1e-3)
    parametric = StandIn((), rotations=turned(np.eye(3)), shape=np.zeros((COUNT, 10)))
    with pytest.raises(AssetError, match=r"SMPL_NEUTRAL\.pkl"):
        evaluate_public(parametric, test, SmplMeshes(""))


def test_all_that_is_missing_is_listed(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cmu/test/run\*/\*/\*_info\.mat \n.*surreal/data/license"):
        open_public_set(CONFIG, tmp_path)
    for name in ("01_01", "02_02"):
        write_clip(tmp_path / "cmu" / "test" / "run2" / name, f"{name}_c0001")
        (tmp_path / "cmu" / "test" / "run2" / name / f"{name}_c0001.mp4").unlink()
    with pytest.raises(DataError, match=r"01_01_c0001\.mp4\n.*02_02_c0001\.mp4"):
        open_public_set(CONFIG, tmp_path)


def test_a_video_that_ends_early_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "cmu" / "test" / "run0" / "01_01"
    write_clip(folder, "01_01_c0001")
    write_grey_video(folder / "01_01_c0001.mp4", 2, 320, 240)
    with pytest.raises(DataError, match=r"01_01_c0001\.mp4 has 2 frames: frame 2 is missing"):
        list(open_public_set(CONFIG, tmp_path))
