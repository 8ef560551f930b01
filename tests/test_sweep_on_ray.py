"""A real sweep: 8 trials with ASHA on next to nothing, interrupted once and resumed."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from test_experiment import alive, descendants

from posegen_ray.cli import main
from posegen_ray.compose import compose_config, read_config
from posegen_ray.evaluation.sweep import judge, load_sweep
from posegen_ray.training import STATE

PATIENCE_S = 900


def tune(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "posegen_ray", "tune", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_rounds(folder: Path, count: int, run: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while len(list(folder.glob(f"trials/*/checkpoint_*/{STATE}"))) < count:
        assert run.poll() is None, run.communicate()[1][-2000:]
        assert time.monotonic() < end, "no trial came so far"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(3 * PATIENCE_S)
def test_sweep_of_eight_trials_survives_an_interruption(tmp_path):
    folder = tmp_path / "sweep"
    given = ["experiment=tiny", "tune=asha", "n_trials=8", f"run_dir={folder}"]
    run = tune(*given)
    wait_for_rounds(folder, 4, run)
    processes = descendants(run.pid)
    os.killpg(run.pid, signal.SIGINT)
    _, error = run.communicate(timeout=60)
    assert run.returncode == 130, error[-2000:]
    assert "Traceback" not in error
    end = time.monotonic() + 20
    while any(map(alive, processes)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not any(map(alive, processes)), "processes outlived the sweep"
    assert not (folder / "report.html").exists()
    rounds = read_config(folder / "config.yaml").training.rounds
    results = {path: path.read_text() for path in folder.glob("trials/*/result.json")}
    finished = {p: text for p, text in results.items() if len(text.splitlines()) == rounds}

    run = tune(f"resume={folder}")
    text, error = run.communicate(timeout=2 * PATIENCE_S)
    assert run.returncode == 0, error[-2000:]

    table = pd.read_csv(folder / "trials.csv")
    assert list(table["trial"]) == list(range(8))
    assert table["status"][0] == "finished"
    assert set(table["status"]) <= {"finished", "stopped"}
    assert (table["rounds"] == rounds)[table["status"] == "finished"].all()
    assert table["validation_mpjpe_mm"].between(20, 500).all()
    sweep = load_sweep(folder)
    assert judge(sweep).text in text
    if sweep.best.number:
        assert len(sweep.confirmation.best_mm) == 3
    line = (folder / "best_overrides.txt").read_text().strip()
    assert line in text
    config = compose_config(shlex.split(line)[2:])
    assert config.feedback.weight == sweep.best.settings["feedback.weight"]
    assert {path: path.read_text() for path in finished} == finished  # nothing was run twice
    (folder / "report.html").unlink()
    assert main(["report", f"run={folder}"]) == 0
    assert (folder / "report.html").exists()
