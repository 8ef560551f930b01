"""Render requests as numpy arrays: what travels between clients and render servers.

Arrays, not tensors: Ray sends them through shared memory three times as fast, and servers see them
without a copy (read-only).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from posegen_ray.body.camera import Camera
from posegen_ray.records import RenderFn, RenderRequest, lit
from posegen_ray.runtime.pixels import FloatArray

# digest of a request -> its tensors, and where the history of its pictures ends
Kept: TypeAlias = OrderedDict[bytes, tuple[list[Tensor], GradientEdge]]


@dataclass(frozen=True)
class RequestArrays:
    """A RenderRequest without tensors; also holds the gradients of one (then shapes are equal)."""

    subjects: tuple[str, ...]
    bones: FloatArray  # [B, 24, 3, 4]
    rotation: FloatArray  # [B, 3, 3]
    translation: FloatArray  # [B, 3]
    focal: FloatArray  # [B]
    principal: FloatArray  # [B, 2]
    light: FloatArray  # [B, 3]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.subjects)

    def rows(self, index: list[int]) -> RequestArrays:
        """The items at these positions."""
        subjects = tuple(self.subjects[i] for i in index)
        return from_parts(subjects, [part[index] for part in self.parts()], self.size)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.height, self.width

    def parts(self) -> list[FloatArray]:
        """The differentiable parts: bones, rotation, translation, focal, principal, light."""
        camera = [self.rotation, self.translation, self.focal, self.principal]
        return [self.bones, *camera, self.light]

    def finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return all(bool(np.isfinite(part).all()) for part in self.parts())

    def digest(self) -> bytes:
        """Equal for equal requests only."""
        name = hashlib.sha256(repr((self.subjects, self.size)).encode())
        for part in self.parts():
            name.update(np.ascontiguousarray(part).tobytes())
        return name.digest()

    def to_request(self, device: torch.device | str = "cpu") -> RenderRequest:
        """The request as tensors of its own (the arrays may be read-only shared memory)."""
        tensors = [torch.tensor(part, device=device) for part in self.parts()]
        return request_from_tensors(self.subjects, tensors, self.size)


def to_arrays(request: RenderRequest) -> RequestArrays:
    """The request's values as float32 arrays on the CPU, without their gradient history."""
    camera = request.camera
    parts = [to_array(tensor) for tensor in request_tensors(request)]
    return from_parts(request.subjects, parts, (camera.height, camera.width))


def to_array(tensor: Tensor) -> FloatArray:
    """A tensor's values as a contiguous float32 array (a view where that is possible)."""
    array: FloatArray = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return array


def from_parts(
    subjects: tuple[str, ...], parts: Sequence[FloatArray], size: tuple[int, int]
) -> RequestArrays:
    """The inverse of `RequestArrays.parts`."""
    bones, rotation, translation, focal, principal, light = parts
    camera = (rotation, translation, focal, principal)
    return RequestArrays(subjects, bones, *camera, light, *size)


def request_tensors(request: RenderRequest) -> list[Tensor]:
    """The differentiable parts of a request, in the order of `RequestArrays.parts`."""
    camera = request.camera
    seen = [camera.rotation, camera.translation, camera.focal, camera.principal]
    return [request.bones, *seen, lit(request)]


def request_from_tensors(
    subjects: tuple[str, ...], tensors: Sequence[Tensor], size: tuple[int, int]
) -> RenderRequest:
    """The inverse of `request_tensors`."""
    bones, rotation, translation, focal, principal, light = tensors
    camera = Camera(rotation, translation, focal, principal, *size)
    return RenderRequest(subjects, bones, camera, light)


class TensorRenderer:
    """Any differentiable RenderFn as a renderer of arrays (what a server hosts).

    Its answers are pure functions of their arguments. The latest calls of `render_arrays` that
    asked for it are remembered with their gradient history, so that `vjp_arrays` for the same
    request need not render again; whatever is forgotten (or was asked of another server) is.

    Args:
        render: what draws.
        device: where it draws.
        most_kept: how many calls are remembered.
        kept: the remembered calls, where several renderers of a process share their number.
    """

    def __init__(
        self, render: RenderFn, device: str = "cpu", most_kept: int = 1, kept: Kept | None = None
    ) -> None:
        self._render, self._device, self._most_kept = render, device, most_kept
        self._kept: Kept = OrderedDict() if kept is None else kept

    def render_arrays(
        self, request: RequestArrays, keep: bool = False
    ) -> FloatArray:  # [B, H, W, 4]
        """Pictures; `keep` where `vjp_arrays` is going to follow."""
        if not keep:
            with torch.no_grad():
                return to_array(self._render(request.to_request(self._device)).rgba)
        while len(self._kept) >= self._most_kept:  # before memory for another one is taken
            self._kept.popitem(last=False)
        tensors, rgba = self._with_history(request)
        # an edge, not the picture: gradients don't need that, and it is 6 MB for eight of 224 x 224
        self._kept[request.digest()] = tensors, get_gradient_edge(rgba)
        return to_array(rgba)

    def vjp_arrays(self, request: RequestArrays, gradient: FloatArray) -> RequestArrays:
        """The gradients of sum(gradient * picture) to the request."""
        known = self._kept.pop(request.digest(), None)
        tensors, drawn = known or self._with_history(request)
        weight = torch.from_numpy(np.require(gradient, requirements="W")).to(self._device)
        gradients = torch.autograd.grad(drawn, tensors, weight, materialize_grads=True)
        return from_parts(request.subjects, [to_array(g) for g in gradients], request.size)

    def _with_history(self, request: RequestArrays) -> tuple[list[Tensor], Tensor]:
        tensors = [
            torch.tensor(part, device=self._device, requires_grad=True) for part in request.parts()
        ]
        with torch.enable_grad():
            again = request_from_tensors(request.subjects, tensors, request.size)
            return tensors, self._render(again).rgba


def split(subjects: tuple[str, ...], max_batch: int) -> list[list[int]]:
    """Cuts a mixed request into calls: the rows of each, all of one subject.

    The cut depends on the arguments alone, never on timing or on who is free.

    Args:
        subjects: the request's subjects, one an item.
        max_batch: most items of a call.
    """
    rows: dict[str, list[int]] = {}
    for row, subject in enumerate(subjects):
        rows.setdefault(subject, []).append(row)
    return [
        same[start : start + max_batch]
        for same in rows.values()
        for start in range(0, len(same), max_batch)
    ]
