"""The fault matrix, training: whatever dies, is lost or breaks, training ends with the numbers of
the run that nothing disturbed: bit by bit with as many workers, to 1e-6 with another number.

tests/test_experiment.py has the same of the whole loop: a train worker and a render server killed
at once, a run interrupted in training and resumed, on Ray and in one process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from processes import descendants, find_process

from posegen_ray.context import LocalContext
from posegen_ray.errors import CheckpointError

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "runtime"))

from runtime_loops import QuadraticLoop  # noqa: E402

# where drivers, and the workers of every cluster, find the loops
PATHS = os.pathsep.join(
    [*(str(TESTS / part) for part in ("chaos", "runtime")), str(TESTS), *sys.path]
)
PATIENCE_S = 240
KILLED_AT = 2  # the round in which something is broken; the rounds before it are kept
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "node_ip_address": "127.0.0.1"}

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3 * PATIENCE_S)]


@dataclass(frozen=True)
class Begun:
    """A note of the loop: a worker began a round."""

    number: int
    rank: int
    world_size: int
    pid: int
    at: float  # on the monotonic clock


class Driver:
    """A training in a process of its own."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": PATHS}
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        self.said = folder / f"said-{time.monotonic_ns()}"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-u", str(TESTS / "chaos" / "training_driver.py")),
                json.dumps({"folder": str(folder), **settings}),
            ],
            env=environment,
            stdout=self.said.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def begun(self) -> list[Begun]:
        notes = [path.name.split("-") for path in (self.folder / "notes").glob("*")]
        rows = [Begun(*map(int, note[:4]), int(note[4]) / 1e9) for note in notes]
        return sorted(rows, key=lambda row: row.at)

    def wait(self, ready: Callable[[Begun], bool]) -> Begun:
        """The first note of that kind, as soon as it is there."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            for row in self.begun():
                if ready(row):
                    return row
            assert self.process.poll() is None, self.said.read_text()[-3000:]
            time.sleep(0.05)
        raise AssertionError(f"no such note: {self.said.read_text()[-3000:]}")

    def end(self, code: int = 0) -> str:
        """What it said, once it has ended."""
        assert self.process.wait(PATIENCE_S) == code, self.said.read_text()[-3000:]
        return self.said.read_text()

    def result(self) -> dict:
        (line,) = [row for row in self.end().splitlines() if row.startswith("RESULT")]
        return json.loads(line.removeprefix("RESULT"))

    def kill(self) -> None:
        """The driver alone; what it started notices by itself."""
        self.process.kill()
        self.process.wait()

    def end_all(self) -> None:
        """Kills it and all that it started."""
        for pid in descendants(self.process.pid) if self.process.poll() is None else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def drive(tmp_path) -> Iterator[Callable[..., Driver]]:
    drivers = []

    def start(**settings: object) -> Driver:
        drivers.append(Driver(tmp_path / "run", **settings))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.end_all()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Callable[..., list[float]]:
    """The weights of a run of this kind that nothing disturbs; run once."""
    known: dict[str, list[float]] = {}

    def weights(**settings: object) -> list[float]:
        key = json.dumps(settings, sort_keys=True)
        if key not in known:
            driver = Driver(tmp_path_factory.mktemp("undisturbed"), **settings)
            known[key] = driver.result()["weight"]
        return known[key]

    return weights


def in_one_process() -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        return QuadraticLoop(5).run(LocalContext(Path(folder)))["weight"]


def assert_close(found: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("victim", ["train worker", "train controller"])
def test_sigkill_of_a_part_of_the_worker_group(victim, drive, undisturbed, note_recovery):
    expected = undisturbed()
    run = drive()
    worker = run.wait(lambda row: row.number == KILLED_AT and row.rank == 1)
    pid = worker.pid
    if victim == "train controller":
        pid = find_process("TrainController", run.process.pid)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    again = run.wait(lambda row: row.at > killed and row.rank == 1)
    note_recovery(f"SIGKILL of the {victim}", again.at - killed)
    assert again.number == KILLED_AT, "the rounds before were done again"
    result = run.result()
    assert result["first"] == KILLED_AT
    assert result["weight"] == expected


def test_sigkill_of_a_stream_actor(drive, undisturbed, note_recovery):
    settings = {"workers": 1, "stream": True}
    expected = undisturbed(**settings)
    assert expected != in_one_process(), "the stream's samples were not used"
    run = drive(**settings)
    worker = run.wait(lambda row: row.number == KILLED_AT)
    os.kill(find_process("MapWorker", run.process.pid), signal.SIGKILL)
    killed = time.monotonic()
    again = run.wait(lambda row: row.number == KILLED_AT + 1)
    note_recovery("SIGKILL of a stream actor", again.at - killed)
    assert again.pid == worker.pid, "the train worker started again too"
    assert run.result()["weight"] == expected


def test_sigkill_of_the_driver_and_resume(drive, undisturbed, note_recovery):
    settings = {"workers": 1, "stream": True}
    expected = undisturbed(**settings)
    run = drive(**settings)
    run.wait(lambda row: row.number == KILLED_AT)
    killed = time.monotonic()
    run.kill()
    run = drive(**settings, resume=True)
    again = run.wait(lambda row: row.at > killed and row.number >= KILLED_AT)
    note_recovery("SIGKILL of the driver, then resume=", again.at - killed)
    result = run.result()
    assert result["first"] == KILLED_AT
    assert result["weight"] == expected


@pytest.fixture
def make_cluster(monkeypatch) -> Iterator[Callable[[], object]]:
    """Clusters of one node; others can be added."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", PATHS)
    made, folders = [], []

    def make() -> object:
        folders.append(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
        head = {**NODE, "include_dashboard": False, "temp_dir": folders[-1]}
        made.append(Cluster(True, head_node_args=head))
        return made[-1]

    yield make
    for cluster in made:
        cluster.shutdown()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("fewest", [0, 1], ids=["another node comes", "elastic"])
def test_a_node_is_lost(fewest, make_cluster, drive, note_recovery):
    """One worker on each node; one node goes. Either another comes, or one worker goes on alone."""
    cluster = make_cluster()
    node = cluster.add_node(**NODE)
    run = drive(address=cluster.address, cpus=1, fewest=fewest)
    run.wait(lambda row: row.number == KILLED_AT and row.world_size == 2)
    cluster.remove_node(node, allow_graceful=False)
    lost = time.monotonic()
    if not fewest:
        cluster.add_node(**NODE)
    # a worker outlives its node by up to a round
    before = {row.pid for row in run.begun() if row.at < lost}
    again = run.wait(lambda row: row.pid not in before)
    how = "one worker goes on" if fewest else "another node comes"
    note_recovery(f"a node with a train worker is lost, {how}", again.at - lost)
    assert again.number >= KILLED_AT, "the rounds before were done again"
    result = run.result()
    assert result["ranks"] == ([0] if fewest else [0, 1])
    assert_close(result["weight"], in_one_process())


def test_the_head_is_killed_and_the_job_submitted_again(make_cluster, drive, note_recovery):
    """With the head goes its driver, as a submitted job's does."""
    cluster = make_cluster()
    run = drive(address=cluster.address, workers=1)
    run.wait(lambda row: row.number == KILLED_AT)
    lost = time.monotonic()
    cluster.head_node.kill_gcs_server(check_alive=False)
    cluster.head_node.kill_raylet(check_alive=False)
    run.kill()
    cluster.shutdown()
    run = drive(address=make_cluster().address, workers=1, resume=True)
    again = run.wait(lambda row: row.at > lost and row.number >= KILLED_AT)
    note_recovery("the head is killed, the job submitted again with resume=", again.at - lost)
    result = run.result()
    assert result["first"] == KILLED_AT
    assert_close(result["weight"], in_one_process())


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"only root can mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_the_disk_is_full_during_a_checkpoint(small_disk, drive, undisturbed, note_recovery):
    """Training stops and says why; with space again it goes on."""
    settings = {"store": str(small_disk / "kept")}
    run = drive(**settings)
    run.wait(lambda row: row.number == KILLED_AT)
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    said = run.end(code=1)
    assert "No space left on device" in said
    assert "Free space" in said
    ballast.unlink()
    freed = time.monotonic()
    run = drive(**settings, resume=True)
    again = run.wait(lambda row: row.at > freed)
    note_recovery("disk full during a checkpoint, freed, then resume=", again.at - freed)
    result = run.result()
    assert result["first"] >= KILLED_AT - 1
    assert result["weight"] == undisturbed()


def test_a_checkpoint_is_truncated_afterwards(drive, undisturbed, note_recovery):
    run = drive()
    run.wait(lambda row: row.number == KILLED_AT)
    run.end_all()
    kept = sorted((run.folder / "kept").glob("checkpoint_*"))
    assert len(kept) == KILLED_AT
    newest = kept[-1] / "state.pt"
    os.truncate(newest, newest.stat().st_size // 2)
    resumed = time.monotonic()
    run = drive(resume=True)
    again = run.wait(lambda row: row.at > resumed)
    note_recovery("a checkpoint truncated afterwards, resume=", again.at - resumed)
    assert again.number == KILLED_AT - 1, "it went on from the broken one"
    result = run.result()
    assert f"{kept[-1].name} is truncated or was changed (state.pt)" in run.said.read_text()
    assert result["weight"] == undisturbed()


def test_all_checkpoints_are_truncated_afterwards(drive):
    run = drive(workers=1)
    run.wait(lambda row: row.number == KILLED_AT)
    run.end_all()
    for state in (run.folder / "kept").glob("checkpoint_*/state.pt"):
        os.truncate(state, 10)
    said = drive(workers=1, resume=True).end(code=1)
    assert "no whole checkpoint: checkpoint_000001 is truncated" in said
    assert "checkpoint_000000 is truncated" in said
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        LocalContext(run.folder / "kept", resume=True)
