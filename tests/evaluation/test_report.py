"""The page holds every section, stands alone, and survives runs in which parts are missing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from posegen_ray.config import EvaluationConfig
from posegen_ray.errors import ConfigError
from posegen_ray.evaluation import charts, gallery
from posegen_ray.evaluation.protocol import Interval
from posegen_ray.evaluation.report import (
    ReportInputs,
    load_evaluation,
    save_evaluation,
    write_report,
)

_SECTIONS = (
    "verdict", "results", "curves", "motions", "hardest", "atlas", "poses", "generated", "rejected",
    "run",
)  # fmt: skip
_VOID = {"meta", "img", "line", "polyline", "circle", "br"}


class _Page(HTMLParser):
    """Checks nesting and collects what the page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.references: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag != "script"
        self.ids.add(values.get("id") or "")
        for name in ("src", "href", "srcset", "data", "xlink:href"):
            if name in values:
                self.references.append(values[name] or "")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def settings() -> EvaluationConfig:
    return EvaluationConfig(bootstrap=200, hardest=4, clusters=4, generated=6)


@pytest.fixture(scope="module")
def page(
    inputs: ReportInputs, settings: EvaluationConfig, tmp_path_factory: pytest.TempPathFactory
) -> str:
    return write_report(tmp_path_factory.mktemp("run"), inputs, settings).read_text()


def test_every_section_is_there_and_linked(page: str) -> None:
    parsed = _Page(page)
    assert set(_SECTIONS) <= parsed.ids
    assert {f"#{name}" for name in _SECTIONS} <= set(parsed.references)


def test_the_page_stands_alone(page: str) -> None:
    parsed = _Page(page)
    outside = [ref for ref in parsed.references if not ref.startswith(("#", "data:image/jpeg;"))]
    assert outside == ["atlas.html"]  # beside it in the run folder; its short form is in the page
    assert "url(" not in page
    assert "@import" not in page
    assert "://" not in page
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_the_page_shows_what_was_measured(page: str) -> None:
    for text in (
        "blazepose_full", "PoseGen is better than baseline", "Source-adapted", "PA-MPJPE",
        "Worst 10 %", "cartwheel", "Joint limits", "120 (68%)", "Validation MPJPE mm", "front left",
        "fine-tuning steps per arm", "What is worst before",
    ):  # fmt: skip
        assert text in page
    assert page.count("<img") == 2 * (4 + 2 + 2) + 4 + 6
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower().split()


def test_a_stored_evaluation_gives_the_same_page(
    inputs: ReportInputs, settings: EvaluationConfig, page: str, tmp_path: Path
) -> None:
    save_evaluation(tmp_path, inputs)
    again = write_report(tmp_path, load_evaluation(tmp_path), settings).read_text()

    def without_pictures(text: str) -> str:
        return re.sub(r"base64,[^\"]*", "", text)

    assert without_pictures(again) == without_pictures(page)


def test_sparse_runs_give_a_page_too(
    inputs: ReportInputs, settings: EvaluationConfig, tmp_path: Path
) -> None:
    bare = replace(
        inputs,
        predictions={"baseline": inputs.predictions["baseline"]},
        history=pd.DataFrame(),
        generated=None,
        rejected={},
        timing_s={},
    )
    page = write_report(tmp_path, bare, settings).read_text()
    _Page(page)
    assert "PoseGen was not compared" in page
    assert "No training curves were recorded" in page
    assert "No generated samples were kept" in page
    few = replace(
        inputs,
        samples=inputs.samples[:3],
        sets=inputs.sets[:3],
        predictions={arm: joints[:, :3] for arm, joints in inputs.predictions.items()},
    )
    _Page(write_report(tmp_path, few, settings).read_text())


def test_names_from_outside_are_escaped(
    inputs: ReportInputs, settings: EvaluationConfig, tmp_path: Path
) -> None:
    clips = tuple(f"<b>{clip}" for clip in inputs.samples.clips)
    odd = replace(
        inputs,
        title="<script>1</script>",
        estimator="a&b",
        samples=replace(inputs.samples, clips=clips),
    )
    page = write_report(tmp_path, odd, settings).read_text()
    _Page(page)
    assert "a&amp;b" in page


def test_one_clip_does_not_fill_the_page() -> None:
    score = np.arange(10.0)
    clips = ["roll" if row > 4 else "walk" for row in range(10)]
    assert gallery.most_extreme(score, clips, 8) == [9, 8, 4, 3]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3e-5, 7e-5), (120.0, 150.0), (0.0, 12345.0)]
)
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = charts.ticks(low, high)
    assert 2 <= len(found) <= 9
    assert low - 1e-9 <= found[0] < found[-1] <= high * (1 + 1e-9)
    assert all(float(f"{value:.4g}") == pytest.approx(value) for value in found)


def test_curves_leave_out_what_is_not_a_number() -> None:
    gaps = charts.Curve("a", "arm-other", np.arange(5.0), np.array([1.0, np.nan, 2, np.inf, 3]))
    chart = charts.curve_chart("loss", [gaps])
    points = re.search(r'points="([^"]*)"', chart)
    assert points is not None
    assert len(points.group(1).split()) == 3
    assert charts.curve_chart("loss", [replace(gaps, y=np.full(5, np.nan))]) == ""
    long = charts.Curve("b", "arm-other", np.arange(5000.0), np.ones(5000))
    points = re.search(r'points="([^"]*)"', charts.curve_chart("loss", [long]))
    assert points is not None
    assert len(points.group(1).split()) <= 240


def test_unbounded_intervals_stay_in_the_chart() -> None:
    row = charts.IntervalRow("PoseGen", "arm-posegen", Interval(-0.1, -np.inf, np.inf), "unknown")
    chart = charts.interval_rows([row], "better", "worse")
    places = [float(value) for value in re.findall(r"left:([\d.]+)%", chart)]
    assert all(0 <= value <= 100 for value in places)


def test_settings_that_empty_the_report_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.bootstrap=5"):
        EvaluationConfig(bootstrap=5)
    with pytest.raises(ConfigError, match=r"evaluation\.clusters=0"):
        EvaluationConfig(clusters=0)
