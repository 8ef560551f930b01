"""How much a subject looks like the held-out frames of its capture: PSNR, SSIM, LPIPS."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from posegen_ray.errors import ResourceError
from posegen_ray.subjects.capture import Capture
from posegen_ray.subjects.render import Model

Lpips = Callable[[Tensor, Tensor], float]  # two pictures [H, W, 3] in [0, 1] -> their distance


@dataclass(frozen=True)
class Quality:
    """Over all held-out frames, before white; NaN where nothing was measured."""

    psnr_full: float  # dB, whole picture, from the mean squared error over all frames
    psnr_person: float  # dB, inside the person's bounding box
    ssim: float  # whole picture, mean over frames (Wang et al. 2004)
    lpips: float  # whole picture, mean over frames (Zhang et al. 2018, AlexNet)


def measure(
    capture: Capture,
    bones: Tensor,  # [N, 24, 3, 4]
    model: Model,
    lpips: Lpips | None = None,
) -> Quality:
    """Draws every held-out frame and compares."""
    full, person, similar, distant = [], [], [], []
    for i in capture.held_out.nonzero()[:, 0].tolist():
        with torch.no_grad():
            drawn = model.draw(bones[i : i + 1].to(model.device), capture.view(i, model.device))
        ours, true = on_white(drawn[0].cpu()), on_white(capture.target(i))
        error = (ours - true).square().mean(-1)
        full.append(error.mean())
        rows, columns = (capture.masks[i] > 127).nonzero().unbind(-1)
        if len(rows):
            box = error[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            person.append(box.mean())
        similar.append(_ssim(ours.numpy(), true.numpy()))
        if lpips is not None:
            distant.append(lpips(ours, true))
    return Quality(decibel(full), decibel(person), _mean(similar), _mean(distant))


def on_white(
    rgba: Tensor,  # [..., 4] premultiplied
) -> Tensor:  # [..., 3]
    """The picture before a white background."""
    return rgba[..., :3] + 1 - rgba[..., 3:]


def decibel(errors: list[Tensor]) -> float:
    """PSNR of mean squared errors, pooled; NaN of none."""
    if not errors:
        return math.nan
    return -10 * math.log10(max(float(torch.stack(errors).mean()), 1e-10))


def load_lpips() -> Lpips:
    """LPIPS of the `lpips` package.

    Raises:
        ResourceError: the package is missing, or AlexNet's weights cannot be had.
    """
    try:
        import lpips
    except ImportError as error:
        raise ResourceError(
            "fit.lpips=true needs the package lpips.", "pip install 'posegen-ray[lpips]'"
        ) from error
    try:
        network = lpips.LPIPS(net="alex", verbose=False).eval()
    except (OSError, RuntimeError) as error:
        raise ResourceError(
            f"LPIPS cannot load AlexNet's weights ({error}).",
            "torchvision downloads them once from pytorch.org: connect to the internet, or put "
            "them into torch's hub cache. Without LPIPS: fit.lpips=false.",
        ) from error

    def distance(ours: Tensor, true: Tensor) -> float:
        pictures = [(2 * picture - 1).permute(2, 0, 1)[None] for picture in (ours, true)]
        with torch.no_grad():
            return float(network(*pictures))

    return distance


def _ssim(ours: np.ndarray, true: np.ndarray) -> float:
    """With the Gaussian window and the weights of the paper."""
    return float(
        structural_similarity(
            true,
            ours,
            channel_axis=2,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan
