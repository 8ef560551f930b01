"""SMPL through a random model in its file layout, against the smplx package's own forward."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import smplx
import torch

from posegen_ray.body import load_body
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import NUM_JOINTS, PARENTS
from posegen_ray.body.smpl import load_smpl_body
from posegen_ray.config import BodyConfig
from posegen_ray.errors import AssetError

VERTICES = 6890  # smplx's forward picks landmarks by number


def random_smpl(seed: int = 0) -> dict[str, np.ndarray]:
    stream = np.random.default_rng(seed)

    def rows_that_sum_to_one(rows: int, columns: int) -> np.ndarray:
        table = stream.random((rows, columns)) ** 8
        return table / table.sum(1, keepdims=True)

    return {
        "v_template": 0.4 * stream.normal(size=(VERTICES, 3)),
        "shapedirs": 0.1 * stream.normal(size=(VERTICES, 3, 10)),
        "posedirs": 0.01 * stream.normal(size=(VERTICES, 3, 207)).astype(np.float32),
        "J_regressor": rows_that_sum_to_one(NUM_JOINTS, VERTICES),
        "weights": rows_that_sum_to_one(VERTICES, NUM_JOINTS),
        "kintree_table": np.array([PARENTS, range(NUM_JOINTS)]) % 2**32,
        "f": stream.integers(0, VERTICES, (100, 3)).astype(np.uint32),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smpl")
    model = random_smpl()
    with (path / "SMPL_NEUTRAL.pkl").open("wb") as file:
        pickle.dump(model, file)
    np.savez(path / "SMPL_FEMALE.npz", **model)
    return path


def test_posing_agrees_with_smplx_up_to_the_origin(folder: Path) -> None:
    ours = load_smpl_body(folder)
    theirs = smplx.SMPL(str(folder), gender="neutral", batch_size=3)
    stream = torch.Generator().manual_seed(0)
    angles = 0.7 * torch.randn(3, NUM_JOINTS, 3, generator=stream)
    shape = torch.randn(3, 10, generator=stream)
    move = torch.randn(3, 3, generator=stream)
    with torch.no_grad():
        expected = theirs(
            betas=shape, global_orient=angles[:, 0], body_pose=angles[:, 1:].flatten(1), transl=move
        )
    posed = ours(from_axis_angle(angles), shape, move, vertices=True)
    origin = expected.joints[:, 0] - posed.joints[:, 0]
    assert torch.allclose(origin, origin[:1].expand(3, 3), atol=1e-5)
    assert torch.allclose(posed.joints + origin[:, None], expected.joints[:, :24], atol=1e-5)
    assert posed.vertices is not None
    assert torch.allclose(posed.vertices + origin[:, None], expected.vertices, atol=1e-5)


def test_it_stands_on_the_floor_below_its_pelvis(folder: Path) -> None:
    model = load_smpl_body(folder)
    assert float(model.template[:, 1].min()) == pytest.approx(0.0, abs=1e-6)
    assert model.joint_template[0, [0, 2]].abs().max() < 1e-6


def test_npz_and_pkl_hold_the_same_model(folder: Path) -> None:
    a, b = load_smpl_body(folder, "neutral"), load_smpl_body(folder, "female")
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


def test_missing_file_names_the_file_and_the_licence(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"SMPL_MALE\.pkl") as caught:
        load_body(BodyConfig(name="smpl", smpl_folder=str(tmp_path), gender="male"))
    assert "https://smpl.is.tue.mpg.de" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps({"v_template": 1})])
def test_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "SMPL_NEUTRAL.pkl").write_bytes(content)
    with pytest.raises(AssetError, match=r"SMPL_NEUTRAL\.pkl"):
        load_smpl_body(tmp_path)


def test_another_skeleton_is_refused(tmp_path: Path) -> None:
    model = random_smpl()
    model["kintree_table"] = model["kintree_table"][:, ::-1].copy()
    np.savez(tmp_path / "SMPL_NEUTRAL.npz", **model)
    with pytest.raises(AssetError, match="skeleton"):
        load_smpl_body(tmp_path)
