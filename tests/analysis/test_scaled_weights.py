"""Weights of which rows are scaled: the context is, instead. Of columns they are declined."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_fuse.report import Code
from tests.analysis.meanings import BIAS, SELECT
from tests.analysis.samples import row_twins as rows
from tests.analysis.samples import steps
from tests.analysis.samples import weight_twins as ways
from tests.analysis.samples.forms import NUM_HEADS, Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import ROWS, Step, after, twin
from tests.analysis.samples.weight_twins import each, masked_twice
from tests.analysis.verdicts import ALL, OUT, check_declined, check_fused

LOWEST = float(np.finfo(np.float32).min)
FORMS = {
    "static": Form(),
    "dynamic": Form(dims="dynamic"),
    "heads in the batch": Form(order="3d", dims="dynamic"),
    "by labels": Form(order="einsum"),
    "groups": Form(heads="gqa_expand"),
}


def divided_by_input(w: Writer, weights: str) -> str:
    """Divide rows by numbers that only the run knows."""
    given = w.b.input("given", np.abs(w.random(ROWS, 1)) + 1.0, ("S", 1))
    return w.b.op("Div", weights, given)


def by_repeated(row: str | int, column: str | int) -> Step:
    """Multiply by a mask of rows, or of columns, that is repeated along all of the scores."""

    def step(w: Writer, weights: str) -> str:
        shape = [1, 1, *(ROWS if extent == "S" else 1 for extent in (row, column))]
        given = w.b.input("given", w.random(*shape), (1, 1, row, column))
        wide = w.b.op("Expand", given, w.b.shape((1, 1, "S", "S")))
        return w.b.op("Mul", weights, wide)

    return step


def by_their_scores(w: Writer, scores: str) -> str:
    """Multiply the weights of a row by its largest score."""
    return w.b.op("Mul", w.b.op("Softmax", scores, axis=-1), w.b.reduce("ReduceMax", scores, -1))


def shifted(w: Writer, scores: str) -> str:
    """Take the maximum off each row."""
    return w.b.op("Sub", scores, w.b.reduce("ReduceMax", scores, -1))


ROWS_SCALED: dict[str, Step] = {
    "a number": steps.scale_by_input,
    "rows": steps.scale_at_run_time("S", 1),
    "rows of a batch": steps.scale_at_run_time("B", 1, "S", 1),
    "rows of a head": steps.scale_at_run_time(NUM_HEADS, "S", 1),
    "rows, repeated": by_repeated("S", 1),
    "heads": steps.scale_at_run_time(NUM_HEADS, 1, 1),
    "rows, then halved": each(steps.scale_at_run_time("S", 1), steps.binary("Mul", 0.5)),
}
CONSTANT: dict[str, Step] = {
    "multiplied": steps.times(ROWS, 1),
    "divided": lambda w, value: w.b.op("Div", value, w.b.const(w.random(ROWS, 1))),
}
# Rows hidden as a whole would be zero where these are no numbers.
ZEROED: dict[str, tuple[Form, dict[str, Step], tuple[str, ...]]] = {
    "of scores with zero times an input": (
        Form(),
        masked_twice(ways.biased_by_multiple(0.0), rows.rows_zeroed("S", 1)),
        BIAS,
    ),
    "of biased scores": (Form(mask="add2"), after("weights", rows.rows_zeroed("S", 1)), BIAS),
    "of which all may be hidden": (
        Form(mask="keep_inf"),
        after("weights", rows.rows_zeroed("S", 1)),
        SELECT,
    ),
    "of scores less their maximum, of which some are the highest number": (
        Form(),
        masked_twice(each(ways.selected(-LOWEST), shifted), rows.rows_zeroed("S", 1)),
        SELECT,
    ),
}
DECLINED: dict[str, dict[str, Step]] = {
    "columns": after("weights", steps.scale_at_run_time("S")),
    "columns, repeated": after("weights", by_repeated(1, "S")),
    "rows and columns": after("weights", steps.scale_at_run_time("S", "S")),
    "rows, then columns": after(
        "weights", each(steps.scale_at_run_time("S", 1), steps.times(ROWS))
    ),
    "rows that are divided": after("weights", divided_by_input),
    "rows by their scores": {"weights": by_their_scores},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=[*FORMS])
@pytest.mark.parametrize("name", ROWS_SCALED)
def test_the_context_is_scaled_as_rows_of_weights_are(name: str, form: Form) -> None:
    check_fused(twin(form, **after("weights", ROWS_SCALED[name])), ALL)


@pytest.mark.parametrize("name", CONSTANT)
def test_the_context_is_scaled_by_constants(name: str) -> None:
    check_fused(twin(**after("weights", CONSTANT[name])), ALL)


@pytest.mark.parametrize("name", ZEROED)
def test_rows_of_the_context_are_zeroed(name: str) -> None:
    form, changed, masks = ZEROED[name]
    check_fused(twin(form, **changed), (*ALL, *masks))


def test_rows_are_hidden_where_scores_less_their_maximum_stay_finite() -> None:
    """The lowest number is chosen by a mask: less the maximum of real scores, it stays itself."""
    lowered = each(ways.selected(LOWEST), shifted)
    make = twin(**masked_twice(lowered, rows.rows_zeroed("S", 1)))
    check_fused(make, (*ALL, *SELECT, *OUT))


@pytest.mark.parametrize("name", DECLINED)
def test_weights_that_are_scaled_otherwise_are_declined(name: str) -> None:
    check_declined(lambda: twin(**DECLINED[name]), Code.WEIGHTS_SCALED)
