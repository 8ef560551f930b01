"""The fault matrix, render servers: whatever breaks, the answer is the undisturbed one."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from bodies import capsule_body, painted_subject
from render_faults import (
    Fault,
    check,
    gradients_with,
    kill,
    loads,
    wait_for,
)
from runtime_fakes import FaultyFactory, SineRenderer, posed_request, random_request

from posegen_ray.config import RendererConfig, RenderServerConfig, RoleResources, RuntimeConfig
from posegen_ray.runtime.render_pool import start_pool, start_servers
from posegen_ray.runtime.replicas import ServerSpec
from posegen_ray.runtime.session import RaySession
from posegen_ray.subjects.render import make_renderer
from posegen_ray.subjects.store import save_subject

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

CONFIG = RenderServerConfig(resources=RoleResources(0.25), max_batch=2, start_timeout_s=120)
IMPATIENT = replace(CONFIG, call_deadline_s=3)
STORE_MB = 150


@pytest.fixture(scope="module")
def session():
    here = [str(Path(__file__).parents[1] / "runtime"), *filter(None, [os.getenv("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(here)  # servers unpickle the tests' stand-ins
    with RaySession(RuntimeConfig(num_cpus=4, object_store_mb=STORE_MB)) as session:
        yield session


# --- SIGKILL, with subjects as `posegen fit` leaves them ----------------------------------------

PEOPLE = {"one": 0.0, "two": 1.0}


@pytest.fixture(scope="module")
def people(session):
    """A pool of two people on a server each, and the same in this process."""
    subjects = {name: painted_subject(name, hue) for name, hue in PEOPLE.items()}
    with tempfile.TemporaryDirectory() as folder:
        for name, subject in subjects.items():
            save_subject(subject, Path(folder) / name)
        folders = {name: Path(folder) / name for name in subjects}
        pool = start_pool(CONFIG, folders, RendererConfig(), "people")
    yield pool, make_renderer(RendererConfig(), subjects)  # the folders are gone: nobody needs them
    pool.close()


def request_of(count: int, people=tuple(PEOPLE)):
    names = tuple(people[i % len(people)] for i in range(count))
    return posed_request(capsule_body(), names)


def test_killed_while_idle(people, note_recovery):
    pool, local = people
    request = request_of(2, ("one",))
    start = time.monotonic()
    kill(loads(pool)[0].process_id)
    found = gradients_with(pool, request)
    note_recovery("render server killed while idle", time.monotonic() - start)
    check(found, local, request)


@pytest.mark.parametrize("moment", ["render", "vjp"])
def test_killed_at_work(people, note_recovery, moment):
    pool, local = people
    request = request_of(16, ("one",))

    def fault() -> Fault:
        process = loads(pool)[0].process_id
        return Fault(lambda: loads(pool)[0].working_s > 0, lambda: kill(process))

    faults = [fault()] if moment == "render" else []
    at_vjp = (lambda: faults.append(fault())) if moment == "vjp" else None
    found = gradients_with(pool, request, at_vjp=at_vjp)
    assert faults[0].at is not None
    took = time.monotonic() - faults[0].at
    note_recovery(f"render server killed in mid-{moment} (16 pictures)", took)
    check(found, local, request)


def test_killed_during_its_start(people, note_recovery):
    pool, local = people
    request = request_of(2, ("one",))
    first = loads(pool)[0].process_id
    start = time.monotonic()
    kill(first)

    def kill_the_next() -> None:
        wait_for(lambda: loads(pool)[0].loading_s > 0)
        kill(loads(pool)[0].process_id)

    fault = Fault(lambda: loads(pool)[0].process_id != first, kill_the_next)
    found = gradients_with(pool, request)
    assert fault.at is not None
    note_recovery("render server killed, and again while it loads", time.monotonic() - start)
    check(found, local, request)


def test_every_server_killed_at_once(people, note_recovery):
    pool, local = people
    request = request_of(16)
    start = time.monotonic()
    fault = Fault(
        lambda: all(load.working_s > 0 for load in loads(pool)),
        lambda: [kill(load.process_id) for load in loads(pool)],
    )
    found = gradients_with(pool, request)
    assert fault.at is not None
    note_recovery("every render server killed at once, at work", time.monotonic() - start)
    check(found, local, request)


# --- servers that live but cannot be trusted ----------------------------------------------------


@pytest.fixture
def faulty(session, tmp_path):
    """A pool of one server for `ada`, whose faults are files in the folder."""
    pool = start_servers([ServerSpec(("ada",), FaultyFactory(tmp_path), IMPATIENT)], "faulty")
    yield pool
    pool.close()


@pytest.mark.parametrize("moment", ["render", "vjp"])
def test_server_that_hangs(faulty, tmp_path, note_recovery, moment):
    request = random_request(("ada",) * 4)
    first = loads(faulty)[0].process_id
    hang = (tmp_path / "hang").touch
    start = time.monotonic()
    if moment == "render":
        hang()
    found = gradients_with(faulty, request, at_vjp=hang if moment == "vjp" else None)
    took = time.monotonic() - start
    note_recovery(f"render server that hangs in mid-{moment} (limit 3 s)", took)
    assert took > IMPATIENT.call_deadline_s
    assert loads(faulty)[0].process_id != first
    assert faulty.metrics()["servers_replaced"] == 1
    check(found, SineRenderer(tmp_path), request)


def test_server_whose_process_stands_still(faulty, tmp_path, note_recovery):
    request = random_request(("ada",) * 4)
    first = loads(faulty)[0].process_id
    os.kill(first, signal.SIGSTOP)
    start = time.monotonic()
    found = gradients_with(faulty, request)
    note_recovery("render server stopped by SIGSTOP (limit 3 s)", time.monotonic() - start)
    assert loads(faulty)[0].process_id != first
    check(found, SineRenderer(tmp_path), request)


@pytest.mark.parametrize("fault", ["nan", "nan_gradient"])
def test_server_that_answers_nan(faulty, tmp_path, note_recovery, fault):
    request = random_request(("ada",) * 4)
    first = loads(faulty)[0].process_id
    (tmp_path / fault).touch()
    start = time.monotonic()
    found = gradients_with(faulty, request)
    note_recovery(f"render server that answers NaN ({fault})", time.monotonic() - start)
    assert not (tmp_path / fault).exists()
    assert loads(faulty)[0].process_id != first
    check(found, SineRenderer(tmp_path), request)


def test_nan_of_every_server_is_handed_on(session, tmp_path):
    """As the renderer answers in one process: a training skips such a step and counts it."""
    config = replace(IMPATIENT, max_attempts=4)
    pool = start_servers([ServerSpec(("ada",), FaultyFactory(tmp_path), config)], "nan")
    try:
        first = loads(pool)[0].process_id
        (tmp_path / "always_nan").touch()
        answer = pool.render(random_request(("ada",)))
        assert not bool(answer.rgba.isfinite().all())
        assert loads(pool)[0].process_id != first  # it might have been the server
    finally:
        pool.close()


def test_object_store_full(people, note_recovery):
    """Pinned objects fill the store; what else is needed goes to disk."""
    pool, local = people
    request = request_of(16)
    start = time.monotonic()
    pinned = [ray.put(np.full(10 * 2**20, i, np.uint8)) for i in range(STORE_MB // 10 + 4)]
    views = [ray.get(reference) for reference in pinned[: STORE_MB // 10 - 2]]
    found = gradients_with(pool, request)
    note_recovery("object store full of objects in use", time.monotonic() - start)
    assert [int(view[0]) for view in views] == list(range(len(views)))
    check(found, local, request)
