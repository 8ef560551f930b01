"""The report's pictures: samples with skeletons, before and after; generated samples; poses.

Pictures become base64 JPEGs inside the page.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from posegen_ray.evaluation.atlas import AZIMUTH_LABELS, FailureMode, view_bins
from posegen_ray.evaluation.drawing import (
    PREDICTION,
    TRUTH,
    draw_skeleton,
    hip_positions,
    place_joints,
    to_picture,
)
from posegen_ray.evaluation.protocol import motion_name
from posegen_ray.records import Samples

Floats = npt.NDArray[np.float64]

_SIDE = 320  # pixels of a picture with skeletons
_SMALL_SIDE = 160
_MOST_PER_CLIP = 2


def most_extreme(
    score: Floats,  # [N]
    clips: Sequence[str],
    count: int,
) -> list[int]:
    """Rows of the highest scores, at most two of a clip: one clip must not fill the page."""
    taken: Counter[str] = Counter()
    rows: list[int] = []
    for row in np.argsort(-score, kind="stable"):
        if len(rows) < count and taken[clips[row]] < _MOST_PER_CLIP:
            taken[clips[row]] += 1
            rows.append(int(row))
    return rows


def before_after_cards(
    samples: Samples,
    rows: Sequence[int],
    before: Tensor,  # [N, 12, 3] metres
    after: Tensor,  # [N, 12, 3] metres
    before_mm: Floats,  # [N] errors of the skeletons drawn
    after_mm: Floats,  # [N]
    labels: tuple[str, str],
) -> str:
    """A card per row: truth and prediction over the image, for both predictions side by side."""
    cards = []
    for row in rows:
        sample = samples[[row]]
        pictures = [
            _overlay(sample, joints[[row]].to(sample.joints.device)) for joints in (before, after)
        ]
        halves = [
            f"<div>{embedded(picture, f'{label}: prediction over the truth')}"
            f"<p><span>{escape(label)}</span> <b>{error:.0f} mm</b></p></div>"
            for picture, label, error in zip(
                pictures, labels, (before_mm[row], after_mm[row]), strict=True
            )
        ]
        cards.append(
            f'<figure class="card pair">{"".join(halves)}'
            f"<figcaption>{escape(describe(samples, row))}</figcaption></figure>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def cluster_cards(samples: Samples, clusters: Sequence[FailureMode]) -> str:
    """The typical picture of each pose cluster with its errors before and after."""
    cards = []
    for mode in clusters:
        if mode.representative is None or mode.before_mm is None or mode.after_mm is None:
            continue
        row = mode.representative
        picture = _resized(to_picture(samples.images[row]), _SMALL_SIDE * 2)
        scale = picture.width / samples.camera.width
        drawn = draw_skeleton(picture, samples.joints_2d[row] * scale, TRUTH)
        change = mode.after_mm - mode.before_mm
        trend = "better" if change < 0 else "worse"
        signed = f"{change:+.0f}".replace("-", "−")
        cards.append(
            f'<figure class="card">{embedded(drawn, f"typical pose: {mode.label}")}'
            f"<figcaption><b>{escape(mode.label)}</b><span>{mode.count} samples</span>"
            f"<span>{mode.before_mm:.0f} → {mode.after_mm:.0f} mm "
            f'<em class="{trend}">{signed}</em></span></figcaption></figure>'
        )
    return f'<div class="cards small">{"".join(cards)}</div>'


def picture_wall(
    images: Tensor,  # [M, 3, S, S] uint8
    count: int,
) -> str:
    """Evenly chosen images in a dense grid."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))
    cells = [
        embedded(_resized(to_picture(images[int(row)]), _SMALL_SIDE), "generated sample")
        for row in rows
    ]
    return f'<div class="wall">{"".join(cells)}</div>'


def describe(samples: Samples, row: int) -> str:
    """Motion, person and view of a sample in words."""
    view = samples.view[row].detach().cpu().double().numpy()
    azimuth, _ = view_bins(view[None])
    height = np.rad2deg(view[1])
    side = "above" if height > 0 else "below"
    level = "eye level" if abs(height) < 15 else f"{abs(height):.0f}° {side}"
    return (
        f"{motion_name(samples.clips[row])} · {samples.subjects[row]} · "
        f"from {AZIMUTH_LABELS[azimuth[0]]}, {level}"
    )


def embedded(picture: Image.Image, alternative: str) -> str:
    """An <img> element that carries its picture."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alternative)}" '
        f'width="{picture.width}" height="{picture.height}" loading="lazy">'
    )


def _overlay(sample: Samples, prediction: Tensor) -> Image.Image:
    hips = hip_positions(sample.joints, sample.joints_2d, sample.camera)
    placed = place_joints(prediction, hips, sample.camera)[0]
    picture = _resized(to_picture(sample.images[0]), _SIDE)
    scale = picture.width / sample.camera.width
    picture = draw_skeleton(picture, sample.joints_2d[0] * scale, TRUTH)
    return draw_skeleton(picture, torch.as_tensor(placed) * scale, PREDICTION)


def _resized(picture: Image.Image, side: int) -> Image.Image:
    return picture.resize((side, side), Image.Resampling.LANCZOS)
