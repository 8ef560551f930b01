"""How far does it scale, and what stops it first? A cost model of adversarial steps.

    python benchmarks/scaling.py              the tables of docs/scaling.md
    python benchmarks/scaling.py --measure    measures the pieces and four small layouts on this
                                              machine, and compares the model with them (3 minutes)

One step: every train worker proposes its batch, has it rendered (people live on their own servers,
whoever has the most pictures decides), asks the estimator, takes the gradients back the same way,
and averages them with the others. Nothing overlaps: a worker waits for its pictures.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

MB = 1e6


@dataclass(frozen=True)
class Pieces:
    """What was measured (docs/benchmarks.md, docs/scaling.md): seconds, of a thread or a GPU."""

    render: float  # a picture and its gradient, on a server
    client: float  # a picture's share of the worker: estimator and its gradient, background, crop
    fixed: float  # a step's: generator, discriminator, screening of candidates
    call: float = 1e-3  # an empty call of a server
    transfer: float = 0.69e-3  # a MB through the object store of one machine
    network: float = 1.0e-3  # a MB between machines (about 8 Gbit/s)
    # 224 x 224, what is not empty: colours and alpha, and their place; its gradient is as large
    picture_mb: float = 6200 * 24 / MB
    parameters_mb: float = 4 * 0.31  # what workers average: generator and discriminator
    latency: float = 0.2e-3  # of one exchange between workers


@dataclass(frozen=True)
class Layout:
    """Who works: on one core or GPU each, unless `cores` are shared by all."""

    workers: int
    servers: int  # or GPUs that render
    subjects: int
    batch: int = 8  # pictures a worker and step
    max_batch: int = 8  # pictures a call
    machines: int = 1
    cores: float = math.inf


@dataclass(frozen=True)
class Prediction:
    """A step's time, by what is waited for, and what comes out."""

    parts: dict[str, float]  # seconds
    images: int  # a step

    @property
    def step_s(self) -> float:
        return sum(self.parts.values())

    @property
    def images_per_s(self) -> float:
        return self.images / self.step_s

    @property
    def bottleneck(self) -> str:
        return max(self.parts, key=lambda name: self.parts[name])


def predict(pieces: Pieces, layout: Layout) -> Prediction:
    """The model."""
    images = layout.workers * layout.batch
    busiest = busiest_server(images, layout.servers, layout.subjects)
    calls = math.ceil(busiest / layout.max_batch)
    distance = pieces.transfer if layout.machines == 1 else pieces.network
    render = busiest * pieces.render + 2 * calls * pieces.call
    client = pieces.fixed + layout.batch * pieces.client
    parts = {
        "train worker": client,
        "render server": render,
        "transfer": 2 * layout.batch * pieces.picture_mb * distance,
        "averaging": averaging(pieces, layout),
    }
    work = layout.workers * client + images * pieces.render  # of all, if cores are shared
    shared = work / layout.cores - sum(parts.values())
    if shared > 0:
        parts["cores"] = shared
    return Prediction(parts, images)


def averaging(pieces: Pieces, layout: Layout) -> float:
    """A ring: every worker sends the parameters nearly twice, in 2 (W - 1) exchanges."""
    others = layout.workers - 1
    distance = pieces.transfer if layout.machines == 1 else pieces.network
    volume = 2 * others / layout.workers * pieces.parameters_mb
    return volume * distance + 2 * others * pieces.latency


def busiest_server(images: int, servers: int, subjects: int) -> int:
    """Pictures of the server that has most, as a rule.

    With fewer subjects than servers each subject has servers of its own, which share its pictures
    evenly; else each server holds several subjects. Subjects are drawn at random, so a holder's
    pictures are Poisson distributed; the busiest of n is the (1 - 1 / 2n) quantile.
    """
    holders = min(subjects, servers)
    if holders == 1:
        return math.ceil(images / servers)
    mean = images / holders
    chance = total = math.exp(-mean)
    most = 0
    while total < 1 - 1 / (2 * holders) and most < images:
        most += 1
        chance *= mean / most
        total += chance
    return math.ceil(most * holders / servers)


