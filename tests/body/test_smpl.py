"""SMPL through small models in its file layouts, against the smplx package's own forward.

No licensed file is used: the tests write random models and the capsule figure as SMPL's files.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import smplx
import torch
from bodies import KINTREE, capsule_body, capsule_smpl, painted_on
from foreign_pickles import chumpy_array, foreign, old_csc_matrix, python2_pickle
from safetensors.numpy import save_file
from smplx.utils import Struct

from posegen_ray.body import load_body
from posegen_ray.body.camera import orbit
from posegen_ray.body.model import BodyModel
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import NUM_JOINTS
from posegen_ray.body.smpl import load_smpl_body
from posegen_ray.body.smpl_files import find_smpl_file
from posegen_ray.config import BodyConfig, RendererConfig
from posegen_ray.errors import AssetError
from posegen_ray.records import RenderRequest
from posegen_ray.subjects.render import make_renderer
from posegen_ray.subjects.store import VoxelSubject, load_subject, save_subject

VERTICES = 320


def random_smpl(seed: int = 0) -> dict[str, np.ndarray]:
    stream = np.random.default_rng(seed)

    def rows_that_sum_to_one(rows: int, columns: int) -> np.ndarray:
        table = stream.random((rows, columns)) ** 8
        return table / table.sum(1, keepdims=True)

    return {
        "v_template": 0.4 * stream.normal(size=(VERTICES, 3)),
        "shapedirs": 0.1 * stream.normal(size=(VERTICES, 3, 10)),
        "posedirs": 0.01 * stream.normal(size=(VERTICES, 3, 207)),
        "J_regressor": rows_that_sum_to_one(NUM_JOINTS, VERTICES),
        "weights": rows_that_sum_to_one(VERTICES, NUM_JOINTS),
        "kintree_table": KINTREE,
        "f": stream.integers(0, VERTICES, (100, 3)).astype(np.uint32),
    }


def published(model: dict[str, np.ndarray], protocol: int = 2) -> bytes:
    """The model as its pkl file is published: chumpy objects, a sparse matrix, and other keys."""
    more = np.concatenate([model["shapedirs"], np.ones_like(model["shapedirs"])], -1)
    kept = np.arange(more.size).reshape(more.shape)[..., :10]
    template = chumpy_array(model["v_template"])
    return python2_pickle(
        {
            **model,
            "J_regressor": old_csc_matrix(model["J_regressor"]),
            "J_regressor_prior": old_csc_matrix(model["J_regressor"]),
            "v_template": template,
            "v_shaped": foreign("chumpy.ch_ops", "add", a=template, b=template),
            "shapedirs": foreign(
                "chumpy.reordering",
                "Select",
                a=chumpy_array(more),
                idxs=kept.ravel(),
                preferred_shape=kept.shape,
            ),
            "posedirs": chumpy_array(model["posedirs"]),
            "weights": chumpy_array(model["weights"]),
            "bs_type": "lrotmin",
            "pose_training_info": {"gender": "neutral"},
        },
        protocol,
    )


def write_files(folder: Path, model: dict[str, np.ndarray]) -> None:
    (folder / "SMPL_NEUTRAL.pkl").write_bytes(published(model))
    np.savez(folder / "SMPL_FEMALE.npz", **model, bs_type="lrotmin")
    save_file(model, folder / "SMPL_MALE.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smpl")
    write_files(path, random_smpl())
    return path


def same(a: BodyModel, b: BodyModel) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("gender", ["neutral", "female", "male"])
def test_posing_agrees_with_smplx_up_to_the_origin(folder: Path, gender: str) -> None:
    ours = load_smpl_body(folder, gender)
    theirs = smplx.SMPL("", data_struct=Struct(**random_smpl()), batch_size=3)
    theirs.vertex_joint_selector.extra_joints_idxs.zero_()  # landmarks of the 6,890 vertices
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


def test_pkl_npz_and_safetensors_hold_the_same_model(folder: Path) -> None:
    a, b, c = (load_smpl_body(folder, gender) for gender in ("neutral", "female", "male"))
    assert same(a, b)
    assert same(a, c)
    assert "chumpy" not in sys.modules


def test_text_pickles_and_scipys_own_matrix_hold_the_same_model(
    folder: Path, tmp_path: Path
) -> None:
    model = random_smpl()
    (tmp_path / "SMPL_NEUTRAL.pkl").write_bytes(published(model, protocol=0))
    sparse = {**model, "J_regressor": scipy.sparse.csc_matrix(model["J_regressor"])}
    (tmp_path / "SMPL_MALE.pkl").write_bytes(pickle.dumps(sparse))
    assert same(load_smpl_body(tmp_path), load_smpl_body(folder))
    assert same(load_smpl_body(tmp_path, "male"), load_smpl_body(folder))


@pytest.mark.parametrize(
    ("place", "name", "gender"),
    [
        ("", "basicModel_neutral_lbs_10_207_0_v1.0.0.pkl", "neutral"),
        ("models", "basicModel_f_lbs_10_207_0_v1.0.0.pkl", "female"),
        ("smpl", "basicmodel_m_lbs_10_207_0_v1.0.0.pkl", "male"),
        ("smpl/models", "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl", "neutral"),
        ("models/smpl", "SMPL_FEMALE.pkl", "female"),
        ("smpl", "SMPL_MALE.safetensors", "male"),
    ],
)
def test_published_names_and_folders_are_found(
    tmp_path: Path, place: str, name: str, gender: str
) -> None:
    path = tmp_path / place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert find_smpl_file(tmp_path, gender) == path
    for other in {"neutral", "female", "male"} - {gender}:
        assert find_smpl_file(tmp_path, other) is None


def test_a_file_named_by_the_user_comes_before_the_newest_published_one(tmp_path: Path) -> None:
    old, new = (tmp_path / f"basicmodel_m_lbs_10_207_0_v1.{n}.0.pkl" for n in (0, 1))
    old.touch()
    new.touch()
    assert find_smpl_file(tmp_path, "male") == new
    (tmp_path / "SMPL_MALE.pkl").touch()
    assert find_smpl_file(tmp_path, "male") == tmp_path / "SMPL_MALE.pkl"


def test_missing_file_names_the_file_and_the_licence(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"SMPL_MALE\.pkl") as caught:
        load_body(BodyConfig(name="smpl", smpl_folder=str(tmp_path), gender="male"))
    assert "https://smpl.is.tue.mpg.de" in str(caught.value)


@pytest.mark.parametrize("ending", ["pkl", "npz", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a model", pickle.dumps({"v_template": 1}), b"half"])
def test_damaged_file_is_named(tmp_path: Path, folder: Path, content: bytes, ending: str) -> None:
    if content == b"half":
        whole = next(folder.glob(f"*.{ending}")).read_bytes()
        content = whole[: len(whole) // 2]
    (tmp_path / f"SMPL_NEUTRAL.{ending}").write_bytes(content)
    with pytest.raises(AssetError, match=rf"SMPL_NEUTRAL\.{ending}"):
        load_smpl_body(tmp_path)


class _Opens:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pkl_that_asks_for_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hostile = {**random_smpl(), "J": _Opens(marker)}
    (tmp_path / "SMPL_NEUTRAL.pkl").write_bytes(pickle.dumps(hostile))
    with pytest.raises(AssetError, match=r"SMPL_NEUTRAL\.pkl asks for .*open"):
        load_smpl_body(tmp_path)
    assert not marker.exists()


def test_an_expression_of_chumpy_in_the_place_of_an_array_is_named(tmp_path: Path) -> None:
    template = chumpy_array(random_smpl()["v_template"])
    model = {**random_smpl(), "v_template": foreign("chumpy.ch_ops", "add", a=template, b=template)}
    (tmp_path / "SMPL_NEUTRAL.pkl").write_bytes(python2_pickle(model))
    with pytest.raises(AssetError, match=r"SMPL_NEUTRAL\.pkl: .*chumpy\.ch_ops\.add"):
        load_smpl_body(tmp_path)


def test_another_skeleton_is_refused(tmp_path: Path) -> None:
    model = random_smpl()
    model["kintree_table"] = model["kintree_table"][:, ::-1].copy()
    np.savez(tmp_path / "SMPL_NEUTRAL.npz", **model)
    with pytest.raises(AssetError, match="skeleton"):
        load_smpl_body(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("v_template", np.zeros((VERTICES, 2))),
        ("shapedirs", np.zeros((VERTICES, 3, 9))),
        ("posedirs", np.zeros((VERTICES, 3, 206))),
        ("J_regressor", np.zeros((NUM_JOINTS, VERTICES - 1))),
        ("weights", np.zeros((VERTICES, 25))),
        ("f", np.full((1, 3), VERTICES)),
        ("f", np.zeros((1, 4), int)),
    ],
)
def test_an_array_of_the_wrong_size_is_named(tmp_path: Path, name: str, value: np.ndarray) -> None:
    np.savez(tmp_path / "SMPL_NEUTRAL.npz", **{**random_smpl(), name: value})
    with pytest.raises(AssetError, match=f"its {name} "):
        load_smpl_body(tmp_path)


def test_more_shape_directions_than_ten_are_left_out(folder: Path, tmp_path: Path) -> None:
    model = random_smpl()
    more = np.concatenate([model["shapedirs"], np.ones((VERTICES, 3, 290))], -1)
    np.savez(tmp_path / "SMPL_NEUTRAL.npz", **{**model, "shapedirs": more})
    assert same(load_smpl_body(tmp_path), load_smpl_body(folder))


def test_a_subject_on_the_smpl_body_is_drawn_like_the_same_one_on_another(
    tmp_path: Path, capsule_subject: VoxelSubject
) -> None:
    """From SMPL's file to the picture."""
    (tmp_path / "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl").write_bytes(published(capsule_smpl()))
    body = load_body(BodyConfig(name="smpl", smpl_folder=str(tmp_path)))
    origin = capsule_body().joint_template[0] - body.joint_template[0]
    torch.testing.assert_close(
        body.joint_template + origin, capsule_body().joint_template, atol=1e-4, rtol=0
    )
    save_subject(painted_on(body, "on-smpl"), tmp_path / "on-smpl")
    subject = load_subject(tmp_path / "on-smpl")
    assert subject.body == "smpl"
    assert subject.shape.shape == (10,)

    size, ones = 96, torch.ones(2)
    rotations = from_axis_angle(
        0.3 * torch.randn(2, NUM_JOINTS, 3, generator=torch.Generator().manual_seed(0))
    )
    camera = orbit(
        torch.tensor([[0.0, 0.9, 0.0]]).expand(2, 3),
        torch.tensor([0.3, 2.0]),
        0.2 * ones,
        0.0 * ones,
        3.0 * ones,
        1.1 * size * ones,
        torch.full((2, 2), size / 2),
        size,
        size,
    )
    renderer = make_renderer(RendererConfig(), {"on-smpl": subject, "capsules": capsule_subject})
    bones = body(rotations, subject.shape[None], origin.expand(2, 3)).bones
    ours = renderer.render_arrays(RenderRequest(("on-smpl",) * 2, bones, camera))
    bones = capsule_body()(rotations, capsule_subject.shape[None]).bones
    theirs = renderer.render_arrays(RenderRequest(("capsules",) * 2, bones, camera))

    inside, other = ours[..., 3] > 0.5, theirs[..., 3] > 0.5
    assert inside.mean((1, 2)).min() > 0.04
    assert (inside & other).sum() > 0.97 * (inside | other).sum()
    colours = np.abs(ours - theirs)[inside & other][:, :3]
    assert colours.mean() < 0.03
    # the painted waves differ more than that from place to place
    assert np.abs(theirs - theirs[::-1])[other & other[::-1]][:, :3].mean() > 0.1
