"""Captures: pictures of one person with masks, cameras and poses. The same format for everybody's
footage and for the demo's ray-cast people.

    capture.json      format_version, name, body, shape [S], height, width, licence, source
    images/00000.png  RGB; what lies outside the mask does not matter. Along soft edges it is the
                      person's own colour where that is known (see `split_rgba`)
    masks/00000.png   8-bit grey: 255 on the person, 0 elsewhere, between along the edge
    frames.npz        rotations [N, 24, 3, 3], translation [N, 3], camera_rotation [N, 3, 3],
                      camera_translation [N, 3], focal [N], principal [N, 2], held_out [N]

Conventions are those of `posegen_ray.body`: local rotations, metres, OpenCV world -> camera, pixel
centres at +0.5. Frames with held_out = true are never fitted to; PSNR is measured on them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from posegen_ray.body.camera import Camera, project
from posegen_ray.body.model import BodyModel
from posegen_ray.errors import DataError
from posegen_ray.records import PoseBatch

FORMAT_VERSION = 1
_KEYS = ("format_version", "name", "body", "shape", "height", "width", "licence", "source")


@dataclass(frozen=True)
class Capture:
    """A capture in memory. N frames of one person, all of one picture size."""

    name: str
    body: str  # anny | smpl
    shape: Tensor  # [S] of the body
    images: Tensor  # [N, H, W, 3] uint8 RGB
    masks: Tensor  # [N, H, W] uint8
    poses: PoseBatch  # N
    camera: Camera  # N
    held_out: Tensor  # [N] bool
    licence: str
    source: str  # what is shown and how it was taken, in words

    def __len__(self) -> int:
        return self.images.shape[0]

    def bones(self, body: BodyModel) -> Tensor:  # [N, 24, 3, 4]
        """Rest to world, in every frame."""
        with torch.no_grad():
            posed = body(self.poses.rotations, self.shape[None], self.poses.translation)
            bones: Tensor = posed.bones
            return bones

    def view(self, index: int, device: torch.device | str = "cpu") -> Camera:
        """One frame's camera, as a batch of one."""
        return self.camera[index : index + 1].to(device)

    def target(self, index: int) -> Tensor:  # [H, W, 4] premultiplied
        """One frame's picture, on transparent ground."""
        mask = self.masks[index, ..., None].float() / 255
        return torch.cat([self.images[index].float() / 255 * mask, mask], -1)

    def targets(
        self,
        indices: Sequence[int],
        row: Tensor,  # [N] into the B * H * W pixels of these frames
    ) -> Tensor:  # [N, 4] premultiplied
        """Some pixels of some frames, on transparent ground, on the device of `row`."""
        frames = list(indices)
        colours = self.images[frames].to(row.device).flatten(0, 2)[row].float() / 255
        mask = self.masks[frames].to(row.device).flatten()[row, None].float() / 255
        return torch.cat([colours * mask, mask], -1)

    def sha256(self) -> str:
        """Identifies the capture by its content, wherever it lies."""
        digest = hashlib.sha256(f"{self.name}/{self.body}/{tuple(self.images.shape)}".encode())
        for tensor in (self.shape, self.images, self.masks, *_frame_tensors(self).values()):
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
        return digest.hexdigest()


def joints_in_mask(capture: Capture, body: BodyModel) -> Tensor:  # [N]
    """The share of the 24 joints that the mask covers in each picture: near 1 where pose, camera
    and mask belong together. Small where one of them follows another convention."""
    with torch.no_grad():
        posed = body(capture.poses.rotations, capture.shape[None], capture.poses.translation)
    places = project(capture.camera, posed.joints).floor().long()
    height, width = capture.masks.shape[1:]
    x, y = places[..., 0], places[..., 1]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    frames = torch.arange(len(capture))[:, None]
    covered = capture.masks[frames, y.clamp(0, height - 1), x.clamp(0, width - 1)] > 127
    return (inside & covered).float().mean(1)


def split_rgba(
    rgba: Tensor,  # [N, H, W, 4] premultiplied, in [0, 1]
) -> tuple[Tensor, Tensor]:  # images [N, H, W, 3] uint8, masks [N, H, W] uint8
    """Renders as a capture stores them: straight colour (not multiplied by alpha) and mask."""
    alpha = rgba[..., 3:]
    colour = torch.where(alpha > 0, rgba[..., :3] / alpha.clamp_min(1e-4), rgba[..., :3])
    images = (colour.clamp(0, 1) * 255).round().to(torch.uint8)
    return images, (alpha[..., 0].clamp(0, 1) * 255).round().to(torch.uint8)


