"""What workers have seen, handed on when their number changes.

Each worker keeps fakes for its discriminator (`HistoryPool`) and payments for its critic
(`CriticMemory`) of its own. With fewer workers the pasts of several are merged, with more each is
divided: nobody starts without a past, and none is counted twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# {"fakes": state of a HistoryPool, "payments": state of a CriticMemory}
History = Mapping[str, Mapping[str, Tensor]]


def history_of(
    histories: Sequence[History],  # of the workers that were, by rank
    rank: int,
    world_size: int,
    fakes: int,  # how many a pool holds
    payments: int,  # how many a memory holds
) -> History:
    """The past of a worker in a group of `world_size`. Its own, exactly, if the number is the same.

    Of merged pasts the newest stay, as many as there is room for.
    """
    before = len(histories)
    if before == world_size:
        return histories[rank]
    rows = [_rows(history) for history in histories]
    # of fewer: several whole pasts, of more: every so-manieth row of one
    mine = rows[rank % before :: world_size]
    sharers = len(range(rank % before, world_size, before))
    mine = [[part[rank // before :: sharers] for part in past] for past in mine]
    rotations, inputs, paid = (_by_age(parts) for parts in zip(*mine, strict=True))
    return {
        "fakes": {"rotations": rotations[-fakes:], "next": torch.tensor(0)},
        "payments": {"inputs": inputs[-payments:], "payments": paid[-payments:]},
    }


def _rows(history: History) -> list[Tensor]:
    """Fakes, inputs and payments, oldest first."""
    fakes, payments = history["fakes"], history["payments"]
    # the pool is a ring: the oldest is the next to be replaced
    rotations = fakes["rotations"].roll(-int(fakes["next"]), 0)
    return [rotations, payments["inputs"], payments["payments"]]


def _by_age(pasts: Sequence[Tensor]) -> Tensor:
    """Several pasts [N, ...] as one: rows that are equally old, counted from the end, are
    neighbours."""
    age = torch.cat([torch.arange(len(past) - 1, -1, -1) for past in pasts])
    return torch.cat(list(pasts))[age.argsort(descending=True, stable=True)]
