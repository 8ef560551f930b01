"""The whole loop with SPIN and HybrIK in BlazePose's place, with random weights.

With narrow networks of the same code; slower, in the published sizes from files in the published
layouts, on SMPL's body, and on Ray, whose workers build their own.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import published_layouts as published
import pytest
import torch
from bodies import capsule_smpl
from least import LEAST
from photograph_files import people, write
from test_experiment import assert_same_answers
from test_hybrik import small_res
from test_spin import small_spin
from torch import Tensor

from posegen_ray.checkpoint import load_checkpoint
from posegen_ray.cli import main
from posegen_ray.estimators import PoseEstimator


@pytest.mark.parametrize("kind", ["spin", pytest.param("hybrik_res34", marks=pytest.mark.slow)])
def test_a_parametric_estimator_is_fooled_tuned_and_measured(kind, smpl, tmp_path, monkeypatch):
    folder, arrays = smpl
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.touch()

    def narrow(kind: str, *files: object, **options: object) -> PoseEstimator:
        net = small_spin(folder) if kind == "spin" else small_res(arrays, flip_test=False)
        return net.requires_grad_(False)

    monkeypatch.setattr("posegen_ray.estimators.registry.load_estimator", narrow)
    run = tmp_path / "run"
    files = [f"estimator.checkpoint={checkpoint}", f"estimator.smpl_folder={folder}"]
    settings = [*LEAST, "runtime=inprocess", f"estimator={kind}", *files, *photographs(tmp_path)]
    assert main(["demo", *settings, f"run_dir={run}"]) == 0
    assert_finite(run, narrow(kind).name)
    assert_photographs_are_among(run)
    assert_each_arm_moved_the_weights_in_its_own_way(run, narrow(kind).state_dict())


def photographs(folder: Path) -> list[str]:
    """Settings that name photographs of people marked in 2D and fitted with SMPL."""
    content = people(6)
    content["pose"], content["shape"] = np.zeros((6, 72)), np.zeros((6, 10))
    made = write(folder, content)
    named = [f"photographs.{name}={getattr(made, name)}" for name in ("labels", "folders")]
    return [*named, "photographs.share=0.8"]


def assert_photographs_are_among(run: Path) -> None:
    for name in ("source_half", "source_adapted"):
        noted = pd.read_parquet(run / "samples" / f"{name}-0.parquet")["clip"]
        assert 0 < noted.str.startswith("photograph/pictures/").sum() < len(noted)


def assert_each_arm_moved_the_weights_in_its_own_way(run: Path, before: dict[str, Tensor]) -> None:
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


def write_published(folder: Path, kind: str) -> list[str]:
    """The user's files, and the settings that name them: SMPL's, and the estimator's checkpoint."""
    arrays = capsule_smpl()
    np.savez(folder / "SMPL_NEUTRAL.npz", **arrays)
    if kind == "spin":
        state = {"model": published.random_state(published.spin())}
    else:
        state = published.hybrik_state(published.hybrik_res34(), arrays)
    torch.save(state, folder / "checkpoint.pth")
    return [
        *("body=smpl", f"body.smpl_folder={folder}", f"subject.folder={folder}/people"),
        *(f"estimator={kind}", f"estimator.checkpoint={folder}/checkpoint.pth"),
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hybrik_goes_from_its_published_file_through_the_whole_loop(tmp_path):
    files, run = write_published(tmp_path, "hybrik_res34"), tmp_path / "run"
    assert main(["demo", *LEAST, *files, "runtime=inprocess", f"run_dir={run}"]) == 0
    assert_finite(run, "hybrik-res34")
    state = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert_each_arm_moved_the_weights_in_its_own_way(run, state)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_on_ray_spin_does_as_in_one_process(tmp_path):
    files = write_published(tmp_path, "spin") + photographs(tmp_path)
    for runtime in ("laptop", "inprocess"):
        run = tmp_path / runtime
        assert main(["demo", *LEAST, *files, f"runtime={runtime}", f"run_dir={run}"]) == 0
        assert_finite(run, "spin")
        assert_photographs_are_among(run)
    assert_same_answers(tmp_path / "laptop", tmp_path / "inprocess")
