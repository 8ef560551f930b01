"""What the estimator makes of rendered proposals, and how its error flows back to them.

Takes a `render_fn`; knows nothing of Ray, of processes, or of where the pictures come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from posegen_ray.estimators.base import PoseEstimator, computing_in, limb_joints
from posegen_ray.generation import losses
from posegen_ray.generation.lighting import Lighting
from posegen_ray.generation.proposal import Proposal, View
from posegen_ray.records import PoseBatch, RenderFn
from posegen_ray.scene import People, assemble, picture, present_joints


@dataclass(frozen=True)
class Rules:
    """How the estimator's answers are judged."""

    through_image: bool = True  # the gradient takes the path of the image
    through_ground_truth: bool = True  # and that of the labels
    precision: str = "fp32"  # of the estimator
    joint_weights: Tensor | None = None  # [12] of a mean of 1


@dataclass(frozen=True)
class Answer:
    """The estimator's answer to a batch of rendered proposals."""

    error: Tensor  # [B] mm; differentiable in the proposals
    ambiguous: Tensor  # [B] bool
    present: Tensor  # [B] long: how many of the 12 limb joints the rendered person covers
    images: Tensor  # [B, 3, S, S] in [0, 1], detached
    truth: Tensor  # [B, 12, 3] metres, mid-hip at 0, detached


def judge(
    proposal: Proposal,
    people: People,
    render_fn: RenderFn,
    estimator: PoseEstimator,
    backgrounds: Tensor,  # [B, 3, S, S]
    rules: Rules = Rules(),
) -> Answer:
    """Renders proposals and measures the estimator's error on them.

    Differentiable in the proposal's poses, view and lighting by two paths, either of which can be
    cut: what the estimator sees (estimator, renderer), and what it should have answered (ground
    truth).
    """
    scene = assemble(proposal, people, estimator.crop)
    with torch.set_grad_enabled(torch.is_grad_enabled() and rules.through_image):
        rgba = render_fn(scene.request).rgba
        images = picture(scene, rgba, backgrounds)
    truth = scene.joints if rules.through_ground_truth else scene.joints.detach()
    with computing_in(rules.precision, images.device):
        estimate = estimator(images).full()
    answer = limb_joints(estimate, estimator.joint_names)
    return Answer(
        losses.joint_errors(answer, truth, rules.joint_weights),
        losses.ambiguous(answer.detach(), truth.detach()),
        present_joints(rgba.detach(), scene.joints_2d.detach()),
        images.detach(),
        truth.detach(),
    )


def judge_in_parts(
    size: int,
    proposal: Proposal,
    people: People,
    render_fn: RenderFn,
    estimator: PoseEstimator,
    backgrounds: Tensor,  # [B, 3, S, S]
    rules: Rules = Rules(),
) -> Answer:
    """`judge`, `size` proposals at a time: what a part needed is freed before the next begins.

    The answers and their gradients are those of `judge`, since no proposal's error depends on
    another. Differentiable once.
    """
    if size >= len(proposal):
        return judge(proposal, people, render_fn, estimator, backgrounds, rules)
    wanted = torch.is_grad_enabled()
    tensors = _tensors(proposal)
    answers, slopes = [], []
    for rows in torch.arange(len(proposal)).split(size):
        leaves = [tensor[rows].detach().requires_grad_(wanted) for tensor in tensors]
        part = _proposal(leaves, proposal.subjects[rows])
        answer = judge(part, people, render_fn, estimator, backgrounds[rows], rules)
        if wanted:
            total = answer.error.sum()
            slopes.append(torch.autograd.grad(total, leaves, materialize_grads=True))
        answers.append(replace(answer, error=answer.error.detach()))
    error = torch.cat([answer.error for answer in answers])
    if wanted:
        known = [torch.cat(parts) for parts in zip(*slopes, strict=True)]
        error = _Sloped.apply(error, known, *tensors)  # type: ignore[no-untyped-call]
    return Answer(
        error,
        torch.cat([answer.ambiguous for answer in answers]),
        torch.cat([answer.present for answer in answers]),
        torch.cat([answer.images for answer in answers]),
        torch.cat([answer.truth for answer in answers]),
    )


class _Sloped(torch.autograd.Function):
    """Errors [B] whose slopes, row by row, are known already."""

    @staticmethod
    def forward(ctx: Any, error: Tensor, slopes: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.slopes = slopes
        return error.view_as(error)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        pulled = [grad.reshape(-1, *[1] * (slope.dim() - 1)) * slope for slope in ctx.slopes]
        return None, None, *pulled


def _tensors(proposal: Proposal) -> list[Tensor]:
    parts = (proposal.poses, proposal.view, proposal.lighting)
    return [tensor for part in parts for tensor in vars(part).values()]


def _proposal(tensors: list[Tensor], subjects: Tensor) -> Proposal:
    """The inverse of `_tensors`."""
    poses, view, lighting = tensors[:2], tensors[2:-2], tensors[-2:]
    return Proposal(PoseBatch(*poses), View(*view), subjects, Lighting(*lighting))


@contextmanager
def frozen(estimator: PoseEstimator) -> Iterator[None]:
    """Within it the estimator's weights get no gradient and its layers do not train."""
    training = estimator.training
    wanted = [(p, p.requires_grad) for p in estimator.parameters()]
    estimator.eval()
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        estimator.train(training)


class _LimitGradient(torch.autograd.Function):
    """The identity, whose gradient is scaled down to a largest norm for each row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, largest: float) -> Tensor:
        ctx.largest = largest
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0]
        norm = grad.flatten(1).norm(dim=1).clamp_min(1e-12)
        scale = (ctx.largest / norm).clamp_max(1.0)
        return grad * scale.reshape(-1, *[1] * (grad.dim() - 1)), None


def limit_gradient(proposal: Proposal, largest: float) -> Proposal:
    """The same proposal; what flows back to each sample's pose, view and light is bounded in norm.

    An estimator's error is steep and rough on the scale of pixels: without a bound, a few samples
    outshout all others, and the slope over degrees and metres is lost.
    """

    def limited(rows: Tensor) -> Tensor:
        return _LimitGradient.apply(rows, largest)  # type: ignore[no-any-return, no-untyped-call]

    poses, view = proposal.poses, proposal.view
    angles = limited(torch.stack([view.azimuth, view.elevation, view.roll, view.distance], 1))
    # focal lengths are hundreds of pixels: bound their gradient in units of the focal length
    focal = view.focal.detach() * limited((view.focal / view.focal.detach())[:, None])[:, 0]
    lighting = proposal.lighting
    lights = limited(torch.cat([lighting.light, lighting.background[:, None]], 1))
    return Proposal(
        PoseBatch(limited(poses.rotations), poses.translation),
        View(angles[:, 0], angles[:, 1], angles[:, 2], angles[:, 3], focal, view.framing),
        proposal.subjects,
        Lighting(lights[:, :3], lights[:, 3]),
    )
