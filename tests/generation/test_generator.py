import math
from dataclasses import replace

import pytest
import torch
from generation_fakes import small_bank

from posegen_ray.body.rotation import geodesic_angle
from posegen_ray.config import ConditionConfig, GeneratorConfig, LightRangeConfig
from posegen_ray.errors import CheckpointError, ConfigError
from posegen_ray.generation.generator import Generator, GeneratorSampler
from posegen_ray.generation.proposal import (
    CAMERA_CHANNELS,
    Proposal,
    RealPoseSampler,
    asked_for,
    facing,
    wrap,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(**settings: object) -> Generator:
    torch.manual_seed(0)
    return Generator(GeneratorConfig(**settings), small_bank(), 3)  # type: ignore[arg-type]


def upset(generator: Generator) -> Generator:
    """Weights as bad as training could ever make them."""
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(30.0).add_(torch.randn(parameter.shape, generator=seeded(3)))
    return generator


@pytest.mark.parametrize("mode", ["residual", "noise"])
def test_proposals_are_rotations_and_follow_the_seed(mode: str) -> None:
    generator = make(mode=mode)
    first, again, other = (generator.sample(16, seeded(s)) for s in (1, 1, 2))
    rotations = first.poses.rotations
    eye = torch.eye(3).expand_as(rotations)
    torch.testing.assert_close(rotations @ rotations.transpose(-1, -2), eye, atol=1e-5, rtol=0)
    assert (torch.linalg.det(rotations) > 0.99).all()
    assert torch.equal(rotations, again.poses.rotations)
    assert torch.equal(first.view.focal, again.view.focal)
    assert not torch.equal(rotations, other.poses.rotations)


def test_untrained_generator_shows_the_cameras_of_the_prior() -> None:
    generator = make(candidates=1)
    made = generator.sample(4000, seeded(0))
    prior, _ = RealPoseSampler(generator.bank, generator.config.camera, 3)(4000, seeded(1))
    for name in ("elevation", "roll", "distance", "focal"):
        a, b = getattr(made.view, name).detach(), getattr(prior.view, name)
        quantiles = torch.linspace(0.1, 0.9, 9)
        gap = (a.quantile(quantiles) - b.quantile(quantiles)).abs().max()
        assert gap < 0.06 * float(b.max() - b.min()), name
    turn = wrap(made.view.azimuth - facing(made.poses.rotations)).detach()
    assert (torch.histc(turn, 8) / 4000 - 1 / 8).abs().max() < 0.03


def test_no_weights_can_leave_the_cameras_range_or_the_residuals_bounds() -> None:
    generator = upset(make(recombine=0.0))
    latent = generator.draw(256, seeded(0))
    made = generator(latent)
    camera = generator.config.camera
    view = made.proposal.view
    elevation = view.elevation.rad2deg()
    assert elevation.min() >= camera.elevation_low - 0.1
    assert elevation.max() <= camera.elevation_high + 0.1
    assert view.distance.min() >= camera.distance_low - 1e-4
    assert view.distance.max() <= camera.distance_high + 1e-4
    turned = geodesic_angle(latent.base.rotations, made.proposal.poses.rotations)
    assert (turned <= generator.bound.norm(dim=1) + 1e-3).all()
    assert turned[:, [22, 23]].max() < 2e-3  # hands never move in the bank


def test_residual_mode_turns_only_a_little_and_recombines_its_share() -> None:
    generator = make(recombine=0.5, tumble=0.0)
    bank = generator.bank.poses.rotations
    base = generator.draw(150, seeded(0)).base.rotations
    gaps = (base[:, None] - bank[None]).abs().amax((2, 3, 4)).amin(1)
    assert 0.35 < float((gaps > 0).float().mean()) < 0.55  # a donor may be the pose itself


@pytest.mark.parametrize("mode", ["residual", "noise"])
def test_every_weight_gets_a_gradient(mode: str) -> None:
    generator = make(mode=mode)
    made = generator(generator.draw(8, seeded(0)))
    poses, view = made.proposal.poses, made.proposal.view
    loss = poses.rotations[:, :, 0, 1].sum() + view.azimuth.sum() + view.elevation.sum()
    (loss + view.distance.sum()).backward()
    for name, parameter in generator.named_parameters():
        if name == "subject_logits" or name.startswith("critic."):
            continue
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_bodies_that_lie_on_their_back_keep_finite_gradients() -> None:
    bank = small_bank()
    lying = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
    bank.poses.rotations[:, 0] = lying.mT  # the chest points straight up
    generator = Generator(GeneratorConfig(), bank, 1)
    proposal = generator.sample(8, seeded(0))
    proposal.view.azimuth.sum().backward()
    assert generator.view_head.weight.grad is not None
    assert torch.isfinite(generator.view_head.weight.grad).all()


def test_subjects_are_equally_likely_until_learned() -> None:
    generator = make(learn_subject=False, candidates=1)
    with torch.no_grad():
        generator.subject_logits.copy_(torch.tensor([5.0, 0.0, 0.0]))
    share = torch.bincount(generator.sample(3000, seeded(0)).subjects) / 3000
    assert (share - 1 / 3).abs().max() < 0.04
    generator.config.learn_subject = True
    share = torch.bincount(generator.sample(3000, seeded(0)).subjects, minlength=3) / 3000
    expected = torch.softmax(torch.tensor([5.0, 0.0, 0.0]), 0)
    assert (share - expected).abs().max() < 0.02


def test_a_trained_generator_can_be_asked_for_a_part() -> None:
    """The same weights: what it does with a pose and a view does not depend on what else is asked
    for."""
    whole = make(candidates=1, camera_shift=0.0)
    asked = ConditionConfig(clips=["stroll"], azimuth_low=-180, azimuth_high=-90, elevation_high=0)
    part = make(candidates=1, condition=asked, camera_shift=0.0)
    for generator in (whole, part):
        with torch.no_grad():
            for weight in generator.parameters():
                weight.copy_(0.1 * torch.randn(weight.shape, generator=seeded(weight.numel())))
    latent = part.draw(100, seeded(0))
    made = part(latent).proposal
    seen = wrap(made.view.azimuth - facing(latent.base.rotations))
    assert (seen < -math.pi / 2 + 1e-2).all()
    assert (made.view.elevation < 1e-3).all()
    placed = asked_for(latent.unit.clamp(1e-3, 1 - 1e-3), asked, part.config.camera)
    again = whole(replace(latent, unit=placed)).proposal
    torch.testing.assert_close(again.poses.rotations, made.poses.rotations, atol=1e-3, rtol=0)
    torch.testing.assert_close(again.view.elevation, made.view.elevation, atol=1e-3, rtol=0)


def test_weights_of_another_kind_of_generator_are_refused() -> None:
    with pytest.raises(CheckpointError, match="do not fit"):
        make().load_weights(make(hidden=8).state_dict())


def test_light_is_proposed_and_moved_like_the_camera() -> None:
    generator = make(candidates=1, camera_shift=3.0)
    before = generator.sample(2000, seeded(0)).lighting
    turn, contrast, exposure = before.light.detach().unbind(1)
    assert turn.abs().max() <= math.pi
    assert float(turn.std()) == pytest.approx(2 * math.pi / 12**0.5, rel=0.05)
    assert float(contrast.min()) == pytest.approx(0.4, abs=0.02)
    assert float(contrast.max()) == pytest.approx(1.5, abs=0.02)
    assert float(exposure.log().mean()) == pytest.approx(math.log(0.75 * 1.2) / 2, abs=0.02)
    with torch.no_grad():
        generator.view_head.bias[CAMERA_CHANNELS + 3] = -4.0  # dark backgrounds
    after = generator.sample(2000, seeded(0)).lighting
    assert after.background.median() < 0.75 < before.background.median()
    assert after.background.min() >= 0.7 - 1e-4


@pytest.mark.parametrize("widest", [180.0, 90.0])
def test_light_turns_all_the_way_round_or_stays_in_its_range(widest: float) -> None:
    generator = make(candidates=1, camera_shift=1.0, light=LightRangeConfig(turn=widest))
    latent = generator.draw(200, seeded(0))
    before = generator(latent).proposal.lighting.light[:, 0]
    with torch.no_grad():
        generator.view_head.bias[CAMERA_CHANNELS] = 5.0  # as far as it may go
    after = generator(latent).proposal.lighting.light[:, 0]
    assert after.abs().max() <= math.radians(widest) + 1e-4
    if widest == 180:
        torch.testing.assert_close(
            wrap(after - before), torch.full((200,), math.pi / 2), atol=0.01, rtol=0
        )
        assert (after < before).any()  # it went past the end
    else:
        assert (after > before).all()


def test_sampler_names_its_poses_generated_and_keeps_no_graph() -> None:
    proposal, names = GeneratorSampler(make())(4, seeded(0))
    assert names == ("generated",) * 4
    assert not proposal.poses.rotations.requires_grad
    assert proposal.view.framing.shape == (4, 2)
    assert CAMERA_CHANNELS == 7


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="mode='dream'"):
        GeneratorConfig(mode="dream")


