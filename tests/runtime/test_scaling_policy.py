"""The scaling policy alone, driven by a simple model of clients and servers."""

import pytest

from posegen_ray.runtime.render_scaling import GroupLoad, ScalingPolicy

QUIET, PRESSED = GroupLoad(1, 0, 0), GroupLoad(1, 1, 3)


def counts(policy, loads, start=1):
    """How many servers there are after each look."""
    found, count = [], start
    for load in loads:
        count = policy.wanted(count, load)
        found.append(count)
    return found


def test_one_more_after_three_pressed_looks_up_to_the_bound():
    loads = [GroupLoad(1, 3, 9)] * 12
    assert counts(ScalingPolicy(1, 3, 10), loads) == [1, 1, 2, 2, 2, *[3] * 7]


def test_a_short_peak_changes_nothing():
    assert counts(ScalingPolicy(1, 3, 10), [PRESSED, PRESSED, QUIET] * 4) == [1] * 12


def test_unneeded_servers_go_one_by_one_but_not_below_the_least():
    policy = ScalingPolicy(2, 4, idle_s=3)
    assert counts(policy, [QUIET] * 9, start=4) == [4, 4, 3, 3, 3, 2, 2, 2, 2]


def test_one_busy_look_starts_the_patience_again():
    policy = ScalingPolicy(1, 2, idle_s=3)
    loads = [QUIET, QUIET, GroupLoad(1, 1, 0), QUIET, QUIET, QUIET]
    assert counts(policy, loads, start=2) == [2, 2, 2, 2, 2, 1]


@pytest.mark.parametrize("open_calls", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("duty", [0.05, 0.3, 0.6, 1.0])
def test_a_steady_load_finds_its_number_and_stays_there(open_calls, duty):
    """Clients that together keep so many calls open, for a part of the time."""
    policy, count, changes = ScalingPolicy(1, 6, idle_s=5), 1, []
    for look in range(300):
        working = min(open_calls, count)
        waiting = open_calls - working
        # the same pictures take less of the time when more servers share them
        busy = duty * working * min(1.0, 1.0 / max(working, 1) + 0.5)
        wanted = policy.wanted(count, GroupLoad(1.0, busy, duty * waiting))
        if wanted != count:
            changes.append(look)
        count = wanted
    assert 1 <= count <= 6
    assert not [look for look in changes if look > 100], "it swings"
