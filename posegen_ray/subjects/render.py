"""Renderers behind one interface: a `RenderFn` with gradients, and stateless calls for servers.

Knows nothing about Ray: a render server holds a `Renderer` and calls its array methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from posegen_ray.body.camera import Camera
from posegen_ray.config import RendererConfig
from posegen_ray.errors import RenderError
from posegen_ray.records import RenderRequest, RenderResult, lit
from posegen_ray.subjects.anerf import AnerfModel
from posegen_ray.subjects.render_fused import FusedModel
from posegen_ray.subjects.render_reference import ReferenceModel
from posegen_ray.subjects.store import AnerfSubject, Subject, VoxelSubject


class RenderGradients(NamedTuple):
    """Gradients of sum(grad_rgba * rgba) to what a request holds, as float32 arrays."""

    bones: np.ndarray  # [B, 24, 3, 4]
    rotation: np.ndarray  # [B, 3, 3]
    translation: np.ndarray  # [B, 3]
    focal: np.ndarray  # [B]
    principal: np.ndarray  # [B, 2]
    light: np.ndarray  # [B, 3]


class Renderer(Protocol):
    """Draws posed subjects. Stateless: equal requests give equal pictures, in any order."""

    def __call__(self, request: RenderRequest) -> RenderResult:
        """Pictures; gradients flow back to the request's bones, light and camera."""

    def render_arrays(self, request: RenderRequest) -> np.ndarray:  # [B, H, W, 4] float32
        """The pictures alone."""

    def vjp_arrays(
        self,
        request: RenderRequest,
        grad_rgba: np.ndarray,  # [B, H, W, 4]
    ) -> RenderGradients:
        """Renders again and pulls `grad_rgba` back to the request."""


class Model(Protocol):
    """One subject, ready to be drawn (`FusedModel`, `ReferenceModel`, `AnerfModel`)."""

    device: torch.device

    def draw(self, bones: Tensor, camera: Camera, light: Tensor | None = None) -> Tensor: ...


def make_renderer(
    config: RendererConfig,
    subjects: Mapping[str, Subject],
    device: torch.device | str = "cpu",
) -> Renderer:
    """A renderer of the given subjects.

    Raises:
        RenderError: `subjects` is empty.
        ResourceError: the device is missing, or the kernels cannot be compiled.
    """
    if not subjects:
        raise RenderError("A renderer needs at least one subject.", "Name some in `subjects`.")
    models = {name: _model(config, subject, device) for name, subject in subjects.items()}
    return SubjectRenderer(models, device)


def _model(config: RendererConfig, subject: Subject, device: torch.device | str) -> Model:
    if isinstance(subject, AnerfSubject):
        return AnerfModel(subject.field, device)
    assert isinstance(subject, VoxelSubject)
    kind = FusedModel if config.kind == "fused" else ReferenceModel
    return kind(subject.lattice, subject.field, subject.light, config, device)


class SubjectRenderer:
    """Sorts a mixed batch by subject, draws each subject's items together, restores the order."""

    def __init__(self, models: Mapping[str, Model], device: torch.device | str = "cpu") -> None:
        self._models = dict(models)
        self._device = torch.device(device)

    def __call__(self, request: RenderRequest) -> RenderResult:
        """See `Renderer`.

        Raises:
            RenderError: unknown subject, tensors of the wrong shape, or values that are not finite.
        """
        _check(request, self._models)
        home = request.bones.device
        bones, camera, light = _moved(request, self._device)
        if len(set(request.subjects)) == 1:
            rgba = self._models[request.subjects[0]].draw(bones, camera, light)
            return RenderResult(rgba.to(home))
        order: list[int] = []
        pieces = []
        for name in dict.fromkeys(request.subjects):
            items = [i for i, subject in enumerate(request.subjects) if subject == name]
            rows = torch.tensor(items, device=self._device)
            own = None if light is None else light[rows]
            pieces.append(self._models[name].draw(bones[rows], camera[rows], own))
            order += items
        place = torch.tensor(order, device=self._device).argsort()
        return RenderResult(torch.cat(pieces)[place].to(home))

    def render_arrays(self, request: RenderRequest) -> np.ndarray:
        with torch.no_grad():
            return self(request).rgba.cpu().numpy()

    def vjp_arrays(self, request: RenderRequest, grad_rgba: np.ndarray) -> RenderGradients:
        camera = request.camera
        names = ("rotation", "translation", "focal", "principal")
        leaves = [request.bones, *(getattr(camera, name) for name in names), lit(request)]
        leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        with torch.enable_grad():
            again = replace(
                request,
                bones=leaves[0],
                camera=replace(camera, **dict(zip(names, leaves[1:-1], strict=True))),
                light=leaves[-1],
            )
            rgba = self(again).rgba
        if grad_rgba.shape != tuple(rgba.shape):
            raise RenderError(
                f"grad_rgba has shape {grad_rgba.shape} instead of {tuple(rgba.shape)}.",
                "Pass the gradient of the picture that this request gives.",
            )
        grad = torch.from_numpy(np.ascontiguousarray(grad_rgba, np.float32)).to(rgba.device)
        pulled = torch.autograd.grad(rgba, leaves, grad, allow_unused=False)
        return RenderGradients(*(p.cpu().numpy() for p in pulled))


def _moved(request: RenderRequest, device: torch.device) -> tuple[Tensor, Camera, Tensor | None]:
    bones, camera, light = request.bones, request.camera, request.light
    if bones.device == device:
        return bones, camera, light
    return bones.to(device), camera.to(device), None if light is None else light.to(device)


def _check(request: RenderRequest, models: Mapping[str, Model]) -> None:
    unknown = sorted(set(request.subjects) - set(models))
    if unknown:
        raise RenderError(
            f"This renderer does not hold the subject {unknown[0]!r}.",
            f"It holds: {', '.join(sorted(models))}.",
        )
    batch, camera = len(request), request.camera
    if batch == 0:
        raise RenderError("The render request is empty.", "Ask for at least one picture.")
    expected = {
        "bones": (request.bones, (batch, 24, 3, 4)),
        "camera.rotation": (camera.rotation, (batch, 3, 3)),
        "camera.translation": (camera.translation, (batch, 3)),
        "camera.focal": (camera.focal, (batch,)),
        "camera.principal": (camera.principal, (batch, 2)),
        "light": (lit(request), (batch, 3)),
    }
    for name, (value, shape) in expected.items():
        if tuple(value.shape) != shape:
            raise RenderError(
                f"The render request's {name} has shape {tuple(value.shape)} instead of {shape}."
            )
        if value.dtype != torch.float32:
            raise RenderError(f"The render request's {name} is {value.dtype} instead of float32.")
        if not bool(value.isfinite().all()):
            raise RenderError(f"The render request's {name} holds NaN or infinite values.")
    if camera.height < 1 or camera.width < 1:
        raise RenderError(f"The render request asks for {camera.height} x {camera.width} pixels.")
    if not bool((camera.focal > 0).all()):
        raise RenderError("The render request holds a focal length that is not positive.")
