import math
import time

import pytest
import ray
from runtime_fakes import CountingActor

from posegen_ray.config import RenderServerConfig
from posegen_ray.runtime import dispatch
from posegen_ray.runtime.dispatch import Call, carry_out
from posegen_ray.runtime.render_server import ServerLoad


class Alone:
    """A team of one that never changes."""

    def __init__(self, actor):
        self.servers = {0: actor}

    def name(self, number):
        return "alone"

    def replace(self, number, failed):
        raise AssertionError("nothing failed")

    def follow(self):
        pass


def values(answers):
    return {answer.call: answer.value for answer in answers}


def test_unanswered_calls_stay_below_the_bound_and_all_are_answered(ray_session):
    actor = ray.remote(CountingActor).options(num_cpus=0.1, max_concurrency=16).remote()
    ray.get(actor.peak.remote())
    calls = [Call(("ada",), "work", (number,)) for number in range(12)]
    answers = carry_out(calls, {("ada",): Alone(actor)}, RenderServerConfig(max_in_flight=2))
    assert values(answers) == {number: number for number in range(12)}
    assert ray.get(actor.peak.remote()) == 2


class SleepyActor:
    def work(self, seconds):
        time.sleep(seconds)
        return seconds

    def load(self):
        return ServerLoad(0, 0, 0.0, 0.0, 0.0, 0.0, 0)


def test_an_answer_does_not_wait_for_another(ray_session):
    actor = ray.remote(SleepyActor).options(num_cpus=0.1, max_concurrency=4).remote()
    ray.get(actor.load.remote())
    calls = [Call(("ada",), "work", (seconds,)) for seconds in (1.0, 0.1)]
    start = time.monotonic()
    answers = carry_out(calls, {("ada",): Alone(actor)}, RenderServerConfig())
    assert next(answers) == (1, 0.1, 0)
    assert time.monotonic() - start < 0.9
    assert list(answers) == [(0, 1.0, 0)]
    ray.kill(actor)


class ForgetfulActor:
    """Never answers its first call, and has nothing to do all the same."""

    def __init__(self):
        self._calls = 0

    def work(self, number):
        self._calls += 1
        if self._calls == 1:
            time.sleep(3600)
        return number

    def load(self):
        return ServerLoad(0, 0, 0.0, 0.0, 0.0, 0.0, 0)


def test_call_whose_answer_is_lost_is_repeated(ray_session, monkeypatch):
    monkeypatch.setattr(dispatch, "_LATE_S", 0.3)
    monkeypatch.setattr(dispatch, "_LOOK_S", 0.1)
    actor = ray.remote(ForgetfulActor).options(num_cpus=0.1, max_concurrency=4).remote()
    calls = [Call(("ada",), "work", (number,)) for number in range(3)]
    answers = carry_out(calls, {("ada",): Alone(actor)}, RenderServerConfig())
    assert values(answers) == {0: 0, 1: 1, 2: 2}
    ray.kill(actor)


class Numbered:
    """Answers at once with its number."""

    def __init__(self, number):
        self.work, self.number = self, number

    def remote(self):
        return ray.put(self.number)


@pytest.mark.parametrize(("count", "first", "wanted"), [(3, 0, 0), (3, 4, 1), (1, 7, 0)])
def test_of_equally_busy_servers_the_preferred_one_is_asked(ray_session, count, first, wanted):
    team = Alone(None)
    team.servers = {number: Numbered(number) for number in range(count)}
    call = Call(("ada",), "work", (), first)
    assert list(carry_out([call], {("ada",): team}, RenderServerConfig())) == [(0, wanted, wanted)]


def test_keepers_are_asked_as_long_as_they_are_there(ray_session):
    """However busy they are; calls behind theirs do not wait."""
    team = Alone(None)
    team.servers = {number: Numbered(number) for number in range(2)}
    keepers = [1, 1, 1, 0, 7]
    calls = [Call(("ada",), "work", (), 0, keeper) for keeper in keepers]
    answers = list(carry_out(calls, {("ada",): team}, RenderServerConfig(max_in_flight=1)))
    assert all(answer.value == answer.server for answer in answers)
    asked = {answer.call: answer.server for answer in answers}
    assert [asked[number] for number in range(4)] == keepers[:4]
    assert asked[4] in (0, 1)


class NanActor:
    """Answers NaN so many times to each number, then the number."""

    def __init__(self, times):
        self._left = dict(times)

    def work(self, number):
        self._left[number] -= 1
        return math.nan if self._left[number] >= 0 else number

    def load(self):
        return ServerLoad(0, 0, 0.0, 0.0, 0.0, 0.0, 0)


class Replaced(Alone):
    """Counts replacements; its server stays what it is."""

    def __init__(self, actor):
        super().__init__(actor)
        self.replacements = 0

    def replace(self, number, failed):
        self.replacements += 1
        return True


def test_nan_that_comes_again_is_handed_on(ray_session):
    """As without servers: a training skips the step and counts it."""
    actor = ray.remote(NanActor).options(num_cpus=0.1).remote({0: 0, 1: 1, 2: 9})
    ray.get(actor.load.remote())
    team = Replaced(actor)
    sound = math.isfinite
    calls = [Call(("ada",), "work", (number,), sound=sound) for number in range(3)]
    answers = values(carry_out(calls, {("ada",): team}, RenderServerConfig(max_attempts=4)))
    assert (answers[0], answers[1]) == (0, 1)
    assert math.isnan(answers[2])
    assert team.replacements == 2  # the servers that were the first to answer NaN
    ray.kill(actor)
