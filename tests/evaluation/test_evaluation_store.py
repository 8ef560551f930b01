"""What is saved comes back; what is damaged is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from posegen_ray.errors import DataError
from posegen_ray.evaluation.store import (
    ARRAYS_FILE,
    FORMAT,
    NAMES_FILE,
    ReportInputs,
    load_evaluation,
    save_evaluation,
)
from posegen_ray.evaluation.summary import build_summary


def test_an_evaluation_comes_back(inputs: ReportInputs, tmp_path: Path) -> None:
    save_evaluation(tmp_path, inputs)
    loaded = load_evaluation(tmp_path)
    assert build_summary(loaded, 200) == build_summary(inputs, 200)
    for arm in inputs.arms:
        assert torch.equal(loaded.predictions[arm], inputs.predictions[arm])
    assert loaded.samples.clips == inputs.samples.clips
    assert torch.equal(loaded.samples.camera.focal, inputs.samples.camera.focal)
    pd.testing.assert_frame_equal(loaded.history, inputs.history, check_dtype=False)
    difference = loaded.samples.images.float() - inputs.samples.images.float()
    assert difference.abs().mean() < 3  # JPEG
    assert loaded.generated is not None
    assert loaded.generated.shape == inputs.generated.shape  # type: ignore[union-attr]
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAMES_FILE, ARRAYS_FILE]


def test_what_is_optional_may_be_absent(inputs: ReportInputs, tmp_path: Path) -> None:
    save_evaluation(tmp_path, replace(inputs, generated=None, history=pd.DataFrame(), rejected={}))
    loaded = load_evaluation(tmp_path)
    assert loaded.generated is None
    assert loaded.history.empty
    assert loaded.counts.rejected == 0


def test_missing_and_damaged_files_are_named(inputs: ReportInputs, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"evaluation\.json is missing.*posegen demo resume="):
        load_evaluation(tmp_path)
    save_evaluation(tmp_path, inputs)
    arrays = tmp_path / ARRAYS_FILE
    arrays.write_bytes(arrays.read_bytes()[:1000])
    with pytest.raises(DataError, match="damaged"):
        load_evaluation(tmp_path)
    (tmp_path / NAMES_FILE).write_text('{"format": 99}')
    save_evaluation(tmp_path, inputs)
    (tmp_path / NAMES_FILE).write_text(
        (tmp_path / NAMES_FILE).read_text().replace(f'"format": {FORMAT}', '"format": 99')
    )
    with pytest.raises(DataError, match="format 99"):
        load_evaluation(tmp_path)


def test_inputs_that_do_not_fit_together_are_refused(inputs: ReportInputs) -> None:
    with pytest.raises(DataError, match="cannot be compared"):
        replace(inputs, predictions={"posegen": inputs.predictions["posegen"]})
    short = {**inputs.predictions, "posegen": inputs.predictions["posegen"][:, :5]}
    with pytest.raises(DataError, match="shape"):
        replace(inputs, predictions=short)
    broken = inputs.predictions["random"].clone()
    broken[1, 4, 0, 0] = np.nan
    with pytest.raises(DataError, match=r"predictions of random, seed 1 has NaN"):
        replace(inputs, predictions={**inputs.predictions, "random": broken})
