"""Anybody's footage of one person: a folder of plain files.

    images/*.png|jpg, or video.mp4   the frames, in the order of their names
    masks/*.png|jpg                  one a frame: of the picture's name, or for a video in order
    cameras.json                     see `_cameras`
    poses.npz                        rotations [N, 24, 3, 3], or poses [N, 72] axis-angle;
                                     trans [N, 3], betas [10 or as many as the body has],
                                     optionally gender (neutral, female, male)

With body=smpl, `trans` is SMPL's (added to its vertices, as data sets and SMPL estimators give it);
with body=anny, it is added to our body, which stands on the origin.

cameras.json:
    up             "y" (default), "-y" or "z": the world's axis that points up
    pixel_centres  0 (default: OpenCV's calibrations) or 0.5: where K has the first pixel's centre
    camera         of all frames, or `cameras`: a list with one a frame. Each has
        K            [3, 3], or fx, fy, cx, cy; pixels
        distortion   optional, OpenCV's k1, k2, p1, p2, k3
        R, t         optional [3, 3] and [3]: world -> camera, metres; left out: the identity and 0
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posegen_ray.body import load_body
from posegen_ray.body.model import BodyModel
from posegen_ray.config import BodyConfig, ConvertConfig
from posegen_ray.datasets.files import read_image, read_mask, read_video
from posegen_ray.errors import DataError
from posegen_ray.subjects.capture import Capture
from posegen_ray.subjects.converters.assembly import (
    UP_AXES,
    Picture,
    Pose,
    assemble,
    checked_pose,
    chosen_moments,
    smpl_pose,
)
from posegen_ray.subjects.converters.lens import Lens, opencv_lens
from posegen_ray.subjects.converters.smpl import GENDERS, load_smpl

_ENDINGS = (".png", ".jpg", ".jpeg")


def convert_frames(
    settings: ConvertConfig, body: BodyConfig
) -> tuple[Capture, BodyConfig]:  # the capture, and the body that it is of
    """A capture of a folder of frames, masks, cameras and poses.

    Raises:
        DataError: a file is missing or damaged, or says what cannot be; file and frame are named.
        ConfigError: no moment is left.
        AssetError: SMPL's file is missing, or, for a video, the package av is.
    """
    folder = Path(settings.source)
    person = _read_poses(folder / "poses.npz")
    body_model, config, rest = _body(body, person)
    count = len(person.trans)
    moments = chosen_moments(settings, count)
    cameras, up = _cameras(folder / "cameras.json", count)
    pixels, labels, masks = _pixels_and_masks(folder, moments, count)
    poses = [_pose(folder / "poses.npz", person, moment, rest) for moment in moments]
    pictures = [
        Picture(label, moment, image, mask, *cameras[moment], pose)
        for label, moment, image, mask, pose in zip(
            labels, moments, pixels, masks, poses, strict=True
        )
    ]
    name = folder.resolve().name
    capture = assemble(
        pictures,
        settings,
        body_model,
        person.betas,
        up,
        name,
        "not stated",
        f"frames of {name}; {config.name} {config.gender if config.name == 'smpl' else ''}".strip(),
    )
    return capture, config


# --- the person ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Person:
    angles: np.ndarray | None  # [N, 72]
    rotations: np.ndarray | None  # [N, 24, 3, 3]; one of the two
    trans: np.ndarray  # [N, 3]
    betas: np.ndarray  # [S]
    gender: str  # "": not stated


def _read_poses(path: Path) -> _Person:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing.", "It holds poses, trans and betas.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({error}).", "Write it again.") from error
    missing = [name for name in ("trans", "betas") if name not in arrays]
    if missing or not ("poses" in arrays or "rotations" in arrays):
        raise DataError(
            f"{path} lacks {', '.join([*missing] or ['poses'])}.",
            "poses or rotations, trans and betas are needed.",
        )
    trans = np.asarray(arrays["trans"], np.float64)
    if trans.ndim != 2 or trans.shape[1] != 3 or not len(trans):
        raise DataError(f"{path}: trans has shape {trans.shape}.", "(N, 3) is expected.")
    angles = rotations = None
    if "rotations" in arrays:
        rotations = np.asarray(arrays["rotations"], np.float64)
        described, good = len(rotations), rotations.shape[1:] == (24, 3, 3)
    else:
        table = np.asarray(arrays["poses"], np.float64)
        angles = table.reshape(len(table), -1) if table.ndim > 1 else table
        described, good = len(angles), angles.shape[1:] == (72,)
    if not good:
        raise DataError(
            f"{path}: poses are of a wrong shape.",
            "poses [N, 72] or rotations [N, 24, 3, 3] are expected (SMPL's 24 joints).",
        )
    if described != len(trans):
        raise DataError(
            f"{path} has {described} poses, but {len(trans)} rows of trans: frame "
            f"{min(described, len(trans))} is only in one of them.",
            "Cut them to the same frames.",
        )
    betas = np.asarray(arrays["betas"], np.float64).ravel()
    if not np.isfinite(betas).all():
        raise DataError(f"{path}: betas hold NaN or infinite values.", "Correct them.")
    gender = str(np.asarray(arrays.get("gender", "")).item())
    if gender not in ("", *GENDERS):
        raise DataError(f"{path}: gender is {gender!r}.", f"One of {', '.join(GENDERS)}.")
    return _Person(angles, rotations, trans, betas, gender)


def _body(
    body: BodyConfig, person: _Person
) -> tuple[BodyModel, BodyConfig, Tensor]:  # the body, its settings, rest pelvis [3] without trans
    if body.name == "smpl":
        smpl = load_smpl(body, person.gender or body.gender)
        betas = person.betas if person.betas.shape == (smpl.body.num_shape,) else None
        rest = smpl.rest_pelvis(np.zeros(smpl.body.num_shape) if betas is None else betas)
        return smpl.body, smpl.config, rest
    model = load_body(body)
    shape = torch.from_numpy(person.betas).float()
    if shape.shape != (model.num_shape,):
        shape = torch.zeros(model.num_shape)  # `assemble` refuses it with a message
    return model, body, model.rest_joints(shape[None])[0, 0].double()


def _pose(path: Path, person: _Person, moment: int, rest: Tensor) -> Pose:
    label = f"{path} (frame {moment})"
    pelvis = rest + torch.from_numpy(person.trans[moment])
    if person.rotations is None:
        assert person.angles is not None
        return smpl_pose(label, person.angles[moment], pelvis)
    rotations = person.rotations[moment]
    pose = checked_pose(label, torch.from_numpy(rotations), pelvis)
    skew = np.abs(rotations @ rotations.swapaxes(-1, -2) - np.eye(3)).max()
    if skew > 1e-3 or (np.linalg.det(rotations) < 0).any():
        raise DataError(
            f"{label}: rotations are no rotation matrices.",
            "Rows must be orthonormal and right-handed.",
        )
    return pose


# --- cameras ------------------------------------------------------------------------------------

_Camera = tuple[Lens, np.ndarray, np.ndarray]


def _cameras(path: Path, count: int) -> tuple[list[_Camera], str]:
    """A camera for each frame, and the world's up axis."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing.", "It holds K, R and t.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}).", "Correct the JSON.") from error
    if not isinstance(content, dict) or ("camera" in content) == ("cameras" in content):
        raise DataError(f"{path} needs either `camera` or `cameras`.", "See docs/captures.md.")
    up = content.get("up", "y")
    if up not in UP_AXES:
        raise DataError(f"{path}: up is {up!r}.", f"Choose one of {', '.join(UP_AXES)}.")
    centres = content.get("pixel_centres", 0)
    if centres not in (0, 0.5):
        raise DataError(f"{path}: pixel_centres is {centres!r}.", "Choose 0 or 0.5.")
    if "camera" in content:
        return [_camera(path, "camera", content["camera"], centres)] * count, up
    listed = content["cameras"]
    if not isinstance(listed, list) or len(listed) != count:
        found = len(listed) if isinstance(listed, list) else 0
        raise DataError(
            f"{path} lists {found} cameras, but poses.npz has {count} frames: frame "
            f"{min(found, count)} is only in one of them.",
            "Give one camera a frame, or one `camera` for all.",
        )
    return [_camera(path, f"frame {i}", camera, centres) for i, camera in enumerate(listed)], up


