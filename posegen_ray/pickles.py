"""Reads the pickles of public data sets and body models without running what they ask for.

A pickle is a program: it names functions and calls them. Here a name is never looked up; a short
list of names has a meaning of our own (arrays, plain containers, two libraries' stored arrays), and
every other one ends the reading. Knows nothing of what the files are about.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
import scipy.sparse

from posegen_ray.errors import DataError

_SPARSE = {
    (f"scipy.sparse.{prefix}{form}", f"{form}_matrix"): form
    for form in ("csc", "csr", "coo")
    for prefix in ("", "_")  # scipy.sparse.csc until scipy 1.7, scipy.sparse._csc since
}


def load_pickle(path: str | Path) -> Any:
    """What a pickle file holds, made by Python 2 or 3; strings of Python 2 are read as latin1.

    Plain values, sets, OrderedDicts, numpy scalars and arrays (numbers, text and objects, in this
    machine's byte order) come as themselves; chumpy objects and scipy.sparse matrices as
    `StoredArray`, so chumpy need not be installed. No code that the file names is imported or run,
    and no library restores its own state from the file; a hostile file can still ask for much
    memory.

    Raises:
        DataError: no such file, truncated or damaged, or it asks for anything else.
    """
    path = Path(path)
    with _explained(path), path.open("rb") as file:
        return _finished(_Unpickler(file, path).load(), {})


def load_pickled_array(path: str | Path) -> np.ndarray:  # of any shape and dtype
    """The array in a .npy file, also one of Python objects (`np.save` of a dict: shape ()), which
    is a pickle: see `load_pickle`.

    Raises:
        DataError: as `load_pickle`.
    """
    path = Path(path)
    with _explained(path), path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        _, _, dtype = read_header(file)
        if not dtype.hasobject:
            file.seek(0)
            plain: np.ndarray = np.load(file, allow_pickle=False)
            return plain
        array = _finished(_Unpickler(file, path).load(), {})
        if not isinstance(array, np.ndarray):
            raise ValueError("an object array that holds none")
        return array


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns whatever a damaged file raises into one error."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing.", "Is the download complete?") from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}).", "Check the path and its rights."
        ) from error
    except Exception as error:  # the opcodes of a damaged file can raise anything
        raise DataError(
            f"{path} cannot be read: it is not a whole file ({type(error).__name__}: {error}).",
            "Is the file complete? Download it again.",
        ) from error


class StoredArray:
    """A chumpy object or a sparse matrix of a pickle; `np.asarray` gives its (dense) array.

    chumpy's expressions are evaluated only when asked for, and only those that reorder: SMPL's
    files hold others too (joints of the rest pose), which nobody needs.
    """

    kind = ""  # full name of its class
    state: Mapping[str, Any] = MappingProxyType({})  # what the file says of it

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"{self.kind} with a state that is no dict")
        self.state = state

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Its value.

        Raises:
            DataError: an expression that is not evaluated here, or a damaged one.
        """
        try:
            value = self._value()
        except DataError:
            raise
        except (
            LookupError,
            ValueError,
            TypeError,
            AttributeError,
            MemoryError,
            RecursionError,
        ) as error:
            raise DataError(
                f"A stored {self.kind} is damaged ({type(error).__name__}: {error}).",
                "Download the file again.",
            ) from error
        array: np.ndarray = np.array(value, dtype) if copy else np.asarray(value, dtype)
        return array

    def _value(self) -> np.ndarray:
        state = self.state
        if self.kind.startswith("scipy."):
            return _dense(self.kind, state)
        if self.kind == "chumpy.ch.Ch":
            return np.asarray(state["x"])
        if self.kind == "chumpy.reordering.Select":
            chosen = np.asarray(state["a"]).ravel()[np.asarray(state["idxs"])]
            return np.reshape(chosen, state.get("preferred_shape", chosen.shape))
        if self.kind == "chumpy.reordering.transpose":
            return np.transpose(np.asarray(state["a"]), state.get("axes"))
        if self.kind == "chumpy.reordering.Reshape":
            reshaped: np.ndarray = np.reshape(np.asarray(state["a"]), state["newshape"])
            return reshaped
        raise DataError(
            f"A stored {self.kind} is an expression that only chumpy can evaluate.",
            "Store its array instead.",
        )


class _DType:
    """A data type. numpy's own would believe a file that passes bytes off as objects."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str):
            raise pickle.UnpicklingError("a data type that is not named by a string")
        self.value = np.dtype(code)
        if self.value.kind not in "biufcSUO":
            raise pickle.UnpicklingError(f"the data type {code}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[2:5] != (None, None, None):
            raise pickle.UnpicklingError("a data type of several parts")
        self.value = self.value.newbyteorder(state[1])

    def array(self, data: bytes | str, shape: Any, order: Any) -> np.ndarray:
        """A new array of these bytes."""
        if isinstance(data, str):  # Python 2's
            data = data.encode("latin1")
        if self.value.kind == "O":
            raise pickle.UnpicklingError("objects given as bytes")
        view = np.ndarray(shape, self.value, data, order=order)
        if view.nbytes != len(data):
            raise pickle.UnpicklingError(f"{len(data)} bytes for an array of {view.nbytes}")
        return view.astype(self.value.newbyteorder("="))


class _Array:
    """A numpy array until the whole file is read: its contents come after it was made."""

    __hash__ = None  # type: ignore[assignment]  # as an array: no key of a dict
    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        """The array; one of objects holds what `_finished` has yet to finish."""
        _, shape, dtype, fortran, data = self.state
        order = "F" if fortran else "C"
        if dtype.value.kind != "O":
            return dtype.array(data, shape, order)  # type: ignore[no-any-return]
        flat = np.empty(len(data), object)
        for index, item in enumerate(data):  # one by one: numpy would look into sequences
            flat[index] = item
        return flat.reshape(shape, order=order)  # type: ignore[call-overload,no-any-return]


def _finished(value: Any, known: dict[int, tuple[Any, Any]]) -> Any:
    """`value` with arrays in the place of `_Array`s, lists and dicts being changed in place.

    `known` maps what was seen, by identity, to what became of it.
    """
    if not isinstance(value, _Array | StoredArray | dict | list | tuple):
        return value
    if id(value) in known:
        return known[id(value)][1]
    result: Any = value.array() if isinstance(value, _Array) else value
    known[id(value)] = (value, result)  # before its parts: a file may hold cycles
    if isinstance(value, tuple):
        result = tuple(_finished(item, known) for item in value)
        known[id(value)] = (value, result)
    elif isinstance(value, StoredArray):
        value.state = _finished(value.state, known)
    elif isinstance(value, dict):
        for key, item in value.items():
            value[key] = _finished(item, known)
    elif isinstance(value, list):
        value[:] = [_finished(item, known) for item in value]
    elif result.dtype == object:
        for index, item in enumerate(result.flat):
            result.flat[index] = _finished(item, known)
    return result


def _dense(kind: str, state: Mapping[str, Any]) -> np.ndarray:
    data, shape = state["data"], state["_shape"]
    if kind.endswith("coo_matrix"):
        rows, columns = state.get("coords") or (state["row"], state["col"])
        return np.asarray(scipy.sparse.coo_matrix((data, (rows, columns)), shape).toarray())
    build = scipy.sparse.csc_matrix if kind.endswith("csc_matrix") else scipy.sparse.csr_matrix
    matrix = build((data, state["indices"], state["indptr"]), shape)
    matrix.check_format(full_check=True)  # toarray would write where a wrong index points
    return np.asarray(matrix.toarray())


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """Our meaning of a name.

        A pickle may set attributes of what it was given, so that everything given is made anew or
        cannot be changed.
        """
        if module.split(".")[0] == "chumpy" or (module, name) in _SPARSE:
            return type("StoredArray", (StoredArray,), {"kind": f"{module}.{name}"})
        if (module, name) in _FUNCTIONS:
            return partial(_FUNCTIONS[module, name])
        if (module, name) in _CONSTANTS:
            return _CONSTANTS[module, name]
        raise DataError(
            f"{self._path} asks for {module}.{name}, which is not data; nothing of it was run.",
            "Take the file from its original source; it may hold arrays, numbers and text only.",
        )


def _reconstruct(kind: object, *_: object) -> _Array:
    """numpy's empty array, which the pickle then fills."""
    if kind != "numpy.ndarray":
        raise pickle.UnpicklingError("an array of another class than numpy.ndarray")
    return _Array()


def _scalar(dtype: _DType, data: bytes | str) -> Any:
    return dtype.array(data, (), "C")[()]


def _frombuffer(data: bytes, dtype: _DType, shape: Any, order: Any) -> np.ndarray:
    """How protocol 5 makes arrays."""
    return dtype.array(data, shape, order)


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    return b""


def _reconstructor(kind: object, *_: object) -> StoredArray:
    """How protocols 0 and 1 make an object."""
    if not (isinstance(kind, type) and issubclass(kind, StoredArray)):
        raise pickle.UnpicklingError("an object of a class that is not a stored array")
    return kind()


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _DType,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")  # numpy 1 and 2
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty_bytes,
    ("copy_reg", "_reconstructor"): _reconstructor,
    ("copyreg", "_reconstructor"): _reconstructor,
}
_CONSTANTS: dict[tuple[str, str], Any] = {
    # only ever arguments of the functions above: no need to give the classes themselves
    ("numpy", "ndarray"): "numpy.ndarray",
    ("__builtin__", "object"): "object",
    ("builtins", "object"): "object",
    # built in, so that a pickle cannot change them
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
    ("collections", "OrderedDict"): OrderedDict,
}
