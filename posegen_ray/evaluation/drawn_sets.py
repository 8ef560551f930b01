"""The poses of a run's training sets, measured against its motion capture.

Reads what `samples/*.parquet` keep. Real poses are the source clips' training frames and,
separately, clips that nobody trained on: how much nearer a set is to the source than to them shows
whether it extrapolates as unseen motions do. Unseen clips are measured like drawn sets.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from posegen_ray.body.rotation import from_6d, to_6d
from posegen_ray.evaluation.pose_sets import (
    NEIGHBOURS,
    REFERENCES,
    leave_clips_out,
    measure_poses,
    pose_features,
    pose_set_table,
)
from posegen_ray.motion.clips import Clip
from posegen_ray.motion.splits import MotionSplits
from posegen_ray.records import PHOTOGRAPH

MOST_POSES = 2000  # of a set, evenly chosen: distances are between all pairs

Floats = npt.NDArray[np.float64]


def pose_column(
    rotations: Tensor,  # [N, 24, 3, 3]
) -> list[npt.NDArray[np.float32]]:  # N arrays of 144
    """Poses as a column of a table: the 6D representation of each joint in turn."""
    return list(to_6d(rotations.detach().cpu().float()).flatten(1).numpy())


def read_poses(
    file: Path,  # samples/<set>.parquet
) -> Tensor | None:  # [N, 24, 3, 3]; None in tables of before poses were kept
    """The poses that a table of samples holds; none of photographs."""
    table = pd.read_parquet(file)
    if "pose" not in table.columns:
        return None
    table = table[~table["clip"].str.startswith(PHOTOGRAPH)]
    if not len(table):
        return torch.zeros(0, 24, 3, 3)
    return from_6d(torch.from_numpy(np.stack(table["pose"].to_list())).unflatten(1, (24, 6)))


def drawn_pose_sets(
    folder: Path,  # a run's samples/
    splits: MotionSplits,
    rest_joints: Tensor,  # [24, 3] metres, of the body that poses are put on
) -> pd.DataFrame:
    """All measures of every training set, of unseen clips, and of the leave-one-clip-out yardstick.

    Sets with too few poses for the k-NN measures, and tables without poses, are left out.

    Returns:
        The table of `pose_sets.pose_set_table`. Sets are named by their file (`posegen-0`: arm and
        seed) or `<split> clips`; references are source, validation, ood.
    """

    def frames(clips: tuple[Clip, ...]) -> Floats:
        return pose_features(torch.cat([clip.poses.rotations for clip in clips]), rest_joints)

    clips = (splits.source_train, splits.validation, splits.ood)
    real = {name: frames(part) for name, part in zip(REFERENCES, clips, strict=True)}
    sets: dict[str, tuple[Floats, float | None]] = {
        f"{name} clips": (rows, None) for name, rows in real.items()
    }
    for file in sorted(folder.glob("*.parquet")):
        poses = None if file.stem.startswith("test") else read_poses(file)
        if poses is not None and len(poses):
            chosen = np.unique(np.linspace(0, len(poses) - 1, MOST_POSES).round().astype(int))
            sets[file.stem] = pose_features(poses[chosen], rest_joints), _valid(folder, file.stem)
    measures = [
        measure_poses(name, rows, reference, real[reference], valid)
        for name, (rows, valid) in sets.items()
        for reference in real
        if name != f"{reference} clips" and min(len(rows), len(real[reference])) > NEIGHBOURS
    ]
    if len(splits.source_train) > 1:
        measures += leave_clips_out({clip.name: frames((clip,)) for clip in splits.source_train})
    return pose_set_table(measures)


def _valid(folder: Path, name: str) -> float | None:
    """Share of the set's proposals that passed the checks."""
    file = folder / f"counts-{name}.json"
    counts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return counts["valid"] / counts["drawn"] if counts.get("drawn") else None
