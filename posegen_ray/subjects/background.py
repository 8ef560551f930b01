"""What stands behind the people: photographs without people, procedural rooms and patterns.

The photographs ship inside scikit-image's wheel; nothing is downloaded. Each split has photographs
and random streams of its own, so no background occurs in two splits. Compositing is differentiable.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from posegen_ray.errors import AssetError, ConfigError
from posegen_ray.seeding import numpy_stream

# files of skimage/data, looked at one by one: none shows a person. The two motorcycle pictures
# are a stereo pair, so they stay together.
PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "train": (
        "motorcycle_left.png",
        "motorcycle_right.png",
        "chelsea.png",
        "brick.png",
        "gravel.png",
        "moon.png",
        "ihc.png",
    ),
    "val": ("rocket.jpg", "coins.png", "retina.jpg"),
    "test": ("coffee.png", "grass.png", "text.png", "hubble_deep_field.jpg"),
}
# seamless surfaces that may cover a floor
_MATERIALS: dict[str, tuple[str, ...]] = {
    "train": ("brick.png", "gravel.png"),
    "val": ("coins.png",),
    "test": ("grass.png",),
}
_PHOTO_EDGE = 640  # photographs are kept at most this large


@cache
def _photograph(name: str) -> Tensor:  # [3, H, W] in [0, 1]
    import skimage

    path = Path(skimage.__file__).parent / "data" / name
    try:
        picture = Image.open(path).convert("RGB")
    except OSError as error:
        raise AssetError(
            f"The background photograph {path} cannot be read ({error}).",
            "Reinstall it: pip install --force-reinstall scikit-image.",
        ) from error
    picture.thumbnail((_PHOTO_EDGE, _PHOTO_EDGE))
    return torch.from_numpy(np.asarray(picture, np.float32) / 255).permute(2, 0, 1).contiguous()


def backgrounds(
    split: str,  # train | val | test
    n: int,
    size: int,
    seed: int,
) -> Tensor:  # [n, 3, size, size] float32 in [0, 1]
    """n square pictures without people. Picture i depends on (split, seed, i) alone."""
    if split not in PHOTOGRAPHS:
        raise ConfigError(
            f"Backgrounds have no split {split!r}.", f"Choose one of {', '.join(PHOTOGRAPHS)}."
        )
    out = torch.empty(n, 3, size, size)
    for index in range(n):
        stream = numpy_stream(seed, "background", split, index)
        kind = stream.choice(4, p=[0.4, 0.35, 0.15, 0.1])
        makers = (_photo_crop, _room, _clouds, _rectangles)
        out[index] = makers[kind](split, size, stream)
    return out


def composite(
    rgba: Tensor,  # [B, H, W, 4] premultiplied
    background: Tensor,  # [B, 3, H, W] in [0, 1]
) -> Tensor:  # [B, 3, H, W]
    """Puts renders over backgrounds. Differentiable in both arguments."""
    front = rgba.permute(0, 3, 1, 2)
    return front[:, :3] + (1 - front[:, 3:]) * background


def _sample(
    picture: Tensor,  # [3, H, W]
    grid: Tensor,  # [h, w, 2] in [-1, 1]
) -> Tensor:  # [3, h, w]
    return F.grid_sample(
        picture[None], grid[None], mode="bilinear", padding_mode="reflection", align_corners=False
    )[0]


def _colour_jitter(picture: Tensor, stream: np.random.Generator) -> Tensor:
    gain = stream.uniform(0.65, 1.2) * np.exp(stream.normal(0, 0.1, 3))
    tinted = picture * torch.from_numpy(gain.astype(np.float32))[:, None, None]
    if stream.random() < 0.35:  # greyer
        tinted = tinted.lerp(tinted.mean(0, keepdim=True), float(stream.uniform(0.3, 0.9)))
    return tinted.clamp(0, 1)


def _photo_crop(split: str, size: int, stream: np.random.Generator) -> Tensor:
    picture = _photograph(str(stream.choice(PHOTOGRAPHS[split])))
    height, width = picture.shape[1:]
    half = stream.uniform(0.3, 1.0) * min(height, width) / 2  # half the crop's edge, photo pixels
    angle = stream.normal(0, 0.15)
    centre_x = stream.uniform(half, width - half) if width > 2 * half else width / 2
    centre_y = stream.uniform(half, height - half) if height > 2 * half else height / 2
    steps = torch.linspace(-1, 1, size) * float(half)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    if stream.random() < 0.5:
        x = -x
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    grid = torch.stack(
        [
            (cosine * x - sine * y + centre_x) * (2 / width) - 1,
            (sine * x + cosine * y + centre_y) * (2 / height) - 1,
        ],
        -1,
    )
    crop = _sample(picture, grid)
    if stream.random() < 0.4:  # out of focus
        crop = _blur(crop, int(stream.choice([2, 4, 8])))
    return _colour_jitter(crop, stream)


def _blur(picture: Tensor, factor: int) -> Tensor:
    size = picture.shape[-1]
    small = F.interpolate(picture[None], size=max(size // factor, 2), mode="area")
    return F.interpolate(small, size=size, mode="bilinear", align_corners=False)[0]


def _noise(size: int, stream: np.random.Generator, channels: int, detail: int = 5) -> Tensor:
    """Smooth noise of several octaves, about zero mean and unit range."""
    total = torch.zeros(1, channels, 3, 3)
    for octave in range(detail):  # from coarse to fine; only the last step has the full size
        cells = 3 * 2**octave
        if octave:
            total = F.interpolate(total, size=cells, mode="bilinear", align_corners=False)
        fresh = stream.standard_normal((1, channels, cells, cells), dtype=np.float32)
        total = total + torch.from_numpy(fresh) / 1.8**octave
    return F.interpolate(total, size=size, mode="bilinear", align_corners=False)[0] / 2


def _colour(stream: np.random.Generator) -> Tensor:  # [3, 1, 1], mostly muted
    grey = stream.uniform(0.15, 0.9)
    tint = stream.normal(0, 0.12, 3)
    return torch.from_numpy(np.clip(grey + tint, 0.03, 0.97).astype(np.float32))[:, None, None]


def _clouds(split: str, size: int, stream: np.random.Generator) -> Tensor:
    amount = float(stream.uniform(0.05, 0.3))
    grey, tint = _noise(size, stream, 1), _noise(size, stream, 3, 3)
    return (_colour(stream) + amount * (grey + 0.35 * tint)).clamp(0, 1)


def _rectangles(split: str, size: int, stream: np.random.Generator) -> Tensor:
    ramp = torch.linspace(0, 1, size)[None, :, None]
    picture = (_colour(stream) * (1 - ramp) + _colour(stream) * ramp).expand(3, size, size).clone()
    for _ in range(int(stream.integers(4, 14))):
        _paint_rectangle(
            picture, stream.random(2), stream.uniform(0.08, 0.6, 2), _colour(stream), 0.7
        )
    return picture


def _paint_rectangle(
    picture: Tensor,
    corner: np.ndarray,  # [2] top left, in edges of the picture
    extent: np.ndarray,  # [2]
    colour: Tensor,  # [3, 1, 1]
    opacity: float,
) -> None:
    size = picture.shape[-1]
    left, top = (corner * size).astype(int)
    right, bottom = ((corner + extent) * size).astype(int)
    window = picture[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    window.lerp_(colour.expand_as(window), opacity)


def _room(split: str, size: int, stream: np.random.Generator) -> Tensor:
    """A floor in perspective, a wall with a corner, and things on and along the wall."""
    horizon = float(stream.uniform(0.25, 0.6))  # the horizon's row; the wall ends below it
    skirting = horizon + float(stream.uniform(0.06, 0.25))
    rows = torch.linspace(0, 1, size)[:, None].expand(size, size)
    columns = torch.linspace(-0.5, 0.5, size)[None].expand(size, size)

    wall = _colour(stream).expand(3, size, size) * (1.05 - 0.25 * rows)
    wall = wall + 0.04 * _noise(size, stream, 1, 4)
    corner = float(stream.uniform(-0.8, 0.8))
    wall = torch.where(columns > corner, wall, wall * float(stream.uniform(0.75, 0.95)))
    if stream.random() < 0.3:  # wallpaper
        stripes = (columns * float(stream.uniform(15, 60))).sin() > 0
        wall = wall + 0.05 * stripes * float(stream.uniform(0.5, 2))
    wall = wall.clamp(0, 1)
    for _ in range(int(stream.integers(0, 5))):  # pictures, windows, cupboards
        extent = stream.uniform(0.08, 0.35, 2)
        corner_point = np.array([stream.uniform(-0.1, 1), stream.uniform(-0.1, skirting)])
        _paint_rectangle(wall, corner_point, extent, _colour(stream) * 0.6, 1.0)
        _paint_rectangle(wall, corner_point + 0.012, extent - 0.024, _colour(stream), 0.9)

    # floor point seen in a pixel, in camera heights
    depth = 1 / (rows - horizon).clamp_min(0.02)
    across = columns * depth
    turn = float(stream.uniform(0, np.pi / 2))
    u = np.cos(turn) * across - np.sin(turn) * depth
    v = np.sin(turn) * across + np.cos(turn) * depth
    floor = _floor(split, u, v, stream)
    far = ((depth - 4) / 10).clamp(0, 1)
    average = floor[:, -size // 4 :].mean((1, 2), keepdim=True)
    floor = floor.lerp(average.expand_as(floor), far) * (0.8 + 0.2 * rows)
    board = (rows > skirting - 0.015) & (rows < skirting)
    picture = torch.where(rows < skirting, wall, floor)
    picture = torch.where(board, _colour(stream).expand_as(picture), picture)
    if stream.random() < 0.4:
        picture = _blur(picture, 2)
    return picture.clamp(0, 1)


def _floor(split: str, u: Tensor, v: Tensor, stream: np.random.Generator) -> Tensor:
    kind = stream.integers(4)
    first, second = _colour(stream), _colour(stream)
    scale = float(stream.uniform(1.5, 5))
    if kind == 0:  # tiles
        odd = ((u * scale).floor() + (v * scale).floor()) % 2
        return first + (second - first) * 0.5 * odd
    if kind == 1:  # planks
        plank = (u * scale).floor()
        shade = 0.08 * (plank * 12.9898).sin() + 0.03 * (v * 9 + plank * 3).sin()
        gap = ((u * scale) % 1) < 0.04
        return first + shade - 0.15 * gap
    if kind == 2:  # a photographed surface
        picture = _photograph(str(stream.choice(_MATERIALS[split])))
        return 0.4 * first + 0.6 * _sample(picture, torch.stack([u, v], -1) * 0.5)
    return first + 0.08 * (_noise(u.shape[0], stream, 1) + ((u * 3).sin() * (v * 3).sin()))
