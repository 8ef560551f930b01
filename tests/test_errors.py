"""Exceptions cross process boundaries as they are."""

from __future__ import annotations

import pickle

import pytest
from ray import cloudpickle

from posegen_ray import errors


def every_kind(of: type[errors.PosegenError] = errors.PosegenError) -> list[type]:
    return [of, *(one for kind in of.__subclasses__() for one in every_kind(kind))]


@pytest.mark.parametrize("kind", every_kind())
@pytest.mark.parametrize("how", [pickle, cloudpickle])
def test_an_error_pickles_with_all_that_it_says(kind, how):
    error = how.loads(how.dumps(kind("What is wrong.", "How to fix it.")))
    assert type(error) is kind
    assert (error.what, error.fix) == ("What is wrong.", "How to fix it.")
    assert str(error) == "What is wrong. How to fix it."


def test_there_are_several_kinds():
    assert len(every_kind()) > 5
