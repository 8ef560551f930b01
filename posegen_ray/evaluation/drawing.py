"""Pictures for people: skeletons over images, grids, contact sheets. Knows nothing of errors.

Pixels follow `body.camera`: the centre of pixel (column i, row j) is (i + 0.5, j + 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from posegen_ray.body.camera import Camera
from posegen_ray.body.skeleton import LIMB_EDGES, LIMB_JOINT_NAMES
from posegen_ray.errors import DataError

_SUPERSAMPLE = 3  # drawn this much larger, then reduced: smooth lines


@dataclass(frozen=True)
class SkeletonStyle:
    """Colours of the person's left limbs, right limbs and trunk, and the line width in pixels."""

    left: str
    right: str
    trunk: str
    width: float = 3.0


# told apart by lightness and hue in every common form of colour blindness (Okabe and Ito)
TRUTH = SkeletonStyle(left="#2ee6a8", right="#12a67c", trunk="#1fc792")
PREDICTION = SkeletonStyle(left="#ffb347", right="#e8590c", trunk="#f58a2a")
_OUTLINE = "#101418"


def hip_positions(
    joints: Tensor,  # [N, 12, 3] metres, camera axes, any offset
    joints_2d: Tensor,  # [N, 12, 2] pixels of the same joints
    camera: Camera,
) -> Tensor:  # [N, 3] metres
    """Where in front of the camera the joints' zero lies: the translation that explains the pixels.

    The pinhole equations f (x + tx) = (u - cx) (z + tz), and the same for y, are linear in t: least
    squares over the joints; exact when pixels and joints belong together.
    """
    joints, joints_2d = joints.double(), joints_2d.double()
    focal = camera.focal.double()[:, None].expand(-1, joints.shape[1])
    zero = torch.zeros_like(focal)
    offset = joints_2d - camera.principal.double()[:, None]
    rows = torch.cat(
        [
            torch.stack([focal, zero, -offset[..., 0]], -1),
            torch.stack([zero, focal, -offset[..., 1]], -1),
        ],
        1,
    )
    residual = offset * joints[..., 2:] - focal[..., None] * joints[..., :2]
    right_side = torch.cat([residual[..., 0], residual[..., 1]], 1)
    solution: Tensor = torch.linalg.lstsq(rows, right_side[..., None]).solution[..., 0]
    return solution


def place_joints(
    joints: Tensor,  # [N, 12, 3] metres, camera axes, mid-hip at 0
    hips: Tensor,  # [N, 3] metres, from hip_positions
    camera: Camera,
) -> Tensor:  # [N, 12, 2] pixels
    """Pixels of hip-centred joints put at a hip position. Depths below 10 cm count as 10 cm."""
    points = joints.double() + hips.double()[:, None]
    depth = points[..., 2:].clamp_min(0.1)
    focal = camera.focal.double()[:, None, None]
    return points[..., :2] / depth * focal + camera.principal.double()[:, None]


def to_picture(
    image: Tensor,  # [3, H, W] uint8, or float in [0, 1]
) -> Image.Image:
    """An image tensor as a picture."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise DataError(
            f"A tensor of shape {tuple(image.shape)} is no picture.", "Give [3, H, W] RGB."
        )
    if image.dtype != torch.uint8:
        image = (image.detach().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))


def draw_skeleton(
    picture: Image.Image,
    joints_2d: Tensor,  # [12, 2] pixels of the picture
    style: SkeletonStyle = TRUTH,
) -> Image.Image:
    """A copy of the picture with the 12 limb joints drawn as dots and lines over it."""
    scale = _SUPERSAMPLE
    layer = Image.new("RGBA", (picture.width * scale, picture.height * scale), (0, 0, 0, 0))
    pen = ImageDraw.Draw(layer)
    # far outside, the line still leaves the picture in the right direction and PIL stays fast
    limit = 4 * max(picture.size)
    pixels = joints_2d.detach().cpu().double().nan_to_num().clamp(-limit, limit) * scale
    points = [(float(x), float(y)) for x, y in pixels]
    width = style.width * scale
    for outline in (True, False):
        for first, second in LIMB_EDGES:
            colour = _OUTLINE if outline else _edge_colour(first, second, style)
            thick = round(width + 2 * scale * 0.7) if outline else round(width)
            pen.line([points[first], points[second]], fill=colour, width=thick)
        for index, (x, y) in enumerate(points):
            colour = _OUTLINE if outline else _edge_colour(index, index, style)
            radius = width * 0.85 + (scale * 0.7 if outline else 0)
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
    layer = layer.resize(picture.size, Image.Resampling.LANCZOS)
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def image_grid(
    pictures: Sequence[Image.Image],
    columns: int,
    gap: int = 4,
    background: str = "#ffffff",
) -> Image.Image:
    """Pictures of one size in rows, with gaps; the last row may be short."""
    if not pictures:
        raise DataError("A grid of no pictures is asked for.", "Give at least one picture.")
    columns = max(1, min(columns, len(pictures)))
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].size
    sheet = Image.new(
        "RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), background
    )
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture.resize((width, height)), (column * (width + gap), row * (height + gap)))
    return sheet


def contact_sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    columns: int,
    caption_height: int = 16,
) -> Image.Image:
    """A grid with a line of text under each picture."""
    font = ImageFont.load_default(size=caption_height * 0.72)
    cells = []
    for picture, caption in zip(pictures, captions, strict=True):
        cell = Image.new("RGB", (picture.width, picture.height + caption_height), "#ffffff")
        cell.paste(picture, (0, 0))
        ImageDraw.Draw(cell).text((3, picture.height + 1), caption, fill="#111111", font=font)
        cells.append(cell)
    return image_grid(cells, columns)


def _edge_colour(first: int, second: int, style: SkeletonStyle) -> str:
    sides = {LIMB_JOINT_NAMES[index].split("_")[0] for index in (first, second)}
    if sides == {"left"}:
        return style.left
    return style.right if sides == {"right"} else style.trunk
