"""Training computes where it is told: on a second device that refuses the CPU's tensors (made up),
and on CUDA where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "train_elsewhere.py"


def assert_equal_training(what: str, device: str, folder: Path) -> None:
    """The same metrics, weights and optimisers on a device and on the CPU."""
    # a rendered picture changes by leaps where rounding decides which cells a ray meets
    within = 3e-2 if what == "loop" else 1e-3
    file = folder / "results"
    command = [sys.executable, str(SCRIPT), str(file), what, device, "cpu"]
    paths = [str(SCRIPT.parent), str(SCRIPT.parent / "estimators"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-4000:]
    results = torch.load(file, weights_only=True)
    for ours, theirs in zip(results[device], results["cpu"], strict=True):
        assert len(ours) == len(theirs) > 5
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=within, atol=1e-4, equal_nan=True)


def test_all_of_a_step_happens_on_the_device_and_gives_the_cpus_numbers(tmp_path):
    """On "away" (tests/other_device.py), where to mix tensors of two devices is an error."""
    assert_equal_training("steps", "away", tmp_path)


def test_fine_tuning_and_tests_happen_on_the_device_and_give_the_cpus_numbers(tmp_path):
    assert_equal_training("jobs", "away", tmp_path)


@pytest.mark.slow
def test_the_whole_loop_happens_on_the_device_and_gives_the_cpus_numbers(tmp_path):
    assert_equal_training("loop", "away", tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("what", ["steps", "jobs", "loop"])
def test_cuda_gives_the_cpus_numbers(what, tmp_path):
    assert_equal_training(what, "cuda", tmp_path)
