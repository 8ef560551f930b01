import torch
from generation_fakes import small_bank

from posegen_ray.body.rotation import about_axis, from_axis_angle
from posegen_ray.body.skeleton import JOINT
from posegen_ray.config import DiscriminatorConfig
from posegen_ray.generation.discriminator import PARTS, Discriminator, HistoryPool
from posegen_ray.generation.losses import discriminator_loss


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def judge() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(DiscriminatorConfig())


def test_each_part_sees_its_own_joints_only() -> None:
    discriminator = judge()
    rotations = small_bank().poses.rotations[:4]
    changed = rotations.clone()
    changed[:, JOINT["left_elbow"]] = about_axis(1, torch.full((4,), -2.0))
    moved = (discriminator(rotations) - discriminator(changed)).abs().amax(0) > 0
    expected = [name in ("left_arm", "body") for name in PARTS]
    assert moved.tolist() == expected


def test_heading_does_not_matter_but_falling_over_does() -> None:
    discriminator = judge()
    rotations = small_bank().poses.rotations[:4]
    turned, fallen = rotations.clone(), rotations.clone()
    turned[:, 0] = about_axis(1, torch.full((4,), 1.3)) @ turned[:, 0]
    fallen[:, 0] = about_axis(0, torch.full((4,), 1.3)) @ fallen[:, 0]
    torch.testing.assert_close(discriminator(turned), discriminator(rotations), atol=1e-5, rtol=0)
    assert (discriminator(fallen) - discriminator(rotations)).abs().max() > 1e-3


def test_learns_to_tell_real_poses_from_noise() -> None:
    discriminator = judge()
    real = small_bank().poses.rotations
    noise = torch.randn(len(real), 24, 3, generator=seeded(0)) * 0.4
    fake = real @ from_axis_angle(noise)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3)
    for _ in range(150):
        optimizer.zero_grad()
        discriminator_loss(discriminator, real, fake, discriminator.config).backward()
        optimizer.step()
    scores = discriminator(real).mean(1), discriminator(fake).mean(1)
    assert scores[0].median() > scores[1].median() + 0.3


def test_history_shows_old_fakes_and_never_grows_past_its_size() -> None:
    pool = HistoryPool(10)
    rng = seeded(0)
    for value in range(8):
        pool.mix(torch.full((4, 24, 3, 3), float(value)), 0.5, rng)
    assert len(pool) == 10
    assert set(pool.rotations[:, 0, 0, 0].tolist()) <= {5.0, 6.0, 7.0}
    mixed = pool.mix(torch.full((64, 24, 3, 3), 99.0), 0.5, rng)
    share = float((mixed[:, 0, 0, 0] == 99.0).float().mean())
    assert 0.3 < share < 0.7


def test_restored_history_goes_on_as_the_original() -> None:
    first, second = HistoryPool(10), HistoryPool(10)
    for value in range(4):
        first.mix(torch.full((4, 24, 3, 3), float(value)), 0.5, seeded(value))
    second.load_state_dict(first.state_dict())
    fakes = torch.full((4, 24, 3, 3), 7.0)
    assert torch.equal(first.mix(fakes, 0.5, seeded(9)), second.mix(fakes, 0.5, seeded(9)))
    assert torch.equal(first.rotations, second.rotations)


def test_fakes_that_are_not_finite_are_forgotten() -> None:
    pool = HistoryPool(10)
    fakes = torch.zeros(4, 24, 3, 3)
    fakes[1] = float("nan")
    pool.mix(fakes, 0.5, seeded(0))
    assert len(pool) == 3
