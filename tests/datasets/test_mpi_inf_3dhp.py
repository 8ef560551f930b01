"""MPI-INF-3DHP's test set in its layout: which frames and which annotation; numbers by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from public_files import FILE_ORDER_3DHP, StandIn, in_h36m_order, write_3dhp

from posegen_ray.body.skeleton import H36M_JOINT_NAMES
from posegen_ray.config import DatasetConfig
from posegen_ray.datasets.public import Box, open_public_set
from posegen_ray.errors import DataError
from posegen_ray.evaluation.public import PublicResult, SmplMeshes, evaluate_public

CONFIG = DatasetConfig(name="mpi_inf_3dhp", joints="h36m17")
FRAMES = 3
JOINTS = 0.5 * np.random.default_rng(0).normal(size=(FRAMES, 17, 3))  # metres


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("3dhp")
    write_3dhp(folder, JOINTS)
    return folder


def evaluated(root: Path, answers: np.ndarray, **settings: object) -> PublicResult:
    estimator = StandIn(H36M_JOINT_NAMES, joints=in_h36m_order(answers))
    test = open_public_set(replace(CONFIG, **settings), root)
    return evaluate_public(estimator, test, SmplMeshes(""))


def test_frames_that_are_not_valid_or_not_inside_do_not_count(root: Path) -> None:
    test = open_public_set(CONFIG, root)
    assert [frame.label.split("/")[-1] for frame in test] == ["img_000001.jpg (frame 0)"] * 6
    assert test.left_out == {"valid_frame is 0": 6, "a joint outside the picture": 6}
    everything = open_public_set(replace(CONFIG, inside_only=False), root)
    assert [frame.label[-2] for frame in everything] == ["0", "2"] * 6


def test_the_box_is_that_of_the_joints(root: Path) -> None:
    assert next(iter(open_public_set(CONFIG, root))).box == Box(5, 8, 45, 28)


def test_one_joint_100_mm_off_by_hand(root: Path) -> None:
    """Of 17 joints 16 are right. AUC: a right joint counts at 30 of the 31 thresholds (0 counts
    nobody), the other at 105, 110 … 150, which are 10."""
    answers = JOINTS.copy()
    answers[:, FILE_ORDER_3DHP.index("left_wrist"), 2] += 0.1
    result = evaluated(root, answers)
    assert result.joints == "17, pelvis at 0"
    means = result.means()
    assert means["mpjpe_mm"] == pytest.approx(100 / 17, rel=1e-4)
    assert means["pck150"] == 100
    assert means["auc"] == pytest.approx(100 * (16 * 30 + 10) / (17 * 31))
    assert np.isnan(means["pve_mm"])
    answers[:, FILE_ORDER_3DHP.index("left_wrist"), 2] += 0.1
    assert evaluated(root, answers).means()["pck150"] == pytest.approx(100 * 16 / 17)


def test_a_wrong_pelvis_moves_all_the_others(root: Path) -> None:
    answers = JOINTS.copy()
    answers[:, FILE_ORDER_3DHP.index("pelvis"), 0] += 0.034
    assert evaluated(root, answers).means()["mpjpe_mm"] == pytest.approx(34 * 16 / 17, rel=1e-4)


def test_annot3_is_another_truth_than_univ_annot3(root: Path) -> None:
    assert evaluated(root, JOINTS).means()["mpjpe_mm"] == pytest.approx(0, abs=1e-3)
    means = evaluated(root, JOINTS, annotation="annot3").means()
    pelvis = JOINTS[0, FILE_ORDER_3DHP.index("pelvis")]
    expected = 0.25 * 1000 * np.linalg.norm(JOINTS[0] - pelvis, axis=1).mean()
    assert means["mpjpe_mm"] == pytest.approx(expected, rel=1e-4)
    assert means["pa_mpjpe_mm"] == pytest.approx(0, abs=1e-3)
    assert evaluated(root, 1.25 * JOINTS, annotation="annot3").means()["mpjpe_mm"] < 1e-3


def test_the_14_joints_of_the_authors_are_an_option(root: Path) -> None:
    answers = JOINTS.copy()
    for name in ("spine", "jaw"):
        answers[:, FILE_ORDER_3DHP.index(name)] += 1.0  # not among the 14
    answers[:, FILE_ORDER_3DHP.index("neck"), 0] += 0.014
    result = evaluated(root, answers, joints="lsp14")
    assert result.joints == "14, pelvis at 0"
    assert result.means()["mpjpe_mm"] == pytest.approx(1.0, rel=1e-3)


def test_a_black_box_without_parameters_is_measured(root: Path) -> None:
    estimator = StandIn(H36M_JOINT_NAMES, joints=in_h36m_order(JOINTS))
    del estimator.weight
    result = evaluate_public(estimator, open_public_set(CONFIG, root), SmplMeshes(""))
    assert result.means()["mpjpe_mm"] == pytest.approx(0, abs=1e-3)


def test_the_archives_own_folder_may_be_inside(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mpi_inf_3dhp_test_set").symlink_to(root)
    assert len(open_public_set(CONFIG, tmp_path)) == 6


def test_all_that_is_missing_is_listed(tmp_path: Path) -> None:
    write_3dhp(tmp_path, JOINTS)
    (tmp_path / "TS2" / "annot_data.mat").unlink()
    (tmp_path / "TS5" / "imageSequence" / "img_000003.jpg").unlink()
    with pytest.raises(
        DataError, match=r"missing:\n.*TS2/annot_data\.mat\n.*TS5/imageSequence: img_000003\.jpg \n"
    ) as caught:
        open_public_set(CONFIG, tmp_path)
    assert "https://vcai.mpi-inf.mpg.de/3dhp-dataset" in str(caught.value)


def test_damaged_annotations_are_named(tmp_path: Path) -> None:
    write_3dhp(tmp_path, JOINTS)
    with h5py.File(tmp_path / "TS3" / "annot_data.mat", "a") as file:
        del file["univ_annot3"]
        file["univ_annot3"] = np.zeros((FRAMES, 1, 28, 3))
    with pytest.raises(DataError, match=r"TS3/annot_data\.mat: univ_annot3 has shape \(3, 1, 28"):
        open_public_set(CONFIG, tmp_path)
    with h5py.File(tmp_path / "TS3" / "annot_data.mat", "a") as file:
        del file["univ_annot3"]
    with pytest.raises(DataError, match=r"TS3.*lacks a data set"):
        open_public_set(CONFIG, tmp_path)
