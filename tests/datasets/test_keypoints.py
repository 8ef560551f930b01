"""People marked in 2D: PCKh by hand, from the command line, and what is left out or refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.io import savemat
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from public_files import StandIn, write_grey

from posegen_ray import public_sets
from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.cli import main
from posegen_ray.config import DatasetConfig
from posegen_ray.datasets.image_labels import SPIN_JOINT_NAMES
from posegen_ray.datasets.public import KeypointSet
from posegen_ray.errors import DataError
from posegen_ray.estimators.base import Estimate

LIMBS = [SPIN_JOINT_NAMES.index(name) for name in LIMB_JOINT_NAMES]
NECK, TOP = SPIN_JOINT_NAMES.index("neck"), SPIN_JOINT_NAMES.index("head_top")
# A box of 40 pixels about (32, 24) begins at (12, 4); its picture of 32 pixels is seen 0.8 times as
# large. Picture (20, 20) has its middle 8.5 and 16.5 pixels from there: crop (6.8, 13.2).
PLACE, IN_CROP = (20.0, 20.0), (6.8, 13.2)


class Pointing(StandIn):
    """Sees every joint at IN_CROP, but for those that it is told to see further right."""

    def __init__(self, off: np.ndarray) -> None:  # [N, 12] pixels of the picture
        super().__init__(LIMB_JOINT_NAMES, joints=np.zeros((len(off), 12, 3)))
        self.off = torch.from_numpy(off).float()

    def forward(self, images: Tensor) -> Estimate:
        super().forward(images)
        points = torch.tensor(IN_CROP).expand(len(images), 12, 2).clone()
        points[..., 0] += 0.8 * self.off[self.seen[-len(images) :]]
        return Estimate(None, joints_2d=points)


def part_of(head: float, marked: int) -> np.ndarray:  # [24, 3]
    """The first joints of the limbs at PLACE, and a head so many pixels long."""
    part = np.zeros((24, 3))
    part[LIMBS[:marked]] = (*PLACE, 1)
    if head:
        part[NECK], part[TOP] = (30, 0, 1), (30, head, 1)
    return part


def write_people(folder: Path, parts: list[np.ndarray]) -> Path:
    names = [f"pictures/{number}.png" for number in range(len(parts))]
    for number, name in enumerate(names):
        write_grey(folder / name, number)
    count = len(parts)
    np.savez(
        folder / "mpii.npz",
        imgname=np.array(names),
        center=np.tile([32.0, 24.0], (count, 1)),
        scale=np.full(count, 0.2),
        part=np.array(parts),
    )
    return folder / "mpii.npz"


def test_the_command_counts_joints_within_half_a_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """11 of 12 joints of one person and 3 of 6 of another: 14 of 18."""
    file = write_people(tmp_path, [part_of(10, 12), part_of(0, 12), part_of(20, 6), part_of(9, 0)])
    off = np.zeros((4, 12))
    off[0, :2] = 4.9, 5.1  # half of this head is 5 pixels
    off[2, :4] = 9.9, 10.1, 10.1, 10.1
    off[2, 6:] = 90  # not marked
    monkeypatch.setattr(public_sets, "build_estimator", lambda config: Pointing(off))
    out = tmp_path / "out"
    arguments = [f"dataset.labels={file}", f"data_root={tmp_path}", f"out={out}"]
    assert main(["evaluate", "dataset=keypoints", *arguments, "dataset.batch_size=3"]) == 0
    captured = capsys.readouterr()
    assert "2 frames; left out: 1 (no head), 1 (no joint of a limb)" in captured.err
    heading, row = captured.out.splitlines()
    assert "PCKh@0.5" in heading
    assert "77.8" in row
    assert "12 limb joints" in row
    assert "MPJPE" not in heading
    table = pd.read_csv(out / "keypoints-stand-in.csv")
    assert table["pckh"][0] == pytest.approx(100 * 14 / 18)
    people = pd.read_csv(out / "keypoints-stand-in.frames.csv")
    assert people["marked"].tolist() == [12, 6]
    np.testing.assert_allclose(people["pckh"], [1100 / 12, 50])


def test_mpiis_head_boxes_are_its_heads(tmp_path: Path) -> None:
    points = [[21.0, 21.0]] * 16  # counted from 1
    person = {"center": [33.0, 25.0], "scale": 0.2, "joints": points, "joints_vis": [1] * 16}
    people = [{**person, "image": f"{number}.png"} for number in range(2)]
    labels, boxes = tmp_path / "valid.json", tmp_path / "gt_valid.mat"
    labels.write_text(json.dumps(people))
    for number in range(2):
        write_grey(tmp_path / f"{number}.png", number)
    corners = np.zeros((2, 2, 2))
    corners[0], corners[1] = [[3, 100], [4, 200]], [[6, 130], [8, 240]]  # diagonals 5 and 50
    savemat(boxes, {"headboxes_src": corners, "jnt_missing": np.zeros((16, 2))})
    settings = DatasetConfig(name="keypoints", labels=str(labels), head_boxes=str(boxes))
    found = list(KeypointSet(tmp_path, settings))
    assert [person.head_length for person in found] == [3, 30]  # 0.6 of the diagonals
    assert found[0].joints_2d.tolist() == [[20, 20]] * 12
    savemat(boxes, {"headboxes_src": corners[..., :1]})
    with pytest.raises(DataError, match=r"headboxes_src has shape \(2, 2(, 1)?\), not \(2, 2, 2\)"):
        KeypointSet(tmp_path, settings)


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "dataset=keypoints", f"data_root={tmp_path}"]
    assert main(command) == 2
    assert "dataset.labels=<npz or json>" in capsys.readouterr().err
    file = write_people(tmp_path, [part_of(10, 12), part_of(10, 12)])
    (tmp_path / "pictures" / "1.png").unlink()
    assert main([*command, f"dataset.labels={file}"]) == 1
    assert f"{tmp_path / 'pictures'}: 1.png" in capsys.readouterr().err
    write_people(tmp_path, [part_of(0, 12)])
    assert main([*command, f"dataset.labels={file}"]) == 1
    assert "nobody left" in capsys.readouterr().err


def test_an_estimator_without_joints_in_pictures_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_people(tmp_path, [part_of(10, 12)])
    plain = StandIn(LIMB_JOINT_NAMES, joints=np.zeros((1, 12, 3)))
    monkeypatch.setattr(public_sets, "build_estimator", lambda config: plain)
    arguments = ["dataset=keypoints", f"dataset.labels={file}", f"data_root={tmp_path}"]
    assert main(["evaluate", *arguments]) == 1
    assert "stand-in answers no joints in 2D" in capsys.readouterr().err


def test_a_comparison_in_3d_refuses_it(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["experiment", "experiment=paper", "estimators=[blazepose]", "data_root=/data"]
    assert main([*command, "datasets=[keypoints]"]) == 2
    assert "no truth in 3D" in capsys.readouterr().err
