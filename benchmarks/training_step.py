"""What a training step's heavy pieces cost on a device: estimator and rendering, with gradients.

    python benchmarks/training_step.py [cpu | cuda] [batch]

BlazePose full in fp32, in bf16 (training.precision), and compiled (torch.compile, which no setting
turns on); a picture with gradients to bones and camera. Wall-clock, the median of several passes,
after those that compile; the device has finished before the clock is read.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from render import scene
from torch import Tensor

from posegen_ray.compose import compose_config
from posegen_ray.estimators.base import PoseEstimator, computing_in
from posegen_ray.estimators.registry import build_estimator
from posegen_ray.jobs import FitPerson
from posegen_ray.records import RenderRequest
from posegen_ray.studio import Studio
from posegen_ray.subjects.render import make_renderer
from posegen_ray.subjects.store import load_subject

PASSES = 7


def main(arguments: Sequence[str]) -> None:
    name, batch = (*arguments, *("cpu", "8")[len(arguments) :])
    device, size = torch.device(name), int(batch)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, {torch.get_num_threads()} thread(s), batch {size}")
    config = compose_config(["experiment=tiny", "runtime=inprocess"])
    estimator = build_estimator(config.estimator).to(device)
    for precision in ("fp32", "bf16"):
        report(f"BlazePose, {precision}", estimator, device, size, precision)
    start = time.perf_counter()
    compiled = torch.compile(estimator)
    report("BlazePose, fp32, compiled", compiled, device, size, "fp32")
    print(f"  compiling and measuring it took {time.perf_counter() - start:.0f} s")

    job = FitPerson(config, "ada")
    if not job.done:
        job.run(lambda _: None)
    studio = Studio(config, ((job.name, str(job.folder)),))
    request = scene(studio, job.name, size, 256).request
    renderer = make_renderer(config.renderer, {job.name: load_subject(job.folder)}, device)
    bones = request.bones.to(device).requires_grad_()
    there = RenderRequest(request.subjects, bones, request.camera.to(device))

    def forward() -> Tensor:
        return renderer(there).rgba

    def both() -> None:
        forward().sum().backward()  # type: ignore[no-untyped-call]

    line("rendering, 256 x 256", seconds(forward, device), seconds(both, device), size)


def report(
    label: str, estimator: PoseEstimator, device: torch.device, batch: int, precision: str
) -> None:
    images = torch.rand(batch, 3, 256, 256, device=device, requires_grad=True)

    def forward() -> Tensor:
        with computing_in(precision, device):
            joints = estimator(images).joints
        assert joints is not None
        return joints

    def both() -> None:
        forward().float().sum().backward()  # type: ignore[no-untyped-call]

    line(label, seconds(forward, device), seconds(both, device), batch)


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """The median time of a pass."""
    times = []
    for number in range(2 + PASSES):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def line(label: str, forward: float, both: float, batch: int) -> None:
    milliseconds = (1000 * part / batch for part in (forward, both))
    print("{:28} {:8.2f} ms an image, with gradient {:8.2f}".format(label, *milliseconds))


if __name__ == "__main__":
    main(sys.argv[1:])
