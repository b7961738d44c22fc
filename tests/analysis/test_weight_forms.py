"""Less usual ways from the scores to the weights: what is fused, and beside it what must not be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx
import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis import edit_twins as edits
from tests.analysis import twins
from tests.analysis import weight_twins as ways
from tests.analysis.check import TOLERANCE, fused_nodes, plain_session
from tests.analysis.forms import NUM_HEADS, SIZES, Form
from tests.analysis.graphs import Sample
from tests.analysis.test_near_misses import check_declined
from tests.analysis.twins import after, twin
from tests.analysis.weight_twins import each, masked_twice
from tests.passes.test_properties import CHANGES, changed

Make = Callable[[], Sample]
SELECT, BIAS, SINKS = ("attn_mask", "mask_fill"), ("attn_bias",), ("sinks",)
ROWS = SIZES["S"]
CAP = Form(extra="softcap")
TRIANGLE = np.tri(ROWS, dtype=bool)


class Meaning(NamedTuple):
    """The mask operands of a fused node, and whether what is no number is zero."""

    operands: tuple[str, ...]
    zero_nan: int = 0


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
    "powers times one": (lambda: twin(weights=ways.powers_times_one), Meaning(SELECT)),
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
    "empty rows of scores": (
        lambda: twin(**ways.rows_of_bias(reads="scores")),
        Meaning(BIAS, 1),
    ),
    "softmax that is safe for empty rows": (
        lambda: twin(Form(mask="nan_guard"), weights=ways.safe_softmax),
        Meaning(SELECT, 1),
    ),
    "one more in the sum": (
        lambda: twin(weights=ways.sum_with(1.0, shift=False)),
        Meaning(SINKS),
    ),
    "a half more in the sum": (
        lambda: twin(weights=ways.sum_with(0.5, shift=False)),
        Meaning(SINKS),
    ),
    "one more in the sum of masked scores": (
        lambda: twin(Form(mask="keep_inf"), weights=ways.sum_with(1.0, shift=False)),
        Meaning((*SELECT, *SINKS)),
    ),
    "one more in the sum, shifted": (lambda: twin(weights=ways.one_more(1.0)), Meaning(SINKS)),
    "three more in the sum, shifted by a difference": (
        lambda: twin(weights=ways.one_more(3.0, by="Sub")),
        Meaning(SINKS),
    ),
    "one more in the sum, shifted by a product": (
        lambda: twin(weights=ways.one_more(1.0, by="Mul")),
        Meaning(SINKS),
    ),
    "learned number of heads in the sum": (
        lambda: twin(weights=ways.learned_sink(NUM_HEADS, 1, 1)),
        Meaning(SINKS),
    ),
    "learned number of all heads in the sum, halved": (
        lambda: twin(weights=ways.learned_sink(1, factor=0.5)),
        Meaning(SINKS),
    ),
    "a sink beside padding of another name": (
        lambda: twin(Form(dims="dynamic"), weights=ways.sink_beside_padding(0, -1)),
        Meaning((*BIAS, *SINKS)),
    ),
    "what is not lost in a sum that may be small": (
        lambda: twin(weights=ways.sum_with(1e-9, shift=False)),
        Meaning(SINKS),
    ),
    "what is lost in the sum": (lambda: twin(weights=ways.sum_with(1e-9)), Meaning(())),
    "what is below the sum": (
        lambda: twin(weights=ways.sum_with(1e-5, op_type="Max")),
        Meaning(()),
    ),
    "powers times a mask": (lambda: twin(weights=ways.masked_powers("Mul")), Meaning(SELECT)),
    **{
        f"powers times a mask, {word} zero guarded": (
            partial(twin, weights=ways.masked_powers("Mul", guard=word)),
            Meaning(SELECT, 1),
        )
        for word in ("Greater", "Less", "Equal", "LessOrEqual")
    },
    "powers chosen by a mask": (lambda: twin(weights=ways.masked_powers("Where")), Meaning(SELECT)),
    "powers of a masked softmax of one's own": (
        lambda: twin(weights=ways.masked_powers_by_shown()),
        Meaning(SELECT),
    ),
    "power of a logarithmic softmax": (lambda: twin(weights=ways.log_softmax), Meaning(())),
    "division behind the values": (lambda: twin(**ways.divided_behind()), Meaning(())),
    "division behind the values by a product": (
        lambda: twin(Form(dims="batch"), **ways.divided_behind(ones=1.0)),
        Meaning(()),
    ),
    "division behind the values under a mask": (
        lambda: twin(Form(mask="two", dims="dynamic"), **ways.divided_behind(kept=True)),
        Meaning((*BIAS, *SELECT)),
    ),
    "division behind the values by what is lost": (
        lambda: twin(**ways.divided_behind(rest=1e-12)),
        Meaning(()),
    ),
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
    **{
        f"one more in the sum, shifted by {op_type} with zero": (
            partial(twin, weights=ways.floored_sink(0.0, op_type)),
            Meaning(SINKS),
        )
        for op_type in ("Max", "Clip", "Relu")
    },
    "powers of two": (lambda: twin(weights=ways.power_of(2.0)), Meaning(())),
    "column padded behind": (
        lambda: twin(weights=ways.padded_column(0, 1, 0.0, (0, ROWS))),
        Meaning(SINKS),
    ),
    "column padded before": (
        lambda: twin(weights=ways.padded_column(1, 0, 0.5, (1, ROWS + 1))),
        Meaning(SINKS),
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
    "columns written by an input": (
        lambda: twin(Form(dims="dynamic"), **after("scores", edits.by_input)),
        Meaning(SELECT),
    ),
}
DECLINED: dict[str, tuple[Make, Code]] = {
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
    "powers of hidden scores masked and divided by a guarded sum": (
        lambda: twin(Form(mask="keep_inf"), weights=ways.masked_powers("Mul", guard="Greater")),
        Code.WEIGHTS_SCALED,
    ),
    "one more in the sum, shifted by the largest and one hundred": (
        lambda: twin(weights=ways.floored_sink(100.0)),
        Code.UNSUPPORTED_OP,
    ),
    "powers of two beside one of e": (
        lambda: twin(weights=ways.power_of(2.0, sink=True)),
        Code.UNSUPPORTED_OP,
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
    "one more in the sum, not shifted": (
        lambda: twin(weights=ways.sum_with(1.0)),
        Code.UNSUPPORTED_OP,
    ),
    "largest of what another mask shows taken off": (
        lambda: twin(weights=ways.masked_powers_by_shown(own=False)),
        Code.CONTENT_BIAS,
    ),
    "largest of what a mask shows, or one, taken off": (
        lambda: twin(weights=ways.masked_powers_by_shown(fill=1.0)),
        Code.CONTENT_BIAS,
    ),
    "rows zeroed that show not everything": (
        lambda: twin(**ways.rows_where(ways.all_kept)),
        Code.WEIGHTS_SCALED,
    ),
    "rows zeroed that hide nothing": (
        lambda: twin(**ways.rows_where(ways.any_hidden)),
        Code.WEIGHTS_SCALED,
    ),
    "division behind the values of powers that are shown": (
        ways.shown_powers,
        Code.WEIGHTS_READ,
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
    "rows of scores without their bias": (
        lambda: twin(**ways.rows_of_bias(reads="other")),
        Code.WEIGHTS_SCALED,
    ),
    "one less in the sum": (
        lambda: twin(weights=ways.sum_with(-1.0, shift=False)),
        Code.UNSUPPORTED_OP,
    ),
    "one more in the sum, shifted by another": (
        lambda: twin(weights=ways.one_more(1.0, own=False)),
        Code.UNSUPPORTED_OP,
    ),
    "one more in the sum, shifted upwards": (
        lambda: twin(weights=ways.one_more(1.0, by="Reciprocal")),
        Code.UNSUPPORTED_OP,
    ),
    "learned number of rows in the sum": (
        lambda: twin(weights=ways.learned_sink(ROWS, 1)),
        Code.UNSUPPORTED_OP,
    ),
    "a sink beside padding of another name, cut at the wrong end": (
        lambda: twin(Form(dims="dynamic"), weights=ways.sink_beside_padding(1, ROWS + 1)),
        Code.UNSUPPORTED_OP,
    ),
    "what shows in the sum": (lambda: twin(weights=ways.sum_with(1e-6)), Code.UNSUPPORTED_OP),
    "what may be above the sum": (
        lambda: twin(weights=ways.sum_with(1e-5, shift=False, op_type="Max")),
        Code.UNSUPPORTED_OP,
    ),
    "what is above the sum": (
        lambda: twin(weights=ways.sum_with(2.0, op_type="Max")),
        Code.UNSUPPORTED_OP,
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


def check_same(sample: Sample, model: onnx.ModelProto) -> None:
    """Compare results, no numbers included, with those of plain onnxruntime."""
    (expected,), (found,) = (
        plain_session(m).run(None, sample.feeds) for m in (sample.model, model)
    )
    assert not np.isnan(expected).all()
    bound = TOLERANCE * max(1.0, float(np.nanmax(np.abs(expected))))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def check_meaning(name: str, sample: Sample) -> None:
    """Check what the fused node says, and what the fused model computes."""
    meaning = FUSED[name][1]
    model = onnx_fuse.fuse(sample.model, threshold=None).model
    (node,) = fused_nodes(model)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    operands = attributes["operands"].decode().split(",")
    masks = {*BIAS, *SELECT, *SINKS}
    assert tuple(name for name in operands if name in masks) == meaning.operands
    assert attributes["zero_nan"] == meaning.zero_nan
    if "sum with minus infinity" not in name:  # of which nothing is a number
        check_same(sample, model)


@pytest.mark.parametrize("name", FUSED)
def test_form_is_fused_with_its_meaning(name: str) -> None:
    check_meaning(name, FUSED[name][0]())


@pytest.mark.parametrize("change", ["swap", *(name for name in CHANGES if name.startswith("add_"))])
@pytest.mark.parametrize("name", FUSED)
def test_form_is_the_same_however_it_is_written(name: str, change: str) -> None:
    check_meaning(name, changed(FUSED[name][0](), CHANGES[change], seed=len(name)))


SILENT: dict[str, Make] = {
    "powers of a half": lambda: twin(weights=ways.power_of(0.5)),
    "masked powers by the sum of all": lambda: twin(weights=ways.masked_powers("Mul", own=False)),
    "division behind the values by twice the sum": lambda: twin(**ways.divided_behind(ones=2.0)),
}


@pytest.mark.parametrize("name", SILENT)
def test_what_is_no_softmax_is_no_attention(name: str) -> None:
    assert onnx_fuse.explain(SILENT[name]().model, threshold=None).blocks == ()


@pytest.mark.parametrize("name", DECLINED)
def test_near_miss_is_declined_with_its_code(name: str) -> None:
    check_declined(*DECLINED[name])
