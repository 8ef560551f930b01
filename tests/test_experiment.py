"""The whole loop, on next to nothing: same numbers in one process, on Ray, and after a kill."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from processes import alive, descendants, find_process

from posegen_ray.checkpoint import load_checkpoint
from posegen_ray.cli import main
from posegen_ray.compose import read_config
from posegen_ray.evaluation.store import load_evaluation
from posegen_ray.motion.splits import load_splits
from posegen_ray.subjects.wardrobe import people

TINY = ["experiment=tiny"]
PATIENCE_S = 400  # with a phase: a loaded machine takes ten times as long


def answers(folder: Path) -> dict[str, np.ndarray]:
    return {arm: joints.numpy() for arm, joints in load_evaluation(folder).predictions.items()}


def assert_same_answers(one: Path, other: Path) -> None:
    first, second = answers(one), answers(other)
    assert set(first) == set(second)
    for arm, joints in first.items():
        np.testing.assert_allclose(joints, second[arm], rtol=1e-4, atol=1e-6, err_msg=arm)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """An undisturbed run in one process."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    assert main(["demo", *TINY, "runtime=inprocess", f"run_dir={folder}"]) == 0
    return folder


def test_run_folder_holds_what_the_readme_promises(finished):
    for name in ("config.yaml", "summary.json", "report.html", "checkpoint", "tensorboard"):
        assert (finished / name).exists(), name
    events = [file.read_bytes() for file in (finished / "tensorboard").rglob("events.*")]
    assert any(b"render/latency_p99_ms" in written for written in events)


def test_summary_has_every_number(finished):
    summary = json.loads((finished / "summary.json").read_text())
    arms = ("baseline", "source_adapted", "random", "posegen")
    for arm in arms:
        for test_set in ("source", "wild", "ood"):
            for metric in ("mpjpe_mm", "pa_mpjpe_mm", "pck150", "auc"):
                value = summary["arms"][arm][test_set][metric]
                assert value["mean"] > 0 or metric == "auc"
                assert value["sd"] is None  # one seed has no spread
    for arm in arms[1:]:
        for metric in ("mpjpe", "pa_mpjpe"):
            assert {"mean", "low", "high"} <= set(summary["relative_improvement"][arm][metric])
    assert summary["estimator"] == "blazepose-full"
    assert summary["seeds"] == [0]
    assert summary["samples"]["train"] == 16
    assert summary["samples"]["test"] == 28
    assert summary["render"]["images_per_s"] > summary["render"]["images_per_s_with_gradient"] > 0
    assert {"train", "finetune", "draw"} <= set(summary["timing_s"])
    assert "torch" in summary["versions"]


def test_nothing_held_out_was_trained_on(finished):
    """From the configuration and from what every written sample says of itself."""
    config = read_config(finished / "config.yaml")
    splits = load_splits(config.motion)
    tables = {file.stem: pd.read_parquet(file) for file in (finished / "samples").glob("*.parquet")}
    trained = pd.concat([table for name, table in tables.items() if name != "test"])
    tested = tables["test"]
    assert len(tested) == 28
    assert not set(trained.subject) & {p.name for s in ("test", "val") for p in people(s)}
    assert set(tested.subject) <= {person.name for person in people("test")}
    frames = {
        f"{clip.name}:{clip.start + frame}"
        for clip in splits.source_train
        for frame in range(len(clip))
    }
    assert set(trained["clip"]) - {"generated"} <= frames
    assert not set(tested["clip"]) & frames
    clips = {name.split(":")[0] for name in trained["clip"]}
    assert not clips & {*config.motion.ood, *config.motion.validation}
    assert not {name.split(":")[0] for name in tested["clip"]} & set(config.motion.validation)


def test_arms_have_equal_numbers_of_images_and_share_their_source_half(finished):
    tables = {file.stem: pd.read_parquet(file) for file in (finished / "samples").glob("*.parquet")}
    own = [len(tables[f"{arm}-0"]) for arm in ("source_adapted", "random", "posegen")]
    assert own == [8, 8, 8]
    assert len(tables["source_half-0"]) == 8