def write_capture(capture: Capture, folder: str | Path) -> None:
    """Writes the capture; the folder appears complete or not at all.

    Raises:
        DataError: the folder exists and is not empty, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty.", "Remove it or choose another folder.")
    header = {
        "format_version": FORMAT_VERSION,
        "name": capture.name,
        "body": capture.body,
        "shape": [float(v) for v in capture.shape],
        "height": capture.camera.height,
        "width": capture.camera.width,
        "licence": capture.licence,
        "source": capture.source,
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            content = Path(scratch) / "capture"
            for kind in ("images", "masks"):
                (content / kind).mkdir(parents=True)
            (content / "capture.json").write_text(json.dumps(header, indent=2) + "\n")
            for frame in range(len(capture)):
                for kind, pixels in (("images", capture.images), ("masks", capture.masks)):
                    Image.fromarray(pixels[frame].cpu().numpy()).save(
                        content / kind / f"{frame:05d}.png", compress_level=1
                    )
            arrays: dict[str, Any] = {
                name: tensor.detach().cpu().numpy()
                for name, tensor in _frame_tensors(capture).items()
            }
            np.savez(content / "frames.npz", **arrays)
            if folder.exists():
                folder.rmdir()
            os.replace(content, folder)
    except OSError as error:
        raise DataError(
            f"The capture {capture.name!r} could not be written to {folder} ({error.strerror}).",
            "Free some space or choose another folder.",
        ) from error


def capture_name(folder: str | Path) -> str:
    """The name in a capture's header; the pictures are not looked at.

    Raises:
        DataError: capture.json is missing or damaged.
    """
    return str(_read_header(Path(folder) / "capture.json")["name"])


def read_capture(folder: str | Path) -> Capture:
    """Reads and checks a capture.

    Raises:
        DataError: a file is missing or damaged, counts or sizes disagree, or a pose or camera is
            not finite; the message names the file and the frame.
    """
    folder = Path(folder)
    header = _read_header(folder / "capture.json")
    frames = _read_frames(folder / "frames.npz")
    count, height, width = len(frames["held_out"]), int(header["height"]), int(header["width"])
    for kind in ("images", "masks"):
        found = {path.name for path in (folder / kind).glob("*.png")}
        extra = sorted(found - {f"{frame:05d}.png" for frame in range(count)})
        if extra:
            raise DataError(
                f"{folder / kind} holds {len(found)} pictures, but frames.npz describes {count} "
                f"frames: {extra[0]} is none of them.",
                "Remove the extra pictures or add their poses and cameras.",
            )
    images = [_read_png(folder, "images", i, "RGB", height, width) for i in range(count)]
    masks = [_read_png(folder, "masks", i, "L", height, width) for i in range(count)]
    for frame, mask in enumerate(masks):
        if not mask.any():
            raise DataError(
                f"{folder / 'masks' / f'{frame:05d}.png'} (frame {frame}) is empty.",
                "Paint the person white (255), or remove the frame.",
            )
    return Capture(
        name=str(header["name"]),
        body=str(header["body"]),
        shape=torch.tensor([float(v) for v in header["shape"]]),
        images=torch.from_numpy(np.stack(images)),
        masks=torch.from_numpy(np.stack(masks)),
        poses=PoseBatch(
            torch.from_numpy(frames["rotations"]), torch.from_numpy(frames["translation"])
        ),
        camera=Camera(
            torch.from_numpy(frames["camera_rotation"]),
            torch.from_numpy(frames["camera_translation"]),
            torch.from_numpy(frames["focal"]),
            torch.from_numpy(frames["principal"]),
            height,
            width,
        ),
        held_out=torch.from_numpy(frames["held_out"].astype(bool)),
        licence=str(header["licence"]),
        source=str(header["source"]),
    )


def _frame_tensors(capture: Capture) -> dict[str, Tensor]:
    return {
        "rotations": capture.poses.rotations,
        "translation": capture.poses.translation,
        "camera_rotation": capture.camera.rotation,
        "camera_translation": capture.camera.translation,
        "focal": capture.camera.focal,
        "principal": capture.camera.principal,
        "held_out": capture.held_out,
    }


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError(
            f"There is no capture in {path.parent} ({path.name} is missing).",
            "The layout is described in posegen_ray/subjects/capture.py.",
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}).", "Write it again.") from error
    missing = [key for key in _KEYS if not isinstance(header, dict) or key not in header]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}.", "Add it.")
    if header["format_version"] != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {header['format_version']}; "
            f"this program reads {FORMAT_VERSION}.",
            "Write the capture again with this version.",
        )
    shape = header["shape"]
    if not isinstance(shape, list) or not all(isinstance(v, int | float) for v in shape):
        raise DataError(f"{path}: shape must be a list of numbers.", "Correct it.")
    for key in ("height", "width"):
        if not isinstance(header[key], int) or header[key] < 1:
            raise DataError(f"{path}: {key} must be a positive whole number.", "Correct it.")
    return dict(header)


def _read_frames(path: Path) -> dict[str, np.ndarray]:
    tails = {
        "rotations": (24, 3, 3),
        "translation": (3,),
        "camera_rotation": (3, 3),
        "camera_translation": (3,),
        "focal": (),
        "principal": (2,),
        "held_out": (),
    }
    try:
        with np.load(path, allow_pickle=False) as archive:
            frames = {name: archive[name] for name in tails if name in archive}
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing.", "It holds poses and cameras.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({error}).", "Write it again.") from error
    missing = [name for name in tails if name not in frames]
    if missing:
        raise DataError(f"{path} lacks the array {missing[0]}.", "Add it.")
    count = len(frames["held_out"]) if frames["held_out"].ndim else 0
    if count == 0:
        raise DataError(f"{path} describes no frames.", "A capture needs at least one.")
    for name, tail in tails.items():
        array = frames[name]
        if array.shape[1:] == tail and array.ndim > 0 and len(array) != count:
            raise DataError(
                f"{path}: {name} describes {len(array)} frames, held_out {count}: frame "
                f"{min(len(array), count)} has none.",
                "All arrays must describe the same frames.",
            )
        if array.shape != (count, *tail):
            raise DataError(
                f"{path}: {name} has shape {array.shape} instead of {(count, *tail)}.",
                "All arrays must describe the same frames.",
            )
        if name == "held_out":
            continue
        frames[name] = array.astype(np.float32)
        bad = ~np.isfinite(frames[name]).reshape(count, -1).all(1)
        if bad.any():
            raise DataError(
                f"{path}: {name} of frame {int(bad.argmax())} holds NaN or infinite values.",
                "Correct or remove the frame.",
            )
    for name in ("rotations", "camera_rotation"):
        matrices = frames[name].reshape(count, -1, 3, 3)
        skew = np.abs(matrices @ matrices.swapaxes(-1, -2) - np.eye(3)).max((1, 2, 3))
        bad = (skew > 1e-2) | (np.linalg.det(matrices) < 0).any(1)
        if bad.any():
            raise DataError(
                f"{path}: {name} of frame {int(bad.argmax())} is not a rotation matrix.",
                "Rows must be orthonormal and right-handed.",
            )
    if (frames["focal"] <= 0).any():
        frame = int((frames["focal"] <= 0).argmax())
        raise DataError(f"{path}: focal of frame {frame} is not positive.", "Pixels are expected.")
    return frames


def _read_png(
    folder: Path, kind: str, frame: int, mode: str, height: int, width: int
) -> np.ndarray:  # [H, W, 3] or [H, W] uint8
    path = folder / kind / f"{frame:05d}.png"
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as picture:
            pixels = np.asarray(picture.convert(mode))
    except FileNotFoundError as error:
        raise DataError(
            f"{path} (frame {frame}) is missing.", "Add it, or remove the frame from frames.npz."
        ) from error
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise DataError(
            f"{path} (frame {frame}) cannot be read ({error}).",
            "It may be truncated; copy it again.",
        ) from error
    if pixels.shape[:2] != (height, width):
        raise DataError(
            f"{path} (frame {frame}) is {pixels.shape[1]} x {pixels.shape[0]} pixels, but "
            f"capture.json says {width} x {height}.",
            "All frames must have one size.",
        )
    return pixels
