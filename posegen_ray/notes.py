"""What a run notes of the samples it draws: the proof of who saw what, and what it found.

samples/<set>.parquet         clip, person, pose and view of every sample
        counts-<set>.json     proposals drawn, valid ones, rejections by reason
        errors-<set>.npz      where they lie, and how wrong the starting estimator is on them
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from posegen_ray.errors import CheckpointError
from posegen_ray.evaluation.coverage import pose_view_features
from posegen_ray.evaluation.drawn_sets import pose_column
from posegen_ray.files import write_json
from posegen_ray.generation.proposal import GENERATED
from posegen_ray.records import Samples


@dataclass(frozen=True)
class ErrorsNoted:
    """The starting estimator's errors on a drawn set."""

    features: npt.NDArray[np.float64]  # [N, F] from coverage.pose_view_features
    errors_mm: npt.NDArray[np.float64]  # [N]
    ambiguous: npt.NDArray[np.bool_]  # [N]
    generated: npt.NDArray[np.bool_]  # [N] not drawn at random


class SampleNotes:
    """The folder `samples/` of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def samples(self, name: str, samples: Samples) -> None:
        """Notes what each image was made from."""
        self.folder.mkdir(exist_ok=True)
        table = pd.DataFrame(
            {
                "clip": samples.clips,
                "subject": samples.subjects,
                "seed": samples.seeds.numpy(),
                "azimuth": samples.view[:, 0].numpy(),
                "elevation": samples.view[:, 1].numpy(),
                "roll": samples.view[:, 2].numpy(),
                "pose": pose_column(samples.rotations),
            }
        )
        table.to_parquet(self.folder / f"{name}.parquet")

    def counts(self, name: str, counts: Mapping[str, int]) -> None:
        """Notes how many proposals it took."""
        write_json(self.folder / f"counts-{name}.json", counts)

    def errors(
        self,
        name: str,
        samples: Samples,
        errors_mm: Tensor,  # [N]
        ambiguous: Tensor,  # [N] bool
    ) -> None:
        """Notes how wrong the starting estimator is on each sample."""
        np.savez(
            self.folder / f"errors-{name}.npz",
            features=pose_view_features(samples),
            errors=errors_mm.double().numpy(),
            ambiguous=ambiguous.numpy(),
            generated=np.array([clip == GENERATED for clip in samples.clips]),
        )

    def read_errors(self, name: str) -> ErrorsNoted | None:
        """What `errors` noted; None where nothing was."""
        file = self.folder / f"errors-{name}.npz"
        if not file.exists():
            return None
        with np.load(file) as noted:
            names = ("features", "errors", "ambiguous", "generated")
            if missing := [name for name in names if name not in noted]:
                raise CheckpointError(
                    f"{file} has no {missing[0]!r}: another version wrote it.",
                    "Go on with that version, or start the comparison again.",
                )
            return ErrorsNoted(*(noted[name] for name in names))

    def candidates(self) -> tuple[int, int, dict[str, int]]:
        """Proposals drawn, valid ones, and rejections by reason, over all sets."""
        total: Counter[str] = Counter()
        for file in sorted(self.folder.glob("counts-*.json")):
            total.update(json.loads(file.read_text(encoding="utf-8")))
        reasons = {name: n for name, n in total.items() if name not in ("drawn", "valid")}
        return total["drawn"], total["valid"], reasons
