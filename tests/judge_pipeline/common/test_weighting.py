"""Weights of dimensions: filled in with 1, and refused where they weigh nothing or without end."""

from __future__ import annotations

import math

import pytest

from judge_pipeline.common.errors import UserError
from judge_pipeline.common.weighting import full_weights

UNKNOWN = "'{name}' is not here"


def test_dimensions_that_are_not_named_weigh_1():
    assert full_weights({"b": 2}, ["a", "b"], UNKNOWN) == {"a": 1.0, "b": 2.0}
    assert full_weights({}, [], UNKNOWN) == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"x": 1.0}, r"--w: 'x' is not here(.|\n)*dimensions here: a, b"),
        ({"a": -1.0}, "--w: a=-1 is not a weight"),
        ({"a": math.inf}, "--w: a=inf is not a weight"),
        ({"a": math.nan}, "--w: a=nan is not a weight"),
        ({"a": 0.0, "b": 0.0}, "--w: all weights are 0"),
    ],
)
def test_weights_that_cannot_be_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        full_weights(given, ["a", "b"], UNKNOWN, "--w")
