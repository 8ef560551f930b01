import pytest

from posegen_ray.errors import SubjectError
from posegen_ray.runtime.subject_cache import SubjectCache


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_least_recently_used_goes_first_and_never_one_too_many_is_loaded(limit):
    alive = []

    class Person:
        def __init__(self, name):
            assert len(alive) < limit
            alive.append(name)
            self.name = name

        def __del__(self):
            alive.remove(self.name)

    cache = SubjectCache(Person, limit)
    used = []
    for name in "abacabadcbabcdeedcab":
        known = name in used[-limit:]
        loads = cache.loads
        assert cache.get(name).name == name
        assert cache.loads == loads + (not known)
        used = [other for other in used if other != name] + [name]
        assert list(cache.loaded) == used[-limit:]
    assert cache.loads - cache.evictions == len(cache.loaded) == len(alive)


def test_a_subject_that_cannot_be_loaded_says_why_each_time_and_spoils_nothing():
    def load(name):
        if name == "ghost":
            raise SubjectError("gone", "")
        assert cache.loading_s > 0
        return name

    cache = SubjectCache(load, 2)
    cache.get("ada")
    for _ in range(2):
        with pytest.raises(SubjectError, match="gone"):
            cache.get("ghost")
    assert cache.loading_s == 0
    assert cache.loaded == ("ada",)
    assert (cache.loads, cache.evictions) == (1, 0)
    assert cache.load_s > 0
