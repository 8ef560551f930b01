"""Makes a subject from a capture: fits the kind of field asked for, and measures it.

Poses and cameras are taken as given. Knows nothing of where a capture comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from posegen_ray.body.model import BodyModel
from posegen_ray.config import FieldConfig, FitConfig, RendererConfig
from posegen_ray.errors import DataError
from posegen_ray.subjects.anerf import AnerfModel
from posegen_ray.subjects.capture import Capture
from posegen_ray.subjects.fit_anerf import fit_anerf
from posegen_ray.subjects.fit_voxels import fit_voxels
from posegen_ray.subjects.render import Model
from posegen_ray.subjects.render_fused import FusedModel
from posegen_ray.subjects.store import AnerfSubject, Subject, SubjectManifest, VoxelSubject

Progress = Callable[[int, int], None]  # steps done, steps in all


def fit_steps(field: FieldConfig, config: FitConfig) -> int:
    """How many steps a fit takes."""
    return field.anerf.steps if field.kind == "anerf" else config.steps


def fit_subject(
    capture: Capture,
    body: BodyModel,
    field: FieldConfig,
    config: FitConfig,
    seed: int,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> Subject:
    """A subject, with the PSNR on the held-out frames in its manifest.

    Raises:
        DataError: the capture was made for another body, or has no frame to fit to.
    """
    _check(capture, body)
    bones = capture.bones(body)
    if field.kind == "anerf":
        network = fit_anerf(capture, body, bones, field.anerf, seed, progress, device)
        manifest = _manifest(capture, bones, AnerfModel(network, device))
        return AnerfSubject(manifest, network.to("cpu"))
    lattice, grid, light = fit_voxels(capture, body, bones, config, seed, progress, device)
    model = FusedModel(lattice, grid, light, RendererConfig(), device)
    return VoxelSubject(_manifest(capture, bones, model), lattice, grid, light)


def measure_psnr(
    capture: Capture,
    bones: Tensor,  # [N, 24, 3, 4]
    model: Model,
) -> tuple[float, float]:  # dB: whole picture, person's bounding box; NaN without held-out frames
    """PSNR of the held-out frames before white, from the mean squared error over all of them."""
    full, person = [], []
    for i in capture.held_out.nonzero()[:, 0].tolist():
        with torch.no_grad():
            drawn = model.draw(bones[i : i + 1].to(model.device), capture.view(i, model.device))
        error = (on_white(drawn[0].cpu()) - on_white(capture.target(i))).square().mean(-1)
        rows, columns = (capture.masks[i] > 127).nonzero().unbind(-1)
        full.append(error.mean())
        if len(rows):
            box = error[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            person.append(box.mean())
    return _decibel(full), _decibel(person)


def on_white(
    rgba: Tensor,  # [..., 4] premultiplied
) -> Tensor:  # [..., 3]
    """The picture before a white background."""
    return rgba[..., :3] + 1 - rgba[..., 3:]


def _manifest(capture: Capture, bones: Tensor, model: Model) -> SubjectManifest:
    psnr_full, psnr_person = measure_psnr(capture, bones, model)
    return SubjectManifest(
        name=capture.name,
        body=capture.body,
        shape=tuple(float(v) for v in capture.shape),
        psnr_full=psnr_full,
        psnr_person=psnr_person,
        held_out_frames=int(capture.held_out.sum()),
        capture_sha256=capture.sha256(),
        licence=capture.licence,
        source=capture.source,
    )


def _decibel(errors: list[Tensor]) -> float:
    if not errors:
        return math.nan
    return -10 * math.log10(max(float(torch.stack(errors).mean()), 1e-10))


def _check(capture: Capture, body: BodyModel) -> None:
    if capture.body != body.name:
        raise DataError(
            f"The capture {capture.name!r} was made with the body {capture.body!r}, "
            f"not with {body.name!r}.",
            f"Fit it with body={capture.body}.",
        )
    if len(capture.shape) != body.num_shape:
        raise DataError(
            f"The capture {capture.name!r} has {len(capture.shape)} shape values; "
            f"the body {body.name!r} has {body.num_shape}.",
            "Correct `shape` in capture.json.",
        )
    if bool(capture.held_out.all()):
        raise DataError(
            f"All frames of the capture {capture.name!r} are held out.",
            "Set held_out to false for the frames to fit to.",
        )
