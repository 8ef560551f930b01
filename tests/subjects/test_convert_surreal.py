"""SURREAL: a small clip in its layout, drawn by the published camera; geometry against smplx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recordings import (
    SHAPE,
    assert_lands_on,
    assert_round_trip,
    axis_rotation,
    grey_frames,
    random_angles,
    rotation_matrix,
    smpl_config,
    smplx_points,
    write_video,
)
from scipy.io import savemat

from posegen_ray.body.rotation import to_axis_angle
from posegen_ray.config import ConvertConfig
from posegen_ray.errors import AssetError, DataError
from posegen_ray.subjects.capture import Capture
from posegen_ray.subjects.converters import convert

HEIGHT, WIDTH, FRAMES = 240, 320, 4
ZROT = 2.2
CAM_LOC = np.array([7.3, -0.4, 0.5])
CLIP = "01_01_c0001"


def published_pixels(points: np.ndarray) -> np.ndarray:  # [P, 3] -> [P, 2], y down
    """Blender's camera looks along its -z with y up. Its matrix, as the data set states it, has
    the columns x, y, z of the camera in the world; f = 60 mm on 32 mm of 320 pixels."""
    x, y, z = np.array([[0.0, 0, -1], [0, -1, 0], [1, 0, 0]])
    offset = points - CAM_LOC
    depth = -(offset @ z)
    assert depth.min() > 1
    return np.stack(
        [160 + 600 * (offset @ x) / depth, 240 - (120 + 600 * (offset @ y) / depth)], -1
    )


def angles() -> np.ndarray:  # [FRAMES, 72], root as in CMU's captures: z up
    poses = random_angles(5, FRAMES)
    poses[:, :3] = [[1.5, 0.1 * i, -0.2] for i in range(FRAMES)]
    return poses


def person(frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and joints in Blender's world."""
    root = (
        axis_rotation(0, np.pi / 2) @ axis_rotation(2, ZROT) @ rotation_matrix(angles()[frame, :3])
    )
    turned = to_axis_angle(torch.from_numpy(root)).numpy()
    vertices, joints = smplx_points("female", np.r_[turned, angles()[frame, 3:]], SHAPE)
    move = np.array([0.1, -0.1 + 0.05 * frame, 0.2])
    return vertices + move, joints + move


def info(frames: int = FRAMES) -> dict[str, Any]:
    joints = [person(frame)[1] for frame in range(frames)]
    return {
        "pose": angles()[:frames].T.astype(np.float32),
        "shape": np.repeat(SHAPE[:, None], frames, 1).astype(np.float32),
        "joints3D": np.stack([j.T for j in joints], -1).astype(np.float32),
        "joints2D": np.stack([published_pixels(j).round().T for j in joints], -1),
        "zrot": np.full(frames, ZROT, np.float32),
        "gender": np.zeros(frames, np.uint8),
        "camLoc": CAM_LOC,
        "camDist": 7.2,
        "sequence": CLIP,
    }


def segmentation() -> dict[str, np.ndarray]:
    masks = {}
    for frame in range(FRAMES):
        parts = np.zeros((HEIGHT, WIDTH), np.uint8)
        parts[60:200, 20 + frame : 60] = 7  # in the left of the picture
        masks[f"segm_{frame + 1}"] = parts
    return masks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    savemat(tmp_path / f"{CLIP}_info.mat", info(), do_compression=True)
    savemat(tmp_path / f"{CLIP}_segm.mat", segmentation(), do_compression=True)
    write_video(tmp_path / f"{CLIP}.mp4", grey_frames(FRAMES, HEIGHT, WIDTH))
    return tmp_path


def converted(source: Path, **settings: Any) -> Capture:
    return convert(ConvertConfig(format="surreal", source=str(source), **settings), smpl_config())[
        0
    ]


def test_vertices_land_on_the_mirrored_pixels_of_the_published_camera(folder: Path) -> None:
    capture = converted(folder)
    assert len(capture) == FRAMES
    for frame in range(FRAMES):
        pixels = published_pixels(person(frame)[0])
        pixels[:, 0] = WIDTH - pixels[:, 0]
        assert_lands_on(capture, "female", frame, pixels)


