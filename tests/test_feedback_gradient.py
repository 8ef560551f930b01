"""The feedback's gradient, through BlazePose and a fitted NeRF, is the slope of the feedback."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import JOINT, LIMB_JOINT_NAMES
from posegen_ray.compose import compose_config
from posegen_ray.estimators.base import Estimate, PoseEstimator
from posegen_ray.estimators.registry import build_estimator
from posegen_ray.generation.lighting import Lighting
from posegen_ray.generation.proposal import Proposal, View
from posegen_ray.jobs import FitPerson
from posegen_ray.judging import judge
from posegen_ray.records import PoseBatch
from posegen_ray.scene import propose_valid, seeded_backgrounds
from posegen_ray.studio import LocalRenderer, Studio

# the network bends within 0.0003 rad: only over less than that do finite differences show its slope
STEP = 3e-5
MOVING = ("pelvis", "spine2", "left_hip", "right_knee", "left_shoulder")
PARAMETERS = 3 * len(MOVING) + 5 + 4  # of the camera, of the light
COMPARED = 14  # at least; a tenth to a quarter of them lie on kinks, which ones depends on the fit
AT_ONCE = 16


class InDoublePrecision(PoseEstimator):
    """An estimator whose rounding errors do not drown tiny differences."""

    joint_names = LIMB_JOINT_NAMES

    def __init__(self, estimator: PoseEstimator) -> None:
        super().__init__()
        self.name, self.crop = estimator.name, estimator.crop
        self.inner = deepcopy(estimator).double()

    def forward(self, images: Tensor) -> Estimate:
        return self.inner(images.double())  # type: ignore[no-any-return]


def moved(proposal: Proposal, by: Tensor) -> Proposal:
    """One proposal, many times: joints turned, camera and light moved, by each row [PARAMETERS]."""
    count = len(by)
    joints = torch.tensor([JOINT[name] for name in MOVING])
    turn = torch.zeros(count, 24, 3).index_copy(1, joints, by[:, :-9].unflatten(1, (-1, 3)))
    many = proposal[[0] * count]
    view = many.view
    return Proposal(
        PoseBatch(many.poses.rotations @ from_axis_angle(turn), many.poses.translation),
        View(
            view.azimuth + by[:, -9],
            view.elevation + by[:, -8],
            view.roll + by[:, -7],
            view.distance * (1 + by[:, -6]),
            view.focal * (1 + by[:, -5]),
            view.framing,
        ),
        many.subjects,
        Lighting(many.lighting.light + by[:, -4:-1], many.lighting.background + by[:, -1]),
    )


@pytest.mark.timeout(600)
def test_feedback_gradient_agrees_with_finite_differences() -> None:
    """Over joint angles, camera and light, by both paths (what is seen, and the ground truth)."""
    config = compose_config(["experiment=tiny", "runtime=inprocess", "renderer.early_stop=0.0"])
    job = FitPerson(config, "ada")
    if not job.done:  # no other test needed this person yet
        job.run(lambda _: None)
    studio = Studio(config, (("ada", str(job.folder)),))
    render = LocalRenderer(config, studio.folders).render_fn()
    estimator = InDoublePrecision(build_estimator(config.estimator))
    seeds = [1, 3, 5, 7]
    proposals, _, _ = propose_valid(studio.random_sampler(), seeds, studio.people, studio.checker)
    backgrounds = seeded_backgrounds("train")(seeds, estimator.crop.size)

    for row in range(len(seeds)):
        proposal = proposals[[row]]

        def error(by: Tensor, proposal: Proposal = proposal, row: int = row) -> Tensor:
            scenery = backgrounds[[row]].expand(len(by), -1, -1, -1)
            return judge(moved(proposal, by), studio.people, render, estimator, scenery).error

        by = torch.zeros(1, PARAMETERS, requires_grad=True)
        (gradient,) = torch.autograd.grad(error(by).sum(), by)
        ahead, behind = torch.eye(PARAMETERS), -torch.eye(PARAMETERS)
        nudges = STEP * torch.cat([ahead, behind, torch.zeros(1, PARAMETERS)])
        with torch.no_grad():
            there = torch.cat([error(part) for part in nudges.split(AT_ONCE)])
        ours = gradient[0].double()
        high, low, here = there[:PARAMETERS], there[PARAMETERS:-1], there[-1]
        slope = (high - low) / (2 * STEP)
        bend = (high + low - 2 * here).abs() / (2 * STEP)
        # at one of the network's kinks the two sides differ, and there is no slope to compare with;
        # a proposal that itself lies on one, which depends on the fit's last bits, is passed over
        smooth = bend < 0.1 * slope.abs().max()
        if int(smooth.sum()) < COMPARED:
            continue
        ours, slope = ours[smooth], slope[smooth]
        assert torch.nn.functional.cosine_similarity(ours, slope, dim=0) >= 0.95
        large = slope.abs() > slope.abs().median()
        assert (ours.sign() == slope.sign())[large].all()
        break
    else:
        pytest.fail("all four proposals lie on kinks")
