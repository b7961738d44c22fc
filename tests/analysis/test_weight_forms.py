"""Less usual ways from the scores to the weights: what is fused, and beside it what must not be."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.meanings import (
    BIAS,
    SELECT,
    SINKS,
    Meaning,
    Write,
    check_meaning,
    however_written,
)
from tests.analysis.samples import edit_twins as edits
from tests.analysis.samples import masked_weights, masked_weights_declined, steps, weight_steps
from tests.analysis.samples import row_twins as rows
from tests.analysis.samples import weight_twins as ways
from tests.analysis.samples.forms import NUM_HEADS, Form
from tests.analysis.samples.twins import after, twin
from tests.analysis.samples.weight_twins import each
from tests.analysis.verdicts import Make, check_declined

TRIANGLE = masked_weights.TRIANGLE

FUSED: dict[str, tuple[Make, Meaning]] = {
    **masked_weights.FUSED,
    "columns of one head written by a number": (
        lambda: twin(**after("scores", edits.nested(-7.0))),
        Meaning(SELECT),
    ),
    "scores where a mask shows, less a number where it hides": (
        lambda: twin(**after("scores", ways.kept_less_a_number)),
        Meaning((*BIAS, *SELECT)),
    ),
    "columns of one head hidden": (
        lambda: twin(**after("scores", edits.nested(-np.inf))),
        Meaning(SELECT),
    ),
    **{
        f"columns of rows {what}, {dims}": (
            partial(
                twin,
                Form(dims=dims),
                **after("scores", edits.rows_edited(number, number, stop=stop)),
            ),
            Meaning(SELECT),
        )
        for what, number, stop in (
            ("written by a number", -7.0, edits.END),
            ("hidden", -np.inf, edits.END),
            ("hidden before the fourth", -np.inf, 4),
        )
        for dims in ("batch", "dynamic")
    },
    **{
        f"{what}, joined again, {dims}": (
            partial(twin, Form(dims=dims), **after("scores", step)),
            Meaning(meaning),
        )
        for what, step, meaning in (
            ("heads biased", edits.joined(edits.biased(1, 5, 5), edits.biased(3, 1, 5)), BIAS),
            ("some heads less a bias", edits.joined(None, edits.biased(1, 5, opposite=True)), BIAS),
            ("some heads hidden", edits.joined(None, edits.hidden(-np.inf)), SELECT),
            (
                "heads biased, then filled",
                edits.joined(
                    edits.hidden(-7.0, 1),
                    each(edits.biased(5, 5), edits.hidden(-7.0, inverted=True)),
                ),
                (*BIAS, *SELECT),
            ),
            (
                "some heads filled, then biased",
                edits.joined(None, each(edits.hidden(-7.0), edits.biased(5, 5))),
                (*BIAS, *SELECT),
            ),
            (
                "heads filled by two numbers",
                edits.joined(edits.hidden(-7.0, 1), edits.hidden(-8.0)),
                SELECT,
            ),
            ("heads of two sums", edits.of_two_sums, BIAS),
        )
        for dims in ("static", "batch")
    },
    "rows biased, joined again": (
        lambda: twin(
            **after("scores", edits.joined(None, edits.biased(4, 4, 5), axis=2, sizes=(1, 4)))
        ),
        Meaning(BIAS),
    ),
    "columns biased, joined again": (
        lambda: twin(
            **after(
                "scores",
                edits.joined(edits.biased(5, 1), None, axis=3, sizes=(2, 3)),
            )
        ),
        Meaning(BIAS),
    ),
    "sum of opposite constant parts": (
        lambda: twin(**after("scores", ways.constant_parts(TRIANGLE, ~TRIANGLE))),
        Meaning(BIAS),
    ),
    "fill that takes its type off the scores": (
        lambda: twin(**after("scores", rows.filled_like_scores(-1e9))),
        Meaning(SELECT),
    ),
    **{
        f"expanded to what they are, {dims}": (
            partial(
                twin, Form(dims=dims), **after("weights", rows.expanded("B", NUM_HEADS, "S", "S"))
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
    "what is not itself": (
        lambda: twin(Form(mask="keep_inf"), **after("weights", ways.not_itself)),
        Meaning(SELECT, 1),
    ),
    "cap over a mask": (lambda: twin(**after("scores", ways.capped)), Meaning(SELECT)),
    "filled, then zeros and threes": (
        lambda: twin(**after("scores", each(ways.selected(-1e9), ways.kept_times(3.0)))),
        Meaning(SELECT),
    ),
    "scaled by head, then zeros and threes": (
        lambda: twin(
            **after("scores", each(steps.times_by_head("Div", 1, 2, 3, 4), ways.kept_times(3.0)))
        ),
        Meaning(SELECT),
    ),
    "columns written by an input": (
        lambda: twin(Form(dims="dynamic"), **after("scores", edits.by_input)),
        Meaning(SELECT),
    ),
    "scaled by one number for all heads": (
        lambda: twin(**after("scores", steps.scaled_by_heads(0.4, 0.4, 0.4, 0.4))),
        Meaning(()),
    ),
    "scaled by zero for one head": (
        lambda: twin(**after("scores", steps.scaled_by_heads(0.4, 0.4, 0.0, 0.4))),
        Meaning(SELECT),
    ),
    "scaled by a constant of the scores' type": (
        lambda: twin(**after("scores", steps.scaled_like(2.6, ways.FLOAT))),
        Meaning(()),
    ),
    "scaled by what is left of a constant as a whole number": (
        lambda: twin(**after("scores", steps.scaled_like(2.6, onnx.TensorProto.INT32))),
        Meaning(()),
    ),
    "sum with a number, above a fill": (
        lambda: twin(**after("scores", each(steps.binary("Add", 3.0), ways.selected(-1.0)))),
        Meaning((*BIAS, *SELECT)),
    ),
    "a table less the scores": (
        lambda: twin(**after("scores", ways.less_scores)),
        Meaning(BIAS),
    ),
    "hidden rows bounded below": (
        lambda: twin(**after("scores", ways.bounded_below_hidden_rows)),
        Meaning(BIAS),
    ),
    "bounded above by what no score reaches": (
        lambda: twin(**after("scores", steps.binary("Min", 3e38))),
        Meaning(()),
    ),
    "sink before the scores": (
        lambda: twin(weights=weight_steps.sink_of_heads(is_first=True)),
        Meaning(SINKS),
    ),
    "sink and scores scaled together": (
        lambda: twin(weights=weight_steps.sink_of_heads(factor=0.5)),
        Meaning(SINKS),
    ),
    "sink of zeros": (
        lambda: twin(Form(dims="dynamic"), weights=weight_steps.sink_of_zeros),
        Meaning(SINKS),
    ),
    "sink in half precision": (
        lambda: twin(weights=weight_steps.cast_sink(ways.HALF)),
        Meaning(SINKS),
    ),
}
DECLINED: dict[str, tuple[Make, Code]] = {
    **masked_weights_declined.DECLINED,
    "part of the scores written back elsewhere": (
        lambda: twin(**after("scores", edits.nested(-7.0, back=2))),
        Code.CONTENT_BIAS,
    ),
    **{
        f"rows of the scores {what}": (
            partial(twin, Form(dims="dynamic"), **after("scores", edited)),
            Code.CONTENT_BIAS,
        )
        for what, edited in (
            ("written back one row before", edits.rows_edited(-7.0, -7.0, back=(0, -1))),
            ("written back halved", edits.rows_edited(-7.0, -7.0, changed=edits.halved)),
        )
    },
    **{
        f"heads {what}": (partial(twin, **after("scores", step)), Code.SCORES_CHANGED)
        for what, step in (
            ("joined in another order", edits.joined(None, edits.biased(5), order=(1, 0))),
            ("halved and joined again", edits.joined(None, edits.halved)),
        )
    },
    "part of the scores written back halved": (
        lambda: twin(**after("scores", edits.nested(-7.0, changed=edits.halved))),
        Code.CONTENT_BIAS,
    ),
    # Places are no negative numbers: they would stay.
    "part of the scores written back rectified": (
        lambda: twin(**after("scores", edits.nested(-7.0, changed=steps.unary("Relu")))),
        Code.CONTENT_BIAS,
    ),
    # Of -1e9 nothing is left of a logarithm: weights of a hidden row are all 1.
    "large fill less the logarithm of the sum of powers": (
        lambda: twin(Form(extra="log_of_sum"), **after("scores", ways.selected(-1e9))),
        Code.SCORES_CHANGED,
    ),
    "mask of any size less the logarithm of the sum of powers": (
        lambda: twin(Form(extra="log_of_sum", mask="add4")),
        Code.SCORES_CHANGED,
    ),
    # Hidden scores are no numbers then, and so are the weights that show.
    "filled by plus infinity, lowered by infinity, then put to zero": (
        lambda: twin(
            **after("scores", each(ways.selected(np.inf), ways.lowered_by_choice(-np.inf))),
            **after("weights", ways.times_kept),
        ),
        Code.WEIGHTS_SCALED,
    ),
    "filled by infinity, then zeros and threes": (
        lambda: twin(**after("scores", each(ways.selected(-np.inf), ways.kept_times(3.0)))),
        Code.SCORES_CHANGED,
    ),
    "scaled at run time, then zeros and threes": (
        lambda: twin(**after("scores", each(steps.scale_by_input, ways.kept_times(3.0)))),
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
    "scores where a mask shows, less those where it hides": (
        lambda: twin(**after("scores", ways.kept_less)),
        Code.CONTENT_BIAS,
    ),
    "scores times infinity or zero": (
        lambda: twin(**after("scores", ways.kept_times(np.inf))),
        Code.SCALE_NOT_SCALAR,
    ),
    "scores by zero": (
        lambda: twin(**after("scores", steps.binary("Div", 0.0))),
        Code.SCALE_NOT_SCALAR,
    ),
    "weights and a view of them in two products": (
        lambda: twin(product=ways.product_and_that_of_a_view),
        Code.SEVERAL_PRODUCTS,
    ),
    "two views of the weights in two products": (
        lambda: twin(product=ways.viewed_twice("Identity")),
        Code.SEVERAL_PRODUCTS,
    ),
    "difference of the products of two halves of the weights": (
        lambda: twin(product=ways.product_of_halves("Sub")),
        Code.SEVERAL_PRODUCTS,
    ),
    "weights that equal one": (
        lambda: twin(**after("weights", ways.equal_to(1.0))),
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
    "fill that is computed from the scores": (
        lambda: twin(**after("scores", rows.filled_like_scores(-1e9, computed=True))),
        Code.CONTENT_BIAS,
    ),
    "weights expanded to columns of another name": (
        lambda: twin(Form(dims="dynamic"), **after("weights", rows.expanded_like_another)),
        Code.UNSUPPORTED_OP,
    ),
    "rows of scores without their bias": (
        lambda: twin(**rows.rows_of_bias(reads="other")),
        Code.WEIGHTS_SCALED,
    ),
    "sum of constant parts that overlap": (
        lambda: twin(**after("scores", ways.constant_parts(TRIANGLE, ~TRIANGLE.T))),
        Code.CONTENT_BIAS,
    ),
}


def test_scores_of_which_parts_are_written_back_are_let_go_of() -> None:
    sample = twin(Form(dims="dynamic"), **after("scores", edits.rows_edited(-7.0, -7.0, stop=4)))
    model = onnx_fuse.fuse(sample.model, threshold=None).model
    assert "MatMul" not in [node.op_type for node in model.graph.node]


@however_written(FUSED)
def test_form_is_fused_with_its_meaning(name: str, write: Write) -> None:
    make, meaning = FUSED[name]
    check_meaning(meaning, write(make()), is_number=name != masked_weights.NO_NUMBERS)


@pytest.mark.parametrize("name", DECLINED)
def test_near_miss_is_declined_with_its_code(name: str) -> None:
    check_declined(*DECLINED[name])
