"""The failure atlas on made-up test sets: cells, thresholds and coverage counted by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from posegen_ray.errors import ConfigError
from posegen_ray.evaluation.atlas import cluster_poses, pelvis_frame_joints
from posegen_ray.evaluation.failure_page import sentence, write_atlas
from posegen_ray.evaluation.failures import (
    HEIGHTS,
    SIDES,
    Cells,
    cells_of,
    coverage,
    failure_table,
    failure_threshold,
    viewpoints,
)
from posegen_ray.evaluation.store import ReportInputs
from posegen_ray.records import Samples


@pytest.mark.parametrize(
    ("azimuth", "elevation", "expected"),
    [
        (0, 0, "front, eye level"),
        (44, 25, "front, above"),
        (46, -20, "left, below"),
        (180, 0, "back, eye level"),
        (-90, 60, "right, above"),
        (-44, 0, "front, eye level"),
    ],
)
def test_viewpoints_are_quarters_of_the_circle_and_heights(azimuth, elevation, expected):
    (number,) = viewpoints(np.deg2rad([[azimuth, elevation, 0.0]]))
    height, side = divmod(int(number), len(SIDES))
    assert f"{SIDES[side]}, {HEIGHTS[height]}" == expected


def test_a_test_set_falls_into_the_clusters_it_was_sorted_into(samples: Samples):
    cells = cells_of(samples, 5)
    features = pelvis_frame_joints(samples)
    labels, _ = cluster_poses(features, 5, 0)
    found = cells.of(features, samples.view.double().numpy()) // (len(SIDES) * len(HEIGHTS))
    assert (found == labels).mean() > 0.95  # k-means ends a step before its own centres
    assert len(cells.labels) == 5


def table_for(samples: Samples, before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
    sets = ["source"] * 10 + ["ood"] * (len(samples) - 10)
    return failure_table(samples, sets, before, after, cells_of(samples, 3))


def test_cells_hold_the_means_of_their_samples_and_parts(samples: Samples):
    random = np.random.default_rng(0)
    count = len(samples)
    before = random.uniform(50, 300, (2, count, 12))
    after = before - 20
    after[..., 4:6] -= 60  # wrists
    table = table_for(samples, before, after)
    assert table["samples"].sum() == count
    assert table["before_mm"].is_monotonic_decreasing
    cell_of = cells_of(samples, 3).of(pelvis_frame_joints(samples), samples.view.double().numpy())
    for _, row in table.iterrows():
        members = cell_of == row["cell"]
        assert row["samples"] == members.sum()
        assert row["before_mm"] == pytest.approx(before[:, members].mean())
        assert row["change_mm"] == pytest.approx(-30)
        assert row["wrist_after_mm"] == pytest.approx(before[:, members][..., 4:6].mean() - 80)
        assert row["worst_part"] in sentence(row)
        if row["samples"] >= 5:
            assert row["change_low"] <= -30.0 + 1e-9 <= row["change_high"] + 2e-9


def test_failing_is_measured_against_the_source(samples: Samples):
    before = np.full((1, len(samples), 12), 100.0)
    before[:, 10:] = 151.0
    assert failure_threshold(["source"] * 10 + ["ood"] * (len(samples) - 10), before) == 150.0
    after = np.full_like(before, 140.0)
    table = table_for(samples, before, after)
    large = table[table["samples"] >= 5]
    assert (table["failing_after"] == 0).all()
    assert set(large["fails"]) <= {True, False}
    assert large["fails"].any()
    assert not table.loc[table["samples"] < 5, "fails"].any()


def test_coverage_counts_failing_cells_whose_failures_are_shown_three_times():
    cells = Cells(np.array([[0.0, 0.0], [10.0, 10.0]]), ("stand", "roll"))
    front = 1 * len(SIDES)  # eye level, front
    table = pd.DataFrame(
        {"cell": [front, 12 + front, 12], "fails": [True, True, False], "threshold_mm": 100.0}
    )
    near_roll = np.tile([9.0, 11.0], (4, 1))
    view = np.zeros((4, 3))
    behind = view + np.array([np.pi, 0.0, 0.0])
    hard = np.array([120.0, 130.0, 140.0, 90.0])
    assert coverage(table, cells, near_roll, view, hard) == 0.5  # one of two failing cells
    assert coverage(table, cells, near_roll, view, hard - 30) == 0.0  # one failure is not three
    assert coverage(table, cells, near_roll, behind, hard) == 0.0
    both = np.concatenate([near_roll, 0 * near_roll])
    assert coverage(table, cells, both, np.zeros((8, 3)), np.tile(hard, 2)) == 1.0
    none = table.assign(fails=False)
    assert np.isnan(coverage(none, cells, both, np.zeros((8, 3)), np.tile(hard, 2)))


def test_the_page_and_the_file_are_written_for_any_arm(inputs: ReportInputs, tmp_path):
    page = write_atlas(tmp_path, inputs, clusters=3).read_text()
    assert "PoseGen" in page
    assert "data:image/jpeg" in page
    assert "http" not in page.replace("http-equiv", "")
    table = pd.read_csv(tmp_path / "atlas.csv")
    assert table["samples"].sum() == len(inputs.samples)
    assert table["change_mm"].mean() < 0  # the made-up PoseGen halves the error
    write_atlas(tmp_path, inputs, "random", 3)
    assert not pd.read_csv(tmp_path / "atlas.csv").equals(table)
    with pytest.raises(ConfigError, match="no arm 'other'"):
        write_atlas(tmp_path, inputs, "other")
