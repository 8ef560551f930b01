"""Reads a float TFLite file into plain records: tensors, constants, operators.

Knows the file format and nothing of torch. Schema: tensorflow/lite/schema/schema.fbs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tflite

from posegen_ray.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]

_OPERATOR_NAMES = {
    code: name for name, code in vars(tflite.BuiltinOperator).items() if isinstance(code, int)
}
_OPTIONS = {
    "CONV_2D": tflite.Conv2DOptions,
    "DEPTHWISE_CONV_2D": tflite.DepthwiseConv2DOptions,
    "ADD": tflite.AddOptions,
    "MAX_POOL_2D": tflite.Pool2DOptions,
    "RESIZE_BILINEAR": tflite.ResizeBilinearOptions,
}
_NUMPY_TYPES = {
    tflite.TensorType.FLOAT32: np.float32,
    tflite.TensorType.FLOAT16: np.float16,
    tflite.TensorType.INT32: np.int32,
    tflite.TensorType.INT64: np.int64,
}


@dataclass(frozen=True)
class FileOperator:
    """One operator of the file."""

    kind: str  # TFLite's name, e.g. CONV_2D
    inputs: tuple[int, ...]  # tensor numbers; -1 where an optional one is absent
    output: int
    options: Any  # TFLite's option table of this kind, or None


@dataclass(frozen=True)
class FileGraph:
    """The main graph of the file; tensors are numbered as there."""

    shapes: tuple[tuple[int, ...], ...]  # of each tensor, TFLite's order (batch, rows, cols, ch)
    constants: dict[int, Array]  # float16 ones are widened to float32
    operators: tuple[FileOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_tflite(path: Path) -> FileGraph:
    """The file's main graph.

    Raises:
        DataError: the file is missing, damaged, or not a TFLite model.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}).", "Give the path of a .tflite file."
        ) from error
    try:
        if not tflite.Model.ModelBufferHasIdentifier(data, 0):
            raise ValueError("no TFL3 mark at its start")
        return _read(tflite.Model.GetRootAsModel(data, 0))
    except (struct.error, IndexError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise DataError(
            f"{path} is not a readable TFLite model ({type(error).__name__}: {error}).",
            "It is damaged or truncated: delete it and fetch it again.",
        ) from error


def _read(model: Any) -> FileGraph:
    graph = model.Subgraphs(0)
    shapes = []
    constants: dict[int, Array] = {}
    for number in range(graph.TensorsLength()):
        tensor = graph.Tensors(number)
        shapes.append(tuple(int(n) for n in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ())
        buffer = model.Buffers(tensor.Buffer())
        if buffer.DataLength():
            values = buffer.DataAsNumpy().view(_NUMPY_TYPES[tensor.Type()])
            constants[number] = values.reshape(shapes[-1])
    operators = []
    for position in range(graph.OperatorsLength()):
        operator = graph.Operators(position)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = _OPERATOR_NAMES[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        inputs = tuple(int(i) for i in operator.InputsAsNumpy())
        output = int(operator.Outputs(0))
        if kind == "DEQUANTIZE" and inputs[0] in constants:
            constants[output] = constants[inputs[0]].astype(np.float32)
            continue
        options = None
        if kind in _OPTIONS:
            table = operator.BuiltinOptions()
            options = _OPTIONS[kind]()
            options.Init(table.Bytes, table.Pos)
        operators.append(FileOperator(kind, inputs, output, options))
    return FileGraph(
        tuple(shapes),
        constants,
        tuple(operators),
        tuple(int(i) for i in graph.InputsAsNumpy()),
        tuple(int(i) for i in graph.OutputsAsNumpy()),
    )