def test_critic_chooses_among_candidates_what_it_expects_to_be_paid_for() -> None:
    generator = make(candidates=8, temperature=0.02)

    def high(inputs: torch.Tensor) -> torch.Tensor:
        return inputs[:, 38]  # how far gravity pulls away from the camera: the sine of elevation

    before = generator.sample(400, seeded(0)).view.elevation.mean()
    generator.critic.forward = high  # type: ignore[method-assign]
    after = generator.sample(400, seeded(0)).view.elevation
    assert after.mean() > before + 0.4
    assert after.max().rad2deg() <= generator.config.camera.elevation_high + 0.1


def test_critic_does_not_choose_whom_to_show() -> None:
    generator = make(candidates=8, temperature=0.02)
    generator.critic.forward = lambda inputs: inputs[:, -3]  # type: ignore[method-assign]
    share = torch.bincount(generator.sample(600, seeded(0)).subjects, minlength=3) / 600
    assert (share - 1 / 3).abs().max() < 0.06


def test_screen_keeps_impossible_candidates_out_even_before_the_critic_has_learned() -> None:
    torch.manual_seed(0)
    config = GeneratorConfig(candidates=16)
    generator = Generator(config, small_bank(), 1, lambda p: p.view.elevation > 0.3)
    free = Generator(config, small_bank(), 1).sample(200, seeded(0)).view.elevation
    assert (free < 0.3).float().mean() > 0.3
    assert (generator.sample(200, seeded(0)).view.elevation > 0.3).all()
    nothing = Generator(config, small_bank(), 1, lambda p: torch.zeros(len(p), dtype=torch.bool))
    assert len(nothing.sample(4, seeded(0))) == 4


