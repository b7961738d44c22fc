"""Graphs that are fused up to where they stop being plain; the rest enters as it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.samples import (
    graph_twins,
    mixed_operands,
    norm_twins,
    operand_twins,
    steps,
)
from tests.analysis.samples import weight_twins as ways
from tests.analysis.samples.forms import HEAD_DIM, HIDDEN, NUM_HEADS, SIZES, Form
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.twins import Step, after, before, below, on, twin
from tests.analysis.verdicts import (
    ALL,
    BOTH,
    KEY,
    OUT,
    PAST,
    QUERY,
    ROTATED,
    TABLES,
    VALUE,
    Make,
    check_fused,
    check_same,
    operands,
)

BATCH, ROWS = SIZES["B"], SIZES["S"]
GIVEN = ("hidden", "key", "value", "q_weight", "q_bias", *OUT)

GIVEN_TURNED = ("hidden", "key", "value", "q_weight", "q_cos", "q_sin", *OUT)


def keys_read() -> Sample:
    """Keys with lanes of two kinds, the largest of which are added to the context."""
    operands: list[str] = []

    def of_product(w: Writer) -> tuple[str, ...]:
        operands.extend(mixed_operands.from_a_latent()(w))
        return tuple(operands)

    def product(w: Writer, weights: str, value: str) -> str:
        most = w.b.reduce("ReduceMax", operands[1], -1)
        return w.b.op("Add", w.b.op("MatMul", weights, value), most)

    return twin(operands_of_product=of_product, product=product)


# These are fused up to where they stop being plain: what isn't enters as a value or is left out.
WRITTEN = ("query", "key", "value", *OUT)


def written_by_number(dims: str, **changes: int) -> Sample:
    """Lanes from a latent tensor, written where computed numbers say."""
    join = mixed_operands.written_by_number(**changes)
    return twin(Form(dims=dims), operands_of_product=mixed_operands.from_a_latent(join))


IN_PART: dict[str, tuple[Make, tuple[str, ...]]] = {
    "rotation of three": (lambda: twin(rotated=operand_twins.shifted_rotation), BOTH),
    "rotation of half as many heads": (
        lambda: twin(rotated=operand_twins.rotation_of_rows(2)),
        BOTH,
    ),
    "rotation and itself": (lambda: twin(rotated=operand_twins.mixing_rotation), BOTH),
    "rotation by its own numbers": (lambda: twin(rotated=operand_twins.leaking_rotation), BOTH),
    "halves exchanged and not rotated": (
        lambda: twin(rotated=operand_twins.exchanged),
        (*ALL, *OUT),
    ),
    "rotation by nearly a permutation": (
        lambda: twin(rotated=operand_twins.nearly_permuted_rotation),
        BOTH,
    ),
    "rotation by a dense matrix": (lambda: twin(rotated=operand_twins.dense_rotation), BOTH),
    "key rotated by pairs, query by halves": (
        lambda: twin(rotated=operand_twins.mismatched_rotation),
        (*KEY[:-2], "q_cos", "q_sin", *OUT),
    ),
    "rotation with both signs in one half": (
        lambda: twin(rotated=operand_twins.one_sided_rotation),
        ROTATED,
    ),
    "rotation of as many heads": (
        lambda: twin(rotated=operand_twins.rotation_of_rows(1)),
        ROTATED,
    ),
    "learned queries": (
        lambda: twin(operands_of_product=operand_twins.constant_positions("q")),
        QUERY,
    ),
    "learned keys and values": (
        lambda: twin(operands_of_product=operand_twins.constant_positions("k", "v")),
        ("hidden", "key", "value", "q_weight", "q_bias", *OUT),
    ),
    "learned keys and values, queries rotated": (
        lambda: twin(operands_of_product=operand_twins.rotated_before_constants),
        (*GIVEN[:-2], "q_cos", "q_sin", *OUT),
    ),
    "learned keys and values, queries shifted": (
        lambda: twin(operands_of_product=operand_twins.shifted_before_constants),
        ("query", "key", "value", *OUT),
    ),
    "learned keys and values of one head": (
        lambda: graph_twins.gate(graph_twins.projected),
        ("hidden", "key", "value", "q_weight"),
    ),
    "learned keys and values of two elements": (
        lambda: graph_twins.gate(graph_twins.projected, 2),
        ("hidden", "key", "value", "q_weight"),
    ),
    "scale by row": (lambda: twin(**after("scores", steps.times(1, 1, ROWS, 1))), QUERY),
    "halves of the weights in two products": (
        lambda: twin(product=ways.product_of_halves("Add")),
        VALUE,
    ),
    "values of two batches": (
        lambda: twin(product=operand_twins.values_of_two_batches),
        ("hidden", "context", "value", "q_weight", "k_weight", "q_bias", "k_bias", *OUT),
    ),
    "positions compared over a whole batch": (
        lambda: twin(scored=steps.tied_scores, product=steps.tied_product),
        ("query", "key", "value"),
    ),
    "keys of mixed positions": (
        lambda: twin(**on("k", "normed", operand_twins.mixed_positions)),
        KEY,
    ),
    "queries of mixed positions": (
        lambda: twin(**on("q", "normed", operand_twins.mixed_positions)),
        QUERY,
    ),
    "queries from the last row to the first": (
        lambda: twin(**on("q", "normed", lambda w, v: w.b.slice(v, 1 << 31, -(1 << 31), 1, -1))),
        QUERY,
    ),
    "queries normed by rows": (
        lambda: twin(**on("q", "normed", norm_twins.batch_normed(1))),
        QUERY,
    ),
    "queries normed by a variance that is given": (
        lambda: twin(**on("q", "normed", norm_twins.batch_normed(given=True))),
        QUERY,
    ),
    "rounded query": (lambda: twin(**on("q", "normed", steps.rounded)), QUERY),
    "biased product": (
        graph_twins.of_gemms,
        ("hidden", "qkv_weight", "attn_bias"),
    ),
    "difference of biased products": (
        lambda: graph_twins.of_gemms(terms=2),
        ("value_context", "query", "key", "v_weight", "attn_bias"),
    ),
    "projections of nothing": (
        lambda: graph_twins.sized(hidden=0),
        ("query", "key", "value", "out_weight"),
    ),
    "projection to nothing": (lambda: graph_twins.sized(out=0), ("hidden", "qkv_weight")),
    "hidden rows": (
        lambda: twin(**after("scores", steps.mask_rows)),
        (*ALL, "attn_bias", *OUT),
    ),
    "query scaled, then shifted": (
        lambda: twin(
            **on("q", "normed", ways.each(steps.binary("Mul", 3.0), steps.plus(HEAD_DIM)))
        ),
        (*ALL, *OUT),
    ),
    **{
        f"query {op_type} {number}": (
            partial(twin, **on("q", "normed", steps.binary(op_type, number))),
            QUERY,
        )
        for op_type, number in (("Div", 0.0), ("Mul", np.inf))
    },
    "queries and keys rotated twice": (
        lambda: twin(Form(rope="half"), rotated=operand_twins.rotated_twice),
        (*BOTH[:-2], "q_cos", "q_sin", "k_cos", "k_sin", *OUT),
    ),
    "table less the query": (
        lambda: twin(**on("q", "normed", operand_twins.less_value)),
        (*ALL, *OUT),
    ),
    "query times a number of five axes": (
        lambda: twin(**on("q", "normed", operand_twins.scaled_in_five_axes)),
        (*ALL, *OUT),
    ),
    "query scaled before its norm": (
        lambda: twin(Form(norm="rms"), **below("q", "normed", steps.binary("Mul", 3.0))),
        (*ALL, "q_norm_weight", "k_norm_weight", *OUT),
    ),
    "rectified query": (lambda: twin(**on("q", "normed", steps.unary("Relu"))), QUERY),
    "query bias by position": (lambda: twin(**on("q", "normed", steps.plus(ROWS, 1, 1))), QUERY),
    "quantized query": (
        lambda: twin(**on("q", "normed", operand_twins.quantized_projection)),
        QUERY,
    ),
    "query by a rectifying FusedGemm": (
        lambda: twin(**on("q", "normed", operand_twins.activated_gemm)),
        QUERY,
    ),
    "query by a Gemm with a bias of rows": (
        lambda: twin(**on("q", "normed", operand_twins.gemm_with_bias_of_rows)),
        QUERY,
    ),
    "query by a Gemm with a bias given at run time": (
        lambda: twin(**on("q", "normed", operand_twins.gemm_with_bias_at_run_time)),
        QUERY,
    ),
    "number divided by the query": (
        lambda: twin(**on("q", "normed", operand_twins.divided_by)),
        QUERY,
    ),
    "key weight given at run time": (
        lambda: twin(**on("k", "normed", operand_twins.runtime_projection)),
        KEY,
    ),
    **{
        f"key weight that the batch size chooses, {kind}": (
            lambda biased=biased: twin(
                Form(dims="dynamic"),
                **on("k", "normed", operand_twins.chosen_by_batch(biased=biased)),
            ),
            KEY,
        )
        for kind, biased in (("plain", False), ("biased", True))
    },
    "key weight of each batch": (lambda: twin(**on("k", "normed", operand_twins.by_batch)), KEY),
    "scale given at run time": (lambda: twin(**after("scores", steps.scale_by_input)), QUERY),
    "scale given at run time, of a packed query": (
        lambda: twin(
            operands_of_product=operand_twins.side_by_side,
            **after("scores", steps.scale_by_input),
        ),
        ("query", "key", "value", *OUT),
    ),
    "scale by head of a packed query": (
        lambda: twin(
            operands_of_product=operand_twins.side_by_side,
            **after("scores", steps.times(NUM_HEADS, 1, 1)),
        ),
        ("query", "key", "value", *OUT),
    ),
    **{
        f"side by side, {turned} of other positions": (
            partial(graph_twins.side_by_side, *turned),
            ("query", "key", "value"),
        )
        for turned in ("q", "k", "kv")
    },
    "side by side, all of their positions": (graph_twins.side_by_side, ("qkv",)),
    "side by side with a gate": (
        lambda: twin(operands_of_product=operand_twins.beside_a_gate),
        ("query", "key", "value", *OUT),
    ),
    "normed over all heads": (
        lambda: twin(operands_of_product=norm_twins.normed_over_heads(NUM_HEADS)),
        ("hidden", "qkv_weight", "q_norm_weight", "k_norm_weight", *OUT),
    ),
    "normed over half of the heads": (
        lambda: twin(operands_of_product=norm_twins.normed_over_heads(NUM_HEADS // 2)),
        ("value_context", "query", "key", "v_weight", *OUT),
    ),
    "weights of given values by numbers of heads": (
        lambda: twin(
            Form(extra="raw_values"),
            **after("weights", steps.times_by_head("Div", 1, 2, 3, 4)),
        ),
        VALUE,
    ),
    "weights of packed values halved": (
        lambda: twin(
            operands_of_product=operand_twins.side_by_side,
            **after("weights", steps.binary("Mul", 0.5)),
        ),
        ("query", "key", "value", *OUT),
    ),
    # Each query head has a value of its own then, and a key that it shares.
    "weights scaled by query head": (
        lambda: twin(Form(heads="gqa_expand"), **after("weights", steps.times(NUM_HEADS, 1, 1))),
        ("hidden", "key", "value", "q_weight", "q_bias", *OUT),
    ),
    "sum with almost zeros": (
        lambda: twin(**after("scores", steps.plus(ROWS, ROWS))),
        (*ALL, "attn_bias", *OUT),
    ),
    "rows scaled under a cap": (
        lambda: twin(**after("scores", steps.rows_scaled_under_cap)),
        QUERY,
    ),
    **{
        f"one more key and value by {join}": (
            partial(twin, operands_of_product=mixed_operands.with_a_row(join)),
            (*ALL, *PAST, *OUT),
        )
        for join in ("Pad", "Concat")
    },
    "one more key and value, and a mask for it": (
        lambda: twin(
            operands_of_product=mixed_operands.with_a_row("Pad"),
            **after("scores", steps.plus(ROWS, ROWS + 1)),
        ),
        (*ALL, *PAST, "attn_bias", *OUT),
    ),
    "lanes rotated behind others, shared by all heads": (
        lambda: twin(operands_of_product=mixed_operands.from_a_latent()),
        GIVEN_TURNED,
    ),
    "the same of open extents": (
        lambda: twin(Form(dims="dynamic"), operands_of_product=mixed_operands.from_a_latent()),
        GIVEN_TURNED,
    ),
    "the same, lanes written into zeros": (
        lambda: twin(operands_of_product=mixed_operands.from_a_latent(mixed_operands.written())),
        GIVEN_TURNED,
    ),
    "the same of open extents, lanes written into zeros": (
        partial(written_by_number, "dynamic"),
        GIVEN_TURNED,
    ),
    "the same of known extents, by numbers that are computed": (
        partial(written_by_number, "static"),
        GIVEN_TURNED,
    ),
    "the same of open extents, lanes written over each other": (
        partial(written_by_number, "dynamic", start=2),
        WRITTEN,
    ),
    "the same of open extents, batches written from the last on": (
        partial(written_by_number, "dynamic", is_reversed=True),
        WRITTEN,
    ),
    "the same, lanes written over each other": (
        lambda: twin(
            operands_of_product=mixed_operands.from_a_latent(mixed_operands.written(start=2))
        ),
        ("query", "key", "value", *OUT),
    ),
    "the same, lanes added to zeros": (
        lambda: twin(
            operands_of_product=mixed_operands.from_a_latent(
                mixed_operands.written(reduction="add")
            )
        ),
        ("query", "key", "value", *OUT),
    ),
    "the same, keys rounded": (
        lambda: twin(
            operands_of_product=mixed_operands.from_a_latent(
                lambda w, *lanes: w.b.op("Round", mixed_operands.joined(w, *lanes))
            )
        ),
        ("query", "key", "value", *OUT),
    ),
    "the same, keys read": (keys_read, ("query", "key", "value")),
    **{
        f"keys and values by strided convolutions, {group} channels a group": (
            partial(twin, operands_of_product=mixed_operands.by_strided_convolutions(group)),
            GIVEN,
        )
        for group in (3, HIDDEN)
    },
    "a gate behind the context": (
        lambda: twin(**before("output", mixed_operands.gated)),
        (*ALL, "gate", *OUT),
    ),
}
Show = Callable[[str], Make]
# Steps inside of what is fused, and what of it the model then computes anyway: queries and keys if
# both are shown, or a second reader has the last step's result alone.
INNER: dict[tuple[str, Show], tuple[str, ...]] = {
    **{(step, graph_twins.shown): BOTH for step in ("normed", "rotated")},
    **{(step, graph_twins.read_twice): QUERY for step in ("normed", "rotated")},
}


@pytest.mark.parametrize("name", IN_PART)
def test_twin_is_fused_up_to_where_it_stops_being_plain(name: str) -> None:
    make, expected = IN_PART[name]
    check_fused(make(), expected)


@pytest.mark.parametrize(("step", "show"), INNER)
def test_what_others_read_inside_is_kept(step: str, show: Show) -> None:
    check_fused(show(step)(), (*INNER[step, show][: -len(OUT)], *TABLES, *OUT))


@pytest.mark.parametrize("step", ["scored", "scores"])
@pytest.mark.parametrize("show", [graph_twins.shown, graph_twins.read_twice])
def test_scores_that_others_read_are_not_computed_again(step: str, show: Show) -> None:
    model = show(step)().model
    result = onnx_fuse.fuse(model, threshold=None)
    assert [block.code for block in result.report.blocks] == [Code.SCORES_READ]
    assert result.model.SerializeToString() == model.SerializeToString()


# By chance: what is drawn can't be compared, but it has to stay outside of the operator.
CHANCE: dict[str, tuple[Make, tuple[str, ...]]] = {
    "query": (lambda: twin(**on("q", "normed", steps.dropped)), QUERY),
    "context": (lambda: twin(**before("output", steps.dropped)), ALL),
}


@pytest.mark.parametrize("name", CHANCE)
def test_dropout_that_drops_stays_outside(name: str) -> None:
    make, expected = CHANCE[name]
    model = onnx_fuse.fuse(make().model, threshold=None).model
    assert operands(model) == [expected]
    assert "Dropout" in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(("name", "axis"), [(name, axis) for name in "qk" for axis in range(4)])
@pytest.mark.parametrize("dims", ["static", "dynamic"])
def test_what_is_repeated_is_computed_once_and_shown_everywhere(
    name: str, axis: int, dims: str
) -> None:
    change = on(name, "normed", operand_twins.repeated_first(axis))
    sample = twin(Form(dims=dims, projection="no_bias"), **change)
    model = onnx_fuse.fuse(sample.model, threshold=None).model
    assert len(operands(model)) == 1
    check_same(sample, model)


@pytest.mark.parametrize(
    "step",
    [norm_twins.batch_normed(training=1), norm_twins.batch_normed(variance=-1.0)],
    ids=["by its own moments", "by no real root"],
)
def test_batch_norm_that_cannot_be_folded_stays(step: Step) -> None:
    sample = twin(**on("q", "normed", step))
    assert operands(onnx_fuse.fuse(sample.model, threshold=None).model) == [QUERY]


@pytest.mark.parametrize("dims", ["static", "dynamic"])
@pytest.mark.parametrize("heads", ["gqa_expand", "gqa_tile", "gqa_concat", "mqa_broadcast"])
def test_keys_and_values_enter_as_they_were_before_they_are_repeated(heads: str, dims: str) -> None:
    """What is repeated is shown, so that the projections stay outside."""
    sample = graph_twins.shown_before("repeated", Form(heads=heads, dims=dims))
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert operands(result.model) == [GIVEN]
    check_same(sample, result.model)
    (block,) = result.report.blocks
    assert (block.num_heads, block.kv_num_heads) == (NUM_HEADS, Writer(Form(heads=heads)).kv_heads)
