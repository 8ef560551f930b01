"""From predictions to tables and intervals: sets, motions, arms, seeds.

One row per test sample; every aggregate is taken over that table. Differences between arms are
judged on the same samples (paired), with intervals that know that samples of one clip, and samples
of one person, resemble each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from posegen_ray.errors import DataError
from posegen_ray.evaluation import metrics
from posegen_ray.records import Samples
from posegen_ray.seeding import numpy_stream

TEST_SETS: tuple[str, ...] = ("source", "wild", "view", "person", "motion", "ood")
SETS: tuple[str, ...] = (*TEST_SETS, "val_source", "validation")
SOURCE_SETS = ("source", "val_source")  # what every arm was trained on, other people
CONFIDENCE = 0.95

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SetMetrics:
    """What is reported of one set of samples, for one arm and one seed."""

    count: int
    mpjpe_mm: float
    pa_mpjpe_mm: float
    pck150: float  # percent
    auc: float  # percent
    worst_decile_mm: float  # mean MPJPE of the worst tenth


@dataclass(frozen=True)
class MeanSd:
    """Mean over seeds and their sample standard deviation (None with one seed)."""

    mean: float
    sd: float | None


@dataclass(frozen=True)
class Interval:
    """A point estimate from all samples with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedInterval:
    """How b stands against a on the same samples."""

    difference: Interval  # mean(b) - mean(a), in the errors' unit; negative: b is better
    relative: Interval  # (mean(a) - mean(b)) / mean(a); positive: b is better


def evaluate(
    predictions: Tensor,  # [N, 12, 3] metres, crop-camera axes
    samples: Samples,
    sets: Sequence[str],  # N names out of SETS
) -> pd.DataFrame:
    """Errors of each sample, with what is known about it.

    Returns:
        N rows in the samples' order: set, clip, motion, subject, azimuth, elevation, roll
        (radians), mpjpe_mm, pa_mpjpe_mm, pck150, auc (percent).

    Raises:
        DataError: lengths that differ, unknown set names, NaN or Inf.
    """
    check_sets(sets, len(samples))
    predictions, truth = predictions.cpu(), samples.joints.cpu()
    errors = metrics.joint_errors(predictions, truth)
    view = samples.view.detach().cpu().double().numpy()
    return pd.DataFrame(
        {
            "set": list(sets),
            "clip": list(samples.clips),
            "motion": [motion_name(clip) for clip in samples.clips],
            "subject": list(samples.subjects),
            "azimuth": view[:, 0],
            "elevation": view[:, 1],
            "roll": view[:, 2],
            "mpjpe_mm": errors.mean(1).numpy(),
            "pa_mpjpe_mm": metrics.pa_mpjpe(predictions, truth).numpy(),
            "pck150": metrics.pck(errors).numpy(),
            "auc": metrics.auc(errors).numpy(),
        }
    )


def check_sets(sets: Sequence[str], count: int) -> None:
    """Raises DataError unless there is one known set name for each sample."""
    if len(sets) != count:
        raise DataError(
            f"There are {len(sets)} set names for {count} test samples.",
            "Name the set of every sample.",
        )
    unknown = sorted(set(sets) - set(SETS))
    if unknown:
        raise DataError(f"{unknown[0]!r} is not a test set.", f"Use one of {', '.join(SETS)}.")


def motion_name(clip: str) -> str:
    """A clip's short name for tables: `motions/humanoid3d_walk.txt` -> `walk`."""
    path = PurePosixPath(clip)
    known = path.suffix.lower() in (".txt", ".bvh", ".npz", ".json")
    return (path.stem if known else path.name).removeprefix("humanoid3d_") or clip


def set_metrics(
    table: pd.DataFrame,  # from evaluate
) -> dict[str, SetMetrics]:
    """Metrics of each set that occurs, in the order of SETS, then of "all"."""
    parts = {name: table[table["set"] == name] for name in SETS}
    parts["all"] = table
    return {name: _metrics_of(part) for name, part in parts.items() if len(part)}


def motion_table(
    tables: Sequence[pd.DataFrame],  # from evaluate, one per seed, same samples
) -> pd.DataFrame:
    """Mean errors of each set and motion over seeds.

    Columns: set, motion, samples, mpjpe_mm, pa_mpjpe_mm.
    """
    stacked = pd.concat(list(tables))
    grouped = stacked.groupby(["set", "motion"], sort=True, as_index=False).agg(
        samples=("mpjpe_mm", "size"),
        mpjpe_mm=("mpjpe_mm", "mean"),
        pa_mpjpe_mm=("pa_mpjpe_mm", "mean"),
    )
    grouped["samples"] //= len(tables)
    return grouped


def mean_sd(values: Sequence[float]) -> MeanSd:
    """Mean and sample standard deviation (n - 1); the latter is None for a single value."""
    array = np.asarray(values, dtype=np.float64)
    return MeanSd(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None)


