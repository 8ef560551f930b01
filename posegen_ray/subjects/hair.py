"""Hair, beards, caps and glasses: parts that sit on the head."""

from __future__ import annotations

import numpy as np

from posegen_ray.subjects.garments import Garment, Wearing
from posegen_ray.subjects.paint import Cloth, Colour, Noise, fabric, hair, plain
from posegen_ray.subjects.tailoring import (
    Figure,
    Floats,
    Part,
    Region,
    Surface,
    hull_radius,
    loft,
    rigid,
    shell,
    tube,
)

_STRAIGHT = (0.004, 0.07, 1.0)
_CURLY = (0.008, 0.008, 0.008)


def _hairline(figure: Figure, seed: int, forehead: float, nape: float, ragged: float) -> Region:
    """Inside of the scalp. Heights are in units of the skull's, above the eyes."""
    centre, axes = figure.skull
    noise = Noise(seed, "hairline")

    def region(points: Floats) -> Floats:
        d = (points - centre) / axes
        level = np.hypot(d[:, 0], d[:, 2])
        front = np.clip(d[:, 2] / np.maximum(level, 0.15), -1, 1)
        height = np.interp(
            front,
            [-1, -0.45, -0.25, 0.05, 0.42, 0.62, 1.0],
            [nape, nape, -0.1, 0.05, 0.15, forehead, forehead + 0.02],
        )
        inside = (d[:, 1] - height) * axes[1] + ragged * noise(points, 0.005)
        ear = (np.abs(points[:, 0]) > 1.03 * axes[0]) & (d[:, 1] < 0.22) & (front > -0.5)
        return np.where(ear, -0.03, inside).astype(np.float32)

    return region


def _scalp(
    figure: Figure,
    colour: Colour,
    seed: int,
    volume: float,
    forehead: float = 0.6,
    nape: float = -0.6,
    curl: bool = False,
    ragged: float = 0.0022,
) -> Part:
    region = _hairline(figure, seed, forehead, nape, ragged)
    depth = region(figure.vertices)
    noise = Noise(seed, "locks")(figure.vertices, 0.03)
    rise = np.clip(depth / 0.04, 0, 1) ** 0.7
    thickness = 0.004 + volume * rise * (1 + (0.22 if curl else 0.12) * noise)
    thickness *= (figure.weights[:, 15] > 0.3) | (depth > 0)
    paint = hair(figure, colour, seed, _CURLY if curl else _STRAIGHT)
    return shell(figure, region, thickness.astype(np.float32), paint, smoothing=2)


def short(colour: Colour, volume: float = 0.018, forehead: float = 0.6) -> Garment:
    """Cropped hair."""

    def make(figure: Figure, seed: int) -> Wearing:
        return Wearing((_scalp(figure, colour, seed, volume, forehead),))

    return make


def curls(colour: Colour, volume: float = 0.05) -> Garment:
    """A round head of curls."""

    def make(figure: Figure, seed: int) -> Wearing:
        return Wearing((_scalp(figure, colour, seed, volume, 0.58, -0.45, curl=True),))

    return make


def long(colour: Colour, length: float = 0.3, volume: float = 0.022) -> Garment:
    """Hair that falls over the back; length in metres below the chin."""

    def make(figure: Figure, seed: int) -> Wearing:
        parts = (
            _scalp(figure, colour, seed, volume, 0.62),
            _curtain(figure, colour, seed, length, volume),
        )
        return Wearing(parts)

    return make