def test_report_can_be_written_again(finished):
    before = (finished / "summary.json").read_text()
    (finished / "report.html").unlink()
    assert main(["report", f"run={finished}"]) == 0
    assert (finished / "report.html").exists()
    assert json.loads((finished / "summary.json").read_text())["arms"] == json.loads(before)["arms"]


def test_generate_writes_labels_that_project_onto_the_images(finished, tmp_path):
    out = tmp_path / "set"
    command = ["generate", "runtime=inprocess", f"run={finished}", "n=3", f"out={out}"]
    assert main(command) == 0
    assert len(list((out / "images").glob("*.png"))) == 3
    labels = np.load(out / "labels.npz")
    # an independent projection: hip-centred joints + the depth that the 2D hips imply
    focal, principal = labels["camera_focal"], labels["camera_principal"]
    for joints, pixels, f, c in zip(
        labels["joints"], labels["joints_2d"], focal, principal, strict=True
    ):
        rays = (pixels - c) / f  # x / z, y / z
        # x + x0 = rx (z + z0): linear in (x0, y0, z0)
        rows, right = [], []
        for joint, ray in zip(joints, rays, strict=True):
            rows += [[1, 0, -ray[0]], [0, 1, -ray[1]]]
            right += [ray[0] * joint[2] - joint[0], ray[1] * joint[2] - joint[1]]
        solution, *_ = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)
        placed = joints + solution
        again = placed[:, :2] / placed[:, 2:] * f + c
        assert np.abs(again - pixels).max() < 0.1
    assert main(command) == 1  # never overwritten


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `posegen` in the background; whatever is left of it ends with the tests."""
    runs = []

    def run(*arguments: str, command: str = "demo") -> subprocess.Popen[str]:
        runs.append(
            subprocess.Popen(
                [sys.executable, "-m", "posegen_ray", command, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # a process group of its own, as a shell gives it
                # what a shell starts in the background ignores SIGINT, and so do its children
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        )
        return runs[-1]

    yield run
    for process in runs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(path: Path, pattern: str, run: subprocess.Popen[str], count: int = 1) -> None:
    """Returns once so many files are there."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if len(list(path.glob(pattern))) >= count:
            return
        if run.poll() is not None:
            pytest.fail(f"the run ended before {pattern}: {run.communicate()[1][-2000:]}")
        time.sleep(0.05)
    pytest.fail(f"{pattern} did not appear in {path}")


def end_of(run: subprocess.Popen[str]) -> None:
    """Waits until the run has ended well."""
    _, error = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, error[-2000:]


def interrupt(run: subprocess.Popen[str]) -> None:
    """Ctrl-C: the whole process group gets the signal."""
    processes = descendants(run.pid)
    os.killpg(run.pid, signal.SIGINT)
    _, error = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 130, error[-2000:]
    assert "resume=" in error
    assert "Traceback" not in error
    end = time.monotonic() + 20
    while (left := [pid for pid in processes if alive(pid)]) and time.monotonic() < end:
        time.sleep(0.2)
    assert not left, "processes outlived the run"


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, start) -> Path:
    """A run in one process, interrupted in training; to be copied."""
    folder = tmp_path_factory.mktemp("interrupted") / "tiny"
    run = start(*TINY, "runtime=inprocess", f"run_dir={folder}")
    wait_for(folder, "training/seed_0/checkpoint_*/whole.json", run)
    interrupt(run)
    return folder


@pytest.mark.timeout(4 * PATIENCE_S)
def test_run_interrupted_in_training_and_in_fine_tuning_equals_an_uninterrupted_one(
    finished, interrupted, tmp_path, start
):
    folder = shutil.copytree(interrupted, tmp_path / "tiny")
    run = start(f"resume={folder}", "runtime=inprocess")
    wait_for(folder, "checkpoint/source_adapted-0", run)
    interrupt(run)
    kept = sorted((folder / "checkpoint").glob("[!.]*"))
    written = [file.stat().st_mtime_ns for file in kept]
    assert len(kept) < 5, "all was done before the interruption"
    assert not (folder / "summary.json").exists()
    assert main(["demo", f"resume={folder}", "runtime=inprocess"]) == 0
    assert [file.stat().st_mtime_ns for file in kept] == written  # nothing was done twice
    assert not (folder / "drawn").exists()
    assert_same_answers(folder, finished)
    counts = [json.loads((f / "summary.json").read_text())["samples"] for f in (folder, finished)]
    assert counts[0] == counts[1]


