"""Metrics against scipy and plain loops, and on degenerate skeletons."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes
from scipy.spatial.transform import Rotation

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.errors import DataError
from posegen_ray.evaluation import metrics


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(0)
    truth = random.normal(size=(40, 12, 3)) * [0.3, 0.6, 0.2]
    predicted = truth + 0.08 * random.normal(size=truth.shape) + random.normal(size=(40, 1, 3))
    return torch.from_numpy(predicted), torch.from_numpy(truth)


def test_joint_errors_equal_a_plain_loop(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    predicted, truth = (part.numpy() for part in pair)
    left, right = LIMB_JOINT_NAMES.index("left_hip"), LIMB_JOINT_NAMES.index("right_hip")
    expected = np.zeros((40, 12))
    for n in range(40):
        shift_a = (predicted[n, left] + predicted[n, right]) / 2
        shift_b = (truth[n, left] + truth[n, right]) / 2
        for j in range(12):
            difference = (predicted[n, j] - shift_a) - (truth[n, j] - shift_b)
            expected[n, j] = 1000 * np.sqrt((difference**2).sum())
    np.testing.assert_allclose(metrics.joint_errors(*pair).numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(metrics.mpjpe(*pair).numpy(), expected.mean(1), rtol=1e-10)


def test_pa_mpjpe_equals_scipy_when_no_mirroring_is_involved(
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    expected = []
    for predicted, truth in zip(*(part.numpy() for part in pair), strict=True):
        # scipy answers in the truth's normalised frame: undo its scaling
        standard, aligned, _ = procrustes(truth, predicted)
        size = np.linalg.norm(truth - truth.mean(0))
        expected.append(1000 * size * np.linalg.norm(standard - aligned, axis=1).mean())
    np.testing.assert_allclose(metrics.pa_mpjpe(*pair).numpy(), expected, rtol=1e-9)


def test_similarity_transforms_cost_nothing(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, truth = pair
    turns = torch.from_numpy(Rotation.random(40, rng=1).as_matrix())
    moved = 0.37 * truth @ turns.transpose(1, 2) + torch.randn(40, 1, 3, dtype=torch.float64)
    assert metrics.pa_mpjpe(moved, truth).max() < 1e-9
    assert metrics.mpjpe(moved, truth).min() > 50


def test_mirrored_predictions_keep_their_error(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, truth = pair
    mirrored = truth * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    errors = metrics.pa_mpjpe(mirrored, truth).numpy()
    assert errors.min() > 20
    for n in range(40):  # best proper rotation by flipping the weakest axis of scipy's reflection
        source = mirrored[n].numpy() - mirrored[n].numpy().mean(0)
        target = truth[n].numpy() - truth[n].numpy().mean(0)
        reflection, _ = orthogonal_procrustes(source, target)
        assert np.linalg.det(reflection) < 0
        u, s, vt = np.linalg.svd(source.T @ target)
        rotation = u @ np.diag([1, 1, -1]) @ vt
        scale = (s * [1, 1, -1]).sum() / (source**2).sum()
        expected = 1000 * np.linalg.norm(scale * source @ rotation - target, axis=1).mean()
        assert errors[n] == pytest.approx(expected, rel=1e-9)


def test_single_points_and_flat_skeletons_are_measured(
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    _, truth = pair
    point = torch.full_like(truth, 0.3)
    to_centroid = 1000 * (truth - truth.mean(1, keepdim=True)).norm(dim=-1).mean(1)
    torch.testing.assert_close(metrics.pa_mpjpe(point, truth), to_centroid)
    assert torch.isfinite(metrics.pa_mpjpe(truth, point)).all()
    assert metrics.pa_mpjpe(point, point).max() == 0
    flat = truth * torch.tensor([1.0, 1, 0], dtype=torch.float64)
    assert metrics.pa_mpjpe(flat, flat).max() < 1e-9
    line = truth * torch.tensor([1.0, 0, 0], dtype=torch.float64)
    assert metrics.pa_mpjpe(line, line).max() < 1e-9


def test_pck_and_auc_equal_a_plain_loop() -> None:
    errors = torch.from_numpy(np.random.default_rng(2).uniform(0, 260, size=(30, 12)))
    errors[0] = 0.0
    errors[1] = 150.0  # not closer than the threshold
    curves = np.array(
        [
            [np.mean([e < t for e in row]) for t in np.linspace(0, 150, 31)]
            for row in errors.tolist()
        ]
    )
    np.testing.assert_allclose(metrics.auc(errors).numpy(), 100 * curves.mean(1))
    np.testing.assert_allclose(metrics.pck(errors).numpy(), 100 * curves[:, -1])


def test_worst_decile_is_the_mean_of_the_largest_tenth() -> None:
    errors = torch.randperm(95, generator=torch.Generator().manual_seed(0)).double()
    assert metrics.worst_decile(errors) == np.mean(np.arange(85, 95))
    assert metrics.worst_decile(torch.tensor([7.0])) == 7.0
    with pytest.raises(DataError, match="no errors"):
        metrics.worst_decile(torch.zeros(0))


def test_bad_input_is_named(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    predicted, truth = pair
    broken = predicted.clone()
    broken[5, 2, 0] = float("nan")
    broken[9] = float("inf")
    for measure in (metrics.mpjpe, metrics.pa_mpjpe):
        with pytest.raises(DataError, match=r"predictions has NaN or Inf in 2 of 40 .*first: 5"):
            measure(broken, truth)
        with pytest.raises(DataError, match="39 predictions for 40"):
            measure(predicted[:39], truth)
        with pytest.raises(DataError, match=r"shape \(40, 11, 3\)"):
            measure(predicted[:, :11], truth)


def test_any_joint_set_is_centred_at_a_joint_of_its_own(
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    predicted, truth = (part[:, :5] for part in pair)
    names = ("nose", "left_hip", "right_hip", "pelvis", "tail")
    for root, rows in (("pelvis", [3]), ("mid_hip", [1, 2]), ("tail", [4])):
        expected = [
            [
                1000 * np.linalg.norm((p[j] - p[rows].mean(0)) - (t[j] - t[rows].mean(0)))
                for j in range(5)
            ]
            for p, t in zip(predicted.numpy(), truth.numpy(), strict=True)
        ]
        found = metrics.joint_errors(predicted, truth, names, root)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
        mean = metrics.mpjpe(predicted, truth, names, root)
        np.testing.assert_allclose(mean.numpy(), np.mean(expected, 1), rtol=1e-10)
    with pytest.raises(DataError, match="no 'head' to be centred at"):
        metrics.mpjpe(predicted, truth, names, "head")
    with pytest.raises(DataError, match=r"shape \(40, 5, 3\), not \[N, 4, 3\]"):
        metrics.mpjpe(predicted, truth, names[:4], "pelvis")


def test_procrustes_takes_any_number_of_joints() -> None:
    random = np.random.default_rng(5)
    truth = torch.from_numpy(random.normal(size=(40, 17, 3)))
    predicted = 0.4 * truth + 0.05 * torch.from_numpy(random.normal(size=truth.shape)) + 2.0
    expected = []
    for p, t in zip(predicted.numpy(), truth.numpy(), strict=True):
        source, target = p - p.mean(0), t - t.mean(0)
        rotation, scale = orthogonal_procrustes(source, target)
        assert np.linalg.det(rotation) > 0
        moved = scale / (source**2).sum() * source @ rotation
        expected.append(1000 * np.linalg.norm(moved - target, axis=1))
    found = metrics.aligned_errors(predicted, truth).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    with pytest.raises(DataError, match=r"predictions has shape \(40, 17, 3\), not \[N, 16, 3\]"):
        metrics.pa_mpjpe(predicted, truth[:, :16])


def test_vertex_errors_equal_a_plain_loop() -> None:
    random = np.random.default_rng(4)
    a, b = random.normal(size=(2, 3, 50, 3))
    root_a, root_b = random.normal(size=(2, 3, 3))
    expected = [
        1000
        * np.mean(
            [np.linalg.norm((a[n, v] - root_a[n]) - (b[n, v] - root_b[n])) for v in range(50)]
        )
        for n in range(3)
    ]
    tensors = [torch.from_numpy(part) for part in (a, b, root_a, root_b)]
    np.testing.assert_allclose(metrics.pve(*tensors).numpy(), expected, rtol=1e-12)
    tensors[1][2, 7, 1] = float("inf")
    with pytest.raises(DataError, match=r"truth has NaN or Inf in 1 of 3 .*first: 2"):
        metrics.pve(*tensors)


def test_pckh_counts_annotated_joints_within_half_a_head() -> None:
    truth = torch.zeros(2, 4, 2)
    predicted = truth.clone()
    predicted[0, :, 0] = torch.tensor([0.0, 5.0, 5.1, 90.0])  # half of this head is 5 pixels
    predicted[1, :, 1] = torch.tensor([10.0, 11.0, 0.0, float("nan")])
    visible = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]]).bool()
    head = torch.tensor([10.0, 20.0])
    found = metrics.pckh(predicted, truth, head, visible)
    np.testing.assert_allclose(found.numpy(), [200 / 3, 200 / 3])
    np.testing.assert_allclose(metrics.pckh(predicted, truth, head, visible, 0.6), [100, 100])
    with pytest.raises(DataError, match=r"1 of 2 pictures have a head without length .*first: 1"):
        metrics.pckh(predicted, truth, torch.tensor([10.0, 0.0]), visible)
    with pytest.raises(DataError, match=r"predictions has NaN or Inf in 1 of 2 .*first: 1"):
        metrics.pckh(predicted, truth, head, torch.ones_like(visible))
    with pytest.raises(DataError, match="no annotated joint"):
        metrics.pckh(predicted, truth, head, torch.zeros_like(visible))
    with pytest.raises(DataError, match="do not belong together"):
        metrics.pckh(predicted, truth[:, :3], head, visible)


def test_mirrored_points_and_collapsed_ones_of_any_set(
    pair: tuple[torch.Tensor, torch.Tensor],
) -> None:
    _, truth = pair
    three = truth[:, :3]  # a triangle: its mirror image is itself, turned over
    assert metrics.pa_mpjpe(three * torch.tensor([-1.0, 1, 1]), three).max() < 1e-9
    collapsed = torch.zeros_like(three)
    to_centroid = 1000 * (three - three.mean(1, keepdim=True)).norm(dim=-1)
    torch.testing.assert_close(metrics.aligned_errors(collapsed, three), to_centroid)


def test_errors_stay_on_the_device_of_their_input() -> None:
    joints = torch.zeros(2, 12, 3, device="meta")
    assert metrics.pck(torch.zeros(2, 12, device="meta")).device.type == "meta"
    assert metrics.centred(joints).device.type == "meta"
