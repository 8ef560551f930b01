"""Painters of skin, faces, hair, fabrics and shoes: colours as functions of rest-pose points.

Each maker returns a `Painter`; the random parts depend on the seed passed in alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import warp as wp

from posegen_ray.seeding import numpy_stream
from posegen_ray.subjects import raycast_kernels as kernels
from posegen_ray.subjects.tailoring import Figure, Floats, Painter, Surface
from posegen_ray.subjects.warp_cache import prepare

Colour = tuple[float, float, float]

PATTERNS = (
    "plain", "stripes", "pinstripes", "check", "dots", "denim", "knit", "camouflage", "floral",
    "blocks",
)  # fmt: skip


@dataclass(frozen=True)
class Cloth:
    """A fabric: two colours and how they mix."""

    colour: Colour
    second: Colour = (0.9, 0.9, 0.88)
    pattern: str = "plain"
    scale: float = 0.05  # metres of one repeat
    print_on: str = ""  # "" | "star" | "disc" | "bars": a print on the chest


class Noise:
    """Smooth value noise in space, about zero mean and unit variance."""

    _EDGE = 32

    def __init__(self, seed: int, *path: str) -> None:
        self._lattice = numpy_stream(seed, "noise", *path).standard_normal(
            (self._EDGE,) * 3, dtype=np.float32
        )

    def __call__(
        self,
        points: Floats,  # [N, 3]
        cell: float | tuple[float, float, float],  # metres
    ) -> Floats:  # [N]
        prepare("cpu", kernels.__name__)
        scaled = np.ascontiguousarray(points / np.asarray(cell), np.float32)
        values = np.empty(len(points), np.float32)
        wp.launch(
            kernels.value_noise,
            dim=len(points),
            inputs=[
                wp.array(self._lattice, dtype=wp.float32, device="cpu", copy=False),
                wp.array(scaled, dtype=wp.vec3, device="cpu", copy=False),
            ],
            outputs=[wp.array(values, dtype=wp.float32, device="cpu", copy=False)],
            device="cpu",
        )
        return 1.7 * values


def _opaque(rgb: Floats) -> Floats:
    return np.concatenate([rgb, np.ones_like(rgb[:, :1])], 1).astype(np.float32)


def _mix(base: Floats, colour: Colour | Floats, amount: Floats) -> Floats:
    """base -> colour where amount is 1."""
    share = np.clip(amount, 0, 1)[:, None]
    return np.asarray(base * (1 - share) + np.asarray(colour) * share, np.float32)


def _soft(distance: Floats, width: float) -> Floats:
    """1 inside (distance < 0), 0 outside, blurred over `width` metres."""
    return np.clip(0.5 - distance / width, 0, 1).astype(np.float32)


def _line(distance: Floats, half_width: float) -> Floats:
    return _soft(np.abs(distance) - half_width, 0.002)


def fabric(figure: Figure, cloth: Cloth, seed: int, folds: float = 1.0) -> Painter:
    """Cloth with its pattern, weave, folds, and seams along the sides."""
    large, small = Noise(seed, "folds"), Noise(seed, "weave")

    def paint(surface: Surface) -> Floats:
        points = surface.points
        rgb = _pattern(figure, cloth, points, small)
        rgb = rgb * (1 + 0.035 * small(points, 0.004))[:, None]
        rgb = rgb * (1 + folds * _folds(figure, points, large))[:, None]
        seam = _line(points[:, 2] - figure.joint("left_hip")[2], 0.0015) * (
            np.abs(surface.normals[:, 0]) > 0.7
        )
        rgb = _mix(rgb, rgb * 0.6, 0.8 * seam)
        if cloth.print_on:
            rgb = _mix(rgb, cloth.second, _print(figure, cloth, surface))
        return _opaque(rgb)

    return paint


def _pattern(figure: Figure, cloth: Cloth, points: Floats, noise: Noise) -> Floats:
    base = np.broadcast_to(np.asarray(cloth.colour, np.float32), points.shape)
    x, y, z = points.T
    phase = 2 * np.pi / cloth.scale
    # around the trunk; around the arms, which lie along x in the rest pose
    on_arm = np.abs(x) > 0.24
    along = np.where(on_arm, np.abs(x), y)
    trunk = 0.16 * np.arctan2(x, z)
    arm = 0.06 * np.arctan2(y - figure.joint("left_shoulder")[1], z)
    across = np.where(on_arm, arm, trunk).astype(np.float32)

    def band(value: Floats, share: float = 0.5) -> Floats:
        return _soft((np.abs(((value / cloth.scale) % 1) - 0.5) - share / 2) * cloth.scale, 0.003)

    if cloth.pattern == "stripes":
        return _mix(base, cloth.second, band(along))
    if cloth.pattern == "pinstripes":
        return _mix(base, cloth.second, 0.8 * band(across, 0.14))
    if cloth.pattern == "check":
        crossed = 0.5 * band(along) + 0.5 * band(across)
        thin = 0.4 * band(along + 0.3 * cloth.scale, 0.08)
        return _mix(_mix(base, cloth.second, crossed), (0.95, 0.93, 0.9), thin)
    if cloth.pattern == "dots":
        dot = np.sin(phase * along) * np.sin(phase * across)
        return _mix(base, cloth.second, _soft(0.55 - dot, 0.2))
    if cloth.pattern == "denim":
        worn = np.clip(0.5 * noise(points, 0.12), -0.5, 1) + 0.35 * noise(
            points, (0.003, 0.02, 0.003)
        )
        return _mix(base, cloth.second, 0.18 + 0.16 * worn)
    if cloth.pattern == "knit":
        rib = 0.5 + 0.5 * np.sin(2 * np.pi * across / 0.012)
        return np.asarray(base * (0.82 + 0.22 * rib[:, None]), np.float32)
    if cloth.pattern == "camouflage":
        rgb = _mix(base, cloth.second, _soft(0.3 - noise(points, 0.07), 0.1))
        dark = np.asarray(cloth.colour) * 0.45
        return _mix(rgb, dark.astype(np.float32), _soft(0.5 - noise(points + 5, 0.05), 0.1))
    if cloth.pattern == "floral":
        blossom = noise(points, cloth.scale * 0.5)
        rgb = _mix(base, cloth.second, _soft(0.8 - blossom, 0.3))
        leaf = noise(points + 9, cloth.scale * 0.4)
        return _mix(rgb, (0.2, 0.42, 0.22), _soft(1.0 - leaf, 0.3))
    if cloth.pattern == "blocks":
        return _mix(base, cloth.second, _soft(along - (0.5 * cloth.scale + 1.0), 0.004))
    return base.astype(np.float32)


def _folds(figure: Figure, points: Floats, noise: Noise) -> Floats:
    """Brightness of creases: soft everywhere, sharp rings where joints bend the cloth."""
    soft = 0.05 * noise(points, (0.05, 0.16, 0.05)) + 0.03 * noise(points, (0.03, 0.07, 0.03))
    creases = np.zeros(len(points), np.float32)
    wander = 1.9 * noise(points, 0.05) + 3 * noise(points, 0.07)
    for side in ("left_", "right_"):
        for name, reach in (("knee", 0.1), ("ankle", 0.1), ("elbow", 0.09), ("hip", 0.09)):
            centre = figure.joint(side + name)
            distance = np.linalg.norm(points - centre, axis=1)
            along = points[:, 0] if name == "elbow" else points[:, 1]
            wave = np.sin(95 * along + wander)
            creases += 0.09 * wave * np.exp(-((distance / reach) ** 2))
    level = np.exp(-(((points[:, 1] - figure.waist - 0.04) / 0.05) ** 2))
    creases += 0.06 * level * np.sin(80 * points[:, 1] + 2.5 * noise(points, 0.06))
    # hollows are darker: armpits and the inner legs
    armpit = np.array([figure.joint("left_shoulder")[0], figure.armpit + 0.03, 0.0])
    hollow = np.linalg.norm(np.abs(points) * [1, 1, 0.6] - armpit, axis=1)
    inner = np.exp(-((points[:, 0] / 0.03) ** 2)) * np.exp(
        -(((points[:, 1] - figure.crotch) / 0.1) ** 2)
    )
    shade = -0.3 * np.exp(-((hollow / 0.06) ** 2)) - 0.3 * inner
    return np.asarray(soft + creases + shade, np.float32)


def _print(figure: Figure, cloth: Cloth, surface: Surface) -> Floats:
    """Coverage of a print on the chest."""
    middle = 0.6 * figure.joint("spine3")[1] + 0.4 * figure.joint("left_shoulder")[1] - 0.02
    x, y = surface.points[:, 0], surface.points[:, 1] - middle
    front = (surface.normals[:, 2] > 0.15) & (surface.points[:, 2] > 0)
    radius, angle = np.hypot(x, y), np.arctan2(x, y)
    if cloth.print_on == "star":
        sector = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        inner = 0.034 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
        edge = inner - np.array([0.085, 0])
        inside = edge[1] * (radius * np.cos(sector) - 0.085) - edge[0] * radius * np.sin(sector)
        inside = inside / np.hypot(*edge)
    elif cloth.print_on == "disc":
        inside = np.minimum(np.abs(radius - 0.07) - 0.014, radius - 0.035)
    else:  # bars
        bars = np.abs((y + 0.06) % 0.04 - 0.02) - 0.011
        inside = np.maximum(np.maximum(np.abs(x) - 0.09, np.abs(y) - 0.06), bars)
    return _soft(inside, 0.003) * front


def tailored(painter: Painter, figure: Figure, cloth: Cloth, details: tuple[str, ...]) -> Painter:
    """Adds details to a fabric: placket, buttons, pockets, belt, fly, zip, hem, side stripe."""
    dark = np.asarray(cloth.colour, np.float32) * 0.45

    def paint(surface: Surface) -> Floats:
        rgba = painter(surface)
        rgb = rgba[:, :3]
        x, y, z = surface.points.T
        front = surface.normals[:, 2] > 0.1
        back = surface.normals[:, 2] < -0.1
        above = y > figure.crotch
        for detail in details:
            if detail in ("placket", "zip"):
                edges = _line(np.abs(x) - 0.014, 0.0015)
                middle = _line(x, 0.003)
                mark = edges if detail == "placket" else middle + 0.5 * edges
                rgb = _mix(rgb, dark, 0.8 * mark * front * above)
            if detail in ("placket", "buttons"):
                step = (y - figure.crotch) % 0.075 - 0.037
                button = _soft(np.hypot(x, step) - 0.007, 0.003)
                rgb = _mix(rgb, (0.93, 0.9, 0.82), button * front * above)
            if detail == "chest_pocket":
                px, py = x - 0.085, y - figure.joint("spine3")[1] - 0.01
                box = np.maximum(np.abs(px) - 0.042, np.abs(py) - 0.045)
                rgb = _mix(rgb, dark, 0.8 * _line(box, 0.0018) * front)
            if detail == "trouser_pockets":
                slant = np.abs(x) - 0.1 - 0.5 * (figure.waist - 0.03 - y)
                near = (y < figure.waist - 0.03) & (y > figure.waist - 0.15) & front
                rgb = _mix(rgb, dark, 0.8 * _line(slant, 0.002) * near)
                box = np.maximum(np.abs(np.abs(x) - 0.085) - 0.05, np.abs(y - figure.crotch - 0.1))
                box = np.maximum(box, np.abs(y - figure.crotch - 0.1) - 0.05 + 0.0 * z)
                rgb = _mix(rgb, dark, 0.7 * _line(np.maximum(
                    np.abs(np.abs(x) - 0.085) - 0.05, np.abs(y - figure.crotch - 0.1) - 0.055
                ), 0.002) * back)  # fmt: skip
            if detail == "fly":
                rgb = _mix(rgb, dark, 0.7 * _line(x, 0.002) * front * (y > figure.crotch))
            if detail == "belt":
                level = y - (figure.waist - 0.02)
                rgb = _mix(rgb, (0.16, 0.09, 0.05), _soft(np.abs(level) - 0.017, 0.003))
                buckle = np.maximum(np.abs(x) - 0.022, np.abs(level) - 0.016)
                rgb = _mix(rgb, (0.85, 0.78, 0.5), _line(buckle, 0.004) * front)
            if detail == "side_stripe":
                side = np.abs(surface.normals[:, 0]) > 0.55
                outer = side & (surface.normals[:, 0] * x > 0)
                stripe = _soft(np.abs(z - figure.joint("left_hip")[2]) - 0.018, 0.003)
                rgb = _mix(rgb, cloth.second, stripe * outer * (y < figure.waist))
            if detail == "cuffs":
                arm = np.abs(x) > figure.along_arm(0.9)
                rgb = _mix(rgb, dark * 1.4, 0.7 * arm)
        return np.concatenate([rgb, rgba[:, 3:]], 1).astype(np.float32)

    return paint


@dataclass(frozen=True)
class Face:
    """What makes a face: colours in sRGB."""

    skin: Colour
    lips: Colour
    brows: Colour
    iris: Colour = (0.3, 0.19, 0.1)
    stubble: float = 0.0  # 0 shaven to 1 dark
    lines: float = 0.0  # wrinkles of age, 0 to 1
    make_up: float = 0.0


def skin(figure: Figure, face: Face, seed: int) -> Painter:
    """Skin with a painted face, warm knuckles and knees, and nails."""
    noise = Noise(seed, "skin")
    eye = figure.eye
    length = (eye[1] - figure.chin) / 0.1  # 1 for a face whose eyes are 10 cm above the chin
    mouth_y = figure.chin + 0.038 * length
    nose_y = figure.chin + 0.058 * length
    tone = np.asarray(face.skin, np.float32)

    def paint(surface: Surface) -> Floats:
        points = surface.points
        x, y, z = points.T
        side = np.abs(x)
        rgb: Floats = np.broadcast_to(tone, points.shape).astype(np.float32)
        blotch = 0.03 * noise(points, 0.05) + 0.015 * noise(points, 0.008)
        rgb = rgb * (1 + blotch)[:, None]
        front = (y > figure.chin - 0.02) & (z > figure.skull[0][2] + 0.02)
        warm = tone * np.array([1.0, 0.72, 0.68], np.float32)

        def blob(cx: float, cy: float, rx: float, ry: float) -> Floats:
            return np.asarray(
                np.exp(-(((side - cx) / rx) ** 2) - ((y - cy) / ry) ** 2) * front, np.float32
            )

        dx, dy = side - eye[0], y - eye[1]
        rgb = _mix(rgb, warm, 0.5 * blob(0.042, nose_y + 0.005, 0.022, 0.018))
        rgb = _mix(rgb, warm, 0.4 * blob(0.0, nose_y, 0.013, 0.012))
        rgb = _mix(rgb, tone * 0.62, 0.55 * blob(eye[0], eye[1] + 0.004, 0.024, 0.014))
        rgb = _mix(rgb, tone * 0.6, 0.5 * blob(0.017, nose_y + 0.004, 0.005, 0.012))
        rgb = _mix(rgb, tone * 0.3, 0.9 * blob(0.0085, nose_y - 0.0035, 0.0045, 0.0025))
        rgb = _mix(rgb, tone * 0.6, 0.35 * blob(0.0, mouth_y - 0.017, 0.02, 0.005))
        # brows: an arc that thins outwards
        arc = dy - 0.0215 - 0.004 * np.cos(dx / 0.016) + 0.10 * np.maximum(dx, 0) ** 1.3
        thick = 0.0042 - 0.06 * np.maximum(dx, 0)
        brow = _soft(np.abs(arc) - thick, 0.003) * (np.abs(dx - 0.002) < 0.024) * front
        rgb = _mix(rgb, face.brows, 0.9 * brow)
        # eyes: lid line and lashes around the opening (white and iris on bodies without eyeballs)
        opening = np.hypot(dx / 0.0175, (dy + 0.06 * np.abs(dx) - 0.0005) / 0.0085)
        on_eye = np.zeros(len(points), bool)
        if figure.eyeballs.any():
            centre = np.array([eye[0], eye[1], eye[2] - 0.0145])
            on_eye = np.abs(np.linalg.norm(np.abs(points * [1, 0, 0]) + points * [0, 1, 1] - centre,
                                           axis=1) - 0.0145) < 0.0012  # fmt: skip
        else:
            on_eye = (opening < 0.9) & front
        if face.make_up:
            lid = _soft(np.abs(dy - 0.011) - 0.006, 0.004) * (np.abs(dx) < 0.02) * front
            rgb = _mix(rgb, (0.35, 0.22, 0.3), 0.6 * face.make_up * lid)
        upper = _soft(np.abs(opening - 1.05) - 0.16, 0.1) * (dy > -0.003) * front
        lower = _soft(np.abs(opening - 1.05) - 0.08, 0.1) * (dy <= -0.003) * front
        rgb = _mix(rgb, (0.07, 0.04, 0.03), 0.95 * upper + 0.45 * lower)
        radius = np.hypot(dx, dy)
        eyeball = np.broadcast_to(np.array([0.86, 0.84, 0.82], np.float32), points.shape)
        eyeball = _mix(eyeball, face.iris, _soft(radius - 0.0074, 0.001))
        eyeball = _mix(eyeball, (0.02, 0.02, 0.02), _soft(radius - 0.0032, 0.001))
        glint = np.hypot(x - np.sign(x) * eye[0] - 0.0025, dy - 0.003)
        eyeball = _mix(eyeball, (1, 1, 1), _soft(glint - 0.0014, 0.001))
        rgb = np.where(on_eye[:, None], eyeball, rgb)
        # mouth
        bow = 0.0015 * np.cos(x / 0.0065)
        upper_lip = np.hypot(x / 0.025, (y - mouth_y - 0.002) / (0.0075 + bow))
        lower_lip = np.hypot(x / 0.022, (y - mouth_y + 0.004) / 0.0085)
        lips = _soft(np.minimum(upper_lip, lower_lip) - 1, 0.25) * front
        rgb = _mix(rgb, face.lips, (0.75 + 0.2 * face.make_up) * lips)
        gap = _soft(np.abs(y - mouth_y - 0.002 * np.cos(x / 0.012)) - 0.0013, 0.002)
        rgb = _mix(rgb, np.asarray(face.lips, np.float32) * 0.35, gap * (side < 0.023) * front)
        if face.stubble:
            behind = figure.skull[0][2] + 0.01
            jaw = _soft(figure.chin - 0.02 - y, 0.03) * _soft(behind - z, 0.03)
            amount = face.stubble * (0.32 + 0.1 * noise(points, 0.003)) * jaw * (1 - lips)
            cheek = mouth_y + 0.016 + 0.6 * np.maximum(eye[2] - 0.015 - z, 0)
            reach = _soft(y - cheek, 0.016)
            rgb = _mix(rgb, np.asarray(face.brows, np.float32), amount * reach)
        if face.lines:
            fold = _line(side - 0.022 - 0.35 * (nose_y - y), 0.0015)
            fold = fold * ((y < nose_y) & (y > mouth_y - 0.006)) * front
            forehead = _line((y - eye[1] - 0.042) % 0.012 - 0.006, 0.001) * (side < 0.032)
            forehead = forehead * ((y > eye[1] + 0.036) & (y < eye[1] + 0.065)) * front
            rgb = _mix(rgb, tone * 0.55, face.lines * (0.7 * fold + 0.5 * forehead))
        # hands and feet: warmer, paler nails
        hand = side > figure.along_arm(1.25)
        rgb = _mix(rgb, warm, 0.25 * hand)
        return _opaque(rgb)

    return paint


def hair(
    figure: Figure, colour: Colour, seed: int, strand: tuple[float, float, float] = (0.004, 0.07, 1)
) -> Painter:
    """Strands: streaks of light and dark that run down from the crown, and sheen.

    `strand` is their size in metres around the head, along the strand, and across its thickness.
    """
    noise = Noise(seed, "hair")
    base = np.asarray(colour, np.float32)
    centre = figure.skull[0]

    def paint(surface: Surface) -> Floats:
        away = surface.points - centre - np.array([0, 0, -0.03], np.float32)
        level = np.hypot(away[:, 0], away[:, 2])
        around = 0.09 * np.arctan2(away[:, 0], away[:, 2])
        down = 0.1 * np.arctan2(level, away[:, 1]) - np.minimum(away[:, 1], 0)
        points = np.stack([around, down, level], -1).astype(np.float32)
        wide = (3 * strand[0], 3 * strand[1], 3 * strand[2])
        streak = 0.14 * noise(points, strand) + 0.10 * noise(points + 3, wide)
        sheen = 0.3 * np.exp(-(((down - 0.07) / 0.025) ** 2)) - 0.1
        rgb = base * (0.92 + streak + sheen)[:, None]
        return _opaque(rgb.astype(np.float32))

    return paint


def plain(colour: Colour) -> Painter:
    """One colour."""

    def paint(surface: Surface) -> Floats:
        return _opaque(np.broadcast_to(np.asarray(colour, np.float32), surface.points.shape))

    return paint


def shoe(figure: Figure, colour: Colour, sole: Colour, accent: Colour, laces: bool) -> Painter:
    """An upper, a sole with a welt, a toe cap, laces or a side stripe."""
    ankle = figure.joint("left_ankle")
    toe_z = float(figure.joint("left_foot")[2])

    def paint(surface: Surface) -> Floats:
        x, y, z = surface.points.T
        x = np.abs(x) - ankle[0]
        rgb = np.broadcast_to(np.asarray(colour, np.float32), surface.points.shape)
        rgb = _mix(rgb, np.asarray(colour, np.float32) * 0.75, _soft(toe_z + 0.025 - z, 0.004))
        stripe = np.abs((z - 0.6 * y - ankle[2]) - 0.035)
        rgb = _mix(
            rgb, accent, _soft(stripe - 0.009, 0.003) * (np.abs(surface.normals[:, 0]) > 0.4)
        )
        if laces:
            top = surface.normals[:, 1] > 0.35
            step = (z % 0.016) - 0.008
            reach = (z > ankle[2] + 0.06) & (z < toe_z) & (np.abs(x) < 0.022)
            rgb = _mix(rgb, accent, 0.8 * _soft(np.abs(step) - 0.002, 0.002) * top * reach)
        rgb = _mix(rgb, sole, _soft(y - 0.026, 0.003))
        rgb = _mix(rgb, np.asarray(sole, np.float32) * 0.5, _line(y - 0.026, 0.0015))
        return _opaque(rgb.astype(np.float32))

    return paint
