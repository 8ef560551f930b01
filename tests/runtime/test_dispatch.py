import ray
from runtime_fakes import CountingActor

from posegen_ray.runtime.dispatch import Call, Replicas, carry_out


def test_unanswered_calls_stay_below_the_bound_and_answers_keep_their_order(ray_session):
    actor = ray.remote(CountingActor).options(num_cpus=0.1, max_concurrency=16).remote()
    ray.get(actor.peak.remote())
    calls = [Call(("ada",), "work", (number,)) for number in range(12)]
    answers = carry_out(calls, {("ada",): Replicas([actor], lambda i: actor)}, 2, 30, 2)
    assert answers == list(range(12))
    assert ray.get(actor.peak.remote()) == 2
