"""SMPL's model files: where they lie, and the arrays in them. Knows nothing of the smplx package.

Legend: V vertices, F faces, S shape directions.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from posegen_ray.body.skeleton import NUM_JOINTS, PARENTS
from posegen_ray.errors import AssetError, DataError
from posegen_ray.pickles import load_pickle

NUM_SHAPE = 10
LICENCE = "SMPL is free for research after registration at https://smpl.is.tue.mpg.de."
GENDERS = {"neutral": "neutral", "male": "m", "female": "f"}  # and as the original names say it

_ENDINGS = ("npz", "safetensors", "pkl")
_PLACES = ("", "smpl", "models", "models/smpl", "smpl/models")  # smplx's layout and SMPL's archive
_DTYPES = {
    "v_template": np.float32,
    "shapedirs": np.float32,
    "posedirs": np.float32,
    "J_regressor": np.float32,
    "weights": np.float32,
    "kintree_table": np.int64,
    "f": np.int64,
}


def find_smpl_file(folder: str | Path, gender: str) -> Path | None:
    """The model of a gender, in the folder or in its sub-folders `smpl` and `models`.

    Its name is SMPL_NEUTRAL.npz (.safetensors, .pkl) or the one it is published under, such as
    basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl.
    """
    original = re.compile(
        rf"basicmodel_{re.escape(GENDERS.get(gender, gender))}_lbs_10_207_0_v[\d.]+\.pkl",
        re.IGNORECASE,  # published as basicModel and as basicmodel
    )
    for place in (Path(folder) / name for name in _PLACES):
        files = sorted(place.iterdir(), reverse=True) if place.is_dir() else []
        named = [place / f"SMPL_{gender.upper()}.{ending}" for ending in _ENDINGS]
        found = named + [file for file in files if original.fullmatch(file.name)]
        for file in found:
            if file.is_file():
                return file
    return None


def read_smpl_file(path: Path) -> dict[str, np.ndarray]:
    """SMPL's arrays under their names in the file, dense.

    Returns:
        v_template [V, 3], shapedirs [V, 3, S >= 10], posedirs [V, 3, 207], J_regressor [24, V],
        weights [V, 24], all float32; kintree_table [2, 24], f [F, 3], int64.

    Raises:
        AssetError: the file is damaged, is not SMPL, or asks for code (see `load_pickle`).
    """
    again = f"Download it again. {LICENCE}"
    try:
        stored = _stored(path)
        arrays = {name: np.asarray(stored[name], dtype) for name, dtype in _DTYPES.items()}
    except KeyError as error:
        raise AssetError(f"{path} is not an SMPL model: it has no {error}.", again) from error
    except DataError as error:
        name = "" if str(path) in error.what else f"{path}: "
        raise AssetError(f"{name}{error.what}", error.fix) from error
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        EOFError,
        SafetensorError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise AssetError(
            f"{path} cannot be read as an SMPL model ({type(error).__name__}: {error}).", again
        ) from error
    _check(path, arrays)
    return arrays


def _stored(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in _DTYPES if name in archive.files}
    stored = load_file(path) if path.suffix == ".safetensors" else load_pickle(path)
    if not isinstance(stored, dict):
        raise TypeError(f"it holds a {type(stored).__name__}")
    return stored


def _check(path: Path, arrays: dict[str, np.ndarray]) -> None:
    tree = arrays["kintree_table"]
    # the root's parent is -1 or, unsigned, 2 ** 32 - 1
    if tree.shape != (2, NUM_JOINTS) or tuple(tree[0, 1:].tolist()) != PARENTS[1:]:
        raise AssetError(
            f"{path} has another skeleton than SMPL's {NUM_JOINTS} joints.",
            "Give an SMPL file (not SMPL+H or SMPL-X).",
        )
    vertices, directions = len(np.atleast_1d(arrays["v_template"])), arrays["shapedirs"].shape[-1:]
    expected = {
        "v_template": (vertices, 3),
        "shapedirs": (vertices, 3, *directions),
        "posedirs": (vertices, 3, 9 * (NUM_JOINTS - 1)),
        "J_regressor": (NUM_JOINTS, vertices),
        "weights": (vertices, NUM_JOINTS),
        "f": (len(np.atleast_1d(arrays["f"])), 3),
    }
    wrong = [name for name, shape in expected.items() if arrays[name].shape != shape]
    if not wrong and directions[0] < NUM_SHAPE:
        wrong = ["shapedirs"]
    if not wrong and not ((arrays["f"] >= 0) & (arrays["f"] < vertices)).all():
        wrong = ["f"]
    if wrong:
        raise AssetError(
            f"{path} is not an SMPL model: its {wrong[0]} of shape {arrays[wrong[0]].shape} "
            f"does not belong to {vertices} vertices, {NUM_JOINTS} joints and {NUM_SHAPE} shapes.",
            f"Download it again. {LICENCE}",
        )
