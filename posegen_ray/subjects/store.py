"""Subjects on disk: `manifest.json` and a safetensors file; readers never see half a subject.

Knows nothing of fitting or rendering.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from posegen_ray.config import AnerfConfig
from posegen_ray.errors import SubjectError
from posegen_ray.subjects.anerf import SkeletonField
from posegen_ray.subjects.deform import LATTICE_TENSORS, Lattice
from posegen_ray.subjects.field import Field, number

FORMAT_VERSION = 6
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class SubjectManifest:
    """What is known about a subject without loading it: enough to pose its body."""

    name: str
    body: str  # anny | smpl
    shape: tuple[float, ...]  # of the body
    psnr_full: float  # dB on held-out frames, whole picture on white; NaN: not measured
    psnr_person: float  # dB, inside the person's bounding box
    ssim: float  # whole picture; NaN: not measured
    lpips: float  # whole picture (AlexNet); NaN: not measured
    held_out_frames: int
    fit_steps: int  # taken; 0: it was not fitted
    capture_sha256: str  # of the capture it was fitted to; "" if it was not fitted
    licence: str
    source: str  # what the capture shows, in words

    @property
    def quality(self) -> str:
        """What was measured on the held-out frames, in words."""
        if not self.held_out_frames:
            return "no held-out frames to measure on"
        return (
            f"PSNR {self.psnr_person:.1f} dB on the person, {self.psnr_full:.1f} dB on the "
            f"whole picture, SSIM {self.ssim:.3f}"
            + ("" if math.isnan(self.lpips) else f", LPIPS {self.lpips:.3f}")
            + f" ({self.held_out_frames} held-out frames)"
        )


@dataclass(frozen=True)
class Subject:
    """A person who can be drawn in any pose, and where it comes from: one of the two below."""

    manifest: SubjectManifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def body(self) -> str:
        """Name of the body model that poses it."""
        return self.manifest.body

    @property
    def shape(self) -> Tensor:  # [S]
        return torch.tensor(self.manifest.shape)


@dataclass(frozen=True)
class VoxelSubject(Subject):
    """A canonical radiance field, the lattice that moves it, and the light it was filmed in."""

    lattice: Lattice
    field: Field
    light: Tensor  # [2, 4, 4]; see `posegen_ray.subjects.light`


@dataclass(frozen=True)
class AnerfSubject(Subject):
    """A-NeRF's network on skeleton-relative coordinates."""

    field: SkeletonField