def test_pictures_and_masks_are_mirrored_back(folder: Path) -> None:
    capture = converted(folder)
    left, right = capture.images[:, 100, 40, 0].tolist(), capture.images[:, 100, 280, 0].tolist()
    assert left == pytest.approx([20, 50, 80, 110], abs=4)
    assert right == pytest.approx([35, 65, 95, 125], abs=4)
    columns = [np.flatnonzero(mask.any(0)) for mask in capture.masks.numpy()]
    assert [(c[0], c[-1]) for c in columns] == [(260, 299 - frame) for frame in range(FRAMES)]
    assert_round_trip(capture, folder)


def test_the_person_stands_upright_and_is_of_the_clips_gender(folder: Path) -> None:
    capture, body = convert(ConvertConfig(format="surreal", source=str(folder)), smpl_config())
    assert (capture.name, body.gender) == (CLIP, "female")
    down = capture.camera.rotation[:, 1]
    assert np.allclose(down.numpy(), [0, -1, 0])


def test_a_clip_is_named_by_its_info_file_and_may_have_one_frame(folder: Path) -> None:
    for ending in ("_info.mat", "_segm.mat", ".mp4"):
        (folder / f"01_01_c0002{ending}").write_bytes((folder / f"{CLIP}{ending}").read_bytes())
    with pytest.raises(DataError, match="holds 2 clips"):
        converted(folder)
    path = folder / "01_01_c0002_info.mat"
    assert converted(path).name == "01_01_c0002"
    single = info(1)  # Matlab drops the last axis
    single.update(joints2D=single["joints2D"][..., 0], joints3D=single["joints3D"][..., 0])
    savemat(path, single)
    write_video(folder / "01_01_c0002.mp4", grey_frames(1, HEIGHT, WIDTH))
    assert len(converted(path)) == 1


def _spoil(folder: Path, damage: str) -> None:
    content, masks = info(), segmentation()
    path, video = folder / f"{CLIP}_info.mat", folder / f"{CLIP}.mp4"
    if damage == "NaN pose":
        content["pose"][9, 2] = np.nan
    elif damage == "other camera":
        content["camLoc"] = CAM_LOC + np.array([0, 0, 0.3])
    elif damage == "other turn":
        content["zrot"] = content["zrot"] + 0.3 * (np.arange(FRAMES) == 1)
    elif damage == "mixed gender":
        content["gender"][1] = 1
    elif damage == "other shape":
        content["shape"][0, 3] += 1
    elif damage == "short joints":
        content["joints3D"] = content["joints3D"][..., :3]
    elif damage == "no zrot":
        del content["zrot"]
    elif damage == "missing mask":
        del masks["segm_3"]
    elif damage == "empty mask":
        masks["segm_2"][:] = 0
    elif damage == "long video":
        write_video(video, grey_frames(FRAMES + 1, HEIGHT, WIDTH))
    elif damage == "small video":
        write_video(video, grey_frames(FRAMES, HEIGHT, WIDTH // 2))
    savemat(path, content)
    savemat(folder / f"{CLIP}_segm.mat", masks)
    if damage == "truncated info":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "no masks":
        (folder / f"{CLIP}_segm.mat").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("NaN pose", r"_info\.mat \(frame 2\): the pose holds NaN"),
        ("other camera", r"_info\.mat \(frame 0\): joints3D seen from camLoc are .* pixels from"),
        ("other turn", r"_info\.mat \(frame 1\): SMPL female posed .* mm from joints3D"),
        ("mixed gender", r"gender is \[0\.0, 1\.0\]"),
        ("other shape", r"\(frame 3\): shape differs"),
        ("short joints", r"joints3D has shape \(3, 24, 3\) instead of \(3, 24, 4\)"),
        ("no zrot", "lacks zrot"),
        ("missing mask", r"_segm\.mat lacks segm_3 \(frame 2\)"),
        ("empty mask", r"\(frame 1\): the mask is empty"),
        ("long video", r"01_01_c0001\.mp4 has 5 frames, but .* has 4: frame 4"),
        ("small video", r"is 160 x 240 pixels"),
        ("truncated info", r"_info\.mat cannot be read"),
        ("no masks", r"_segm\.mat is missing"),
    ],
)
def test_bad_clips_are_refused(folder: Path, damage: str, message: str) -> None:
    _spoil(folder, damage)
    with pytest.raises(DataError, match=message):
        converted(folder)


def test_the_clips_gender_needs_its_smpl_file(folder: Path) -> None:
    savemat(folder / f"{CLIP}_info.mat", {**info(), "gender": np.ones(FRAMES)})
    with pytest.raises(AssetError, match="SMPL_MALE"):
        converted(folder)
