"""Beside what is fused, the nearest scores and weights that must not be; each says why."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.samples import graph_twins, mixed_operands, operand_twins, steps, weight_steps
from tests.analysis.samples import weight_twins as ways
from tests.analysis.samples.forms import SIZES, Form
from tests.analysis.samples.twins import after, on, twin
from tests.analysis.verdicts import Make, check_declined

ROWS = SIZES["S"]

# Each of these has one site, and the code says why it stays as it is.
DECLINED: dict[str, tuple[Make, Code]] = {
    "softmax over queries": (
        lambda: twin(weights=weight_steps.softmax_along(2)),
        Code.SOFTMAX_AXIS,
    ),
    "softmax over heads": (lambda: twin(weights=weight_steps.softmax_along(1)), Code.SOFTMAX_AXIS),
    "softmax over two axes": (graph_twins.old_softmax, Code.SOFTMAX_AXIS),
    "heads of one number, multiplied by broadcasting": (
        lambda: graph_twins.sized(depth=1, scored=steps.multiplied_pairs),
        Code.SCALE_NOT_SCALAR,
    ),
    "mask after the softmax": (
        lambda: twin(**after("weights", weight_steps.mask_weights)),
        Code.WEIGHTS_SCALED,
    ),
    "product with the values times zero": (
        lambda: twin(product=weight_steps.scaled_product(0.0)),
        Code.UNSUPPORTED_ATTRIBUTE,
    ),
    "product with the values added to others": (
        lambda: graph_twins.of_gemms(biased_context=True),
        Code.UNSUPPORTED_OP,
    ),
    "weights times infinity": (
        lambda: twin(**after("weights", steps.times_by_head("Mul", 1, 2, np.inf, 3))),
        Code.WEIGHTS_SCALED,
    ),
    "weights divided by zero": (
        lambda: twin(**after("weights", steps.times_by_head("Div", 1, 2, 0, 3))),
        Code.WEIGHTS_SCALED,
    ),
    "number divided by the weights": (
        lambda: twin(**after("weights", operand_twins.divided_by)),
        Code.WEIGHTS_SCALED,
    ),
    "weights squared": (lambda: twin(**after("weights", ways.squared)), Code.WEIGHTS_SCALED),
    "a triangle of the weights": (
        lambda: twin(**after("weights", steps.unary("Trilu", upper=0))),
        Code.WEIGHTS_SCALED,
    ),
    "weights scaled by column": (
        lambda: twin(**after("weights", steps.times(ROWS))),
        Code.WEIGHTS_SCALED,
    ),
    "halved weights renormalised, where something is left": (
        lambda: twin(
            **after(
                "weights", ways.each(steps.binary("Mul", 0.5), weight_steps.renormalised_by(1.0))
            )
        ),
        Code.WEIGHTS_SCALED,
    ),
    "dropout that drops": (
        lambda: twin(**after("weights", weight_steps.train)),
        Code.WEIGHTS_SCALED,
    ),
    "NaN guard with 1": (
        lambda: twin(**after("weights", weight_steps.guard_with(1.0))),
        Code.WEIGHTS_SCALED,
    ),
    "NaN guard of other weights": (
        lambda: twin(**after("weights", weight_steps.guard_of_others)),
        Code.WEIGHTS_SCALED,
    ),
    "largest of each column taken off": (
        lambda: twin(**after("scores", weight_steps.shifted_by_others)),
        Code.CONTENT_BIAS,
    ),
    "largest of twice the scores taken off": (
        lambda: twin(**after("scores", weight_steps.shifted_by_twice)),
        Code.CONTENT_BIAS,
    ),
    "weights renormalised by columns": (
        lambda: twin(**after("weights", weight_steps.renormalised_rows)),
        Code.WEIGHTS_SCALED,
    ),
    "keys picked by rank": (
        lambda: twin(**on("k", "normed", operand_twins.picked_by_rank)),
        Code.GATHERED,
    ),
    "bias from the query": (
        lambda: twin(**after("scored", steps.add_content_bias)),
        Code.CONTENT_BIAS,
    ),
    "bias from the query, the weights put to zero by a mask": (
        lambda: twin(**after("scored", steps.add_content_bias), **weight_steps.zeroed_after(-1e9)),
        Code.CONTENT_BIAS,
    ),
    "bias from the query, of another tensor's type": (
        lambda: twin(**after("scored", steps.add_content_like_numbers)),
        Code.CONTENT_BIAS,
    ),
    "bias from the source": (
        lambda: twin(**after("scores", steps.bias_of_both("Mul"))),
        Code.CONTENT_BIAS,
    ),
    "fill from the scores": (
        lambda: twin(**after("scores", steps.choose_of_two)),
        Code.CONTENT_BIAS,
    ),
    "heads mixed before": (lambda: twin(**after("scores", steps.mix_heads)), Code.MIXED_SCORES),
    "heads mixed after": (lambda: twin(**after("weights", steps.mix_heads)), Code.MIXED_SCORES),
    "heads taken off others after": (
        lambda: twin(**after("weights", steps.less_other_heads)),
        Code.MIXED_SCORES,
    ),
    **{
        f"heads mixed {where}, by a weight that callers may replace": (
            partial(graph_twins.replaceable, **after(step, steps.mix_heads)),
            Code.MIXED_SCORES,
        )
        for where, step in (("before", "scores"), ("after", "weights"))
    },
    "columns mixed before": (
        lambda: twin(**after("scores", steps.mix_columns)),
        Code.MIXED_SCORES,
    ),
    "one more key whose weights are cut": (
        lambda: twin(
            operands_of_product=mixed_operands.with_a_key,
            weights=mixed_operands.weights_but_the_last,
        ),
        Code.UNSUPPORTED_OP,
    ),
    "scores scaled by their own size": (
        lambda: twin(**after("scores", steps.scaled_by_size)),
        Code.SCORES_CHANGED,
    ),
    "ranked scores": (lambda: twin(**after("scores", steps.ranked)), Code.SCORES_CHANGED),
    "changed scores, and weights masked": (
        lambda: twin(
            **after("scores", steps.unary("Exp")), **after("weights", weight_steps.mask_weights)
        ),
        Code.SCORES_CHANGED,
    ),
    "float64": (graph_twins.double, Code.UNSUPPORTED_TYPE),
    "scale by column": (
        lambda: twin(**after("scores", steps.times(1, 1, 1, ROWS))),
        Code.SCALE_NOT_SCALAR,
    ),
    "scale by column at run time": (
        lambda: twin(**after("scores", steps.scale_at_run_time("S"))),
        Code.SCALE_NOT_SCALAR,
    ),
    "scale by row after the mask": (
        lambda: twin(Form(mask="add2"), **after("scores", steps.scale_at_run_time("B", 1, "S", 1))),
        Code.UNSUPPORTED_OP,
    ),
    "scale by row after the cap": (
        lambda: twin(
            Form(extra="softcap"), **after("scores", steps.scale_at_run_time("B", 1, "S", 1))
        ),
        Code.UNSUPPORTED_OP,
    ),
    "rows divided under a cap": (
        lambda: twin(**after("scores", steps.rows_divided_under_cap)),
        Code.UNSUPPORTED_OP,
    ),
    "sink beside shifted scores": (
        lambda: twin(weights=weight_steps.sink_beside_shifted),
        Code.CONTENT_BIAS,
    ),
    "number divided by the scores": (
        lambda: twin(**after("scores", operand_twins.divided_by)),
        Code.SCALE_NOT_SCALAR,
    ),
    "infinite scale of a head": (
        lambda: twin(**after("scores", steps.times_by_head("Mul", 1, 2, np.inf, 3))),
        Code.SCALE_NOT_SCALAR,
    ),
    "division by zero of a head": (
        lambda: twin(**after("scores", steps.times_by_head("Div", 1, 2, 0, 3))),
        Code.SCALE_NOT_SCALAR,
    ),
    "infinite scale": (
        lambda: twin(**after("scores", steps.binary("Mul", np.inf))),
        Code.SCALE_NOT_SCALAR,
    ),
    "cap after the mask": (
        lambda: twin(Form(mask="add2"), **after("scores", steps.cap)),
        Code.UNSUPPORTED_OP,
    ),
    "two caps": (
        lambda: twin(Form(extra="softcap"), **after("scores", steps.cap)),
        Code.UNSUPPORTED_OP,
    ),
    "bounded scores": (lambda: twin(**after("scores", steps.clip)), Code.SCORES_CHANGED),
    "positive scores": (
        lambda: twin(**after("scores", steps.binary("Max", 0.0))),
        Code.SCORES_CHANGED,
    ),
    "negative scores": (
        lambda: twin(**after("scores", steps.binary("Min", 0.0))),
        Code.SCORES_CHANGED,
    ),
    "rectified scores": (lambda: twin(**after("scores", steps.unary("Relu"))), Code.SCORES_CHANGED),
    "exponential scores": (
        lambda: twin(**after("scores", steps.unary("Exp"))),
        Code.SCORES_CHANGED,
    ),
    "scores of unknown shape": (
        lambda: twin(**after("scores", steps.unknown_shape)),
        Code.SHAPE_UNKNOWN,
    ),
    "scores of an unknown operator": (
        lambda: twin(**after("scores", steps.unary("Mystery", domain="com.example"))),
        Code.SHAPE_UNKNOWN,
    ),
    "one of two sums with tensors": (
        lambda: twin(**after("scores", steps.choose_of_two_sums)),
        Code.CONTENT_BIAS,
    ),
    "sum of parts that aren't opposite": (
        lambda: twin(**after("scores", steps.sum_of_unlike_parts)),
        Code.CONTENT_BIAS,
    ),
    "factor of more than one number": (
        lambda: twin(**after("scores", steps.times(1, 1, ROWS, ROWS))),
        Code.SCALE_NOT_SCALAR,
    ),
    "zeroed behind a fill that scores reach": (
        lambda: twin(**weight_steps.zeroed_after(-1e4)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed where the mask shows": (
        lambda: twin(**weight_steps.zeroed_after(-1e9, turned=True)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed by another mask": (
        lambda: twin(**weight_steps.zeroed_after(-1e9, own=True)),
        Code.WEIGHTS_SCALED,
    ),
    "negative sum of nothing": (
        lambda: twin(**after("weights", weight_steps.renormalised_by(-1.0))),
        Code.WEIGHTS_SCALED,
    ),
    "sink of whole numbers": (
        lambda: twin(weights=weight_steps.cast_sink(onnx.TensorProto.INT32)),
        Code.UNSUPPORTED_OP,
    ),
    "quantized scores": (lambda: twin(scored=steps.quantized_product), Code.QUANTIZED),
    "scores rounded like another tensor": (
        lambda: twin(**after("scores", steps.rounded_like)),
        Code.SCORES_CHANGED,
    ),
    "rounded scores": (lambda: twin(**after("scores", steps.rounded)), Code.SCORES_CHANGED),
    "scores bounded by two": (
        lambda: twin(**after("scores", steps.bounded_by_two)),
        Code.SCORES_CHANGED,
    ),
    "scores bounded by what is not known": (
        lambda: twin(**after("scores", steps.bounded_by_input)),
        Code.SCORES_CHANGED,
    ),
    "rounded weights": (lambda: twin(**after("weights", steps.rounded)), Code.UNSUPPORTED_OP),
    "sink by row": (
        lambda: twin(weights=weight_steps.wrong_sink(1, 0, ROWS, by_row=True)),
        Code.UNSUPPORTED_OP,
    ),
    "sink cut off together with a column": (
        lambda: twin(
            weights=weight_steps.wrong_sink(1, 0, ROWS - 1),
            product=operand_twins.values_but_the_last,
        ),
        Code.UNSUPPORTED_OP,
    ),
    "weights weighed by themselves": (
        lambda: twin(product=weight_steps.product_with_weights),
        Code.WEIGHTS_SCALED,
    ),
    "negative cap": (
        lambda: twin(**after("scores", steps.negative_cap)),
        Code.UNSUPPORTED_OP,
    ),
    "powers by other sums": (
        lambda: twin(weights=weight_steps.softmax_of_other_sums),
        Code.UNSUPPORTED_OP,
    ),
    "powers by sums of other powers": (
        lambda: twin(weights=weight_steps.softmax_of_other_powers),
        Code.UNSUPPORTED_OP,
    ),
    "sum of other numbers": (
        lambda: twin(weights=weight_steps.log_of_other_sum),
        Code.UNSUPPORTED_OP,
    ),
}
# These have sites, which are no attention of the usual kind; any code is right, silence is not.
NAMED: dict[str, tuple[Make, int]] = {
    "sink cut at the wrong end": (lambda: twin(weights=weight_steps.wrong_sink(1, 1, ROWS + 1)), 1),
    "sink under a mask": (lambda: twin(weights=weight_steps.masked_sink), 1),
    "two sinks a head": (lambda: twin(weights=weight_steps.two_sinks), 1),
    "a sink on each side": (
        lambda: twin(weights=weight_steps.sink_of_heads(is_first=True, count=2)),
        1,
    ),
    "a row joined below": (lambda: twin(weights=weight_steps.sink_of_heads(axis=2)), 1),
    "two columns joined": (lambda: twin(weights=weight_steps.wrong_sink(2, 0, ROWS)), 1),
}


@pytest.mark.parametrize("name", DECLINED)
def test_twin_is_declined_with_its_code(name: str) -> None:
    check_declined(*DECLINED[name])


@pytest.mark.parametrize("name", NAMED)
def test_twin_is_not_passed_over_in_silence(name: str) -> None:
    make, count = NAMED[name]
    sample = make()
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert [block.status for block in result.report.blocks] == ["declined"] * count
    assert result.model.SerializeToString() == sample.model.SerializeToString()


@pytest.mark.parametrize("projection", ["no_bias", "packed_3nd", "packed_gather"])
def test_bias_of_the_query_is_called_so_where_the_key_shares_its_projection(
    projection: str,
) -> None:
    sample = twin(Form(projection=projection), **after("scored", steps.add_content_bias))
    (block,) = onnx_fuse.explain(sample.model, threshold=None).blocks
    assert block.reason is not None
    assert block.reason.endswith(" is computed from the query")
