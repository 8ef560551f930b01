"""Pickles from elsewhere, read without running their code: numpy arrays and plain Python only."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from posegen_ray.errors import DataError

# what numpy's arrays, scalars and dtypes are made of in pickles; `numpy.core` is numpy 1's name
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),  # bytes, in protocol 2
}


class _NumpyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}, which is not numpy's data")
        return super().find_class(module, name)


def load_pickle(path: str | Path) -> Any:
    """The object in a pickle file, of Python 2 or 3.

    Raises:
        DataError: the file is missing or damaged, or holds anything but numpy and plain Python.
    """
    try:
        with Path(path).open("rb") as file:
            return _load(file)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing.", "Is the download complete?") from error
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


def load_pickled_array(path: str | Path) -> Any:  # np.ndarray, of any shape and dtype
    """The array in a .npy file, also one of Python objects (`np.save` of a dict: shape ()).

    Raises:
        DataError: as `load_pickle`.
    """
    try:
        with Path(path).open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            _, _, dtype = read_header(file)
            if dtype.hasobject:
                return _load(file)
        return np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing.", "Is the download complete?") from error
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    ImportError,
    TypeError,
    pickle.PickleError,
)


def _load(file: BinaryIO) -> Any:
    return _NumpyUnpickler(file, encoding="latin1").load()


def _unreadable(path: str | Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be read ({type(error).__name__}: {error}).",
        "Download it again from its source.",
    )
