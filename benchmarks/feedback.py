"""Does the feedback work? The trained generator against the same one trained without feedback.

    python benchmarks/feedback.py [seed] [hydra overrides]

The estimator stays frozen. Prints, for samples of both generators: the estimator's median error
and their ratio (wanted: at least 1.2, inside the band), the share of valid samples (at least 90 %),
and the mean distance of the poses to the nearest real training pose and its ratio (at most 1.1).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from posegen_ray.adversary import Adversary
from posegen_ray.compose import compose_config
from posegen_ray.config import RunConfig
from posegen_ray.console import Console
from posegen_ray.estimators import PoseEstimator, build_estimator
from posegen_ray.evaluation.pose_sets import measure_poses, pose_features
from posegen_ray.jobs import FitPerson
from posegen_ray.judging import judge
from posegen_ray.records import RenderFn
from posegen_ray.scene import check_proposal, seeded_backgrounds
from posegen_ray.seeding import derive_seed, torch_stream
from posegen_ray.studio import LocalRenderer, Studio
from posegen_ray.subjects.wardrobe import people

STEPS = 120
SAMPLES = 240  # whose error is measured
POSES = 1200  # whose distance to real poses is measured


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    seed = int(arguments[0]) if arguments else 0
    config = compose_config(["runtime=inprocess", *arguments[1:]])
    console = Console()
    studio, render = prepare(config, console)
    estimator = build_estimator(config.estimator)
    rows = {}
    for name, weight in (("with feedback", config.feedback.weight), ("without", 0.0)):
        config.feedback.weight = weight
        rows[name] = measure(config, studio, render, estimator, seed, console, name)
    print(f"{'':16}{'median mm':>10}{'in band %':>10}{'valid %':>9}{'nearest mm':>11}")
    for name, row in rows.items():
        print(f"{name:16}" + "".join(f"{value:>10.1f}" for value in row))
    error, _, _, distance = (a / b for a, b in zip(*rows.values(), strict=True))
    print(f"ratio: error {error:.2f}, nearest real pose {distance:.2f} (seed {seed})")


def prepare(config: RunConfig, console: Console) -> tuple[Studio, RenderFn]:
    """The training people, fitted where they are missing, and their renderer."""
    jobs = [FitPerson(config, person.name) for person in people("train")]
    for job in jobs:
        if not job.done:
            console.say(f"fitting {job.name}")
            job.run(lambda _: None)
    studio = Studio(config, tuple((job.name, str(job.folder)) for job in jobs))
    return studio, LocalRenderer(config, studio.folders).render_fn()


def measure(
    config: RunConfig,
    studio: Studio,
    render: RenderFn,
    estimator: PoseEstimator,
    seed: int,
    console: Console,
    label: str,
) -> tuple[float, float, float, float]:
    """Median error (mm), share in the band (%), valid share (%), nearest-pose distance (mm)."""
    background = seeded_backgrounds("train")
    torch.manual_seed(derive_seed(seed, "initialise"))
    adversary = Adversary(
        studio.generator(), config.feedback, config.discriminator, studio.people, studio.checker
    )
    source = studio.band_sampler(adversary.generator)
    calibrate = torch_stream(seed, "calibrate")
    reference = adversary.calibrate(render, estimator, source, background, 64, calibrate)
    for step in console.track(range(STEPS), label, unit="step"):
        rng = torch_stream(seed, "step", step)
        adversary.step(config.training.batch_size, render, estimator, background, rng)
    rng = torch_stream(seed, "measure")
    with torch.no_grad():
        proposal = adversary.generator.sample(SAMPLES, rng)
        valid = check_proposal(proposal, studio.people, studio.checker).valid
        rows = valid.nonzero()[:, 0]
        errors = []
        for part in rows.split(16):
            pictures = background([derive_seed(seed, "background", int(i)) for i in part], 256)
            chosen = proposal[part.tolist()]
            errors.append(judge(chosen, studio.people, render, estimator, pictures).error)
        error = torch.cat(errors)
        poses = adversary.generator.sample(POSES, rng).poses.rotations
        rest = studio.body.rest_joints(studio.people.shapes.mean(0)[None])[0]
        made, real = (pose_features(r, rest) for r in (poses, studio.source.poses.rotations))
        measures = measure_poses("generated", made, "source", real)
    place = error / reference
    band = (place >= config.feedback.band_low) & (place <= config.feedback.band_high)
    return (
        float(error.median()),
        100 * float(band.float().mean()),
        100 * float(valid.float().mean()),
        measures.nearest_median_mm,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
