"""The whole loop with SPIN and HybrIK in BlazePose's place, with random weights.

In this process with narrow networks of the same code; on Ray, whose workers build their own, from
a file in SPIN's published layout, and on SMPL's body.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bodies import capsule_smpl
from test_experiment import assert_same_answers

sys.path.insert(0, str(Path(__file__).parent / "estimators"))

import published_layouts as published
from test_hybrik import small_res
from test_spin import small_spin

from posegen_ray.checkpoint import load_checkpoint
from posegen_ray.cli import main
from posegen_ray.estimators import PoseEstimator


@pytest.mark.parametrize("kind", ["spin", pytest.param("hybrik_res34", marks=pytest.mark.slow)])
def test_a_parametric_estimator_is_fooled_tuned_and_measured(kind, tmp_path, monkeypatch):
    smpl = tmp_path / "smpl"
    smpl.mkdir()
    arrays = published.write_smpl(smpl)
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
    assert_finite(run, narrow(kind).name)
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


def assert_finite(run: Path, name: str) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["estimator"] == name
    for arm in ("baseline", "source_adapted", "random", "posegen"):
        for errors in summary["arms"][arm].values():
            assert np.isfinite(errors["mpjpe_mm"]["mean"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_on_ray_and_on_smpl_bodies_spin_does_as_in_one_process(tmp_path):
    np.savez(tmp_path / "SMPL_NEUTRAL.npz", **capsule_smpl())
    torch.save({"model": published.random_state(published.spin())}, tmp_path / "spin.pt")
    settings = [
        "experiment=tiny",
        "body=smpl",
        f"body.smpl_folder={tmp_path}",
        f"subject.folder={tmp_path}/people",
        "estimator=spin",
        f"estimator.checkpoint={tmp_path}/spin.pt",
    ]
    for runtime in ("laptop", "inprocess"):
        run = tmp_path / runtime
        assert main(["demo", *settings, f"runtime={runtime}", f"run_dir={run}"]) == 0
        assert_finite(run, "spin")
    assert_same_answers(tmp_path / "laptop", tmp_path / "inprocess")
