"""What only a GPU can show, in one go: tests, training on one and two GPUs, bf16, benchmarks.

    python benchmarks/gpu_check.py          (make gpu-check)

Runs each check as a command of its own and prints it; then what passed, failed, and could not be
checked here. Exits with 0 only where there is a GPU and every check that it allows has passed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT_S = 1800.0  # for one check
TRAIN = ("-m", "posegen_ray", "train", "experiment=tiny")
ALONE = (*TRAIN, "runtime=inprocess", "runtime.device=cuda")
# one worker (or two) with a GPU of its own, so nccl; rendering on the CPU
NCCL = (*TRAIN, "runtime=one_gpu", "runtime.render.resources.num_gpus=0")
NCCL = (*NCCL, "runtime.train_resources.num_gpus=1", "runtime.job_resources.num_gpus=0")
SERVERS = ("runtime=one_gpu", "runtime.num_gpus=2", "runtime.render.replicas=2")
SERVERS = (*SERVERS, "runtime.render.resources.num_gpus=1", "runtime.job_resources.num_gpus=0")
SERVERS = (*SERVERS, "runtime.train_resources.num_gpus=0")


@dataclass(frozen=True)
class Check:
    """One thing that a machine with so many GPUs can show."""

    name: str
    arguments: tuple[str, ...]  # of Python
    gpus: int = 1

    @property
    def overrides(self) -> tuple[str, ...]:
        """The settings of a training."""
        return self.arguments[3:] if self.arguments[:3] == TRAIN[:3] else ()


CHECKS = (
    Check("tests marked gpu", ("-m", "pytest", "-m", "gpu", "-q", "--timeout=600")),
    Check("training and rendering in one process on CUDA", ALONE),
    Check("the same, the estimator in bf16", (*ALONE, "training.precision=bf16")),
    Check("the same, batches in two parts", (*ALONE, "training.accumulate=2")),
    Check("training on Ray, one worker with a GPU (nccl)", NCCL),
    Check(
        "training on Ray, servers and worker share a GPU (gloo)",
        (*TRAIN, "runtime=one_gpu", "runtime.train_resources.num_gpus=0.5"),
    ),
    Check(
        "training on Ray, two workers with a GPU each (nccl)",
        (*NCCL, "runtime.num_gpus=2", "runtime.train_workers=2", "training.precision=bf16"),
        gpus=2,
    ),
    Check(
        "two replicas of the render servers on two GPUs",
        (*TRAIN, *SERVERS),
        gpus=2,
    ),
    Check("benchmark: pieces of a step", ("benchmarks/training_step.py", "cuda", "32")),
    Check("benchmark: rendering", ("benchmarks/render.py", "runtime.device=cuda")),
)


def divide(gpus: int) -> tuple[list[Check], list[Check]]:
    """What a machine with so many GPUs can check, and what it cannot."""
    able = [check for check in CHECKS if check.gpus <= gpus]
    return able, [check for check in CHECKS if check.gpus > gpus]


def main(arguments: Sequence[str] = ()) -> int:
    gpus = _gpus()
    print(f"{len(gpus)} GPU(s): {', '.join(gpus) or 'none that PyTorch can use'}", flush=True)
    able, unable = divide(len(gpus))
    results = [(check, *_run(check)) for check in able]
    print("\n--- checked")
    for check, good, seconds in results:
        print(f"{'passed' if good else 'FAILED':8} {seconds:6.0f} s  {check.name}")
    if not results:
        print("nothing")
    print("\n--- NOT checked on this machine (see docs/gpu.md)")
    for check in unable:
        print(f"needs {check.gpus} GPU(s): {check.name}")
    if not unable:
        print("nothing was left out")
    return 0 if results and all(good for _, good, _ in results) else 1


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _run(check: Check) -> tuple[bool, float]:
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="posegen_") as folder:
        more = (f"run_dir={folder}/run",) if check.overrides else ()
        command = [sys.executable, *check.arguments, *more]
        print(f"\n=== {check.name}\n{' '.join(command)}", flush=True)
        try:
            good = subprocess.run(command, cwd=ROOT, timeout=LIMIT_S, check=False).returncode == 0
        except subprocess.TimeoutExpired:
            print(f"took longer than {LIMIT_S:g} s")
            good = False
    return good, time.monotonic() - start


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
