"""How much of the gradient's gain does a black box give, at the same number of renders?

    python benchmarks/black_box.py gradient|score|without [seed] [hydra overrides]

BlazePose by torch, with its gradient, and by the LiteRT runtime, of which only the answers are
known. Prints the row that benchmarks/feedback.py prints; `without` is the search without feedback.
Gain: the median error over that of `without`; wanted: score's at least 70 % of gradient's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from feedback import measure, prepare

from posegen_ray.assets import fetch
from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.compose import compose_config
from posegen_ray.console import Console
from posegen_ray.estimators import BlackBox, build_estimator
from posegen_ray.estimators.blazepose import BlazePose, obvious_joint_map


def litert_blazepose() -> BlackBox:
    """BlazePose full by Google's runtime."""
    runtime = Interpreter(str(fetch("blazepose-full")), num_threads=1)
    runtime.allocate_tensors()
    entry, world = runtime.get_input_details()[0], runtime.get_output_details()[4]

    def answer(images: torch.Tensor) -> np.ndarray:
        rows = []
        for image in images:
            runtime.set_tensor(entry["index"], image.permute(1, 2, 0)[None].numpy())
            runtime.invoke()
            landmarks = runtime.get_tensor(world["index"])[0, :99].reshape(33, 3)
            rows.append(obvious_joint_map().numpy() @ landmarks)
        return np.stack(rows)

    return BlackBox(answer, LIMB_JOINT_NAMES, BlazePose.crop, "blazepose (LiteRT)")


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    how, seed = arguments[0], int(arguments[1]) if len(arguments) > 1 else 0
    config = compose_config(["runtime=inprocess", *arguments[2:]])
    console = Console()
    studio, render = prepare(config, console)
    estimator = litert_blazepose() if how == "score" else build_estimator(config.estimator)
    if how == "without":
        config.feedback.weight = 0.0
    row = measure(config, studio, render, estimator, seed, console, how)
    print(f"{'':16}{'median mm':>10}{'in band %':>10}{'valid %':>9}{'nearest mm':>11}")
    print(f"{how:16}" + "".join(f"{value:>10.1f}" for value in row) + f"  (seed {seed})")


if __name__ == "__main__":
    main(sys.argv[1:])
