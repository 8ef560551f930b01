from dataclasses import replace

import pytest
import torch
from generation_fakes import small_bank

from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.config import FeedbackConfig, GeneratorConfig
from posegen_ray.errors import ConfigError
from posegen_ray.generation.generator import Generator
from posegen_ray.generation.losses import (
    ambiguous,
    diversity,
    feedback_payment,
    joint_errors,
    joint_weights,
    scored,
    view_entropy_loss,
    view_spread,
)

BAND = FeedbackConfig(band_low=1.0, band_high=2.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_errors_are_mean_distances_in_mm() -> None:
    truth = torch.randn(3, 12, 3, generator=seeded(0))
    moved = truth + torch.tensor([0.03, 0.0, 0.04])
    torch.testing.assert_close(joint_errors(moved, truth), torch.full((3,), 50.0))
    perfect = truth.clone().requires_grad_()
    joint_errors(perfect, truth).sum().backward()
    assert perfect.grad is not None
    assert torch.isfinite(perfect.grad).all()


def test_joints_weigh_as_told_and_the_weights_have_a_mean_of_one() -> None:
    truth = torch.zeros(1, 12, 3)
    off = truth.clone()
    off[0, LIMB_JOINT_NAMES.index("left_wrist"), 0] = 0.12
    off[0, LIMB_JOINT_NAMES.index("right_hip"), 1] = 0.06
    weights = joint_weights({"left_wrist": 4.0, "right_hip": 0.0})
    assert weights is not None
    assert float(weights.mean()) == pytest.approx(1.0)
    mean = 14 / 12  # of 4, 0 and ten ones
    assert float(joint_errors(off, truth, weights)) == pytest.approx(4 * 120 / mean / 12, abs=1e-2)
    everywhere = truth + torch.tensor([0.03, 0.0, 0.04])
    assert float(joint_errors(everywhere, truth, weights)) == pytest.approx(50.0, abs=1e-2)
    assert joint_weights({}) is None


@pytest.mark.parametrize("wrong", [{"nose": 2.0}, dict.fromkeys(LIMB_JOINT_NAMES, 0.0)])
def test_weights_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"joint_weights.*left_wrist"):
        joint_weights(wrong)


def test_a_curriculum_moves_the_band_from_half_its_place_to_the_end() -> None:
    easy_first = replace(BAND, curriculum=0.5)
    halved = replace(BAND, band_low=0.5, band_high=1.0)
    error = torch.tensor([40.0, 80.0, 120.0, 240.0])
    for progress, as_if in ((0.0, halved), (0.5, BAND), (0.9, BAND)):
        torch.testing.assert_close(
            feedback_payment(error, 100.0, easy_first, progress),
            feedback_payment(error, 100.0, as_if),
        )
    assert easy_first.band_high == 2.0
    torch.testing.assert_close(
        feedback_payment(error, 100.0, easy_first, 0.25),
        feedback_payment(error, 75.0, BAND),
    )


def test_payment_rises_inside_the_band_and_only_there() -> None:
    error = torch.tensor([20.0, 60.0, 100.0, 150.0, 200.0, 350.0], requires_grad=True)
    payment = feedback_payment(error, 100.0, BAND)
    (slope,) = torch.autograd.grad(payment.sum(), error)
    assert payment[0].abs() < 0.02
    assert 0.7 < payment[4] < 1.0
    assert slope[3] == slope.max()
    assert slope[0] < 0.1 * slope[3]  # easy: no reward for being a little less easy
    assert slope[5] < 0  # broken or ambiguous: less is better
    assert 0.2 * slope[3] < slope[2]  # the band's lower end can be reached from below


def test_payment_depends_on_the_error_on_real_poses() -> None:
    error = torch.tensor([150.0])
    assert feedback_payment(error, 100.0, BAND) > feedback_payment(error, 150.0, BAND)


def test_swapped_and_depth_mirrored_answers_are_ambiguous() -> None:
    truth = 0.4 * torch.randn(3, 12, 3, generator=seeded(1))
    swapped = truth[:, [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]]
    answers = torch.stack(
        [truth[0] + 0.02, swapped[1] + 0.02, swapped[2] * torch.tensor([1.0, 1.0, -1.0])]
    )
    assert ambiguous(answers, truth).tolist() == [False, True, True]


@pytest.mark.parametrize("mode", ["residual", "noise"])
def test_diversity_punishes_answers_that_are_all_alike(mode: str) -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(mode=mode), small_bank(), 1)
    with torch.no_grad():
        generator.pose_head.weight.mul_(3.0)
    made = generator(generator.draw(32, seeded(0)))
    alike = replace(
        made,
        unit=0.5 + 0.05 * (made.unit - 0.5),
        residual=0.1 * made.residual,
        proposal=replace(made.proposal, poses=made.proposal.poses[[0] * 32]),
    )
    assert diversity(made) < diversity(alike) - 0.3


def test_diversity_leaves_an_untrained_generator_alone() -> None:
    generator = Generator(GeneratorConfig(), small_bank(), 1)
    diversity(generator(generator.draw(32, seeded(0)))).backward()
    assert generator.view_head.weight.grad is not None
    assert generator.view_head.weight.grad.abs().max() == 0


def test_cameras_spread_is_one_for_the_prior_and_free_above_the_floor() -> None:
    prior = torch.rand(4000, 7, generator=seeded(0))
    circles = torch.arange(7) == 0
    assert view_spread(prior, circles).min() > 0.95
    assert view_entropy_loss(prior, circles, 0.5) == 0
    narrow = 0.5 + 0.1 * (prior - 0.5)
    assert view_spread(narrow, circles).max() < 0.15
    narrow.requires_grad_()
    loss = view_entropy_loss(narrow, circles, 0.5)
    (slope,) = torch.autograd.grad(loss, narrow)
    assert loss > 0.5
    wider = narrow - 0.01 * slope / slope.abs().max()
    assert view_entropy_loss(wider, circles, 0.5) < loss


def test_numbers_around_the_end_of_a_circle_are_close_and_those_of_a_range_are_not() -> None:
    ends = torch.tensor([0.01, 0.99]).repeat(100)[:, None].expand(-1, 2)
    circle, range_ = view_spread(ends, torch.tensor([True, False])).tolist()
    assert circle < 0.01
    assert range_ == 1.0


@pytest.mark.parametrize("settings", [{"band_low": 2.0, "band_high": 1.5}, {"weight": -1.0}])
def test_impossible_feedback_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"feedback"):
        FeedbackConfig(**settings)  # type: ignore[arg-type]


def test_scored_payments_have_the_gradient_of_their_expectation() -> None:
    """Of E[-(a - 1)^2] for a ~ N(mean, 0.5^2): the mean of many estimates is 2 (1 - mean)."""
    mean = torch.tensor(0.2, requires_grad=True)
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    tried = mean + 0.5 * noise
    payments = -(tried.detach() - 1).square()
    log_probability = -((tried.detach() - mean) / 0.5).square() / 2
    for expected in (0.0 * tried, 0.7 * tried, -(tried - 1).square()):  # none, rough, exact
        value = scored(payments, expected, log_probability, 1.0)
        assert torch.allclose(value, payments, atol=1e-5)
        (slope,) = torch.autograd.grad(value.mean(), mean, retain_graph=True)
        assert float(slope) == pytest.approx(1.6, abs=0.02)
