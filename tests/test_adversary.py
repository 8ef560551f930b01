from collections.abc import Sequence

import pytest
import torch
from bodies import capsule_body
from test_scene import bank, people

from posegen_ray.adversary import Adversary
from posegen_ray.body.camera import project
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import LIMB_JOINT_NAMES, LIMB_JOINTS
from posegen_ray.config import (
    CameraRangeConfig,
    DiscriminatorConfig,
    FeedbackConfig,
    GeneratorConfig,
    RendererConfig,
    ValidityConfig,
)
from posegen_ray.errors import ConfigError, TrainingError
from posegen_ray.estimators.base import Estimate, PoseEstimator, limb_joints
from posegen_ray.estimators.crop import CropSpec
from posegen_ray.generation.generator import Generator
from posegen_ray.generation.lighting import Lighting
from posegen_ray.generation.losses import joint_errors
from posegen_ray.generation.proposal import Proposal, RealPoseSampler, SourceSampler, View
from posegen_ray.generation.validity import ValidityChecker
from posegen_ray.judging import Answer, Rules, frozen, judge
from posegen_ray.records import PoseBatch, RenderRequest, RenderResult
from posegen_ray.scene import People
from posegen_ray.subjects.render import make_renderer
from posegen_ray.subjects.store import VoxelSubject

SIZE = 32


def soft_dots(request: RenderRequest) -> RenderResult:
    """A cheap picture, smooth in bones and camera: a blob for each limb joint, in 3 colours."""
    rest = capsule_body().joint_template[list(LIMB_JOINTS)]
    bones = request.bones[:, list(LIMB_JOINTS)]
    joints = (bones[..., :3] @ rest[..., None])[..., 0] + bones[..., 3]
    pixels = project(request.camera, joints)
    grid = torch.arange(request.camera.width) + 0.5
    across = (grid - pixels[..., :1]).square()
    down = (grid - pixels[..., 1:]).square()
    blobs = torch.exp(-(across[:, :, None, :] + down[..., None]) / 18)
    colours = torch.stack([blobs[:, i::3].sum(1) for i in range(3)], -1).clamp_max(1)
    return RenderResult(torch.cat([colours, colours.amax(-1, keepdim=True)], -1))


class Guesser(PoseEstimator):
    """A fixed, random, smooth network."""

    name = "guesser"
    joint_names = LIMB_JOINT_NAMES
    crop = CropSpec(size=SIZE)

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(3, 8, 5, 4),
                torch.nn.Tanh(),
                torch.nn.Flatten(),
                torch.nn.Linear(8 * 49, 36),
            )

    def forward(self, images: torch.Tensor) -> Estimate:
        return Estimate(self.layers(images).unflatten(1, (12, 3)) * 0.3)


def grey(seeds: Sequence[int], size: int) -> torch.Tensor:
    return torch.full((len(seeds), 3, size, size), 0.4)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def adversary(feedback: FeedbackConfig | None = None, **settings: object) -> Adversary:
    torch.manual_seed(0)
    config = ValidityConfig()
    checker = ValidityChecker(config, capsule_body(), people().shapes, bank().poses.rotations)
    return Adversary(
        Generator(GeneratorConfig(**settings), bank(), 2),  # type: ignore[arg-type]
        feedback or FeedbackConfig(),
        DiscriminatorConfig(history=64),
        people(),
        checker,
        max_skipped_steps=3,
    )


def calibrated(**settings: object) -> Adversary:
    made = adversary(**settings)  # type: ignore[arg-type]
    made.calibrate(soft_dots, Guesser(), SourceSampler(bank(), 2), grey, 16, seeded(0))
    return made


def step(made: Adversary, number: int) -> dict[str, float]:
    return made.step(6, soft_dots, Guesser(), grey, seeded(number)).as_dict()


def weights(made: Adversary) -> torch.Tensor:
    modules = (made.generator, made.discriminator)
    return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])


def test_step_changes_generator_discriminator_and_critic_but_not_the_estimator() -> None:
    made, estimator = calibrated(), Guesser()
    before = [p.clone() for p in estimator.parameters()]
    heads = [m.weight.clone() for m in (made.generator.view_head, made.generator.pose_head)]
    critic = made.generator.critic.layers[0].weight.clone()  # type: ignore[union-attr, operator]
    judge_before = torch.cat([p.detach().flatten() for p in made.discriminator.parameters()])
    for number in range(2):
        metrics = made.step(6, soft_dots, estimator, grey, seeded(number))
    assert metrics.skipped == 0
    assert made.reference_mm > 0
    after = [m.weight for m in (made.generator.view_head, made.generator.pose_head)]
    assert all(not torch.equal(a, b) for a, b in zip(heads, after, strict=True))
    assert not torch.equal(critic, made.generator.critic.layers[0].weight)  # type: ignore[arg-type]
    judge_after = torch.cat([p.detach().flatten() for p in made.discriminator.parameters()])
    assert not torch.equal(judge_before, judge_after)
    assert all(
        torch.equal(a, b) and b.grad is None
        for a, b in zip(before, estimator.parameters(), strict=True)
    )
    assert made.counts["drawn"] == 12


