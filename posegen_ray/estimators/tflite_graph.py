"""A float TFLite graph as a differentiable, trainable torch module.

Covers the operators that mobile pose networks use: convolutions, additions, padding, pooling,
bilinear resizing, reshape, logistic. The graph is pruned to what feeds the wanted outputs and can
be entered and left at any tensor, so that its first part can be run once and its features kept.

Knows nothing of poses. Tensors are [B, C, H, W] here, whatever TFLite's own order is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np
import tflite
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posegen_ray.errors import DataError
from posegen_ray.estimators.tflite_reader import Array, FileGraph, FileOperator, read_tflite

_ACTIVATIONS: dict[int, Callable[[Tensor], Tensor] | None] = {
    tflite.ActivationFunctionType.NONE: None,
    tflite.ActivationFunctionType.RELU: torch.relu_,
    tflite.ActivationFunctionType.RELU6: partial(F.relu6, inplace=True),
}


class _Step(Protocol):
    @property
    def inputs(self) -> tuple[int, ...]: ...
    @property
    def output(self) -> int: ...


AnyStep = TypeVar("AnyStep", bound=_Step)


@dataclass(frozen=True)
class Step:
    """One line of a plan: which module makes which tensor of which."""

    module: str
    inputs: tuple[int, ...]
    output: int


class Convolution(nn.Module):
    """CONV_2D or DEPTHWISE_CONV_2D with bias, padding and activation."""

    def __init__(
        self,
        weight: Tensor,  # [out, in / groups, rows, columns]
        bias: Tensor | None,  # [out]
        stride: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        padding: tuple[int, int, int, int],  # left, right, top, bottom
        activation: int,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.stride, self.dilation, self.groups = stride, dilation, groups
        left, right, top, bottom = padding
        even = left == right and top == bottom
        self.padding = (top, left) if even else (0, 0)
        self.uneven_padding = None if even else padding
        self.activation = _ACTIVATIONS[activation]
        self.pointwise = (
            tuple(weight.shape[2:]) == (1, 1) and stride == (1, 1) and groups == 1 and even
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.uneven_padding is not None:
            x = F.pad(x, self.uneven_padding)
        if self.pointwise:  # a matrix product; moves no memory where x is channels-last
            rows = x.permute(0, 2, 3, 1)
            flat = rows.reshape(-1, rows.shape[3])
            y = self._activate(F.linear(flat, self.weight[:, :, 0, 0], self.bias))
            return y.view(*rows.shape[:3], y.shape[1]).permute(0, 3, 1, 2)
        return self._activate(
            F.conv2d(
                x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )
        )

    def _activate(self, y: Tensor) -> Tensor:
        # in place: nobody's backward pass needs what y was before
        return y if self.activation is None else self.activation(y)


class Addition(nn.Module):
    def __init__(self, activation: int) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[activation]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        y = a + b
        return y if self.activation is None else self.activation(y)


class Padding(nn.Module):
    def __init__(self, padding: tuple[int, ...]) -> None:
        super().__init__()
        self.padding = padding  # left, right, top, bottom, then channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.padding)


class MaxPool(nn.Module):
    def __init__(
        self,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int, int, int],
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        if any(self.padding):
            x = F.pad(x, self.padding, value=float("-inf"))
        return F.max_pool2d(x, self.kernel, self.stride)


class Resize(nn.Module):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, self.size, mode="bilinear", align_corners=False)


class Reshape(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            x = x.permute(0, 2, 3, 1)
        return x.reshape(x.shape[0], *self.shape[1:])


class TFLiteGraph(nn.Module):
    """The part of a TFLite graph that feeds the wanted outputs.

    Args:
        path: the .tflite file.
        outputs: positions in the file's list of outputs; whatever feeds none of them is dropped.

    Attributes:
        input: number of the input tensor, for `run`.
        outputs: numbers of the wanted output tensors.
        shapes: of each tensor number, in TFLite's order (batch, rows, columns, channels).

    Raises:
        DataError: the file is damaged or needs an operator that is not covered.
    """

    def __init__(self, path: Path, outputs: Sequence[int]) -> None:
        super().__init__()
        file = read_tflite(path)
        self.shapes = file.shapes
        self.input = file.inputs[0]
        self.outputs = tuple(file.outputs[position] for position in outputs)
        modules: dict[str, nn.Module] = {}
        self._steps: list[Step] = []
        try:
            pads: dict[int, FileOperator] = {}  # by output; merged into the convolution after it
            for operator in _feeding(file.operators, file.constants, self.outputs):
                if _can_be_merged(operator, file):
                    pads[operator.output] = operator
                    continue
                name = str(operator.output)  # the same whatever else is pruned
                modules[name] = _module(operator, file, pads.get(operator.inputs[0]))
                variable = (i for i in operator.inputs if i >= 0 and i not in file.constants)
                inputs = tuple(pads[i].inputs[0] if i in pads else i for i in variable)
                self._steps.append(Step(name, inputs, operator.output))
        except (ValueError, IndexError, KeyError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{path} holds a graph that cannot be run ({type(error).__name__}: {error}).",
                "It is damaged or truncated: delete it and fetch it again.",
            ) from error
        self.operators = nn.ModuleDict(modules)
        self._plans: dict[tuple[int, tuple[int, ...]], list[tuple[Step, tuple[int, ...]]]] = {}

    def run(
        self,
        start: int,
        value: Tensor,  # [B, C, H, W] value of the tensor number `start`
        outputs: tuple[int, ...],
    ) -> list[Tensor]:
        """Values of the tensors `outputs`, computed from the tensor `start` alone.

        Differentiable in the value and in the parameters on the way.
        """
        if value.ndim == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        values = {start: value}
        for step, finished in self._plan(start, outputs):
            operator = self.operators[step.module]
            values[step.output] = operator(*[values[i] for i in step.inputs])
            for tensor in finished:
                del values[tensor]
        return [values[output] for output in outputs]

    def parameters_between(self, start: int, outputs: tuple[int, ...]) -> list[nn.Parameter]:
        """The parameters that `run(start, ..., outputs)` uses, in order of use."""
        plan = self._plan(start, outputs)
        return [p for step, _ in plan for p in self.operators[step.module].parameters()]

    def cuts(self, output: int) -> list[int]:
        """Tensors that alone determine `output`, in order: where the graph can be entered."""
        steps = [step for step, _ in self._plan(self.input, (output,))]
        found = []
        for position, step in enumerate(steps):
            known = {step.output} | {later.output for later in steps[position + 1 :]}
            if all(i in known for later in steps[position + 1 :] for i in later.inputs):
                found.append(step.output)
        return found

    def _plan(self, start: int, outputs: tuple[int, ...]) -> list[tuple[Step, tuple[int, ...]]]:
        """Steps to run, each with the tensors that nobody needs after it (frees their memory)."""
        key = (start, outputs)
        if key not in self._plans:
            steps = _feeding(self._steps, {start}, outputs)
            last_use = {i: n for n, step in enumerate(steps) for i in step.inputs}
            self._plans[key] = [
                (step, tuple({i for i in step.inputs if last_use[i] == n} - set(outputs)))
                for n, step in enumerate(steps)
            ]
        return self._plans[key]


def _feeding(
    steps: Sequence[AnyStep], known: Iterable[int], outputs: Sequence[int]
) -> list[AnyStep]:
    """The steps, in order, that lead from the known tensors to the outputs."""
    given = set(known) | {-1}
    wanted = set(outputs) - given
    kept = []
    for step in reversed(steps):
        if step.output in wanted:
            kept.append(step)
            wanted |= set(step.inputs) - given
    return kept[::-1]


# --- operators of the file -> modules -------------------------------------------------------------


def _can_be_merged(operator: FileOperator, file: FileGraph) -> bool:
    """Whether a PAD is only the even border of one convolution that has none of its own."""
    if operator.kind != "PAD":
        return False
    border = file.constants[operator.inputs[1]]
    even = bool((border[:, 0] == border[:, 1]).all() and (border[[0, 3]] == 0).all())
    users = [user for user in file.operators if operator.output in user.inputs]
    return even and len(users) == 1 and _is_valid_convolution(users[0])


def _is_valid_convolution(operator: FileOperator) -> bool:
    return (
        operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D")
        and operator.options.Padding() == tflite.Padding.VALID
    )


def _module(operator: FileOperator, file: FileGraph, pad: FileOperator | None) -> nn.Module:
    """The module of an operator; a merged PAD becomes the padding of its convolution."""
    options = operator.options
    if operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return _convolution(operator, file, pad)
    if operator.kind == "ADD" and not any(i in file.constants for i in operator.inputs):
        return Addition(options.FusedActivationFunction())
    if operator.kind == "PAD":
        _, rows, columns, channels = file.constants[operator.inputs[1]].tolist()
        return Padding((*columns, *rows, *channels))
    if operator.kind == "MAX_POOL_2D":
        kernel = (options.FilterHeight(), options.FilterWidth())
        stride = (options.StrideH(), options.StrideW())
        shape = file.shapes[operator.inputs[0]]
        return MaxPool(kernel, stride, _padding(options, shape, kernel, stride, (1, 1)))
    if operator.kind == "RESIZE_BILINEAR" and options.HalfPixelCenters():
        rows, columns = file.constants[operator.inputs[1]].tolist()
        return Resize((rows, columns))
    if operator.kind == "RESHAPE":
        return Reshape(file.shapes[operator.output])
    if operator.kind == "LOGISTIC":
        return nn.Sigmoid()
    raise DataError(
        f"The model needs the operator {operator.kind} in a form that is not covered.",
        "Use a float model made of convolutions, additions, pooling and bilinear resizing.",
    )


def _convolution(operator: FileOperator, file: FileGraph, pad: FileOperator | None) -> Convolution:
    options = operator.options
    kernel = file.constants[operator.inputs[1]]
    shape = file.shapes[operator.inputs[0]]
    if operator.kind == "CONV_2D":
        weight, groups = kernel.transpose(0, 3, 1, 2), 1
    else:
        weight, groups = kernel.transpose(3, 0, 1, 2), shape[3]
    bias = None
    if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
        bias = _tensor(file.constants[operator.inputs[2]])
    stride = (options.StrideH(), options.StrideW())
    dilation = (options.DilationHFactor(), options.DilationWFactor())
    size = cast(tuple[int, int], weight.shape[2:])
    padding = _padding(options, shape, size, stride, dilation)
    if pad is not None:
        _, rows, columns, _ = file.constants[pad.inputs[1]].tolist()
        padding = (*columns, *rows)
    activation = options.FusedActivationFunction()
    return Convolution(_tensor(weight), bias, stride, dilation, groups, padding, activation)


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32, order="C"))


def _padding(
    options: tflite.Conv2DOptions | tflite.Pool2DOptions,
    shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int, int]:  # left, right, top, bottom
    """TFLite's SAME padding: the smaller half goes to the left and the top."""
    if options.Padding() == tflite.Padding.VALID:
        return 0, 0, 0, 0
    rows, columns = (
        max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, k, s, d in zip(shape[1:3], kernel, stride, dilation, strict=True)
    )
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2
