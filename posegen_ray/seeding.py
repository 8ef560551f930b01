"""One root seed -> independent, named random streams.

A stream is identified by the root seed and a path of names and numbers, e.g.
`numpy_stream(0, "train", "camera", worker, round)`. The same path gives the same numbers in any
process and on any machine, however the timing falls; different paths are independent.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(root: int, *path: str | int) -> int:
    """A 63-bit seed for the stream `path` under `root`."""
    text = "/".join([str(int(root)), *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_stream(root: int, *path: str | int) -> np.random.Generator:
    """A numpy generator for the stream `path` under `root`."""
    return np.random.default_rng(derive_seed(root, *path))


def torch_stream(root: int, *path: str | int, device: str = "cpu") -> torch.Generator:
    """A torch generator for the stream `path` under `root`."""
    return torch.Generator(device=device).manual_seed(derive_seed(root, *path))
