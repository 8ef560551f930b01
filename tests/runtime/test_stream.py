import os
import signal
import threading
import time

import numpy as np
import pytest
import ray
import torch
from runtime_draws import JitterDraw, SlowDraw, make_samples

from posegen_ray.config import RoleResources, StreamConfig
from posegen_ray.errors import ResourceError, TrainingError
from posegen_ray.local import draw_plan
from posegen_ray.records import concatenate_samples
from posegen_ray.runtime.columns import from_columns, to_columns
from posegen_ray.runtime.generator_store import GeneratorStore
from posegen_ray.runtime.stream import sample_stream

PLAN = draw_plan(3, range(2), batches_per_round=3, batch_size=2)


def state(version):
    return {"weight": torch.full((2,), float(version))}


@pytest.fixture
def store(ray_session, tmp_path):
    return GeneratorStore(tmp_path / "generator", keep=2)


def assert_equal(one, other):
    first, second = to_columns(one), to_columns(other)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_columns_round_trip():
    samples = make_samples(state(1), [5, 6, 7])
    assert_equal(from_columns(to_columns(samples)), samples)


def test_store_gives_exactly_the_wanted_version(store):
    store.publish(0, state(0))
    store.publish(1, state(1))
    assert store.wait(0, 1)["weight"][0] == 0
    assert store.wait(1, 1)["weight"][0] == 1
    later = threading.Timer(0.3, store.publish, (2, state(2)))
    later.start()
    assert store.wait(2, 20)["weight"][0] == 2
    later.join()
    with pytest.raises(TrainingError, match=r"version 0 is gone; the store keeps \[1, 2\]"):
        store.wait(0, 1)
    with pytest.raises(TrainingError, match=r"version 9 was not published within 0.2 s"):
        store.wait(9, 0.2)


def test_a_version_published_again_replaces_all_later_ones(store):
    for version in (6, 7):
        store.publish(version, state(version))
    store.publish(2, state(2))
    assert store.versions() == [2]
    assert store.wait(2, 1)["weight"][0] == 2


def test_store_survives_its_process_until_cleared(store, tmp_path):
    store.publish(4, state(4))
    ray.kill(store._actor, no_restart=False)
    assert store.wait(4, 20)["weight"][0] == 4
    assert GeneratorStore(tmp_path / "generator", clear=True).versions() == []


def test_stream_keeps_order_and_versions_whatever_the_timing(store):
    config = StreamConfig(resources=RoleResources(0.25), actors=2, wait_s=200)
    store.publish(0, state(0))
    stream = sample_stream(PLAN, JitterDraw(), store, config)
    drawn = []
    for number, batch in enumerate(PLAN):
        if number == 3:  # round 1 was not published yet: nothing of it can have been drawn
            time.sleep(0.3)
            store.publish(1, state(1))
        drawn.append(next(stream))
        assert_equal(drawn[-1], make_samples(state(batch.round), batch.seeds))
    assert next(stream, None) is None
    assert len(concatenate_samples(drawn)) == 12


def test_stream_reports_a_version_that_never_came(store):
    config = StreamConfig(resources=RoleResources(0.25), wait_s=0.5)
    with pytest.raises(TrainingError, match="version 0 was not published"):
        next(sample_stream(PLAN, JitterDraw(), store, config))


def test_stream_without_free_cpus_says_so_instead_of_hanging(store):
    config = StreamConfig(resources=RoleResources(64))
    with pytest.raises(ResourceError, match=r"needs 64 logical CPUs .* are free"):
        next(sample_stream(PLAN, JitterDraw(), store, config))


def test_stream_that_hangs_is_an_error_not_a_wait(store):
    store.publish(0, state(0))
    config = StreamConfig(resources=RoleResources(0.25), deadline_s=0.5)
    with pytest.raises(ResourceError, match=r"gave no batch within 0.5 s"):
        next(sample_stream(PLAN, SlowDraw(), store, config))


def test_store_that_hangs_is_an_error_not_a_wait(ray_session, tmp_path):
    store = GeneratorStore(tmp_path / "generator", patience_s=1)
    process = ray.get(store._actor.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(process, signal.SIGSTOP)
    try:
        for ask in (lambda: store.publish(0, state(0)), lambda: store.wait(0, 0.2), store.versions):
            with pytest.raises(TrainingError, match=r"store did not answer within 1(\.2)? s"):
                ask()
    finally:
        os.kill(process, signal.SIGCONT)


def test_seeds_depend_on_round_and_place_alone():
    resumed = draw_plan(3, range(1, 2), batches_per_round=3, batch_size=2)
    assert resumed == PLAN[3:]
    halves = [draw_plan(3, range(2), 3, 2, rank, 2) for rank in (0, 1)]
    woven = [(a.seeds[0], b.seeds[0]) for a, b in zip(*halves, strict=True)]
    assert woven == [batch.seeds for batch in PLAN]
    assert draw_plan(4, range(1), 1, 2) != PLAN[:1]
