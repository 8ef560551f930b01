"""The whole loop with SPIN and HybrIK in BlazePose's place: random weights, same code, narrower."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "estimators"))

from published_layouts import write_smpl
from test_hybrik import small_res
from test_spin import small_spin

from posegen_ray.checkpoint import load_checkpoint
from posegen_ray.cli import main
from posegen_ray.estimators import PoseEstimator


@pytest.mark.parametrize("kind", ["spin", pytest.param("hybrik_res34", marks=pytest.mark.slow)])
def test_a_parametric_estimator_is_fooled_tuned_and_measured(kind, tmp_path, monkeypatch):
    smpl = tmp_path / "smpl"
    smpl.mkdir()
    arrays = write_smpl(smpl)
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.touch()

    def narrow(kind: str, *files: object, **options: object) -> PoseEstimator:
        net = small_spin(smpl) if kind == "spin" else small_res(arrays, flip_test=False)
        return net.requires_grad_(False)

    monkeypatch.setattr("posegen_ray.estimators.registry.load_estimator", narrow)
    run = tmp_path / "run"
    files = [f"estimator.checkpoint={checkpoint}", f"estimator.smpl_folder={smpl}"]
    settings = ["experiment=tiny", "runtime=inprocess", f"estimator={kind}", *files]
    assert main(["demo", *settings, f"run_dir={run}"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["estimator"] == narrow(kind).name
    for arm in ("baseline", "source_adapted", "random", "posegen"):
        for errors in summary["arms"][arm].values():
            assert np.isfinite(errors["mpjpe_mm"]["mean"])
    # each arm moved the weights in its own way
    before = narrow(kind).state_dict()
    tuned = [
        load_checkpoint(run / "checkpoint" / f"{arm}-0")["weights"]
        for arm in ("source_adapted", "random", "posegen")
    ]
    moved = [name for name in before if not torch.equal(before[name], tuned[0][name])]
    assert moved
    assert not torch.equal(tuned[0][moved[0]], tuned[1][moved[0]])
    assert not torch.equal(tuned[1][moved[0]], tuned[2][moved[0]])
