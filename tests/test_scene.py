import math
from types import SimpleNamespace

import pytest
import torch
from bodies import capsule_body

from posegen_ray.body.camera import project, rays, to_camera
from posegen_ray.body.skeleton import JOINT, LIMB_JOINTS
from posegen_ray.compose import compose_config
from posegen_ray.config import CameraRangeConfig, ValidityConfig
from posegen_ray.estimators.crop import CropSpec
from posegen_ray.generation.proposal import PoseBank, RandomSampler, SourceSampler
from posegen_ray.generation.validity import ValidityChecker
from posegen_ray.motion.clips import Clip
from posegen_ray.records import PoseBatch, RenderRequest, RenderResult
from posegen_ray.scene import (
    People,
    assemble,
    draw_samples,
    present_joints,
    propose_valid,
    seeded_backgrounds,
)
from posegen_ray.studio import Drawer

SPEC = CropSpec(size=64)


def bank() -> PoseBank:
    rng = torch.Generator().manual_seed(0)
    rotations = torch.eye(3).repeat(20, 24, 1, 1)
    from posegen_ray.body.rotation import from_axis_angle

    rotations = rotations @ from_axis_angle(0.15 * torch.randn(20, 24, 3, generator=rng))
    return PoseBank.from_clips([Clip("sway", PoseBatch(rotations, torch.zeros(20, 3)), 30.0)])


def people() -> People:
    shapes = torch.tensor([[0.0, 0.0], [0.8, 0.0]])
    return People(("small", "tall"), shapes, capsule_body())


def checker(present: int = 0) -> ValidityChecker:
    return ValidityChecker(
        ValidityConfig(present_joints=present),
        capsule_body(),
        people().shapes,
        bank().poses.rotations,
    )


def blank_row_one(request: RenderRequest) -> RenderResult:
    """A person who fills the picture, but for the second one, who is not drawn."""
    rgba = torch.ones(len(request), request.camera.height, request.camera.width, 4)
    rgba[1:2] = 0
    return RenderResult(rgba)


def dots(request: RenderRequest) -> RenderResult:
    """Draws a white disc, 4 cm wide, on the left wrist: cheap, and knows only bones and camera."""
    body = capsule_body()
    wrist = body.joint_template[JOINT["left_wrist"]]
    at = (request.bones[..., :3] @ wrist)[:, JOINT["left_wrist"]]
    at = at + request.bones[:, JOINT["left_wrist"], :, 3]
    origin, direction = rays(request.camera)
    gap = at[:, None, None] - origin[:, None, None]
    along = (gap * direction).sum(-1, keepdim=True) / direction.square().sum(-1, keepdim=True)
    inside = (gap - along * direction).norm(dim=-1) < 0.04
    return RenderResult(inside[..., None].float().expand(*inside.shape, 4))


def test_labels_project_onto_what_the_renderer_draws() -> None:
    proposal, clips = SourceSampler(bank(), 1)(6, torch.Generator().manual_seed(0))
    black = lambda seeds, size: torch.zeros(len(seeds), 3, size, size)  # noqa: E731
    samples, _ = draw_samples(proposal, clips, dots, people(), SPEC, black, range(6))
    grid_y, grid_x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    wrist = LIMB_JOINTS.index(JOINT["left_wrist"])
    for image, joints in zip(samples.images, samples.joints_2d, strict=True):
        weight = image[0].float()
        assert weight.sum() > 0
        centre = torch.stack([(grid_x * weight).sum(), (grid_y * weight).sum()]) / weight.sum()
        assert (centre - joints[wrist]).norm() < 1.0


def test_joints_are_in_crop_camera_axes_centred_between_the_hips() -> None:
    proposal, _ = SourceSampler(bank(), 2)(8, torch.Generator().manual_seed(1))
    scene = assemble(proposal, people(), SPEC)
    hips = scene.joints[:, [6, 7]].mean(1)
    assert hips.abs().max() < 1e-5
    limbs = scene.posed.joints[:, list(LIMB_JOINTS)]
    torch.testing.assert_close(scene.joints_2d, project(scene.crop, limbs))
    length = (scene.joints[:, 0] - scene.joints[:, 2]).norm(dim=1)
    world = (limbs[:, 0] - limbs[:, 2]).norm(dim=1)
    torch.testing.assert_close(length, world, atol=1e-5, rtol=0)
    depth = to_camera(scene.crop, limbs)[..., 2]
    torch.testing.assert_close(
        depth - depth[:, [6, 7]].mean(1, keepdim=True), scene.joints[..., 2], atol=1e-5, rtol=0
    )