def paired_interval(
    errors_a: npt.ArrayLike,  # [N], or [seeds, N]: the reference
    errors_b: npt.ArrayLike,  # [N], or [seeds, N]: the arm that is compared with it
    clusters_clip: Sequence[str],  # N
    clusters_person: Sequence[str],  # N
    n_boot: int = 4000,
    seed: int = 0,
) -> PairedInterval:
    """Bootstrap interval of the paired difference, clustered by clip and by person.

    Clips and people are crossed: each person may do each motion, so samples share a clip effect and
    a person effect. The pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1(2)) draws
    clips and people with replacement, independently of each other, and counts a sample as often as
    its clip times its person were drawn. No resampling scheme is exact for crossed effects
    (McCullagh 2000); this one errs on the cautious side, whereas resampling clip x person cells, or
    clips alone, would miss what cells share and give intervals that are too short. With several
    seeds, seeds are a third crossed factor (Owen and Eckles 2012), so that the interval also covers
    the luck of training.

    The percentile interval of few clusters is too short by about sqrt(n / (n - 1)); it is widened
    about the estimate by that factor for the smallest factor with more than one cluster
    (Hesterberg 2015, "narrowness bias").

    Args:
        errors_a, errors_b: errors on the same samples; one row of seeds is repeated as needed.

    Returns:
        Differences and relative improvements, estimate and 95 % interval. With one cluster of each
        kind nothing can be resampled: the interval is as wide as it can be, (-inf, inf).

    Raises:
        DataError: shapes that do not match, no samples, NaN or Inf.
    """
    a, b = np.atleast_2d(np.asarray(errors_a, float)), np.atleast_2d(np.asarray(errors_b, float))
    _check_pair(a, b, clusters_clip, clusters_person)
    seeds = max(len(a), len(b))
    a, b = np.broadcast_to(a, (seeds, a.shape[1])), np.broadcast_to(b, (seeds, b.shape[1]))
    clip_of, clips = _codes(clusters_clip)
    person_of, people = _codes(clusters_person)
    sizes = (seeds, clips, people)
    cell_of = clip_of * people + person_of

    def per_cell(values: Floats) -> Floats:  # [N] -> [clips, people], summed
        sums = np.bincount(cell_of, values, minlength=clips * people)
        return sums.reshape(clips, people).astype(np.float64)

    count = per_cell(np.ones(a.shape[1]))
    if max(clips, people) == 1:
        unknown = Interval(float((b - a).mean()), -np.inf, np.inf)
        ratio = Interval(float(1 - b.mean() / a.mean()), -np.inf, np.inf)
        return PairedInterval(unknown, ratio)
    random = numpy_stream(seed, "paired_interval")
    weights = [random.multinomial(n, np.full(n, 1 / n), size=n_boot).astype(float) for n in sizes]
    total = np.einsum("ki,kj,ij->k", weights[1], weights[2], count)
    drawn = total > 0  # sparse tables: a draw may miss every sample
    totals = [
        np.einsum("ks,ki,kj,sij->k", *weights, cells, optimize=True)[drawn] / total[drawn] / seeds
        for cells in (
            np.stack([per_cell(row) for row in a]),
            np.stack([per_cell(row) for row in b]),
        )
    ]
    smallest = min(n for n in sizes if n > 1)
    widen = np.sqrt(smallest / (smallest - 1))
    return PairedInterval(
        _interval(float((b - a).mean()), totals[1] - totals[0], widen),
        _interval(float(1 - b.mean() / a.mean()), 1 - totals[1] / totals[0], widen),
    )


def _interval(estimate: float, draws: Floats, widen: float) -> Interval:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(
        estimate,
        float(estimate + widen * min(low - estimate, 0.0)),
        float(estimate + widen * max(high - estimate, 0.0)),
    )


def _codes(names: Sequence[str]) -> tuple[npt.NDArray[np.intp], int]:
    values, codes = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    return codes.astype(np.intp), len(values)


def _check_pair(a: Floats, b: Floats, clips: Sequence[str], people: Sequence[str]) -> None:
    lengths = {a.shape[1], b.shape[1], len(clips), len(people)}
    seeds = {len(a), len(b)} - {1}
    if a.ndim != 2 or b.ndim != 2 or len(lengths) != 1 or len(seeds) > 1 or 0 in a.shape:
        raise DataError(
            f"Errors of shapes {a.shape} and {b.shape}, {len(clips)} clips and {len(people)} "
            "people do not describe the same samples.",
            "Give one error, clip and person per sample, and the same seeds for both arms.",
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError("The errors to compare contain NaN or Inf.", "Evaluate the arms again.")
    if not a.mean() > 0:
        raise DataError(
            "The reference has no error at all: no improvement can be relative to that.",
            "Check that predictions are not the labels themselves.",
        )


def _metrics_of(part: pd.DataFrame) -> SetMetrics:
    errors = torch.tensor(part["mpjpe_mm"].to_numpy(dtype=np.float64))
    return SetMetrics(
        count=len(part),
        mpjpe_mm=float(errors.mean()),
        pa_mpjpe_mm=float(part["pa_mpjpe_mm"].mean()),
        pck150=float(part["pck150"].mean()),
        auc=float(part["auc"].mean()),
        worst_decile_mm=metrics.worst_decile(errors),
    )
