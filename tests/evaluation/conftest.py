"""Made-up test sets: a stick body in random poses, seen by real cameras, with drawn images."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw

from posegen_ray.body.camera import orbit, project, to_camera
from posegen_ray.body.model import BodyModel
from posegen_ray.body.rotation import about_axis, from_axis_angle
from posegen_ray.body.skeleton import LIMB_EDGES, LIMB_JOINTS, NUM_JOINTS
from posegen_ray.evaluation.store import RenderSpeed, ReportInputs
from posegen_ray.records import Samples

# metres, T-pose, in the order of skeleton.JOINT_NAMES
_REST = torch.tensor(
    [
        [0, 0.95, 0], [0.09, 0.9, 0], [-0.09, 0.9, 0], [0, 1.05, 0], [0.1, 0.5, 0], [-0.1, 0.5, 0],
        [0, 1.18, 0], [0.1, 0.08, 0], [-0.1, 0.08, 0], [0, 1.3, 0], [0.1, 0, 0.12], [-0.1, 0, 0.12],
        [0, 1.5, 0], [0.07, 1.42, 0], [-0.07, 1.42, 0], [0, 1.65, 0], [0.18, 1.42, 0],
        [-0.18, 1.42, 0], [0.45, 1.42, 0], [-0.45, 1.42, 0], [0.7, 1.42, 0], [-0.7, 1.42, 0],
        [0.78, 1.42, 0], [-0.78, 1.42, 0],
    ]
)  # fmt: skip
_CLIPS = {
    "source": ("walk", "run", "jump"),
    "wild": ("walk", "run", "jump"),
    "ood": ("cartwheel", "backflip", "crawl", "spinkick", "roll"),
}
_TINTS = ("#8d5a3b", "#c58c6b", "#5c3a24")


def _stick_body() -> BodyModel:
    return BodyModel(
        "stick",
        template=_REST,
        shape_directions=torch.zeros(NUM_JOINTS, 3, 1),
        joint_template=_REST,
        joint_directions=torch.zeros(NUM_JOINTS, 3, 1),
        skinning_weights=torch.eye(NUM_JOINTS),
        faces=torch.tensor([[0, 1, 2]]),
    )


def _picture(pixels: torch.Tensor, size: int, tint: str, backdrop: int) -> torch.Tensor:
    shade = np.linspace(90 + backdrop, 150 + backdrop, size)[:, None, None]
    ground = np.broadcast_to(shade * [0.8, 0.9, 1.0], (size, size, 3)).clip(0, 255)
    picture = Image.fromarray(ground.astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    points = [tuple(point) for point in pixels.tolist()]
    pen.polygon([points[i] for i in (0, 1, 7, 6)], fill="#33507a")
    for first, second in LIMB_EDGES:
        pen.line([points[first], points[second]], fill=tint, width=max(size // 18, 2))
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)


def make_samples(count: int, sets: tuple[str, ...], seed: int = 0, size: int = 64) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    clips, bases = [], []
    for row, name in enumerate(sets):
        clips.append(_CLIPS[name][row % len(_CLIPS[name])])
        # poses of one clip resemble each other
        clip_seed = torch.Generator().manual_seed(sum(map(ord, clips[-1])))
        bases.append(0.45 * torch.randn(NUM_JOINTS, 3, generator=clip_seed))
    jitter = 0.15 * torch.randn(count, NUM_JOINTS, 3, generator=generator)
    rotations = from_axis_angle(torch.stack(bases) + jitter)
    facing = torch.rand(count, generator=generator) * 6.28
    rotations[:, 0] = about_axis(1, facing) @ rotations[:, 0]
    azimuth = torch.rand(count, generator=generator) * 6.28 - 3.14
    steep = torch.tensor([0.1 if name == "source" else 0.6 for name in sets])
    elevation = steep * torch.randn(count, generator=generator).clamp(-1.8, 1.8)
    roll = 0.1 * torch.randn(count, generator=generator)
    body = _stick_body()(rotations, torch.zeros(count, 1))
    limbs = body.joints[:, list(LIMB_JOINTS)]
    camera = orbit(
        limbs[:, 6:8].mean(1),
        azimuth + facing,
        elevation,
        roll,
        torch.full((count,), 3.5),
        torch.full((count,), 1.6 * size),
        torch.full((count, 2), size / 2),
        size,
        size,
    )
    local = to_camera(camera, limbs)
    pixels = project(camera, limbs)
    return Samples(
        images=torch.stack(
            [
                _picture(pixels[i], size, _TINTS[(i // 7) % 3], int(40 * torch.rand(1).item()))
                for i in range(count)
            ]
        ),
        joints=local - local[:, 6:8].mean(1, keepdim=True),
        joints_2d=pixels,
        rotations=rotations,
        shape=torch.zeros(count, 1),
        camera=camera,
        view=torch.stack([azimuth, elevation, roll], -1),
        subjects=tuple(f"person_{(i // 7) % 3}" for i in range(count)),
        clips=tuple(clips),
        seeds=torch.arange(count),
    )


def make_inputs(count: int = 60, seeds: tuple[int, ...] = (0, 1), size: int = 64) -> ReportInputs:
    """A comparison in which PoseGen halves the baseline's error and random helps a little."""
    names = ("source", "wild", "ood", "ood")
    sets = tuple(names[row % len(names)] for row in range(count))
    samples = make_samples(count, sets, size=size)
    generator = torch.Generator().manual_seed(1)
    shared = torch.randn(count, 12, 3, generator=generator)
    scales = {"baseline": 0.1, "source_adapted": 0.095, "random": 0.085, "posegen": 0.05}
    predictions = {}
    for arm, scale in scales.items():
        noise = shared + 0.3 * torch.randn(len(seeds), count, 12, 3, generator=generator)
        predictions[arm] = (samples.joints + scale * noise).float()
    steps = np.arange(0, 300, 10)
    rows = []
    for arm in ("source_adapted", "random", "posegen"):
        for seed in seeds:
            wobble = np.random.default_rng(seed).normal(size=len(steps))
            rows.append(
                pd.DataFrame(
                    {
                        "step": steps,
                        "arm": arm,
                        "seed": seed,
                        "fine_tuning_loss": 0.12 * np.exp(-steps / 90) + 0.05 + 0.003 * wobble,
                        "validation_mpjpe_mm": 150 - 20 * (1 - np.exp(-steps / 80)) + wobble,
                    }
                )
            )
    rows.append(
        pd.DataFrame(
            {
                "step": steps,
                "arm": "generator",
                "seed": 0,
                "feedback": 0.3 + 0.001 * steps,
                "discriminator_loss": 0.7 - 0.0008 * steps,
            }
        )
    )
    return ReportInputs(
        estimator="blazepose_full",
        seeds=seeds,
        predictions=predictions,
        samples=samples,
        sets=sets,
        train_images=3000,
        timing_s={"fit": 42.0, "train": 210.5, "fine-tune": 180.0, "evaluate": 33.0},
        versions={"python": "3.11", "torch": "2.13"},
        render=RenderSpeed(160.0, 85.0),
        rejected={"joint_limits": 120, "self_penetration": 45, "out_of_frame": 12},
        history=pd.concat(rows, ignore_index=True),
        generated=samples.images[:10],
        settings={"fine-tuning steps per arm": "1,100"},
    )


@pytest.fixture(scope="session")
def inputs() -> ReportInputs:
    return make_inputs()


@pytest.fixture(scope="session")
def inputs_of_one_seed() -> ReportInputs:
    return make_inputs(seeds=(3,))


@pytest.fixture(scope="session")
def samples(inputs: ReportInputs) -> Samples:
    return inputs.samples
