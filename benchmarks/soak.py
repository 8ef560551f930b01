"""Do render servers lose, or spoil, an answer, or grow, while they are killed again and again?

    python benchmarks/soak.py [--minutes 30] [--every 20] [--seed 0]

Two clients in processes of their own render pictures and pull gradients back, without a pause,
from two servers for two people of whom each server holds one at a time. Every `--every` seconds a
server drawn by chance is killed (SIGKILL). Every answer is compared, bit by bit, with the one of a
renderer in this process. Just before each kill it is noted what all our processes hold: memory
(PSS), open files, and the object store. Fails if an answer is lost or wrong, or if the straight
line through what was noted after the warm-up (a fifth of the time) rises by more than 5 %. The
people are fitted with few steps, which takes a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import ray
import torch

sys.path.insert(0, str(Path(__file__).parent))
from render import scene

from posegen_ray.compose import compose_config
from posegen_ray.config import RenderServerConfig, RoleResources, RunConfig, RuntimeConfig
from posegen_ray.jobs import FitPerson
from posegen_ray.runtime.render_pool import RenderPool, start_pool
from posegen_ray.runtime.render_server import memory_mb
from posegen_ray.runtime.session import RaySession
from posegen_ray.runtime.wire import FloatArray, RequestArrays, TensorRenderer, to_arrays
from posegen_ray.studio import Studio
from posegen_ray.subjects.render import make_renderer
from posegen_ray.subjects.store import load_subject

PEOPLE = ("ben", "fay")
CASES, BATCH, SIZE = 6, 4, 160
CLIENTS = 2
ALLOWED = 0.05  # growth
WARM_UP = 0.2  # of the time
SERVERS = RenderServerConfig(
    resources=RoleResources(0.5),
    replicas=2,
    subjects_per_server=len(PEOPLE),
    loaded_subjects=1,
    max_batch=2,
)
FIT = ("fit.steps=20", "subject.capture_poses=4", "subject.capture_views=3")


@dataclass(frozen=True)
class Case:
    """A request, the picture's gradient, and the right answers."""

    request: RequestArrays
    weight: FloatArray
    image: FloatArray
    gradients: RequestArrays


@ray.remote(num_cpus=0)
class Client:
    """Asks without a pause and compares; counts what it got."""

    def __init__(self, pool: RenderPool, cases: Sequence[Case], seed: int) -> None:
        torch.set_num_threads(1)
        self._pool, self._cases, self._draw = pool, cases, random.Random(seed)

    def work(self, seconds: float) -> tuple[int, list[str]]:
        """The number of answers, and what was wrong with some."""
        answers, faults, end = 0, list[str](), time.monotonic() + seconds
        while time.monotonic() < end:
            case = self._draw.choice(self._cases)
            try:
                image = self._pool.render_arrays(case.request, keep=True)
                if not np.array_equal(image, case.image):
                    faults.append("a picture is wrong")
                gradients = self._pool.vjp_arrays(case.request, case.weight)
                pairs = zip(gradients.parts(), case.gradients.parts(), strict=True)
                if not all(np.array_equal(found, right) for found, right in pairs):
                    faults.append("a gradient is wrong")
                answers += 2
            except Exception as error:  # whatever it is, an answer was lost
                faults.append(f"lost: {error}")
        return answers, faults


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Render and gradient load with random kills.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="posegen_") as folder:
        config = compose_config([*FIT, f"subject.folder={folder}", "runtime=laptop"])
        folders = fit(config)
        cases = make_cases(config, folders, options.seed)
        with RaySession(RuntimeConfig(num_cpus=4, object_store_mb=300)):
            pool = start_pool(SERVERS, folders, config.renderer, "soak")
            return soak(pool, cases, 60 * options.minutes, options.every, options.seed)


def fit(config: RunConfig) -> dict[str, Path]:
    """The people's folders."""
    jobs = [FitPerson(config, name) for name in PEOPLE]
    for job in jobs:
        print(f"fitting {job.name}")
        job.run(lambda _: None)
    return {job.name: Path(job.folder) for job in jobs}