def test_scene_is_differentiable_in_pose_and_view() -> None:
    proposal, _ = SourceSampler(bank(), 2)(4, torch.Generator().manual_seed(1))
    proposal.poses.rotations.requires_grad_()
    proposal.view.elevation.requires_grad_()
    proposal.view.distance.requires_grad_()
    scene = assemble(proposal, people(), SPEC)
    (scene.joints.square().sum() + scene.request.camera.translation.square().sum()).backward()
    for leaf in (proposal.poses.rotations, proposal.view.elevation, proposal.view.distance):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()
        assert leaf.grad.abs().max() > 0


def test_sample_depends_on_its_own_seed_only() -> None:
    sampler = RandomSampler(bank(), CameraRangeConfig(), 2)
    backgrounds = seeded_backgrounds("train")

    def draw(seeds: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        proposal, clips, _ = propose_valid(sampler, seeds, people(), checker())
        samples, _ = draw_samples(
            proposal, clips, dots, people(), SPEC, backgrounds, seeds, checker()
        )
        assert samples.seeds.tolist() == seeds
        return samples.images, samples.joints

    images, joints = draw([3, 4, 5, 6])
    for row, seed in ((1, 4), (3, 6)):
        alone_images, alone_joints = draw([seed])
        torch.testing.assert_close(alone_joints[0], joints[row], atol=1e-6, rtol=0)
        difference = (alone_images[0].int() - images[row].int()).abs()
        assert difference.float().mean() < 0.1


def test_invalid_proposals_are_left_out_and_counted() -> None:
    proposal, clips = SourceSampler(bank(), 2)(6, torch.Generator().manual_seed(1))
    proposal.view.framing[[1, 4]] = 0.6  # outside the frame
    samples, validity = draw_samples(
        proposal, clips, dots, people(), SPEC, seeded_backgrounds("train"), range(6), checker()
    )
    assert validity is not None
    assert validity.counts()["in_frame"] == 2
    assert samples.seeds.tolist() == [0, 2, 3, 5]
    assert len(samples.clips) == len(samples.subjects) == 4
    assert samples.view[:, 1].abs().max() < math.radians(21)


def test_people_whom_the_renderer_did_not_draw_are_left_out() -> None:
    proposal, clips = SourceSampler(bank(), 2)(5, torch.Generator().manual_seed(1))
    backgrounds = seeded_backgrounds("train")
    for joints, seeds in ((1, [0, 2, 3, 4]), (0, [0, 1, 2, 3, 4])):
        samples, validity = draw_samples(
            proposal, clips, blank_row_one, people(), SPEC, backgrounds, range(5), checker(joints)
        )
        assert validity is not None
        assert bool(validity.valid.all())
        assert samples.seeds.tolist() == seeds
        assert len(samples.clips) == len(samples.subjects) == len(samples.joints) == len(seeds)


def test_joints_are_present_where_the_person_covers_their_pixel() -> None:
    rgba = torch.zeros(1, 8, 8, 4)
    rgba[0, 2, 5, 3] = 0.9  # row 2, column 5
    places = torch.tensor([[[5.5, 2.5], [5.99, 2.01], [2.5, 5.5], [-3.0, 2.5]]])
    assert present_joints(rgba, places).tolist() == [2]


def test_people_who_were_not_drawn_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    known = SimpleNamespace(people=people(), checker=checker(1), crop=SPEC)
    monkeypatch.setattr("posegen_ray.studio.studio_of", lambda *_: known)
    renderer = SimpleNamespace(render_fn=lambda: blank_row_one)
    drawer = Drawer(compose_config(), (), renderer)  # type: ignore[arg-type]
    samples, counts = drawer._draw(SourceSampler(bank(), 2), [1, 2, 3, 4, 5])
    assert len(samples) == counts["valid"] == 4
    assert counts["absent"] == 1
