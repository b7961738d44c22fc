"""Other ways to write the usual graph down, which lose nothing."""

from __future__ import annotations

import pytest

from tests.analysis.samples import graph_twins, norm_twins, operand_twins, steps, weight_steps
from tests.analysis.samples import weight_twins as ways
from tests.analysis.samples.forms import NUM_HEADS, Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import BATCH, ROWS, after, below, on, twin
from tests.analysis.verdicts import ALL, OUT, PAST, ROTATED, Make, check_fused

WHOLE: dict[str, tuple[Make, tuple[str, ...]]] = {
    "as usual": (Writer(Form()).sample, (*ALL, *OUT)),
    "queries, keys and values side by side": (
        lambda: twin(operands_of_product=operand_twins.side_by_side),
        ("qkv", *OUT),
    ),
    "mask of a named number of batches": (
        lambda: twin(**after("scores", steps.masked_by_input("n", 1, 1, ROWS))),
        (*ALL, "attn_bias", *OUT),
    ),
    "mask of a named number of columns": (
        lambda: twin(**after("scores", steps.masked_by_input(BATCH, 1, 1, "n"))),
        (*ALL, "attn_bias", *OUT),
    ),
    "softmax by a reciprocal": (
        lambda: twin(weights=weight_steps.reciprocal_softmax),
        (*ALL, *OUT),
    ),
    "softmax by a logarithm": (lambda: twin(weights=weight_steps.logsumexp_softmax), (*ALL, *OUT)),
    "softmax of a transpose": (
        lambda: twin(weights=weight_steps.softmax_of_transposed),
        (*ALL, *OUT),
    ),
    "greatest of one": (lambda: twin(**after("scores", steps.unary("Max"))), (*ALL, *OUT)),
    "norm of flat rows": (
        lambda: twin(**on("k", "normed", norm_twins.norm_of_rows)),
        (*ALL, "k_norm_weight", *OUT),
    ),
    "scale by head": (
        lambda: twin(**after("scores", steps.times(1, NUM_HEADS, 1, 1))),
        (*ALL, *OUT),
    ),
    "division by head behind a rotation": (
        lambda: twin(Form(rope="half"), **after("scores", steps.times_by_head("Div", 1, 2, 3, 4))),
        ROTATED,
    ),
    "scale by head under a mask": (
        lambda: twin(Form(mask="add2"), **after("capped", steps.times(NUM_HEADS, 1, 1))),
        (*ALL, "attn_bias", *OUT),
    ),
    "bias of the scores' type": (
        lambda: twin(**after("scores", steps.add_whole_numbers)),
        (*ALL, "attn_bias", *OUT),
    ),
    "sum with zeros": (lambda: twin(**after("scores", ways.plus_zeros)), (*ALL, *OUT)),
    "taken off from zeros": (lambda: twin(**after("scores", ways.less_than_zeros)), (*ALL, *OUT)),
    "weights halved": (lambda: twin(**after("weights", steps.binary("Mul", 0.5))), (*ALL, *OUT)),
    "weights by head": (
        lambda: twin(**after("weights", steps.times(NUM_HEADS, 1, 1))),
        (*ALL, *OUT),
    ),
    "weights divided by head, then halved": (
        lambda: twin(
            **after(
                "weights",
                ways.each(steps.times_by_head("Div", 1, 2, 3, 4), steps.binary("Mul", 0.5)),
            )
        ),
        (*ALL, *OUT),
    ),
    "heads normed by constants": (
        lambda: twin(**on("q", "normed", norm_twins.batch_normed())),
        (*ALL, *OUT),
    ),
    "factor below a norm": (
        lambda: twin(Form(norm="rms"), **below("k", "normed", steps.binary("Mul", 3.0))),
        (*ALL, "q_norm_weight", "k_norm_weight", *OUT),
    ),
    "factor behind a norm": (
        lambda: twin(Form(norm="rms"), **on("k", "normed", steps.binary("Mul", 3.0))),
        (*ALL, "q_norm_weight", "k_norm_weight", *OUT),
    ),
    "dropout that drops nothing": (
        lambda: twin(**after("weights", weight_steps.drop_nothing)),
        (*ALL, *OUT),
    ),
    "learned queries before projected keys": (
        lambda: graph_twins.pooled_by(steps.binary("Mul", 2.0)),
        ("context", "query", "value", "k_weight"),
    ),
    "heads of one number": (
        lambda: graph_twins.sized(depth=1),
        ("hidden", "qkv_weight", "out_weight"),
    ),
    "heads of one number, of which nothing is summed": (
        lambda: graph_twins.sized(depth=1, scored=steps.every_pair),
        ("hidden", "qkv_weight", "out_weight"),
    ),
    "values weighed in pairs that are turned and summed": (
        lambda: twin(product=steps.turned_sum(0, 2, 1, 4, 3)),
        (*ALL, *OUT),
    ),
    "positions behind a convolution of neighbours": (
        lambda: graph_twins.behind_a_convolution(("bcn,bcm->bnm", "bnm,bcm->bnc")),
        ("query", "key", "value"),
    ),
    "softmax in float64": (lambda: twin(weights=weight_steps.in_float64), (*ALL, *OUT)),
    "cache of keys and values in one": (steps.stacked_cache(False), (*ALL, *PAST, *OUT)),
    "cache of keys and values in one, shown": (steps.stacked_cache(True), (*ALL, *PAST, *OUT)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_means_the_same_is_fused_whole(name: str) -> None:
    make, expected = WHOLE[name]
    check_fused(make(), expected)
