"""Poses of drawn sets come back from the run's tables, and reach CSV, summary and page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.evaluation.drawn_sets import drawn_pose_sets, pose_column, read_poses
from posegen_ray.evaluation.pose_sets import measure_poses, pose_features
from posegen_ray.evaluation.pose_sets_section import pose_sets_section
from posegen_ray.evaluation.store import ReportInputs, load_evaluation, save_evaluation
from posegen_ray.evaluation.summary import build_summary
from posegen_ray.motion.clips import Clip
from posegen_ray.motion.splits import MotionSplits
from posegen_ray.records import PoseBatch

_REST = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))


def _poses(count: int, seed: int, spread: float = 0.2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    base = 0.5 * torch.randn(1, 24, 3, generator=generator)
    return from_axis_angle(base + spread * torch.randn(count, 24, 3, generator=generator))


def _clip(name: str, seed: int) -> Clip:
    return Clip(name, PoseBatch(_poses(20, seed), torch.zeros(20, 3)), 30.0)


@pytest.fixture(scope="module")
def splits() -> MotionSplits:
    return MotionSplits(
        (_clip("walk", 1), _clip("run", 2)), (), (_clip("spinkick", 3),), (_clip("roll", 4),)
    )


@pytest.fixture(scope="module")
def table(splits: MotionSplits, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("samples")
    source = torch.cat([clip.poses.rotations for clip in splits.source_train])
    sets = {"source_half-0": source[::2], "posegen-0": _poses(30, 5), "posegen-1": _poses(30, 6)}
    for name, rotations in {**sets, "test": _poses(9, 7), "small-0": _poses(3, 8)}.items():
        _write(rotations, folder / f"{name}.parquet")
    pd.DataFrame({"clip": ["old"]}).to_parquet(folder / "old-0.parquet")
    (folder / "counts-posegen-0.json").write_text(json.dumps({"drawn": 40, "valid": 30}))
    return drawn_pose_sets(folder, splits, _REST)


def _write(rotations: torch.Tensor, file: Path, clips: Sequence[str] = ()) -> None:
    columns = {"clip": clips or ["generated"] * len(rotations), "pose": pose_column(rotations)}
    pd.DataFrame(columns).to_parquet(file)


def test_poses_come_back_from_a_table(tmp_path: Path) -> None:
    rotations = _poses(7, 0)
    unknown = torch.full((2, 24, 3, 3), torch.nan)
    _write(
        torch.cat([rotations, unknown]),
        tmp_path / "x.parquet",
        ["walk:1"] * 7 + ["photograph/a"] * 2,
    )
    found = read_poses(tmp_path / "x.parquet")
    assert found is not None
    torch.testing.assert_close(found, rotations)
    pd.DataFrame({"clip": ["walk"]}).to_parquet(tmp_path / "old.parquet")
    assert read_poses(tmp_path / "old.parquet") is None


def test_every_set_meets_every_reference(table: pd.DataFrame, splits: MotionSplits) -> None:
    pairs = set(zip(table["name"], table["reference"], strict=True))
    drawn = {"source_half-0", "posegen-0", "posegen-1"}
    real = ("source", "validation", "ood")
    assert pairs == (
        {(name, reference) for name in drawn for reference in real}
        | {(f"{a} clips", b) for a in real for b in real if a != b}
        | {(f"left-out clip {name}", "other source clips") for name in ("walk", "run")}
    )
    row = table[(table["name"] == "posegen-0") & (table["reference"] == "ood")].iloc[0]
    direct = measure_poses(
        "posegen-0",
        pose_features(_poses(30, 5), _REST),
        "ood",
        pose_features(splits.ood[0].poses.rotations, _REST),
    )
    assert row["fid_cm2"] == pytest.approx(direct.fid_cm2, rel=1e-4)
    assert row["valid"] == 0.75
    copies = table[(table["name"] == "source_half-0") & (table["reference"] == "source")].iloc[0]
    assert copies["nearest_p90_mm"] == pytest.approx(0, abs=0.01)
    assert np.isnan(float(copies["valid"]))


def test_measures_reach_summary_page_and_disk(
    inputs: ReportInputs, table: pd.DataFrame, tmp_path: Path
) -> None:
    measured = replace(inputs, pose_sets=table)
    save_evaluation(tmp_path, measured)
    again = load_evaluation(tmp_path)
    pd.testing.assert_frame_equal(again.pose_sets, table)
    assert build_summary(again, 100).pose_sets[0]["name"] == table["name"][0]
    section = pose_sets_section(again.pose_sets)
    for words in ("PoseGen half", "yardstick", "OOD clips", "Against 40 poses of Source", "75%"):
        assert words in section
    assert "nan" not in section
    part = again.pose_sets.replace({"name": {"posegen-1": "posegen_random-1"}})
    assert "PoseGen, random part" in pose_sets_section(part)
    assert "No poses were kept" in pose_sets_section(inputs.pose_sets)
