"""The textured-mesh renderer against point-in-triangle tests, known textures and known depths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from posegen_ray.body.camera import Camera, orbit, project
from posegen_ray.body.model import BodyModel
from posegen_ray.errors import RenderError
from posegen_ray.subjects.raycast import (
    Light,
    TexturedMesh,
    raycast,
    raycast_depth,
    visible_joints,
)

SIZE = 48


def mesh(vertices: Tensor, faces: Tensor, uv: Tensor, texture: Tensor, holes: bool = False):
    count = len(vertices)
    weights = torch.zeros(count, 24)
    weights[:, 0] = 1
    return TexturedMesh(
        vertices,
        torch.tensor([[0.0, 0.0, 1.0]]).repeat(count, 1),
        weights,
        faces.int(),
        uv[faces],
        torch.zeros(len(faces), dtype=torch.int32),
        texture[None],
        torch.tensor([int(holes)], dtype=torch.uint8),
    )


def sheet(z: float = 0.0, colour: tuple[int, int, int] = (255, 255, 255)) -> TexturedMesh:
    """A unit square in the plane of that z, seen from +z, centred at the origin."""
    corners = torch.tensor([[-0.5, -0.5, z], [0.5, -0.5, z], [0.5, 0.5, z], [-0.5, 0.5, z]])
    texture = torch.tensor([*colour, 255], dtype=torch.uint8).expand(8, 8, 4).contiguous()
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    return mesh(corners, faces, corners[:, :2] + 0.5, texture)


def camera(azimuth: float = 0.0, elevation: float = 0.0) -> Camera:
    def one(value: float) -> Tensor:
        return torch.tensor([value])

    return orbit(
        torch.zeros(1, 3),
        one(azimuth),
        one(elevation),
        one(0.0),
        one(3.0),
        one(2.0 * SIZE),
        torch.full((1, 2), SIZE / 2),
        SIZE,
        SIZE,
    )


def identity(batch: int = 1) -> Tensor:
    return torch.eye(4)[:3].expand(batch, 24, 3, 4).contiguous()


def flat_light() -> Light:
    return Light(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([1.0]), torch.tensor([0.0]))


def test_coverage_is_what_point_in_triangle_says() -> None:
    stream = torch.Generator().manual_seed(0)
    vertices = torch.rand(12, 3, generator=stream) - 0.5
    faces = torch.arange(12).view(4, 3)
    texture = torch.full((4, 4, 4), 255, dtype=torch.uint8)
    view = camera(0.3, 0.2)
    alpha = raycast(mesh(vertices, faces, torch.zeros(12, 2), texture), identity(), view)[0, ..., 3]

    pixels = project(view, vertices[None])[0][faces]  # [F, 3, 2]
    steps = (torch.arange(2 * SIZE) + 0.5) / 2
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    covered = torch.zeros(2 * SIZE, 2 * SIZE, dtype=torch.bool)
    for a, b, c in pixels:
        sides = [
            (q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0])
            for p, q in ((a, b), (b, c), (c, a))
        ]
        stack = torch.stack(sides)
        covered |= (stack >= 0).all(0) | (stack <= 0).all(0)
    expected = covered.float().view(SIZE, 2, SIZE, 2).mean((1, 3))
    assert expected.mean() > 0.05
    assert (alpha - expected).abs().max() <= 0.25  # a subpixel exactly on an edge
    assert (alpha != expected).float().mean() < 0.002


def test_colours_are_premultiplied_by_coverage() -> None:
    picture = raycast(sheet(), identity(), camera(0.4, 0.3), flat_light())[0]
    edge = (picture[..., 3] > 0) & (picture[..., 3] < 1)
    inner = picture[..., 3] == 1
    assert edge.any()
    brightness = picture[inner][:, 0].mean()
    torch.testing.assert_close(
        picture[edge][:, 0], brightness * picture[edge][:, 3], atol=1e-3, rtol=0
    )


def test_texture_is_not_mirrored() -> None:
    texture = torch.zeros(32, 32, 4, dtype=torch.uint8)
    texture[:16, :16, 0] = 255  # upper left, seen from +z
    texture[:16, 16:, 1] = 255
    texture[16:, :16, 2] = 255
    plain = sheet()
    shown = TexturedMesh(**{**vars(plain), "textures": texture[None]})
    picture = raycast(shown, identity(), camera(), flat_light())[0]
    q = SIZE // 8
    middle = SIZE // 2
    assert picture[middle - q, middle - q, :3].argmax() == 0
    assert picture[middle - q, middle + q, :3].argmax() == 1
    assert picture[middle + q, middle - q, :3].argmax() == 2


def test_texture_lookup_is_correct_in_perspective() -> None:
    texture = torch.zeros(64, 64, 4, dtype=torch.uint8)
    texture[..., 0] = (torch.arange(64) * 4).to(torch.uint8)[None, :]  # red grows with u
    shown = TexturedMesh(**{**vars(sheet()), "textures": texture[None]})
    view = camera(0.9)
    light = Light(torch.tensor([[0.0, 1.0, 0.0]]), torch.zeros(1), torch.tensor([1.0]))
    picture = raycast(shown, identity(), view, light)[0]
    points = torch.tensor([[[-0.3, 0.0, 0.0], [0.0, 0.0, 0.0], [0.3, 0.0, 0.0]]])
    columns, rows = project(view, points)[0].floor().long().unbind(-1)
    red = picture[rows, columns, 0] / 0.875  # the horizon's share of ambient light
    torch.testing.assert_close(red, torch.tensor([0.2, 0.5, 0.8]), atol=0.03, rtol=0)


def test_nearer_surface_hides_the_farther_one_whatever_their_order() -> None:
    near, far = sheet(0.3, (255, 0, 0)), sheet(-0.3, (0, 255, 0))
    for first, second, layers in ((near, far, (0, 1)), (far, near, (0, 1))):
        both = TexturedMesh(
            torch.cat([first.vertices, second.vertices]),
            torch.cat([first.normals, second.normals]),
            torch.cat([first.weights, second.weights]),
            torch.cat([first.faces, second.faces + 4]),
            torch.cat([first.uv, second.uv]),
            torch.tensor([layers[0]] * 2 + [layers[1]] * 2, dtype=torch.int32),
            torch.cat([first.textures, second.textures]),
            torch.zeros(2, dtype=torch.uint8),
        )
        front = raycast(both, identity(), camera(), flat_light())[0, SIZE // 2, SIZE // 2]
        assert front[0] > 0.9
        assert front[1] == 0
        depth = raycast_depth(both, identity(), camera())[0]
        assert depth[SIZE // 2, SIZE // 2] == pytest.approx(2.7, abs=1e-4)
        assert depth[0, 0] == float("inf")


def test_cut_out_texels_are_holes() -> None:
    texture = torch.full((32, 32, 4), 255, dtype=torch.uint8)
    texture[:, :16, 3] = 0
    corners = sheet()
    holed = TexturedMesh(
        **{
            **vars(corners),
            "textures": texture[None],
            "cutout": torch.ones(1, dtype=torch.uint8),
        }
    )
    alpha = raycast(holed, identity(), camera())[0, ..., 3]
    assert alpha[SIZE // 2, SIZE // 2 - 4] == 0
    assert alpha[SIZE // 2, SIZE // 2 + 4] == 1


def test_a_pose_moves_the_mesh_and_an_image_does_not_depend_on_its_batch() -> None:
    bones = identity(3)
    bones[1, :, 0, 3] = 0.25  # right half of the second picture
    views = Camera(*(getattr(camera(), n).repeat_interleave(3, 0) for n in (
        "rotation", "translation", "focal", "principal")), SIZE, SIZE)  # fmt: skip
    batch = raycast(sheet(), bones, views)
    assert torch.equal(batch[0], batch[2])
    assert torch.equal(batch[1], raycast(sheet(), bones[1:2], camera())[0])
    shift = round(0.25 / 3 * 2 * SIZE)
    torch.testing.assert_close(batch[1, :, shift:, 3], batch[0, :, :-shift, 3], atol=0.5, rtol=0)


def test_joint_behind_a_surface_is_not_visible() -> None:
    joints = torch.tensor([[[0.0, 0.0, -0.05], [0.0, 0.0, -0.4], [0.0, 0.0, 0.4], [9.0, 0.0, 0.0]]])
    seen = visible_joints(sheet(), identity(), camera(), joints)
    assert seen.tolist() == [[True, False, True, False]]


def test_mismatched_batch_is_refused(body: BodyModel) -> None:
    with pytest.raises(RenderError, match="with 1 cameras"):
        raycast(sheet(), identity(2), camera())