# --- what was measured --------------------------------------------------------------------------

HERE = Pieces(render=1 / 33, client=41e-3, fixed=0.083)
GPU_RENDER = replace(HERE, render=1 / 1000)  # assumed: the target on an H100, never measured
GPU_ALL = replace(GPU_RENDER, client=1e-3, fixed=0.02)  # assumed: the estimator on a GPU, too


def tables() -> str:
    """The tables of docs/scaling.md."""
    lines = []
    for title, pieces, per_gpu in (
        ("render servers on GPUs, training on CPUs (as it is)", GPU_RENDER, 16),
        ("the estimator on a GPU as well, one worker a GPU, 32 pictures each", GPU_ALL, 1),
    ):
        lines += [f"\n{title}", "  GPUs  subjects  images/s  step ms  first"]
        for gpus in (1, 2, 8, 32, 256):
            for subjects in (1, 6, 100, 10_000):
                batch = 8 if per_gpu > 1 else 32
                layout = Layout(
                    workers=gpus * per_gpu,
                    servers=gpus,
                    subjects=subjects,
                    batch=batch,
                    max_batch=32,
                    machines=1 if gpus <= 8 else gpus // 8,
                )
                found = predict(pieces, layout)
                lines.append(
                    f"{gpus:>5} {subjects:>9,} {found.images_per_s:>9,.0f} "
                    f"{1000 * found.step_s:>8,.0f}  {found.bottleneck}"
                )
    return "\n".join(lines)


# --- measuring ----------------------------------------------------------------------------------


def measure(arguments: Sequence[str]) -> None:
    """Pieces and small layouts on this machine, against the model."""
    import os

    import torch

    from posegen_ray.compose import compose_config
    from posegen_ray.jobs import FitPerson
    from posegen_ray.runtime.capacity import find_places
    from posegen_ray.runtime.session import RaySession

    torch.set_num_threads(1)
    config = compose_config(["experiment=tiny", "runtime.num_cpus=8", *arguments])
    jobs = [FitPerson(config, name) for name in config.subject.names]
    for job in jobs:
        if not job.done:
            job.run(lambda _: None)
    folders = tuple((job.name, str(job.folder)) for job in jobs)
    steps = Steps(config, folders)
    alone = steps.time_alone()
    pieces = replace(HERE, **alone)
    print(f"render {1000 * pieces.render:.1f} ms, client {1000 * pieces.client:.1f} ms a picture, ")
    print(f"fixed {1000 * pieces.fixed:.0f} ms a step")
    print(f"{'workers':>8}{'servers':>8}{'measured ms':>12}{'predicted ms':>13}{'ratio':>7}")
    with RaySession(config.runtime) as session:
        for workers, servers in ((1, 1), (1, 2), (2, 1), (2, 2)):
            runtime = replace(
                config.runtime,
                train_workers=workers,
                render=replace(config.runtime.render, replicas=servers),
            )
            find_places(runtime, len(folders), True, session.private)
            took = steps.time_on_ray(runtime)
            layout = Layout(workers, servers, len(folders), cores=os.cpu_count() or 1)
            found = predict(pieces, layout).step_s
            print(
                f"{workers:>8}{servers:>8}{1000 * took:>12.0f}{1000 * found:>13.0f}"
                f"{took / found:>7.2f}"
            )


