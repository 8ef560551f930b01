"""How much of the gradient's gain does a black box give, at the same number of renders?

    python benchmarks/black_box.py gradient|score|without [seed] [hydra overrides]

BlazePose by torch, with its gradient, and by the LiteRT runtime, of which only the answers are
known. Prints the row that benchmarks/feedback.py prints; `without` is the search without feedback.
Gain: the median error over that of `without`; wanted: score's at least 70 % of gradient's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from feedback import measure, prepare

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.compose import compose_config
from posegen_ray.console import Console
from posegen_ray.estimators import BlackBox, build_estimator
from posegen_ray.estimators.blackbox import litert_blazepose


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    how, seed = arguments[0], int(arguments[1]) if len(arguments) > 1 else 0
    config = compose_config(["runtime=inprocess", *arguments[2:]])
    console = Console()
    studio, render = prepare(config, console)
    estimator = build_estimator(config.estimator)
    if how == "score":
        estimator = BlackBox(litert_blazepose, LIMB_JOINT_NAMES, estimator.crop, "LiteRT")
    if how == "without":
        config.feedback.weight = 0.0
    row = measure(config, studio, render, estimator, seed, console, how)
    print(f"{'':16}{'median mm':>10}{'in band %':>10}{'valid %':>9}{'nearest mm':>11}")
    print(f"{how:16}" + "".join(f"{value:>10.1f}" for value in row) + f"  (seed {seed})")


if __name__ == "__main__":
    main(sys.argv[1:])
