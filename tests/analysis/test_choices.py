"""Factors of zeros and one number, as masks: what is fused, and beside it what must not be."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_fuse.report import Code
from tests.analysis.meanings import SELECT, Meaning, check_meaning
from tests.analysis.samples import choice_twins as choices
from tests.analysis.samples import row_twins as rows
from tests.analysis.samples import weight_twins as ways
from tests.analysis.samples.twins import Step, after, twin
from tests.analysis.samples.weight_twins import masked_twice
from tests.analysis.verdicts import check_declined

ALL, NONE = (np.full((5, 5), number, dtype=bool) for number in (True, False))

# What scores are multiplied by, or the weights of which a mask hid the scores.
FACTORS: dict[str, Step] = {
    "one where a mask shows": choices.chosen(1.0, 0.0),
    "zero where a mask hides": choices.chosen_where_hidden(0.0, 1.0),
    "one less what hides": choices.lost(1.0),
    "the same, its sign turned twice": choices.negated_difference,
    "doubled and halved": choices.doubled_and_halved,
}
SCALED: dict[str, Step] = {
    "three where a mask shows": choices.chosen(3.0, 0.0),
    "zeros and ones, less one": choices.less_one(),
    "zeros and ones times others": choices.times_other,
    "zeros and ones, less ones": choices.less_one(5, 5),
    "a triangle of ones": choices.triangle(1.0),
    "a triangle of threes": choices.triangle(3.0),
}
OTHERS: dict[str, Step] = {
    "two where a mask shows, one elsewhere": choices.chosen(2.0, 1.0),
    "two where a mask hides, one elsewhere": choices.chosen_where_hidden(2.0, 1.0),
    "one less twice what hides": choices.lost(2.0),
    "one divided by zeros and ones": choices.divides(1.0),
    "zeros and ones divided by themselves": choices.divides(None),
    "a mask that is dropped by chance": choices.dropped,
    "a mask without its fractions": choices.without_fractions(1.5),
    "a mask times an input": choices.times_input,
    "a mask times zeros and twos": choices.times_doubled,
    "whole numbers": choices.whole_input,
    "a triangle of an input": choices.triangle_of_input,
}


@pytest.mark.parametrize("name", FACTORS | SCALED)
def test_scores_times_a_factor_are_masked(name: str) -> None:
    factor = (FACTORS | SCALED)[name]
    check_meaning(Meaning(SELECT), twin(**after("scores", choices.times(factor))))


@pytest.mark.parametrize("name", FACTORS)
def test_weights_times_a_factor_are_those_of_masked_scores(name: str) -> None:
    steps = masked_twice(ways.selected(-1e9), choices.times(FACTORS[name]))
    check_meaning(Meaning(SELECT, 1), twin(**steps))


@pytest.mark.parametrize("name", OTHERS)
def test_scores_times_other_numbers_are_declined(name: str) -> None:
    make = twin(**after("scores", choices.times(OTHERS[name])))
    check_declined(lambda: make, Code.SCALE_NOT_SCALAR)


@pytest.mark.parametrize("name", [*OTHERS, "nothing hidden"])
def test_weights_times_other_numbers_are_declined(name: str) -> None:
    factor = (OTHERS | {"nothing hidden": choices.nothing_hidden})[name]
    make = twin(**masked_twice(ways.selected(-1e9), choices.times(factor)))
    check_declined(lambda: make, Code.WEIGHTS_SCALED)


def test_constant_that_keeps_all_weights_changes_none() -> None:
    check_meaning(Meaning(()), twin(**after("weights", rows.kept_where(ALL))))


def test_constant_that_keeps_no_weights_is_declined() -> None:
    make = twin(**after("weights", rows.kept_where(NONE)))
    check_declined(lambda: make, Code.WEIGHTS_SCALED)
