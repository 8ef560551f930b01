"""How fast is rendering, where does the time go, and what does it take of memory?

    python benchmarks/render.py [person] [--json FILE] [hydra overrides]

One thread. Each row: frames of real motion, the person about 65 % of the picture's height, eight
camera directions; CPU time, the best of several repetitions. Gradients go to the bones and to every
camera tensor. The person is fitted when missing. FILE gets a list of rows: renderer, device,
threads, size, batch, forward_ips, forward_backward_ips (images a second).
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from posegen_ray.body.camera import Camera, orbit
from posegen_ray.compose import compose_config
from posegen_ray.config import AnerfConfig
from posegen_ray.jobs import FitPerson
from posegen_ray.records import PoseBatch, RenderRequest
from posegen_ray.seeding import torch_stream
from posegen_ray.studio import Studio
from posegen_ray.subjects import lattice_kernels, march_kernels
from posegen_ray.subjects.anerf import SkeletonField, cast, composite, place_samples
from posegen_ray.subjects.deform import pose_normals, pose_vertices
from posegen_ray.subjects.light import brightness, towards_camera
from posegen_ray.subjects.render import Renderer, make_renderer
from posegen_ray.subjects.render_fused import FusedModel, ray_slopes, to_camera_bones
from posegen_ray.subjects.store import VoxelSubject, load_subject
from posegen_ray.subjects.warp_cache import prepare

SHARE = 0.65  # of the picture's height that the person takes
DISTANCE = 4.0  # metres
ANERF_RAYS = 256  # of about 24,000 a picture: the rest is extrapolated
REFERENCE_SIZE = 112  # the reference renderer is too slow for more


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    renderer: str
    device: str
    threads: int
    size: int
    batch: int
    forward_ips: float
    forward_backward_ips: float


@dataclass(frozen=True)
class Scene:
    """People in front of cameras: what the body makes a request of."""

    request: RenderRequest
    poses: PoseBatch
    shape: Tensor  # [1, S]


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    words = list(arguments)
    file = ""
    if "--json" in words:
        at = words.index("--json")
        file = words[at + 1]
        del words[at : at + 2]
    names = [word for word in words if "=" not in word] or ["ben"]
    config = compose_config(["runtime=inprocess", *[word for word in words if "=" in word]])
    job = FitPerson(config, names[0])
    if not job.done:
        print(f"fitting {job.name}")
        job.run(lambda _: None)
    studio = Studio(config, ((job.name, str(job.folder)),))
    for module in (lattice_kernels, march_kernels):
        prepare("cpu", module.__name__)
    before = resident_mb()
    subject = load_subject(job.folder)
    assert isinstance(subject, VoxelSubject)
    print(f"{job.name}: {len(subject.lattice.tets)} tetrahedra, {subject.manifest.quality}")
    fused = make_renderer(config.renderer, {job.name: subject})

    print(f"\n{'':30}{'pixels':>8}{'images/s':>10}{'with gradient':>15}")
    rows = []
    for size in (112, 224, 448):
        for batch in (1, 2, 4, 8):
            rows.append(measure("fused", fused, scene(studio, job.name, batch, size), 5))
    held = resident_mb() - before
    rows.append(measure("fused, with the body", fused, scene(studio, job.name, 8, 224), 5, studio))
    far = scene(studio, job.name, 8, 448, 0.5 * SHARE)
    measure("fused, same person in", fused, far, 5)
    plain = make_renderer(replace(config.renderer, kind="reference"), {job.name: subject})
    rows.append(measure("reference", plain, scene(studio, job.name, 1, REFERENCE_SIZE), 1))
    rows.append(measure_anerf(studio, scene(studio, job.name, 1, 224), subject))

    speed = {(r.renderer, r.size, r.batch): r.forward_backward_ips for r in rows}
    slow = speed["fused", REFERENCE_SIZE, 1] / speed["reference", REFERENCE_SIZE, 1]
    slower = speed["fused", 224, 1] / speed["A-NeRF", 224, 1]
    print(
        f"\nforward and backward, one picture: {slow:.0f} times the reference ({REFERENCE_SIZE}²), "
        f"{slower:.0f} times A-NeRF (224²)"
    )
    print("\nwhere the time goes, 224², batch 8, ms an image")
    model = FusedModel(subject.lattice, subject.field, subject.light, config.renderer)
    pieces(model, scene(studio, job.name, 8, 224).request)
    print(f"\nmemory beyond torch and warp, after batches of 8 at 448²: {held:.0f} MB")
    if file:
        Path(file).write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")


def scene(studio: Studio, name: str, batch: int, size: int, share: float = SHARE) -> Scene:
    """Frames of the source clips, seen from all sides."""
    rows = torch.randperm(len(studio.source), generator=torch_stream(0, "benchmark"))[:batch]
    poses, shape = studio.source.poses[rows], studio.people.shapes[:1]
    posed = studio.people.body(poses.rotations, shape, poses.translation)
    ones = torch.ones(batch)
    camera = orbit(
        posed.joints[:, 0],
        2 * math.pi / batch * torch.arange(batch),
        0.1 * ones,
        0.0 * ones,
        DISTANCE * ones,
        share * size * DISTANCE / 1.75 * ones,  # 1.75 m: about a person's height
        torch.full((batch, 2), size / 2),
        size,
        size,
    )
    return Scene(RenderRequest((name,) * batch, posed.bones.detach(), camera), poses, shape)


def measure(
    label: str, renderer: Renderer, scene: Scene, repeat: int, studio: Studio | None = None
) -> Row:
    """Prints and returns a row. With a studio, the body's forward kinematics is part of it."""
    request, camera = scene.request, scene.request.camera
    batch = len(request.subjects)
    seen = renderer.render_arrays(request)[..., 3] > 0.01

    def bones(rotations: Tensor) -> Tensor:
        if studio is None:
            return request.bones
        return studio.people.body(rotations, scene.shape, scene.poses.translation).bones

    def forward() -> None:
        with torch.no_grad():
            renderer.render_arrays(replace(request, bones=bones(scene.poses.rotations)))

    def both() -> None:
        leaf = request.bones if studio is None else scene.poses.rotations
        leaf = leaf.clone().requires_grad_()
        names = ("rotation", "translation", "focal", "principal")
        moving = {name: getattr(camera, name).clone().requires_grad_() for name in names}
        posed = leaf if studio is None else bones(leaf)
        again = replace(request, bones=posed, camera=replace(camera, **moving))
        renderer(again).rgba.square().mean().backward()  # type: ignore[no-untyped-call]

    return show(
        label,
        camera.height,
        batch,
        float(seen.sum() / batch),
        batch / best(forward, repeat),
        batch / best(both, repeat),
    )


