"""A smooth stand-in for a NeRF and its requests: fast, differentiable, different per subject."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from posegen_ray.body.camera import Camera, orbit
from posegen_ray.body.model import BodyModel
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.errors import SubjectError
from posegen_ray.jobs import FitCapture
from posegen_ray.records import RenderFn, RenderRequest, RenderResult, lit
from posegen_ray.runtime.wire import TensorRenderer
from posegen_ray.seeding import torch_stream


def random_request(subjects: tuple[str, ...], size: int = 8, seed: int = 0) -> RenderRequest:
    stream = torch_stream(seed, "request")
    count = len(subjects)
    camera = Camera(
        torch.randn(count, 3, 3, generator=stream),
        torch.randn(count, 3, generator=stream),
        torch.rand(count, generator=stream) + 1,
        torch.rand(count, 2, generator=stream),
        size,
        size,
    )
    bones = torch.randn(count, 24, 3, 4, generator=stream)
    light = torch.rand(count, 3, generator=stream)
    return RenderRequest(subjects, bones, camera, light)


def posed_request(body: BodyModel, names: tuple[str, ...], size: int = 224) -> RenderRequest:
    """Painted capsule figures in random poses, seen from random sides."""
    count = len(names)
    stream = torch.Generator().manual_seed(4)
    rotations = from_axis_angle(0.2 * torch.randn(count, 24, 3, generator=stream))
    posed = body(rotations, torch.zeros(count, 2), torch.zeros(count, 3))
    angle = torch.linspace(-1, 1, count)
    camera = orbit(
        posed.joints[:, 0],
        azimuth=angle,
        elevation=0.2 * angle,
        roll=0.1 * angle,
        distance=torch.full((count,), 4.0),
        focal=torch.full((count,), 1.6 * size),
        principal=torch.full((count, 2), size / 2),
        height=size,
        width=size,
    )
    return RenderRequest(names, posed.bones.detach(), camera)


def with_gradients(request: RenderRequest) -> tuple[RenderRequest, list[torch.Tensor]]:
    """A copy of the request whose tensors are leaves that want gradients, and these leaves."""
    from posegen_ray.runtime.wire import request_from_tensors, request_tensors

    leaves = [t.clone().requires_grad_() for t in request_tensors(request)]
    size = (request.camera.height, request.camera.width)
    return request_from_tensors(request.subjects, leaves, size), leaves


def gradients(
    render: RenderFn, request: RenderRequest
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The pictures, and the gradients of a weighted sum of them to all of the request."""
    again, leaves = with_gradients(request)
    image = render(again).rgba
    weight = torch.linspace(-1, 1, image.numel()).reshape(image.shape)
    return image.detach(), torch.autograd.grad((image * weight).sum(), leaves)