def save_subject(subject: Subject, folder: str | Path) -> None:
    """Writes the subject into `folder` (its own one), replacing an older version atomically.

    Raises:
        SubjectError: the folder cannot be written (permissions, full disk).
    """
    folder = Path(folder)
    data = save(_pack(subject), metadata={"name": subject.name})
    digest = hashlib.sha256(data).hexdigest()
    # the data file's name holds its hash: an old manifest never points at new data
    file = f"subject-{digest[:12]}.safetensors"
    manifest = {
        "format_version": FORMAT_VERSION,
        **{key: _to_json(value) for key, value in asdict(subject.manifest).items()},
        "field": _describe(subject),
        "file": file,
        "sha256": digest,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / file, data)
        _write(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        for old in folder.glob("subject-*.safetensors"):
            if old.name != file:
                old.unlink()
    except OSError as error:
        raise SubjectError(
            f"The subject {subject.name!r} could not be written to {folder} ({error.strerror}).",
            "Free some space or choose another folder.",
        ) from error


def read_manifest(folder: str | Path) -> SubjectManifest:
    """The subject's description.

    Raises:
        SubjectError: no subject there, or its manifest cannot be read.
    """
    return _parse(_read_json(Path(folder)), Path(folder))


def load_subject(folder: str | Path) -> Subject:
    """The subject in `folder`, checked against its hash.

    Raises:
        SubjectError: missing, truncated, changed, or of another format version.
    """
    folder = Path(folder)
    raw = _read_json(folder)
    manifest = _parse(raw, folder)
    try:
        data = (folder / raw["file"]).read_bytes()
    except OSError as error:
        raise SubjectError(
            f"The subject {manifest.name!r} lacks its data file {folder / raw['file']}.",
            "Fit it again, or restore the file.",
        ) from error
    if hashlib.sha256(data).hexdigest() != raw["sha256"]:
        raise SubjectError(
            f"{folder / raw['file']} is damaged: its sha256 differs from the manifest's.",
            "Fit the subject again, or restore the file.",
        )
    try:
        return _unpack(manifest, raw["field"], load(data))
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise SubjectError(
            f"The subject in {folder} cannot be read ({error}).", "Fit the subject again."
        ) from error


def list_subjects(root: str | Path) -> list[str]:
    """Names of the folders under `root` that hold a subject, sorted."""
    return sorted(path.parent.name for path in Path(root).glob(f"*/{MANIFEST}"))


def _describe(subject: Subject) -> dict[str, object]:
    """What must be known to read the tensors."""
    if isinstance(subject, AnerfSubject):
        return {"kind": "anerf", **asdict(subject.field.config)}
    assert isinstance(subject, VoxelSubject)
    grid = subject.field
    return {
        "kind": "voxels",
        "shape": list(grid.index.shape),
        "low": list(grid.low),
        "voxel": grid.voxel,
    }


def _pack(subject: Subject) -> dict[str, Tensor]:
    if isinstance(subject, AnerfSubject):
        tensors = dict(subject.field.state_dict())
    else:
        assert isinstance(subject, VoxelSubject)
        tensors = {f"lattice.{name}": getattr(subject.lattice, name) for name in LATTICE_TENSORS}
        stored = np.packbits(subject.field.stored.cpu().numpy().reshape(-1))
        tensors["field.stored"] = torch.from_numpy(stored)
        tensors["field.values"] = subject.field.values
        tensors["light"] = subject.light
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _unpack(
    manifest: SubjectManifest, described: dict[str, Any], tensors: dict[str, Tensor]
) -> Subject:
    if described["kind"] == "anerf":
        settings = {name: value for name, value in described.items() if name != "kind"}
        field = SkeletonField(tensors["rest_joints"], AnerfConfig(**settings))
        field.load_state_dict(tensors)
        return AnerfSubject(manifest, field)
    shape = [int(n) for n in described["shape"]]
    bits = np.unpackbits(tensors["field.stored"].numpy(), count=int(np.prod(shape)))
    index = number(torch.from_numpy(bits.astype(bool)).view(*shape))
    values = tensors["field.values"]
    if values.shape != (int((index >= 0).sum()), 4):
        raise ValueError(f"field.values has shape {tuple(values.shape)}")
    x, y, z = (float(v) for v in described["low"])
    lattice = Lattice(*(tensors[f"lattice.{name}"] for name in LATTICE_TENSORS))
    grid = Field(values, index, (x, y, z), float(described["voxel"]))
    light = tensors["light"]
    if light.shape != (2, 4, 4):
        raise ValueError(f"light has shape {tuple(light.shape)}")
    return VoxelSubject(manifest, lattice, grid, light)


def field_kind(folder: Path) -> str:
    """What kind of field a stored subject has (voxels, anerf); raises SubjectError."""
    return str(_read_json(folder)["field"]["kind"])


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise SubjectError(
            f"There is no subject in {folder} ({MANIFEST} is missing).",
            "Make one with `posegen fit`, or name another folder.",
        ) from error
    except (OSError, ValueError) as error:
        raise SubjectError(f"{path} cannot be read ({error}).", "Fit the subject again.") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise SubjectError(
            f"{path} has format version {version}; this program reads {FORMAT_VERSION}.",
            "Fit the subject again.",
        )
    return dict(raw)


def _parse(raw: dict[str, Any], folder: Path) -> SubjectManifest:
    try:
        values = {field.name: raw[field.name] for field in fields(SubjectManifest)}
        values["shape"] = tuple(float(v) for v in values["shape"])
        for key in ("psnr_full", "psnr_person", "ssim", "lpips"):
            values[key] = float("nan") if values[key] is None else float(values[key])
        for key in ("file", "sha256", "field"):
            raw[key]
    except (KeyError, TypeError, ValueError) as error:
        raise SubjectError(
            f"{folder / MANIFEST} lacks a valid entry {error}.", "Fit the subject again."
        ) from error
    return SubjectManifest(**values)


def _to_json(value: object) -> object:
    # JSON has no NaN
    return None if isinstance(value, float) and value != value else value


def _write(path: Path, data: bytes) -> None:
    """Writes to a temporary name in the same folder, then renames."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")  # with the user's usual permissions
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
