"""The sparse grid: numbering, restriction, interpolation, and the body it starts from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import warp as wp
from bodies import capsule_body
from scipy.interpolate import RegularGridInterpolator
from scipy.spatial import cKDTree

from posegen_ray.config import RegionConfig
from posegen_ray.subjects import fit_kernels
from posegen_ray.subjects.body_field import _distance, body_field
from posegen_ray.subjects.canonical import canonical_body
from posegen_ray.subjects.field import ABSENT, Field, number
from posegen_ray.subjects.render_reference import lookup
from posegen_ray.subjects.warp_cache import prepare


def _random_field(stream: torch.Generator, voxel: float = 1.0) -> Field:
    stored = torch.rand(7, 6, 5, generator=stream) < 0.6
    values = torch.randn(int(stored.sum()), 4, generator=stream)
    return Field(values, number(stored), (-0.3, 0.1, 2.0), voxel)


def test_rows_follow_memory_order() -> None:
    field = _random_field(torch.Generator().manual_seed(0))
    rows = field.index[field.stored]
    assert torch.equal(rows, torch.arange(len(field.values), dtype=rows.dtype))
    assert (field.index[~field.stored] == -1).all()


def test_interpolation_is_exact_for_linear_functions() -> None:
    stream = torch.Generator().manual_seed(1)
    whole = torch.ones(7, 6, 5, dtype=torch.bool)
    field = Field(torch.zeros(210, 4), number(whole), (-0.3, 0.1, 2.0), 0.25)
    slope = torch.randn(3, 4, generator=stream)
    field = replace(field, values=field.positions() @ slope)
    places = torch.rand(500, 3, generator=stream) * torch.tensor([1.5, 1.25, 1.0])
    places = places + torch.tensor(field.low)
    torch.testing.assert_close(lookup(field, places), places @ slope, atol=1e-5, rtol=1e-5)


def test_interpolation_agrees_with_scipy_where_vertices_are_missing() -> None:
    stream = torch.Generator().manual_seed(5)
    field = _random_field(stream, voxel=0.25)
    grid = torch.tensor(ABSENT).repeat(9, 8, 7, 1)  # the field and a rim of nothing
    grid[1:8, 1:7, 1:6][field.stored] = field.values
    places = torch.rand(500, 3, generator=stream) * torch.tensor([8.0, 7.0, 6.0]) - 1
    axes = tuple(torch.arange(-1.0, n - 1).numpy() for n in grid.shape[:3])
    expected = RegularGridInterpolator(axes, grid.numpy())(places.numpy())
    ours = lookup(field, places * 0.25 + torch.tensor(field.low))
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-4)


def test_restriction_keeps_the_values_of_what_stays() -> None:
    stream = torch.Generator().manual_seed(2)
    field = _random_field(stream)
    fewer = field.restricted(torch.rand(field.index.shape, generator=stream) < 0.5)
    before = {tuple(p): v for p, v in zip(field.positions().tolist(), field.values, strict=True)}
    assert 0 < len(fewer.values) < len(field.values)
    for place, value in zip(fewer.positions().tolist(), fewer.values, strict=True):
        assert torch.equal(before[tuple(place)], value)


def test_neighbours_are_one_cell_apart() -> None:
    field = replace(_random_field(torch.Generator().manual_seed(3)), low=(0.0, 0.0, 0.0))
    places, neighbours = field.positions(), field.neighbours()
    for axis in range(3):
        has = neighbours[:, axis] >= 0
        step = places[neighbours[has, axis].long()] - places[has]
        assert torch.equal(step, torch.eye(3)[axis].expand_as(step))


def test_blocks_hold_the_vertices_of_their_cube() -> None:
    field = replace(_random_field(torch.Generator().manual_seed(4)), low=(0.0, 0.0, 0.0))
    cubes = torch.tensor([[0, 0, 0], [1, 1, 0], [2, 0, 1]])  # the last reaches beyond the grid
    rows = field.block_rows(cubes).view(3, 4, 4, 4)
    places = {tuple(p): row for row, p in enumerate(field.positions().tolist())}
    for cube, block in zip(cubes.tolist(), rows, strict=True):
        for offset in np.ndindex(4, 4, 4):
            vertex = tuple(float(3 * c + o) for c, o in zip(cube, offset, strict=True))
            assert int(block[offset]) == places.get(vertex, -1)


def test_each_vertex_belongs_to_one_cube() -> None:
    field = _random_field(torch.Generator().manual_seed(4))
    chosen = torch.zeros(len(field.values), dtype=torch.bool)
    chosen[[3, 4, -1]] = True
    places = field.stored.nonzero()[chosen] // 3
    assert field.cubes(chosen).tolist() == places.unique(dim=0).tolist()
    cubes = torch.tensor(list(np.ndindex(3, 2, 2)))
    rows = field.cube_rows(cubes)
    assert sorted(rows[rows >= 0].tolist()) == list(range(len(field.values)))
    blocks = field.block_rows(cubes).view(-1, 4, 4, 4)
    assert torch.equal(rows, blocks[:, :3, :3, :3].flatten(1))


def test_a_step_of_a_fit_is_adam_s_with_a_pull_towards_neighbours() -> None:
    prepare("cpu", fit_kernels.__name__)
    field = _random_field(torch.Generator().manual_seed(6))
    theirs = field.values.clone().requires_grad_()
    adam = torch.optim.Adam([theirs], lr=0.02, betas=(0.9, 0.99))
    ours, mean, square = field.values.clone(), *torch.zeros(2, *field.values.shape)
    grad, neighbours = torch.zeros_like(ours), field.neighbours()
    strength = torch.tensor([0.3, 0.3, 0.3, 0.01])
    arrays = [wp.from_torch(t, dtype=wp.vec4) for t in (ours, grad, mean, square)]
    limits = wp.vec4(-1.0), wp.vec4(1.0)
    for step in range(1, 6):
        pull = torch.randn(ours.shape, generator=torch.Generator().manual_seed(step))
        smooth = pull.mul(theirs).sum()
        for axis in range(3):
            here = neighbours[:, axis] >= 0
            apart = theirs[here] - theirs[neighbours[here, axis].long()]
            smooth = smooth + 0.5 * (strength * apart.square()).sum()
        adam.zero_grad()
        smooth.backward()
        adam.step()
        theirs.data.clamp_(-1, 1)

        grad += pull
        linked = wp.from_torch(neighbours, dtype=wp.int32)
        pulled = [linked, arrays[0], wp.vec4(*strength.tolist()), arrays[1]]
        wp.launch(fit_kernels.smooth, len(ours), pulled, device="cpu")
        unbias = 1 / (1 - 0.9**step), 1 / (1 - 0.99**step)
        moved = [*arrays, wp.vec4(0.02), *unbias, *limits]
        wp.launch(fit_kernels.adam, len(ours), moved, device="cpu")
        assert not grad.any()
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-5)


def test_the_first_field_is_dense_in_the_body_and_empty_outside() -> None:
    body = capsule_body()
    field = body_field(body, torch.zeros(2), RegionConfig(shell=0.04, voxel=0.015))
    places = torch.tensor(
        [[0.0, 1.1, 0.115], [0.0, 1.1, 0.145], [0.3, 1.345, 0.0], [0.3, 1.3, 0.0]]
    )
    value = lookup(field, places)
    assert value[0, 3] > 0.5  # just inside the trunk, whose radius is 0.12
    assert value[1, 3] < -4
    assert value[2, 3] > 3  # in the arm
    assert value[3, 3] < -4  # below it


def test_the_first_densities_follow_the_distance_to_the_surface() -> None:
    """Measured by the nearest of many points on it; a logit is 4 mm, at most 8 of them."""
    body = capsule_body()
    field = body_field(body, torch.zeros(2), RegionConfig(shell=0.1, voxel=0.015))
    surface = canonical_body(body, torch.zeros(2))
    chance = np.random.default_rng(0)
    corners = surface.vertices[surface.faces]
    sides = corners[:, 1:] - corners[:, :1]
    area = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1)
    faces = corners[chance.choice(len(corners), 400_000, p=area / area.sum())]
    points = np.einsum("nc,ncx->nx", chance.dirichlet(np.ones(3), len(faces)), faces)
    distance = cKDTree(points).query(field.positions().numpy())[0]
    too_far = np.clip(distance / 0.004, 0, 8) - field.values[:, 3].abs().numpy()
    assert too_far.min() > -0.01
    assert too_far.max() < 0.8  # points are some 3 mm apart


def test_the_first_densities_have_the_side_that_winding_numbers_say() -> None:
    """Where no surface passes through a vertex's cube, its side is that of the cube's centre."""
    body = capsule_body()
    surface = canonical_body(body, torch.zeros(2))
    for inner in (0.03, 0.2):
        config = RegionConfig(shell=0.1, inner=inner, voxel=0.015)
        field = body_field(body, torch.zeros(2), config)
        sides = _distance(surface, field.positions().double().numpy(), 1.0)
        clear = np.abs(sides) > 1e-4
        assert ((field.values[:, 3].numpy() < 0) == (sides > 0))[clear].all()


def test_nothing_is_solid_in_the_air_between_the_legs() -> None:
    """Half-way between two limbs the nearest face does not tell inside from outside."""
    field = body_field(capsule_body(), torch.zeros(2), RegionConfig(shell=0.06, voxel=0.015))
    place = field.positions()
    between = (place[:, 0].abs() < 0.02) & (place[:, 1] < 0.6)
    assert between.any()
    assert (field.values[between, 3] < 0).all()
