import ray
from runtime_fakes import CountingActor

from posegen_ray.config import RenderServerConfig
from posegen_ray.runtime.dispatch import Call, carry_out


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


def test_unanswered_calls_stay_below_the_bound_and_answers_keep_their_order(ray_session):
    actor = ray.remote(CountingActor).options(num_cpus=0.1, max_concurrency=16).remote()
    ray.get(actor.peak.remote())
    calls = [Call(("ada",), "work", (number,)) for number in range(12)]
    answers = carry_out(calls, {("ada",): Alone(actor)}, RenderServerConfig(max_in_flight=2))
    assert answers == list(range(12))
    assert ray.get(actor.peak.remote()) == 2
