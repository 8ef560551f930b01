"""Pickles as Python 2 and missing libraries write them, for tests of their readers."""

from __future__ import annotations

import io
import pickle
import struct
import sys
from types import ModuleType
from typing import Any

import numpy as np

_CLASSES: dict[tuple[str, str], type] = {}


def foreign(module: str, name: str, **state: object) -> Any:
    """An object of a class that exists only while `python2_pickle` runs."""
    kind = _CLASSES.setdefault((module, name), type(name, (), {"__module__": module}))
    made = kind()
    made.__dict__.update(state)
    return made


def chumpy_array(x: np.ndarray) -> Any:
    """chumpy.ch.Ch with all that it keeps of itself when it is stored."""
    return foreign(
        "chumpy.ch", "Ch", x=x, _dirty_vars={"x"}, _itr=None, _depends_on_deps={}, _make_dense=False
    )


def old_csc_matrix(dense: np.ndarray) -> Any:
    """scipy.sparse.csc.csc_matrix as scipy of Python 2's time stored it."""
    columns, rows = np.nonzero(dense.T)
    counts = np.bincount(columns, minlength=dense.shape[1])
    return foreign(
        "scipy.sparse.csc",
        "csc_matrix",
        _shape=dense.shape,
        maxprint=50,
        format="csc",
        data=dense.T[columns, rows],
        indices=rows.astype(np.int32),
        indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
    )


def python2_pickle(value: object, protocol: int = 2) -> bytes:
    """`value` as Python 2 pickles it: bytes and text are its str, and names are the old ones."""
    shadowed = {module: sys.modules.get(module) for module, _ in _CLASSES}
    shadowed["chumpy"] = sys.modules.get("chumpy")
    for module in shadowed:
        sys.modules[module] = ModuleType(module)
    for (module, name), kind in _CLASSES.items():
        setattr(sys.modules[module], name, kind)
    try:
        buffer = io.BytesIO()
        _Python2Pickler(buffer, protocol).dump(value)
    finally:
        for module, before in shadowed.items():
            if before is None:
                del sys.modules[module]
            else:
                sys.modules[module] = before
    return buffer.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def _save_str(self, value: str | bytes) -> None:
        data = value if isinstance(value, bytes) else value.encode("latin1")
        if self.proto == 0:
            self.write(b"S" + repr(data)[1:].encode("ascii") + b"\n")
        else:
            self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = _save_str
