"""Checkpoints: whole or recognised as not, the newest and the best, on many file systems."""

import math
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from posegen_ray import checkpoint_store
from posegen_ray.checkpoint_store import CheckpointStore
from posegen_ray.context import LocalContext, go_on_from
from posegen_ray.errors import CheckpointError


@pytest.fixture
def work(tmp_path) -> Path:
    """What a loop hands over: files in folders."""
    folder = tmp_path / "work"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "tensors").write_bytes(bytes(range(256)) * 20)
    (folder / "notes.txt").write_text("rounds")
    return folder


@pytest.fixture(params=["folder", "file", "memory", "pyarrow"])
def url(request, tmp_path):
    if request.param == "memory":
        yield "memory://run/training"
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
        return
    # mock:// is one that pyarrow opens and fsspec does not
    yield {
        "folder": str(tmp_path / "kept"),
        "file": f"file://{tmp_path}/kept",
        "pyarrow": f"mock://{tmp_path.name}/kept",
    }[request.param]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "whole.json"
    }


def damage(folder: Path, number: int) -> None:
    """Cuts a checkpoint's largest file in half."""
    files = [path for path in (folder / f"checkpoint_{number:06d}").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def test_files_come_back_from_any_file_system(url, work):
    store = CheckpointStore(url)
    assert store.newest() is None
    for number in range(4):
        (work / "notes.txt").write_text(f"round {number}")
        store.add(number, work, {"round": float(number)})
    again = pickle.loads(pickle.dumps(store)) if not url.startswith("mock") else store
    found = again.newest()
    assert found.number == 3
    assert contents(found.folder) == contents(work)
    assert found.metrics == {"round": 3.0}
    assert again.numbers() == [2, 3]


def test_the_best_stays_beside_the_newest(tmp_path, work):
    store = CheckpointStore(str(tmp_path / "kept"), keep=2, best_metric="error")
    kept = []
    for number, error in enumerate([5.0, 3.0, math.nan, 4.0, 3.0, 2.0]):
        store.add(number, work, {"error": error})
        kept.append(store.numbers())
    assert kept == [[0], [0, 1], [1, 2], [1, 2, 3], [1, 3, 4], [4, 5]]


def test_a_checkpoint_without_the_metric_is_not_the_best(tmp_path, work):
    store = CheckpointStore(str(tmp_path / "kept"), keep=1, best_metric="error")
    for number in range(3):
        store.add(number, work, {"loss": -float(number)})
    assert store.numbers() == [2]


def test_a_truncated_one_is_told_and_the_one_before_is_taken(tmp_path, work):
    store = CheckpointStore(str(tmp_path / "kept"), keep=3)
    for number in range(3):
        store.add(number, work, {"round": float(number)})
    damage(tmp_path / "kept", 2)
    said: list[str] = []
    found = go_on_from(store, True, said.append)
    assert (found.number, found.metrics) == (1, {"round": 1.0})
    assert "checkpoint_000002 is truncated or was changed (state/tensors)" in said[0]
    assert "checkpoint_000001" in said[1]
    store.add(found.number + 1, work, {"round": 7.0})
    assert store.newest().metrics == {"round": 7.0}, "the broken one is replaced"


def test_one_that_was_being_written_is_told_and_the_one_before_is_taken(tmp_path, work):
    store = CheckpointStore(str(tmp_path / "kept"))
    for number in range(2):
        store.add(number, work, {})
    (tmp_path / "kept" / "checkpoint_000001" / "whole.json").unlink()
    assert store.newest().broken == ("checkpoint_000001 was not finished",)
    assert store.newest().number == 0


def test_where_none_is_whole_all_are_named(tmp_path, work):
    store = CheckpointStore(str(tmp_path / "kept"))
    for number in range(2):
        store.add(number, work, {})
        damage(tmp_path / "kept", number)
    with pytest.raises(CheckpointError, match=r"no whole checkpoint.*000001.*; checkpoint_000000"):
        LocalContext(tmp_path / "kept", resume=True)


def test_a_later_one_of_an_attempt_that_was_given_up_is_replaced(tmp_path, work):
    store = CheckpointStore(str(tmp_path / "kept"), keep=5)
    for number in range(4):
        store.add(number, work, {"attempt": 1.0})
    store.add(2, work, {"attempt": 2.0})
    assert store.numbers() == [0, 1, 2]
    assert store.newest().metrics == {"attempt": 2.0}


def test_a_run_that_was_given_up_cannot_write_into_that_which_goes_on(url, work):
    """The workers of a killed driver live on for a while."""
    if url.startswith("mock"):
        pytest.skip("pyarrow's mock file system ends with the object that opened it")
    orphan = CheckpointStore(url)
    go_on_from(orphan, False, print)
    orphan.add(0, work, {"run": 1.0})
    heir = CheckpointStore(url)
    go_on_from(heir, True, print)
    pickle.loads(pickle.dumps(heir)).add(1, work, {"run": 2.0})  # by a worker
    for store in (orphan, pickle.loads(pickle.dumps(orphan))):
        with pytest.raises(CheckpointError, match="Another run goes on"):
            store.add(1, work, {"run": 1.0})
    assert heir.newest().metrics == {"run": 2.0}


def claim_together(url: str, exclusive: bool, together, told) -> None:
    """Claims when both have seen that nobody else has."""
    checkpoint_store._SETTLE_S = 0.5
    CheckpointStore._local = exclusive
    store = CheckpointStore(url)
    look = store._claims

    def look_together() -> list[str]:
        claims = look()
        together.wait(60)
        return claims

    store._claims = look_together
    try:
        store.claim()
        told.put("mine")
    except CheckpointError as error:
        told.put(error.what)


@pytest.mark.parametrize("exclusive", [True, False], ids=["folder", "without exclusive create"])
def test_of_two_processes_that_claim_at_the_same_moment_one_gets_the_store(tmp_path, exclusive):
    spawn = multiprocessing.get_context("spawn")
    together, told = spawn.Barrier(2), spawn.Queue()
    work = (str(tmp_path), exclusive, together, told)
    both = [spawn.Process(target=claim_together, args=work) for _ in range(2)]
    for process in both:
        process.start()
    first, second = sorted(told.get(timeout=60) for _ in both)
    for process in both:
        process.join()
    assert "at the same moment" in first
    assert second == "mine"


def test_unknown_protocols_are_refused_with_what_is_missing():
    with pytest.raises(CheckpointError, match="nonsense://"):
        CheckpointStore("nonsense://bucket/run").numbers()


def test_disk_full_leaves_what_was_there_and_says_so(tmp_path):
    """In a process of its own that may write only small files, as on a full disk."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from posegen_ray.checkpoint_store import CheckpointStore\n"
        "from posegen_ray.errors import CheckpointError\n"
        "root = Path(sys.argv[1])\n"
        "work = root / 'work'\n"
        "work.mkdir()\n"
        "store = CheckpointStore(str(root / 'kept'))\n"
        "(work / 'file').write_bytes(b'small')\n"
        "store.add(0, work, {})\n"
        "(work / 'file').write_bytes(b'0' * 100_000)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        "    store.add(1, work, {})\n"
        "except CheckpointError as error:\n"
        "    print(error)\n"
        "print(store.numbers(), store.newest().number)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "checkpoint_000001 could not be written" in answer.stdout
    assert "resume=" in answer.stdout
    assert answer.stdout.splitlines()[-1] == "[0] 0"
