"""What do render servers cost and gain? Images a second in process, through one server, two.

    python benchmarks/servers.py [person] [hydra overrides]

The client asks for 8 pictures (224 x 224) at a time, and for 16, of which two servers get half
each. No two pictures are equal, as a server keeps equal requests' histories once. Wall-clock time:
other work on the machine shows. Each server has one thread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from render import scene

from posegen_ray.compose import compose_config
from posegen_ray.jobs import FitPerson
from posegen_ray.records import RenderFn, RenderRequest
from posegen_ray.runtime.render_pool import start_pool
from posegen_ray.runtime.session import RaySession
from posegen_ray.studio import Studio
from posegen_ray.subjects.render import make_renderer
from posegen_ray.subjects.store import load_subject

SIZE, BATCH, SECONDS = 224, 8, 8.0
CAMERA = ("rotation", "translation", "focal", "principal")


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    names = [word for word in arguments if "=" not in word] or ["ben"]
    config = compose_config([word for word in arguments if "=" in word])
    job = FitPerson(config, names[0])
    if not job.done:
        print(f"fitting {job.name}")
        job.run(lambda _: None)
    studio = Studio(config, ((job.name, str(job.folder)),))
    eight, sixteen = (scene(studio, job.name, count, SIZE).request for count in (BATCH, 2 * BATCH))
    rates: dict[str, tuple[float, float]] = {}

    local = make_renderer(config.renderer, {job.name: load_subject(job.folder)})
    rates["in process"] = measure(local, eight)
    with RaySession(config.runtime):
        for count in (1, 2):
            settings = replace(config.runtime.render, replicas=count)
            pool = start_pool(settings, {job.name: Path(job.folder)}, config.renderer, threads=1)
            if count == 1:
                rates["one server"] = measure(pool.render_fn(), eight)
            rates[f"{count} of them, 16 at a time"] = measure(pool.render_fn(), sixteen)
            pool.close()

    print(f"{'':26}{'images/s':>10}{'with gradient':>15}")
    for label, (forward, both) in rates.items():
        print(f"{label:26}{forward:>10.1f}{both:>15.1f}")
    base, one, single, double = rates.values()
    print(f"one server against in process: {one[0] / base[0]:.0%}, {one[1] / base[1]:.0%}")
    print(f"two against one: {double[0] / single[0]:.2f} and {double[1] / single[1]:.2f} times")


def measure(render: RenderFn, request: RenderRequest) -> tuple[float, float]:
    """Images a second: forward, and with a gradient pulled back to bones and cameras."""

    def both() -> None:
        leaves = {name: getattr(request.camera, name).clone().requires_grad_() for name in CAMERA}
        bones = request.bones.clone().requires_grad_()
        camera = replace(request.camera, **leaves)
        rgba = render(replace(request, bones=bones, camera=camera)).rgba
        rgba.square().mean().backward()  # type: ignore[no-untyped-call]

    def forward() -> None:
        with torch.no_grad():
            render(request)

    return per_second(forward, len(request)), per_second(both, len(request))


def per_second(call: Callable[[], None], count: int) -> float:
    """How many, when each call makes so many."""
    call()
    start, done = time.perf_counter(), 0
    while time.perf_counter() < start + SECONDS:
        call()
        done += count
    return done / (time.perf_counter() - start)


if __name__ == "__main__":
    main(sys.argv[1:])
