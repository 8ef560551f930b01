"""A search for valid images that finds none ends with what was in the way."""

from __future__ import annotations

import pytest

from posegen_ray.errors import DataError
from posegen_ray.studio import Patience


def test_a_search_ends_when_nothing_was_found_for_long():
    patience = Patience("generated")
    patience.note(300, 0, {"drawn": 2400, "valid": 0, "in_frame": 2400})
    patience.note(300, 1, {"drawn": 2400, "valid": 1, "in_frame": 2399})  # found one: start again
    patience.note(399, 0, {"drawn": 3192, "valid": 3, "absent": 3, "in_frame": 3189})
    message = r"last 400 tries gave no generated image .*\(in_frame 3196, absent 4 of 3200 propos"
    with pytest.raises(DataError, match=message):
        patience.note(1, 0, {"drawn": 8, "valid": 1, "absent": 1, "in_frame": 7})


def test_it_ends_also_where_nobody_counts_the_reasons():
    with pytest.raises(DataError, match=r"no wild test image that could be used\."):
        Patience("wild test").note(400, 0, {})
