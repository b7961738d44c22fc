"""Operators that compute what a plainer one does, or nothing, where scores and weights pass."""

from __future__ import annotations

import pytest

from onnx_fuse.report import Code
from tests.analysis.check import check_record, check_results, run
from tests.analysis.samples.forms import Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import ROWS, Step, after, twin
from tests.analysis.verdicts import check_declined

ALL = 2**62


def of_one(op: str, **attributes: int) -> Step:
    """An operator of any number of inputs, here of one."""
    return lambda w, x: w.b.op(op, x, **attributes)


def cut(axis: int, start: int, end: int, step: int = 1) -> Step:
    return lambda w, x: w.b.slice(x, start, end, axis, step)


def cut_and_joined(*order: int) -> Step:
    """Cut columns into three unequal parts and join them."""

    def made(w: Writer, x: str) -> str:
        parts = w.b.split(x, (1, ROWS - 2, 1), 3)
        return w.b.op("Concat", *(parts[place] for place in order), axis=3)

    return made


def less_maximum(of: str) -> Step:
    """Add minus the greatest number along an axis."""
    axis = {"rows": -1, "columns": -2}[of]

    def made(w: Writer, x: str) -> str:
        return w.b.op("Add", w.b.op("Neg", w.b.reduce("ReduceMax", x, axis)), x)

    return made


def added(op: str, count: int) -> Step:
    """Add numbers for each column, `count` times."""

    def made(w: Writer, x: str) -> str:
        numbers = w.b.input("numbers", w.random(ROWS), ("S",))
        return w.b.op(op, x, *[numbers] * count)

    return made


SAME: dict[str, dict[str, Step]] = {
    "scores joined of one": after("scores", of_one("Concat", axis=1)),
    "weights joined of one": after("weights", of_one("Concat", axis=1)),
    "least of one": after("weights", of_one("Min")),
    "sum of one": after("scores", of_one("Sum")),
    "cut that leaves all": after("weights", cut(3, 0, ALL)),
    "cut and joined again": after("weights", cut_and_joined(0, 1, 2)),
    "minus the maximum added": after("scores", less_maximum("rows")),
}


@pytest.mark.parametrize("dims", ["static", "dynamic"])
@pytest.mark.parametrize("name", SAME)
def test_plain_form_is_seen_through(name: str, dims: str) -> None:
    made = twin(Form(dims=dims), **SAME[name])
    result = run(made)
    check_record(result.record, made.record)
    check_results(result.found, result.expected)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_sum_adds_biases(count: int) -> None:
    made = twin(**after("scores", added("Sum", count)))
    result = run(made)
    assert "attn_bias" in result.record.operands
    check_results(result.found, result.expected)


NEAR_MISSES: dict[str, tuple[dict[str, Step], Code]] = {
    "cut backwards": (after("weights", cut(3, -1, -ALL, -1)), Code.UNSUPPORTED_OP),
    "cut that leaves a row out": (after("weights", cut(2, 1, ALL)), Code.UNSUPPORTED_OP),
    "joined in another order": (after("weights", cut_and_joined(2, 1, 0)), Code.UNSUPPORTED_OP),
    "minus another maximum added": (after("scores", less_maximum("columns")), Code.CONTENT_BIAS),
    "mean of three": (after("scores", added("Mean", 2)), Code.SCORES_CHANGED),
    "greatest of three": (after("scores", added("Max", 2)), Code.SCORES_CHANGED),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_other_forms_are_declined(name: str) -> None:
    steps, code = NEAR_MISSES[name]
    check_declined(lambda: twin(**steps), code)
