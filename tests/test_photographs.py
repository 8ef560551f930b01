"""Photographs among the source images: crops that show what their labels say, and losses that leave
out what is not known."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bodies import capsule_body
from photograph_files import SIZE, people, write
from PIL import Image
from public_files import smplx_points, write_smpl
from scipy.spatial.transform import Rotation

sys.path.insert(0, str(Path(__file__).parent / "estimators"))

from test_augment import scene_samples
from test_finetune import CONFIG, Toy
from test_finetune_losses import Parametric

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES, LIMB_JOINTS
from posegen_ray.body.smpl import load_smpl_body
from posegen_ray.cli import main
from posegen_ray.config import FineTuneStageConfig, LossConfig, PhotographsConfig
from posegen_ray.datasets.image_labels import SPIN_JOINT_NAMES, read_labels
from posegen_ray.errors import ConfigError, DataError
from posegen_ray.estimators.augment import Labels, augment, labels_of, mirror
from posegen_ray.estimators.base import Estimate
from posegen_ray.estimators.blazepose import BlazePose
from posegen_ray.estimators.crop import HYBRIK_CROP, SPIN_CROP, CropSpec
from posegen_ray.estimators.finetune import finetune
from posegen_ray.estimators.online import FineTuner
from posegen_ray.estimators.supervision import check_samples, estimate_loss
from posegen_ray.photographs import Photographs
from posegen_ray.records import PHOTOGRAPH, Samples, concatenate_samples

LIMBS = [SPIN_JOINT_NAMES.index(name) for name in LIMB_JOINT_NAMES]
HIPS = [LIMB_JOINT_NAMES.index(name) for name in ("left_hip", "right_hip")]
OTHERS = [joint for joint in range(12) if joint not in HIPS]


def drawn(config: PhotographsConfig, count: int = 12, crop: CropSpec = SPIN_CROP) -> Samples:
    return Photographs(config, crop, gender=None).draw(range(count), capsule_body())


@pytest.mark.parametrize("crop", [SPIN_CROP, HYBRIK_CROP], ids=["spin", "hybrik"])
def test_each_crop_shows_its_joints_where_the_labels_put_them(tmp_path, crop):
    """The dots' middles, weighed by brightness, lie within a fifth of a pixel."""
    content = people(3)
    for number in range(3):  # far enough apart not to run into each other
        grid = np.stack(np.meshgrid(range(70, 340, 60), range(50, 260, 45)), -1).reshape(-1, 2)
        content["part"][number, LIMBS, :2] = grid[
            np.random.default_rng(number).permutation(25)[:12]
        ]
    samples = drawn(write(tmp_path, content), crop=crop)
    rows, columns = np.mgrid[: crop.size, : crop.size] + 0.5
    for image, places in zip(samples.images[:, 0].double(), samples.joints_2d, strict=True):
        assert places[HIPS].isnan().all()
        for x, y in places[OTHERS].tolist():
            near = (abs(columns - x) < 6) & (abs(rows - y) < 6)
            light = image.numpy() * near
            assert light.sum() > 255
            assert (light * columns).sum() / light.sum() == pytest.approx(x, abs=0.2)
            assert (light * rows).sum() / light.sum() == pytest.approx(y, abs=0.2)


def test_a_person_is_known_by_the_seed_alone(tmp_path):
    config = write(tmp_path, people(30))
    photographs, body = Photographs(config, SPIN_CROP, gender=None), capsule_body()
    some = photographs.draw([7, 3, 11], body)
    alone = Photographs(config, SPIN_CROP, gender=None).draw([3], body)
    assert torch.equal(some.images[1], alone.images[0])
    assert some.clips[1] == alone.clips[0]
    names = photographs.draw(range(300), body).clips
    assert len(set(names)) == 30
    assert all(name.startswith(f"{PHOTOGRAPH}pictures/") for name in names)


def test_the_wanted_share_of_seeds_are_photographs(tmp_path):
    photographs = Photographs(
        replace(write(tmp_path, people(1)), share=0.3), SPIN_CROP, gender=None
    )
    chosen, others = photographs.among(range(4000))
    assert sorted(chosen + others) == list(range(4000))
    assert len(chosen) / 4000 == pytest.approx(0.3, abs=0.03)
    assert photographs.among(others[:9] + chosen[:5]) == (chosen[:5], others[:9])


