"""Pictures travel without what is empty, and come back as they were."""

import numpy as np
import pytest

from posegen_ray.runtime.pixels import DrawnPixels, joined


def pictures(count: int = 5, seed: int = 0) -> np.ndarray:
    """Mostly empty, one of them wholly."""
    draw = np.random.default_rng(seed)
    values = draw.standard_normal((count, 6, 7, 4)).astype(np.float32)
    values[draw.random((count, 6, 7)) < 0.8] = 0
    values[1] = 0
    return values


def test_pictures_come_back_as_they_were():
    sent = pictures()
    sent[0, 0, 0] = [0, 0, 0, 1e-30]
    sent[2, 5, 6] = [np.nan, 0, 0, 0]
    drawn = DrawnPixels.of(sent)
    np.testing.assert_array_equal(drawn.pictures(), sent)
    assert len(drawn.row) == (sent != 0).any(-1).sum()
    assert not drawn.finite()
    assert DrawnPixels.of(pictures()).finite()


@pytest.mark.parametrize("index", [[3], [1], [4, 0, 1], [0, 1, 2, 3, 4], [2, 2]])
def test_some_of_the_pictures_are_those(index):
    sent = pictures()
    np.testing.assert_array_equal(DrawnPixels.of(sent).some(index).pictures(), sent[index])


def test_pieces_in_any_order_are_put_together():
    sent = pictures()
    drawn = DrawnPixels.of(sent)
    for cut in ([[0, 1, 2, 3, 4]], [[0, 2], [1, 3, 4]], [[4], [3, 0], [2, 1]]):
        whole = joined((index, drawn.some(index)) for index in cut)
        np.testing.assert_array_equal(whole.pictures(), sent)
        np.testing.assert_array_equal(whole.row, drawn.row)


def test_pictures_without_anything_on_them():
    empty = np.zeros((2, 3, 4, 4), np.float32)
    drawn = DrawnPixels.of(empty)
    assert len(drawn.row) == 0
    both = joined([([1], drawn.some([1])), ([0], drawn.some([0]))])
    np.testing.assert_array_equal(both.pictures(), empty)