def test_the_choice_follows_the_softmax_of_those_that_pass() -> None:
    torch.manual_seed(0)
    config = GeneratorConfig(candidates=6, temperature=0.5)
    # a proposal's payment is its roll, and the screen looks at something else
    generator = Generator(config, small_bank(), 1, lambda p: p.view.elevation > 0.0)
    generator.expected_payment = lambda p: 3.0 * p.view.roll  # type: ignore[method-assign]
    chosen = generator.sample(2500, seeded(1)).view.roll.mean()
    with torch.no_grad():
        prior = generator(generator.draw_prior(15000, seeded(2))).proposal.view
    roll, passes = prior.roll.view(-1, 6), (prior.elevation > 0.0).view(-1, 6)
    passes = passes | ~passes.any(1, keepdim=True)
    chance = torch.softmax((6.0 * roll).masked_fill(~passes, -1e9), 1)
    expected = (chance * roll).sum(1).mean()
    assert abs(chosen - expected) < 0.05 * prior.roll.std()
    assert chosen - prior.roll.mean() > 0.3 * prior.roll.std()


def test_only_few_candidates_are_screened() -> None:
    seen = []

    def screen(proposal: Proposal) -> torch.Tensor:
        seen.append(len(proposal))
        return torch.ones(len(proposal), dtype=torch.bool)

    torch.manual_seed(0)
    Generator(GeneratorConfig(candidates=64), small_bank(), 1, screen).sample(8, seeded(0))
    assert seen == [32]
