"""ZJU-MoCap: small sequences in its layout; geometry against smplx and its own formulas."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from recordings import (
    SHAPE,
    assert_lands_on,
    assert_round_trip,
    look_at,
    random_angles,
    rotation_matrix,
    seen,
    smpl_config,
    smpl_folder,
    smplx_points,
)

from posegen_ray.cli import main
from posegen_ray.config import ConvertConfig
from posegen_ray.errors import AssetError, ConfigError, DataError
from posegen_ray.subjects.capture import Capture, read_capture
from posegen_ray.subjects.converters import convert

HEIGHT, WIDTH, MOMENTS = 80, 96, 4
K = np.array([[600.0, 0, 50.25], [0, 600.0, 38.5], [0, 0, 1]])
CAMERAS = [
    look_at((0.3, -4.0, 1.2), (0.0, 0.1, 1.0), np.array([0.0, 0, 1])),
    look_at((3.5, 1.0, 0.6), (0.0, 0.1, 1.0), np.array([0.1, 0, 1])),
]


def parameters(moment: int) -> dict[str, np.ndarray]:
    poses = random_angles(moment, 1)
    if moment != 2:  # the published ones; the formula holds for others too
        poses[:, :3] = 0
    return {
        "poses": poses.astype(np.float32),
        "shapes": SHAPE[None].astype(np.float32),
        "Rh": np.array([[1.3, 0.4 * moment, -0.5]], np.float32),
        "Th": np.array([[0.1, 0.2 - 0.05 * moment, 0.9]], np.float32),
    }


def picture_name(sequence: str, view: int, moment: int) -> str:
    if sequence == "CoreView_313":  # counted from 1
        camera = f"Camera ({view + 1})"
        file = f"CoreView_313_Camera_({view + 1})_{moment + 1:04d}_2019-08-23_16-08-50.592.jpg"
        return f"{camera}/{file}"
    return f"Camera_B{view + 1}/{moment:06d}.jpg"


def make(root: Path, sequence: str = "CoreView_390", kind: str = "new_params", **cams: Any) -> Path:
    folder = root / sequence
    names = [[picture_name(sequence, v, m) for v in range(2)] for m in range(MOMENTS)]
    annotations = {
        "cams": {
            "K": [K.tolist()] * 2,
            "R": [rotation.tolist() for rotation, _ in CAMERAS],
            "T": [(1000 * translation[:, None]).tolist() for _, translation in CAMERAS],
            "D": [np.zeros((5, 1)).tolist()] * 2,
            **cams,
        },
        "ims": [{"ims": row, "kpts2d": np.zeros((2, 25, 3))} for row in names],
    }
    (folder / kind).mkdir(parents=True)
    np.save(folder / "annots.npy", annotations)  # type: ignore[arg-type]
    for moment, row in enumerate(names):
        number = moment + (sequence == "CoreView_313")
        np.save(folder / kind / f"{number}.npy", parameters(moment))  # type: ignore[arg-type]
        for view, name in enumerate(row):
            person = np.zeros((2, HEIGHT, WIDTH), np.uint8)
            person[0, 20:60, 30:50] = 1  # mask: 0 and 1
            person[1, 20:60, 45:60] = 1 + 3 * view + moment  # mask_cihp: labels of body parts
            for path, pixels in (
                (folder / name, np.full((HEIGHT, WIDTH, 3), 40 * moment + 10 * view, np.uint8)),
                (folder / "mask" / Path(name).with_suffix(".png"), person[0]),
                (folder / "mask_cihp" / Path(name).with_suffix(".png"), person[1]),
            ):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return folder


def converted(folder: Path, **settings: Any) -> Capture:
    return convert(
        ConvertConfig(format="zju_mocap", source=str(folder), **settings), smpl_config()
    )[0]


@pytest.mark.parametrize("sequence", ["CoreView_390", "CoreView_313"])
def test_vertices_land_where_the_data_sets_own_formulas_put_them(
    tmp_path: Path, sequence: str
) -> None:
    capture = converted(make(tmp_path, sequence))
    assert len(capture) == 2 * MOMENTS
    for moment in range(MOMENTS):
        stored = {name: value[0].astype(float) for name, value in parameters(moment).items()}
        vertices, _ = smplx_points("neutral", stored["poses"], stored["shapes"])
        world = vertices @ rotation_matrix(stored["Rh"]).T + stored["Th"]
        for view, (rotation, translation) in enumerate(CAMERAS):
            pixels = seen(K, rotation, translation, world) + 0.5  # K is OpenCV's
            assert_lands_on(capture, "neutral", 2 * moment + view, pixels)


def test_the_world_is_turned_upright(tmp_path: Path) -> None:
    capture = converted(make(tmp_path))
    centres = -(capture.camera.translation[:, None] @ capture.camera.rotation)[:, 0]
    assert np.allclose(centres[:2].numpy(), [[0.3, 1.2, 4.0], [3.5, 0.6, -1.0]], atol=1e-4)


def test_pictures_and_masks_come_through_unchanged(tmp_path: Path) -> None:
    folder = make(tmp_path)
    capture = converted(folder)
    for index, name in enumerate(["Camera_B1/000000.jpg", "Camera_B2/000000.jpg"]):
        assert np.array_equal(capture.images[index], np.asarray(Image.open(folder / name)))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[20:60, 30:60] = 255  # the union
    assert all(np.array_equal(found, mask) for found in capture.masks)
    assert_round_trip(capture, tmp_path)


def test_one_kind_of_mask_and_the_older_parameters_are_enough(tmp_path: Path) -> None:
    folder = make(tmp_path, kind="params")
    for path in (folder / "mask").rglob("*.png"):
        path.unlink()
    assert int(converted(folder).masks[0].sum()) == 255 * 40 * 15


def test_whole_moments_are_chosen_and_held_out(tmp_path: Path) -> None:
    folder = make(tmp_path)
    capture = converted(folder, held_out=0.25)
    assert capture.held_out.reshape(MOMENTS, 2).all(1).sum() == 1 == capture.held_out.sum() / 2
    capture = converted(folder, views=[1], start=1, stride=2, name="zoe")
    assert (capture.name, len(capture)) == ("zoe", 2)
    assert capture.images[:, 0, 0, 0].tolist() == pytest.approx([50, 130], abs=2)
    assert len(converted(folder, max_frames=4)) == 4  # moments 0 and 2, of both views
    assert converted(folder, max_frames=4).images[2, 0, 0, 0] == pytest.approx(80, abs=2)


def test_lens_distortion_and_unequal_focal_lengths_are_taken_out(tmp_path: Path) -> None:
    k = np.array([[280.0, 0, 47.0], [0, 340.0, 40.5], [0, 0, 1]])
    k1, k2, p1, p2, k3 = distortion = np.array([-4.0, 3.0, 0.02, -0.03, 0.5])
    folder = make(tmp_path, K=[k.tolist()] * 2, D=[distortion[:, None].tolist()] * 2)
    points = np.array([[0.38, 0.05, 1.25], [-0.4, 0.1, 0.75]])  # world, near the corners
    rotation, translation = CAMERAS[0]
    local = points @ rotation.T + translation
    x, y = (local[:, :2] / local[:, 2:]).T
    r2 = x**2 + y**2
    scale = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = k[0, 0] * (x * scale + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)) + k[0, 2]
    v = k[1, 1] * (y * scale + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y) + k[1, 2]
    row, column = np.mgrid[:HEIGHT, :WIDTH]
    for index in range(2):
        spot = 255 * np.exp(-((row - v[index]) ** 2 + (column - u[index]) ** 2) / (2 * 2.0**2))
        name = folder / picture_name("CoreView_390", 0, 0)
        picture = Image.fromarray(np.repeat(spot.astype(np.uint8)[..., None], 3, 2))
        picture.save(name, quality=100, subsampling=0)
        capture = converted(folder, max_frames=2)
        bright = capture.images[0, :, :, 1].numpy().astype(float)
        bright[bright < 20] = 0
        centre = [((axis + 0.5) * bright).sum() / bright.sum() for axis in (column, row)]
        camera = capture.camera
        world = np.array([points[index, 0], points[index, 2], -points[index, 1]])
        flat = camera.rotation[0].numpy() @ world + camera.translation[0].numpy()
        expected = flat[:2] / flat[2] * float(camera.focal[0]) + camera.principal[0].numpy()
        bent = np.hypot(u[index] + 0.5 - expected[0], v[index] + 0.5 - expected[1])
        assert bent > 2, "the lens must matter for the test to mean much"
        assert np.abs(centre - expected).max() < 0.25


def _parameters(folder: Path, number: int, **changes: np.ndarray) -> None:
    np.save(folder / "new_params" / f"{number}.npy", {**parameters(number), **changes})  # type: ignore[arg-type]


def _annotations(folder: Path, **changes: Any) -> None:
    content = np.load(folder / "annots.npy", allow_pickle=True).item()
    for name, value in changes.items():
        (content if name == "ims" else content["cams"])[name] = value
    np.save(folder / "annots.npy", content)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("1 + 1",)


def _spoil(folder: Path, damage: str) -> None:
    mask = Path("Camera_B2/000001.png")
    if damage == "missing mask":
        (folder / "mask" / mask).unlink()
        (folder / "mask_cihp" / mask).unlink()
    elif damage == "empty mask":
        for kind in ("mask", "mask_cihp"):
            Image.new("L", (WIDTH, HEIGHT)).save(folder / kind / mask)
    elif damage == "small mask":
        for kind in ("mask", "mask_cihp"):
            Image.new("L", (WIDTH, HEIGHT - 1), 1).save(folder / kind / mask)
    elif damage == "missing picture":
        (folder / "Camera_B1" / "000003.jpg").unlink()
    elif damage == "truncated picture":
        path = folder / "Camera_B1" / "000003.jpg"
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "principal outside":
        _annotations(folder, K=[K.tolist(), (K + np.array([[0, 0, 400], [0] * 3, [0] * 3]))])
    elif damage == "negative focal":
        _annotations(folder, K=[K.tolist(), (K * np.array([[-1], [-1], [1]])).tolist()])
    elif damage == "K of 2 x 3":
        _annotations(folder, K=[K[:2].tolist()] * 2)
    elif damage == "mirrored R":
        _annotations(folder, R=[np.diag([1.0, 1, -1]).tolist()] * 2)
    elif damage == "three K":
        _annotations(folder, K=[K.tolist()] * 3)
    elif damage == "one picture":
        names = [[picture_name("", v, m) for v in range(2)] for m in range(2)]
        _annotations(folder, ims=[{"ims": names[0]}, {"ims": names[1][:1]}])
    elif damage == "NaN pose":
        poses = parameters(2)["poses"]
        poses[0, 40] = np.nan
        _parameters(folder, 2, poses=poses)
    elif damage == "NaN Th":
        _parameters(folder, 1, Th=np.full((1, 3), np.nan))
    elif damage == "short pose":
        _parameters(folder, 1, poses=np.zeros((1, 69)))
    elif damage == "another shape":
        _parameters(folder, 3, shapes=SHAPE[None] + 0.5)
    elif damage == "missing parameters":
        (folder / "new_params" / "1.npy").unlink()
    elif damage == "code in annotations":
        array = np.empty((), object)
        array[()] = _Code()
        np.save(folder / "annots.npy", array)
    elif damage == "no annotations":
        (folder / "annots.npy").unlink()
    elif damage == "other annotations":
        np.save(folder / "annots.npy", np.zeros(3))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing mask", r"mask/Camera_B2/000001\.png \(moment 1, view 1\) is missing"),
        ("empty mask", r"Camera_B2/000001\.jpg \(moment 1, view 1\): the mask is empty"),
        ("small mask", r"\(moment 1, view 1\) is 96 x 80 pixels, but its mask is 96 x 79"),
        ("missing picture", r"Camera_B1/000003\.jpg .*moment 3, view 0.* is missing"),
        ("truncated picture", r"Camera_B1/000003\.jpg .*cannot be read"),
        ("principal outside", r"view 1\): K has its principal point .* outside the picture"),
        ("negative focal", r"view 1\): K has focal lengths -600"),
        ("K of 2 x 3", r"K has shape \(2, 3\)"),
        ("mirrored R", "R is not a rotation matrix"),
        ("three K", "3 K, 2 R, 2 T and 2 D"),
        ("one picture", "moment 1 has 1 pictures, but view 1"),
        ("NaN pose", r"new_params/2\.npy \(moment 2\): the pose holds NaN"),
        ("NaN Th", r"new_params/1\.npy \(moment 1\): the pose holds NaN"),
        ("short pose", r"new_params/1\.npy \(moment 1\): a pose of 69 numbers"),
        ("another shape", r"new_params/3\.npy \(moment 3\): shapes differ"),
        ("missing parameters", r"new_params/1\.npy \(moment 1\) is missing"),
        ("code in annotations", r"annots\.npy asks for builtins\.eval"),
        ("no annotations", r"annots\.npy is missing"),
        ("other annotations", r"annots\.npy is not ZJU-MoCap's"),
    ],
)
def test_bad_sequences_are_refused(
    tmp_path: Path, damage: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path)
    _spoil(folder, damage)
    with pytest.raises(DataError, match=message):
        converted(folder)
    assert "run" not in capsys.readouterr().out


def test_pickles_of_python_2_and_of_numpy_1_are_read(tmp_path: Path) -> None:
    folder = make(tmp_path)
    content = np.load(folder / "annots.npy", allow_pickle=True)
    whole = (folder / "annots.npy").read_bytes()
    header = whole[: whole.index(b"\n") + 1]
    old = pickle.dumps(content, protocol=2).replace(b"numpy._core", b"numpy.core")
    (folder / "annots.npy").write_bytes(header + old)
    assert len(converted(folder)) == 2 * MOMENTS


def test_wrong_choices_are_named(tmp_path: Path) -> None:
    folder = make(tmp_path)
    with pytest.raises(ConfigError, match=r"convert\.views=\[7\].* has no camera 7"):
        converted(folder, views=[7])
    with pytest.raises(ConfigError, match=r"convert\.start=4 is past the last of 4 moments"):
        converted(folder, start=4)
    with pytest.raises(ConfigError, match=r"convert\.max_frames=1 is less"):
        converted(folder, max_frames=1)
    with pytest.raises(ConfigError, match=r"convert\.format='zju'"):
        ConvertConfig(format="zju")
    with pytest.raises(ConfigError, match=r"convert\.stride=-1"):
        ConvertConfig(stride=-1)
    with pytest.raises(ConfigError, match=r"convert\.held_out=1"):
        ConvertConfig(held_out=1.0)


def test_missing_smpl_is_named(tmp_path: Path) -> None:
    settings = ConvertConfig(format="zju_mocap", source=str(make(tmp_path)))
    config = smpl_config()
    config.smpl_folder = str(tmp_path)
    with pytest.raises(AssetError, match=r"SMPL_NEUTRAL\.pkl"):
        convert(settings, config)


def test_the_command_writes_the_capture_and_says_how_to_fit_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path)
    arguments = ["convert", "convert.format=zju_mocap", f"convert.source={folder}"]
    smpl = f"body.smpl_folder={smpl_folder()}"
    assert main([*arguments, smpl, f"out={tmp_path}/capture"]) == 0
    text = capsys.readouterr().out
    assert "CoreView_390, 8 pictures, 2 held out" in text
    assert "joints inside the mask: " in text
    assert f"posegen fit capture={tmp_path}/capture body=smpl {smpl} body.gender=neutral" in text
    assert read_capture(tmp_path / "capture").body == "smpl"
    assert main([*arguments, smpl, f"out={tmp_path}/capture"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main([*arguments, smpl]) == 2
    assert "out=<folder>" in capsys.readouterr().err
    assert main(["convert", "convert.format=zju_mocap", f"out={tmp_path}/new"]) == 2
    assert "convert.source=<folder>" in capsys.readouterr().err
