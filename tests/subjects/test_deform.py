"""The lattice covers the field without gaps, follows the body, and keeps limbs apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from bodies import capsule_body

from posegen_ray.body.model import skin
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import JOINT
from posegen_ray.config import RegionConfig
from posegen_ray.subjects.body_field import body_field
from posegen_ray.subjects.build_lattice import build_lattice
from posegen_ray.subjects.deform import PATTERN_PLACES, Lattice, pose_vertices
from posegen_ray.subjects.field import CUBE, Field

VOXEL = 0.015


def _field(shell: float = 0.04) -> Field:
    return body_field(capsule_body(), torch.zeros(2), RegionConfig(shell=shell, voxel=VOXEL))


def _lattice(field: Field) -> Lattice:
    return build_lattice(capsule_body(), torch.zeros(2), field)


def _volumes(points: torch.Tensor, lattice: Lattice) -> torch.Tensor:
    corners = points[lattice.tets.long()].double()
    return torch.linalg.det(corners[:, 1:] - corners[:, :1]) / 6


def test_tetrahedra_fill_whole_cubes() -> None:
    lattice = _lattice(_field())
    volumes = _volumes(lattice.canonical, lattice)
    assert (volumes > 0).all()
    cube = (CUBE * VOXEL) ** 3
    assert len(lattice.tets) % 5 == 0
    assert float(volumes.sum()) == pytest.approx(len(lattice.tets) // 5 * cube, rel=1e-4)
    torch.testing.assert_close(lattice.weights.sum(1), torch.ones(len(lattice.weights)))


def test_neighbours_share_the_face_between_them() -> None:
    lattice = _lattice(_field())
    tets, neighbours = lattice.tets.numpy(), lattice.neighbours.numpy()
    for tet in range(0, len(tets), 97):
        for corner in range(4):
            other = neighbours[tet, corner]
            face = set(np.delete(tets[tet], corner))
            if other >= 0:
                assert face == set(tets[tet]) & set(tets[other])
                assert tet in neighbours[other]
            else:
                assert (np.isin(tets, list(face)).sum(1) == 3).sum() == 1


def test_the_boundary_is_closed_and_turned_outwards() -> None:
    lattice = _lattice(_field())
    faces = lattice.boundary[:, 1:].numpy()
    edges = Counter((int(face[i]), int(face[(i + 1) % 3])) for face in faces for i in range(3))
    assert all(edges[b, a] == count for (a, b), count in edges.items())
    a, b, c = lattice.canonical[lattice.boundary[:, 1:].long()].double().unbind(1)
    enclosed = (a * torch.linalg.cross(b, c)).sum() / 6
    inside = float(_volumes(lattice.canonical, lattice).sum())
    assert float(enclosed) == pytest.approx(inside, rel=1e-4)


def test_every_cell_that_touches_a_stored_vertex_lies_inside() -> None:
    field = _field()
    lattice = _lattice(field)
    touched = {
        tuple(((vertex - torch.tensor(offset)) // CUBE).tolist())
        for vertex in field.stored.nonzero()[::7]
        for offset in np.ndindex(2, 2, 2)
    }
    assert touched <= {tuple(cube) for cube in lattice.cubes.tolist()}


def test_tetrahedra_lie_in_their_cubes_as_the_patterns_say() -> None:
    field = _field()
    lattice = _lattice(field)
    odd = lattice.cubes.sum(1) % 2
    assert not odd[: lattice.even].any()
    assert odd[lattice.even :].all()
    places = torch.from_numpy(PATTERN_PLACES)[odd.long()]  # [N, 5, 4, 3]
    places = places + CUBE * lattice.cubes[:, None, None]
    expected = places.flatten(0, 1) * VOXEL + torch.tensor(field.low)
    torch.testing.assert_close(lattice.canonical[lattice.tets.long()], expected.float())


def _sides(lattice: Lattice) -> tuple[torch.Tensor, torch.Tensor]:
    left = lattice.weights[:, [JOINT["left_knee"], JOINT["left_ankle"]]].sum(1) > 0.5
    right = lattice.weights[:, [JOINT["right_knee"], JOINT["right_ankle"]]].sum(1) > 0.5
    return left, right


def test_a_slit_opens_between_the_legs() -> None:
    left, right = _sides(lattice := _lattice(_field(shell=0.06)))
    tets = lattice.tets.long()
    assert left.any()
    below = lattice.canonical[tets][..., 1].amax(1) < 0.7  # the thighs' upper ends belong together
    assert not (below & left[tets].any(1) & right[tets].any(1)).any()
    assert (lattice.canonical[left, 0] > -1e-6).all()
    assert (lattice.canonical[right, 0] < 1e-6).all()


def test_what_lies_between_the_legs_in_the_t_pose_is_held_by_both() -> None:
    left, right = _sides(lattice := _lattice(_field(shell=0.12)))
    assert float(lattice.rest[left, 0].min()) < -0.01
    assert float(lattice.rest[right, 0].max()) > 0.01
    assert float(lattice.canonical[left, 0].min()) > -1e-6
    assert float(lattice.canonical[right, 0].max()) < 1e-6


def _doubled(lattice: Lattice) -> int:
    """How many vertices between the legs have a twin in the same place: there a slit opens."""
    between = (lattice.canonical[:, 0].abs() < 1e-6) & (lattice.canonical[:, 1] < 0.85)
    places = (1000 * lattice.canonical[between]).round()
    return len(places) - len(torch.unique(places, dim=0))


def test_dense_cloth_between_the_legs_keeps_them_joined() -> None:
    field = _field(shell=0.12)
    assert _doubled(_lattice(field)) > 0
    values = field.values.clone()
    skirt = (field.positions()[:, 1] < 0.85) & (field.positions()[:, 0].abs() < 0.05)
    values[skirt, 3] = 2.0
    assert _doubled(_lattice(replace(field, values=values))) == 0


def test_posing_is_linear_blend_skinning() -> None:
    lattice = _lattice(_field())
    stream = torch.Generator().manual_seed(0)
    rotations = from_axis_angle(0.3 * torch.randn(2, 24, 3, generator=stream))
    bones = capsule_body()(rotations, torch.zeros(1, 2)).bones
    expected = skin(lattice.rest.expand(2, -1, -1), lattice.weights, bones)
    torch.testing.assert_close(pose_vertices(lattice, bones), expected, atol=1e-5, rtol=1e-5)


def test_the_lattice_follows_the_body() -> None:
    """Body vertices carried along by the tetrahedron around them stay where skinning puts them."""
    body = capsule_body()
    lattice = _lattice(_field())
    stream = torch.Generator().manual_seed(1)
    rotations = from_axis_angle(0.3 * torch.randn(1, 24, 3, generator=stream))
    posed = body(rotations, torch.zeros(1, 2), vertices=True)
    assert posed.vertices is not None
    vertices = body.rest_vertices(torch.zeros(1, 2))[0][::11]
    corners = lattice.rest[lattice.tets.long()]
    inverse = torch.linalg.inv((corners[:, 1:] - corners[:, :1]).transpose(1, 2))
    moved = []
    points = pose_vertices(lattice, posed.bones)[0][lattice.tets.long()]
    for vertex in vertices:
        share = (inverse @ (vertex - corners[:, 0])[..., None])[..., 0]
        share = torch.cat([1 - share.sum(1, keepdim=True), share], 1)
        tet = int(share.amin(1).argmax())
        moved.append((share[tet, :, None] * points[tet]).sum(0))
    error = (torch.stack(moved) - posed.vertices[0][::11]).norm(dim=1)
    assert float(error.median()) < 0.004
    assert float(error.quantile(0.95)) < 0.015
