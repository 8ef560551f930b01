"""What the converters' tests share: a small SMPL, smplx's own posing of it, and one comparison."""

from __future__ import annotations

import atexit
import functools
import pickle
import shutil
import tempfile
from pathlib import Path

import av
import numpy as np
import smplx
import torch

from posegen_ray.body.camera import project
from posegen_ray.body.rotation import about_axis, from_axis_angle
from posegen_ray.body.skeleton import NUM_JOINTS, PARENTS
from posegen_ray.body.smpl import load_smpl_body
from posegen_ray.config import BodyConfig
from posegen_ray.subjects.capture import Capture, read_capture, write_capture

VERTICES = 6890  # smplx's forward picks landmarks by number
SHAPE = np.array([0.8, -1.1, 0.5, 0.3, -0.6, 0.2, 0.9, -0.4, 0.1, -0.7])


def write_smpl(folder: Path, gender: str) -> None:
    """A random model in SMPL's file layout, about as large as a person."""
    stream = np.random.default_rng(len(gender))

    def rows_that_sum_to_one(rows: int, columns: int) -> np.ndarray:
        table = stream.random((rows, columns)) ** 8
        return table / table.sum(1, keepdims=True)

    # single vertices: means of random ones would all lie in the middle
    regressor = np.zeros((NUM_JOINTS, VERTICES))
    regressor[np.arange(NUM_JOINTS), stream.choice(VERTICES, NUM_JOINTS, False)] = 1
    model = {
        "v_template": 0.25 * stream.normal(size=(VERTICES, 3)) + [0.02, -0.3, 0.05],
        "shapedirs": 0.02 * stream.normal(size=(VERTICES, 3, 10)),
        "posedirs": 0.003 * stream.normal(size=(VERTICES, 3, 207)).astype(np.float32),
        "J_regressor": regressor,
        "weights": rows_that_sum_to_one(VERTICES, NUM_JOINTS),
        "kintree_table": np.array([PARENTS, range(NUM_JOINTS)]) % 2**32,
        "f": stream.integers(0, VERTICES, (50, 3)).astype(np.uint32),
    }
    with (folder / f"SMPL_{gender.upper()}.pkl").open("wb") as file:
        pickle.dump(model, file)


@functools.cache
def smpl_folder() -> Path:
    """Written once a session (34 MB), removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="smpl-"))
    atexit.register(shutil.rmtree, folder)
    for gender in ("neutral", "female"):
        write_smpl(folder, gender)
    return folder


def smpl_config(gender: str = "neutral") -> BodyConfig:
    return BodyConfig(name="smpl", smpl_folder=str(smpl_folder()), gender=gender)


def random_angles(seed: int, frames: int) -> np.ndarray:  # [frames, 72]
    return 0.5 * np.random.default_rng(seed).normal(size=(frames, 72))


def rotation_matrix(angles: np.ndarray) -> np.ndarray:  # [..., 3] -> [..., 3, 3]
    return from_axis_angle(torch.from_numpy(np.asarray(angles, np.float64))).numpy()


def axis_rotation(axis: int, angle: float) -> np.ndarray:  # [3, 3]
    return about_axis(axis, torch.tensor(angle, dtype=torch.float64)).numpy()


@functools.cache
def _smplx(gender: str) -> smplx.SMPL:
    return smplx.SMPL(str(smpl_folder()), gender=gender, dtype=torch.float64)


def smplx_points(
    gender: str,
    angles: np.ndarray,  # [72]
    shape: np.ndarray,  # [10]
) -> tuple[np.ndarray, np.ndarray]:  # vertices [6890, 3], joints [24, 3]: without trans
    """The smplx package's own posing, in its own coordinates, in float64."""
    pose = torch.from_numpy(angles)[None]
    with torch.no_grad():
        out = _smplx(gender)(
            betas=torch.from_numpy(shape)[None],
            global_orient=pose[:, :3],
            body_pose=pose[:, 3:],
        )
    return out.vertices[0].numpy(), out.joints[0, :NUM_JOINTS].numpy()


def assert_lands_on(
    capture: Capture,
    gender: str,
    frame: int,
    pixels: np.ndarray,  # [6890, 2] where the data set's own camera sees its own vertices, +0.5
) -> None:
    """Our body in the capture's pose, seen by the capture's camera, is on the same pixels."""
    body = load_smpl_body(smpl_folder(), gender)
    poses = capture.poses[[frame]]
    posed = body(poses.rotations, capture.shape[None], poses.translation, vertices=True)
    ours = project(capture.camera[[frame]], posed.vertices)[0].numpy()
    assert np.isfinite(pixels).all()
    assert np.ptp(pixels, 0).min() > 20, "the person must be large enough for the test to mean much"
    assert np.abs(ours - pixels).max() < 0.01


def seen(
    matrix: np.ndarray,  # [3, 3] K of the data set
    rotation: np.ndarray,  # [3, 3]
    translation: np.ndarray,  # [3]
    points: np.ndarray,  # [P, 3] world of the data set
) -> np.ndarray:  # [P, 2]
    """A pinhole camera, written out once more."""
    local = points @ rotation.T + translation
    assert local[:, 2].min() > 0.1
    flat = local @ matrix.T
    return flat[:, :2] / flat[:, 2:]


def look_at(
    place: tuple[float, float, float], target: tuple[float, float, float], up: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:  # world -> camera: [3, 3], [3]
    """An OpenCV camera that stands at a place."""
    forward = np.subtract(target, place)
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, up)
    right = right / np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return rotation, -rotation @ np.asarray(place, float)


def assert_round_trip(capture: Capture, tmp_path: Path) -> None:
    """`read_capture`, with all its checks, accepts what the converter made."""
    write_capture(capture, tmp_path / "written")
    assert read_capture(tmp_path / "written").sha256() == capture.sha256()


def write_video(path: Path, frames: np.ndarray) -> None:  # [N, H, W, 3] uint8, even H and W
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.bit_rate = 8_000_000
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def grey_frames(count: int, height: int, width: int) -> np.ndarray:  # [N, H, W, 3] uint8
    """Frame i is of grey 20 + 30 i, its left half 15 brighter: frames and sides can be told."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for i in range(count):
        frames[i] = 20 + 30 * i
        frames[i, :, : width // 2] += 15
    return frames