def assert_same(found, wanted) -> None:
    """Two answers of `gradients` agree bit by bit."""
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=0)
    for one, other in zip(found[1], wanted[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


class _Work(torch.autograd.Function):
    """The identity; says in a folder that it began, and takes its time, forwards and backwards."""

    @staticmethod
    def forward(ctx, image, folder, pause_s, back_s):
        ctx.work = folder, back_s
        _work(folder, pause_s)
        return image.view_as(image)

    @staticmethod
    def backward(ctx, gradient):
        _work(*ctx.work)
        return gradient, None, None, None


def _work(folder: Path, pause_s: float) -> None:
    (folder / f"working_{time.monotonic_ns()}").touch()
    time.sleep(pause_s)


class SineRenderer:
    """Each pixel is a sine of a weighted sum of all inputs; the weights depend on the subject."""

    def __init__(self, folder: Path, pause_s: float = 0.0, back_s: float | None = None) -> None:
        self._folder, self._pauses_s = folder, (pause_s, pause_s if back_s is None else back_s)

    def __call__(self, request: RenderRequest) -> RenderResult:
        images = torch.cat([self._image(request[[i]]) for i in range(len(request))])
        return RenderResult(_Work.apply(images, self._folder, *self._pauses_s))

    def _image(self, item: RenderRequest) -> torch.Tensor:
        camera = item.camera
        stream = torch_stream(0, item.subjects[0])
        parts = [item.bones, camera.rotation, camera.translation, camera.focal, camera.principal]
        parts.append(lit(item))
        values = torch.cat([part.reshape(1, -1) for part in parts], 1)
        pixels = camera.height * camera.width * 4
        weights = torch.randn(values.shape[1], pixels, generator=stream) / 10
        return torch.sin(values @ weights).reshape(1, camera.height, camera.width, 4)


class SineFactory:
    """Picklable; what a render server of the tests loads."""

    def __init__(self, folder: Path, pause_s: float = 0.0) -> None:
        self.folder, self.pause_s = folder, pause_s

    def __call__(self, subject: str) -> TensorRenderer:
        torch.set_num_threads(1)
        return TensorRenderer(SineRenderer(self.folder, self.pause_s))


@dataclass(frozen=True)
class UnevenFactory:
    """The first process to load is slow at pictures, the others at gradients."""

    folder: Path
    slow_s: float

    def __call__(self, subject: str) -> TensorRenderer:
        pauses = (0.0, self.slow_s)
        try:
            (self.folder / "first").touch(exist_ok=False)
        except FileExistsError:
            return TensorRenderer(SineRenderer(self.folder, *pauses), most_kept=8)
        return TensorRenderer(SineRenderer(self.folder, *reversed(pauses)), most_kept=8)


@dataclass(frozen=True)
class FaultyFactory:
    """Its renderer has the fault that a file of the folder names: hang, nan or nan_gradient."""

    folder: Path
    pause_s: float = 0.0

    def __call__(self, subject: str) -> FaultyRenderer:
        return FaultyRenderer(self.folder, SineFactory(self.folder, self.pause_s)(subject))


class FaultyRenderer:
    def __init__(self, folder: Path, sound: TensorRenderer) -> None:
        self._folder, self._sound = folder, sound

    def render_arrays(self, request, keep=False):
        self._hang()
        image = self._sound.render_arrays(request, keep)
        if self._has("nan"):
            image = image.copy()
            image[-1, 0, 0, 1] = float("nan")
        return image

    def vjp_arrays(self, request, gradient):
        self._hang()
        gradients = self._sound.vjp_arrays(request, gradient)
        if self._has("nan_gradient"):
            gradients = replace(gradients, focal=gradients.focal / 0)
        return gradients

    def _hang(self) -> None:
        if self._has("hang"):
            time.sleep(3600)

    def _has(self, fault: str) -> bool:
        """Whether the fault is wanted; then once only, unless it is named `always_...`."""
        try:
            (self._folder / fault).unlink()
        except FileNotFoundError:
            return (self._folder / f"always_{fault}").exists()
        return True


class BrokenFactory:
    def __call__(self, subject: str) -> TensorRenderer:
        raise SubjectError(f"Subject {subject!r} has no folder.", "Run posegen fit.")


def wait_until_working(folder: Path, calls: int, timeout_s: float = 20.0) -> None:
    """Returns once servers have begun so many calls."""
    end = time.monotonic() + timeout_s
    while len(list(folder.glob("working_*"))) < calls:
        assert time.monotonic() < end, "no server began in time"
        time.sleep(0.02)


class CountingActor:
    """Knows how many calls it had at the same time. Later calls are quicker than earlier ones."""

    def __init__(self) -> None:
        self._now, self._peak, self._lock = 0, 0, threading.Lock()

    def work(self, number: int) -> int:
        with self._lock:
            self._now += 1
            self._peak = max(self._peak, self._now)
        time.sleep(0.05 if number % 2 else 0.02)
        with self._lock:
            self._now -= 1
        return number

    def peak(self) -> int:
        return self._peak


@dataclass
class PauseJob:
    """Takes its time, then answers or fails."""

    pause_s: float
    answer: int = 0
    error: Exception | None = None
    size: int = 1

    def run(self, advance):
        time.sleep(self.pause_s)
        if self.error is not None:
            raise self.error
        return self.answer


@dataclass
class FitKilledOnce:
    """A fit whose process dies at a step, once; `seen` gets that step, and the first one after."""

    fit: FitCapture
    step: int
    seen: Path

    @property
    def size(self) -> int:
        return self.fit.size

    def run(self, advance):
        def watch(progress):
            told = self.seen.read_text() if self.seen.exists() else ""
            if not told and progress.done == self.step:
                self.seen.write_text(f"{progress.done} killed ")
                os.kill(os.getpid(), signal.SIGKILL)
            if told.endswith("killed "):
                self.seen.write_text(f"{told}{progress.done}")

        return self.fit.run(advance, watch)
