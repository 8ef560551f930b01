"""A folder of plain frames: pictures or a video, masks, cameras.json, poses.npz."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bodies import capsule_body
from PIL import Image
from recordings import (
    SHAPE,
    assert_lands_on,
    assert_round_trip,
    grey_frames,
    look_at,
    random_angles,
    rotation_matrix,
    seen,
    smpl_config,
    smplx_points,
    write_video,
)

from posegen_ray.body.camera import project
from posegen_ray.body.smpl import load_smpl_body
from posegen_ray.config import BodyConfig, ConvertConfig
from posegen_ray.errors import DataError
from posegen_ray.subjects.capture import Capture, joints_in_mask
from posegen_ray.subjects.converters import convert, frames

HEIGHT, WIDTH, FRAMES = 48, 64, 4
K = np.array([[500.0, 0, 30.0], [0, 500.0, 25.0], [0, 0, 1]])
UP = {"y": np.array([0.0, 1, 0]), "-y": np.array([0.0, -1, 0]), "z": np.array([0.0, 0, 1])}
TRANS = np.array([[0.1, 0.05 * i, -0.1] for i in range(FRAMES)])


def cameras(up: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        look_at((2.0 + 0.2 * i, 1.5, 3.0), (0.1, 0.0, -0.1), UP[up] + 0.01) for i in range(FRAMES)
    ]


def make(
    folder: Path,
    up: str = "y",
    video: bool = False,
    camera: dict[str, Any] | None = None,
    **poses: Any,
) -> Path:
    folder.mkdir(exist_ok=True)
    listed = [
        {"K": K.tolist(), "R": rotation.tolist(), "t": translation.tolist()}
        for rotation, translation in cameras(up)
    ]
    content = {"up": up, **({"cameras": listed} if camera is None else {"camera": camera})}
    (folder / "cameras.json").write_text(json.dumps(content))
    arrays = {"poses": random_angles(7, FRAMES), "trans": TRANS, "betas": SHAPE, **poses}
    np.savez(folder / "poses.npz", **{k: v for k, v in arrays.items() if v is not None})
    pictures = grey_frames(FRAMES, HEIGHT, WIDTH)
    if video:
        write_video(folder / "video.mp4", pictures)
    for kind in ("masks",) if video else ("images", "masks"):
        (folder / kind).mkdir(exist_ok=True)
        for i in range(FRAMES):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[5 + i : 40, 10:40] = 1
            pixels = pictures[i] if kind == "images" else mask
            Image.fromarray(pixels).save(folder / kind / f"f{i:03d}.png")
    return folder


def converted(folder: Path, body: BodyConfig | None = None, **settings: Any) -> Capture:
    return convert(
        ConvertConfig(format="frames", source=str(folder), **settings), body or smpl_config()
    )[0]


@pytest.mark.parametrize("up", ["y", "-y", "z"])
def test_vertices_land_where_their_camera_puts_them(tmp_path: Path, up: str) -> None:
    capture = converted(make(tmp_path / "someone", up))
    for frame, (rotation, translation) in enumerate(cameras(up)):
        vertices, _ = smplx_points("neutral", random_angles(7, FRAMES)[frame], SHAPE)
        pixels = seen(K, rotation, translation, vertices + TRANS[frame]) + 0.5
        assert_lands_on(capture, "neutral", frame, pixels)
    down = capture.camera.rotation[:, 1, 1]
    assert (down < -0.5).all(), "y is up"
    assert_round_trip(capture, tmp_path)


def test_matrices_and_axis_angles_are_the_same_pose(tmp_path: Path) -> None:
    a = converted(make(tmp_path / "a"))
    matrices = rotation_matrix(random_angles(7, FRAMES).reshape(FRAMES, 24, 3))
    b = converted(make(tmp_path / "b", poses=None, rotations=matrices))
    assert torch.allclose(a.poses.rotations, b.poses.rotations, atol=1e-6)
    table = random_angles(7, FRAMES).reshape(FRAMES, 24, 3)
    c = converted(make(tmp_path / "c", poses=table, gender="neutral", betas=SHAPE[None]))
    assert torch.equal(a.poses.rotations, c.poses.rotations)


def test_one_camera_for_all_in_four_numbers_with_its_own_pixel_centres(tmp_path: Path) -> None:
    four = {"fx": 500.0, "fy": 500.0, "cx": 30.0, "cy": 25.0, "t": [0, 0, 4.0]}
    folder = make(tmp_path / "a", camera=four)
    capture = converted(folder)
    assert capture.camera.principal.tolist() == [[30.5, 25.5]] * FRAMES
    content = json.loads((folder / "cameras.json").read_text())
    (folder / "cameras.json").write_text(json.dumps({**content, "pixel_centres": 0.5}))
    assert converted(folder).camera.principal.tolist() == [[30.0, 25.0]] * FRAMES
    assert torch.equal(capture.camera.rotation[0], torch.eye(3))


def test_a_video_is_as_good_as_pictures(tmp_path: Path) -> None:
    a, b = converted(make(tmp_path / "a")), converted(make(tmp_path / "b", video=True), stride=2)
    assert (a.images[::2].float() - b.images.float()).abs().mean() < 3
    assert torch.equal(a.masks[::2], b.masks)
    assert (len(b), b.name, b.licence) == (2, "b", "not stated")
    assert converted(tmp_path / "b", licence="mine").licence == "mine"


def test_soft_masks_stay_and_labels_become_white(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    soft = np.zeros((HEIGHT, WIDTH), np.uint8)
    soft[10:30, 10:30], soft[9, 10:30] = 255, 90
    Image.fromarray(soft).save(folder / "masks" / "f001.png")
    Image.fromarray(soft > 100).save(folder / "masks" / "f002.png")
    colours = Image.fromarray((soft > 100).astype(np.uint8) * 2)
    colours.putpalette([0, 0, 0, 9, 9, 9, 0, 0, 0])  # the person's label is black as well
    colours.save(folder / "masks" / "f003.png")
    masks = converted(folder).masks
    assert set(masks[0].unique().tolist()) == {0, 255}
    assert torch.equal(masks[1], torch.from_numpy(soft))
    hard = torch.from_numpy(np.where(soft > 100, 255, 0).astype(np.uint8))
    assert torch.equal(masks[2], hard)
    assert torch.equal(masks[3], hard)


def test_translations_of_our_own_body_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = capsule_body()
    monkeypatch.setattr(frames, "load_body", lambda config: body)
    shape = 0.1 * np.ones(body.num_shape)
    capture = converted(make(tmp_path / "a", betas=shape), BodyConfig(name="anny"))
    assert capture.body == body.name
    assert np.allclose(capture.poses.translation.numpy(), TRANS, atol=1e-6)
    turned = converted(make(tmp_path / "b", up="z", betas=shape), BodyConfig(name="anny"))
    posed = body(turned.poses.rotations, turned.shape[None], turned.poses.translation)
    pixels = project(turned.camera, posed.joints).numpy()
    plain = body(
        torch.from_numpy(rotation_matrix(random_angles(7, FRAMES).reshape(-1, 24, 3))).float(),
        torch.from_numpy(shape).float()[None],
        torch.from_numpy(TRANS).float(),
    ).joints.numpy()
    for frame, (rotation, translation) in enumerate(cameras("z")):
        expected = seen(K, rotation, translation, plain[frame]) + 0.5
        assert np.abs(pixels[frame] - expected).max() < 0.01


def test_the_share_of_joints_in_the_mask_tells_good_from_bad(tmp_path: Path) -> None:
    capture = converted(make(tmp_path / "a"))
    body = load_smpl_body(smpl_config().smpl_folder)
    posed = body(capture.poses.rotations, capture.shape[None], capture.poses.translation)
    x, y = project(capture.camera, posed.joints).floor().long().unbind(-1)
    inside = (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT)
    capture.masks[:] = 255
    share = joints_in_mask(capture, body)
    assert torch.equal(share, inside.float().mean(1))
    assert (share > 0).any()
    capture.masks[:, :, :] = 0
    assert joints_in_mask(capture, body).tolist() == [0.0] * FRAMES


def _cameras(folder: Path, frame: int | None = None, **fields: Any) -> None:
    content = json.loads((folder / "cameras.json").read_text())
    (content if frame is None else content["cameras"][frame]).update(fields)
    (folder / "cameras.json").write_text(json.dumps(content))


def _spoil(folder: Path, damage: str) -> None:
    angles = random_angles(7, FRAMES)
    if damage == "missing mask":
        (folder / "masks" / "f002.png").unlink()
    elif damage == "empty mask":
        Image.new("L", (WIDTH, HEIGHT)).save(folder / "masks" / "f001.png")
    elif damage == "one picture more":
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "f009.png")
    elif damage == "another size":
        for kind in ("images", "masks"):
            Image.new("L", (WIDTH, HEIGHT + 2), 255).save(folder / kind / "f003.png")
    elif damage == "principal outside":
        _cameras(folder, 1, K=(K + np.array([[0, 0, 90], [0] * 3, [0] * 3])).tolist())
    elif damage == "no focal":
        _cameras(folder, 2, K=np.diag([0.0, 0, 1]).tolist())
    elif damage == "K of 2 x 2":
        _cameras(folder, 2, K=[[500, 0], [0, 500]])
    elif damage == "NaN K":
        _cameras(folder, 3, K=(K * np.nan).tolist())
    elif damage == "no rotation":
        _cameras(folder, 3, R=(2 * np.eye(3)).tolist())
    elif damage == "NaN t":
        _cameras(folder, 0, t=[0, float("nan"), 1])
    elif damage == "misspelt":
        _cameras(folder, 0, translation=[0, 0, 1])
    elif damage == "no K":
        content = json.loads((folder / "cameras.json").read_text())
        del content["cameras"][1]["K"]
        (folder / "cameras.json").write_text(json.dumps(content))
    elif damage == "cameras of fewer frames":
        _cameras(folder, cameras=json.loads((folder / "cameras.json").read_text())["cameras"][:3])
    elif damage == "both cameras":
        _cameras(folder, camera={})
    elif damage == "x up":
        _cameras(folder, up="x")
    elif damage == "half a json":
        path = folder / "cameras.json"
        path.write_text(path.read_text()[:50])
    elif damage == "NaN pose":
        angles[1, 3] = np.nan
        make(folder, poses=angles)
    elif damage == "NaN trans":
        make(folder, trans=np.where(np.arange(FRAMES)[:, None] == 2, np.nan, TRANS))
    elif damage == "NaN betas":
        make(folder, betas=SHAPE * np.nan)
    elif damage == "few betas":
        make(folder, betas=SHAPE[:9])
    elif damage == "poses of fewer frames":
        make(folder, poses=angles[:3])
    elif damage == "SMPL-H":
        make(folder, poses=np.zeros((FRAMES, 156)))
    elif damage == "no trans":
        make(folder, trans=None)
    elif damage == "scaled matrices":
        matrices = np.tile(np.eye(3), (FRAMES, 24, 1, 1))
        matrices[2, 5] *= 1.1
        make(folder, poses=None, rotations=matrices)
    elif damage == "gender":
        make(folder, gender="f")
    elif damage == "truncated poses":
        path = folder / "poses.npz"
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "no pictures":
        for path in (folder / "images").iterdir():
            path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing mask", r"masks/f002\.png \(frame 2\) is missing"),
        ("empty mask", r"f001\.png \(frame 1\): the mask is empty"),
        ("one picture more", r"images holds 5 pictures, but poses\.npz has 4 frames: frame 4"),
        ("another size", r"f003\.png \(frame 3\) is 64 x 50 pixels, but .*f000\.png .* 64 x 48"),
        (
            "principal outside",
            r"f001\.png \(frame 1\): K has its principal point \(120\.5, 25\.5\)",
        ),
        ("no focal", r"\(frame 2\): K has focal lengths 0"),
        ("K of 2 x 2", r"\(frame 2\): K has shape \(2, 2\)"),
        ("NaN K", r"\(frame 3\): K holds NaN"),
        ("no rotation", r"\(frame 3\): the camera's R is not a rotation"),
        ("NaN t", r"\(frame 0\): the camera holds NaN"),
        ("misspelt", r"cameras\.json \(frame 0\) has unknown fields \['translation'\]"),
        ("no K", r"cameras\.json \(frame 1\) lacks 'fx'"),
        ("cameras of fewer frames", r"lists 3 cameras, but poses\.npz has 4 frames: frame 3"),
        ("both cameras", r"cameras\.json needs either"),
        ("x up", "up is 'x'"),
        ("half a json", r"cameras\.json cannot be read"),
        ("NaN pose", r"poses\.npz \(frame 1\): the pose holds NaN"),
        ("NaN trans", r"poses\.npz \(frame 2\): the pose holds NaN"),
        ("NaN betas", r"poses\.npz: betas hold NaN"),
        ("few betas", "no list of 10 finite numbers"),
        ("poses of fewer frames", r"poses\.npz has 3 poses, but 4 rows of trans: frame 3"),
        ("SMPL-H", "poses are of a wrong shape"),
        ("no trans", r"poses\.npz lacks trans"),
        ("scaled matrices", r"poses\.npz \(frame 2\): rotations are no rotation matrices"),
        ("gender", "gender is 'f'"),
        ("truncated poses", r"poses\.npz cannot be read"),
        ("no pictures", r"has neither pictures in images/ nor video\.mp4"),
    ],
)
def test_bad_folders_are_refused(tmp_path: Path, damage: str, message: str) -> None:
    folder = make(tmp_path / "someone")
    _spoil(folder, damage)
    with pytest.raises(DataError, match=message):
        converted(folder)


def test_a_video_needs_a_mask_for_every_frame(tmp_path: Path) -> None:
    folder = make(tmp_path / "someone", video=True)
    (folder / "masks" / "f003.png").unlink()
    with pytest.raises(DataError, match=r"masks holds 3 pictures, .* 4 frames: frame 3"):
        converted(folder)
