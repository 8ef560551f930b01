"""Matt surfaces under distant light: compared with the integral over the sphere."""

from __future__ import annotations

import numpy as np
import torch

from posegen_ray.body.camera import orbit, to_camera
from posegen_ray.subjects.light import brightness, changed_light, even_light, towards_camera

_A0, _A1, _A2 = 1.0, 2.0 / 3.0, 0.25  # what a matt surface keeps of each order, over pi


def sphere(count: int) -> np.ndarray:  # [count, 3]
    """Evenly spread directions (Fibonacci)."""
    i = np.arange(count) + 0.5
    z, turn = 1 - 2 * i / count, np.pi * (1 + 5**0.5) * i
    ring = np.sqrt(1 - z * z)
    return np.stack([ring * np.cos(turn), ring * np.sin(turn), z], -1)


def test_brightness_is_the_light_that_a_matt_surface_gathers() -> None:
    """Radiance of order two at most, so that the integral is a quadratic function of the normal."""
    stream = np.random.default_rng(0)
    quadratic = stream.normal(size=(3, 3))
    quadratic = quadratic + quadratic.T
    quadratic -= np.eye(3) * np.trace(quadratic) / 3
    linear, constant = stream.normal(size=3), 2.0
    normals = sphere(7)

    directions = sphere(40_000)
    radiance = constant + directions @ linear
    radiance = radiance + np.einsum("di,ij,dj->d", directions, quadratic, directions)
    cosine = np.maximum(normals @ directions.T, 0)
    gathered = (cosine * radiance).mean(1) * 4  # 4 pi / count of them, over pi

    light = torch.zeros(2, 4, 4, dtype=torch.float64)
    light[0, :3, :3] = torch.from_numpy(_A2 * quadratic)
    light[0, :3, 3] = light[0, 3, :3] = torch.from_numpy(0.5 * _A1 * linear)
    light[0, 3, 3] = _A0 * constant
    ours = brightness(light, torch.from_numpy(normals)[None])[0]
    np.testing.assert_allclose(ours.numpy(), gathered, atol=2e-3)


def test_even_light_shows_colours_as_they_are() -> None:
    normals = torch.from_numpy(sphere(20)).float()[None]
    torch.testing.assert_close(brightness(even_light(), normals), torch.ones(1, 20))


def test_lights_of_a_batch_are_its_own() -> None:
    normals = torch.from_numpy(sphere(5)).float().expand(2, 5, 3)
    lights = torch.stack([even_light(), 3 * even_light()])
    lit = brightness(lights, normals)
    torch.testing.assert_close(lit[1], 3 * lit[0])


def test_changed_light_comes_from_elsewhere_and_is_as_bright_on_the_whole() -> None:
    stream = torch.Generator().manual_seed(0)
    light = torch.randn(2, 4, 4, generator=stream)
    light = light + light.mT
    normals = torch.from_numpy(sphere(20_000)).float()[None]
    turn, contrast, exposure = 0.7, 1.5, 0.8
    lit = brightness(changed_light(light, torch.tensor([[turn, contrast, exposure]])), normals)
    # the light turned by an angle reaches a surface that is turned by it, too
    c, s = np.cos(turn), np.sin(turn)
    back = torch.tensor([[c, 0, -s], [0, 1, 0], [s, 0, c]], dtype=torch.float32)
    before = brightness(light, normals @ back.T)
    mean = before.mean()
    expected = exposure * (mean + contrast * (before - mean))
    torch.testing.assert_close(lit, expected, rtol=0, atol=2e-3)


def test_what_shines_is_seen_where_it_mirrors_the_lamp() -> None:
    """A lamp behind the camera is mirrored by what faces the camera, one at the side by what lies
    half-way between both."""
    camera = torch.tensor([0.0, 0.0, 1.0])
    normals = torch.from_numpy(sphere(4000)).float()
    normals = normals[normals @ camera > 0][None]  # what the camera sees
    for lamp in (camera, torch.tensor([1.0, 0.0, 0.0])):
        light = torch.zeros(2, 4, 4)
        light[1, :3, :3] = lamp[:, None] * lamp
        light[1, :3, 3] = light[1, 3, :3] = 0.5 * lamp
        lit = brightness(light, normals, camera.expand_as(normals))[0]
        half_way = torch.nn.functional.normalize(camera + lamp, dim=0)
        assert float(normals[0, lit.argmax()] @ half_way) > 0.99
        # the half-angle formula: the mirrored direction meets the lamp
        share = normals[0] @ half_way
        near = share > 0.999
        torch.testing.assert_close(lit[near], torch.full_like(lit[near], 2.0), rtol=0, atol=0.02)


def test_towards_the_camera_is_where_the_camera_stands() -> None:
    stream = torch.Generator().manual_seed(0)
    camera = orbit(
        torch.zeros(2, 3),
        torch.tensor([0.3, 2.0]),
        torch.tensor([0.2, -0.4]),
        torch.tensor([0.1, 0.0]),
        torch.tensor([3.0, 4.0]),
        torch.tensor([500.0, 500.0]),
        torch.full((2, 2), 64.0),
        128,
        128,
    )
    world = torch.randn(2, 5, 3, generator=stream)
    centre = -(camera.rotation.mT @ camera.translation[..., None])[..., 0]
    expected = torch.nn.functional.normalize(centre[:, None] - world, dim=-1)
    torch.testing.assert_close(towards_camera(to_camera(camera, world), camera), expected)
