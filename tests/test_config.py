from __future__ import annotations

import re

import numpy as np
import pytest

from onnx_fuse.config import Options
from onnx_fuse.errors import InvalidOption, OnnxFuseError

VARIABLE = "RLX_FUSE_ATTN_THRESHOLD"


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ({}, {}, 64),
        ({}, {VARIABLE: ""}, 64),
        ({}, {VARIABLE: "128"}, 128),
        ({}, {VARIABLE: " 0 "}, 0),
        ({}, {VARIABLE: "none"}, None),
        ({}, {VARIABLE: "None"}, None),
        ({"threshold": 16}, {VARIABLE: "128"}, 16),
        ({"threshold": None}, {VARIABLE: "128"}, None),
        ({"threshold": 0}, {VARIABLE: "128"}, 0),
        ({"threshold": "none"}, {VARIABLE: "128"}, None),
        ({"threshold": "7"}, {}, 7),
        ({"threshold": 16}, {VARIABLE: "abc"}, 16),
    ],
)
def test_threshold_is_the_option_then_the_environment_then_64(given, environment, expected):
    assert Options.resolve(**given, environ=environment).threshold == expected


def test_the_real_environment_is_read(monkeypatch):
    monkeypatch.setenv(VARIABLE, "5")
    assert Options.resolve().threshold == 5


@pytest.mark.parametrize("text", ["abc", "-1", "1.5", "6 4", "0x10", "²", "nan"])
def test_a_variable_that_is_no_number_is_named(text):
    with pytest.raises(InvalidOption, match=re.escape(f"{VARIABLE}={text!r}")):
        Options.resolve(environ={VARIABLE: text})


def test_a_number_without_end_is_refused_in_a_sentence():
    with pytest.raises(InvalidOption, match=f"{VARIABLE} has 5000 digits: 'none' sets no limit"):
        Options.resolve(environ={VARIABLE: "9" * 5000})


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ({"threshold": -1}, "threshold"),
        ({"threshold": "abc"}, "threshold"),
        ({"threshold": True}, "threshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"batch": 0}, "batch"),
        ({"batch": "1"}, "batch"),
        ({"seq": -4}, "seq"),
        ({"dims": {"past": 0}}, "past"),
        ({"dims": {"": 3}}, "dim"),
        ({"dims": [("n", 1), ("n", 2)]}, "n=2"),
        ({"dims": ["n=2"]}, "dims=.*by symbol name"),
        ({"dims": 2}, "dims=2"),
        ({"precision": "fp64"}, "precision"),
    ],
)
def test_an_option_out_of_range_is_named(option, word):
    with pytest.raises(InvalidOption, match=word) as caught:
        Options.resolve(**option, environ={})
    assert isinstance(caught.value, OnnxFuseError)
    assert "\n" not in str(caught.value)


def test_any_integer_is_one():
    given = {"threshold": np.int64(9), "batch": np.int32(2), "dims": {"n": np.uint8(3)}}
    resolved = Options.resolve(**given, environ={})
    assert (resolved.threshold, resolved.batch, resolved.dims) == (9, 2, (("n", 3),))
    assert type(resolved.threshold) is type(resolved.batch) is type(resolved.dims[0][1]) is int


def test_dims_are_sorted_so_that_their_order_does_not_matter():
    first = Options.resolve(dims={"b": 2, "a": 1}, environ={})
    second = Options.resolve(dims=[("a", 1), ("b", 2)], environ={})
    assert first == second
    assert first.dims == (("a", 1), ("b", 2))
    assert hash(first) == hash(second)
