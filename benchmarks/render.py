"""How fast is rendering, where does the time go, and what does it take of memory?

    python benchmarks/render.py [person] [--json FILE] [hydra overrides]

One thread, and with runtime.device=cuda a GPU, where all tensors lie. Each row: frames of real
motion, the person about 65 % of the picture's height, eight camera directions; CPU time (on a GPU
wall-clock time, when it has finished), the best of several repetitions. Gradients go to the bones
and to every camera tensor. The person is fitted when missing. FILE gets a list of rows: renderer,
device, threads, size, batch, forward_ips, forward_backward_ips (images a second).
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import warp as wp
from torch import Tensor

from posegen_ray.body.camera import Camera, orbit
from posegen_ray.body.model import BodyModel
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
from posegen_ray.subjects.warp_cache import prepare, warp_device_name

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
    body: BodyModel

    def to(self, device: torch.device) -> Scene:
        """The same elsewhere, with a body of its own."""
        request = RenderRequest(
            self.request.subjects, self.request.bones.to(device), self.request.camera.to(device)
        )
        body = copy.deepcopy(self.body).to(device)
        return Scene(request, self.poses.to(device), self.shape.to(device), body)


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
    device = torch.device(config.runtime.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, warp {wp.__version__}")
    for module in (lattice_kernels, march_kernels):
        prepare(warp_device_name(device), module.__name__)
    before, _ = memory_mb()
    subject = load_subject(job.folder)
    assert isinstance(subject, VoxelSubject)
    print(f"{job.name}: {len(subject.lattice.tets)} tetrahedra, {subject.manifest.quality}")
    fused = make_renderer(config.renderer, {job.name: subject}, device)

    def seen(batch: int, size: int, share: float = SHARE) -> Scene:
        return scene(studio, job.name, batch, size, share).to(device)

    print(f"\n{'':30}{'pixels':>8}{'images/s':>10}{'with gradient':>15}")
    rows = []
    for size in (112, 224, 448):
        for batch in (1, 2, 4, 8):
            rows.append(measure("fused", fused, seen(batch, size), 5))
    held, most = (now - before for now in memory_mb())
    rows.append(measure("fused, with the body", fused, seen(8, 224), 5, with_body=True))
    rows.append(measure("fused, same person in", fused, seen(8, 448, 0.5 * SHARE), 5))
    plain = make_renderer(replace(config.renderer, kind="reference"), {job.name: subject}, device)
    rows.append(measure("reference", plain, seen(1, REFERENCE_SIZE), 1))
    rows.append(measure_anerf(seen(1, 224), subject))

    speed = {(r.renderer, r.size, r.batch): r.forward_backward_ips for r in rows}
    slow = speed["fused", REFERENCE_SIZE, 1] / speed["reference", REFERENCE_SIZE, 1]
    slower = speed["fused", 224, 1] / speed["A-NeRF", 224, 1]
    print(
        f"\nforward and backward, one picture: {slow:.0f} times the reference ({REFERENCE_SIZE}²), "
        f"{slower:.0f} times A-NeRF (224²)"
    )
    print("\nwhere the time goes, 224², batch 8, ms an image")
    model = FusedModel(subject.lattice, subject.field, subject.light, config.renderer, device)
    pieces(model, seen(8, 224).request)
    print(
        f"\nmemory beyond torch and warp, batches of 8 at 448²: {held:.0f} MB, at most {most:.0f}"
    )
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
    request = RenderRequest((name,) * batch, posed.bones.detach(), camera)
    return Scene(request, poses, shape, studio.people.body)


def measure(
    label: str, renderer: Renderer, scene: Scene, repeat: int, *, with_body: bool = False
) -> Row:
    """Prints and returns a row; the body's forward kinematics may be part of it."""
    request, camera = scene.request, scene.request.camera
    device = request.bones.device
    batch = len(request.subjects)
    seen = renderer.render_arrays(request)[..., 3] > 0.01

    def bones(rotations: Tensor) -> Tensor:
        if not with_body:
            return request.bones
        posed: Tensor = scene.body(rotations, scene.shape, scene.poses.translation).bones
        return posed

    def forward() -> None:
        with torch.no_grad():
            renderer(replace(request, bones=bones(scene.poses.rotations)))

    def both() -> None:
        leaf = scene.poses.rotations if with_body else request.bones
        leaf = leaf.clone().requires_grad_()
        names = ("rotation", "translation", "focal", "principal")
        moving = {name: getattr(camera, name).clone().requires_grad_() for name in names}
        posed = bones(leaf) if with_body else leaf
        again = replace(request, bones=posed, camera=replace(camera, **moving))
        renderer(again).rgba.square().mean().backward()  # type: ignore[no-untyped-call]

    return show(
        label,
        device,
        camera.height,
        batch,
        float(seen.sum() / batch),
        batch / best(forward, repeat, device),
        batch / best(both, repeat, device),
    )


def show(
    label: str,
    device: torch.device,
    size: int,
    batch: int,
    pixels: float,
    forward: float,
    both: float,
) -> Row:
    title = f"{label}, {size}², {batch}"
    digits = 1 if both > 1 else 4
    print(f"{title:30}{pixels:>8.0f}{forward:>10.{digits}f}{both:>15.{digits}f}", flush=True)
    return Row(label, str(device), torch.get_num_threads(), size, batch, forward, both)


def measure_anerf(scene: Scene, subject: VoxelSubject) -> Row:
    """A-NeRF in its published size and bounds, untrained; a part of its rays, extrapolated."""
    request = scene.request
    device = request.bones.device
    rest = torch.eye(3, device=device).expand(1, 24, 3, 3)
    joints = scene.body(rest, subject.shape[None].to(device)).joints[0].detach()
    network = SkeletonField(joints, AnerfConfig()).to(device).requires_grad_(False)
    bundle = cast(request.camera, request.bones[0], joints)
    some = torch.arange(0, len(bundle.pixel), len(bundle.pixel) // ANERF_RAYS)[:ANERF_RAYS]
    some = some.to(device)
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
    forward_s, both_s = (share * best(step, 1, device) for step in (forward, with_gradient))
    size, rays = request.camera.height, len(bundle.pixel)
    row = show("A-NeRF", device, size, 1, rays, 1 / forward_s, 1 / both_s)
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
        print(f"  {name:22}{1000 * best(step, 5, model.device) / batch:6.2f}")
    print(f"  rays that meet the lattice: {len(rgba) / batch:.0f} an image")
    print(f"  samples a ray: {(int(samples.last.max()) + 1) / len(rgba):.1f}")


def best(step: Callable[[], object], repeat: int, device: torch.device) -> float:
    """Seconds of CPU time, on a GPU of wall-clock time: the least of so many repetitions after a
    first one."""
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    times = []
    for _ in range(repeat + 1):
        start = clock()
        step()
        if on_gpu:
            torch.cuda.synchronize(device)
        times.append(clock() - start)
    return min(times[1:])


def memory_mb(process: int | str = "self") -> tuple[float, float]:
    """Resident memory of a process here: now, and the most that it had."""
    words = Path(f"/proc/{process}/status").read_text().split()
    now, most = (float(words[words.index(name) + 1]) for name in ("VmRSS:", "VmHWM:"))
    return now * 1024 / 1e6, most * 1024 / 1e6


if __name__ == "__main__":
    main(sys.argv[1:])
