"""The table of all arms on all sets, against sums done by hand."""

import numpy as np
import pandas as pd
import pytest

from posegen_ray.evaluation.comparison import comparison_table, write_comparison


def errors(values: list[float]) -> pd.DataFrame:
    """Two source samples, then two of each of two unseen sets; two clips, two people."""
    return pd.DataFrame(
        {
            "set": ["source"] * 2 + ["wild"] * 2 + ["ood"] * 2,
            "clip": ["walk", "jump"] * 3,
            "subject": ["ivo", "juno"] * 3,
            "mpjpe_mm": values,
            "pa_mpjpe_mm": [value / 2 for value in values],
        }
    )


@pytest.fixture
def table() -> pd.DataFrame:
    arms = {
        "baseline": [errors([100, 100, 200, 200, 300, 300])],
        "random": [errors([90, 90, 160, 160, 270, 250]), errors([110, 90, 160, 160, 290, 270])],
        "posegen": [errors([80, 80, 150, 150, 240, 240]), errors([80, 80, 150, 150, 240, 240])],
    }
    return comparison_table(arms, 200).set_index(["arm", "set", "metric"])


def test_means_spread_and_worst_tenth_are_those_of_the_samples(table):
    row = table.loc["random", "ood", "mpjpe"]
    assert row["mean"] == 270.0
    assert row["sd"] == pytest.approx(np.std([260, 280], ddof=1))
    assert row["worst_decile"] == (270 + 290) / 2
    assert table.loc["random", "ood", "pa_mpjpe"]["mean"] == 135.0
    assert np.isnan(table.loc["baseline", "ood", "mpjpe"]["sd"])


def test_changes_are_percent_of_the_baseline_and_differences_are_to_posegen(table):
    row = table.loc["random", "ood", "mpjpe"]
    assert row["change"] == pytest.approx(-10.0)
    assert row["change_low"] <= row["change"] <= row["change_high"] < 0
    assert row["against_posegen"] == pytest.approx(-30.0)
    assert row["against_posegen_low"] <= -30.0 <= row["against_posegen_high"]
    assert np.isnan(table.loc["posegen", "ood", "mpjpe"]["against_posegen"])


def test_unseen_is_everything_but_the_source(table):
    row = table.loc["posegen", "unseen", "mpjpe"]
    assert (row["samples"], row["mean"]) == (4, 195.0)
    assert row["change"] == pytest.approx(-22.0)
    assert "view" not in table.index.get_level_values("set")


def test_it_is_written_as_csv(table, tmp_path):
    path = write_comparison(tmp_path, table.reset_index())
    again = pd.read_csv(path).set_index(["arm", "set", "metric"])
    assert again.loc["posegen", "unseen", "mpjpe"]["mean"] == 195.0