def test_people_who_are_not_drawn_are_not_paid_for() -> None:
    def nobody(request: RenderRequest) -> RenderResult:
        return RenderResult(torch.zeros_like(soft_dots(request).rgba))

    made = calibrated()
    metrics = made.step(6, nobody, Guesser(), grey, seeded(0))
    assert metrics.valid > 0
    assert metrics.error_mm > 0
    assert metrics.payment == 0
    assert any(step(made, number)["payment"] != 0 for number in range(1, 4))  # of those drawn


def test_weights_of_joints_change_what_is_paid() -> None:
    wrists = FeedbackConfig(joint_weights={"left_wrist": 20.0, "right_wrist": 20.0})
    plain, weighted = calibrated(), calibrated(feedback=wrists)
    assert weighted.reference_mm != plain.reference_mm
    assert step(weighted, 0)["error_mm"] != step(plain, 0)["error_mm"]


def test_resumed_training_equals_uninterrupted_training() -> None:
    whole, first, second = calibrated(), calibrated(), adversary()
    for number in range(4):
        step(whole, number)
    for number in range(2):
        step(first, number)
    second.load_state_dict(first.state_dict())
    for number in range(2, 4):
        step(second, number)
    assert torch.equal(weights(whole), weights(second))
    assert whole.counts == second.counts


def test_steps_with_nan_change_nothing_are_counted_and_stop_the_run() -> None:
    made = calibrated()
    before = [p.detach().clone() for p in made.generator.own_parameters()]

    def broken(request: RenderRequest) -> RenderResult:
        return RenderResult(soft_dots(request).rgba * float("nan"))

    for number in range(2):
        metrics = made.step(4, broken, Guesser(), grey, seeded(number))
        assert metrics.skipped == 1
    # (the critic may still learn from proposals that were rejected before rendering)
    after = made.generator.own_parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert made.skipped_total == 2
    with pytest.raises(TrainingError, match="3 adversarial steps in a row"):
        made.step(4, broken, Guesser(), grey, seeded(9))


def test_without_feedback_nothing_is_rendered() -> None:
    made = adversary(FeedbackConfig(weight=0.0))

    def forbidden(request: RenderRequest) -> RenderResult:
        raise AssertionError("rendered")

    metrics = made.step(4, forbidden, Guesser(), grey, seeded(0))
    assert metrics.skipped == 0
    assert metrics.error_mm != metrics.error_mm  # NaN


def test_workers_share_their_gradients() -> None:
    made, seen = calibrated(), []
    made.step(4, soft_dots, Guesser(), grey, seeded(0), lambda p: seen.append(len(list(p))))
    expected = [
        len(made.generator.own_parameters()),
        len(list(made.discriminator.parameters())),
        *[len(list(made.generator.critic.parameters()))] * made.feedback.critic_updates,
    ]
    assert seen == expected


def offset(proposal: Proposal, by: torch.Tensor) -> Proposal:
    """Turns every joint by by[:, :72], moves the view by by[:, 72:76], and the background's
    brightness by by[:, 76]."""
    turn = from_axis_angle(by[:, :72].unflatten(1, (24, 3)))
    view = proposal.view
    return Proposal(
        PoseBatch(proposal.poses.rotations @ turn, proposal.poses.translation),
        View(
            view.azimuth + by[:, 72],
            view.elevation + by[:, 73],
            view.roll + by[:, 74],
            view.distance * (1 + by[:, 75]),
            view.focal,
            view.framing,
        ),
        proposal.subjects,
        Lighting(proposal.lighting.light, proposal.lighting.background + by[:, 76]),
    )


