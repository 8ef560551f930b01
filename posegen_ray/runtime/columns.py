"""Samples as columns of numpy arrays, the form in which Ray Data moves and stores rows."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from posegen_ray.body.camera import Camera
from posegen_ray.records import Samples

Columns = dict[str, NDArray[Any]]

_CAMERA = ("rotation", "translation", "focal", "principal")
_TEXT = ("subjects", "clips")


def to_columns(samples: Samples) -> Columns:
    """One array a field, one row a sample; tensors are viewed, not copied."""
    columns: Columns = {}
    for field in fields(Samples):
        value = getattr(samples, field.name)
        if isinstance(value, Camera):
            for part in _CAMERA:
                columns[f"camera_{part}"] = getattr(value, part).detach().cpu().numpy()
            columns["camera_size"] = np.tile(
                np.array([value.height, value.width], np.int32), (len(value), 1)
            )
        elif isinstance(value, tuple):
            columns[field.name] = np.array(value, dtype=object)
        else:
            columns[field.name] = value.detach().cpu().numpy()
    return columns


def from_columns(columns: Columns) -> Samples:
    """The inverse of `to_columns`. Copies once: Ray's shared memory is read-only, tensors are not.

    All rows must share the picture size.
    """
    height, width = (int(number) for number in columns["camera_size"][0])
    assert (columns["camera_size"] == (height, width)).all(), "mixed picture sizes in one batch"
    parts = {name: torch.tensor(columns[f"camera_{name}"]) for name in _CAMERA}
    values: dict[str, Any] = {"camera": Camera(**parts, height=height, width=width)}
    for field in fields(Samples):
        if field.name in _TEXT:
            values[field.name] = tuple(map(str, columns[field.name]))
        elif field.name != "camera":
            values[field.name] = torch.tensor(columns[field.name])
    return Samples(**values)
