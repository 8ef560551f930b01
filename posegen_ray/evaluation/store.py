"""Everything the report needs, as one record, and its files in the run folder.

`evaluation.npz` holds the arrays, `evaluation.json` the names, counts and curves; together they let
`posegen report run=...` rebuild the page without the networks, the subjects or Ray.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from posegen_ray.body.camera import Camera
from posegen_ray.errors import DataError
from posegen_ray.evaluation.metrics import checked_joints
from posegen_ray.evaluation.protocol import check_sets
from posegen_ray.files import whole_file, write_json
from posegen_ray.records import Samples

ARRAYS_FILE = "evaluation.npz"
NAMES_FILE = "evaluation.json"
FORMAT = 2
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class SampleCounts:
    """How many samples an arm was trained on, how many were rejected, how many tested on."""

    train: int
    rejected: int
    test: int


@dataclass(frozen=True)
class RenderSpeed:
    """Measured renderer throughput; None where it was not measured."""

    images_per_s: float | None
    images_per_s_with_gradient: float | None


@dataclass(frozen=True)
class ReportInputs:
    """What a finished comparison knows; summary and report are functions of it alone.

    Raises:
        DataError: at construction, when parts do not fit together (missing baseline, wrong shapes,
            NaN in predictions, a set name missing).
    """

    estimator: str
    seeds: tuple[int, ...]
    predictions: Mapping[str, Tensor]  # arm -> [seeds or 1, N, 12, 3] metres, baseline first
    samples: Samples  # the test set, N rows
    sets: tuple[str, ...]  # N names out of protocol.SETS
    train_images: int  # images each fine-tuned arm was trained on (per seed)
    timing_s: Mapping[str, float]  # phase -> seconds
    versions: Mapping[str, str]
    render: RenderSpeed = RenderSpeed(None, None)
    rejected: Mapping[str, int] = field(default_factory=dict)  # reason -> candidates turned down
    # candidates turned down in all; None: the sum over reasons (right only if they do not overlap)
    rejected_total: int | None = None
    # one row per step: column "step", optional "arm" and "seed", and any numeric columns (a chart
    # each); NaN where a column has no value at that step
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    generated: Tensor | None = None  # [M, 3, S, S] uint8, samples that the generator made
    title: str = "PoseGen"
    settings: Mapping[str, str] = field(default_factory=dict)  # shown as they are, e.g. "arm steps"
    # from drawn_sets.drawn_pose_sets: a row a set of poses and reference
    pose_sets: pd.DataFrame = field(default_factory=pd.DataFrame)
    # one row an arm and seed: how hard its own images are for the baseline, which failures they
    # reach
    failure_finding: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __post_init__(self) -> None:
        check_sets(self.sets, len(self.samples))
        if next(iter(self.predictions), None) != "baseline":
            raise DataError(
                f"The arms {', '.join(self.predictions) or '(none)'} cannot be compared.",
                "Give the baseline first, then the arms that are compared with it.",
            )
        for arm, joints in self.predictions.items():
            seeds, count = joints.shape[0], joints.shape[1] if joints.ndim > 1 else 0
            if seeds not in (1, len(self.seeds)) or count != len(self.samples):
                raise DataError(
                    f"Predictions of {arm} have shape {tuple(joints.shape)}, but there are "
                    f"{len(self.seeds)} seeds and {len(self.samples)} test samples.",
                    "Predict the whole test set once per seed: [seeds, N, 12, 3].",
                )
            for number, prediction in enumerate(joints):
                checked_joints(prediction, f"predictions of {arm}, seed {self.seeds[number]}")

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms, the baseline first."""
        return tuple(self.predictions)

    @property
    def counts(self) -> SampleCounts:
        rejected = self.rejected_total
        if rejected is None:
            rejected = sum(self.rejected.values())
        return SampleCounts(self.train_images, rejected, len(self.samples))