def make_cases(config: RunConfig, folders: dict[str, Path], seed: int) -> list[Case]:
    """Requests that mix people, with the answers of a renderer in this process."""
    people = {name: load_subject(folder) for name, folder in folders.items()}
    local = TensorRenderer(make_renderer(config.renderer, people))
    studio = Studio(config, tuple((name, str(folder)) for name, folder in folders.items()))
    frames = scene(studio, PEOPLE[0], CASES * BATCH, SIZE).request
    draw = np.random.default_rng(seed)
    cases = []
    for start in range(0, CASES * BATCH, BATCH):
        names = tuple(draw.choice(PEOPLE, BATCH))
        part = replace(frames[list(range(start, start + BATCH))], subjects=names)
        request = to_arrays(part)
        weight = draw.standard_normal((BATCH, SIZE, SIZE, 4)).astype(np.float32)
        image = local.render_arrays(request)
        cases.append(Case(request, weight, image, local.vjp_arrays(request, weight)))
    return cases


def soak(pool: RenderPool, cases: list[Case], seconds: float, every: float, seed: int) -> int:
    """Runs the load, kills, notes; prints the verdict. 0 if all is well."""
    shared = ray.put(cases)
    clients = [Client.remote(pool, shared, seed + number) for number in range(CLIENTS)]
    work = [client.work.remote(seconds) for client in clients]
    draw, notes, end, kills = (
        random.Random(seed),
        list[list[float]](),
        time.monotonic() + seconds,
        0,
    )
    start = time.monotonic()
    while time.monotonic() + every < end:
        time.sleep(every)
        notes.append([time.monotonic() - start, *holdings()])
        print("{:6.0f} s  {:7.0f} MB  {:5.0f} files  {:6.1f} MB in the store".format(*notes[-1]))
        victim = draw.choice(pool.health(timeout_s=180)).load.process_id
        os.kill(victim, signal.SIGKILL)
        kills += 1
    results = ray.get(work, timeout=seconds)
    answers = sum(count for count, _ in results)
    faults = [fault for _, found in results for fault in found]
    print(f"{answers} answers ({answers / seconds:.1f} a second), {kills} servers killed")
    print(f"{len(faults)} lost or wrong" + "".join(f"\n  {fault}" for fault in faults[:10]))
    pool.close()
    return verdict(np.array(notes), faults)


def verdict(notes: np.ndarray, faults: list[str]) -> int:
    """Prints by how much each quantity rises over the time after the warm-up."""
    steady = notes[notes[:, 0] > WARM_UP * notes[-1, 0]]
    bad = bool(faults)
    for column, name in enumerate(("memory", "open files", "object store"), start=1):
        growth = rise(steady[:, 0], steady[:, column])
        bad |= growth > ALLOWED
        mean = steady[:, column].mean()
        print(f"{name}: {growth:+.1%} of {mean:.0f} in {steady[-1, 0] - steady[0, 0]:.0f} s")
    print("FAILED" if bad else "passed")
    return int(bad)


def rise(times: np.ndarray, values: np.ndarray) -> float:
    """How much a straight line through the values rises from first to last, as a share of its
    beginning. Robust: its slope is the median of those between all pairs."""
    first, second = np.triu_indices(len(times), 1)
    slope = np.median((values[second] - values[first]) / (times[second] - times[first]))
    whole = slope * (times[-1] - times[0])
    return float(whole / max(np.median(values) - whole / 2, 1e-9))


def holdings() -> tuple[float, int, float]:
    """Memory of this process and all that it started, their open files, the store's MB in use.

    Ray keeps the logs of dead workers open, two a worker: they are left out.
    """
    processes = descendants(os.getpid())
    memory = sum(memory_mb(str(process)) for process in processes)
    files = 0
    for process in processes:
        for file in Path(f"/proc/{process}/fd").glob("*"):
            with contextlib.suppress(OSError):
                files += "/logs/worker-" not in os.readlink(file)
    total = ray.cluster_resources()["object_store_memory"]
    return memory, files, (total - ray.available_resources()["object_store_memory"]) / 2**20


def descendants(ancestor: int) -> list[int]:
    """The process and all that it started, and they in turn."""
    found = [ancestor]
    for parent in found:
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, file.read_text().split())
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