def test_what_is_not_stated_is_not_known(tmp_path):
    content = people(2)
    content["part"][:, LIMBS[2], 2] = 0
    samples = drawn(write(tmp_path, content))
    for name in ("joints", "rotations", "shape", "view"):
        assert getattr(samples, name).isnan().all(), name
    unknown = samples.joints_2d.isnan().all(-1)
    assert unknown.tolist() == [[joint in (2, *HIPS) for joint in range(12)]] * len(samples)


def test_joints_in_3d_are_centred_between_the_marked_hips(tmp_path):
    content, stream = people(2), np.random.default_rng(1)
    content["S"] = np.concatenate([stream.normal(size=(2, 24, 3)), np.ones((2, 24, 1))], -1)
    content["S"][0, LIMBS[4], 3] = 0
    content["S"][1, LIMBS[HIPS[0]], 3] = 0  # no middle
    samples = drawn(write(tmp_path, content))
    limbs = content["S"][0, LIMBS, :3]
    expected = limbs - limbs[HIPS].mean(0)
    expected[[4, *HIPS]] = np.nan
    by_name = dict(zip(samples.clips, samples.joints, strict=True))
    np.testing.assert_allclose(by_name[f"{PHOTOGRAPH}pictures/0.png"], expected, atol=1e-6)
    assert by_name[f"{PHOTOGRAPH}pictures/1.png"].isnan().all()
    assert torch.equal(labels_of(samples).joints.isnan(), samples.joints.isnan())


def test_smpl_poses_are_posed_by_smpls_files(tmp_path):
    """As the smplx package poses them; beside people of another body only the rotations count."""
    write_smpl(tmp_path / "smpl")
    content, stream = people(3), np.random.default_rng(2)
    content |= {"pose": 0.4 * stream.normal(size=(3, 72)), "shape": stream.normal(size=(3, 10))}
    content |= {"has_smpl": np.array([1, 1, 0]), "gender": np.array(["", "m", ""])}
    config = write(tmp_path, content)
    turns = Rotation.from_rotvec(content["pose"].reshape(-1, 3)).as_matrix().reshape(3, 24, 3, 3)
    _, joints = smplx_points("neutral", turns, content["shape"])
    limbs = joints[:, list(LIMB_JOINTS)]
    body = load_smpl_body(tmp_path / "smpl")
    samples = Photographs(config, SPIN_CROP, gender="neutral").draw(range(20), body)
    beside = drawn(config, 20)
    for i, clip in enumerate(samples.clips):
        row = int(Path(clip).stem)
        if row == 2:
            assert samples.rotations[i].isnan().all()
            assert samples.joints[i].isnan().all()
            continue
        np.testing.assert_allclose(samples.rotations[i], turns[row], atol=1e-5)
        assert torch.equal(beside.rotations[i], samples.rotations[i])
        if row == 1:  # a shape of SMPL's male body
            assert samples.joints[i].isnan().all()
            assert samples.shape[i].isnan().all()
            continue
        np.testing.assert_allclose(samples.shape[i], content["shape"][row], rtol=1e-5)
        expected = limbs[row] - limbs[row, HIPS].mean(0)
        np.testing.assert_allclose(samples.joints[i], expected, atol=1e-4)
    assert beside.joints.isnan().all()
    assert beside.shape.isnan().all()