@pytest.mark.parametrize(("image", "truth"), [(True, True), (True, False), (False, True)])
def test_each_gradient_path_agrees_with_finite_differences(image: bool, truth: bool) -> None:
    """Of a path alone: with what the other one gives as it is where nothing moves."""
    proposal, _ = RealPoseSampler(bank(), CameraRangeConfig(), 2)(3, seeded(0))
    estimator, backgrounds = Guesser(), grey(range(3), SIZE)

    def answer(by: torch.Tensor, rules: Rules) -> Answer:
        return judge(offset(proposal, by), people(), soft_dots, estimator, backgrounds, rules)

    by = torch.zeros(3, 77, requires_grad=True)
    (gradient,) = torch.autograd.grad(answer(by, Rules(image, truth)).error.sum(), by)
    still = answer(by.detach(), Rules())

    @torch.no_grad()
    def error(by: torch.Tensor) -> torch.Tensor:
        moved = answer(by, Rules())
        seen = moved.images if image else still.images
        joints = limb_joints(estimator(seen), estimator.joint_names)
        return joint_errors(joints, moved.truth if truth else still.truth).sum()

    columns = [*range(0, 24), *range(36, 60), 72, 73, 74, 75, 76]
    measured = torch.zeros(3, len(columns))
    for place, column in enumerate(columns):
        for row in range(3):
            nudge = torch.zeros(3, 77)
            nudge[row, column] = 3e-3
            measured[row, place] = (error(nudge) - error(-nudge)) / 6e-3
    analytic = gradient[:, columns]
    cosine = torch.nn.functional.cosine_similarity(analytic.flatten(), measured.flatten(), dim=0)
    assert cosine > 0.995
    large = analytic.abs() > analytic.abs().median()
    assert (analytic.sign() == measured.sign())[large].float().mean() > 0.97
    assert still.error.shape == (3,)


@pytest.mark.parametrize("by_gradient", [True, False])
def test_feedback_moves_the_generator_towards_what_the_estimator_gets_wrong(
    by_gradient: bool,
) -> None:
    """An estimator that is wrong where the camera stands high, and a generator that finds out."""

    class Flat(Guesser):
        """Errs by as much as the picture is bright."""

        def forward(self, images: torch.Tensor) -> Estimate:
            away = torch.ones(12, 3)
            away[6:8] = 0.0  # all but the hips
            return Estimate(images[:, 0, 0, 0][:, None, None] * away)

    def tell_tale(request: RenderRequest) -> RenderResult:
        height = -request.camera.rotation[:, 2, 1]  # sine of the elevation
        rgba = height[:, None, None, None].expand(-1, SIZE, SIZE, 4)
        return RenderResult(torch.cat([rgba[..., :3], torch.ones_like(rgba[..., 3:])], -1))

    parts = {"critic": 0.0} if by_gradient else {"max_sample_gradient": 0.0}
    feedback = FeedbackConfig(
        through_ground_truth=False, pay_ambiguous=True, band_high=3.0, **parts
    )
    made = adversary(feedback, candidates=1)
    made.reference_mm = 500.0
    before = made.generator.sample(300, seeded(5)).view.elevation.mean()
    for number in range(30):
        made.step(16, tell_tale, Flat(), grey, seeded(number))
    after = made.generator.sample(300, seeded(5)).view.elevation.mean()
    assert after > before + 0.15


def test_frozen_estimator_gets_its_state_back() -> None:
    estimator = Guesser().train()
    estimator.layers[0].weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    with frozen(estimator):
        assert not estimator.training
        assert not any(p.requires_grad for p in estimator.parameters())
    assert estimator.training
    assert [p.requires_grad for p in estimator.parameters()] == [False, True, True, True]


def test_real_renderer_passes_the_feedback_to_pose_and_camera(
    capsule_subject: VoxelSubject,
) -> None:
    who = People(("capsules",), torch.zeros(1, 2), capsule_body())
    render = make_renderer(RendererConfig(), {"capsules": capsule_subject})
    proposal, _ = RealPoseSampler(bank(), CameraRangeConfig(), 1)(2, seeded(0))
    by = torch.zeros(2, 77, requires_grad=True)
    rules = Rules(through_ground_truth=False)
    answer = judge(offset(proposal, by), who, render, Guesser(), grey(range(2), SIZE), rules)
    (gradient,) = torch.autograd.grad(answer.error.sum(), by)
    assert torch.isfinite(gradient).all()
    assert gradient[:, 3:72].abs().max() > 0
    assert gradient[:, 72:].abs().max() > 0


class OnlyAnswers(Guesser):
    """The same network, of which only the answers are known."""

    differentiable = False

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> Estimate:
        return super().forward(images)


def test_a_black_box_is_searched_by_score() -> None:
    made = calibrated()
    before = made.generator.view_head.weight.clone()
    metrics = made.step(6, soft_dots, OnlyAnswers(), grey, seeded(0))
    assert metrics.skipped == 0
    assert metrics.error_mm > 0
    assert not torch.equal(before, made.generator.view_head.weight)


