"""Matt surfaces under distant light: compared with the integral over the sphere."""

from __future__ import annotations

import numpy as np
import torch

from posegen_ray.subjects.light import brightness, even_light

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

    light = torch.zeros(4, 4, dtype=torch.float64)
    light[:3, :3] = torch.from_numpy(_A2 * quadratic)
    light[:3, 3] = light[3, :3] = torch.from_numpy(0.5 * _A1 * linear)
    light[3, 3] = _A0 * constant
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