def test_several_files_of_several_layouts_are_one_set(tmp_path):
    npz = write(tmp_path / "a", people(2))
    (tmp_path / "b").mkdir()
    Image.new("RGB", SIZE).save(tmp_path / "b" / "0.png")
    person = {"center": [200.0, 150.0], "scale": 1.0, "joints_vis": [1] * 16}
    person |= {"image": "0.png", "joints": [[50.0 + i, 90.0] for i in range(16)]}
    (tmp_path / "mpii.json").write_text(json.dumps([person]))
    points = np.array([[50 + i, 90, 2] for i in range(17)]).ravel().tolist()
    annotation = {"image_id": 1, "keypoints": points, "bbox": [10, 10, 90, 90]}
    content = {"images": [{"id": 1, "file_name": "0.png"}], "annotations": [annotation]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    files = [npz.labels[0], f"{tmp_path}/mpii.json", f"{tmp_path}/coco.json"]
    folders = [*npz.folders, f"{tmp_path}/b", f"{tmp_path}/b"]
    photographs = Photographs(PhotographsConfig(files, folders), SPIN_CROP, gender=None)
    assert len(photographs) == 4
    photographs.require(LossConfig(joints_2d=1.0))
    clips = photographs.draw(range(60), capsule_body()).clips
    names = [f"{PHOTOGRAPH}{name}" for name in ("0.png", "pictures/0.png", "pictures/1.png")]
    assert sorted(set(clips)) == names
    (tmp_path / "labels.txt").touch()
    with pytest.raises(DataError, match="no file of labels"):
        read_labels(tmp_path / "labels.txt")


# --- what a loss does with what is not known ----------------------------------------------------


def half_known() -> tuple[Samples, Labels]:
    samples, _ = scene_samples(4)
    clips = ("walk:1", f"{PHOTOGRAPH}a.jpg", "walk:2", f"{PHOTOGRAPH}b.jpg")
    joints, places = samples.joints.clone(), samples.joints_2d.clone()
    rotations, shape = samples.rotations.clone(), samples.shape.clone()
    for tensor in (joints, rotations, shape):
        tensor[[1, 3]] = torch.nan
    places[1, 5] = torch.nan
    samples = replace(
        samples, joints=joints, joints_2d=places, rotations=rotations, shape=shape, clips=clips
    )
    return samples, labels_of(samples)


def answer(wrong: float, labels: Labels) -> Estimate:
    """Off by that much wherever something is known; any number elsewhere."""

    def off(label: torch.Tensor, by: float) -> torch.Tensor:
        return (torch.where(label.isnan(), 7.0, label) + by).requires_grad_()

    return Estimate(
        off(labels.joints, 0) if not wrong else _shifted(labels.joints, wrong).requires_grad_(),
        off(labels.rotations, wrong),
        off(labels.shape, wrong),
        joints_2d=((off(labels.joints_2d, wrong) + 0.5) * 16).detach().requires_grad_(),
    )


def _shifted(joints: torch.Tensor, wrong: float) -> torch.Tensor:
    """Every other joint nearer and the rest farther: the middle of the hips stays."""
    signs = torch.tensor([1.0, -1.0] * 6)[:, None] * torch.tensor([0.0, 0, 1])
    return torch.where(joints.isnan(), 7.0, joints) + wrong * signs


def test_unknown_labels_cost_nothing_and_pull_nowhere():
    _, labels = half_known()
    known = {"joints": 1 / 2, "joints_2d": 47 / 48, "rotations": 1 / 2, "shape": 1 / 2}
    each = {"joints": 0.3 / 3, "joints_2d": 0.3, "rotations": 0.09, "shape": 0.09}
    for name, share in known.items():
        estimate = answer(0.3, labels)
        weights = LossConfig(**{"joints": 0.0, name: 1.0})
        loss = estimate_loss(Parametric(), estimate, labels, weights, "smpl")
        assert loss.item() == pytest.approx(share * each[name], rel=1e-4), name
        loss.backward()
        gradient = getattr(estimate, name).grad
        assert torch.isfinite(gradient).all()
        unknown = getattr(labels, name).isnan()
        assert not gradient[unknown].any()
        assert gradient[~unknown].any()


def test_an_answer_that_is_not_finite_is_not_hidden():
    _, labels = half_known()
    estimate = answer(0.3, labels)
    with torch.no_grad():
        estimate.joints[1, 0] = torch.nan
    loss = estimate_loss(Parametric(), estimate, labels, LossConfig(joints=1.0), "smpl")
    assert loss.isnan()


def test_parts_of_a_batch_add_up_to_it():
    samples, _ = half_known()
    config = replace(CONFIG, online_cut="image", losses=LossConfig(joints=1.0, joints_2d=1.0))
    whole, parts = Parametric(), Parametric()
    FineTuner(whole, config).step(samples)
    FineTuner(parts, config, accumulate=2).step(samples)
    for name in ("joints", "places"):
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name))


def test_mirrored_and_turned_labels_know_the_mirrored_joints():
    samples, labels = half_known()
    images = samples.images.float() / 255
    _, mirrored = mirror(images, labels)
    partner = LIMB_JOINT_NAMES.index("left_wrist")  # of the right wrist, which is not known
    assert mirrored.joints_2d.isnan().all(-1).nonzero().tolist() == [[1, partner]]
    _, turned = augment(images, labels, torch.Generator().manual_seed(0))
    assert turned.joints_2d.isnan().all(-1).sum() == 1
    assert turned.joints.isnan().flatten(1).all(1).tolist() == [False, True, False, True]
    assert turned.rotations[[0, 2]].isfinite().all()


