"""The restricted reader gives the data of real pickles, and runs nothing of hostile ones."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import struct
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from foreign_pickles import chumpy_array, foreign, old_csc_matrix, python2_pickle

from posegen_ray.errors import DataError, PosegenError
from posegen_ray.pickles import StoredArray, load_pickle, load_pickled_array


def _stored(folder: Path, data: bytes) -> Path:
    path = folder / "file.pkl"
    path.write_bytes(data)
    return path


def _read(folder: Path, data: bytes) -> Any:
    return load_pickle(_stored(folder, data))


def _arrays() -> dict[str, np.ndarray]:
    stream = np.random.default_rng(0)
    objects = np.empty((3, 1), object)
    objects[:, 0] = [{"a": 1}, None, [2, 3]]
    return {
        "doubles": stream.normal(size=(3, 4)),
        "floats in Fortran's order": np.asfortranarray(stream.normal(size=(3, 4, 2)), np.float32),
        "big endian": np.arange(5, dtype=">i2"),
        "unsigned": np.array([2**32 - 1], np.uint32),
        "booleans": np.array([[True], [False]]),
        "no axes": np.array(3.5),
        "empty": np.zeros((0, 3)),
        "text": np.array(["neutral", "mäle"]),
        "bytes": np.array([b"ab", b"c"]),
        "objects": objects,
    }


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_arrays_and_plain_values_come_back(tmp_path: Path, protocol: int) -> None:
    plain = {
        "number": np.float32(1.25),
        "integer": np.int64(-3),
        "bytes": b"\xff\x00",
        "no bytes": b"",
        "text": "Größe",
        "nested": [(1, 2.5, None, True), {"a": [2**70]}],
        "set": {1, 2},
        "ordered": OrderedDict(b=1, a=2),
    }
    arrays = _arrays()
    read = _read(tmp_path, pickle.dumps({"plain": plain, "arrays": arrays}, protocol))
    assert read["plain"] == plain
    assert type(read["plain"]["number"]) is np.float32
    assert list(read["plain"]["ordered"]) == ["b", "a"]
    for name, array in arrays.items():
        assert type(read["arrays"][name]) is np.ndarray, name
        assert read["arrays"][name].dtype == array.dtype.newbyteorder("="), name
        if array.ndim > 1 and array.size:
            assert read["arrays"][name].flags.c_contiguous == array.flags.c_contiguous, name
        np.testing.assert_array_equal(read["arrays"][name], array, err_msg=name)
        assert read["arrays"][name].flags.writeable, name


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_files_of_python_2_come_back(tmp_path: Path, protocol: int) -> None:
    arrays = {name: array for name, array in _arrays().items() if name not in ("text", "bytes")}
    data = python2_pickle(
        {"arrays": arrays, "gender": ["f", "é"], "set": {1}, "number": np.float64(np.pi)}, protocol
    )
    assert b"_codecs" not in data  # which is how Python 3 would write bytes
    read = _read(tmp_path, data)
    assert read["gender"] == ["f", "é"]
    assert read["set"] == {1}
    assert read["number"] == np.pi
    for name, array in arrays.items():
        np.testing.assert_array_equal(read["arrays"][name], array, err_msg=name)


@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_inside_of_others_and_shared_ones_come_back(tmp_path: Path, protocol: int) -> None:
    inner, outer = np.arange(3.0), np.empty(2, object)
    outer[:] = [inner, {"deep": (inner, [inner])}]
    cycle: list[Any] = [inner]
    cycle.append(cycle)
    read = _read(tmp_path, pickle.dumps([outer, inner, cycle], protocol))
    found = [read[1], read[0][0], read[0][1]["deep"][0], read[0][1]["deep"][1][0], read[2][0]]
    for array in found:
        assert array is read[1]
    np.testing.assert_array_equal(read[1], inner)
    assert read[2][1] is read[2]


def _array_program(code: bytes, state: bytes, shape: bytes, data: bytes) -> bytes:
    """An array as Python 2 writes it, in protocol 2."""
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + shape
        + b"cnumpy\ndtype\nU\x02"
        + code
        + b"K\x00K\x01\x87R("
        + state
        + b"tb\x89"
        + data
        + b"tb."
    )


_PLAIN = b"K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"
_NUMBER = b"U\x08\x18\x2d\x44\x54\xfb\x21\x09\x40"


@pytest.mark.parametrize(
    ("code", "state", "shape", "data"),
    [
        (b"O8", _PLAIN, b"K\x01\x85", _NUMBER),  # bytes as addresses of objects
        (b"f8", _PLAIN, b"K\x02\x85", _NUMBER),  # too few
        (b"f8", _PLAIN, b"K\x00\x85", _NUMBER),  # too many
        (b"O8", _PLAIN, b"K\x02\x85", b"]K\x01a"),  # too few objects
        (b"V8", _PLAIN, b"K\x01\x85", _NUMBER),
        (b"V8", b"K\x03U\x01|NU\x01a\x85}K\x08K\x01K\x00", b"K\x01\x85", _NUMBER),  # several parts
    ],
)
def test_arrays_whose_contents_do_not_fit_are_refused(
    tmp_path: Path, code: bytes, state: bytes, shape: bytes, data: bytes
) -> None:
    whole = _array_program(b"f8", _PLAIN, b"K\x01\x85", _NUMBER)
    np.testing.assert_array_equal(_read(tmp_path, whole), [np.pi])
    with pytest.raises(DataError, match=r"file\.pkl"):
        _read(tmp_path, _array_program(code, state, shape, data))


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_chumpy_objects_give_their_arrays(tmp_path: Path, protocol: int) -> None:
    x = np.random.default_rng(1).normal(size=(4, 3, 6))
    kept = np.arange(x.size).reshape(x.shape)[..., :2]
    select = {"a": chumpy_array(x), "idxs": kept.ravel()}
    module = "chumpy.reordering"
    value = {
        "Ch": chumpy_array(x),
        "Select": foreign(module, "Select", preferred_shape=kept.shape, **select),
        "flat": foreign(module, "Select", **select),
        "transpose": foreign(module, "transpose", a=chumpy_array(x[0]), axes=None),
        "nested": foreign(module, "Reshape", a=foreign(module, "Select", **select), newshape=(-1,)),
    }
    data = python2_pickle(value, protocol)
    assert "chumpy" not in sys.modules
    read = _read(tmp_path, data)
    assert "chumpy" not in sys.modules
    expected = {
        "Ch": x,
        "Select": x[..., :2],
        "flat": x[..., :2].ravel(),
        "transpose": x[0].T,
        "nested": x[..., :2].ravel(),
    }
    for name, array in expected.items():
        np.testing.assert_array_equal(np.asarray(read[name]), array, err_msg=name)
    assert np.asarray(read["Ch"], np.float32).dtype == np.float32


def test_an_expression_is_refused_only_when_it_is_asked_for(tmp_path: Path) -> None:
    total = foreign("chumpy.ch_ops", "add", a=chumpy_array(np.ones(2)), b=chumpy_array(np.ones(2)))
    read = _read(tmp_path, python2_pickle({"v_shaped": total, "v": chumpy_array(np.ones(2))}))
    np.testing.assert_array_equal(np.asarray(read["v"]), np.ones(2))
    with pytest.raises(DataError, match=r"chumpy\.ch_ops\.add"):
        np.asarray(read["v_shaped"])


def test_an_expression_of_itself_is_an_error(tmp_path: Path) -> None:
    loop = foreign("chumpy.reordering", "transpose", axes=None)
    loop.a = loop
    read = _read(tmp_path, python2_pickle(loop))
    with pytest.raises(DataError, match="transpose is damaged"):
        np.asarray(read)


@pytest.mark.parametrize("form", ["csc", "csr", "coo"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_sparse_matrices_give_their_arrays(tmp_path: Path, form: str, protocol: int) -> None:
    dense = np.random.default_rng(2).normal(size=(5, 7)) * (np.arange(35).reshape(5, 7) % 3 == 0)
    matrix = getattr(scipy.sparse, f"{form}_matrix")(dense)
    read = _read(tmp_path, pickle.dumps(matrix, protocol))
    np.testing.assert_array_equal(np.asarray(read), dense)


def test_sparse_matrices_of_old_scipy_give_their_arrays(tmp_path: Path) -> None:
    dense = np.array([[0.0, 2.0, 0.0], [1.0, 3.0, 0.0]])
    pairs = foreign(
        "scipy.sparse.coo",
        "coo_matrix",
        _shape=(2, 3),
        data=np.array([2.0, 1.0, 3.0]),
        row=np.array([0, 1, 1], np.int32),
        col=np.array([1, 0, 1], np.int32),
    )
    for protocol in (0, 2):
        data = python2_pickle([old_csc_matrix(dense), pairs], protocol)
        assert b"cscipy.sparse.csc\ncsc_matrix" in data
        for read in _read(tmp_path, data):
            np.testing.assert_array_equal(np.asarray(read), dense)


def test_a_sparse_matrix_that_points_outside_is_refused(tmp_path: Path) -> None:
    matrix = scipy.sparse.csc_matrix(np.eye(3))
    matrix.indices[1] = 10**6
    read = _read(tmp_path, pickle.dumps(matrix))
    with pytest.raises(DataError, match="csc_matrix"):
        np.asarray(read)


class _Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, r"system"),
        (eval, r"eval"),
        (getattr, r"getattr"),
        (np.load, r"numpy.*load"),
        (np.fromfile, r"numpy.*fromfile"),
        (functools.partial, r"functools\.partial"),
        (PosegenError, r"posegen_ray\.errors\.PosegenError"),
        (StoredArray, r"posegen_ray\.pickles\.StoredArray"),
    ],
)
def test_other_names_are_refused_and_named(
    tmp_path: Path, protocol: int, function: Any, name: str
) -> None:
    data = pickle.dumps({"a": 1, "b": _Call(function, "1 + 1")}, protocol)
    with pytest.raises(DataError, match=name) as caught:
        _read(tmp_path, data)
    assert "file.pkl" in caught.value.what
    assert caught.value.fix


def test_a_hostile_file_runs_and_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    command = _stored(tmp_path, pickle.dumps(_Call(os.system, f"touch '{marker}'")))
    with pytest.raises(DataError):
        load_pickle(command)
    assert not marker.exists()
    pickle.loads(command.read_bytes())  # the file is dangerous indeed
    assert marker.exists()

    (tmp_path / "hostile_module.py").write_text("import os\nos.environ['HOSTILE'] = '1'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"hostile_module\.run"):
        _read(tmp_path, b"\x80\x02chostile_module\nrun\n)R.")
    assert "hostile_module" not in sys.modules
    assert "HOSTILE" not in os.environ


@pytest.mark.parametrize(
    "program",
    [
        # numpy.ndarray.tofile by a dotted name
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        # a name of chumpy, called: no such function is looked up
        b"\x80\x02cchumpy.ch\nsystem\nX\x04\x00\x00\x00true\x85R.",
        # numpy's class, called
        b"\x80\x02cnumpy\nndarray\nK\x03\x85R.",
        # _codecs.encode with another codec
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
        # an object by protocol 0's function whose class is no stored array
        b"ccopy_reg\n_reconstructor\n(c__builtin__\nset\nc__builtin__\nobject\nNtR.",
    ],
)
def test_allowed_names_do_no_more_than_intended(tmp_path: Path, program: bytes) -> None:
    with pytest.raises(DataError):
        _read(tmp_path, program)


@pytest.mark.parametrize(
    ("name", "attribute"),
    [
        (b"cchumpy.ch\nCh\n", b"kind"),
        (b"cscipy.sparse.csc\ncsc_matrix\n", b"kind"),
        (b"cnumpy.core.multiarray\n_reconstruct\n", b"__defaults__"),
        (b"c__builtin__\nset\n", b"pop"),
        (b"ccollections\nOrderedDict\n", b"pop"),
    ],
)
def test_a_file_cannot_change_what_later_files_are_read_with(
    tmp_path: Path, name: bytes, attribute: bytes
) -> None:
    expected = [np.arange(3), scipy.sparse.csc_matrix(np.eye(2)), {1}, OrderedDict(a=1)]
    data = pickle.dumps(expected)
    # BUILD with the state (None, {attribute: (1,)}), which sets attributes of what was named
    text = b"X" + struct.pack("<I", len(attribute)) + attribute
    with contextlib.suppress(DataError):  # refused, or without effect
        _read(tmp_path, b"\x80\x02" + name + b"(N}" + text + b"K\x01\x85stb.")
    array, matrix, plain, ordered = _read(tmp_path, data)
    np.testing.assert_array_equal(array, np.arange(3))
    np.testing.assert_array_equal(np.asarray(matrix), np.eye(2))
    assert plain.pop() == 1
    assert ordered.pop("a") == 1
    assert vars(StoredArray)["kind"] == ""


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_every_truncation_is_an_error_that_names_the_file(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps({"poses": np.arange(3.0), "gender": "f"}, protocol)
    for length in range(len(data)):
        with pytest.raises(DataError, match=r"file\.pkl"):
            _read(tmp_path, data[:length])


@pytest.mark.parametrize(
    "data", [b"not a pickle", b"<html>", b"\x80\xff.", b"\x80\x02K\x01K\x02e."]
)
def test_other_contents_are_an_error(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError, match=r"file\.pkl"):
        _read(tmp_path, data)


def test_missing_file_and_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.pkl"):
        load_pickle(tmp_path / "absent.pkl")
    with pytest.raises(DataError, match="cannot be read"):
        load_pickle(tmp_path)


@pytest.mark.parametrize("name", list(_arrays()))
def test_arrays_of_npy_files_come_back(tmp_path: Path, name: str) -> None:
    array = _arrays()[name]
    np.save(tmp_path / "file.npy", array)
    found = load_pickled_array(tmp_path / "file.npy")
    assert found.shape == array.shape
    assert found.tolist() == array.tolist()


def test_a_dict_saved_by_numpy_comes_back(tmp_path: Path) -> None:
    np.save(tmp_path / "file.npy", {"K": np.eye(3), "names": ["a", "b"]})  # type: ignore[arg-type]
    found = load_pickled_array(tmp_path / "file.npy").item()
    np.testing.assert_array_equal(found["K"], np.eye(3))
    assert found["names"] == ["a", "b"]


def test_a_hostile_npy_file_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    np.save(tmp_path / "file.npy", np.array([_Call(os.system, f"touch {marker}")], object))
    with pytest.raises(DataError, match="system"):
        load_pickled_array(tmp_path / "file.npy")
    assert not marker.exists()


def test_a_truncated_npy_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file.npy"
    np.save(path, {"K": np.eye(3)})  # type: ignore[arg-type]
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"file\.npy"):
            load_pickled_array(path)