class Steps:
    """Adversarial steps of one person, timed."""

    def __init__(self, config, folders) -> None:  # type: ignore[no-untyped-def]
        self.config, self.folders = config, folders

    def time_alone(self) -> dict[str, float]:
        """The pieces of a step in this process: with batches of 4 and 8, rendering apart."""
        from posegen_ray.studio import LocalRenderer

        renderer = Witness(LocalRenderer(self.config, self.folders).render_fn())
        times = {}
        for batch in (4, 8):
            step = self.maker(renderer, batch)
            step(0, None)
            start = time.perf_counter()
            for number in (1, 2, 3, 4):
                step(number, None)
            times[batch] = (time.perf_counter() - start) / 4
        render = renderer.time_again()
        client = max((times[8] - times[4]) / 4 - render, 0.0)
        fixed = max(times[8] - 8 * (client + render), 0.0)
        return {"render": render, "client": client, "fixed": fixed}

    def maker(self, render, batch):  # type: ignore[no-untyped-def]
        """A function that makes step `number`."""
        import torch

        from posegen_ray.adversary import Adversary
        from posegen_ray.estimators import build_estimator
        from posegen_ray.scene import seeded_backgrounds
        from posegen_ray.seeding import torch_stream
        from posegen_ray.studio import Studio

        studio = Studio(self.config, self.folders)
        torch.manual_seed(0)
        adversary = Adversary(
            studio.generator(),
            self.config.feedback,
            self.config.discriminator,
            studio.people,
            studio.checker,
        )
        estimator = build_estimator(self.config.estimator)
        background = seeded_backgrounds("train")
        rng = torch_stream(0, "calibrate")
        sampler = studio.band_sampler(adversary.generator)
        adversary.calibrate(render, estimator, sampler, background, 8, rng)

        def step(number, average):  # type: ignore[no-untyped-def]
            rng = torch_stream(0, "step", number)
            adversary.step(batch, render, estimator, background, rng, average)

        return step

    def time_on_ray(self, runtime) -> float:  # type: ignore[no-untyped-def]
        """Seconds a step with these workers and servers."""
        import tempfile
        from pathlib import Path

        from posegen_ray.checkpoint_store import CheckpointStore
        from posegen_ray.runtime.render_pool import start_pool
        from posegen_ray.runtime.train import fit_with_ray

        paths = {name: Path(folder) for name, folder in self.folders}
        pool = start_pool(runtime.render, paths, self.config.renderer)
        try:
            with tempfile.TemporaryDirectory() as storage:
                store = CheckpointStore(f"{storage}/checkpoints")
                result = fit_with_ray(TimedLoop(self, pool), runtime, store, Path(storage))
        finally:
            pool.close()
        return float(result.value)


@dataclass
class TimedLoop:
    """A training loop of a few steps; worker 0 answers the median step's seconds."""

    steps: Steps
    pool: object

    def run(self, context):  # type: ignore[no-untyped-def]
        import statistics
        import tempfile
        from pathlib import Path

        step = self.steps.maker(self.pool.render_fn(), 8)  # type: ignore[attr-defined]
        average = context.average_gradients if context.world_size > 1 else None
        step(0, average)
        times = []
        for number in range(1, 7):
            start = time.perf_counter()
            step(number, average)
            times.append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            context.report({"step_s": times[0]}, Path(folder) if context.rank == 0 else None)
        return statistics.median(times)


class Witness:
    """A renderer that remembers what it was last asked for."""

    def __init__(self, render) -> None:  # type: ignore[no-untyped-def]
        self.render, self.request = render, None

    def __call__(self, request):  # type: ignore[no-untyped-def]
        self.request = request
        return self.render(request)

    def time_again(self) -> float:
        """Seconds a picture of that request and its gradient."""
        request = self.request
        leaves = replace(
            request,
            bones=request.bones.detach().requires_grad_(),
            camera=request.camera.detach(),
            light=request.light.detach(),
        )
        start = time.perf_counter()
        for _ in range(5):
            self.render(leaves).rgba.square().mean().backward()
        return (time.perf_counter() - start) / 5 / len(request)


if __name__ == "__main__":
    if "--measure" in sys.argv:
        measure([word for word in sys.argv[1:] if word != "--measure"])
    else:
        print(tables())