EVENTS = "tensorboard/seed_0/events.*"  # whoever trains writes one as it begins
TWO = "runtime.job_workers=2"  # every further one takes its time to begin


@pytest.mark.timeout(4 * PATIENCE_S)
def test_ray_run_robbed_of_its_processes_equals_one_process(finished, interrupted, tmp_path, start):
    """Ray goes on where one process was interrupted; a render server and the train worker die."""
    folder = shutil.copytree(interrupted, tmp_path / "tiny")
    run = start(f"resume={folder}", "runtime.job_workers=1")
    wait_for(folder, EVENTS, run, count=2)
    for name in ("RenderServer", "RayTrainWorker"):
        os.kill(find_process(name, run.pid), signal.SIGKILL)
    end_of(run)
    assert len(list(folder.glob(EVENTS))) == 3, "training did not go on in another process"
    assert_same_answers(folder, finished)


@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE_S)
def test_ray_run_interrupted_in_training_equals_one_process(finished, tmp_path, start):
    folder = tmp_path / "tiny"
    run = start(*TINY, TWO, f"run_dir={folder}")
    wait_for(folder, "training/seed_0/checkpoint_*/whole.json", run)
    interrupt(run)
    end_of(start(f"resume={folder}", TWO))
    assert_same_answers(folder, finished)


@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE_S)
def test_a_run_of_two_train_workers_goes_on_with_one(tmp_path, start):
    folder = tmp_path / "tiny"
    run = start(*TINY, TWO, "runtime.train_workers=2", f"run_dir={folder}")
    wait_for(folder, "training/seed_0/checkpoint_*/whole.json", run)
    interrupt(run)
    assert not (folder / "checkpoint" / "generator-0").exists()
    end_of(start(f"resume={folder}", TWO))
    training = load_checkpoint(folder / "checkpoint" / "generator-0")
    assert len(training["generators"]) == 2
    # two workers' pictures of the first round and one's of the second: 4 proposals a step
    assert 2 * 2 * 4 < training["rendered"] <= 3 * 2 * 4
    arms = json.loads((folder / "summary.json").read_text())["arms"]
    assert all(np.isfinite(s["mpjpe_mm"]["mean"]) for sets in arms.values() for s in sets.values())


@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE_S)
def test_a_set_whose_writer_or_whose_driver_is_killed_on_ray_is_the_same_set(
    finished, tmp_path, start
):
    def command(out: Path) -> list[str]:
        return [f"run={finished}", "n=48", "export.images_per_shard=4", f"out={out}"]

    assert main(["generate", "runtime=inprocess", *command(tmp_path / "undisturbed")]) == 0
    expected = files_of(tmp_path / "undisturbed")

    robbed = tmp_path / "robbed"
    run = start(TWO, *command(robbed), command="generate")
    wait_for(robbed, ".progress/shard-*.json", run)
    os.kill(find_process("JobWorker.run", run.pid), signal.SIGKILL)
    end_of(run)
    assert files_of(robbed) == expected

    killed = tmp_path / "killed"
    run = start(TWO, *command(killed), command="generate")
    wait_for(killed, ".progress/shard-*.json", run, count=2)
    run.kill()
    assert not (killed / "manifest.json").exists()
    kept = {file: file.stat().st_mtime_ns for file in killed.glob(".progress/shard-*.json")}
    assert 2 <= len(kept) < 12
    run = start(TWO, *command(killed), command="generate")
    wait_for(killed, ".progress/shard-*.json", run, count=len(kept) + 1)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept, "something was done twice"
    end_of(run)
    assert files_of(killed) == expected


def files_of(folder: Path) -> dict[str, bytes]:
    """What a folder holds, hidden files too."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
