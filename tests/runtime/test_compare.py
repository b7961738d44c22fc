"""What counts as a difference between one output of two models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnx_fuse.runtime.compare import Tally

ONES = np.ones(3, np.float32)
NONE = np.zeros((0, 3), np.float32)
BYTES = np.array([0, 7, 255], np.uint8)


@pytest.mark.parametrize(
    ("right", "made"),
    [
        ([ONES, 2 * ONES], [ONES, 2 * ONES]),
        ([], []),
        (None, None),
        (NONE, NONE),
        (BYTES, np.array([1, 6, 254], np.uint8)),
        (np.array(["a", "b"], object), np.array(["a", "b"], object)),
        (np.float32([np.nan, np.inf]), np.float32([np.nan, np.inf])),
    ],
)
def test_equal_outputs_of_any_kind_pass(right: Any, made: Any) -> None:
    assert Tally(0.0).compare("y", right, made) is None


@pytest.mark.parametrize(
    ("right", "made", "sentence"),
    [
        ([ONES, ONES], [ONES], "a sequence of another length"),
        ([ONES], ONES, "a sequence of another length"),
        ([BYTES, BYTES], [BYTES, BYTES[::-1]], "2 of 3 elements are not equal"),
        ({1: 0.5}, {1: 0.25}, "{1: 0.25} instead of {1: 0.5}"),
        (NONE, NONE.T, "float32[3, 0] instead of float32[0, 3]"),
        (BYTES, np.array([2, 7, 0], np.uint8), "2 of 3 elements are not equal"),
        (BYTES.astype(int), np.array([1, 7, 255]), "1 of 3 elements are not equal"),
        (np.float32([np.inf]), np.float32([-np.inf]), "NaN or infinity in other places"),
    ],
)
def test_difference_of_any_kind_has_a_sentence(right: Any, made: Any, sentence: str) -> None:
    assert Tally(1.0).compare("y", right, made) == sentence


def test_output_that_is_finite_nowhere_shows_nothing() -> None:
    tally = Tally(0.0)
    nowhere = np.full(3, np.nan, np.float32)
    assert tally.compare("y", nowhere, nowhere) is None
    assert tally.telling == {"y": [False]}


def test_integers_that_the_original_changes_itself_are_not_compared() -> None:
    tally = Tally(0.0)
    right, other = np.array([1, 2]), np.array([1, 3])
    assert tally.compare("y", right, np.array([1, 9]), [other]) is None
    assert tally.compare("y", right, np.array([4, 2]), [other]) is not None
