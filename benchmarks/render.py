"""How fast is rendering, where does the time go, and what does it take of memory?

    python benchmarks/render.py [person] [hydra overrides]

One thread. Each row: frames of real motion, the person about 65 % of the picture's height, eight
camera directions; CPU time, the best of several repetitions. The person is fitted when missing.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from posegen_ray.body.camera import Camera, orbit
from posegen_ray.compose import compose_config
from posegen_ray.config import RunConfig
from posegen_ray.jobs import FitPerson
from posegen_ray.records import RenderRequest
from posegen_ray.seeding import torch_stream
from posegen_ray.studio import Studio
from posegen_ray.subjects.deform import pose_lattice
from posegen_ray.subjects.render import Renderer, make_renderer
from posegen_ray.subjects.render_fused import FusedModel, ray_slopes, to_camera_bones
from posegen_ray.subjects.store import load_subject

SHARE = 0.65  # of the picture's height that the person takes
DISTANCE = 4.0  # metres
REFERENCE_SIZE = 112  # the reference renderer is too slow for more


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    names = [argument for argument in arguments if "=" not in argument] or ["ben"]
    config = compose_config(["runtime=inprocess", *[a for a in arguments if "=" in a]])
    job = FitPerson(config, names[0])
    if not job.done:
        print(f"fitting {job.name}")
        job.run(lambda _: None)
    before = resident_mb()
    subject = load_subject(job.folder)
    quality = f"held-out PSNR on the person {subject.manifest.psnr_person:.2f} dB"
    print(f"{job.name}: {len(subject.lattice.tets)} tetrahedra, {quality}")
    fused = make_renderer(config.renderer, {job.name: subject})
    plain = replace(config.renderer, kind="reference")
    reference = make_renderer(plain, {job.name: subject})

    print(f"\n{'':26}{'pixels':>8}{'images/s':>10}{'with gradient':>15}")
    for size in (112, 224, 448):
        for batch in (1, 8):
            request = requests(config, job, batch, size)
            row(f"fused, {size}², batch {batch}", fused, request, 5)
    row(
        f"reference, {REFERENCE_SIZE}², batch 1",
        reference,
        requests(config, job, 1, REFERENCE_SIZE),
        1,
    )
    print("\nwhere the time goes, 224², batch 8, ms an image")
    model = FusedModel(subject.lattice, subject.field, config.renderer)
    pieces(model, requests(config, job, 8, 224))
    print(f"\nmemory beyond what loading torch takes: {resident_mb() - before:.0f} MB")


def requests(config: RunConfig, job: FitPerson, batch: int, size: int) -> RenderRequest:
    """Upright frames of the source clips, seen from all sides."""
    studio = Studio(config, ((job.name, str(job.folder)),))
    rows = torch.randperm(len(studio.source), generator=torch_stream(0, "benchmark"))[:batch]
    poses = studio.source.poses[rows]
    posed = studio.people.body(poses.rotations, studio.people.shapes[:1], poses.translation)
    ones = torch.ones(batch)
    camera = orbit(
        posed.joints[:, 0],
        2 * math.pi / batch * torch.arange(batch),
        0.1 * ones,
        0.0 * ones,
        DISTANCE * ones,
        SHARE * size * DISTANCE / 1.75 * ones,  # 1.75 m: about a person's height
        torch.full((batch, 2), size / 2),
        size,
        size,
    )
    return RenderRequest((job.name,) * batch, posed.bones.detach(), camera)


def row(label: str, renderer: Renderer, request: RenderRequest, repeat: int) -> None:
    batch = len(request.subjects)
    seen = renderer.render_arrays(request)[..., 3] > 0.01

    def with_gradient() -> None:
        bones = request.bones.clone().requires_grad_()
        rgba = renderer(replace(request, bones=bones)).rgba
        rgba.square().mean().backward()  # type: ignore[no-untyped-call]

    forward = best(lambda: renderer.render_arrays(request), repeat)
    both = best(with_gradient, repeat)
    print(f"{label:26}{seen.sum() / batch:>8.0f}{batch / forward:>10.1f}{batch / both:>15.1f}")


def pieces(model: FusedModel, request: RenderRequest) -> None:
    """Each step of a rendering on its own."""
    camera: Camera = request.camera
    batch = len(camera)

    def skin() -> Tensor:
        return pose_lattice(model.lattice, to_camera_bones(camera, request.bones))

    points = skin().contiguous()
    view = model.find_rays(points, camera)
    slopes = ray_slopes(camera, view).contiguous()
    rgba = model.march(view, slopes)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("skinning", skin),
        ("maps and entries", lambda: model.find_rays(points, camera)),
        ("march", lambda: model.march(view, slopes)),
        ("pull back", lambda: model.pull_back(view, points, slopes, rgba, torch.ones_like(rgba))),
    ]
    for name, step in steps:
        print(f"  {name:18}{1000 * best(step, 5) / batch:6.2f}")
    print(f"  rays that meet the lattice: {len(rgba) / batch:.0f} an image")


def best(step: Callable[[], object], repeat: int) -> float:
    """Seconds of CPU time, the least of so many repetitions after a first one."""
    step()
    times = []
    for _ in range(repeat):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return min(times)


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main(sys.argv[1:])
