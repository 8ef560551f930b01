"""Trains a generator and an estimator for a few steps on a device; says what became of them.

`python train_elsewhere.py FILE (steps | jobs | loop) DEVICE ...` is what test_devices.py runs in a
process of its own.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from test_adversary import Guesser, bank, grey, people, seeded, soft_dots
from test_finetune import CONFIG, Toy, make_samples

from posegen_ray.adversary import Adversary
from posegen_ray.config import DiscriminatorConfig, FeedbackConfig, GeneratorConfig, ValidityConfig
from posegen_ray.estimators.base import predict
from posegen_ray.estimators.online import FineTuner
from posegen_ray.generation.generator import Generator
from posegen_ray.generation.proposal import SourceSampler
from posegen_ray.generation.validity import ValidityChecker
from posegen_ray.records import RenderRequest, RenderResult
from posegen_ray.scene import check_proposal

STEPS = 2


def far_renderer(request: RenderRequest) -> RenderResult:
    """Renders on the CPU and answers where it was asked, as render servers do."""
    home = request.bones.device
    there = RenderRequest(request.subjects, request.bones.cpu(), request.camera.to("cpu"))
    return RenderResult(soft_dots(there).rgba.to(home))


def train(device: torch.device, mode: str, gradient: str, accumulate: int, precision: str):
    """All that two steps of each kind leave: metrics, weights and optimisers."""
    torch.manual_seed(0)
    cast = people().to(device)
    real = bank().poses.rotations
    checker = ValidityChecker(ValidityConfig(), people().body, people().shapes, real)
    config = GeneratorConfig(mode=mode, learn_subject=True)
    generator = Generator(
        config, bank(), 2, lambda proposal: check_proposal(proposal, cast, checker).valid
    )
    feedback = FeedbackConfig(estimator_gradient=gradient, critic_batch=16)
    made = Adversary(
        generator.to(device), feedback, DiscriminatorConfig(history=16), cast, checker,
        accumulate=accumulate, precision=precision,
    )  # fmt: skip
    guesser = Guesser().to(device)
    made.calibrate(far_renderer, guesser, SourceSampler(bank(), 2), grey, 8, seeded(0))
    rows = [
        made.step(6, far_renderer, guesser, grey, seeded(number)).as_dict()
        for number in range(1, 1 + STEPS)
    ]
    again = Adversary(generator, feedback, DiscriminatorConfig(history=16), cast, checker)
    again.load_state_dict(made.state_dict())

    toy = Toy().to(device)
    tuner = FineTuner(toy, replace(CONFIG, online_cut="image"), None, "", accumulate, precision)
    losses = [tuner.step(make_samples(6, seed=number)) for number in range(STEPS)]
    tuner.load_state_dict(tuner.state_dict())
    answers = predict(toy, make_samples(4).images)
    trained = [*generator.parameters(), *made.discriminator.parameters(), *toy.parameters()]
    assert {tensor.device.type for tensor in trained} == {device.type}
    return [rows, losses, made.state_dict(), again.state_dict(), tuner.state_dict(), answers]


def fine_tune(device: str):
    """What jobs keep of source and test images, and an arm's weights and answers."""
    from test_finetune import Toy

    from posegen_ray.compose import compose_config
    from posegen_ray.config import RuntimeConfig
    from posegen_ray.jobs import (
        FineTune,
        KeepSourceFeatures,
        KeepTestFeatures,
        Predict,
        Tests,
        starting_estimator,
    )
    from posegen_ray.local import Held

    RuntimeConfig.job_device = property(lambda self: device)  # type: ignore[assignment, method-assign]
    stages = ", ".join(f"{{cut: {cut}, steps: 3, batch_size: 4}}" for cut in ("image", "late"))
    config = compose_config(
        [
            *("experiment=tiny", "runtime=inprocess", "finetune.online_cut=late"),
            *("estimator=custom", f"estimator.target={Toy.__module__}:{Toy.__name__}"),
            f"finetune.stages=[{stages}]",
        ]
    )
    images = Held(make_samples(6, seed=5).images)
    used = {parameter.device.type for parameter in starting_estimator(config, None).parameters()}
    assert used == {torch.device(device).type}
    with tempfile.TemporaryDirectory() as name:
        source, looked = f"{name}/source", f"{name}/looked"
        before = Predict(config, None, images, range(6)).run(lambda _: None)
        KeepSourceFeatures(config, None, 0, Held(make_samples(8)), source).run(lambda _: None)
        KeepTestFeatures(config, images, looked).run(lambda _: None)
        arm = [Held(make_samples(8, seed=1))]
        job = FineTune(config, None, 0, source, arm, Tests(images, looked))
        weights, answers = job.run(lambda _: None)
    assert answers is not None
    assert not torch.equal(before, answers)
    return [weights, before, answers]


def numbers(value: object) -> list[torch.Tensor]:
    """All numbers within, on the CPU."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in numbers(item)]
    if not isinstance(value, int | float | torch.Tensor):
        return []
    return [torch.as_tensor(value).detach().cpu()]


def whole_loop(device: str):
    """A tiny training to its end, then resumed: the calibration, and the first step's metrics.

    Later steps choose among candidates, and take slopes of a network with kinks: rounding grows.
    """
    from posegen_ray.compose import compose_config
    from posegen_ray.console import Console
    from posegen_ray.context import LocalContext
    from posegen_ray.local import LocalBackend, LocalStream
    from posegen_ray.run import Run
    from posegen_ray.training import AdversarialTraining

    config = compose_config(["experiment=tiny", "runtime=inprocess", "training.accumulate=2"])
    with tempfile.TemporaryDirectory() as name, LocalBackend(config, Console(True)) as backend:
        folder = Path(name)
        run = Run(config, folder, backend, Console(True))
        drawer = run.drawing.drawer()
        loop = AdversarialTraining(
            config, drawer.folders, drawer.renderer, LocalStream(config, drawer, 0),
            run.drawing.joint_map(), 0, str(folder / "tensorboard"), lambda _: None,
        )  # fmt: skip
        result = loop.run(LocalContext(folder / "kept", device=device))
        resumed = loop.run(LocalContext(folder / "kept", resume=True, device=device))
    assert result is not None
    assert resumed is not None
    assert all(torch.isfinite(p).all() for state in result.generators for p in state.values())
    for name, weights in result.estimator.items():
        assert torch.equal(weights, resumed.estimator[name])
    return [result.reference_mm, result.history[0]]


CASES = (("residual", "image", 3, "fp32"), ("noise", "score", 1, "fp32"))

if __name__ == "__main__":
    file, what, *devices = sys.argv[1:]
    if "away" in devices:
        import other_device

        other_device.register()
    if what == "jobs":
        results = {d: [numbers(fine_tune(d))] for d in devices}
    elif what == "loop":
        results = {d: [numbers(whole_loop(d))] for d in devices}
    else:
        results = {d: [numbers(train(torch.device(d), *case)) for case in CASES] for d in devices}
    torch.save(results, file)