def test_only_photographs_may_have_unknown_labels():
    samples, _ = half_known()
    check_samples(Parametric(), samples)
    with pytest.raises(DataError, match=r"2 of 4 samples .*the first: row 1"):
        check_samples(Parametric(), replace(samples, clips=("walk:1",) * 4))
    for name in ("joints", "joints_2d", "rotations", "shape"):
        for row, value in ((1, torch.inf), (0, torch.nan)):
            broken = getattr(samples, name).clone()
            broken[row, 3 if name != "shape" else 1] = value
            with pytest.raises(DataError, match=rf"1 of 4 samples .*the first: row {row}"):
                check_samples(Parametric(), replace(samples, **{name: broken}))


def test_people_marked_in_2d_teach_an_estimator_where_joints_are(tmp_path):
    """All people have their left knee at one place: alone by those labels it is learned."""
    content = people(6)
    knee = LIMB_JOINT_NAMES.index("left_knee")
    content["part"][:, :, 2] = 0
    content["part"][:, LIMBS[knee]] = (110, 120, 1)
    crop = replace(SPIN_CROP, size=16)
    samples = drawn(write(tmp_path, content), 16, crop)
    place = samples.joints_2d[0, knee]
    assert place.tolist() == pytest.approx([(110.5 - 30) / 20, (120.5 - 0) / 20])
    config = replace(
        CONFIG,
        stages=[FineTuneStageConfig("image", 300, 16, 5e-2)],
        losses=LossConfig(joints=1.0, joints_2d=1.0, rotations=1.0, shape=1.0),
    )
    start = Parametric()
    tuned = finetune(start, samples, config, 0, source=16, body="smpl")
    assert torch.dist(tuned.places[knee], place) < 0.2  # from 4 pixels away
    others = [joint for joint in range(12) if joint != knee]
    assert torch.equal(tuned.places[others], start.places[others])
    for name in ("joints", "rotations", "shape"):
        assert torch.equal(getattr(tuned, name), getattr(start, name))


def test_rendered_samples_are_told_from_photographs(tmp_path):
    scene, _ = scene_samples(3, 16)
    photographs = drawn(write(tmp_path, people(2)), 4, replace(SPIN_CROP, size=16))
    mixed = concatenate_samples([scene, photographs])
    assert torch.equal(mixed.rendered().joints, scene.joints)
    check_samples(Toy(), mixed)


# --- what is refused, before anything starts ----------------------------------------------------


def test_what_is_missing_or_useless_is_said_before_a_run_has_a_folder(tmp_path, capsys):
    config, run = write(tmp_path / "set", people(4)), tmp_path / "run"
    labels, folder = f"photographs.labels=[{config.labels[0]}]", f"{tmp_path}/set"
    checkpoint = tmp_path / "compact"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").touch()
    compact = ["estimator=compact_hmr", f"checkpoint={checkpoint}"]

    def refused(code: int, *settings: str, command: str = "train") -> str:
        arguments = [*settings, labels, f"run_dir={run}", "runtime=inprocess"]
        assert main([command, *arguments]) == code
        assert not run.exists()
        return capsys.readouterr().err

    assert "names 0 folders for the 1 files" in refused(2, *compact)
    folder = f"photographs.folders=[{folder}]"
    assert "aligned crops" in refused(2, folder)  # BlazePose
    useless = "finetune.losses={joints: 1.0, joints_2d: 0.0, rotations: 0.0}"
    said = refused(2, *compact, folder, useless)
    assert f"compares what {config.labels[0]} knows of its people (joints of 0, joints_2d" in said
    (tmp_path / "set" / "pictures" / "2.png").unlink()
    assert f"{tmp_path}/set/pictures: 2.png" in refused(1, *compact, folder)
    assert f"{tmp_path}/set/pictures: 2.png" in refused(1, folder, command="pretrain")
    assert "share=1.0 is not between" in refused(2, *compact, folder, "photographs.share=1.0")
    np.savez(config.labels[0], **(people(4) | {"scale": np.array([1.6, 0, 1.6, 1.6])}))
    assert "person 1 (pictures/1.png) has no crop" in refused(1, *compact, folder)
    Path(config.labels[0]).write_bytes(b"PK")
    assert "cannot be read" in refused(1, *compact, folder)


def test_a_picture_that_breaks_off_is_named_with_its_person(tmp_path):
    config = write(tmp_path, people(1))
    file = tmp_path / "pictures" / "0.png"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match=r"0\.png \(person 0\) cannot be read"):
        drawn(config, 1)
    Image.new("RGB", (20, 20)).save(file)
    with pytest.raises(DataError, match="shows nothing of the 20 x 20 picture"):
        drawn(config, 1)


def test_turned_crops_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="aligned crops"):
        Photographs(write(tmp_path, people(1)), BlazePose.crop, gender=None)
