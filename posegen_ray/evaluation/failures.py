"""Failure cells: pose cluster x viewpoint x body part, before and after, with counts and intervals.

A sample fails in a part when that part's mean joint error is above the threshold: 1.5 times the
baseline's median MPJPE on source images (on all images where there are none). The same millimetres
hold for all parts, arms and cells.

Legend: N test samples, S seeds (1 where an arm has one answer), K pose clusters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.errors import DataError
from posegen_ray.evaluation.atlas import cluster_poses, motions_text, pelvis_frame_joints
from posegen_ray.evaluation.metrics import joint_errors
from posegen_ray.evaluation.protocol import SOURCE_SETS, Interval, motion_name, paired_interval
from posegen_ray.evaluation.store import ReportInputs

THRESHOLD_FACTOR = 1.5
LEAST = 5  # samples of a cell that is ranked and has an interval
SIDES = ("the front", "the left", "the back", "the right")
HEIGHT_EDGE_DEG = 15.0
EVERYWHERE = "all"  # side and height of a cluster that is not divided by view
HEIGHTS = ("from below", "at eye level", "from above")


def _joints(*kinds: str, side: str = "") -> tuple[int, ...]:
    return tuple(
        row
        for row, name in enumerate(LIMB_JOINT_NAMES)
        if name.split("_")[1] in kinds and name.startswith(side)
    )


# the parts that cells are described by, and both sides of each limb
MAIN_PARTS: Mapping[str, tuple[int, ...]] = {
    "torso": _joints("shoulder", "hip"),
    "elbows": _joints("elbow"),
    "wrists": _joints("wrist"),
    "knees": _joints("knee"),
    "ankles": _joints("ankle"),
}
PARTS: Mapping[str, tuple[int, ...]] = {
    "all": tuple(range(len(LIMB_JOINT_NAMES))),
    **MAIN_PARTS,
    **{
        f"{side} {part}": _joints(part, side=side)
        for part in ("elbow", "wrist", "knee", "ankle")
        for side in ("left", "right")
    },
}

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class PartError:
    """One body part in one cell. Errors are means over samples and seeds."""

    before_mm: float
    after_mm: float
    failing_before: float  # share above the threshold
    failing_after: float
    change: Interval | None  # after - before, mm, paired; None: too few samples, clips or people


@dataclass(frozen=True)
class FailureCell:
    """Samples of one pose cluster seen from one side and height."""

    cluster: int
    motions: str  # what the cluster shows, e.g. `roll 80 %, crawl 20 %`
    side: str
    height: str
    rows: tuple[int, ...]
    parts: Mapping[str, PartError]  # by PARTS
    typical: int  # row whose error before is the cell's median
    worst: int  # row whose error after is the largest

    @property
    def place(self) -> str:
        """Cluster and view in words."""
        if self.side == EVERYWHERE:
            seen = "from everywhere"
        elif self.height == HEIGHTS[1]:
            seen = f"from {self.side} {self.height}"
        else:
            seen = f"{self.height}, {self.side.removeprefix('the ')}"
        return f"{self.motions} (cluster {self.cluster + 1}) seen {seen}"

    @property
    def worst_part(self) -> str:
        """The main part with the largest error before."""
        return max(MAIN_PARTS, key=lambda part: self.parts[part].before_mm)

    def sentence(self, part: str = "") -> str:
        """E.g. `roll 90 % (cluster 2) seen from above, front: ankles 310 mm → 240 mm, n=34`."""
        part = part or self.worst_part
        error = self.parts[part]
        named = "MPJPE" if part == "all" else part
        return (
            f"{self.place}: {named} {error.before_mm:.0f} mm → {error.after_mm:.0f} mm, "
            f"n={len(self.rows)}"
        )


@dataclass(frozen=True)
class FailureAtlas:
    """All cells that hold samples: those with LEAST samples or more first, worst before first."""

    arm: str  # what "after" is
    threshold_mm: float
    threshold_text: str
    cells: tuple[FailureCell, ...]
    clusters: tuple[FailureCell, ...]  # each pose cluster from everywhere, largest first

    @property
    def ranked(self) -> tuple[FailureCell, ...]:
        """Cells with enough samples to be compared."""
        return tuple(cell for cell in self.cells if len(cell.rows) >= LEAST)


def build_failure_atlas(
    inputs: ReportInputs,
    arm: str,
    clusters: int = 8,
    n_boot: int = 1000,
    seed: int = 0,
) -> FailureAtlas:
    """Cells of the run's test samples: the baseline before, `arm` after.

    Raises:
        DataError: the run has no such arm.
    """
    if arm not in inputs.arms:
        raise DataError(
            f"This run has no arm {arm!r}.", f"Choose arm= from {', '.join(inputs.arms)}."
        )
    before, after = (_errors(inputs, name) for name in ("baseline", arm))
    source = np.isin(np.asarray(inputs.sets), SOURCE_SETS)
    kind = "source" if source.any() else "all"
    chosen = before[:, source] if source.any() else before
    median = float(np.median(chosen.mean(2)))
    threshold = THRESHOLD_FACTOR * median
    cells = _Cells(inputs, before, after, threshold, n_boot)
    cluster_of, representatives = cluster_poses(pelvis_frame_joints(inputs.samples), clusters, seed)
    view = inputs.samples.view.detach().cpu().double().numpy()
    side_of, height_of = coarse_views(view)
    found = []
    whole = []
    for cluster in range(len(representatives)):
        inside = cluster_of == cluster
        rows = np.flatnonzero(inside)
        motions = motions_text(Counter(motion_name(inputs.samples.clips[row]) for row in rows))
        whole.append(cells.make(cluster, motions, EVERYWHERE, EVERYWHERE, rows))
        for side, side_name in enumerate(SIDES):
            for height, height_name in enumerate(HEIGHTS):
                rows = np.flatnonzero(inside & (side_of == side) & (height_of == height))
                if len(rows):
                    found.append(cells.make(cluster, motions, side_name, height_name, rows))
    found.sort(key=lambda cell: (len(cell.rows) < LEAST, -cell.parts["all"].before_mm))
    text = (
        f"{threshold:.0f} mm: {THRESHOLD_FACTOR} times the baseline's median MPJPE on {kind} "
        f"images ({median:.0f} mm)"
    )
    return FailureAtlas(arm, threshold, text, tuple(found), tuple(whole))


def coarse_views(
    view: Floats,  # [N, 3] azimuth, elevation, roll; radians
) -> tuple[Indices, Indices]:  # index into SIDES [N], index into HEIGHTS [N]
    """Four sides (the person's own left and right) and three heights: cells that hold samples."""
    quarter = np.pi / 2
    side = np.floor((view[:, 0] / quarter + 0.5) % len(SIDES)).astype(np.intp) % len(SIDES)
    edge = np.deg2rad(HEIGHT_EDGE_DEG)
    return side, np.digitize(view[:, 1], [-edge, edge]).astype(np.intp)


def failure_table(atlas: FailureAtlas) -> pd.DataFrame:
    """A row a cell and part: what `atlas.csv` holds. Missing bounds are NaN."""
    rows = []
    for cell in (*atlas.clusters, *atlas.cells):
        for part, error in cell.parts.items():
            change = error.change
            rows.append(
                {
                    "cluster": cell.cluster + 1,
                    "motions": cell.motions,
                    "side": cell.side,
                    "height": cell.height,
                    "part": part,
                    "n": len(cell.rows),
                    "before_mm": error.before_mm,
                    "after_mm": error.after_mm,
                    "change_mm": error.after_mm - error.before_mm,
                    "change_low_mm": change.low if change else np.nan,
                    "change_high_mm": change.high if change else np.nan,
                    "failing_before": error.failing_before,
                    "failing_after": error.failing_after,
                    "threshold_mm": atlas.threshold_mm,
                    "arm": atlas.arm,
                }
            )
    return pd.DataFrame(rows)


class _Cells:
    """Makes cells out of rows."""

    def __init__(
        self,
        inputs: ReportInputs,
        before: Floats,  # [S, N, 12] mm
        after: Floats,
        threshold: float,
        n_boot: int,
    ) -> None:
        self._samples = inputs.samples
        self._before, self._after = before, after
        self._threshold, self._n_boot = threshold, n_boot

    def make(
        self, cluster: int, motions: str, side: str, height: str, rows: Indices
    ) -> FailureCell:
        before = self._before[:, rows].mean((0, 2))
        after = self._after[:, rows].mean((0, 2))
        middle = np.argsort(before, kind="stable")[(len(rows) - 1) // 2]
        return FailureCell(
            cluster,
            motions,
            side,
            height,
            tuple(int(row) for row in rows),
            {part: self._part(rows, list(joints)) for part, joints in PARTS.items()},
            typical=int(rows[middle]),
            worst=int(rows[after.argmax()]),
        )

    def _part(self, rows: Indices, joints: list[int]) -> PartError:
        before, after = (
            errors[:, rows][:, :, joints].mean(2) for errors in (self._before, self._after)
        )
        return PartError(
            float(before.mean()),
            float(after.mean()),
            float((before > self._threshold).mean()),
            float((after > self._threshold).mean()),
            self._change(rows, before, after),
        )

    def _change(self, rows: Indices, before: Floats, after: Floats) -> Interval | None:
        if len(rows) < LEAST or not before.mean() > 0:
            return None
        clips = [self._samples.clips[row] for row in rows]
        people = [self._samples.subjects[row] for row in rows]
        interval = paired_interval(before, after, clips, people, self._n_boot).difference
        return interval if np.isfinite(interval.low) else None


def _errors(inputs: ReportInputs, arm: str) -> Floats:  # [S, N, 12] mm
    truth = inputs.samples.joints.cpu()
    rows = [joint_errors(joints.cpu(), truth) for joints in inputs.predictions[arm]]
    return np.asarray(torch.stack(rows).numpy(), dtype=np.float64)
