"""A fit learns how cloth moves where that is not how the skin moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bodies import capsule_body, capture_of, painted_subject
from torch import Tensor
from torch.nn.functional import normalize

from posegen_ray.body.camera import Camera
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import JOINT
from posegen_ray.config import FieldConfig, FitConfig, RegionConfig
from posegen_ray.subjects.build_lattice import build_lattice, mean_of_neighbours, restrict_lattice
from posegen_ray.subjects.deform import pose_normals, pose_vertices
from posegen_ray.subjects.fit import fit_subject
from posegen_ray.subjects.fit_motion import LatticeMotion
from posegen_ray.subjects.fit_voxels import VoxelFitter
from posegen_ray.subjects.render_fused import to_camera_bones
from posegen_ray.subjects.store import VoxelSubject

CONFIG = FitConfig(region=RegionConfig(shell=0.04, voxel=0.015), steps=120, ray_share=0.7)


def bent() -> Tensor:  # [1, 24, 3, 4]
    angles = torch.zeros(1, 24, 3)
    angles[0, JOINT["left_hip"], 0], angles[0, JOINT["right_elbow"], 1] = -0.9, 0.8
    return capsule_body()(from_axis_angle(angles), torch.zeros(1, 2)).bones


def a_camera() -> Camera:
    return capture_of(painted_subject(), 1, 32).view(0)


def dressed() -> VoxelSubject:
    """Trousers that divide themselves more evenly among the bones, and hang 2 cm lower."""
    subject = painted_subject()
    lattice = subject.lattice
    legs = lattice.canonical[:, 1] < 0.8
    weights, rest = lattice.weights.clone(), lattice.rest.clone()
    weights[legs] = weights[legs].sqrt() / weights[legs].sqrt().sum(1, keepdim=True)
    rest[legs, 1] -= 0.02
    return replace(subject, lattice=replace(lattice, weights=weights, rest=rest))


def test_without_corrections_it_is_linear_blend_skinning() -> None:
    lattice = painted_subject().lattice
    motion = LatticeMotion(lattice, 0.1, 0.01, 0.1)
    points, normals = motion.pose(bent(), camera := a_camera())
    expected = pose_vertices(lattice, to_camera_bones(camera, bent()))
    torch.testing.assert_close(points, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(normals, pose_normals(lattice, bent()), rtol=0, atol=1e-5)


def test_a_step_moves_vertices_towards_where_they_belong() -> None:
    """Also through a neighbour: a vertex without a gradient of its own is taken along."""
    lattice = painted_subject().lattice
    motion = LatticeMotion(lattice, 0.05, 1e-3, 0.0)
    camera = a_camera()
    goal = pose_vertices(dressed().lattice, to_camera_bones(camera, bent()))
    hidden = torch.rand(len(lattice.rest), generator=torch.Generator().manual_seed(0)) < 0.3

    def distance() -> Tensor:
        return (motion.pose(bent(), camera)[0] - goal).norm(dim=-1)[0]

    before = distance().detach()
    for step in range(60):
        distance()[~hidden].square().sum().backward()
        motion.step(0.05 ** (step / 60))
    after = distance().detach()
    legs = before > 0.005
    assert after[legs & ~hidden].mean() < 0.2 * before[legs & ~hidden].mean()
    assert after[legs & hidden].mean() < 0.4 * before[legs & hidden].mean()
    assert after[~legs].mean() < 1e-3


def test_gradients_are_mixed_with_neighbours_in_four_rounds() -> None:
    lattice = painted_subject().lattice
    mean = mean_of_neighbours(lattice.tets.numpy())
    gradient = torch.randn(len(lattice.rest), 30, generator=torch.Generator().manual_seed(0))
    expected = gradient.double().numpy()
    for _ in range(4):
        expected = 0.5 * expected + 0.5 * (mean @ expected)
    ours = LatticeMotion(lattice, 0.1, 0.01, 0.1)._spread(gradient)
    torch.testing.assert_close(ours, torch.from_numpy(expected).float(), rtol=0, atol=1e-5)


def test_no_rate_no_correction() -> None:
    lattice = painted_subject().lattice
    motion = LatticeMotion(lattice, 0.0, 0.0, 0.0)
    points, normals = motion.pose(bent(), a_camera())
    (points.square().sum() + normals[..., 0].sum()).backward()
    motion.step(1.0)
    assert torch.equal(motion.lattice().rest, lattice.rest)
    torch.testing.assert_close(motion.lattice().weights, lattice.weights, rtol=0, atol=1e-6)
    torch.testing.assert_close(motion.lattice().normals, lattice.normals, rtol=0, atol=1e-6)


def test_normals_turn_to_where_the_light_says() -> None:
    lattice = painted_subject().lattice
    motion = LatticeMotion(lattice, 0.0, 0.0, 0.05)
    tilt = normalize(lattice.normals + torch.tensor([0.0, 0.5, 0.0]), dim=-1)
    goal = pose_normals(replace(lattice, normals=tilt), bent())

    def distance() -> Tensor:
        return (motion.pose(bent(), a_camera())[1] - goal).norm(dim=-1).mean()

    before = float(distance().detach())
    for step in range(60):
        distance().backward()
        motion.step(0.05 ** (step / 60))
    assert float(distance().detach()) < 0.25 * before
    assert torch.equal(motion.lattice().rest, lattice.rest)


def test_a_mean_of_neighbours_keeps_constants_and_ignores_strangers() -> None:
    mean = mean_of_neighbours(torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]]).numpy())
    assert mean @ torch.ones(8).numpy() == pytest.approx([1.0] * 8)
    assert mean @ torch.arange(8.0).numpy() == pytest.approx(
        [2.0, 5 / 3, 4 / 3, 1.0, 6.0, 17 / 3, 16 / 3, 5.0]
    )


def test_a_restricted_lattice_moves_what_is_left_as_before() -> None:
    subject = dressed()
    field, lattice = subject.field, subject.lattice
    upper = field.stored & (torch.arange(field.index.shape[1]) > field.index.shape[1] // 2)[:, None]
    rest = field.restricted(upper)
    part = restrict_lattice(lattice, rest)
    plain = build_lattice(capsule_body(), torch.zeros(2), rest)
    assert sorted(part.cubes.tolist()) == sorted(plain.cubes.tolist())
    assert len(part.tets) == 5 * len(part.cubes) < len(lattice.tets)
    posed = pose_vertices(lattice, bent())[0]
    ours = pose_vertices(part, bent())[0]
    # the same cube, found in both, has its corners in the same places
    row = {tuple(cube): i for i, cube in enumerate(lattice.cubes.tolist())}
    for number, cube in enumerate(part.cubes.tolist()):
        old = lattice.tets[5 * row[tuple(cube)] : 5 * row[tuple(cube)] + 5].long()
        new = part.tets[5 * number : 5 * number + 5].long()
        assert torch.equal(ours[new], posed[old])
    # faces look at each other
    across = part.neighbours.long()
    inner = across >= 0
    back = across[across.clamp_min(0)] == torch.arange(len(across)).view(-1, 1, 1)
    assert bool(back.any(-1)[inner].all())


def test_a_fit_learns_cloth_that_does_not_move_as_the_skin() -> None:
    capture = capture_of(dressed(), 24, 96)
    still = replace(CONFIG, weight_rate=0.0, shift_rate=0.0, turn_rate=0.0)
    plain, learned = (
        fit_subject(capture, capsule_body(), FieldConfig(), config, 0).manifest.psnr_person
        for config in (still, CONFIG)
    )
    assert learned > plain + 0.5


def test_a_fit_kept_before_or_after_pruning_goes_on_alike() -> None:
    capture = capture_of(painted_subject(), 24, 96)
    config = replace(CONFIG, steps=20, prune_at=0.2)

    def run(fitter: VoxelFitter, until: int) -> VoxelFitter:
        while fitter.done < until:
            fitter.step()
        return fitter

    whole = run(VoxelFitter(capture, capsule_body(), config, 0), 8)
    before = len(whole.model().values)
    run(whole, 12)
    assert len(whole.model().values) < before
    for pause in (4, 6, 8, 10):  # empty places go after 4 and after 8
        half = run(VoxelFitter(capture, capsule_body(), config, 0), pause)
        other = VoxelFitter(capture, capsule_body(), config, 0)
        other.resume(half.state())
        found, wanted = run(other, 12).result()[0], whole.result()[0]
        assert torch.equal(found["field"].values, wanted["field"].values)
        assert torch.equal(found["lattice"].weights, wanted["lattice"].weights)
