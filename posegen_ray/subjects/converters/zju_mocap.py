"""ZJU-MoCap (Peng et al. 2021, Neural Body): one person, some twenty calibrated cameras.

    annots.npy               cams{K, R, T [mm], D}, ims[moment]['ims'][view] = picture's path
    <camera>/<picture>.jpg   000123.jpg; in 313 and 315 …_0123_…jpg, counted from 1
    mask/…png, mask_cihp/…png   the person is where either is not 0; one of the two is enough
    new_params/<number>.npy  poses, shapes, Rh, Th of SMPL neutral (params/: an older fit, which was
                             made without pose blend shapes, so joints bend slightly otherwise)

Cameras: OpenCV, world z up. The person: world = R(Rh) v + Th, where v is SMPL posed by `poses`,
whose first three numbers are usually 0. So Rh turns about SMPL's origin, not about the pelvis J0,
which ends at R(Rh) J0 + Th; the root's rotation is R(Rh) R(poses[:3]).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.config import BodyConfig, ConvertConfig
from posegen_ray.datasets.files import read_image, read_mask
from posegen_ray.errors import ConfigError, DataError
from posegen_ray.pickles import load_pickled_array
from posegen_ray.subjects.capture import Capture
from posegen_ray.subjects.converters.assembly import (
    Picture,
    Pose,
    assemble,
    checked_pose,
    chosen_moments,
    smpl_pose,
)
from posegen_ray.subjects.converters.lens import Lens, opencv_lens
from posegen_ray.subjects.converters.smpl import Smpl, load_smpl

LICENCE = "ZJU-MoCap: its authors' terms, see https://github.com/zju3dv/neuralbody"
_SAME_SHAPE = 1e-2  # difference of shape numbers that the fit of one person leaves


def convert_zju_mocap(
    settings: ConvertConfig, body: BodyConfig
) -> tuple[Capture, BodyConfig]:  # the capture, and the body that it is of
    """A capture of one sequence (`CoreView_313`, …): settings.source holds annots.npy.

    Raises:
        DataError: a file is missing or damaged, or says what cannot be; file and frame are named.
        ConfigError: there is no such view or moment.
        AssetError: SMPL_NEUTRAL is not in body.smpl_folder.
    """
    folder = Path(settings.source)
    smpl = load_smpl(body, "neutral")
    path = folder / "annots.npy"
    cameras, moments = _annotations(path)
    views = _views(settings, len(cameras))
    pictures: list[Picture] = []
    shape: np.ndarray | None = None
    for moment in chosen_moments(settings, len(moments), len(views)):
        paths = moments[moment]
        if len(paths) <= max(views):
            raise DataError(
                f"{path}: moment {moment} has {len(paths)} pictures, but view {max(views)} is "
                "converted.",
                "Choose other cameras with convert.views.",
            )
        number = _number(path, moment, paths[views[0]])
        parameters = _parameter_file(folder, number, moment)
        pose, shape = _person(parameters, moment, smpl, shape)
        for view in views:
            lens, rotation, translation = cameras[view]
            picture = folder / paths[view]
            label = f"{picture} (moment {moment}, view {view})"
            pictures.append(
                Picture(
                    label,
                    moment,
                    read_image(picture, label),
                    _mask(folder, paths[view], f"moment {moment}, view {view}"),
                    lens,
                    rotation,
                    translation,
                    pose,
                )
            )
    assert shape is not None
    capture = assemble(
        pictures,
        settings,
        smpl.body,
        shape,
        "z",
        folder.resolve().name,
        LICENCE,
        f"ZJU-MoCap {folder.resolve().name}, {len(views)} cameras; SMPL neutral",
    )
    return capture, smpl.config


_Camera = tuple[Lens, np.ndarray, np.ndarray]


def _annotations(path: Path) -> tuple[list[_Camera], list[list[str]]]:
    """The cameras, and for each moment the paths of its pictures."""
    content: Any = load_pickled_array(path)
    try:
        content = content.item()
        cams = content["cams"]
        matrices, rotations, translations = cams["K"], cams["R"], cams["T"]
        distortions = cams.get("D", [None] * len(matrices))
        moments = [[str(name) for name in moment["ims"]] for moment in content["ims"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not ZJU-MoCap's: cams (K, R, T, D) and ims are expected "
            f"({type(error).__name__}: {error}).",
            "Name the folder of one sequence.",
        ) from error
    if not len(matrices) == len(rotations) == len(translations) == len(distortions) > 0:
        raise DataError(
            f"{path} has {len(matrices)} K, {len(rotations)} R, {len(translations)} T and "
            f"{len(distortions)} D.",
            "Every camera needs all four.",
        )
    return [
        (
            opencv_lens(np.asarray(k, np.float64), None if d is None else np.asarray(d, float)),
            np.asarray(r, np.float64),
            np.asarray(t, np.float64).ravel() / 1000,
        )
        for k, r, t, d in zip(matrices, rotations, translations, distortions, strict=True)
    ], moments


def _views(settings: ConvertConfig, count: int) -> list[int]:
    views = list(settings.views) or list(range(count))
    unknown = [view for view in views if not 0 <= view < count]
    if unknown:
        raise ConfigError(
            f"convert.views={views}: {settings.source} has no camera {unknown[0]}.",
            f"Choose from 0 to {count - 1}.",
        )
    return views


def _number(path: Path, moment: int, picture: str) -> int:
    """The number in a picture's name, which its parameter file has too."""
    stem = Path(picture).stem
    parts = [stem, *stem.split("_")[4:5]]  # 000123, or CoreView_313_Camera_(1)_0123_<time>
    for part in parts:
        if part.isdecimal():
            return int(part)
    raise DataError(
        f"{path}: the picture {picture!r} of moment {moment} has no frame number in its name.",
        "000123.jpg or CoreView_313_Camera_(1)_0123_<time>.jpg is expected.",
    )


