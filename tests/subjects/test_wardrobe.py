"""The demo's people: they differ, stand where their joints are, and look like people."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from posegen_ray.body.anny import AnnyBody, load_anny_body
from posegen_ray.body.camera import Camera, orbit, project
from posegen_ray.body.model import BodyModel
from posegen_ray.body.skeleton import JOINT_NAMES, LIMB_JOINTS
from posegen_ray.errors import ConfigError
from posegen_ray.records import PoseBatch
from posegen_ray.subjects.background import backgrounds, composite
from posegen_ray.subjects.raycast import TexturedMesh, random_light, raycast
from posegen_ray.subjects.wardrobe import (
    PEOPLE,
    SPLITS,
    capture_person,
    dress,
    people,
    shape_of,
    studio_poses,
)

SIZE = 128
TEXTURE = 128


@pytest.fixture(scope="module")
def anny() -> AnnyBody:
    return load_anny_body()


@pytest.fixture(scope="module")
def dressed(anny: AnnyBody) -> dict[str, TexturedMesh]:
    return {name: dress(person, anny, TEXTURE) for name, person in PEOPLE.items()}


def around(target: Tensor, azimuth: Tensor, size: int = SIZE) -> Camera:  # [B, 3], [B]
    batch = len(azimuth)
    return orbit(
        target,
        azimuth,
        torch.full((batch,), 0.1),
        torch.zeros(batch),
        torch.full((batch,), 3.5),
        torch.full((batch,), 1.2 * size),
        torch.full((batch, 2), size / 2),
        size,
        size,
    )


def test_splits_have_enough_people_and_share_none() -> None:
    assert len(people("train")) >= 4
    assert len(people("val")) >= 2
    assert len(people("test")) >= 3
    names = [{person.name for person in people(split)} for split in SPLITS]
    assert sum(len(part) for part in names) == len(set.union(*names)) == len(PEOPLE)
    assert all(person.licence == "CC0-1.0" for person in PEOPLE.values())
    with pytest.raises(ConfigError, match="no split 'dev'"):
        people("dev")


def test_meshes_are_sound(dressed: dict[str, TexturedMesh]) -> None:
    for mesh in dressed.values():
        assert mesh.vertices.isfinite().all()
        assert mesh.faces.max() < len(mesh.vertices)
        assert mesh.uv.min() >= 0
        assert mesh.uv.max() <= 1
        torch.testing.assert_close(mesh.weights.sum(1), torch.ones(len(mesh.weights)))
        assert mesh.weights.min() >= 0
        assert len(mesh.textures) >= 4  # skin, hair and clothes


def test_people_differ_in_shape_and_looks(anny: AnnyBody, dressed: dict[str, TexturedMesh]) -> None:
    shapes, pictures = [], []
    still = torch.eye(3).expand(1, 24, 3, 3)
    for name, mesh in dressed.items():
        shape = shape_of(PEOPLE[name], anny)
        posed = anny(still, shape[None])
        view = around(posed.joints[:, 0], torch.zeros(1), 64)
        shapes.append(shape)
        pictures.append(raycast(mesh, posed.bones, view)[0])
    for first, second in combinations(range(len(shapes)), 2):
        assert (shapes[first] - shapes[second]).norm() > 0.3
        a, b = pictures[first], pictures[second]
        both = (a[..., 3] > 0.9) & (b[..., 3] > 0.9)
        assert (a - b)[both][:, :3].abs().mean() > 0.05


def test_same_person_twice_is_the_same(anny: AnnyBody, dressed: dict[str, TexturedMesh]) -> None:
    again = dress(PEOPLE["ada"], anny, TEXTURE)
    for name, value in vars(dressed["ada"]).items():
        assert torch.equal(getattr(again, name), value), name


def test_joints_project_into_the_silhouette(
    anny: AnnyBody, dressed: dict[str, TexturedMesh]
) -> None:
    rotations = studio_poses().rotations
    for name in ("ada", "chidi", "juno"):
        posed = anny(rotations, shape_of(PEOPLE[name], anny)[None])
        view = around(posed.joints[:, 0], torch.linspace(0, 5, len(rotations)))
        alpha = raycast(dressed[name], posed.bones, view)[..., 3]
        columns, rows = project(view, posed.joints).floor().long().unbind(-1)
        items = torch.arange(len(rotations))[:, None]
        limbs = list(LIMB_JOINTS)
        inside = (alpha[items, rows, columns] > 0)[:, limbs]
        missed = [JOINT_NAMES[limbs[j]] for j in (~inside).nonzero()[:, 1]]
        assert not missed, (name, missed)


def test_clothes_hide_most_of_the_skin_and_the_face_stays_visible(
    dressed: dict[str, TexturedMesh],
) -> None:
    for name, mesh in dressed.items():
        flesh = mesh.layers == 0
        assert flesh.float().mean() < 0.75, name
        height = mesh.vertices[mesh.faces[flesh].flatten().long(), 1]
        assert height.max() > 0.93 * mesh.vertices[:, 1].max()


def test_any_body_can_be_dressed(body: BodyModel) -> None:
    mesh = dress(PEOPLE["goran"], body, 64)
    posed = body(torch.eye(3).expand(1, 24, 3, 3), torch.zeros(1, body.num_shape))
    alpha = raycast(mesh, posed.bones, around(posed.joints[:, 0], torch.zeros(1)))[..., 3]
    assert 0.02 < alpha.mean() < 0.6


def test_capture_films_from_all_sides_and_holds_poses_out(anny: AnnyBody) -> None:
    poses = PoseBatch(studio_poses().rotations[1:5], torch.zeros(4, 3))
    film = capture_person(
        PEOPLE["ben"], anny, poses, views=2, size=48, hold_out=0.25, texture_size=TEXTURE
    )
    assert len(film) == 6 * 4 + 4 * 2
    assert film.held_out.sum() == 2  # one pose, both of its views
    assert film.masks.flatten(1).float().mean(1).min() > 0.03 * 255
    border = torch.cat([film.masks[:, 0], film.masks[:, -1], film.masks[:, :, 0]], 1)
    assert (border == 0).float().mean() > 0.98  # the person is in the picture
    again = capture_person(
        PEOPLE["ben"], anny, poses, views=2, size=48, hold_out=0.25, texture_size=TEXTURE
    )
    assert film.sha256() == again.sha256()
    other = capture_person(
        PEOPLE["ben"], anny, poses, views=2, size=48, seed=1, hold_out=0.25, texture_size=TEXTURE
    )
    assert film.sha256() != other.sha256()


def test_blazepose_sees_a_person(anny: AnnyBody, dressed: dict[str, TexturedMesh]) -> None:
    from posegen_ray.estimators.blazepose import load_blazepose
    from posegen_ray.estimators.crop import estimator_crop

    estimator = load_blazepose("full")
    rotations = studio_poses().rotations[[1, 2, 4]]
    presence = []
    for name, mesh in dressed.items():
        person = PEOPLE[name]
        posed = anny(rotations, shape_of(person, anny)[None])
        view = around(posed.joints[:, 0], torch.tensor([0.3, 2.0, 4.4]))
        view = estimator_crop(view, posed.joints, estimator.crop)
        rgba = raycast(mesh, posed.bones, view, random_light(3, seed=5))
        images = composite(rgba, backgrounds(person.split, 3, 256, seed=6))
        with torch.no_grad():
            presence.append(estimator.presence(images))
    assert (torch.cat(presence) >= 0.9).float().mean() >= 0.95
