"""Published checkpoints: read without running code in them, and loaded without a key left over."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from posegen_ray.errors import CheckpointError

_SHOWN = 8  # keys of a kind in one message


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a .pt or .pth file: the file's content, or what lies under `model` in it.

    Raises:
        CheckpointError: it is missing, damaged, holds no state dict, or asks for code.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}).", "Name the checkpoint's file."
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is no checkpoint of tensors and plain values, or it is damaged; nothing of it "
            f"was run ({str(error).splitlines()[0]}).",
            "Download it again, or store its weights alone: torch.save(checkpoint['model'], file).",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {str(error).splitlines()[0]}).",
            "Download it again.",
        ) from error
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            f"{path} holds no weights: neither it nor its entry 'model' is a dict of tensors.",
            "Give the published file, or one in its layout.",
        )
    return dict(state)


def load_strictly(
    module: nn.Module,
    state: dict[str, Tensor],
    source: Path,
    ignorable: Collection[str] = (),
) -> None:
    """Copies every tensor of `state` into the module; `ignorable` names are allowed and left out.

    Raises:
        CheckpointError: a key is missing, unknown, or has another shape; all are named.
    """
    given = {name: value for name, value in state.items() if name not in ignorable}
    wanted = module.state_dict()
    problems = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unknown": sorted(given.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {tuple(given[name].shape)} instead of {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in given and given[name].shape != value.shape
        ],
    }
    texts = [f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in problems.items() if keys]
    if texts:
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}; keys {'; '.join(texts)}.",
            "Is it the checkpoint of this estimator and variant?",
        )
    module.load_state_dict(given)


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
