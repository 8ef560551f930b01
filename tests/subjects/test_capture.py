"""Captures survive a round trip; bad ones are refused with the file and the frame."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from posegen_ray.body.camera import Camera
from posegen_ray.errors import DataError
from posegen_ray.records import PoseBatch
from posegen_ray.subjects.capture import Capture, read_capture, split_rgba, write_capture

FRAMES = 3


@pytest.fixture
def capture() -> Capture:
    stream = np.random.default_rng(0)
    images = stream.integers(0, 256, (FRAMES, 8, 6, 3), dtype=np.uint8)
    masks = np.zeros((FRAMES, 8, 6), np.uint8)
    masks[:, 2:5, 1:4] = 255
    eye = torch.eye(3)
    return Capture(
        name="someone",
        body="anny",
        shape=torch.tensor([0.5, -1.0]),
        images=torch.from_numpy(images),
        masks=torch.from_numpy(masks),
        poses=PoseBatch(eye.repeat(FRAMES, 24, 1, 1), torch.randn(FRAMES, 3)),
        camera=Camera(
            eye.repeat(FRAMES, 1, 1),
            torch.tensor([[0.0, 0.0, 3.0]]).repeat(FRAMES, 1),
            torch.full((FRAMES,), 9.0),
            torch.full((FRAMES, 2), 4.0),
            8,
            6,
        ),
        held_out=torch.tensor([False, False, True]),
        licence="CC0",
        source="made for a test",
    )


@pytest.fixture
def folder(capture: Capture, tmp_path: Path) -> Path:
    write_capture(capture, tmp_path / "capture")
    return tmp_path / "capture"


def test_a_capture_survives_the_round_trip(capture: Capture, folder: Path) -> None:
    loaded = read_capture(folder)
    assert (loaded.name, loaded.body, loaded.licence) == ("someone", "anny", "CC0")
    assert torch.equal(loaded.images, capture.images)
    assert torch.equal(loaded.masks, capture.masks)
    assert torch.equal(loaded.poses.translation, capture.poses.translation)
    assert torch.equal(loaded.held_out, capture.held_out)
    assert (loaded.camera.height, loaded.camera.width) == (8, 6)
    assert loaded.sha256() == capture.sha256()


def test_some_pixels_of_some_frames_are_those_of_whole_targets(capture: Capture) -> None:
    frames = [2, 0]
    whole = torch.stack([capture.target(index) for index in frames]).view(-1, 4)
    rows = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))[:50]
    assert torch.equal(capture.targets(frames, rows), whole[rows])


def test_the_hash_tells_captures_apart(capture: Capture) -> None:
    before = capture.sha256()
    capture.images[0, 0, 0, 0] ^= 1
    assert capture.sha256() != before


def test_a_folder_in_use_is_not_overwritten(capture: Capture, folder: Path) -> None:
    with pytest.raises(DataError, match="not empty"):
        write_capture(capture, folder)


def test_renders_are_stored_with_straight_colours() -> None:
    rgba = torch.tensor([0.1, 0.2, 0.25, 0.5]).repeat(1, 2, 2, 1)
    images, masks = split_rgba(rgba)
    assert images[0, 0, 0].tolist() == [51, 102, 128]
    assert (masks == 128).all()


def _frames(folder: Path, **changes: np.ndarray) -> None:
    with np.load(folder / "frames.npz") as archive:
        arrays = dict(archive)
    np.savez(folder / "frames.npz", **{**arrays, **changes})


def _spoil(folder: Path, damage: str) -> None:
    with np.load(folder / "frames.npz") as archive:
        arrays = dict(archive)
    image, mask = folder / "images" / "00001.png", folder / "masks" / "00001.png"
    header = folder / "capture.json"
    if damage == "missing mask":
        mask.unlink()
    elif damage == "truncated image":
        image.write_bytes(image.read_bytes()[:40])
    elif damage == "wrong size":
        Image.new("RGB", (6, 9)).save(image)
    elif damage == "empty mask":
        Image.new("L", (6, 8)).save(mask)
    elif damage == "extra image":
        Image.new("RGB", (6, 8)).save(folder / "images" / "00003.png")
    elif damage == "NaN pose":
        rotations = arrays["rotations"].copy()
        rotations[2, 5] = np.nan
        _frames(folder, rotations=rotations)
    elif damage == "no rotation":
        rotations = arrays["camera_rotation"].copy()
        rotations[1] *= 2
        _frames(folder, camera_rotation=rotations)
    elif damage == "count":
        _frames(folder, focal=arrays["focal"][:2])
    elif damage == "matrix focal":
        _frames(folder, focal=np.stack([arrays["focal"]] * 2, 1))
    elif damage == "negative focal":
        _frames(folder, focal=-arrays["focal"])
    elif damage == "truncated frames":
        content = (folder / "frames.npz").read_bytes()
        (folder / "frames.npz").write_bytes(content[: len(content) // 2])
    elif damage == "no header":
        header.unlink()
    elif damage == "half a header":
        header.write_text(header.read_text()[:20])
    elif damage == "no licence":
        values = json.loads(header.read_text())
        del values["licence"]
        header.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing mask", r"masks/00001\.png \(frame 1\) is missing"),
        ("truncated image", r"images/00001\.png \(frame 1\) cannot be read"),
        ("wrong size", r"\(frame 1\) is 6 x 9 pixels"),
        ("empty mask", r"\(frame 1\) is empty"),
        ("extra image", r"holds 4 pictures.*00003\.png"),
        ("NaN pose", "rotations of frame 2 holds NaN"),
        ("no rotation", "camera_rotation of frame 1 is not a rotation"),
        ("count", r"focal describes 2 frames, held_out 3: frame 2 has none"),
        ("matrix focal", r"focal has shape \(3, 2\)"),
        ("negative focal", "focal of frame 0 is not positive"),
        ("truncated frames", r"frames\.npz cannot be read"),
        ("no header", "There is no capture"),
        ("half a header", r"capture\.json cannot be read"),
        ("no licence", "lacks licence"),
    ],
)
def test_bad_captures_are_refused(folder: Path, damage: str, message: str) -> None:
    _spoil(folder, damage)
    with pytest.raises(DataError, match=message):
        read_capture(folder)
