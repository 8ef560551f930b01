"""What do render servers cost and gain? Images a second in process, through one server, two.

    python benchmarks/servers.py [person] [hydra overrides]

A client asks for 8 pictures (224 x 224) at a time, or for 32, as a training step does
(experiment=full), in calls of 8, and waits for them. A lone client leaves one server idle while it
waits for the other; of two clients each may fill the other's gaps. They are threads of one process
that do nothing but ask, each with a pool of its own. No two pictures are equal, and all have their
history kept (kept_calls=8 here), so that nothing is drawn again. Ways take turns of three
seconds, every other time in reverse order, so that the machine's moods meet all of them; medians of
the turns, and of the ratios within a turn. Wall-clock time: other work on the machine shows. Each
server has one thread. In the end, the memory that a server takes as it is usually set, after two
clients have asked it for gradients.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles

import ray
import torch

sys.path.insert(0, str(Path(__file__).parent))
from render import memory_mb, scene

from posegen_ray.compose import compose_config
from posegen_ray.jobs import FitPerson
from posegen_ray.records import RenderFn, RenderRequest
from posegen_ray.runtime.render_pool import RenderPool, start_pool
from posegen_ray.runtime.session import RaySession
from posegen_ray.studio import Studio
from posegen_ray.subjects.render import make_renderer
from posegen_ray.subjects.store import load_subject

SIZE, BATCH, STEP, SECONDS, TURNS = 224, 8, 32, 3.0, 6
CAMERA = ("rotation", "translation", "focal", "principal")
IMPORTS = """
import torch, warp
warp.init()
words = open("/proc/self/status").read().split()
print(int(words[words.index("VmRSS:") + 1]) * 1024 / 1e6)
"""


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    names = [word for word in arguments if "=" not in word] or ["ben"]
    config = compose_config([word for word in arguments if "=" in word])
    job = FitPerson(config, names[0])
    if not job.done:
        print(f"fitting {job.name}")
        job.run(lambda _: None)
    studio = Studio(config, ((job.name, str(job.folder)),))
    few = scene(studio, job.name, BATCH, SIZE).request
    whole = scene(studio, job.name, 2 * STEP, SIZE).request
    many, others = (whole[[*range(first, 2 * STEP, 2)]] for first in (0, 1))
    local = make_renderer(config.renderer, {job.name: load_subject(job.folder)})
    with RaySession(config.runtime):
        one, two = (
            start_pool(
                replace(config.runtime.render, replicas=count, max_replicas=0, kept_calls=8),
                {job.name: Path(job.folder)},
                config.renderer,
                threads=1,
            )
            for count in (1, 2)
        )
        ways: dict[str, list[tuple[RenderFn, RenderRequest]]] = {
            "in process": [(local, few)],
            "one server": [(one.render_fn(), few)],
            "one server, 32 at a time": [(one.render_fn(), many)],
            "two servers, 32 at a time": [(two.render_fn(), many)],
            "one server, two clients": [(client_of(one), many), (client_of(one), others)],
            "two servers, two clients": [(client_of(two), many), (client_of(two), others)],
        }
        forward, both = (
            turns([[make(*client) for client in clients] for clients in ways.values()])
            for make in (drawing, drawing_and_pulling_back)
        )
        usual = start_pool(
            replace(config.runtime.render, replicas=1, max_replicas=0),
            {job.name: Path(job.folder)},
            config.renderer,
            threads=1,
        )
        asked = (usual.render_fn(), many), (client_of(usual), others)
        per_second([drawing_and_pulling_back(*client) for client in asked], seconds=30)
        now, most = memory_mb(usual.health()[0].load.process_id)

    print(f"{'images a second':26}{'forward':>10}{'with gradient':>15}")
    for label, *rates in zip(ways, forward, both, strict=True):
        print(f"{label:26}{median(rates[0]):>10.1f}{median(rates[1]):>15.1f}")
    for label, ours, theirs in (
        ("one server against in process", 1, 0),
        ("two servers against one", 3, 2),
        ("the same, two clients", 5, 4),
    ):
        print(f"{label:30}", *(ratio(rates[ours], rates[theirs]) for rates in (forward, both)))
    command = [sys.executable, "-c", IMPORTS]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    imports = float(told.split()[-1])  # Warp says what it finds
    print(
        f"a server's process: {now:.0f} MB, at most {most:.0f}; torch and warp alone "
        f"{imports:.0f} MB; beyond that {most - imports:.0f} MB"
    )


def client_of(pool: RenderPool) -> RenderFn:
    """The same servers by a pool of its own, as another client has."""
    copied: RenderPool = ray.cloudpickle.loads(ray.cloudpickle.dumps(pool))
    return copied.render_fn()


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Median, and half of the turns lie between the other two."""
    low, middle, high = quantiles((a / b for a, b in zip(ours, theirs, strict=True)), n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def drawing(render: RenderFn, request: RenderRequest) -> Callable[[], int]:
    """Draws the pictures and says how many."""

    def forward() -> int:
        with torch.no_grad():
            render(request)
        return len(request)

    return forward


def drawing_and_pulling_back(render: RenderFn, request: RenderRequest) -> Callable[[], int]:
    """The same, and pulls a gradient back to bones and cameras."""
    shape = (len(request), SIZE, SIZE, 4)
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def both() -> int:
        leaves = {name: getattr(request.camera, name).clone().requires_grad_() for name in CAMERA}
        bones = request.bones.clone().requires_grad_()
        camera = replace(request.camera, **leaves)
        rgba = render(replace(request, bones=bones, camera=camera)).rgba
        rgba.backward(gradient)  # type: ignore[no-untyped-call]
        return len(request)

    return both


def turns(ways: Sequence[Sequence[Callable[[], int]]]) -> list[list[float]]:
    """How many a second the clients of each way get together in each turn."""
    for clients in ways:  # first calls are slower
        per_second(clients, seconds=0)
    rates: list[list[float]] = [[] for _ in ways]
    for turn in range(TURNS):
        order = list(zip(ways, rates, strict=True))
        for clients, found in reversed(order) if turn % 2 else order:
            found.append(per_second(clients))
    return rates


def per_second(clients: Sequence[Callable[[], int]], seconds: float = SECONDS) -> float:
    """Until the last answer: a request that has begun is finished, though the other client has."""
    start = time.perf_counter()

    def ask(client: Callable[[], int]) -> int:
        done = client()
        while time.perf_counter() < start + seconds:
            done += client()
        return done

    with ThreadPoolExecutor(len(clients)) as threads:
        others = [threads.submit(ask, client) for client in clients[1:]]
        done = ask(clients[0]) + sum(other.result() for other in others)
    return done / (time.perf_counter() - start)


if __name__ == "__main__":
    main(sys.argv[1:])
