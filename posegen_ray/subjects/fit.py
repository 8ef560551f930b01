"""Makes a subject from a capture: runs the kind of fit asked for, watches it, and measures the end.

An interrupted fit goes on from where its state was last kept, with the same result. Knows nothing
of where a capture comes from.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from posegen_ray.body.model import BodyModel
from posegen_ray.config import FieldConfig, FitConfig
from posegen_ray.errors import DataError, ResourceError
from posegen_ray.subjects.capture import Capture, joints_in_mask
from posegen_ray.subjects.fit_anerf import AnerfFitter
from posegen_ray.subjects.fit_voxels import VoxelFitter
from posegen_ray.subjects.quality import load_lpips, measure, on_white
from posegen_ray.subjects.render import Model
from posegen_ray.subjects.store import AnerfSubject, Subject, SubjectManifest, VoxelSubject

_STATE = "state.pt"
_MEMORY = 0.98  # of the running error, a step


@dataclass(frozen=True)
class FitProgress:
    """How far a fit is."""

    done: int  # steps
    total: int
    psnr: float  # dB, of the rays near the person in the latest training pictures


Watch = Callable[[FitProgress], None]


class Fitter(Protocol):
    """One kind of fit, step by step. Random choices depend on seed and step alone."""

    done: int
    total: int

    def step(self) -> float:
        """Takes one step; the mean squared error that it met."""

    def model(self) -> Model:
        """What is there so far, ready to be drawn."""

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on: tensors and numbers."""

    def resume(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""

    def result(self) -> tuple[dict[str, Any], Model, Capture]:
        """What the subject holds beside its manifest, its model, and the capture as it is now
        believed to be (with corrected poses, where these were asked for)."""


def fit_steps(field: FieldConfig, config: FitConfig) -> int:
    """How many steps a fit takes at most."""
    return field.anerf.steps if field.kind == "anerf" else config.steps


def fit_subject(
    capture: Capture,
    body: BodyModel,
    field: FieldConfig,
    config: FitConfig,
    seed: int,
    watch: Watch | None = None,
    folder: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Subject:
    """A subject, with what the held-out frames say of it in its manifest.

    Args:
        folder: where previews, the state of an unfinished fit and corrected frames are kept.
            None: nowhere.

    Raises:
        DataError: the capture was made for another body, has no frame to fit to, or a frame whose
            mask covers no joint of the body.
        ResourceError: `folder` cannot be written; LPIPS is asked for and not there.
        TrainingError: the error is no longer finite.
    """
    _check(capture, body)
    lpips = load_lpips() if config.lpips else None  # known before the minutes of fitting
    fitter: Fitter
    if field.kind == "anerf":
        fitter = AnerfFitter(capture, body, field.anerf, config, seed, device)
    else:
        fitter = VoxelFitter(capture, body, config, seed, device)
    desk = _Desk(folder, capture, field, config, seed)
    state = desk.read()
    if state is not None:
        fitter.resume(state)
    _run(fitter, config, watch, desk, capture, capture.bones(body))
    parts, model, believed = fitter.result()
    if config.refine_rate > 0:
        desk.write_frames(believed)
    quality = measure(capture, capture.bones(body), model, lpips)
    manifest = SubjectManifest(
        name=capture.name,
        body=capture.body,
        shape=tuple(float(v) for v in capture.shape),
        **asdict(quality),
        held_out_frames=int(capture.held_out.sum()),
        fit_steps=fitter.done,
        capture_sha256=capture.sha256(),
        licence=capture.licence,
        source=capture.source,
    )
    desk.clear()
    kind = AnerfSubject if field.kind == "anerf" else VoxelSubject
    return kind(manifest, **parts)


def _run(
    fitter: Fitter,
    config: FitConfig,
    watch: Watch | None,
    desk: _Desk,
    capture: Capture,
    bones: Tensor,
) -> None:
    error, best, best_at = math.nan, -math.inf, fitter.done
    while fitter.done < fitter.total:
        latest = fitter.step()
        error = latest if math.isnan(error) else _MEMORY * error + (1 - _MEMORY) * latest
        psnr = -10 * math.log10(max(error, 1e-10))
        if watch is not None:
            watch(FitProgress(fitter.done, fitter.total, psnr))
        if config.preview_every and fitter.done % config.preview_every == 0:
            desk.write_preview(fitter.done, fitter.model(), capture, bones)
        if config.keep_every and fitter.done % config.keep_every == 0:
            desk.write(fitter.state())
        if psnr > best + config.min_gain:
            best, best_at = psnr, fitter.done
        if config.patience and fitter.done - best_at >= config.patience:
            break


class _Desk:
    """What a fit keeps on disk while it runs."""

    def __init__(
        self,
        folder: str | Path | None,
        capture: Capture,
        field: FieldConfig,
        config: FitConfig,
        seed: int,
    ) -> None:
        self._folder = None if folder is None else Path(folder)
        recipe = [capture.sha256(), asdict(field), asdict(config), seed]
        self._key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    def read(self) -> dict[str, Any] | None:
        """The state of an unfinished fit of the same capture with the same settings."""
        if self._folder is None or not (self._folder / _STATE).is_file():
            return None
        try:
            kept = torch.load(self._folder / _STATE, map_location="cpu", weights_only=True)
        except Exception:  # a damaged state is no state: whatever it is, the fit begins anew
            return None
        if not isinstance(kept, dict) or kept.get("key") != self._key:
            return None
        state: dict[str, Any] = kept["state"]
        return state

    def write(self, state: dict[str, Any]) -> None:
        if self._folder is None:
            return
        with _writing(self._folder):
            part = self._folder / f".{_STATE}-{os.getpid()}"
            torch.save({"key": self._key, "state": state}, part)
            part.replace(self._folder / _STATE)

    def write_preview(self, step: int, model: Model, capture: Capture, bones: Tensor) -> None:
        """The first held-out frame (else the first), drawn, beside the true one."""
        if self._folder is None:
            return
        index = int(capture.held_out.int().argmax())
        with torch.no_grad():
            drawn = model.draw(
                bones[index : index + 1].to(model.device), capture.view(index, model.device)
            )
        pair = torch.cat([on_white(drawn[0].cpu()), on_white(capture.target(index))], 1)
        picture = Image.fromarray((pair.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
        with _writing(self._folder):
            picture.save(self._folder / f"preview-{step:06d}.png")

    def write_frames(self, capture: Capture) -> None:
        """Corrected poses and cameras, named as in a capture's frames.npz."""
        if self._folder is None:
            return
        with _writing(self._folder):
            np.savez(
                self._folder / "corrected_frames.npz",
                rotations=capture.poses.rotations.numpy(),
                translation=capture.poses.translation.numpy(),
                camera_rotation=capture.camera.rotation.numpy(),
                camera_translation=capture.camera.translation.numpy(),
                focal=capture.camera.focal.numpy(),
                principal=capture.camera.principal.numpy(),
                held_out=capture.held_out.numpy(),
            )

    def clear(self) -> None:
        """The fit is finished: its state goes; previews stay."""
        if self._folder is not None:
            (self._folder / _STATE).unlink(missing_ok=True)


class _writing:
    """Makes the folder, and says which one cannot be written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refusal(error) from error

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | RuntimeError):  # torch.save's own error on a full disk
            raise self._refusal(error) from error

    def _refusal(self, error: BaseException) -> ResourceError:
        free = shutil.disk_usage(self._folder).free if self._folder.exists() else 0
        return ResourceError(
            f"The fit cannot write to {self._folder} ({error}; {free / 1e6:.0f} MB free).",
            "Free some space, or choose another folder with out=….",
        )


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
    lost = (joints_in_mask(capture, body) == 0).nonzero()[:, 0].tolist()
    if lost:
        raise DataError(
            f"The capture {capture.name!r}, images/{lost[0]:05d}.png (frame {lost[0]}): the mask "
            f"covers no joint of the body ({len(lost)} frames are like that).",
            "Do the frame's camera (K included), its pose and its mask belong together?",
        )