def _curtain(figure: Figure, colour: Colour, seed: int, length: float, volume: float) -> Part:
    centre, axes = figure.skull
    start, end = centre[1] + 0.55 * axes[1], figure.chin - length
    rows, around = 24, 40
    levels = np.linspace(start, end, rows)
    extent = np.interp(
        levels,
        [figure.chin - 0.2, figure.chin - 0.06, centre[1], start],
        [0.9, 1.35, 1.9, 0.9],
    )
    near = figure.vertices[np.abs(figure.vertices[:, 0]) < 0.13]
    rings = np.zeros((rows, around, 3), np.float32)
    before = np.zeros(around, np.float32)
    for row, level in enumerate(levels):
        angles = np.linspace(-extent[row], extent[row], around).astype(np.float32)
        slab = near[np.abs(near[:, 1] - level) < 0.025][:, [0, 2]]
        # direction of angle a: (sin a, -cos a), so 0 is straight back
        radius = hull_radius(slab, centre[[0, 2]], angles - np.float32(np.pi / 2)) + 0.012
        edge = 1 - 0.05 * np.abs(np.linspace(-1, 1, around)) ** 4
        before = np.maximum(radius + 0.6 * volume * edge, 0.985 * before).astype(np.float32)
        if level > figure.chin:
            buried = 0.02 * max(level - centre[1], 0) / (0.55 * axes[1])  # under the scalp's hair
            before = (radius + 0.7 * volume - buried) * edge
        wave = 0.004 * np.sin(9 * angles + 40 * level)
        rings[row] = np.stack(
            [
                (before + wave) * np.sin(angles),
                np.full(around, level),
                centre[2] - (before + wave) * np.cos(angles),
            ],
            -1,
        )
    base, noise = hair(figure, colour, seed, _STRAIGHT), Noise(seed, "tips")

    def paint(surface: Surface) -> Floats:
        rgba = base(surface)
        tips = 0.05 * (0.5 + 0.5 * noise(surface.points, (0.01, 1.0, 0.01)))
        rgba[:, 3] = np.clip((surface.points[:, 1] - end - tips) / 0.004 + 0.5, 0, 1)
        rgba[:, :3] *= (0.8 + 0.2 * np.clip((surface.points[:, 1] - end) / 0.2, 0, 1))[:, None]
        return rgba

    flat = rings.reshape(-1, 3)
    weights = figure.borrow_weights(flat, 0.06)
    head = np.clip((flat[:, 1] - figure.chin + 0.08) / 0.1, 0, 1)[:, None]
    weights = weights * (1 - head) + rigid(len(flat), "head") * head
    return loft(rings[:, ::-1].copy(), weights.reshape(rows, around, 24)[:, ::-1].reshape(-1, 24),
                paint, closed=False, cutout=True)  # fmt: skip


def bun(colour: Colour, volume: float = 0.014, radius: float = 0.045) -> Garment:
    """Hair gathered in a bun at the back of the head."""

    def make(figure: Figure, seed: int) -> Wearing:
        centre, axes = figure.skull
        start = centre + axes * np.array([0, 0.45, -0.85])
        steps = np.linspace(0, 1, 12)[:, None]
        path = start + steps * np.array([0, 0.35, -1.0]) * (1.9 * radius)
        profile = radius * np.sqrt(np.clip(1 - (2 * steps[:, 0] - 1) ** 2, 0.001, 1))
        knot = tube(path, profile, rigid(12, "head"), hair(figure, colour, seed, (0.005,) * 3), 20)
        return Wearing((_scalp(figure, colour, seed, volume, 0.6, -0.5), knot))

    return make


def ponytail(colour: Colour, length: float = 0.28, volume: float = 0.014) -> Garment:
    """A pony tail with a band."""

    def make(figure: Figure, seed: int) -> Wearing:
        centre, axes = figure.skull
        start = centre + axes * np.array([0, 0.5, -0.9])
        t = np.linspace(0, 1, 16)
        path = np.stack(
            [0 * t, start[1] + 0.05 * t - (length + 0.05) * t**2, start[2] - 0.09 * t**0.6], -1
        )
        radius = 0.012 + 0.026 * np.sin(np.pi * np.clip(t, 0, 1) ** 0.7) ** 0.8
        weights = rigid(16, "head")
        tail = tube(path, radius, weights, hair(figure, colour, seed, _STRAIGHT), 16)
        band = tube(path[1:4], np.full(3, 0.019), rigid(3, "head"), plain((0.75, 0.2, 0.3)), 12)
        return Wearing((_scalp(figure, colour, seed, volume, 0.6, -0.5), tail, band))

    return make


