"""Tables per sample, aggregates, and whether the intervals hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from posegen_ray.errors import DataError
from posegen_ray.evaluation import metrics
from posegen_ray.evaluation.protocol import (
    evaluate,
    mean_sd,
    motion_name,
    motion_table,
    paired_interval,
    set_metrics,
)
from posegen_ray.evaluation.store import ReportInputs
from posegen_ray.records import Samples


def test_the_table_describes_each_sample(inputs: ReportInputs) -> None:
    samples, predicted = inputs.samples, inputs.predictions["baseline"][0]
    table = evaluate(predicted, samples, inputs.sets)
    assert len(table) == len(samples)
    assert table["set"].tolist() == list(inputs.sets)
    assert table["subject"].tolist() == list(samples.subjects)
    alone = evaluate(predicted[[7]], samples[[7]], inputs.sets[7:8]).iloc[0]
    for column in ("mpjpe_mm", "pa_mpjpe_mm", "pck150", "auc", "azimuth", "elevation"):
        assert alone[column] == pytest.approx(table.iloc[7][column], rel=1e-9)


def test_sets_and_motions_partition_the_samples(inputs: ReportInputs) -> None:
    table = evaluate(inputs.predictions["random"][0], inputs.samples, inputs.sets)
    found = set_metrics(table)
    assert list(found) == ["source", "wild", "ood", "all"]
    assert sum(found[name].count for name in ("source", "wild", "ood")) == found["all"].count
    errors = metrics.mpjpe(inputs.predictions["random"][0], inputs.samples.joints).numpy()
    is_ood = np.array(inputs.sets) == "ood"
    assert found["ood"].mpjpe_mm == pytest.approx(errors[is_ood].mean())
    motions = motion_table([table, table])
    assert motions["samples"].sum() == len(table)
    walk = motions[(motions["set"] == "source") & (motions["motion"] == "walk")].iloc[0]
    rows = (np.array(inputs.sets) == "source") & (np.array(inputs.samples.clips) == "walk")
    assert walk["mpjpe_mm"] == pytest.approx(errors[rows].mean())


def test_unknown_or_missing_set_names_are_refused(inputs: ReportInputs) -> None:
    predicted = inputs.predictions["baseline"][0]
    with pytest.raises(DataError, match="'tame' is not a test set"):
        evaluate(predicted, inputs.samples, ["tame"] * len(inputs.samples))
    with pytest.raises(DataError, match="1 set names for 60"):
        evaluate(predicted, inputs.samples, ["ood"])


@pytest.mark.parametrize(
    ("clip", "name"),
    [
        ("humanoid3d_walk", "walk"),
        ("motions/humanoid3d_dance_a.txt", "dance_a"),
        ("cmu/07_01.bvh", "07_01"),
        ("step.2", "step.2"),
        ("generated", "generated"),
    ],
)
def test_motion_names_are_short(clip: str, name: str) -> None:
    assert motion_name(clip) == name


def test_spread_over_seeds_needs_two() -> None:
    assert mean_sd([3.0]).sd is None
    assert mean_sd([3.0, 5.0]).mean == 4.0
    assert mean_sd([3.0, 5.0]).sd == pytest.approx(np.sqrt(2))


def _crossed_errors(
    random: np.random.Generator, seeds: int, difference: float
) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Errors of two arms over 8 clips x 3 people x 6 samples, with effects of clip and person."""
    clip = np.repeat(np.arange(8), 18)
    person = np.tile(np.repeat(np.arange(3), 6), 8)
    a = 150 + 20 * random.normal(size=8)[clip] + 30 * random.normal(size=len(clip))
    gap = difference + 5 * random.normal(size=8)[clip] + 2 * random.normal(size=3)[person]
    luck = random.normal(size=(seeds, 1)) * (seeds > 1)
    b = a + gap + luck + 15 * random.normal(size=(seeds, len(clip)))
    return a, b, [str(c) for c in clip], [str(p) for p in person]


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_cover_the_true_difference(seeds: int) -> None:
    random, hits, naive_hits = np.random.default_rng(0), 0, 0
    draws = 200
    for draw in range(draws):
        a, b, clips, people = _crossed_errors(random, seeds, -6.0)
        interval = paired_interval(a, b, clips, people, n_boot=400, seed=draw).difference
        hits += interval.low <= -6.0 <= interval.high
        gaps = (b - a).mean(0)
        half = 1.96 * gaps.std(ddof=1) / np.sqrt(len(gaps))
        naive_hits += abs(gaps.mean() + 6.0) <= half
    # 95 % is promised; few clusters and crossed effects allow no exact method, caution is meant
    assert 0.91 <= hits / draws <= 1.0
    assert naive_hits / draws < 0.85  # what pretending that samples are independent would give


def test_intervals_are_about_the_estimate_and_reproducible() -> None:
    a, b, clips, people = _crossed_errors(np.random.default_rng(3), 2, -10.0)
    first = paired_interval(a, b, clips, people, 500, seed=1)
    assert first == paired_interval(a, b, clips, people, 500, seed=1)
    assert first != paired_interval(a, b, clips, people, 500, seed=2)
    assert first.difference.mean == pytest.approx((b - a).mean())
    assert first.relative.mean == pytest.approx((a.mean() - b.mean()) / a.mean())
    assert first.difference.low < first.difference.mean < first.difference.high
    back = paired_interval(b, np.stack([a, a]), clips, people, 500, seed=1).difference
    assert back.mean == pytest.approx(-first.difference.mean)
    assert back.low == pytest.approx(-first.difference.high)


def test_equal_arms_differ_by_nothing() -> None:
    a, _, clips, people = _crossed_errors(np.random.default_rng(4), 1, 0.0)
    same = paired_interval(a, a, clips, people, 200).difference
    assert (same.low, same.mean, same.high) == (0.0, 0.0, 0.0)


def test_one_cluster_tells_nothing_about_others() -> None:
    errors = np.arange(5.0) + 1
    interval = paired_interval(errors, errors - 1, ["walk"] * 5, ["ann"] * 5).difference
    assert interval.mean == -1
    assert interval.low == -np.inf
    assert interval.high == np.inf


@pytest.mark.parametrize("broken", ["length", "nan", "seeds", "zero"])
def test_errors_that_cannot_be_compared_are_refused(broken: str) -> None:
    a, b, clips, people = _crossed_errors(np.random.default_rng(5), 2, -1.0)
    if broken == "length":
        clips = clips[1:]
    elif broken == "nan":
        b[0, 0] = np.nan
    elif broken == "seeds":
        a = np.stack([a, a, a])
    else:
        a = np.zeros_like(a)
    with pytest.raises(DataError):
        paired_interval(a, b, clips, people)


def test_samples_survive_selection(samples: Samples) -> None:
    assert samples[[3, 5]].clips == (samples.clips[3], samples.clips[5])
