"""An estimator on people whose joints are marked in pictures: PCKh of the 12 limb joints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.datasets.public import KeypointSet, MarkedPerson
from posegen_ray.errors import DataError
from posegen_ray.estimators.base import PoseEstimator
from posegen_ray.evaluation import metrics
from posegen_ray.evaluation.pictures import Answered, answers


@dataclass(frozen=True)
class KeypointResult:
    """What an estimator reached on marked people."""

    joints: str  # which joints are measured, in words
    frames: pd.DataFrame  # a row a person: frame, marked (joints), pckh (percent of them)

    def means(self) -> dict[str, float]:
        """PCKh over all marked joints, as MPII counts: people with more of them weigh more."""
        return {"pckh": float(np.average(self.frames["pckh"], weights=self.frames["marked"]))}


def evaluate_keypoints(
    estimator: PoseEstimator,
    test: KeypointSet,
    batch_size: int = 32,
    advance: Callable[[int], object] = lambda people: None,
) -> KeypointResult:
    """Measures where an estimator sees the limb joints of every person.

    Args:
        advance: called with so many people more that are done.

    Raises:
        DataError: a picture cannot be read, the estimator answers NaN or no joints in 2D, or the
            set has nobody.
    """
    if not len(test):
        raise DataError(f"{test.title} has nobody left.", f"Left out: {test.left_out}.")
    rows = [_measured(estimator, batch) for batch in answers(estimator, test, batch_size, advance)]
    return KeypointResult("12 limb joints", pd.concat(rows, ignore_index=True))


def _measured(estimator: PoseEstimator, batch: Answered[MarkedPerson]) -> pd.DataFrame:
    people = batch.frames
    truth = torch.from_numpy(np.stack([person.joints_2d for person in people]))
    visible = torch.from_numpy(np.stack([person.visible for person in people]))
    heads = torch.tensor([person.head_length for person in people])
    found = _in_picture(estimator, batch)
    return pd.DataFrame(
        {
            "frame": [person.label for person in people],
            "marked": visible.sum(1).numpy(),
            "pckh": metrics.pckh(found, truth, heads, visible).numpy(),
        }
    )


def _in_picture(
    estimator: PoseEstimator, batch: Answered[MarkedPerson]
) -> Tensor:  # [B, 12, 2] pixels of the pictures, whose pixel (i, j) is at (i, j)
    seen = batch.estimate.joints_2d
    if seen is None:
        raise DataError(
            f"{estimator.name} answers no joints in 2D.",
            "SPIN and HybrIK do; SPIN needs SMPL's files for them (estimator.smpl_folder).",
        )
    batch.finite(estimator, seen)
    limbs = seen[:, [estimator.joint_names.index(name) for name in LIMB_JOINT_NAMES]]
    pairs = zip(batch.cuttings, limbs.cpu().double(), strict=True)
    return torch.stack([cutting.in_picture(points) for cutting, points in pairs])
