"""Masks behind the softmax, by themselves or beside one before it, that are fused."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx

from tests.analysis.meanings import BIAS, SELECT, Meaning
from tests.analysis.samples import edit_twins as edits
from tests.analysis.samples import row_twins as rows
from tests.analysis.samples import twins, weight_steps
from tests.analysis.samples import weight_twins as ways
from tests.analysis.samples.forms import NUM_HEADS, SIZES, Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.sum_twins import times_inverse_of_sum
from tests.analysis.samples.twins import after, twin
from tests.analysis.samples.weight_twins import each, masked_twice, tri_without_rows
from tests.analysis.verdicts import Make

ROWS = SIZES["S"]
CAP = Form(extra="softcap")
TRIANGLE = np.tri(ROWS, dtype=bool)
NO_NUMBERS = "sum with minus infinity times zero"  # nothing comes out that could be compared


def below_fill(step: twins.Step) -> dict[str, twins.Step]:
    """Take a step, then fill what a mask hides, and zero its weights."""
    return masked_twice(each(step, ways.selected(-1e9)), ways.zeroed)


def with_logarithm(shown: float) -> twins.Step:
    """Add the logarithm of a number where a mask shows, and of 0 elsewhere."""

    def step(w: Writer, scores: str) -> str:
        numbers = w.b.op("Mul", ways.as_number(w, ways.keep_of(w)), w.b.scalar(shown))
        return w.b.op("Add", scores, w.b.op("Log", numbers))

    return step


def selected_from_filled(fill: float, *arithmetic: tuple[str, float]) -> twins.Step:
    """Choose between the scores and a tensor of their shape that consists of one number.

    Other numbers may be added to it, say.
    """
    number = onnx.numpy_helper.from_array(np.array([fill], np.float32))

    def step(w: Writer, scores: str) -> str:
        filled = w.b.op("ConstantOfShape", w.b.op("Shape", scores), value=number)
        for op_type, other in arithmetic:
            filled = w.b.op(op_type, filled, w.b.scalar(other))
        return w.b.op("Where", ways.keep_of(w), scores, filled)

    return step


def where_constants_are_zero(number: float) -> twins.Step:
    """Put a number where constants are zero, which are brought to more axes before."""

    def step(w: Writer, masked: str) -> str:
        shown = w.b.const(tri_without_rows(1).astype(np.float32).reshape(1, ROWS, ROWS))
        wide = w.b.op("Unsqueeze", shown, w.b.const([1], np.int64))
        return w.b.op("Where", w.b.op("Equal", wide, w.b.scalar(0.0)), w.b.scalar(number), masked)

    return step


FUSED: dict[str, tuple[Make, Meaning]] = {
    "zeroed behind a fill": (
        lambda: twin(**masked_twice(ways.selected(-1e9), ways.zeroed)),
        Meaning(SELECT, 1),
    ),
    "zeroed behind a fill by constants": (
        lambda: twin(**masked_twice(where_constants_are_zero(-1e9), where_constants_are_zero(0.0))),
        Meaning(SELECT, 1),
    ),
    "zeroed behind a fill by a comparison": (
        lambda: twin(**masked_twice(ways.selected(-1e9), ways.zeroed_again)),
        Meaning(SELECT, 1),
    ),
    "zeroed behind an infinite fill": (
        lambda: twin(**masked_twice(ways.selected(-np.inf), ways.zeroed)),
        Meaning(SELECT, 1),
    ),
    "times zero behind a fill": (
        lambda: twin(**masked_twice(ways.selected(-1e9), ways.times_kept)),
        Meaning(SELECT, 1),
    ),
    # Zero times what is no number is no number.
    "times zero behind an infinite fill": (
        lambda: twin(**masked_twice(ways.selected(-np.inf), ways.times_kept)),
        Meaning(SELECT, 0),
    ),
    "zeroed behind a sum": (
        lambda: twin(**masked_twice(ways.lowered(-1e9), ways.zeroed)),
        Meaning(SELECT, 1),
    ),
    "times zero behind a sum": (
        lambda: twin(**masked_twice(ways.lowered_by_choice(-1e9), ways.times_kept)),
        Meaning(SELECT, 1),
    ),
    "times zero behind an infinite sum": (
        lambda: twin(**masked_twice(ways.lowered_by_choice(-np.inf), ways.times_kept)),
        Meaning(SELECT, 0),
    ),
    "zeroed behind a fill of the scores' own shape": (
        lambda: twin(
            Form(dims="dynamic"), **masked_twice(selected_from_filled(-np.inf), ways.zeroed)
        ),
        Meaning(SELECT, 1),
    ),
    **{
        f"zeroed behind a fill that is {what}": (
            partial(
                twin, Form(dims="dynamic"), **masked_twice(selected_from_filled(*made), ways.zeroed)
            ),
            Meaning(SELECT, 1),
        )
        for what, made in (
            ("multiplied", (1.0, ("Mul", -1e9))),
            ("divided and less another", (1.0, ("Div", 1e-9), ("Sub", 2e9))),
            ("more than the type holds", (-1e30, ("Mul", 1e30))),
        )
    },
    "zeroed behind the logarithm of a mask": (
        lambda: twin(**masked_twice(with_logarithm(1.0), ways.zeroed)),
        Meaning(SELECT, 1),
    ),
    "zeroed behind a low fill of padded scores": (
        lambda: twin(**masked_twice(each(ways.padded(-1e9), ways.selected(-3e38)), ways.zeroed)),
        Meaning((*BIAS, *SELECT), 1),
    ),
    "zeroed behind a fill that no place reaches": (
        lambda: twin(Form(dims="dynamic"), **below_fill(ways.lowered_by_place(0.5))),
        Meaning((*BIAS, *SELECT), 1),
    ),
    "zeroed behind a fill that no count of 32 bits reaches": (
        lambda: twin(**below_fill(ways.raised_by_count(np.int32, 0.25))),
        Meaning((*BIAS, *SELECT), 1),
    ),
    "zeroed behind a fill that no capped score reaches": (
        lambda: twin(CAP, **masked_twice(ways.selected(-1e4), ways.zeroed)),
        Meaning(SELECT, 1),
    ),
    "zeroed behind a fill that no scaled score of half precision reaches": (
        lambda: twin(scored=ways.in_half(-1e4, 0.125), **after("weights", ways.zeroed)),
        Meaning(SELECT, 1),
    ),
    "zeroed from the same place on": (
        lambda: twin(**ways.hidden_beyond(4, 4)),
        Meaning(SELECT, 1),
    ),
    "zeroed by the same comparison": (
        lambda: twin(**ways.compared_twice("LessOrEqual", "LessOrEqual")),
        Meaning(SELECT, 1),
    ),
    "sum with minus infinity times zero": (
        lambda: twin(**after("scores", ways.halved_sum)),
        Meaning((*BIAS, *SELECT)),
    ),
    **{
        f"empty rows zeroed by {asked.__name__}": (
            partial(twin, **rows.rows_where(asked)),
            Meaning(SELECT, 1),
        )
        for asked in (rows.any_kept, rows.some_kept, rows.not_all_hidden)
    },
    "empty rows zeroed behind a fill where a mask hides": (
        lambda: twin(**rows.rows_where(rows.any_kept, turned=True)),
        Meaning(SELECT, 1),
    ),
    "empty rows zeroed behind a fill": (
        lambda: twin(**rows.rows_where(rows.any_kept, fill=-1e9)),
        Meaning(SELECT, 1),
    ),
    "empty rows zeroed behind a fill that scores reach": (
        lambda: twin(**rows.rows_where(rows.any_kept, fill=-1e4)),
        Meaning(SELECT, 1),
    ),
    "empty rows times zero behind a fill": (
        lambda: twin(**rows.rows_where(rows.any_kept, fill=-1e9, product=True)),
        Meaning(SELECT, 1),
    ),
    "empty rows times zero": (
        lambda: twin(**rows.rows_where(rows.any_kept, product=True)),
        Meaning(SELECT, 0),
    ),
    "empty rows of a bias": (lambda: twin(**rows.rows_of_bias()), Meaning(BIAS, 1)),
    "empty rows of a bias whose columns have a name of their own": (
        lambda: twin(Form(dims="dynamic"), **rows.rows_of_bias(columns="C")),
        Meaning(BIAS, 1),
    ),
    "nothing zeroed": (
        lambda: twin(**after("weights", rows.zeroed_where(np.zeros((ROWS, 1), dtype=bool)))),
        Meaning(()),
    ),
    "empty rows of scores": (
        lambda: twin(**rows.rows_of_bias(reads="scores")),
        Meaning(BIAS, 1),
    ),
    "softmax that is safe for empty rows": (
        lambda: twin(Form(mask="nan_guard"), weights=rows.safe_softmax),
        Meaning(SELECT, 1),
    ),
    "written softmax that is safe for empty rows": (
        lambda: twin(Form(mask="nan_guard"), weights=rows.safe_softmax_written(asks_shifted=False)),
        Meaning(SELECT, 1),
    ),
    "columns written and zeroed": (
        lambda: twin(
            **masked_twice(each(edits.columns_written(-1e4), ways.selected(-1e9)), ways.zeroed),
        ),
        Meaning(SELECT, 1),
    ),
    "rows zeroed": (
        lambda: twin(Form(mask="padding"), **after("weights", rows.rows_zeroed("B", 1, "S", 1))),
        Meaning((*BIAS, *SELECT), 1),
    ),
    "heads zeroed": (
        lambda: twin(**after("weights", rows.rows_zeroed(NUM_HEADS, 1, 1))),
        Meaning(SELECT, 1),
    ),
    **{
        f"softmax that is safe {what}": (
            partial(twin, Form(mask="nan_guard"), weights=rows.zero_where(asked)),
            Meaning(SELECT, 1),
        )
        for what, asked in (
            ("below zero", rows.both("Less", "IsInf")),
            ("for minus infinity", rows.infinite(detect_positive=0)),
            ("for what minus infinity equals", rows.equal_to_lowest),
        )
    },
    "scores times small numbers of a row, zeroed behind a fill": (
        lambda: twin(**below_fill(ways.times_angle("Mul"))),
        Meaning(SELECT, 1),
    ),
    "numbers kept": (
        lambda: twin(Form(mask="keep_inf"), **after("weights", ways.where_equal(None, 0.0))),
        Meaning(SELECT, 1),
    ),
    "one where infinite": (
        lambda: twin(**after("weights", ways.one_if_infinite)),
        Meaning(()),
    ),
    "times zero behind an infinite fill of hidden scores": (
        lambda: twin(
            **masked_twice(each(ways.padded(-np.inf), ways.selected(-np.inf)), ways.times_kept)
        ),
        Meaning((*BIAS, *SELECT)),
    ),
    "masked and divided by a guarded sum": (
        lambda: twin(**after("weights", weight_steps.renormalised_by(1.0))),
        Meaning(SELECT, 1),
    ),
    "masked and multiplied by the inverse of the sum": (
        lambda: twin(**after("weights", each(ways.times_kept, times_inverse_of_sum()))),
        Meaning(SELECT),
    ),
    "masked, divided by the sum, zero where nothing is left": (
        lambda: twin(**after("weights", weight_steps.renormalised_by(0.0, behind=True))),
        Meaning(SELECT, 1),
    ),
    "filled, masked by the same and divided by a guarded sum": (
        lambda: twin(**masked_twice(ways.selected(-1e9), weight_steps.renormalised_by(1.0))),
        Meaning(SELECT, 1),
    ),
    "biased a little, masked and divided by a guarded sum": (
        lambda: twin(**masked_twice(ways.padded(-10.0), weight_steps.renormalised_by(1.0))),
        Meaning((*BIAS, *SELECT), 1),
    ),
}
