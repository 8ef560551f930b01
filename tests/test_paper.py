"""The paper's table: aggregation by hand, and the command on runs with a stand-in estimator."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from public_files import write_3dhp
from test_public_sets import JOINTS, Shifted

from posegen_ray import paper, public_sets
from posegen_ray.body.skeleton import H36M_JOINT_NAMES
from posegen_ray.checkpoint import save_checkpoint
from posegen_ray.cli import main
from posegen_ray.compose import compose_config
from posegen_ray.config import RunConfig
from posegen_ray.paper import paper_table, paper_text

SHIFTS = {"posegen-0": 0.153, "posegen-1": 0.136}  # 10 % and 20 % better than 0.17


def row(estimator: str, dataset: str, arm: str, seed: int | None, mpjpe: float, pa: float):
    return {
        "estimator": estimator, "dataset": dataset, "arm": arm, "seed": seed, "joints": "14",
        "frames": 100, "mpjpe_mm": mpjpe, "pa_mpjpe_mm": pa,
    }  # fmt: skip


ROWS = pd.DataFrame(
    [
        row("spin", "3dpw", "baseline", None, 100, 60),
        row("spin", "3dpw", "posegen", 0, 90, 60),
        row("spin", "3dpw", "posegen", 1, 80, 57),
        row("spin", "h36m", "baseline", None, 50, 40),
        row("spin", "h36m", "posegen", 0, 50, 38),
        row("spin", "h36m", "posegen", 1, 55, 38),
        row("hybrik", "3dpw", "baseline", None, 80, 50),
        row("hybrik", "3dpw", "posegen", 0, 76, 49),
        row("hybrik", "3dpw", "posegen", 1, 72, 48),
    ]
).astype({"seed": "Int64"})


def test_improvements_and_their_means_by_hand() -> None:
    table = paper_table(ROWS, {"spin": False, "hybrik": True}).set_index(["estimator", "dataset"])
    spin = table.loc[("spin", "3dpw")]
    assert (spin["mpjpe_mm_before"], spin["mpjpe_mm_after"]) == (100, 85)
    assert spin["mpjpe_mm_after_sd"] == pytest.approx(np.std([90, 80], ddof=1))
    assert spin["mpjpe_mm_improvement"] == pytest.approx(15)  # 10 % and 20 %
    assert spin["mpjpe_mm_improvement_sd"] == pytest.approx(np.std([10, 20], ddof=1))
    assert spin["pa_mpjpe_mm_improvement"] == pytest.approx(2.5)  # 0 % and 5 %
    assert (spin["trained_on_3dpw"], spin["seeds"], spin["frames"]) == ("no", 2, 100)
    assert table.loc[("hybrik", "3dpw"), "trained_on_3dpw"] == "yes"
    mean = table.loc[("spin", "mean")]  # seed 0: (10 + 0) / 2, seed 1: (20 - 10) / 2
    assert mean["mpjpe_mm_improvement"] == pytest.approx(5)
    assert mean["mpjpe_mm_improvement_sd"] == pytest.approx(0)
    assert mean["pa_mpjpe_mm_improvement"] == pytest.approx((0 + 5 + 5 + 5) / 4)
    assert np.isnan(mean["mpjpe_mm_before"])
    whole = table.loc[("mean", "mean")]  # seed 0: (10 + 0 + 5) / 3, seed 1: (20 - 10 + 10) / 3
    assert whole["mpjpe_mm_improvement"] == pytest.approx((15 / 3 + 20 / 3) / 2)


def test_the_text_says_what_is_not_known_and_shows_no_spread_of_one_seed() -> None:
    text = paper_text(paper_table(ROWS, {}))
    assert "not stated" in text
    assert "100.0 -> 85.0 ± 7.1" in text
    assert "+15.0 % ± 7.1" in text
    assert "nan" not in text.lower()
    one = paper_text(paper_table(ROWS[(ROWS["seed"] != 1).fillna(True)], {}))
    assert "±" not in one
    assert "100.0 -> 90.0" in one


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    write_3dhp(tmp_path / "data" / "mpi_inf_3dhp", JOINTS)
    monkeypatch.setattr(public_sets, "build_estimator", lambda config: Shifted(0.17))
    return [
        "experiment",
        "experiment=tiny",
        "experiment.arms=[baseline,posegen]",
        "experiment.seeds=[0,1]",
        f"run_dir={tmp_path}/paper",
        "estimators=[blazepose]",
        "datasets=[mpi_inf_3dhp]",
        f"data_root={tmp_path}/data",
        "runtime=inprocess",
    ]


@pytest.fixture
def fine_tuned(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """In place of the comparison, which other tests run: leaves estimators as it does."""
    calls: list[RunConfig] = []

    def leave(config: RunConfig, folder: Path, *_: object) -> str:
        calls.append(config)
        for name, shift in SHIFTS.items():
            save_checkpoint(folder / "checkpoint" / name, {"weights": Shifted(shift).state_dict()})
        if len(calls) == 1:
            raise KeyboardInterrupt
        (folder / "summary.json").write_text("{}")
        return ""

    def no_backend(*_: object) -> AbstractContextManager[None]:
        return nullcontext()

    monkeypatch.setattr(paper, "run_experiment", leave)
    monkeypatch.setattr("posegen_ray.cli._backend", no_backend)
    return calls


def test_the_command_goes_on_after_an_interruption_and_does_nothing_twice(
    command: list[str],
    fine_tuned: list[RunConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "paper"
    assert main(command) == 130
    assert main(command) == 0
    run = str(folder / "blazepose")
    assert [config.resume for config in fine_tuned] == ["", run]
    assert fine_tuned[0].run_dir == run
    text = capsys.readouterr().out
    assert "20.0 -> 17.0 ± 1.4" in text
    assert "+15.0 % ± 7.1" in text
    table = pd.read_csv(folder / "paper.csv").set_index("dataset")
    assert table.loc["mpi_inf_3dhp", "mpjpe_mm_improvement"] == pytest.approx(15, rel=1e-4)
    assert table.loc["mean", "mpjpe_mm_improvement"] == pytest.approx(15, rel=1e-4)
    content = json.loads((folder / "paper.json").read_text())
    assert content["seeds"] == [0, 1]
    assert {result["arm"] for result in content["results"]} == {"baseline", "posegen"}
    assert main(command) == 0
    assert len(fine_tuned) == 2
    assert main([*command, "training.rounds=9"]) == 2
    assert "was started with other settings" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ray_gives_the_numbers_of_one_process(tmp_path: Path) -> None:
    write_3dhp(tmp_path / "data" / "mpi_inf_3dhp", JOINTS)
    tables = {}
    for runtime in ("inprocess", "laptop"):
        folder = tmp_path / runtime
        command = [
            "experiment",
            "experiment=tiny",
            "experiment.arms=[baseline,posegen]",
            f"run_dir={folder}",
            "estimators=[blazepose]",
            "datasets=[mpi_inf_3dhp]",
            f"data_root={tmp_path}/data",
            f"runtime={runtime}",
        ]
        assert main(command) == 0
        tables[runtime] = pd.read_csv(folder / "paper.csv")
    one, other = tables.values()
    assert (one["mpjpe_mm_before"] != one["mpjpe_mm_after"]).all()
    pd.testing.assert_frame_equal(one, other, rtol=1e-3)


def test_each_estimator_gets_its_own_checkpoint(tmp_path: Path) -> None:
    overrides = [
        "experiment=paper",
        f"run_dir={tmp_path}",
        "estimators=[blazepose,other]",
        "datasets=[3dpw]",
        "data_root=/data",
        "checkpoints.other=/b",
        "trained_on_3dpw.other=true",
        "dataset.batch_size=8",
        "training.rounds=2",
    ]
    run = paper.run_config(compose_config(overrides), overrides, "blazepose")
    assert (run.run_dir, run.training.rounds) == (f"{tmp_path}/blazepose", 2)
    assert (run.estimators, run.datasets, run.data_root) == ([], [], "")
    assert (run.checkpoints, run.trained_on_3dpw) == ({}, {"spin": False})
    assert run.dataset.batch_size == 32
    assert paper.run_overrides(compose_config(overrides), overrides, "other")[-1] == (
        "estimator.checkpoint=/b"
    )


def test_what_is_missing_is_found_before_anything_is_trained(
    command: list[str],
    fine_tuned: list[RunConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*command, "datasets=[mpi_inf_3dhp,h36m]"]) == 1
    assert f"{tmp_path}/data/h36m/S9" in capsys.readouterr().err
    assert main([*command, "estimators=[nobody]"]) == 2
    assert "nobody" in capsys.readouterr().err
    assert main([*command, "estimators=[]"]) == 2
    assert "The table needs estimators" in capsys.readouterr().err
    assert main([*command, "datasets=[coco]"]) == 2
    assert fine_tuned == []


def test_missing_smpl_files_are_found_before_anything_is_trained(
    command: list[str],
    fine_tuned: list[RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    test = SimpleNamespace(states_joints=False, genders=("male",), joint_names=H36M_JOINT_NAMES)
    monkeypatch.setattr(paper, "open_public_set", lambda *_: test)
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "SMPL_MALE.pkl" in error
    assert "J_regressor_h36m.npy" in error
    assert fine_tuned == []