def beard(colour: Colour, volume: float = 0.012) -> Garment:
    """A full beard with a moustache."""

    def make(figure: Figure, seed: int) -> Wearing:
        centre, axes = figure.skull
        length = (figure.eye[1] - figure.chin) / 0.1
        mouth = figure.chin + 0.038 * length
        noise = Noise(seed, "beard")

        def region(points: Floats) -> Floats:
            x, y, z = points.T
            side = np.abs(x)
            upper = mouth + 0.013 + 0.8 * np.maximum(figure.eye[2] - 0.018 - z, 0)
            inside = np.minimum(upper - y, y - figure.chin + 0.022)
            inside = np.minimum(inside, z - centre[2] - 0.012)
            lips = (np.hypot(x / 0.024, (y - mouth) / 0.0095) - 1) * 0.012
            head = np.minimum(inside, lips) + 0.002 * noise(points, 0.006)
            return np.where(side < 1.15 * axes[0], head, -0.05).astype(np.float32)

        depth = np.clip(region(figure.vertices) / 0.025, 0, 1)
        thickness = (0.003 + volume * depth).astype(np.float32)
        return Wearing(
            (shell(figure, region, thickness, hair(figure, colour, seed, _STRAIGHT), 1),)
        )

    return make


def cap(cloth: Cloth) -> Garment:
    """A baseball cap."""

    def make(figure: Figure, seed: int) -> Wearing:
        centre, axes = figure.skull

        def region(points: Floats) -> Floats:
            d = (points - centre) / axes
            rim = 0.40 + 0.05 * np.clip(d[:, 2], -1, 1)
            inside = (d[:, 1] - rim) * axes[1]
            return np.where(figure_distance(points) > 0.3, -0.1, inside).astype(np.float32)

        def figure_distance(points: Floats) -> Floats:
            return np.asarray(np.linalg.norm(points - centre, axis=1), np.float32)

        paint = fabric(figure, cloth, seed, folds=0.3)
        crown = shell(figure, region, 0.016, paint, smoothing=8)
        angles = np.linspace(-1.25, 1.25, 24)
        rings = []
        for reach, drop in ((-0.012, 0.004), (0.03, 0.0), (0.06, -0.008), (0.068, -0.014)):
            scale = np.cos(angles * 0.8) ** 0.6
            rings.append(
                np.stack(
                    [
                        (axes[0] + 0.014 + 0.12 * max(reach, 0)) * np.sin(angles),
                        centre[1] + (0.50 * axes[1]) + drop - 0.018 * np.sin(angles) ** 2,
                        centre[2] + (axes[2] + 0.012) * np.cos(angles) + reach * scale,
                    ],
                    -1,
                )
            )
        brim = np.asarray(rings, np.float32)
        second = Cloth(cloth.second)
        visor = loft(
            brim, rigid(brim.shape[0] * 24, "head"), fabric(figure, second, seed, 0.2), closed=False
        )
        return Wearing((crown, visor))

    return make


def glasses(colour: Colour = (0.08, 0.08, 0.09)) -> Garment:
    """Spectacles with round frames."""

    def make(figure: Figure, seed: int) -> Wearing:
        eye, (centre, axes) = figure.eye, figure.skull
        paint = plain(colour)
        parts: list[Part] = []
        depth = eye[2] + 0.013
        angles = np.linspace(0, 2 * np.pi, 25)
        for side in (-1, 1):
            rim = np.stack(
                [
                    side * (eye[0] + 0.001) + 0.0225 * np.cos(angles),
                    eye[1] - 0.002 + 0.019 * np.sin(angles),
                    np.full(25, depth),
                ],
                -1,
            )
            parts.append(tube(rim, np.full(25, 0.0021), rigid(25, "head"), paint, 6))
            outer = np.array([side * (eye[0] + 0.0235), eye[1] + 0.003, depth])
            ear = np.array([side * (1.04 * axes[0]), eye[1] + 0.004, centre[2] - 0.005])
            bar = outer + np.linspace(0, 1, 6)[:, None] * (ear - outer)
            parts.append(tube(bar, np.full(6, 0.0021), rigid(6, "head"), paint, 6))
        bridge = np.stack(
            [
                np.linspace(-1, 1, 5) * (eye[0] - 0.021),
                np.full(5, eye[1] + 0.003),
                np.full(5, depth),
            ],
            -1,
        )
        parts.append(tube(bridge, np.full(5, 0.0021), rigid(5, "head"), paint, 6))
        return Wearing(tuple(parts))

    return make