def _parameter_file(folder: Path, number: int, moment: int) -> Path:
    paths = [folder / kind / f"{number}.npy" for kind in ("new_params", "params")]
    for path in paths:
        if path.is_file():
            return path
    raise DataError(
        f"{paths[0]} (moment {moment}) is missing, and so is params/.", "It holds the pose."
    )


def _person(
    path: Path, moment: int, smpl: Smpl, known: np.ndarray | None
) -> tuple[Pose, np.ndarray]:
    """The pose of a moment and the person's shape."""
    label = f"{path} (moment {moment})"
    try:
        values = {
            name: np.asarray(array, np.float64).ravel()
            for name, array in load_pickled_array(path).item().items()
            if name in ("poses", "shapes", "Rh", "Th")
        }
        poses, shape, turn, move = (values[name] for name in ("poses", "shapes", "Rh", "Th"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{label} lacks poses, shapes, Rh or Th ({type(error).__name__}: {error}).",
            "Is it a parameter file of ZJU-MoCap?",
        ) from error
    if shape.shape != (10,) or turn.shape != (3,) or move.shape != (3,):
        raise DataError(
            f"{label}: shapes, Rh and Th have {shape.size}, {turn.size} and {move.size} numbers.",
            "10, 3 and 3 are expected.",
        )
    if known is not None and not np.allclose(shape, known, atol=_SAME_SHAPE):
        raise DataError(
            f"{label}: shapes differ from the moments before.",
            "A capture is of one person with one shape.",
        )
    person = known if known is not None else shape
    rotation = from_axis_angle(torch.from_numpy(turn))
    pelvis = rotation @ smpl.rest_pelvis(person) + torch.from_numpy(move)
    pose = smpl_pose(label, poses, pelvis)
    rotations = torch.cat([rotation @ pose.rotations[:1], pose.rotations[1:]])
    return checked_pose(label, rotations, pelvis), person


def _mask(folder: Path, picture: str, label: str) -> np.ndarray:  # [H, W] uint8
    name = Path(picture).with_suffix(".png")
    paths = [folder / kind / name for kind in ("mask", "mask_cihp")]
    there = [path for path in paths if path.is_file()] or paths[:1]
    masks = [np.where(read_mask(path, label) > 0, 255, 0).astype(np.uint8) for path in there]
    if masks[0].shape != masks[-1].shape:
        raise DataError(
            f"{there[0]} and {there[-1]} ({label}) differ in size.", "Both are of one picture."
        )
    return np.maximum(masks[0], masks[-1])
