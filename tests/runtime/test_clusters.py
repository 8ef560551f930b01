"""Runs on real clusters of this machine give the local run's numbers: as a job, and on two nodes.

Everything listens on 127.0.0.1 only.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from processes import alive, descendants
from safetensors.numpy import load_file

from posegen_ray.cli import main

REPOSITORY = Path(__file__).parents[2]
TRAIN = ["train", "experiment=tiny"]
SMALL = ["runtime.job_workers=2", "runtime.object_store_mb=200"]
PATIENCE_S = 600
NODE = {"num_cpus": 3, "object_store_memory": 200 * 2**20, "node_ip_address": "127.0.0.1"}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * PATIENCE_S)]


def weights(run: Path) -> dict[str, np.ndarray]:
    """Every array that a run's generators and estimator consist of."""
    files = sorted((run / "checkpoint").rglob("*.safetensors"))
    assert files
    return {
        f"{file.relative_to(run)}:{name}": array
        for file in files
        for name, array in load_file(file).items()
    }


def assert_same_numbers(run: Path, wanted: Path) -> None:
    found, expected = weights(run), weights(wanted)
    assert found.keys() == expected.keys()
    worst = 0.0
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-6, err_msg=name)
        if array.size and array.dtype.kind == "f":
            worst = max(worst, float(np.abs(found[name] - array).max()))
    print(f"{len(expected)} arrays agree, the largest difference is {worst:.1e}")


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """The run in one process."""
    folder = tmp_path_factory.mktemp("local") / "run"
    assert main([*TRAIN, "runtime=inprocess", f"run_dir={folder}"]) == 0
    return folder


@dataclass(frozen=True)
class Head:
    """A head node that asks for a token, and how to speak with it."""

    address: str
    dashboard: str
    environment: dict[str, str]

    def ray(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
        environment = {**self.environment, **changes}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
        )


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # short: unix sockets lie under it
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    names = (*names, "runtime-env-agent-port", "ray-client-server-port", "metrics-export-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    environment = {
        **os.environ,
        **LOOPBACK,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # `python` of jobs
    }
    environment.pop("RAY_ADDRESS", None)
    environment.pop("PYTHONPATH", None)  # a job has the code of its working folder only
    log = folder / "log"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--num-cpus=6"),
            *(f"--temp-dir={folder}", "--object-store-memory=300000000"),
            *(f"--{name}={port}" for name, port in ports.items()),
        ],
        env=environment,
        stdout=os.open(log, os.O_CREAT | os.O_WRONLY),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        dashboard = f"http://127.0.0.1:{ports['dashboard-port']}"
        started = Head(f"127.0.0.1:{ports['port']}", dashboard, environment)
        wait_for_dashboard(started, process, log)
        yield started
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_dashboard(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if process.poll() is not None:
            pytest.fail(f"the head ended: {log.read_text()[-2000:]}")
        if head.ray("job", "list", "--address", head.dashboard).returncode == 0:
            return
        time.sleep(1)
    pytest.fail("the head's dashboard did not come up")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a head and all that it started, by their numbers."""
    family = descendants(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    for pid in family:
        if alive(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def submit(head: Head, run: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """What cluster/README.md tells the user to type."""
    return head.ray(
        *("job", "submit", "--address", head.dashboard, "--working-dir", str(REPOSITORY)),
        *("--runtime-env-json", '{"env_vars": {"OMP_NUM_THREADS": "1"}}'),
        *("--", "python", "-m", "posegen_ray", *TRAIN, *SMALL, f"run_dir={run}"),
        **changes,
    )


def test_submitted_job_gives_the_numbers_of_the_local_run(head, local, tmp_path):
    answer = submit(head, tmp_path / "run")
    assert answer.returncode == 0, (answer.stdout + answer.stderr)[-3000:]
    assert "render server" in answer.stdout + answer.stderr  # the plan's table, in the job's log
    assert "succeeded" in (answer.stdout + answer.stderr).lower()
    assert_same_numbers(tmp_path / "run", local)


def test_failed_job_is_told_by_its_exit_code_and_message(head, tmp_path):
    answer = head.ray(
        *("job", "submit", "--address", head.dashboard, "--working-dir", str(REPOSITORY)),
        *("--", "python", "-m", "posegen_ray", *TRAIN, f"run_dir={tmp_path}/run"),
        "runtime.job_workers=64",
    )
    assert answer.returncode == 1
    text = answer.stdout + answer.stderr
    assert "logical CPUs" in text
    assert "runtime.job_workers=" in text


def test_submission_without_the_token_is_refused(head, tmp_path):
    answer = submit(head, tmp_path / "run", RAY_AUTH_MODE="disabled")
    assert answer.returncode != 0
    assert (
        "401" in answer.stdout + answer.stderr or "auth" in (answer.stdout + answer.stderr).lower()
    )
    wrong = tmp_path / "token"
    wrong.write_text(secrets.token_hex(32))
    answer = submit(head, tmp_path / "run", RAY_AUTH_TOKEN_PATH=str(wrong))
    assert answer.returncode != 0
    assert not (tmp_path / "run").exists()


def test_joining_without_the_token_is_refused(head, tmp_path):
    """Not by waiting: with one clear line."""
    command = [sys.executable, "-m", "posegen_ray", *TRAIN, *SMALL, f"run_dir={tmp_path}/run"]
    start = time.monotonic()
    answer = subprocess.run(
        [*command, f"runtime.address={head.address}"],
        env={**head.environment, "PYTHONPATH": str(REPOSITORY), "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    print(f"{time.monotonic() - start:.0f} s: {answer.stderr[-600:]}")
    assert answer.returncode == 1
    assert "token" in answer.stderr.lower()


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of one small node, to which others can be added; nobody is connected to it."""
    from ray.cluster_utils import Cluster

    for name, value in LOOPBACK.items():
        monkeypatch.setenv(name, value)
    folder = tempfile.mkdtemp(prefix="pg", dir="/tmp")
    cluster = Cluster(True, head_node_args={**NODE, "include_dashboard": False, "temp_dir": folder})
    yield cluster
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def test_run_on_two_nodes_gives_the_numbers_of_the_local_run(cluster, local, tmp_path):
    """The second node comes while the run waits for it (scale_up_s): three slots are too few."""
    said = tmp_path / "said"
    run = subprocess.Popen(
        [
            *(sys.executable, "-m", "posegen_ray", *TRAIN, f"run_dir={tmp_path}/run"),
            *(f"runtime.address={cluster.address}", "runtime.scale_up_s=300"),
            *("runtime.train_resources.num_cpus=2", "runtime.job_workers=2"),
        ],
        stderr=os.open(said, os.O_CREAT | os.O_WRONLY),
    )
    try:
        until = time.monotonic() + PATIENCE_S
        while "waiting up to 300 s for more machines" not in said.read_text():
            assert run.poll() is None, said.read_text()[-3000:]
            assert time.monotonic() < until
            time.sleep(0.5)
        cluster.add_node(**NODE)
        assert run.wait(PATIENCE_S) == 0, said.read_text()[-3000:]
    finally:
        if run.poll() is None:
            run.kill()
    refused, plan = said.read_text().split("role ")[1:3]
    print(f"{refused}\n{plan}")
    assert "no place for" in refused
    assert "2 nodes" in plan
    places = {word.strip(",") for word in plan.split() if word.startswith("127.0.0.1/")}
    assert len(places) == 2, "all ran on one node"
    assert_same_numbers(tmp_path / "run", local)
