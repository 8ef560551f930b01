"""Nested state (dicts and lists of tensors, numbers, strings) <-> a folder that knows its own hash.

A checkpoint folder holds `tensors.safetensors` and `manifest.json` (the structure, the scalars and
the sha256 of the tensors). Written under a temporary name and renamed: it is whole or it is not
there. No pickle.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from posegen_ray.errors import CheckpointError
from posegen_ray.files import sha256_of

FORMAT = 1
_TENSOR = "__tensor__"
_PAIRS = "__pairs__"  # dicts whose keys are not strings (optimiser states)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Writes `state` to `folder`, replacing what was there only when all is on disk."""
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    structure = _flatten(state, "state", tensors)
    try:
        save_file(tensors, partial / "tensors.safetensors")
    except SafetensorError as error:
        raise OSError(f"cannot write the checkpoint {folder}: {error}") from error
    manifest = {
        "format": FORMAT,
        "sha256": sha256_of(partial / "tensors.safetensors"),
        "state": structure,
    }
    (partial / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
    return folder


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote.

    Raises:
        CheckpointError: it is missing, truncated, changed, or of another format.
    """
    folder = Path(folder)
    again = "Resume from an earlier checkpoint beside it, or start the run again."
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{folder} has checkpoint format {manifest['format']}, not {FORMAT}.",
                "Use the version of posegen_ray that wrote it.",
            )
        tensor_file = folder / "tensors.safetensors"
        if sha256_of(tensor_file) != manifest["sha256"]:
            raise CheckpointError(f"{tensor_file} is truncated or was changed.", again)
        tensors = load_file(tensor_file)
        state = _restore(manifest["state"], tensors)
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename} is missing.", again) from error
    except (ValueError, KeyError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder} cannot be read ({error}).", again) from error
    assert isinstance(state, dict)
    return state


def _flatten(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: path}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _flatten(item, f"{path}.{key}", tensors) for key, item in value.items()}
        pairs = [[key, _flatten(item, f"{path}.{key}", tensors)] for key, item in value.items()]
        return {_PAIRS: pairs}
    if isinstance(value, list | tuple):
        return [_flatten(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot store {type(value).__name__} at {path} in a checkpoint")


def _restore(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        if _PAIRS in value:
            return {key: _restore(item, tensors) for key, item in value[_PAIRS]}
        return {key: _restore(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_restore(item, tensors) for item in value]
    return value
