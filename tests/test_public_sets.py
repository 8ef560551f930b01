"""`posegen evaluate dataset=…`: the table, what is written, and a run's fine-tuned estimators."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from public_files import StandIn, in_h36m_order, write_3dhp
from torch import Tensor, nn

from posegen_ray import public_sets
from posegen_ray.body.skeleton import H36M_JOINT_NAMES
from posegen_ray.checkpoint import save_checkpoint
from posegen_ray.cli import main
from posegen_ray.compose import compose_config, dump_config
from posegen_ray.estimators.base import Estimate

JOINTS = 0.5 * np.random.default_rng(0).normal(size=(3, 17, 3))


class Shifted(StandIn):
    """Its wrists are off by its only weight, in metres."""

    name = "shifted"

    def __init__(self, shift: float) -> None:
        super().__init__(H36M_JOINT_NAMES, joints=in_h36m_order(JOINTS))
        self.weight = nn.Parameter(torch.tensor([shift]))

    def forward(self, images: Tensor) -> Estimate:
        joints = super().forward(images).joints
        assert joints is not None
        joints[:, [13, 16], 0] += self.weight
        return Estimate(joints)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_3dhp(tmp_path / "3dhp", JOINTS)
    return tmp_path / "3dhp"


@pytest.fixture
def shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_sets, "build_estimator", lambda config: Shifted(0.17))


def make_run(folder: Path, shifts: dict[str, float], *overrides: str) -> Path:
    """A run folder as a finished comparison leaves it, as far as estimators go."""
    folder.mkdir(parents=True)
    config = compose_config(
        ["experiment=tiny", "experiment.arms=[baseline,posegen]", f"run_dir={folder}", *overrides]
    )
    dump_config(config, folder / "config.yaml")
    for name, shift in shifts.items():
        save_checkpoint(folder / "checkpoint" / name, {"weights": Shifted(shift).state_dict()})
    return folder


@pytest.mark.usefixtures("shifted")
def test_the_table_is_printed_and_written_with_all_that_it_depends_on(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two wrists of 17 joints are 170 mm off: MPJPE 20, PCK 15 of 17."""
    out = tmp_path / "out"
    arguments = ["dataset=mpi_inf_3dhp", f"data_root={root}", f"out={out}"]
    assert main(["evaluate", *arguments]) == 0
    captured = capsys.readouterr()
    heading, row = captured.out.splitlines()
    assert {"frames", "MPJPE", "PA-MPJPE", "PCK@150", "AUC", "joints"} <= set(heading.split())
    assert "PVE" not in heading
    assert "17, pelvis at 0" in row
    assert {"6", "20.0", "88.2"} <= set(row.split())
    assert "6 frames; left out: 6 (valid_frame is 0), 6 (a joint outside" in captured.err
    table = pd.read_csv(out / "mpi_inf_3dhp-shifted.csv")
    assert table["mpjpe_mm"][0] == pytest.approx(20, rel=1e-4)
    frames = pd.read_csv(out / "mpi_inf_3dhp-shifted.frames.csv")
    assert list(frames["sequence"]) == [f"TS{number}" for number in range(1, 7)]
    content = json.loads((out / "mpi_inf_3dhp-shifted.json").read_text())
    assert content["dataset"]["annotation"] == "univ_annot3"
    assert content["dataset"]["crop_scale"] is None
    assert content["crop"]["about_joints"] == 1.2
    assert content["estimator"]["kind"] == "blazepose"
    assert content["left_out"]["valid_frame is 0"] == 6
    first = content["results"][0]["weights_sha256"]
    assert len(first) == 64
    assert first == public_sets.weights_sha256(Shifted(0.17))
    assert first != public_sets.weights_sha256(Shifted(0.18))


@pytest.mark.usefixtures("shifted")
def test_a_runs_estimators_are_measured_arm_by_arm_and_seed_by_seed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {"posegen-0": 0.085, "posegen-1": 0.0425}
    run = make_run(tmp_path / "run", weights, "experiment.seeds=[0,1]")
    arguments = ["dataset=mpi_inf_3dhp", f"data_root={root}", f"run={run}"]
    assert main(["evaluate", *arguments]) == 0
    table = pd.read_csv(run / "public" / "mpi_inf_3dhp-shifted.csv")
    assert list(table["arm"]) == ["baseline", "posegen", "posegen"]
    assert table["seed"].tolist()[1:] == [0, 1]
    np.testing.assert_allclose(table["mpjpe_mm"], [20, 10, 5], rtol=1e-4)
    assert "–" in capsys.readouterr().out
    (run / "checkpoint" / "posegen-1").rename(run / "elsewhere")
    assert main(["evaluate", *arguments]) == 1
    assert "no estimator of arm posegen, seed 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["dataset=mpi_inf_3dhp"], 2, "data_root=<folder>"),
        (["dataset=mpi_inf_3dhp", "data_root=/nowhere"], 1, "/nowhere/TS1/annot_data.mat"),
        (["dataset=coco"], 2, "coco"),
        (["dataset=h36m", "dataset.joints=smpl24"], 2, "not annotated in h36m"),
        (["dataset=surreal", "dataset.joints=lsp14"], 2, "not annotated in surreal"),
        (["dataset=3dpw", "dataset.split=val"], 2, "Choose train, validation, test"),
        (["dataset=3dpw", "dataset.ground_truth=male"], 2, "gendered or neutral"),
        (["dataset=3dpw", "dataset.every=0"], 2, "must be positive"),
        (["dataset=h36m", "dataset.video_offset=-1"], 2, "is negative"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *arguments]) == code
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("shifted")
def test_pictures_are_held_batch_by_batch(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counted(forward: Callable[[Shifted, Tensor], Estimate]):
        def call(self: Shifted, images: Tensor) -> Estimate:
            sizes.append(len(images))
            return forward(self, images)

        return call

    monkeypatch.setattr(Shifted, "forward", counted(Shifted.forward))
    arguments = ["dataset=mpi_inf_3dhp", f"data_root={root}", f"out={tmp_path}"]
    assert main(["evaluate", *arguments, "dataset.batch_size=4"]) == 0
    assert sizes == [4, 2]
