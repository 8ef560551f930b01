"""Scene assembly, once for training, adversarial steps and tests: a proposal becomes posed bodies,
the full frame's camera, the estimator's crop camera, a render request, and labels.

Knows nothing of Ray. B is the batch; metres, radians, pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posegen_ray.body.camera import Camera, project, to_camera
from posegen_ray.body.model import BodyModel, PosedBody
from posegen_ray.body.skeleton import JOINT, LIMB_JOINTS
from posegen_ray.estimators.crop import CropSpec, estimator_crop
from posegen_ray.generation.proposal import (
    Proposal,
    ProposalSampler,
    concatenate_proposals,
    facing,
    scene_camera,
    wrap,
)
from posegen_ray.generation.validity import Validity, ValidityChecker, concatenate_validity
from posegen_ray.records import RenderFn, RenderRequest, Samples
from posegen_ray.seeding import torch_stream
from posegen_ray.subjects.background import backgrounds, composite

# (one seed a picture, its edge in pixels) -> [B, 3, size, size] in [0, 1]
BackgroundFn = Callable[[Sequence[int], int], Tensor]


def seeded_backgrounds(split: str, plain: bool = False) -> BackgroundFn:
    """Backgrounds of a split (train, val, test); each depends on its own seed alone.

    Args:
        plain: of one colour each, instead of pictures.
    """

    def draw(seeds: Sequence[int], size: int) -> Tensor:
        if plain:
            colours = [torch.rand(3, generator=torch_stream(seed, "plain")) for seed in seeds]
            return torch.stack(colours)[:, :, None, None].expand(-1, -1, size, size)
        return torch.cat([backgrounds(split, 1, size, seed) for seed in seeds])

    return draw


@dataclass(frozen=True)
class People:
    """The subjects that proposals choose from, and the body they share."""

    names: tuple[str, ...]  # N
    shapes: Tensor  # [N, S]
    body: BodyModel

    def to(self, device: torch.device) -> People:
        """The same people elsewhere, with a body of their own: others use this one where it is."""
        if self.shapes.device == device:
            return self
        return People(self.names, self.shapes.to(device), copy.deepcopy(self.body).to(device))


@dataclass(frozen=True)
class Scene:
    """All that is known before rendering. Differentiable in the proposal's poses, view and
    lighting."""

    posed: PosedBody
    frame: Camera  # the full frame
    crop: Camera  # what the estimator sees
    request: RenderRequest  # with the crop camera
    background: Tensor  # [B] factor of its brightness
    joints: Tensor  # [B, 12, 3] metres, crop-camera axes, mid-hip at 0
    joints_2d: Tensor  # [B, 12, 2] pixels of the crop


def mid_hip(
    joints: Tensor,  # [B, 24, 3]
) -> Tensor:  # [B, 3]
    """Between the hip joints: what cameras look at and labels are centred on."""
    return joints[:, [JOINT["left_hip"], JOINT["right_hip"]]].mean(1)


def pose_people(proposal: Proposal, people: People) -> PosedBody:
    """The posed bodies of a proposal, each with its subject's shape."""
    shapes = people.shapes[proposal.subjects]
    return people.body(proposal.poses.rotations, shapes, proposal.poses.translation)  # type: ignore[no-any-return]


def assemble(proposal: Proposal, people: People, spec: CropSpec) -> Scene:
    """Builds the scene of each proposal. Differentiable in poses, view and lighting."""
    posed = pose_people(proposal, people)
    frame = scene_camera(proposal.view, mid_hip(posed.joints))
    crop = estimator_crop(frame, posed.joints, spec)
    limbs = posed.joints[:, list(LIMB_JOINTS)]
    centre = to_camera(crop, mid_hip(posed.joints)[:, None])
    names = tuple(people.names[row] for row in proposal.subjects.tolist())
    return Scene(
        posed=posed,
        frame=frame,
        crop=crop,
        request=RenderRequest(names, posed.bones, crop, proposal.lighting.light),
        background=proposal.lighting.background,
        joints=to_camera(crop, limbs) - centre,
        joints_2d=project(crop, limbs),
    )


def picture(
    scene: Scene,
    rgba: Tensor,  # [B, S, S, 4] what a renderer made of the scene's request
    backgrounds: Tensor,  # [B, 3, S, S]
) -> Tensor:  # [B, 3, S, S] in [0, 1]
    """What the camera takes. Differentiable in everything, but where it is overexposed."""
    behind = backgrounds.to(rgba) * scene.background[:, None, None, None]
    return composite(rgba, behind.clamp(0, 1)).clamp(0, 1)


