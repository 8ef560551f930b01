import pytest
import torch

from posegen_ray.generation.critic import CriticMemory, feature_count
from posegen_ray.generation.discriminator import HistoryPool
from posegen_ray.generation.histories import history_of

ROOM = {"fakes": 8, "payments": 10}


def history(worker: int, count: int) -> dict:
    """A worker's past; its rows are numbered by age: worker 2's third is 203."""
    names = torch.arange(count) + 100.0 * (worker + 1)
    pool, memory = HistoryPool(ROOM["fakes"]), CriticMemory(ROOM["payments"], 2)
    for name in names:
        pool._push(torch.full((1, 24, 3, 3), float(name)))
        memory.add(torch.full((1, feature_count(2)), float(name)), name[None])
    return {"fakes": pool.state_dict(), "payments": memory.state_dict()}


def names(past: dict) -> tuple[list[int], list[int]]:
    """Fakes and payments, oldest first."""
    fakes = past["fakes"]
    rows = fakes["rotations"][:, 0, 0, 0].roll(-int(fakes["next"]), 0).int().tolist()
    payments = past["payments"]["payments"].int().tolist()
    assert past["payments"]["inputs"][:, 0].int().tolist() == payments
    return rows, payments


def test_the_same_number_of_workers_keep_their_own():
    pasts = [history(0, 3), history(1, 12)]
    assert all(history_of(pasts, rank, 2, **ROOM) is pasts[rank] for rank in range(2))


def test_two_become_one_that_has_seen_the_newest_of_both():
    merged = names(history_of([history(0, 12), history(1, 12)], 0, 1, **ROOM))
    assert merged[0] == [108, 208, 109, 209, 110, 210, 111, 211]
    assert merged[1] == [107, 207, 108, 208, 109, 209, 110, 210, 111, 211]
    assert names(history_of([history(0, 0), history(1, 2)], 0, 1, **ROOM))[0] == [200, 201]


def test_one_becomes_two_that_share_its_past():
    pasts = [names(history_of([history(0, 12)], rank, 2, **ROOM)) for rank in range(2)]
    assert pasts[0][0] == [104, 106, 108, 110]
    assert pasts[1][0] == [105, 107, 109, 111]
    assert pasts[0][1] == [102, 104, 106, 108, 110]


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (4, 2), (2, 5), (1, 4), (5, 1)])
def test_nothing_is_lost_or_counted_twice(before, after):
    pasts = [history(worker, 2) for worker in range(before)]
    room = {"fakes": 100, "payments": 100}
    shared = [history_of(pasts, rank, after, **room) for rank in range(after)]
    for kind in range(2):
        held = sorted(name for past in shared for name in names(past)[kind])
        assert held == sorted(name for past in pasts for name in names(past)[kind])
