"""PeopleSnapshot: a small recording in its layout; geometry against smplx and its own camera."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from recordings import (
    SHAPE,
    assert_lands_on,
    assert_round_trip,
    grey_frames,
    random_angles,
    rotation_matrix,
    seen,
    smpl_config,
    smplx_points,
    write_video,
)

from posegen_ray.config import ConvertConfig
from posegen_ray.errors import AssetError, DataError
from posegen_ray.subjects.capture import Capture
from posegen_ray.subjects.converters import convert

HEIGHT, WIDTH, FRAMES = 64, 48, 5
FOCAL, CENTRE = 640.0, (24.0, 32.0)


def poses() -> np.ndarray:
    angles = random_angles(3, FRAMES)
    angles[:, :3] = [[3.0, 0.2 * i, 0.1] for i in range(FRAMES)]  # y points down in their world
    return angles


def make(root: Path, name: str = "female-3-casual", **camera: Any) -> Path:
    folder = root / name
    folder.mkdir()
    content = {
        "camera_f": np.array([FOCAL, FOCAL]),
        "camera_c": np.array(CENTRE),
        "camera_k": np.zeros(5),
        "camera_rt": np.zeros(3),
        "camera_t": np.zeros(3),
        "width": WIDTH,
        "height": HEIGHT,
        **camera,
    }
    (folder / "camera.pkl").write_bytes(pickle.dumps(content, protocol=2))
    masks = np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8)
    for i in range(FRAMES):
        masks[i, 10 + i : 50, 10:30] = 1
    with h5py.File(folder / "masks.hdf5", "w") as file:
        file["masks"] = masks
    with h5py.File(folder / "reconstructed_poses.hdf5", "w") as file:
        file["pose"] = poses()
        file["trans"] = np.array([[0.05, 0.2, 2.6 + 0.1 * i] for i in range(FRAMES)])
        file["betas"] = SHAPE
    write_video(folder / f"{name}.mp4", grey_frames(FRAMES, HEIGHT, WIDTH))
    return folder


def converted(folder: Path, **settings: Any) -> Capture:
    return convert(
        ConvertConfig(format="people_snapshot", source=str(folder), **settings), smpl_config()
    )[0]


@pytest.mark.parametrize(
    ("turn", "move"), [(np.zeros(3), np.zeros(3)), (np.array([0.1, -0.2, 0.3]), np.full(3, 0.1))]
)
def test_vertices_land_where_the_data_sets_own_camera_puts_them(
    tmp_path: Path, turn: np.ndarray, move: np.ndarray
) -> None:
    capture = converted(make(tmp_path, camera_rt=turn, camera_t=move))
    assert len(capture) == FRAMES
    matrix = np.array([[FOCAL, 0, CENTRE[0]], [0, FOCAL, CENTRE[1]], [0, 0, 1]])
    for frame in range(FRAMES):
        vertices, _ = smplx_points("female", poses()[frame], SHAPE)
        world = vertices + np.array([0.05, 0.2, 2.6 + 0.1 * frame])
        pixels = seen(matrix, rotation_matrix(turn), move, world) + 0.5  # OpenDR's half pixel
        assert_lands_on(capture, "female", frame, pixels)


def test_frames_and_masks_belong_together(tmp_path: Path) -> None:
    capture = converted(make(tmp_path), start=1, stride=2)
    assert capture.images[:, 5, 40, 0].tolist() == pytest.approx([50, 110], abs=4)
    assert capture.masks[:, :, 20].float().argmax(1).tolist() == [11, 13]
    assert set(capture.masks.unique().tolist()) == {0, 255}
    assert_round_trip(capture, tmp_path)


def test_the_persons_gender_is_the_folders(tmp_path: Path) -> None:
    settings = ConvertConfig(format="people_snapshot", source=str(make(tmp_path)))
    capture, body = convert(settings, smpl_config("neutral"))
    assert (body.name, body.gender) == ("smpl", "female")
    assert "SMPL female" in capture.source
    with pytest.raises(AssetError, match=r"SMPL_MALE"):
        converted(make(tmp_path, "male-2-sport"))


def _replace(path: Path, **arrays: np.ndarray) -> None:
    with h5py.File(path, "a") as file:
        for name, array in arrays.items():
            del file[name]
            file[name] = array


def _spoil(folder: Path, damage: str) -> None:
    masks, found = folder / "masks.hdf5", folder / "reconstructed_poses.hdf5"
    video = folder / "female-3-casual.mp4"
    camera = folder / "camera.pkl"
    if damage == "missing masks":
        masks.unlink()
    elif damage == "masks under another name":
        with h5py.File(masks, "a") as file:
            file.move("masks", "mask")
    elif damage == "truncated masks":
        masks.write_bytes(masks.read_bytes()[:300])
    elif damage == "one mask less":
        _replace(masks, masks=np.ones((FRAMES - 1, HEIGHT, WIDTH), np.uint8))
    elif damage == "empty mask":
        painted = np.ones((FRAMES, HEIGHT, WIDTH), np.uint8)
        painted[2] = 0
        _replace(masks, masks=painted)
    elif damage == "NaN pose":
        angles = poses()
        angles[3, 7] = np.nan
        _replace(found, pose=angles)
    elif damage == "trans of other frames":
        _replace(found, trans=np.zeros((FRAMES + 1, 3)))
    elif damage == "long video":
        write_video(video, grey_frames(FRAMES + 2, HEIGHT, WIDTH))
    elif damage == "truncated video":
        video.write_bytes(video.read_bytes()[:200])
    elif damage == "missing video":
        video.unlink()
    elif damage == "wrong K":
        content = pickle.loads(camera.read_bytes())
        camera.write_bytes(pickle.dumps({**content, "camera_c": np.array([24.0, 3200.0])}))
    elif damage == "half a camera":
        camera.write_bytes(camera.read_bytes()[:100])
    elif damage == "another pickle":
        camera.write_bytes(pickle.dumps({"K": 1}))
    elif damage == "code":
        camera.write_bytes(pickle.dumps(sys.exit))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing masks", r"masks\.hdf5 is missing"),
        ("masks under another name", r"masks\.hdf5 lacks a data set"),
        ("truncated masks", r"masks\.hdf5 cannot be read"),
        ("one mask less", r"masks\.hdf5 has 4 frames, but .* has 5: frame 4"),
        ("empty mask", r"masks\.hdf5 \(frame 2\): the mask is empty"),
        ("NaN pose", r"reconstructed_poses\.hdf5 \(frame 3\): the pose holds NaN"),
        ("trans of other frames", r"shapes \(5, 72\), \(6, 3\)"),
        ("long video", r"female-3-casual\.mp4 has 7 frames, but .* has 5: frame 5"),
        ("truncated video", r"female-3-casual\.mp4 cannot be read"),
        ("missing video", r"female-3-casual\.mp4 is missing"),
        ("wrong K", r"\(frame 0\): K has its principal point .* outside the picture"),
        ("half a camera", r"camera\.pkl cannot be read"),
        ("another pickle", r"camera\.pkl is not a camera of PeopleSnapshot"),
        ("code", r"camera\.pkl asks for sys\.exit"),
    ],
)
def test_bad_recordings_are_refused(tmp_path: Path, damage: str, message: str) -> None:
    folder = make(tmp_path)
    _spoil(folder, damage)
    with pytest.raises(DataError, match=message):
        converted(folder)


@pytest.mark.parametrize("package", ["h5py", "av"])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(AssetError, match=rf"needs the package {package}.*posegen-ray\[captures\]"):
        converted(folder)
