import os
import subprocess
import sys
import time

import numpy as np
import pytest

from posegen_ray.config import RuntimeConfig
from posegen_ray.errors import ResourceError
from posegen_ray.runtime.capacity import find_places, free_nodes
from posegen_ray.runtime.pixels import DrawnPixels
from posegen_ray.runtime.session import RaySession, worker_environment


def test_the_node_has_the_configured_slots(ray_session):
    import ray

    assert ray.cluster_resources()["CPU"] == 6
    (node,) = free_nodes()
    assert 0 <= node.cpus <= 6
    assert (node.gpus, node.name) == (0, "127.0.0.1")  # nothing listens to the network
    assert ray_session.private


def test_plan_that_cannot_fit_is_refused_before_any_actor_starts(ray_session):
    from ray._private.state import actors

    before = len(actors())
    start = time.monotonic()
    with pytest.raises(ResourceError, match=r"(?s)needs .* logical CPUs, .* are free.*no place"):
        find_places(RuntimeConfig(job_workers=64), 6, training=True, private=False)
    assert time.monotonic() - start < 5
    assert len(actors()) == before


def test_cluster_that_does_not_answer_is_named_at_once():
    start = time.monotonic()
    with (
        pytest.raises(ResourceError, match=r"No Ray cluster answers at '127.0.0.1:9'"),
        RaySession(RuntimeConfig(address="127.0.0.1:9")),
    ):
        pass
    assert time.monotonic() - start < 10


def test_gpus_that_are_not_there_are_refused(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(ResourceError, match=r"num_gpus=99, but PyTorch can use \d+ GPUs"),
        RaySession(RuntimeConfig(num_gpus=99)),
    ):
        pass


def test_workers_get_threads_and_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path))
    monkeypatch.delenv("WARP_CACHE_PATH", raising=False)
    variables = worker_environment(RuntimeConfig(threads=2))
    assert variables["OMP_NUM_THREADS"] == "2"
    assert variables["POSEGEN_CACHE"] == str(tmp_path)
    assert variables["WARP_CACHE_PATH"].startswith(str(tmp_path))


def test_workers_are_started_when_they_are_asked_for_and_not_before():
    script = """
import time

import ray

from posegen_ray.config import RuntimeConfig
from posegen_ray.runtime.session import RaySession


@ray.remote
class Worker:
    def ready(self):
        pass


with RaySession(RuntimeConfig(num_cpus=3, object_store_mb=100)):
    from ray._private.state import workers

    time.sleep(2.0)
    before = len(workers())
    worker = Worker.remote()
    ray.get(worker.ready.remote())
    print(before, len(workers()) - before)
"""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=alone)
    assert (run.stdout.split()[-2:], run.returncode) == (["0", "1"], 0), run.stderr


def test_pictures_come_with_their_answer_instead_of_through_the_object_store(ray_session):
    import ray

    @ray.remote
    def draw() -> DrawnPixels:  # eight people as large as a user's, 224 x 224
        pictures = np.zeros((8, 224, 224, 4), np.float32)
        pictures[:, 40:184, 90:134] = 0.5  # 6,336 pixels
        return DrawnPixels.of(pictures)

    answer = draw.remote()
    ray.wait([answer])
    assert ray.experimental.get_object_locations([answer])[answer]["node_ids"] == []
    assert len(ray.get(answer).row) == 8 * 144 * 44


def test_long_session_folder_is_refused(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = RuntimeConfig(temp_folder="/tmp/" + "x" * 60)
    with pytest.raises(ResourceError, match="too long for unix sockets"), RaySession(config):
        pass


def test_of_rays_own_words_only_the_worker_count_is_kept_from_users():
    script = """
import posegen_ray.runtime
from ray._private.worker import print_to_stdstream

for line in ("WARNING: 8 PYTHON worker processes have been started on node: 1", "a node died"):
    about = {"pid": "raylet", "ip": "", "job": None, "task_name": "", "actor_name": ""}
    print_to_stdstream({**about, "is_err": True, "lines": [line]}, ignore_prefix=False)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "a node died" in run.stderr
    assert "worker processes" not in run.stderr