def show(label: str, size: int, batch: int, pixels: float, forward: float, both: float) -> Row:
    title = f"{label}, {size}², {batch}"
    digits = 1 if both > 1 else 4
    print(f"{title:30}{pixels:>8.0f}{forward:>10.{digits}f}{both:>15.{digits}f}", flush=True)
    return Row(label, "cpu", torch.get_num_threads(), size, batch, forward, both)


def measure_anerf(studio: Studio, scene: Scene, subject: VoxelSubject) -> Row:
    """A-NeRF in its published size and bounds, untrained; a part of its rays, extrapolated."""
    request = scene.request
    joints = (
        studio.people.body(torch.eye(3).expand(1, 24, 3, 3), subject.shape[None]).joints[0].detach()
    )
    network = SkeletonField(joints, AnerfConfig()).requires_grad_(False)
    bundle = cast(request.camera, request.bones[0], joints)
    some = torch.arange(0, len(bundle.pixel), len(bundle.pixel) // ANERF_RAYS)[:ANERF_RAYS]
    near, far, direction = bundle.near[some], bundle.far[some], bundle.direction[some]

    def draw(bones: Tensor) -> Tensor:
        with torch.no_grad():
            places = place_samples(network, bones, bundle.origin, direction, near, far)
        return composite(network, bones, bundle.origin, direction, *places).rgba

    def forward() -> None:
        with torch.no_grad():
            draw(request.bones[0])

    def with_gradient() -> None:
        bones = request.bones[0].clone().requires_grad_()
        draw(bones).square().mean().backward()  # type: ignore[no-untyped-call]

    share = len(bundle.pixel) / len(some)
    forward_s, both_s = share * best(forward, 1), share * best(with_gradient, 1)
    row = show("A-NeRF", request.camera.height, 1, len(bundle.pixel), 1 / forward_s, 1 / both_s)
    print(f"  ({len(some)} of its rays drawn: {forward_s:.0f} s and {both_s:.0f} s a picture)")
    return row


def pieces(model: FusedModel, request: RenderRequest) -> None:
    """Each step of a rendering on its own."""
    camera: Camera = request.camera
    batch = len(camera)

    def skin() -> tuple[Tensor, Tensor]:
        points = pose_vertices(model.lattice, to_camera_bones(camera, request.bones))
        towards = towards_camera(points, camera) if model.shines else None
        normals = pose_normals(model.lattice, request.bones)
        return points, brightness(model.light, normals, towards)

    points, lit = skin()
    view = model.find_rays(points, camera)
    slopes = ray_slopes(camera, view).contiguous()
    rgba, samples = model.march_noting(view, slopes, lit)
    ones = torch.ones_like(rgba)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("skinning, brightness", skin),
        ("maps and entries", lambda: model.find_rays(points, camera)),
        ("march", lambda: model.march(view, slopes, lit)),
        ("march, noting samples", lambda: model.march_noting(view, slopes, lit)),
        ("pull back", lambda: model.pull_back(view, points, slopes, lit, rgba, samples, ones)),
    ]
    for name, step in steps:
        print(f"  {name:22}{1000 * best(step, 5) / batch:6.2f}")
    print(f"  rays that meet the lattice: {len(rgba) / batch:.0f} an image")
    print(f"  samples a ray: {(int(samples.last.max()) + 1) / len(rgba):.1f}")


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
