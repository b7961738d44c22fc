"""Less usual ways from the scores to the weights: what is fused, and beside it what must not be."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest

from onnx_fuse.report import Code
from tests.analysis import edit_twins as edits
from tests.analysis import twins
from tests.analysis import weight_twins as ways
from tests.analysis.forms import NUM_HEADS, SIZES, Form
from tests.analysis.meanings import BIAS, REWRITTEN, SELECT, Meaning, check_meaning
from tests.analysis.twins import after, twin
from tests.analysis.verdicts import Make, check_declined
from tests.analysis.weight_twins import each, masked_twice
from tests.passes.test_properties import CHANGES, changed

ROWS = SIZES["S"]
CAP = Form(extra="softcap")
TRIANGLE = np.tri(ROWS, dtype=bool)
NO_NUMBERS = "sum with minus infinity times zero"  # nothing comes out that could be compared


def below_fill(step: twins.Step) -> dict[str, twins.Step]:
    """Take a step, then fill what a mask hides, and zero its weights."""
    return masked_twice(each(step, ways.selected(-1e9)), ways.zeroed)


FUSED: dict[str, tuple[Make, Meaning]] = {
    "zeroed behind a fill": (
        lambda: twin(**masked_twice(ways.selected(-1e9), ways.zeroed)),
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
    "zeroed behind a low fill of padded scores": (
        lambda: twin(**masked_twice(each(ways.padded(-1e9), ways.selected(-3e38)), ways.zeroed)),
        Meaning((*BIAS, *SELECT), 1),
    ),
    "columns of one head written by a number": (
        lambda: twin(**after("scores", edits.nested(-7.0))),
        Meaning(SELECT),
    ),
    "columns of one head hidden": (
        lambda: twin(**after("scores", edits.nested(-np.inf))),
        Meaning(SELECT),
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
    "zeroed by the same comparison": (
        lambda: twin(**ways.compared_twice("LessOrEqual", "LessOrEqual")),
        Meaning(SELECT, 1),
    ),
    "sum of opposite constant parts": (
        lambda: twin(**after("scores", ways.constant_parts(TRIANGLE, ~TRIANGLE))),
        Meaning(BIAS),
    ),
    "sum with minus infinity times zero": (
        lambda: twin(**after("scores", ways.halved_sum)),
        Meaning((*BIAS, *SELECT)),
    ),
    **{
        f"empty rows zeroed by {asked.__name__}": (
            partial(twin, **ways.rows_where(asked)),
            Meaning(SELECT, 1),
        )
        for asked in (ways.any_kept, ways.some_kept, ways.not_all_hidden)
    },
    "empty rows zeroed behind a fill": (
        lambda: twin(**ways.rows_where(ways.any_kept, fill=-1e9)),
        Meaning(SELECT, 1),
    ),
    "empty rows zeroed behind a fill that scores reach": (
        lambda: twin(**ways.rows_where(ways.any_kept, fill=-1e4)),
        Meaning(SELECT, 1),
    ),
    "empty rows times zero behind a fill": (
        lambda: twin(**ways.rows_where(ways.any_kept, fill=-1e9, product=True)),
        Meaning(SELECT, 1),
    ),
    "empty rows times zero": (
        lambda: twin(**ways.rows_where(ways.any_kept, product=True)),
        Meaning(SELECT, 0),
    ),
    "empty rows of a bias": (lambda: twin(**ways.rows_of_bias()), Meaning(BIAS, 1)),
    "empty rows of a bias whose columns have a name of their own": (
        lambda: twin(Form(dims="dynamic"), **ways.rows_of_bias(columns="C")),
        Meaning(BIAS, 1),
    ),
    "nothing zeroed": (
        lambda: twin(**after("weights", ways.zeroed_where(np.zeros((ROWS, 1), dtype=bool)))),
        Meaning(()),
    ),
    "empty rows of scores": (
        lambda: twin(**ways.rows_of_bias(reads="scores")),
        Meaning(BIAS, 1),
    ),
    "softmax that is safe for empty rows": (
        lambda: twin(Form(mask="nan_guard"), weights=ways.safe_softmax),
        Meaning(SELECT, 1),
    ),
    "written softmax that is safe for empty rows": (
        lambda: twin(Form(mask="nan_guard"), weights=ways.safe_softmax_written(asks_shifted=False)),
        Meaning(SELECT, 1),
    ),
    "fill that takes its type off the scores": (
        lambda: twin(**after("scores", ways.filled_like_scores(-1e9))),
        Meaning(SELECT),
    ),
    **{
        f"expanded to what they are, {dims}": (
            partial(
                twin, Form(dims=dims), **after("weights", ways.expanded("B", NUM_HEADS, "S", "S"))
            ),
            Meaning(()),
        )
        for dims in ("static", "dynamic")
    },
    **{
        f"columns written, {dims}": (
            partial(twin, Form(dims=dims), **after("scores", edits.columns_written(-np.inf))),
            Meaning(SELECT),
        )
        for dims in ("static", "dynamic", "batch")
    },
    **{
        f"elements written along {axis}, {dims}": (
            partial(twin, Form(dims=dims), **after("scores", edits.by_elements(-3.0, axis))),
            Meaning(SELECT),
        )
        for axis in (2, 3)
        for dims in ("static", "dynamic")
    },
    "head written": (
        lambda: twin(**after("scores", edits.by_elements(0.5, 1, (2,)))),
        Meaning(SELECT),
    ),
    "written where marked": (
        lambda: twin(Form(dims="seq"), **after("scores", edits.where_marked)),
        Meaning(SELECT),
    ),
    "columns written by a table": (
        lambda: twin(**after("scores", edits.by_table)),
        Meaning(SELECT),
    ),
    "number added to columns": (
        lambda: twin(Form(dims="dynamic"), **after("scores", edits.columns_written(-2.0, "add"))),
        Meaning(BIAS),
    ),
    "columns written and zeroed": (
        lambda: twin(
            **masked_twice(each(edits.columns_written(-1e4), ways.selected(-1e9)), ways.zeroed),
        ),
        Meaning(SELECT, 1),
    ),
    "what is not itself": (
        lambda: twin(Form(mask="keep_inf"), **after("weights", ways.not_itself)),
        Meaning(SELECT, 1),
    ),
    "rows zeroed": (
        lambda: twin(Form(mask="padding"), **after("weights", ways.rows_zeroed("B", 1, "S", 1))),
        Meaning((*BIAS, *SELECT), 1),
    ),
    "heads zeroed": (
        lambda: twin(**after("weights", ways.rows_zeroed(NUM_HEADS, 1, 1))),
        Meaning(SELECT, 1),
    ),
    "softmax that is safe below zero": (
        lambda: twin(Form(mask="nan_guard"), weights=ways.infinite_below_zero),
        Meaning(SELECT, 1),
    ),
    "cap over a mask": (lambda: twin(**after("scores", ways.capped)), Meaning(SELECT)),
    "times zero behind an infinite fill of hidden scores": (
        lambda: twin(
            **masked_twice(each(ways.padded(-np.inf), ways.selected(-np.inf)), ways.times_kept)
        ),
        Meaning((*BIAS, *SELECT)),
    ),
    "masked and divided by a guarded sum": (
        lambda: twin(**after("weights", twins.renormalised_by(1.0))),
        Meaning(SELECT, 1),
    ),
    "masked, divided by the sum, zero where nothing is left": (
        lambda: twin(**after("weights", twins.renormalised_by(0.0, behind=True))),
        Meaning(SELECT, 1),
    ),
    "filled, masked by the same and divided by a guarded sum": (
        lambda: twin(**masked_twice(ways.selected(-1e9), twins.renormalised_by(1.0))),
        Meaning(SELECT, 1),
    ),
    "biased a little, masked and divided by a guarded sum": (
        lambda: twin(**masked_twice(ways.padded(-10.0), twins.renormalised_by(1.0))),
        Meaning((*BIAS, *SELECT), 1),
    ),
    "filled, then zeros and threes": (
        lambda: twin(**after("scores", each(ways.selected(-1e9), ways.kept_times(3.0)))),
        Meaning(SELECT),
    ),
    "columns written by an input": (
        lambda: twin(Form(dims="dynamic"), **after("scores", edits.by_input)),
        Meaning(SELECT),
    ),
    "scaled by a constant of the scores' type": (
        lambda: twin(**after("scores", twins.scaled_like(2.6, ways.FLOAT))),
        Meaning(()),
    ),
    "scaled by what is left of a constant as a whole number": (
        lambda: twin(**after("scores", twins.scaled_like(2.6, onnx.TensorProto.INT32))),
        Meaning(()),
    ),
    "sum with a number, above a fill": (
        lambda: twin(**after("scores", each(twins.binary("Add", 3.0), ways.selected(-1.0)))),
        Meaning((*BIAS, *SELECT)),
    ),
    "sink in half precision": (
        lambda: twin(weights=twins.cast_sink(ways.HALF)),
        Meaning(("sinks",)),
    ),
}
DECLINED: dict[str, tuple[Make, Code]] = {
    "part of the scores written back elsewhere": (
        lambda: twin(**after("scores", edits.nested(-7.0, back=2))),
        Code.CONTENT_BIAS,
    ),
    "part of the scores written back halved": (
        lambda: twin(**after("scores", edits.nested(-7.0, scaled=True))),
        Code.CONTENT_BIAS,
    ),
    # Of -1e9 nothing is left of a logarithm: weights of a hidden row are all 1.
    "large fill less the logarithm of the sum of powers": (
        lambda: twin(Form(extra="log_of_sum"), **after("scores", ways.selected(-1e9))),
        Code.UNSUPPORTED_OP,
    ),
    "mask of any size less the logarithm of the sum of powers": (
        lambda: twin(Form(extra="log_of_sum", mask="add4")),
        Code.UNSUPPORTED_OP,
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
        lambda: twin(**masked_twice(ways.padded(-np.inf), twins.renormalised_by(1.0))),
        Code.WEIGHTS_SCALED,
    ),
    "filled by infinity, then zeros and threes": (
        lambda: twin(**after("scores", each(ways.selected(-np.inf), ways.kept_times(3.0)))),
        Code.SCORES_CHANGED,
    ),
    "no numbers added, then zeros and threes": (
        lambda: twin(**after("scores", each(ways.padded(np.nan), ways.kept_times(3.0)))),
        Code.SCORES_CHANGED,
    ),
    "filled by infinity, then of constant parts": (
        lambda: twin(
            **after(
                "scores", each(ways.selected(-np.inf), ways.constant_parts(TRIANGLE, ~TRIANGLE))
            )
        ),
        Code.SCORES_CHANGED,
    ),
    "padded, masked and divided by a guarded sum": (
        lambda: twin(**masked_twice(ways.padded(-1e9), twins.renormalised_by(1.0))),
        Code.WEIGHTS_SCALED,
    ),
    "filled by another mask, masked and divided by a guarded sum": (
        lambda: twin(**masked_twice(ways.selected(-1e9, "other"), twins.renormalised_by(1.0))),
        Code.WEIGHTS_SCALED,
    ),
    "raised by the same, masked and divided by a guarded sum": (
        lambda: twin(**masked_twice(ways.selected(1e9), twins.renormalised_by(1.0))),
        Code.WEIGHTS_SCALED,
    ),
    "masked beside a sink and divided by a guarded sum": (
        lambda: twin(Form(extra="sinks"), **after("weights", twins.renormalised_by(1.0))),
        Code.WEIGHTS_SCALED,
    ),
    "masked, divided by the sum, one where nothing is left": (
        lambda: twin(**after("weights", twins.renormalised_by(1.0, behind=True))),
        Code.WEIGHTS_SCALED,
    ),
    "masked, divided by the sum, zero where little is left": (
        lambda: twin(**after("weights", twins.renormalised_by(0.0, bound=0.5, behind=True))),
        Code.WEIGHTS_SCALED,
    ),
    "masked and divided by a sum, or by one where little is left": (
        lambda: twin(**after("weights", twins.renormalised_by(1.0, bound=0.5))),
        Code.WEIGHTS_SCALED,
    ),
    "scores times infinity or zero": (
        lambda: twin(**after("scores", ways.kept_times(np.inf))),
        Code.SCALE_NOT_SCALAR,
    ),
    "scores times zero or zero": (
        lambda: twin(**after("scores", ways.kept_times(0.0))),
        Code.SCALE_NOT_SCALAR,
    ),
    "scores by zero": (
        lambda: twin(**after("scores", twins.binary("Div", 0.0))),
        Code.SCALE_NOT_SCALAR,
    ),
    "two views of the weights in two products": (
        lambda: twin(product=ways.viewed_twice("Identity")),
        Code.SEVERAL_PRODUCTS,
    ),
    "weights and what a function makes of them": (
        lambda: twin(product=ways.viewed_twice("Sqrt")),
        Code.WEIGHTS_READ,
    ),
    "weights that equal one": (
        lambda: twin(**after("weights", ways.equal_to(1.0))),
        Code.WEIGHTS_SCALED,
    ),
    "columns zeroed": (
        lambda: twin(**after("weights", ways.rows_zeroed("B", 1, 1, "S"))),
        Code.WEIGHTS_SCALED,
    ),
    "rows zeroed of biased scores": (
        lambda: twin(Form(mask="add2"), **after("weights", ways.rows_zeroed("S", 1))),
        Code.WEIGHTS_SCALED,
    ),
    "rows zeroed that may be no numbers": (
        lambda: twin(Form(mask="keep_inf"), **after("weights", ways.rows_zeroed("S", 1))),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that what was hidden before may leave alone": (
        lambda: twin(
            Form(mask="keep_inf"),
            **masked_twice(ways.selected(-1e9, "allowed"), ways.zeroed_by("allowed")),
        ),
        Code.WEIGHTS_SCALED,
    ),
    "columns multiplied": (
        lambda: twin(**after("scores", edits.columns_written(2.0, "mul"))),
        Code.UNSUPPORTED_OP,
    ),
    "columns written by what they were": (
        lambda: twin(**after("scores", edits.columns_written(0.0, updates=edits.halved))),
        Code.CONTENT_BIAS,
    ),
    "scores written to a canvas": (
        lambda: twin(**after("scores", edits.on_a_canvas)),
        Code.UNSUPPORTED_OP,
    ),
    "rows zeroed that show not everything": (
        lambda: twin(**ways.rows_where(ways.all_kept)),
        Code.WEIGHTS_SCALED,
    ),
    "rows zeroed that hide nothing": (
        lambda: twin(**ways.rows_where(ways.any_hidden)),
        Code.WEIGHTS_SCALED,
    ),
    "rows zeroed whose shifted scores are -inf": (
        lambda: twin(Form(mask="nan_guard"), weights=ways.safe_softmax_written(asks_shifted=True)),
        Code.WEIGHTS_SCALED,
    ),
    "fill that is computed from the scores": (
        lambda: twin(**after("scores", ways.filled_like_scores(-1e9, computed=True))),
        Code.CONTENT_BIAS,
    ),
    "weights expanded to columns of another name": (
        lambda: twin(Form(dims="dynamic"), **after("weights", ways.expanded_like_another)),
        Code.UNSUPPORTED_OP,
    ),
    "rows of a bias whose largest is one": (
        lambda: twin(**ways.rows_of_bias(1.0)),
        Code.WEIGHTS_SCALED,
    ),
    "rows zeroed whose column shows nothing": (
        lambda: twin(**ways.rows_where(ways.any_kept_of_columns)),
        Code.WEIGHTS_SCALED,
    ),
    "rows of a bias with another largest": (
        lambda: twin(**ways.rows_of_bias(0.0)),
        Code.WEIGHTS_SCALED,
    ),
    "empty columns of a bias whose columns have a name of their own": (
        lambda: twin(Form(dims="dynamic"), **ways.rows_of_bias(columns="C", axis=-2)),
        Code.WEIGHTS_SCALED,
    ),
    "weights of the diagonal zeroed": (
        lambda: twin(**after("weights", ways.zeroed_where(TRIANGLE & TRIANGLE.T))),
        Code.WEIGHTS_SCALED,
    ),
    "rows of scores without their bias": (
        lambda: twin(**ways.rows_of_bias(reads="other")),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed by another comparison": (
        lambda: twin(**ways.compared_twice("LessOrEqual", "Less")),
        Code.WEIGHTS_SCALED,
    ),
    "sum of constant parts that overlap": (
        lambda: twin(**after("scores", ways.constant_parts(TRIANGLE, ~TRIANGLE.T))),
        Code.CONTENT_BIAS,
    ),
    "zeroed behind a fill that scores of a steep scale reach": (
        lambda: twin(
            **masked_twice(each(twins.binary("Mul", -1e9), ways.selected(-1e9)), ways.zeroed)
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
    "zeroed where a sum shows": (
        lambda: twin(**masked_twice(ways.lowered(-1e9, inverted=False), ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "times a half behind a fill": (
        lambda: twin(**masked_twice(ways.selected(-1e9), ways.times_half_kept)),
        Code.WEIGHTS_SCALED,
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_form_is_fused_with_its_meaning(name: str) -> None:
    make, meaning = FUSED[name]
    check_meaning(meaning, make(), is_number=name != NO_NUMBERS)


@pytest.mark.parametrize("change", REWRITTEN)
@pytest.mark.parametrize("name", FUSED)
def test_form_is_the_same_however_it_is_written(name: str, change: str) -> None:
    make, meaning = FUSED[name]
    sample = changed(make(), CHANGES[change], seed=len(name))
    check_meaning(meaning, sample, is_number=name != NO_NUMBERS)


@pytest.mark.parametrize("name", DECLINED)
def test_near_miss_is_declined_with_its_code(name: str) -> None:
    check_declined(*DECLINED[name])
