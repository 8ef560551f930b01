"""Bodies that turn as a whole, and what a generator may be kept from learning."""

import math

import pytest
import torch

from posegen_ray.body.rotation import from_axis_angle, to_axis_angle
from posegen_ray.config import GeneratorConfig
from posegen_ray.errors import ConfigError
from posegen_ray.generation.generator import Generator
from posegen_ray.generation.proposal import PoseBank, tumble
from posegen_ray.records import PoseBatch


def poses(count: int) -> torch.Tensor:
    stream = torch.Generator().manual_seed(0)
    return from_axis_angle(0.3 * torch.randn(count, 24, 3, generator=stream))


def test_that_share_of_bodies_turns_about_a_level_axis_and_no_joint_bends():
    before = poses(4000)
    after = tumble(before, 0.25, torch.Generator().manual_seed(1))
    assert torch.equal(after[:, 1:], before[:, 1:])
    turn = to_axis_angle(after[:, 0] @ before[:, 0].transpose(-1, -2))
    angle = turn.norm(dim=-1)
    turned = angle > 1e-3
    assert turned.float().mean() == pytest.approx(0.25, abs=0.03)
    assert (turn[:, 1].abs() < 1e-3 * (1 + angle)).all()  # the axis lies level
    assert angle[turned].mean() == pytest.approx(math.pi / 2, abs=0.1)  # uniform up to half a turn
    assert angle.max() <= math.pi + 1e-3


def test_no_share_takes_nothing_from_the_stream():
    stream = torch.Generator().manual_seed(2)
    state = stream.get_state()
    before = poses(3)
    assert tumble(before, 0.0, stream) is before
    assert torch.equal(stream.get_state(), state)


@pytest.mark.parametrize(
    ("learns", "still"),
    [
        (["pose"], ("view", "lighting")),
        (["camera"], ("poses", "lighting")),
        (["camera", "light"], ("poses",)),
        (["pose", "camera"], ("lighting",)),
    ],
)
def test_what_is_not_to_be_learned_stays_as_its_prior_draws_it(learns, still):
    batch, frames = PoseBatch(poses(50), torch.zeros(50, 3)), torch.arange(50)
    bank = PoseBank(batch, torch.zeros_like(frames), frames, ("clip",))
    config = GeneratorConfig(learns=learns, candidates=8, temperature=0.01)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(config, bank, 2)
        before = made(generator)
        for parameter in generator.parameters():  # as if it had learned a lot
            torch.nn.init.normal_(parameter, std=0.3)
    after = made(generator)
    for part in before:
        assert torch.equal(before[part], after[part]) == (part in still), part


@pytest.mark.parametrize("learns", [[], ["pose", "hair"]])
def test_nothing_or_something_unknown_cannot_be_learned(learns):
    with pytest.raises(ConfigError, match=r"generator\.learns"):
        GeneratorConfig(learns=learns)


def made(generator: Generator) -> dict[str, torch.Tensor]:
    proposal = generator.sample(16, torch.Generator().manual_seed(3))
    view = proposal.view
    return {
        "poses": proposal.poses.rotations.detach(),
        "view": torch.stack([view.elevation, view.distance, view.focal], 1).detach(),
        "lighting": proposal.lighting.light.detach(),
    }
