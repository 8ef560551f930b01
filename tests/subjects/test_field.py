"""The sparse grid: numbering, restriction, interpolation, and the body it starts from."""

from __future__ import annotations

import torch
from bodies import capsule_body

from posegen_ray.config import RegionConfig
from posegen_ray.subjects.field import Field, body_field, cell_index
from posegen_ray.subjects.render_reference import lookup


def _random_active(stream: torch.Generator) -> torch.Tensor:
    active = torch.rand(7, 6, 5, generator=stream) < 0.3
    active[-1], active[:, -1], active[:, :, -1] = False, False, False
    return active


def test_every_active_cell_has_its_eight_corners_and_z_neighbours_follow() -> None:
    active = _random_active(torch.Generator().manual_seed(0))
    index = cell_index(active)
    assert torch.equal(index >= 0, active)
    row = torch.where(index < -1, -2 - index, index)
    for x, y, z in active.nonzero().tolist():
        corners = row[x : x + 2, y : y + 2, z : z + 2]
        assert (corners >= 0).all()
        assert (corners[:, :, 1] == corners[:, :, 0] + 1).all()
    stored = row[row >= 0]
    assert torch.equal(stored, torch.arange(len(stored), dtype=stored.dtype))


def test_interpolation_is_exact_for_linear_functions_and_zero_outside() -> None:
    stream = torch.Generator().manual_seed(1)
    index = cell_index(_random_active(stream))
    field = Field(torch.zeros(int((index != -1).sum()), 4), index, (-0.3, 0.1, 2.0), 0.25)
    slope = torch.randn(3, 4, generator=stream)
    field = Field(field.positions() @ slope, index, field.low, field.voxel)
    places = torch.rand(500, 3, generator=stream) * 2 - 0.2 + torch.tensor(field.low)
    value = lookup(field, places)
    inside = value[:, 4] > 0
    assert 0 < inside.sum() < len(places)
    torch.testing.assert_close(value[inside, :4], places[inside] @ slope, atol=1e-5, rtol=1e-5)
    assert not value[~inside].any()


def test_restriction_keeps_the_values_of_what_stays() -> None:
    stream = torch.Generator().manual_seed(2)
    active = _random_active(stream)
    index = cell_index(active)
    values = torch.randn(int((index != -1).sum()), 4, generator=stream)
    field = Field(values, index, (0.0, 0.0, 0.0), 1.0)
    fewer = field.restricted(active & (torch.rand(active.shape, generator=stream) < 0.5))
    before = {tuple(p): v for p, v in zip(field.positions().tolist(), values, strict=True)}
    assert len(fewer.values) < len(values)
    for place, value in zip(fewer.positions().tolist(), fewer.values, strict=True):
        assert torch.equal(before[tuple(place)], value)


def test_neighbours_are_one_cell_apart() -> None:
    index = cell_index(_random_active(torch.Generator().manual_seed(3)))
    field = Field(torch.zeros(int((index != -1).sum()), 4), index, (0.0, 0.0, 0.0), 1.0)
    places, neighbours = field.positions(), field.neighbours()
    for axis in range(3):
        has = neighbours[:, axis] >= 0
        step = places[neighbours[has, axis].long()] - places[has]
        assert torch.equal(step, torch.eye(3)[axis].expand_as(step))


def test_the_rim_is_where_an_adjoining_cell_is_missing() -> None:
    active = torch.zeros(5, 5, 5, dtype=torch.bool)
    active[1:3, 1:3, 1:3] = True  # 3 x 3 x 3 vertices, one of them in the middle
    index = cell_index(active)
    field = Field(torch.zeros(27, 4), index, (0.0, 0.0, 0.0), 1.0)
    assert field.positions()[~field.rim()].tolist() == [[2.0, 2.0, 2.0]]


def test_the_first_field_is_dense_in_the_body_and_empty_outside() -> None:
    body = capsule_body()
    field = body_field(body, torch.zeros(2), RegionConfig(shell=0.04, voxel=0.015))
    places = torch.tensor([[0.0, 1.1, 0.115], [0.0, 1.1, 0.145], [0.3, 1.36, 0.0], [0.3, 1.3, 0.0]])
    value = lookup(field, places)
    assert (value[:, 4] == 1).all()
    assert value[0, 3] > 0.5  # just inside the trunk, whose radius is 0.12
    assert value[1, 3] < -4
    assert value[2, 3] > 4  # in the arm
    assert value[3, 3] < -4  # below it


def test_nothing_is_solid_in_the_air_between_the_legs() -> None:
    """Half-way between two limbs the nearest face does not tell inside from outside."""
    field = body_field(capsule_body(), torch.zeros(2), RegionConfig(shell=0.06, voxel=0.015))
    place = field.positions()
    between = (place[:, 0].abs() < 0.02) & (place[:, 1] < 0.6)
    assert between.any()
    assert (field.values[between, 3] < 0).all()
