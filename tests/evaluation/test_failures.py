"""Failure cells: counted by hand, nothing lost, nothing hidden; the page that shows them."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.config import EvaluationConfig
from posegen_ray.errors import DataError
from posegen_ray.evaluation.failure_page import render_failure_page, write_failure_atlas
from posegen_ray.evaluation.failures import (
    HEIGHTS,
    LEAST,
    MAIN_PARTS,
    PARTS,
    SIDES,
    FailureAtlas,
    build_failure_atlas,
    coarse_views,
    failure_table,
)
from posegen_ray.evaluation.store import ReportInputs


@pytest.fixture(scope="module")
def atlas(inputs: ReportInputs) -> FailureAtlas:
    return build_failure_atlas(inputs, "posegen", clusters=3, n_boot=200)


def _errors(inputs: ReportInputs, arm: str) -> np.ndarray:  # [S, N, 12]
    def centred(joints: np.ndarray) -> np.ndarray:
        return joints - joints[:, 6:8].mean(1, keepdims=True)

    truth = centred(inputs.samples.joints.double().numpy())
    rows = inputs.predictions[arm].double().numpy()
    return np.stack([1000 * np.linalg.norm(centred(row) - truth, axis=2) for row in rows])


def test_parts_hold_the_joints_of_their_names() -> None:
    named = {part: [LIMB_JOINT_NAMES[row] for row in rows] for part, rows in PARTS.items()}
    assert named["ankles"] == ["left_ankle", "right_ankle"]
    assert named["right knee"] == ["right_knee"]
    assert sorted(named["torso"]) == ["left_hip", "left_shoulder", "right_hip", "right_shoulder"]
    assert sorted(row for part in MAIN_PARTS for row in PARTS[part]) == list(range(12))


def test_views_fall_into_coarse_cells() -> None:
    degrees = [(0, 0), (46, 16), (-44, -16), (180, 80), (-179, 14), (-90, 20), (316, 0), (90, -1)]
    side, height = coarse_views(np.deg2rad([[a, e, 0.0] for a, e in degrees]))
    assert [SIDES[i].removeprefix("the ") for i in side] == [
        "front", "left", "front", "back", "back", "right", "front", "left",
    ]  # fmt: skip
    assert [HEIGHTS.index(HEIGHTS[i]) for i in height] == [1, 2, 0, 2, 1, 2, 1, 1]


def test_every_sample_is_in_one_cell(inputs: ReportInputs, atlas: FailureAtlas) -> None:
    rows = sorted(row for cell in atlas.cells for row in cell.rows)
    assert rows == list(range(len(inputs.samples)))
    assert sorted(row for cell in atlas.clusters for row in cell.rows) == rows
    assert {cell.typical in cell.rows and cell.worst in cell.rows for cell in atlas.cells} == {True}


def test_numbers_of_a_cell_equal_a_direct_computation(
    inputs: ReportInputs, atlas: FailureAtlas
) -> None:
    before, after = _errors(inputs, "baseline"), _errors(inputs, "posegen")
    source = [name == "source" for name in inputs.sets]
    threshold = 1.5 * np.median(before.mean(2)[:, source])
    assert atlas.threshold_mm == pytest.approx(threshold)
    for cell in atlas.cells:
        rows = list(cell.rows)
        for part, joints in PARTS.items():
            per_sample = [e[:, rows][:, :, list(joints)].mean(2) for e in (before, after)]
            error = cell.parts[part]
            assert error.before_mm == pytest.approx(per_sample[0].mean())
            assert error.after_mm == pytest.approx(per_sample[1].mean())
            assert error.failing_before == pytest.approx((per_sample[0] > threshold).mean())
            assert error.failing_after == pytest.approx((per_sample[1] > threshold).mean())
            if error.change:
                assert error.change.mean == pytest.approx(error.after_mm - error.before_mm)
                assert error.change.low <= error.change.mean <= error.change.high
        assert (error.change is None) or len(rows) >= LEAST


def test_worst_cells_come_first(atlas: FailureAtlas) -> None:
    errors = [cell.parts["all"].before_mm for cell in atlas.ranked]
    assert errors == sorted(errors, reverse=True)
    assert len(atlas.ranked) > 1
    assert atlas.cells[: len(atlas.ranked)] == atlas.ranked
    cell = atlas.ranked[0]
    worst = max(MAIN_PARTS, key=lambda part: cell.parts[part].before_mm)
    error = cell.parts[worst]
    expected = f": {worst} {error.before_mm:.0f} mm → {error.after_mm:.0f} mm, n={len(cell.rows)}"
    assert cell.sentence().endswith(expected)


def test_a_failing_part_is_found(inputs: ReportInputs) -> None:
    """Only left ankles are wrong, by 300 mm, and only in the answers after."""
    truth = inputs.samples.joints
    after = truth.clone()
    after[:, LIMB_JOINT_NAMES.index("left_ankle"), 1] += 0.3
    before = truth + 0.01 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    made = replace(inputs, predictions={"baseline": before[None], "posegen": after[None]})
    atlas = build_failure_atlas(made, "posegen", clusters=2, n_boot=200)
    for cell in atlas.cells:
        assert cell.parts["left ankle"].after_mm == pytest.approx(300, abs=0.1)
        assert cell.parts["ankles"].after_mm == pytest.approx(150, abs=0.1)
        assert cell.parts["right ankle"].after_mm == pytest.approx(0, abs=0.1)
        assert cell.parts["left ankle"].failing_after == 1
        assert cell.parts["torso"].failing_after == 0
    page = render_failure_page(made, atlas)
    assert "Got worse most" in page
    assert "0 got better" in page


def test_page_and_table(inputs: ReportInputs, tmp_path: Path) -> None:
    settings = EvaluationConfig(bootstrap=200, clusters=3)
    page, table = write_failure_atlas(tmp_path, inputs, "random", settings)
    assert {path.name for path in tmp_path.iterdir()} == {"atlas-random.html", "atlas-random.csv"}
    text = page.read_text()
    bare = re.sub(r"base64,[^\"]*", "", text)
    assert "://" not in bare
    assert "<script" not in bare
    assert "nan" not in bare.lower().split()
    assert text.count("<img") >= 2 * 4
    for words in ("Random", "Worst cells", "Got better most", "Got worse most", "1.5 times"):
        assert words in text
    rows = pd.read_csv(io.StringIO(table.read_text()))
    atlas = build_failure_atlas(inputs, "random", 3, 200)
    assert len(rows) == len(PARTS) * (len(atlas.cells) + len(atlas.clusters))
    pd.testing.assert_frame_equal(rows, failure_table(atlas), rtol=1e-3, check_dtype=False)
    inside = rows[(rows["part"] == "all") & (rows["side"] != "all")]
    assert inside["n"].sum() == len(inputs.samples)


def test_few_samples_and_unknown_arms(inputs: ReportInputs) -> None:
    few = replace(
        inputs,
        samples=inputs.samples[:3],
        sets=("ood",) * 3,
        predictions={arm: joints[:, :3] for arm, joints in inputs.predictions.items()},
    )
    atlas = build_failure_atlas(few, "posegen")
    assert "on all images" in atlas.threshold_text
    assert atlas.ranked == ()
    assert "Too few test images to rank cells" in render_failure_page(few, atlas)
    with pytest.raises(DataError, match=r"no arm 'hard'.*baseline"):
        build_failure_atlas(inputs, "hard")