@torch.no_grad()
def check_proposal(proposal: Proposal, people: People, checker: ValidityChecker) -> Validity:
    """The validity of each proposal; nothing is rendered."""
    posed = pose_people(proposal, people)
    frame = scene_camera(proposal.view, mid_hip(posed.joints))
    return checker.check(proposal, posed, frame)


@torch.no_grad()
def propose_valid(
    sampler: ProposalSampler,
    seeds: Sequence[int],
    people: People,
    checker: ValidityChecker,
    attempts: int = 8,
) -> tuple[Proposal, tuple[str, ...], Validity]:
    """One valid proposal for each seed, within `attempts`; and the validity of all that was drawn.

    A seed's proposal depends on the seed alone, whatever else is in the batch. Seeds without a
    valid proposal keep their last one, which `draw_samples` then rejects.
    """
    kept: dict[int, tuple[Proposal, str]] = {}
    judged: list[Validity] = []
    waiting = list(range(len(seeds)))
    for attempt in range(attempts):
        drawn = [sampler(1, torch_stream(seeds[i], "proposal", attempt)) for i in waiting]
        proposals = concatenate_proposals([proposal for proposal, _ in drawn])
        validity = check_proposal(proposals, people, checker)
        judged.append(validity)
        for index, (proposal, names) in zip(waiting, drawn, strict=True):
            kept[index] = (proposal, names[0])
        good = validity.valid.tolist()
        waiting = [index for index, valid in zip(waiting, good, strict=True) if not valid]
        if not waiting:
            break
    rows = [kept[index] for index in range(len(seeds))]
    proposal = concatenate_proposals([row for row, _ in rows])
    return proposal, tuple(name for _, name in rows), concatenate_validity(judged)


@torch.no_grad()
def draw_samples(
    proposal: Proposal,
    clips: Sequence[str],  # B
    render_fn: RenderFn,
    people: People,
    spec: CropSpec,
    background: BackgroundFn,
    seeds: Sequence[int],  # B, one a sample
    checker: ValidityChecker | None = None,
) -> tuple[Samples, Validity | None]:
    """Renders and labels the valid proposals; the others are left out.

    With a checker those are left out, too, whose person the renderer did not draw
    (validity.present_joints).

    Returns the samples, in order, and the validity of all proposals (None without a checker).
    Raises what render_fn raises.
    """
    validity = None
    rows = list(range(len(proposal)))
    if checker is not None:
        validity = check_proposal(proposal, people, checker)
        rows = validity.valid.nonzero()[:, 0].tolist()
    kept = proposal[rows]
    scene = assemble(kept, people, spec)
    kept_seeds = [int(seeds[row]) for row in rows]
    present = torch.zeros(0, dtype=torch.long)
    if rows:
        rgba = render_fn(scene.request).rgba
        pictures = picture(scene, rgba, background(kept_seeds, spec.size))
        present = present_joints(rgba, scene.joints_2d)
    else:
        pictures = torch.zeros(0, 3, spec.size, spec.size)
    view = torch.stack(
        [
            wrap(kept.view.azimuth - facing(kept.poses.rotations)),
            kept.view.elevation,
            kept.view.roll,
        ],
        1,
    )
    samples = Samples(
        images=(pictures * 255).round().to(torch.uint8),
        joints=scene.joints,
        joints_2d=scene.joints_2d,
        rotations=kept.poses.rotations,
        shape=people.shapes[kept.subjects],
        camera=scene.crop,
        view=view,
        subjects=scene.request.subjects,
        clips=tuple(clips[row] for row in rows),
        seeds=torch.tensor(kept_seeds, dtype=torch.int64),
    )
    if checker is not None:
        drawn = (present >= checker.config.present_joints).nonzero()[:, 0].tolist()
        if len(drawn) < len(samples):
            samples = samples[drawn]
    return samples, validity


def present_joints(
    rgba: Tensor,  # [B, S, S, 4]
    joints_2d: Tensor,  # [B, J, 2] pixels
) -> Tensor:  # [B] long
    """How many joints lie where the person was drawn: a good renderer leaves out none."""
    size = rgba.shape[1]
    columns, rows = (joints_2d.floor().long().clamp(0, size - 1)).unbind(-1)
    batch = torch.arange(len(rgba), device=rgba.device)[:, None]
    return (rgba[batch, rows, columns, 3] > 0.5).sum(1)
