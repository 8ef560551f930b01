import threading
import time

import pytest

from posegen_ray.runtime.turnstile import Turnstile


def test_one_at_a_time_and_the_time_is_accounted_for():
    gate, inside, peak = Turnstile(), [], []

    def call():
        with gate.turn():
            inside.append(1)
            peak.append(len(inside))
            time.sleep(0.1)
            inside.pop()

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    time.sleep(0.05)
    assert gate.waiting == 2
    assert 0 < gate.present_s < 0.1
    for caller in callers:
        caller.join()
    busy, waited = gate.totals()
    assert max(peak) == 1
    assert busy == pytest.approx(0.3, abs=0.05)
    assert waited == pytest.approx(0.1 + 0.2, abs=0.05)
    assert (gate.waiting, gate.present_s) == (0, 0)


def test_present_call_counts_before_it_ends():
    gate = Turnstile()
    with gate.turn():
        time.sleep(0.05)
        assert gate.totals()[0] >= 0.05


def test_a_failed_call_lets_the_next_one_through():
    gate = Turnstile()
    with pytest.raises(ValueError, match="bad"), gate.turn():
        raise ValueError("bad")
    with gate.turn():
        assert gate.present_s > 0