def test_a_differentiable_estimator_is_searched_by_score_on_request() -> None:
    wanted = FeedbackConfig(estimator_gradient="score")
    known, unknown = calibrated(feedback=wanted), calibrated()
    known.step(6, soft_dots, Guesser(), grey, seeded(0))
    unknown.step(6, soft_dots, OnlyAnswers(), grey, seeded(0))
    assert torch.equal(weights(known), weights(unknown))


def test_a_gradient_that_is_not_there_is_refused() -> None:
    made = calibrated(feedback=FeedbackConfig(estimator_gradient="image"))
    with pytest.raises(ConfigError, match="guesser has no gradient"):
        made.step(6, soft_dots, OnlyAnswers(), grey, seeded(0))
    with pytest.raises(ConfigError, match="estimator_gradient='both'"):
        FeedbackConfig(estimator_gradient="both")


def test_the_generator_says_how_likely_what_it_tried_was() -> None:
    generator = adversary().generator
    latent = generator.draw(4, seeded(0))
    noise = torch.randn(4, generator.num_actions, generator=seeded(1))
    tried, plain = generator(latent, noise, 0.3), generator(latent)
    assert torch.allclose(tried.log_probability, -noise.square().sum(1) / 2, atol=1e-4)
    assert torch.equal(plain.log_probability, torch.zeros(4))
    assert not torch.equal(tried.unit, plain.unit)
    (slope,) = torch.autograd.grad(tried.log_probability[0], generator.view_head.bias)
    assert torch.allclose(slope, noise[0, -11:] / 0.3, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"mode": "noise", "learn_subject": True}])
@pytest.mark.parametrize("gradient", ["image", "score"])
def test_a_batch_in_parts_gives_the_step_of_the_whole_batch(settings, gradient) -> None:
    """Diversity and all other terms included: only rendering and judging are divided."""
    rows, ends = [], []
    for accumulate in (1, 4):
        made = adversary(FeedbackConfig(estimator_gradient=gradient), **settings)
        made.accumulate = accumulate
        made.calibrate(soft_dots, Guesser(), SourceSampler(bank(), 2), grey, 16, seeded(0))
        rows.append([step(made, number) for number in range(1, 3)])
        ends.append(weights(made))
    for whole, parts in zip(*rows, strict=True):
        assert parts == pytest.approx(whole, rel=1e-4, nan_ok=True)
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-5)  # Adam divides by norms


def test_no_more_than_a_part_is_rendered_at_a_time() -> None:
    made, counts = calibrated(), []
    made.accumulate = 3

    def counting(request: RenderRequest) -> RenderResult:
        counts.append(len(request))
        return soft_dots(request)

    metrics = made.step(6, counting, Guesser(), grey, seeded(1))
    assert sum(counts) == round(6 * metrics.valid)
    assert len(counts) > 1
    assert max(counts) <= 2


def test_in_bf16_the_estimator_alone_computes_roughly() -> None:
    """Answers differ by bf16's rounding, not more; rendering and losses see fp32."""
    seen: list[torch.dtype] = []

    class Watched(Guesser):
        def forward(self, images: torch.Tensor) -> Estimate:
            assert images.dtype == torch.float32
            estimate = super().forward(images)
            seen.append(estimate.joints.dtype)
            return estimate

    results = {}
    for precision in ("fp32", "bf16"):
        made = adversary()
        made.precision = precision
        made.calibrate(soft_dots, Watched(), SourceSampler(bank(), 2), grey, 16, seeded(0))
        metrics = made.step(6, soft_dots, Watched(), grey, seeded(1))
        assert all(p.dtype == torch.float32 for p in made.generator.parameters())
        results[precision] = (made.reference_mm, metrics.error_mm)
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2
    assert results["fp32"] != results["bf16"]
    assert results["bf16"] == pytest.approx(results["fp32"], rel=0.02)


def test_what_the_reference_gets_wrong_too_is_not_paid() -> None:
    def paid(reducible: float, reference: PoseEstimator) -> torch.Tensor:
        made = calibrated()
        made.feedback = FeedbackConfig(reducible=reducible, pay_ambiguous=True)
        made.reference = reference
        step(made, 1)
        _, payments = made.memory.draw(64, seeded(0))
        return payments

    whole = paid(0.0, Guesser())
    assert whole.max() > 0.1
    assert paid(1.0, Guesser()).max() <= 1e-5  # it knows no better than the one that is attacked
    assert paid(0.5, Guesser()).max() == pytest.approx(0.5 * float(whole.max()), abs=1e-5)
