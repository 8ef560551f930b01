"""HybrIK's layout, heatmaps, camera and mirrored test, each against an independent computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import published_layouts as published
import pytest
import torch
from test_hybrid_ik import a_pose, naive_loop, posed, twist_of

from posegen_ray.body.skeleton import JOINT_NAMES, mirrored
from posegen_ray.errors import CheckpointError
from posegen_ray.estimators import limb_joints, load_estimator
from posegen_ray.estimators.hybrik import (
    Answer,
    HybrIK,
    HybrIKHRNet,
    HybrIKResNet,
    SmplLayer,
    back_project,
    soft_argmax,
)


def small_res(arrays: dict[str, np.ndarray], flip_test: bool = True) -> HybrIK:
    """The same code, narrow and shallow."""
    torch.manual_seed(0)
    net = HybrIKResNet(arrays, flip_test, (1, 1, 1, 1), deconvolution=16, hidden=32, cells=8)
    return at_a_distance(net)


def small_hrnet(arrays: dict[str, np.ndarray], flip_test: bool = True) -> HybrIK:
    torch.manual_seed(0)
    return at_a_distance(HybrIKHRNet(arrays, flip_test, network="hrnet_w18_small", cells=8))


def at_a_distance(net: HybrIK) -> HybrIK:
    """Random weights would put the camera anywhere, also into the person."""
    with torch.no_grad():
        net.deccam.weight.mul_(0.01)
    return net.eval()


@pytest.mark.parametrize(
    ("network", "layout", "count"),
    [(HybrIKResNet, published.hybrik_res34(), 259), (HybrIKHRNet, published.hybrik_w48(), 1975)],
)
def test_names_and_shapes_are_the_published_ones(smpl, network, layout, count):
    _, arrays = smpl
    with torch.device("meta"):
        net = network(arrays)
    assert {name: tuple(value.shape) for name, value in net.state_dict().items()} == layout
    assert len(layout) == count


def test_smpl_buffers_are_laid_out_as_published(smpl):
    _, arrays = smpl
    layer = SmplLayer(arrays)
    assert layer.children_map.tolist()[:4] == [3, 4, 5, 6]
    assert layer.children_map.tolist()[24:] == [-1] * 5
    assert layer.parents.tolist() == [*published.PARENTS, 15, 22, 23, 10, 11]
    vertex, axis, direction = 17, 1, 100
    assert layer.posedirs[direction, 3 * vertex + axis] == arrays["posedirs"][17, 1, 100]
    shape = np.random.default_rng(0).normal(size=10).astype(np.float32)
    shaped = arrays["v_template"] + arrays["shapedirs"] @ shape
    expected = np.concatenate([arrays["J_regressor"] @ shaped, shaped[published.LEAF_VERTICES]])
    found = layer.rest_joints(torch.from_numpy(shape)[None])[0]
    assert np.abs(found.numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_published_file_loads_strictly(smpl, tmp_path, wrapped):
    folder, _ = smpl
    state = published.random_state(published.hybrik_res34())
    path = tmp_path / "pretrained_res34.pth"
    torch.save({"model": state} if wrapped else state, path)
    net = load_estimator("hybrik_res34", checkpoint=path, smpl=folder, flip_test=False)
    loaded = net.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    if not wrapped:
        del state["smpl.parents"]
        torch.save(state, path)
        with pytest.raises(CheckpointError, match=r"1 missing: smpl\.parents"):
            load_estimator("hybrik_res34", checkpoint=path, smpl=folder)
        with pytest.raises(CheckpointError, match="does not fit HybrIKHRNet"):
            load_estimator("hybrik_w48", checkpoint=path, smpl=folder)


def test_soft_argmax_is_the_mean_over_cells():
    logits = np.random.default_rng(0).normal(size=(1, 2, 4, 3, 5)).astype(np.float32) * 2
    found = soft_argmax(torch.from_numpy(logits)).numpy()
    for joint in range(2):
        weight = np.exp(logits[0, joint])
        x = y = z = 0.0
        for d in range(4):
            for row in range(3):
                for column in range(5):
                    p = weight[d, row, column] / weight.sum()
                    x, y, z = x + p * column, y + p * row, z + p * d
        assert np.allclose(found[0, joint], [x / 5 - 0.5, y / 3 - 0.5, z / 4 - 0.5], atol=1e-5)


def test_geometry_is_the_published_formula(smpl):
    """Crop places, depths, scale and twist of one person, by hand."""
    net = small_res(smpl[1], flip_test=False)
    stream = torch.Generator().manual_seed(0)
    uvd = 0.4 * (torch.rand(1, 29, 3, generator=stream) - 0.5)
    shape = torch.randn(1, 10, generator=stream)
    twist = torch.randn(1, 23, 2, generator=stream)
    camera = torch.tensor([[0.8, 0.1, -0.2]])
    estimate = net.solve(Answer(uvd, shape, twist, camera, torch.zeros(1, 29)))
    u, v, d = uvd[0].double().numpy().T
    z = 2.2 * d + 1000 / (256 * 0.8)
    joints = np.stack([u * 256 / 1000 * z - 0.1, v * 256 / 1000 * z + 0.2, 2.2 * d], 1)
    assert np.allclose(estimate.joints[0].numpy(), joints - joints[0], atol=1e-5)
    # heatmap cell i is at pixel 4 i, whose middle is at 4 i + 0.5
    pixels = np.stack([256 * (u + 0.5), 256 * (v + 0.5)], 1) + 0.5
    assert np.allclose(estimate.joints_2d[0].numpy(), pixels, atol=1e-3)
    rest = net.smpl.rest_joints(shape)[0].double().numpy()
    for adaptive in (True, False):
        net.train(not adaptive)  # training uses the naive kinematics
        solved = net.solve(Answer(uvd, shape, twist, camera, torch.zeros(1, 29)))
        expected = naive_loop(joints, rest, twist[0].double().numpy(), adaptive)
        assert np.abs(solved.rotations[0].numpy() - expected).max() < 1e-3


def test_images_are_normalised_as_published(smpl):
    net = small_res(smpl[1])
    pixel = net.normalised(torch.tensor([0.5, 0.25, 1.0]).view(1, 3, 1, 1)).flatten()
    expected = [(0.5 - 0.406) / 0.225, (0.25 - 0.457) / 0.224, (1 - 0.480) / 0.229]
    assert torch.allclose(pixel, torch.tensor(expected))


def test_what_a_mirrored_image_says_is_told_for_the_image(smpl):
    net = small_res(smpl[1])
    logits = torch.full((1, 29, 8, 64, 64), -40.0)
    names = net.joint_names
    left, right = names.index("left_wrist"), names.index("right_wrist")
    logits[0, :, 3, 10, 20] = 40.0
    logits[0, right, 3, 10, 20] = -40.0
    logits[0, right, 3, 10, 50] = 40.0
    pooled = torch.randn(1, 32)
    plain = net.decode(logits.flatten(1, 2), pooled, flip=False)
    told = net.decode(logits.flatten(1, 2), pooled, flip=True)
    assert torch.allclose(plain.uvd[0, right, 0], torch.tensor(50 / 64 - 0.5))
    # the place in the mirrored image, mirrored about the crop's middle, for the other hand
    assert torch.allclose(told.uvd[0, left, 0], torch.tensor(-(50 / 64 - 0.5)))
    assert torch.allclose(told.uvd[0, left, 1:], plain.uvd[0, right, 1:])
    swapped = [j - 1 for j in mirrored(JOINT_NAMES)[1:]]
    assert torch.equal(told.twist[..., 0], plain.twist[:, swapped, 0])
    assert torch.equal(told.twist[..., 1], -plain.twist[:, swapped, 1])


@pytest.mark.parametrize("make", [small_res, small_hrnet])
def test_the_flip_test_is_the_mean_of_two_answers(smpl, make):
    images = torch.rand(1, 3, 256, 256)
    with_test, without = make(smpl[1]), make(smpl[1], flip_test=False)
    with torch.no_grad():
        estimate, alone = with_test(images), without(images)
        mirror = without.answer(images.flip(-1), "image", flip=True)
        plain = without.answer(images, "image")
        expected = with_test.solve(with_test.averaged(plain, mirror))
    assert torch.allclose(estimate.shape, (plain.shape + mirror.shape) / 2, atol=1e-6)
    assert torch.allclose(estimate.joints, expected.joints, atol=1e-6)
    assert not torch.allclose(estimate.joints, alone.joints, atol=1e-6)
    assert with_test.train()(images).joints is not None


def test_the_flip_test_averages_cameras_as_published(smpl):
    def told(scale: float, *rest: float) -> Answer:
        zero = torch.zeros(1, 29)
        camera = torch.tensor([[scale, *rest]])
        return Answer(zero[..., None], zero[:, :10], zero[:, :23, None], camera, zero)

    a, b = told(0.5, 1.0, 2.0), told(1.0, 3.0, 4.0)
    assert torch.equal(small_res(smpl[1]).averaged(a, b).camera, torch.tensor([[0.75, 2.0, 3.0]]))
    harmonic = small_hrnet(smpl[1]).averaged(told(0.5), told(1.0)).camera
    assert torch.allclose(harmonic, torch.tensor([[2 / 3]]))


def test_hrnet_finds_the_scale_at_which_the_body_fits(smpl):
    net = small_hrnet(smpl[1])
    shape = torch.zeros(3, 10)
    rest = net.smpl.rest_joints(shape).double()
    rotations, _, _ = a_pose(3, 0.3)
    joints = posed(rotations, rest)
    joints = joints - joints[:, :1]
    true = torch.tensor([[0.7], [0.9], [1.2]], dtype=torch.float64)
    depth = 1000 / (256 * true[:, :, None])
    uv = joints[..., :2] / (joints[..., 2:] + depth) * 1000 / 256
    uvd = torch.cat([uv, joints[..., 2:] / 2.2], -1)
    answer = Answer(
        uvd.float(), shape, twist_of(rotations, rest).float(), true.float(), torch.zeros(3, 29)
    )
    assert torch.allclose(net.refined(answer).camera, true.float(), rtol=1e-3)
    guess = Answer(answer.uvd, shape, answer.twist, 1.1 * answer.camera, answer.sigma)
    better = (net.refined(guess).camera - answer.camera).abs()
    assert (better < 0.5 * (guess.camera - answer.camera).abs()).all()
    unsure = Answer(answer.uvd, shape, answer.twist, guess.camera, torch.ones(3, 29))
    assert torch.equal(net.refined(unsure).camera, guess.camera)
    # the published least squares, person by person
    weight = torch.linspace(0, 0.2, 29).expand(3, 29)
    found = net.refined(Answer(answer.uvd, shape, answer.twist, guess.camera, weight)).camera
    for row in range(3):
        placed = back_project(guess.uvd, guess.camera, None)[row].double().numpy()
        turned = naive_loop(
            placed - placed[0], rest[row].numpy(), answer.twist[row].double().numpy(), False
        )
        body = posed(torch.from_numpy(turned)[None], rest[row][None])[0, :24].numpy()
        body = body - body[0] + placed[0]
        w = (1 - 10 * weight[row, :24].double().numpy()).clip(0)[:, None]
        seen = uv[row, :24].numpy()
        a, b = (w * seen).ravel(), (w * (body[:, :2] - 0.256 * seen * body[:, 2:])).ravel()
        expected = 1 / np.linalg.lstsq(a[:, None], b, rcond=None)[0][0]
        assert abs(float(found[row, 0]) - expected) < 1e-3 * abs(expected)


@pytest.mark.parametrize("make", [small_res, small_hrnet])
def test_answers_are_finite_and_deterministic_and_the_gradient_reaches_the_image(smpl, make):
    net = make(smpl[1], flip_test=False)
    images = torch.rand(1, 3, 256, 256, requires_grad=True)
    first, second = net(images), net(images)
    for name in ("joints", "rotations", "shape", "camera", "joints_2d"):
        assert torch.isfinite(getattr(first, name)).all()
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.joints.shape == (1, 29, 3)
    assert first.camera.shape == (1, 3 if make is small_res else 1)
    limbs = limb_joints(first, net.joint_names)
    (limbs.square().sum() + first.rotations.sum()).backward()
    assert torch.isfinite(images.grad).all()
    assert images.grad.abs().max() > 0


@pytest.mark.parametrize("make", [small_res, small_hrnet])
@pytest.mark.parametrize("cut", HybrIK.cuts)
def test_the_part_behind_a_cut_makes_the_same_answer_and_alone_gets_gradients(smpl, make, cut):
    net: HybrIK = make(smpl[1], flip_test=False).train()
    for module in net.modules():
        module.train(not isinstance(module, torch.nn.Dropout | torch.nn.BatchNorm2d))
    images = torch.rand(1, 3, 256, 256)
    whole = net(images)
    tail = {id(p) for p in net.tail_parameters(cut)}
    net.requires_grad_(True)
    if cut == "late":  # by way of the earlier cut
        features = net.stem(net.stem(images, "early"), cut, "early")
    else:
        features = net.stem(images, cut)
    estimate = net.head(features.detach(), cut)
    assert torch.allclose(estimate.joints, whole.joints, atol=1e-5)
    (estimate.joints.square().sum() + estimate.rotations.sum()).backward()
    trained = {id(p) for p in net.parameters() if p.grad is not None}
    unused = {id(p) for name, p in net.named_parameters() if name.startswith("decsigma")}
    assert trained | unused == tail


def test_a_crop_off_the_picture_s_middle_is_seen_from_the_side(smpl):
    uvd = torch.tensor([[[0.1, -0.2, 0.05], [0.0, 0.0, 0.0]]])
    placed = back_project(uvd, torch.tensor([[0.9]]), torch.tensor([[1.0, 0.0]]))
    depth = 2.2 * 0.05 + 1000 / (256 * 0.9)
    expected = torch.tensor([1.1 * 0.256 * depth, -0.2 * 0.256 * depth, 2.2 * 0.05])
    assert torch.allclose(placed[0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("flip_test", [False, True])
def test_joints_seen_from_the_side_are_further_off_by_depth_alone(smpl, flip_test):
    """x - x0 = uv_x z' - uv_x0 z0': an offset adds its share of the difference in depth."""
    net = small_res(smpl[1], flip_test)
    images = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    offset = torch.tensor([[0.5, 0.0], [-1.0, 2.0]])
    with torch.no_grad():
        middle, side = net(images).joints, net.in_picture(images, offset).joints
    depth = (middle[..., 2:] - middle[:, :1, 2:]).abs().max()
    assert depth > 1e-3
    moved = middle[..., :2] + 0.256 * offset[:, None] * middle[..., 2:]
    assert torch.allclose(side[..., :2], moved, atol=1e-5)
    assert torch.equal(side[..., 2], middle[..., 2])


def test_every_path_of_the_published_w48_layout_is_used(smpl, tmp_path: Path):
    """A file in the published layout of the large variant loads into it."""
    folder, _ = smpl
    path = tmp_path / "hybrik_hrnet.pth"
    torch.save({n: torch.zeros(shape) for n, shape in published.hybrik_w48().items()}, path)
    net = load_estimator("hybrik_w48", checkpoint=path, smpl=folder)
    assert net.name == "hybrik-w48"
    assert not any(value.any() for value in net.state_dict().values())
