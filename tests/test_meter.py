import pickle
import time

import numpy as np
import pytest

from posegen_ray.meter import CallMeter


def test_quantiles_and_rate_are_those_since_the_last_reading():
    meter = CallMeter()
    times = np.random.default_rng(0).permutation(np.arange(1, 101)) / 1000
    for seconds in times:
        meter.add(4, seconds)
    time.sleep(0.05)
    read = pickle.loads(pickle.dumps(meter)).read()
    assert read["latency_p50_ms"] == pytest.approx(50.5)
    assert read["latency_p99_ms"] == pytest.approx(99.01)
    assert 400 < read["images_per_s"] <= 400 / 0.05
    meter.read()
    assert meter.read() == {}
