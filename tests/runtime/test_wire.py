"""A server's renderer: pictures that are kept save work and change nothing."""

import torch
from runtime_fakes import SineRenderer, random_request

from posegen_ray.records import RenderRequest, RenderResult
from posegen_ray.runtime.wire import TensorRenderer, to_arrays


class Counting(SineRenderer):
    calls = 0

    def __call__(self, request: RenderRequest) -> RenderResult:
        self.calls += 1
        return super().__call__(request)


def test_a_kept_picture_is_not_rendered_again_and_gives_the_same_gradient(tmp_path):
    counting = Counting(tmp_path)
    renderer = TensorRenderer(counting)
    request = to_arrays(random_request(("ada", "ben")))
    picture = renderer.render_arrays(request)
    weight = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0)).numpy()
    anew = renderer.vjp_arrays(request, weight)
    assert counting.calls == 2
    assert (renderer.render_arrays(request, keep=True) == picture).all()
    kept = renderer.vjp_arrays(request, weight)
    assert counting.calls == 3
    assert all((a == b).all() for a, b in zip(anew.parts(), kept.parts(), strict=True))
    renderer.vjp_arrays(request, weight)  # a repeated call finds nothing kept, and is answered
    assert counting.calls == 4


def test_another_request_is_never_mistaken_for_the_kept_one(tmp_path):
    renderer = TensorRenderer(SineRenderer(tmp_path))
    first, second = (to_arrays(random_request(("ada",), seed=seed)) for seed in (0, 1))
    weight = renderer.render_arrays(first, keep=True)
    expected = TensorRenderer(SineRenderer(tmp_path)).vjp_arrays(second, weight)
    found = renderer.vjp_arrays(second, weight)
    assert all((a == b).all() for a, b in zip(expected.parts(), found.parts(), strict=True))
    assert to_arrays(random_request(("ben",))).digest() != first.digest()


def test_only_the_latest_calls_are_kept(tmp_path):
    counting = Counting(tmp_path)
    renderer = TensorRenderer(counting, most_kept=3)
    requests = [to_arrays(random_request(("ada",), seed=seed)) for seed in range(7)]
    pictures = [renderer.render_arrays(request, keep=True) for request in requests]
    assert counting.calls == 7
    for request, picture in zip(reversed(requests), reversed(pictures), strict=True):
        renderer.vjp_arrays(request, picture)
    assert counting.calls == 7 + 4
