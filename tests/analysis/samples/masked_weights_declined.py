"""Masks behind the softmax that the operator can't take in, and why."""

from __future__ import annotations

from functools import partial

import numpy as np

from onnx_fuse.report import Code
from tests.analysis.samples import row_twins as rows
from tests.analysis.samples import steps, weight_steps
from tests.analysis.samples import weight_twins as ways
from tests.analysis.samples.forms import Form
from tests.analysis.samples.masked_weights import (
    CAP,
    TRIANGLE,
    below_fill,
    selected_from_filled,
    with_logarithm,
)
from tests.analysis.samples.twins import after, twin
from tests.analysis.samples.weight_twins import each, masked_twice
from tests.analysis.verdicts import Make

DECLINED: dict[str, tuple[Make, Code]] = {
    **{
        f"rows zeroed of which all {what}": (
            partial(twin, Form(mask="nan_guard"), weights=rows.zero_where(asked)),
            Code.WEIGHTS_SCALED,
        )
        for what, asked in (
            ("are below zero, twice", rows.both("Less", "Less")),
            ("and others are infinite", rows.both("Less", "IsInf", of="Reciprocal")),
            ("are infinite", rows.infinite()),
            ("minus infinity isn't above", rows.not_below_lowest),
        )
    },
    "rows zeroed that show less than three": (
        lambda: twin(**rows.rows_where(partial(rows.some_kept, number=2.0))),
        Code.WEIGHTS_SCALED,
    ),
    "rows zeroed that show nothing of what a mask hides": (
        lambda: twin(**rows.rows_where(rows.any_hidden, turned=True)),
        Code.WEIGHTS_SCALED,
    ),
    "empty rows of a bias beside a mask": (
        lambda: twin(Form(mask="keep_inf"), **rows.rows_of_bias()),
        Code.WEIGHTS_SCALED,
    ),
    "empty rows of a bias that is taken off": (
        lambda: twin(**rows.rows_of_bias(op_type="Sub")),
        Code.WEIGHTS_SCALED,
    ),
    "zeros in the place of numbers": (
        lambda: twin(Form(mask="keep_inf"), **after("weights", ways.where_equal(0.0, None))),
        Code.WEIGHTS_SCALED,
    ),
    **{
        f"scores {op_type} numbers of heads, zeroed behind a fill that they reach": (
            partial(twin, **below_fill(steps.times_by_head(op_type, 1, 2, 3, number))),
            Code.WEIGHTS_SCALED,
        )
        for op_type, number in (("Mul", 1e3), ("Div", 1e-3))
    },
    "scores by small numbers of a row, zeroed behind a fill": (
        lambda: twin(**below_fill(ways.times_angle("Div"))),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that only scaled scores don't reach": (
        lambda: twin(**masked_twice(ways.selected(-7e7), ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "twice an input added, masked, divided by the sum, zero where nothing is left": (
        lambda: twin(
            **masked_twice(
                ways.biased_by_multiple(2.0), weight_steps.renormalised_by(0.0, behind=True)
            )
        ),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that a steep line of places reaches": (
        lambda: twin(Form(dims="dynamic"), **below_fill(ways.lowered_by_place(100.0))),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that a count of 32 bits reaches": (
        lambda: twin(**below_fill(ways.raised_by_count(np.int32, 0.5))),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that a count of 64 bits reaches": (
        lambda: twin(**below_fill(ways.raised_by_count(np.int64, 0.25))),
        Code.WEIGHTS_SCALED,
    ),
    # A row may be NaN that the last mask shows something of, and stays it.
    "zeroed behind an infinite fill of hidden scores": (
        lambda: twin(
            **masked_twice(each(ways.padded(-np.inf), ways.selected(-np.inf)), ways.zeroed)
        ),
        Code.WEIGHTS_SCALED,
    ),
    "hidden scores masked and divided by a guarded sum": (
        lambda: twin(**masked_twice(ways.padded(-np.inf), weight_steps.renormalised_by(1.0))),
        Code.WEIGHTS_SCALED,
    ),
    "padded, masked and divided by a guarded sum": (
        lambda: twin(**masked_twice(ways.padded(-1e9), weight_steps.renormalised_by(1.0))),
        Code.WEIGHTS_SCALED,
    ),
    "filled by another mask, masked and divided by a guarded sum": (
        lambda: twin(
            **masked_twice(ways.selected(-1e9, "other"), weight_steps.renormalised_by(1.0))
        ),
        Code.WEIGHTS_SCALED,
    ),
    "raised by the same, masked and divided by a guarded sum": (
        lambda: twin(**masked_twice(ways.selected(1e9), weight_steps.renormalised_by(1.0))),
        Code.WEIGHTS_SCALED,
    ),
    "masked beside a sink and divided by a guarded sum": (
        lambda: twin(Form(extra="sinks"), **after("weights", weight_steps.renormalised_by(1.0))),
        Code.WEIGHTS_SCALED,
    ),
    "masked and divided by the sum where another is above zero": (
        lambda: twin(**after("weights", weight_steps.renormalised_by(1.0, asks="other"))),
        Code.WEIGHTS_SCALED,
    ),
    "masked, divided by the sum, one where nothing is left": (
        lambda: twin(**after("weights", weight_steps.renormalised_by(1.0, behind=True))),
        Code.WEIGHTS_SCALED,
    ),
    "masked, divided by the sum, zero where little is left": (
        lambda: twin(**after("weights", weight_steps.renormalised_by(0.0, bound=0.5, behind=True))),
        Code.WEIGHTS_SCALED,
    ),
    "masked and divided by a sum, or by one where little is left": (
        lambda: twin(**after("weights", weight_steps.renormalised_by(1.0, bound=0.5))),
        Code.WEIGHTS_SCALED,
    ),
    "scores times zero or zero": (
        lambda: twin(**after("scores", ways.kept_times(0.0))),
        Code.SCALE_NOT_SCALAR,
    ),
    "columns zeroed": (
        lambda: twin(**after("weights", rows.rows_zeroed("B", 1, 1, "S"))),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that what was hidden before may leave alone": (
        lambda: twin(
            Form(mask="keep_inf"),
            **masked_twice(ways.selected(-1e9, "allowed"), ways.zeroed_by("allowed")),
        ),
        Code.WEIGHTS_SCALED,
    ),
    "rows zeroed that show not everything": (
        lambda: twin(**rows.rows_where(rows.all_kept)),
        Code.WEIGHTS_SCALED,
    ),
    "rows zeroed that hide nothing": (
        lambda: twin(**rows.rows_where(rows.any_hidden)),
        Code.WEIGHTS_SCALED,
    ),
    "rows zeroed whose shifted scores are -inf": (
        lambda: twin(Form(mask="nan_guard"), weights=rows.safe_softmax_written(asks_shifted=True)),
        Code.WEIGHTS_SCALED,
    ),
    "rows of a bias whose largest is one": (
        lambda: twin(**rows.rows_of_bias(1.0)),
        Code.WEIGHTS_SCALED,
    ),
    "rows zeroed whose column shows nothing": (
        lambda: twin(**rows.rows_where(rows.any_kept_of_columns)),
        Code.WEIGHTS_SCALED,
    ),
    "rows of a bias with another largest": (
        lambda: twin(**rows.rows_of_bias(0.0)),
        Code.WEIGHTS_SCALED,
    ),
    "empty columns of a bias whose columns have a name of their own": (
        lambda: twin(Form(dims="dynamic"), **rows.rows_of_bias(columns="C", axis=-2)),
        Code.WEIGHTS_SCALED,
    ),
    "weights of the diagonal zeroed": (
        lambda: twin(**after("weights", rows.zeroed_where(TRIANGLE & TRIANGLE.T))),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed by another comparison": (
        lambda: twin(**ways.compared_twice("LessOrEqual", "Less")),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed from another place on": (
        lambda: twin(**ways.hidden_beyond(4, 2)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill whose sign is turned": (
        lambda: twin(
            **masked_twice(each(ways.selected(-1e9), steps.binary("Mul", -1.0)), ways.zeroed)
        ),
        Code.WEIGHTS_SCALED,
    ),
    "renormalised or zero behind a minus infinity whose sign is turned": (
        lambda: twin(
            **masked_twice(
                each(ways.selected(-np.inf), steps.binary("Mul", -1.0)),
                weight_steps.renormalised_by(0.0, behind=True),
            )
        ),
        Code.WEIGHTS_SCALED,
    ),
    "renormalised or zero behind a plus infinity": (
        lambda: twin(
            **masked_twice(ways.selected(np.inf), weight_steps.renormalised_by(0.0, behind=True))
        ),
        Code.WEIGHTS_SCALED,
    ),
    "empty rows zeroed behind hidden scores times zero": (
        lambda: twin(
            **rows.rows_where(rows.any_kept)
            | after("scores", each(ways.selected(-np.inf), steps.binary("Mul", 0.0)))
        ),
        Code.WEIGHTS_SCALED,
    ),
    "rows zeroed that show everything, by the largest of what is below zero": (
        lambda: twin(**rows.rows_where(rows.any_kept_below_zero)),
        Code.WEIGHTS_SCALED,
    ),
    "columns zeroed that show nothing in any row": (
        lambda: twin(**rows.rows_where(rows.any_kept_of_rows)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed but for the last column": (
        lambda: twin(Form(dims="dynamic"), **masked_twice(ways.selected(-1e9), ways.nearly_zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "replaced unless infinite": (
        lambda: twin(**after("weights", ways.itself_if_infinite)),
        Code.WEIGHTS_SCALED,
    ),
    "scores divided by zeros and ones": (
        lambda: twin(**after("scores", rows.divided_by_kept)),
        Code.SCALE_NOT_SCALAR,
    ),
    "a tenth added to weights": (
        lambda: twin(**after("weights", steps.binary("Add", 0.1))),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that scores of a steep scale reach": (
        lambda: twin(
            **masked_twice(each(steps.binary("Mul", -1e9), ways.selected(-1e9)), ways.zeroed)
        ),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that padded scores reach": (
        lambda: twin(**masked_twice(each(ways.padded(-1e9), ways.selected(-1e9)), ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that another fill reaches": (
        lambda: twin(
            **masked_twice(each(ways.selected(-1e9, "other"), ways.selected(-1e9)), ways.zeroed)
        ),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that biased scores may reach": (
        lambda: twin(**masked_twice(each(ways.biased_by_input, ways.selected(-1e9)), ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that a cap reaches": (
        lambda: twin(CAP, **masked_twice(ways.selected(-100.0), ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that a float32 product may reach": (
        lambda: twin(scored=ways.in_half(-1e4, None), **after("weights", ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that a product of half precision reaches": (
        lambda: twin(scored=ways.in_half(-1e4, 1.0), **after("weights", ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a sum that scores reach": (
        lambda: twin(**masked_twice(ways.lowered(-1e4), ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill of the scores' own shape that they reach": (
        lambda: twin(Form(dims="dynamic"), **masked_twice(selected_from_filled(-1e4), ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    **{
        f"zeroed behind a fill that is {what}": (
            partial(
                twin, Form(dims="dynamic"), **masked_twice(selected_from_filled(*made), ways.zeroed)
            ),
            Code.WEIGHTS_SCALED,
        )
        for what, made in (
            ("multiplied by too little", (1.0, ("Mul", -1e4))),
            ("rounded to nothing", (1.0, ("Add", -1e9), ("Add", 1e9))),
            ("no number", (0.0, ("Mul", np.inf))),
        )
    },
    "zeroed behind the logarithm of twice a mask": (
        lambda: twin(**masked_twice(with_logarithm(2.0), ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed where a sum shows": (
        lambda: twin(**masked_twice(ways.lowered(-1e9, inverted=False), ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "times a half behind a fill": (
        lambda: twin(**masked_twice(ways.selected(-1e9), ways.times_half_kept)),
        Code.WEIGHTS_SCALED,
    ),
}