def save_evaluation(folder: Path, inputs: ReportInputs) -> None:
    """Writes the inputs to `folder`. Exact but for pictures, which become JPEGs of high quality.

    Each file is written under a temporary name and renamed, so a crash leaves the old one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples, camera = inputs.samples, inputs.samples.camera
    arrays = {
        "joints": samples.joints,
        "joints_2d": samples.joints_2d,
        "rotations": samples.rotations,
        "shape": samples.shape,
        "view": samples.view,
        "seeds": samples.seeds,
        "camera_rotation": camera.rotation,
        "camera_translation": camera.translation,
        "camera_focal": camera.focal,
        "camera_principal": camera.principal,
        **{f"predictions_{arm}": inputs.predictions[arm] for arm in inputs.arms},
    }
    packed = {name: tensor.detach().cpu().numpy() for name, tensor in arrays.items()}
    packed["images"], packed["images_ends"] = _to_jpegs(samples.images)
    if inputs.generated is not None:
        packed["generated"], packed["generated_ends"] = _to_jpegs(inputs.generated)
    names = {
        "format": FORMAT,
        "estimator": inputs.estimator,
        "title": inputs.title,
        "arms": list(inputs.arms),
        "seeds": list(inputs.seeds),
        "sets": list(inputs.sets),
        "subjects": list(samples.subjects),
        "clips": list(samples.clips),
        "crop": [camera.height, camera.width],
        "train_images": inputs.train_images,
        "rejected": dict(inputs.rejected),
        "rejected_total": inputs.rejected_total,
        "timing_s": dict(inputs.timing_s),
        "render": asdict(inputs.render),
        "versions": dict(inputs.versions),
        "settings": dict(inputs.settings),
        "history": {
            str(name): list(column) for name, column in inputs.history.to_dict("list").items()
        },
        "pose_sets": inputs.pose_sets.to_dict("records"),
        "failure_finding": inputs.failure_finding.to_dict("records"),
    }
    with whole_file(folder / ARRAYS_FILE) as file:
        np.savez(file, **packed)  # type: ignore[arg-type]
    write_json(folder / NAMES_FILE, names)


def load_evaluation(folder: Path) -> ReportInputs:
    """What `save_evaluation` wrote.

    Raises:
        DataError: a file is missing, truncated, or of another format.
    """
    try:
        names = json.loads((folder / NAMES_FILE).read_text(encoding="utf-8"))
        with np.load(folder / ARRAYS_FILE, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if names["format"] != FORMAT:
            raise DataError(
                f"{folder / NAMES_FILE} has format {names['format']}, this version reads {FORMAT}.",
                "It is another version's: run the comparison again, or use that version.",
            )
        return _assemble(names, {key: torch.from_numpy(value) for key, value in arrays.items()})
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename} is missing: {folder} holds no finished comparison.",
            f"Finish it: posegen demo resume={folder} (a `posegen train` run has no evaluation).",
        ) from error
    except (OSError, EOFError, KeyError, json.JSONDecodeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"The evaluation in {folder} is damaged ({type(error).__name__}: {error}).",
            f"Delete {NAMES_FILE} and {ARRAYS_FILE} there, then: posegen demo resume={folder}.",
        ) from error


def _assemble(names: dict[str, Any], arrays: dict[str, Tensor]) -> ReportInputs:
    height, width = names["crop"]
    camera = Camera(
        arrays["camera_rotation"],
        arrays["camera_translation"],
        arrays["camera_focal"],
        arrays["camera_principal"],
        height,
        width,
    )
    samples = Samples(
        images=_from_jpegs(arrays["images"], arrays["images_ends"]),
        joints=arrays["joints"],
        joints_2d=arrays["joints_2d"],
        rotations=arrays["rotations"],
        shape=arrays["shape"],
        camera=camera,
        view=arrays["view"],
        subjects=tuple(names["subjects"]),
        clips=tuple(names["clips"]),
        seeds=arrays["seeds"],
    )
    return ReportInputs(
        estimator=names["estimator"],
        title=names["title"],
        seeds=tuple(names["seeds"]),
        predictions={arm: arrays[f"predictions_{arm}"] for arm in names["arms"]},
        samples=samples,
        sets=tuple(names["sets"]),
        train_images=names["train_images"],
        timing_s=names["timing_s"],
        versions=names["versions"],
        render=RenderSpeed(**names["render"]),
        rejected=names["rejected"],
        rejected_total=names["rejected_total"],
        # a missing value was written as null; a column of numbers gets its NaN back
        history=pd.DataFrame(names["history"]).infer_objects(),
        generated=(
            _from_jpegs(arrays["generated"], arrays["generated_ends"])
            if "generated" in arrays
            else None
        ),
        settings=names["settings"],
        # runs of before these measures have none
        pose_sets=pd.DataFrame(names["pose_sets"]),
        failure_finding=pd.DataFrame(names["failure_finding"]),
    )


def _to_jpegs(
    images: Tensor,  # [N, 3, H, W] uint8
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """All files one after another, and where each of them ends."""
    parts = []
    for image in images.permute(0, 2, 3, 1).cpu().numpy():
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(
            buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0
        )
        parts.append(buffer.getvalue())
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return np.frombuffer(b"".join(parts), dtype=np.uint8), ends


def _from_jpegs(
    data: Tensor,  # [bytes] uint8
    ends: Tensor,  # [N]
) -> Tensor:  # [N, 3, H, W] uint8
    raw, images, start = data.numpy().tobytes(), [], 0
    for end in ends.tolist():
        with Image.open(io.BytesIO(raw[start:end])) as picture:
            images.append(np.asarray(picture))
        start = end
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
