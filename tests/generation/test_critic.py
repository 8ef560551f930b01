import torch
from generation_fakes import small_bank

from posegen_ray.body.rotation import about_axis
from posegen_ray.config import CameraRangeConfig, LightRangeConfig
from posegen_ray.generation.critic import Critic, CriticMemory, features
from posegen_ray.generation.lighting import Lighting
from posegen_ray.generation.proposal import Proposal, RandomSampler, View
from posegen_ray.records import PoseBatch


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def proposals(count: int, seed: int = 0) -> Proposal:
    return RandomSampler(small_bank(), CameraRangeConfig(), 1)(count, seeded(seed))[0]


def test_person_camera_and_light_turned_together_look_the_same() -> None:
    ranges = CameraRangeConfig(), LightRangeConfig()
    sampler = RandomSampler(small_bank(), ranges[0], 1, light=ranges[1])
    proposal = sampler(8, seeded(0))[0]
    turn = torch.full((8,), 2.1)
    rotations = proposal.poses.rotations.clone()
    rotations[:, 0] = about_axis(1, turn) @ rotations[:, 0]
    view, lighting = proposal.view, proposal.lighting
    turned = Proposal(
        PoseBatch(rotations, proposal.poses.translation),
        View(
            view.azimuth + turn,
            view.elevation,
            view.roll,
            view.distance,
            view.focal,
            view.framing,
        ),
        proposal.subjects,
        Lighting(lighting.light + turn[:, None] * torch.eye(3)[0], lighting.background),
    )
    torch.testing.assert_close(features(turned, 1), features(proposal, 1), atol=1e-4, rtol=0)


def test_critic_expects_nothing_until_it_has_learned_what_is_paid() -> None:
    torch.manual_seed(0)
    critic = Critic(1)
    inputs = features(proposals(256), 1)
    assert critic(inputs).abs().max() == 0
    paid = inputs[:, 0].clone()  # say, a shoulder far to the side is paid for
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        (critic(inputs) - paid).square().mean().backward()
        optimizer.step()
    unseen = features(proposals(128, seed=1), 1)
    error = (critic(unseen) - unseen[:, 0]).square().mean()
    assert error < 0.3 * unseen[:, 0].var()


def test_memory_keeps_the_latest_finite_payments() -> None:
    memory, again = CriticMemory(10, 1), CriticMemory(10, 1)
    inputs = features(proposals(6), 1)
    memory.add(inputs, torch.arange(6.0))
    memory.add(inputs, torch.arange(6.0, 12.0))
    assert memory.payments.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    memory.add(inputs[:1], torch.tensor([float("nan")]))
    assert memory.payments[-1] == 11
    again.load_state_dict(memory.state_dict())
    assert torch.equal(again.draw(5, seeded(0))[0], memory.draw(5, seeded(0))[0])
