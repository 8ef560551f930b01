"""Patterns of clothes and shoes: from a figure's measures to parts that can be worn.

Close cloth is a shell over the body; loose cloth (skirts, coats, wide legs) is lofted around the
body's convex outline and hangs off it, with skinning weights averaged over a hand's breadth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from posegen_ray.body.skeleton import JOINT
from posegen_ray.subjects.paint import Cloth, Colour, fabric, plain, shoe, tailored
from posegen_ray.subjects.tailoring import (
    Bools,
    Figure,
    Floats,
    Painter,
    Part,
    Region,
    Surface,
    hull_radius,
    loft,
    shell,
    tube,
    upright_rings,
)


@dataclass(frozen=True)
class Wearing:
    """Parts of one garment, and the part of the body that it hides."""

    parts: tuple[Part, ...]
    hides: Region | None = None


# a garment is a function of the body's measures and a seed
Garment = Callable[[Figure, int], Wearing]


def _legs(figure: Figure, side: str) -> Bools:
    joints = [JOINT[f"{side}_{name}"] for name in ("hip", "knee", "ankle")]
    return np.asarray(figure.weights[:, joints].sum(1) > 0.5)


def _trunk(figure: Figure) -> Bools:
    """Trunk and legs without the arms."""
    x, y = np.abs(figure.vertices[:, 0]), figure.vertices[:, 1]
    return np.asarray((y < figure.armpit) | (x < figure.along_arm(-0.03)))


def top_region(figure: Figure, sleeve: float, hem: float, neck: str, opening: float = 0) -> Region:
    """Inside of a top: sleeves to the fraction `sleeve` of the arm, down to the height `hem`."""
    collar = figure.joint("neck")

    def region(points: Floats) -> Floats:
        x, y, z = points.T
        inside = y - hem
        arm = y > figure.armpit
        inside = np.where(arm, np.minimum(inside, figure.along_arm(sleeve) - np.abs(x)), inside)
        ahead = np.maximum(z - collar[2], -0.06)
        line = collar[1] - 0.012 - 0.55 * ahead
        if neck == "v":
            line = line - np.maximum(0.1 - 1.4 * np.abs(x), 0) * (z > 0)
        elif neck == "wide":
            line = line - np.where(z > 0, 0.05, 0.02)
        elif neck == "high":
            line = line + 0.035
        near = np.abs(x) < figure.along_arm(-0.15)
        inside = np.minimum(inside, np.where(near, line, figure.chin - 0.03) - y)
        if opening:
            wide = opening * (0.6 + 0.8 * (collar[1] - y))
            inside = np.where(z > 0, np.minimum(inside, np.abs(x) - wide), inside)
        return np.asarray(inside)

    return region


def top(
    cloth: Cloth,
    sleeve: float = 0.35,
    length: float = 0.12,  # hem below the waist, metres
    neck: str = "crew",  # crew | v | wide | high
    thickness: float = 0.012,
    ease: float = 0.012,  # how far the lower part hangs off the body; 0: close-fitting
    opening: float = 0.0,  # half width of an open front
    collar: bool = False,
    hood: bool = False,
    details: tuple[str, ...] = (),
    trim: Colour | None = None,  # collar ribs and drawstrings
) -> Garment:
    """T-shirts, shirts, hoodies, jackets and coats."""

    def make(figure: Figure, seed: int) -> Wearing:
        hem = figure.waist - length
        region = top_region(figure, sleeve, hem, neck, opening)
        painter = tailored(fabric(figure, cloth, seed), figure, cloth, details)
        painter = _with_ribs(painter, region, cloth, trim)
        shell_region = region
        parts: list[Part] = []
        if ease:
            # the shell ends under the chest, where the hanging part has taken over
            chest = figure.joint("spine3")[1]
            hidden_hem = max(hem, chest - 0.08)
            shell_region = top_region(figure, sleeve, hidden_hem, neck, opening)
            levels = np.linspace(chest + 0.02, hem, 22).astype(np.float32)
            slack = thickness + ease * np.clip((chest + 0.02 - levels) / 0.12, 0, 1)
            rings = upright_rings(figure, levels, slack, _trunk(figure), drape=False)
            rings = _hang(rings, 0.35)
            weights = figure.borrow_weights(rings.reshape(-1, 3), 0.05)
            parts.append(loft(rings, weights, _cut(painter, region), cutout=True))
        parts.append(shell(figure, shell_region, thickness, painter, smoothing=5))
        red, green, blue = cloth.colour
        rib = trim or (0.7 * red, 0.7 * green, 0.7 * blue)
        if collar:
            parts.append(_collar(figure, painter, thickness, opening))
        if hood:
            parts.extend(_hood(figure, painter, plain(rib), thickness))
        return Wearing(tuple(parts), None if opening else region)

    return make


def _hang(rings: Floats, amount: float) -> Floats:
    """Lets each ring reach at least part of the way out to the widest ring above it."""
    rings = rings.copy()
    middle = rings.mean(1, keepdims=True)
    for index in range(1, len(rings)):
        here, above = rings[index] - middle[index], rings[index - 1] - middle[index - 1]
        radius = np.linalg.norm(here[:, [0, 2]], axis=1)
        before = np.linalg.norm(above[:, [0, 2]], axis=1)
        wanted = np.maximum(radius, amount * before + (1 - amount) * radius)
        rings[index][:, [0, 2]] = (
            middle[index][:, [0, 2]]
            + here[:, [0, 2]] * (wanted / np.maximum(radius, 1e-6))[:, None]
        )
    return rings


def _cut(paint: Painter, region: Region) -> Painter:
    def painter(surface: Surface) -> Floats:
        colour = paint(surface)
        colour[:, 3] *= np.clip(region(surface.points) / 0.003 + 0.5, 0, 1)
        return colour

    return painter


def _with_ribs(paint: Painter, region: Region, cloth: Cloth, trim: Colour | None) -> Painter:
    """Hems: the last 2 cm before every edge in a trim colour, or darkened."""

    def painter(surface: Surface) -> Floats:
        colour = paint(surface)
        edge = np.clip((0.02 - region(surface.points)) / 0.002, 0, 1)[:, None]
        rib = colour[:, :3] * 0.82 if trim is None else np.asarray(trim, np.float32)
        colour[:, :3] = colour[:, :3] * (1 - edge) + rib * edge
        return colour

    return painter


def _collar(figure: Figure, paint: Painter, thickness: float, opening: float) -> Part:
    """A turned-down collar around the neck, open at the front."""
    centre = figure.joint("neck")
    angles = np.linspace(0.28 + 2 * opening, 2 * np.pi - 0.28 - 2 * opening, 40) + np.pi / 2
    near = figure.vertices[
        (np.abs(figure.vertices[:, 1] - centre[1] - 0.015) < 0.02)
        & (np.abs(figure.vertices[:, 0]) < 0.07)
    ]
    radius = hull_radius(near[:, [0, 2]], centre[[0, 2]], angles.astype(np.float32))
    rings = []
    for height, extra in ((0.028, 0.002), (0.033, 0.008), (0.014, 0.017), (-0.01, 0.027)):
        reach = radius + thickness * 0.4 + extra
        ring = np.stack([reach * np.cos(angles), np.zeros(len(angles)), reach * np.sin(angles)], -1)
        ring[:, 1] = centre[1] + height - 0.45 * ring[:, 2] - 0.015
        ring[:, [0, 2]] += centre[[0, 2]]
        rings.append(ring)
    stack = np.asarray(rings, np.float32)[:, ::-1]
    return loft(stack, figure.borrow_weights(stack.reshape(-1, 3), 0.03), paint, closed=False)


def _hood(figure: Figure, paint: Painter, strings: Painter, thickness: float) -> list[Part]:
    """A hood that lies on the back and shoulders, and two drawstrings."""
    neck = figure.joint("neck")
    angles = np.linspace(-0.15 * np.pi, 1.15 * np.pi, 28)
    back = np.clip(np.sin(angles), 0, 1)
    path = np.stack(
        [
            (0.082 + 0.012 * back) * np.cos(angles),
            neck[1] - 0.03 + 0.03 * back,
            neck[2] - 0.0 - (0.075 + 0.03 * back) * np.sin(angles),
        ],
        -1,
    )
    radius = 0.014 + 0.036 * back
    parts = [tube(path, radius, figure.borrow_weights(path.astype(np.float32), 0.04), paint, 16)]
    chest = figure.vertices[np.abs(figure.vertices[:, 0]) < 0.06]
    for side in (-1, 1):
        heights = np.linspace(neck[1] - 0.06, neck[1] - 0.2, 8)
        front = [chest[np.abs(chest[:, 1] - h) < 0.02, 2].max() + thickness + 0.01 for h in heights]
        line = np.stack([np.full(8, 0.035 * side), heights, np.array(front)], -1)
        weights = figure.borrow_weights(line.astype(np.float32), 0.03)
        parts.append(tube(line, np.full(8, 0.0045), weights, strings, 6))
    return parts


def trousers(
    cloth: Cloth,
    length: float = 0.97,  # fraction of the way from hip to ankle
    width: float = 0.0,  # metres that wide legs stand off the leg at the hem
    thickness: float = 0.008,
    details: tuple[str, ...] = ("trouser_pockets", "fly", "belt"),
) -> Garment:
    """Trousers, shorts and leggings; wide legs are separate tubes."""

    def make(figure: Figure, seed: int) -> Wearing:
        hem = figure.along_leg(length)

        def region(points: Floats) -> Floats:
            return np.minimum(figure.waist - points[:, 1], points[:, 1] - hem)

        painter = tailored(fabric(figure, cloth, seed), figure, cloth, details)
        painter = _with_ribs(painter, lambda points: points[:, 1] - hem + 0.004, cloth, None)
        parts = [shell(figure, region, thickness, painter, smoothing=4)]
        if width:
            for side in ("left", "right"):
                start = figure.crotch + 0.02
                levels = np.linspace(start, hem, 20).astype(np.float32)
                progress = (start - levels) / (start - hem)
                slack = (thickness + 0.004 + width * progress**0.8).astype(np.float32)
                rings = upright_rings(figure, levels, slack, _legs(figure, side), 40, drape=False)
                rings = _hang(rings, 0.8)
                weights = figure.borrow_weights(rings.reshape(-1, 3), 0.03)
                _one_leg(weights, side)
                parts.append(loft(rings, weights, painter))
        return Wearing(tuple(parts), region)

    return make


def _one_leg(weights: Floats, side: str) -> None:
    """Moves weights that leaked onto the other leg back, in place."""
    other = "right" if side == "left" else "left"
    for name in ("hip", "knee", "ankle", "foot"):
        weights[:, JOINT[f"{side}_{name}"]] += weights[:, JOINT[f"{other}_{name}"]]
        weights[:, JOINT[f"{other}_{name}"]] = 0


def skirt(
    cloth: Cloth,
    length: float = 0.5,  # fraction of the way from hip to ankle
    flare: float = 0.1,  # metres that it stands off the legs at the hem
    rise: float = 0.0,  # how far above the waist it starts, metres
    pleats: int = 14,
    details: tuple[str, ...] = (),
) -> Garment:
    """A skirt, or the lower part of a dress."""

    def make(figure: Figure, seed: int) -> Wearing:
        start, hem = figure.waist + rise, figure.along_leg(length)
        levels = np.linspace(start, hem, 26).astype(np.float32)
        progress = np.clip((start - 0.1 - levels) / (start - 0.1 - hem), 0, 1)
        slack = (0.014 + flare * progress).astype(np.float32)
        rings = upright_rings(figure, levels, slack, _trunk(figure), 96)
        middle = rings.mean(1, keepdims=True)
        angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        wave = 1 + (0.05 * progress)[:, None] * np.cos(pleats * angles)[None]
        rings = middle + (rings - middle) * np.where([True, False, True], wave[..., None], 1)
        weights = figure.borrow_weights(rings.reshape(-1, 3).astype(np.float32), 0.035)
        base = tailored(fabric(figure, cloth, seed), figure, cloth, details)

        def painter(surface: Surface) -> Floats:
            colour = base(surface)
            fold = np.cos(pleats * 2 * np.pi * surface.uv[:, 0]) * surface.uv[:, 1]
            colour[:, :3] *= (1 + 0.16 * fold)[:, None]
            border = np.abs(surface.points[:, 1] - hem - 0.012) < 0.004
            colour[:, :3] *= np.where(border, 0.75, 1)[:, None]
            return colour

        # thighs that the cloth surrounds would come through it in a long stride
        hidden = min(hem + 0.12, figure.crotch)

        def region(points: Floats) -> Floats:
            return np.minimum(start - points[:, 1], points[:, 1] - hidden)

        return Wearing((loft(rings.astype(np.float32), weights, painter),), region)

    return make


def socks(colour: Colour, height: float = 0.12) -> Garment:
    """Socks, up to `height` above the ankle."""

    def make(figure: Figure, seed: int) -> Wearing:
        def region(points: Floats) -> Floats:
            return np.asarray(figure.ankle + height - points[:, 1])

        cloth = Cloth(colour, pattern="knit")
        return Wearing((shell(figure, region, 0.004, fabric(figure, cloth, seed), 1),), region)

    return make


def shoes(
    colour: Colour,
    sole: Colour = (0.93, 0.92, 0.88),
    accent: Colour = (0.9, 0.9, 0.9),
    laces: bool = True,
    shaft: float = 0.0,  # metres above the ankle: boots
) -> Garment:
    """A pair of trainers, leather shoes or boots."""

    def make(figure: Figure, seed: int) -> Wearing:
        parts: list[Part] = []
        painter = shoe(figure, colour, sole, accent, laces)
        for side in ("left", "right"):
            joints = [JOINT[f"{side}_ankle"], JOINT[f"{side}_foot"]]
            foot = figure.weights[:, joints].sum(1) > 0.5
            rings = _shoe_rings(figure.vertices[foot], figure.ankle + 0.018)
            weights = figure.borrow_weights(rings.reshape(-1, 3), 0.02)
            _one_leg(weights, side)
            parts.append(loft(rings, weights, painter))
            if shaft:
                levels = np.linspace(figure.ankle + shaft, figure.ankle - 0.02, 10)
                legs = _legs(figure, side) | foot
                narrow = figure.vertices[:, 2] < figure.joint(f"{side}_ankle")[2] + 0.07
                slack = np.linspace(0.014, 0.01, 10).astype(np.float32)
                shaft_rings = upright_rings(
                    figure, levels.astype(np.float32), slack, legs & narrow, 32, drape=False
                )
                weights = figure.borrow_weights(shaft_rings.reshape(-1, 3), 0.02)
                _one_leg(weights, side)
                leather = fabric(figure, Cloth(colour), seed)
                parts.append(loft(shaft_rings, weights, leather))
        hidden = figure.ankle - 0.015

        def region(points: Floats) -> Floats:
            return np.asarray(hidden - points[:, 1])

        return Wearing(tuple(parts), region)

    return make


def _shoe_rings(foot: Floats, cap: float) -> Floats:
    """Convex slices of the foot from heel to toe; the ends are closed by shrunken slices."""
    foot = foot[foot[:, 1] < cap]
    floor = float(foot[:, 1].min()) - 0.006
    back, front = float(foot[:, 2].min()), float(foot[:, 2].max())
    angles = np.linspace(0, 2 * np.pi, 28, endpoint=False).astype(np.float32)
    stations = [(back - 0.009, back + 0.012, 0.05), (back - 0.007, back + 0.012, 0.7)]
    stations += [(z, z, 1.0) for z in np.linspace(back + 0.012, front - 0.008, 14)]
    stations += [(front + 0.008, front - 0.01, 0.75), (front + 0.012, front - 0.01, 0.05)]
    rings = []
    for z, measured, scale in stations:
        slab = foot[np.abs(foot[:, 2] - measured) < 0.014][:, :2]
        middle = (slab.min(0) + slab.max(0)) / 2
        radius = hull_radius(slab, middle, angles) + 0.007
        ring = np.stack(
            [
                middle[0] + scale * radius * np.cos(angles),
                middle[1] + scale * radius * np.sin(angles),
                np.full(len(angles), z),
            ],
            -1,
        )
        ring[:, 1] = np.maximum(ring[:, 1], floor)
        # a sole: the lowest two centimetres are as wide as the foot and stand on the floor
        low = ring[:, 1] < floor + 0.02
        ring[low, 1] = floor + 0.35 * (ring[low, 1] - floor)
        rings.append(ring)
    return np.asarray(rings, np.float32)