def _camera(path: Path, which: str, fields: Any, centres: float) -> _Camera:
    known = {"K", "fx", "fy", "cx", "cy", "distortion", "R", "t"}
    label = f"{path} ({which})"
    if not isinstance(fields, dict) or not set(fields) <= known:
        extra = sorted(set(fields) - known) if isinstance(fields, dict) else type(fields).__name__
        raise DataError(f"{label} has unknown fields {extra}.", f"Known: {sorted(known)}.")
    try:
        if "K" in fields:
            matrix = np.array(fields["K"], np.float64)
        else:
            fx, fy, cx, cy = (float(fields[name]) for name in ("fx", "fy", "cx", "cy"))
            matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        distortion = np.array(fields.get("distortion", []), np.float64).ravel()
        rotation = np.array(fields.get("R", np.eye(3)), np.float64)
        translation = np.array(fields.get("t", np.zeros(3)), np.float64).ravel()
    except KeyError as error:
        raise DataError(f"{label} lacks {error}.", "Give K, or fx, fy, cx and cy.") from error
    except (TypeError, ValueError) as error:
        raise DataError(f"{label} cannot be read ({error}).", "Numbers are expected.") from error
    lens = opencv_lens(matrix, distortion) if centres == 0 else Lens(matrix, distortion)
    return lens, rotation, translation


# --- pictures -----------------------------------------------------------------------------------


def _pixels_and_masks(
    folder: Path, moments: Sequence[int], count: int
) -> tuple[list[np.ndarray], list[str], list[np.ndarray]]:
    """Pictures, their labels, masks."""
    images, masks = _pictures(folder / "images"), _pictures(folder / "masks")
    if images:
        _same_count(folder / "images", len(images), count)
        by_name = {path.stem: path for path in masks}
        labels = [f"{images[moment]} (frame {moment})" for moment in moments]
        pixels = [read_image(images[moment], f"frame {moment}") for moment in moments]
        paths = [
            by_name.get(images[m].stem, folder / "masks" / f"{images[m].stem}.png") for m in moments
        ]
    else:
        video = folder / "video.mp4"
        if not video.is_file():
            raise DataError(
                f"{folder} has neither pictures in images/ nor video.mp4.", "Add one of them."
            )
        _same_count(folder / "masks", len(masks), count)
        labels = [f"{video} (frame {moment})" for moment in moments]
        pixels = read_video(video, moments, count, str(folder / "poses.npz"))
        paths = [masks[moment] for moment in moments]
    return (
        pixels,
        labels,
        [read_mask(path, f"frame {moment}") for path, moment in zip(paths, moments, strict=True)],
    )


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)


def _same_count(folder: Path, found: int, count: int) -> None:
    if found != count:
        raise DataError(
            f"{folder} holds {found} pictures, but poses.npz has {count} frames: frame "
            f"{min(found, count)} is only in one of them.",
            "Cut them to the same frames.",
        )
