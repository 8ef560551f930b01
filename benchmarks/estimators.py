"""What estimators cost: time and memory of forward and backward at batch 8.

    python benchmarks/estimators.py [threads] [part of a name] [passes of each kind]

Random weights in the published sizes, random arrays for SMPL. Each estimator runs in a process
of its own; the first pass of each kind is not counted.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from posegen_ray.body.model import BodyModel
from posegen_ray.body.skeleton import NUM_JOINTS, PARENTS
from posegen_ray.estimators import PoseEstimator, load_estimator
from posegen_ray.estimators.hybrik import HybrIKHRNet, HybrIKResNet
from posegen_ray.estimators.spin import Spin

BATCH = 8
ROUNDS = 3
VERTICES = 6890


def smpl_arrays() -> dict[str, np.ndarray]:
    """Arrays of SMPL's shapes; the joints are an arbitrary tree."""
    stream = np.random.default_rng(0)
    template = 0.4 * stream.normal(size=(VERTICES, 3))
    return {
        "v_template": template.astype(np.float32),
        "shapedirs": (0.01 * stream.normal(size=(VERTICES, 3, 10))).astype(np.float32),
        "posedirs": np.zeros((VERTICES, 3, 207), np.float32),
        "J_regressor": np.eye(NUM_JOINTS, VERTICES, dtype=np.float32),
        "weights": np.full((VERTICES, NUM_JOINTS), 1 / NUM_JOINTS, np.float32),
        "kintree_table": np.array([PARENTS, range(NUM_JOINTS)]),
        "f": np.zeros((13776, 3), np.int64),
    }


def spin() -> PoseEstimator:
    arrays = {name: torch.from_numpy(value) for name, value in smpl_arrays().items()}
    joints, directions = arrays["v_template"][:NUM_JOINTS], arrays["shapedirs"][:NUM_JOINTS]
    body = BodyModel(
        "smpl", arrays["v_template"], arrays["shapedirs"], joints, directions,
        arrays["weights"], arrays["f"],
    )  # fmt: skip
    return Spin(body, torch.zeros(3)).eval()


ESTIMATORS: dict[str, Callable[[], PoseEstimator]] = {
    "BlazePose full": lambda: load_estimator("blazepose"),
    "SPIN, ResNet-50": spin,
    "HybrIK, ResNet-34": lambda: HybrIKResNet(smpl_arrays(), flip_test=False).eval(),
    "HybrIK, HRNet-W48": lambda: HybrIKHRNet(smpl_arrays(), flip_test=False).eval(),
}


def measure(name: str, threads: int, rounds: int) -> None:
    """Prints a row: ms a batch forward, with the image's gradient, with all gradients; memory."""
    torch.set_num_threads(threads)
    estimator = ESTIMATORS[name]()
    images = torch.rand(BATCH, 3, estimator.input_size, estimator.input_size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times, memory = [], []
    for to_image, to_weights in ((False, False), (True, False), (True, True)):
        estimator.requires_grad_(to_weights)
        images.requires_grad_(to_image)
        start = 0.0
        for number in range(rounds + 1):
            if number == 1:
                start = time.perf_counter()
            with torch.set_grad_enabled(to_image):
                estimate = estimator(images)
            loss = sum(
                value.square().sum()
                for value in (estimate.joints, estimate.rotations)
                if value is not None
            )
            if to_image:
                loss.backward()
                images.grad = None
                estimator.zero_grad()
        times.append((time.perf_counter() - start) / rounds * 1000)
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)
    parameters = sum(p.numel() for p in estimator.parameters()) / 1e6
    cells = [f"{t:.0f}" for t in times] + [f"{memory[0]:.0f} / {memory[2]:.0f}"]
    print(f"| {name} | {parameters:.1f} | {' | '.join(cells)} |", flush=True)


def main(arguments: Sequence[str]) -> None:
    threads, part, rounds = (*arguments, *("2", "", str(ROUNDS))[len(arguments) :])
    print("| batch 8 | parameters, M | forward, ms | + image | + weights | MB: forward / all |")
    print("|---|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")  # each with a memory peak of its own
    for name in (name for name in ESTIMATORS if part in name):
        process = context.Process(target=measure, args=(name, int(threads), int(rounds)))
        process.start()
        process.join()


if __name__ == "__main__":
    main(sys.argv[1:])
