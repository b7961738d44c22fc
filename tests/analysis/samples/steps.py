"""Steps in the place of a writer's own, many of which only look like attention's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.analysis.samples.forms import HEAD_DIM, HIDDEN, NUM_HEADS, SIZES
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.twins import (
    BATCH,
    ROWS,
    USUAL,
    Step,
)


def routed(w: Writer, query: str, key: str) -> str:
    """Project the scores, as a router of experts does."""
    made = w.b.op("MatMul", "hidden", w.b.const(w.random(HIDDEN, NUM_HEADS * ROWS)))
    return w.b.transpose(w.b.reshape(made, "B", "S", NUM_HEADS, ROWS), 0, 2, 1, 3)


def summed(op_type: str) -> Step:
    """Sum what an operator makes of each query and key, over the depth."""

    def scored(w: Writer, query: str, key: str) -> str:
        pairs = w.b.op(op_type, w.b.unsqueeze(query, 3), w.b.unsqueeze(key, 2))
        return w.b.op("ReduceSum", pairs, w.b.const([-1], np.int64), keepdims=0)

    return scored


def every_pair(w: Writer, query: str, key: str) -> str:
    """Multiply the only number of each query and that of each key: nothing is summed."""
    flat = [w.b.op("Squeeze", value, w.b.const([3], np.int64)) for value in (query, key)]
    return w.b.op("Einsum", *flat, equation="bns,bnt->bnst")


def multiplied_pairs(w: Writer, query: str, key: str) -> str:
    """The same by broadcasting."""
    return w.b.op("Mul", query, w.b.transpose(key, 0, 1, 3, 2))


def ranked(w: Writer, scores: str) -> str:
    """Sort the scores of each row."""
    return w.b.ops("TopK", scores, w.b.const([ROWS], np.int64), count=2)[0]


def add_content_bias(w: Writer, scores: str) -> str:
    """Add a product of the scores' own query with a table: a bias made of content."""
    query = next(node.input[0] for node in reversed(w.b.nodes) if node.op_type == "MatMul")
    table = w.b.const(w.random(HEAD_DIM, ROWS))
    return w.b.op("Add", scores, w.b.op("MatMul", query, table))


def add_whole_numbers(w: Writer, scores: str) -> str:
    """Add whole numbers to rows; they take on the type of the scores."""
    return w.b.op("Add", scores, w.b.op("CastLike", _whole_numbers(w), scores))


def add_whole_numbers_in_branch(w: Writer, scores: str) -> str:
    """Add whole numbers that take on the type of the scores within a branch."""
    like = helper.make_node("CastLike", [_whole_numbers(w), scores], ["numbers_like"])
    made = helper.make_tensor_value_info("numbers_like", TensorProto.FLOAT, [ROWS, 1])
    branch = helper.make_graph([like], "branch", [], [made])
    chosen = w.b.op("If", w.b.const(True, np.bool_), then_branch=branch, else_branch=branch)
    return w.b.op("Add", scores, chosen)


def add_content_like_numbers(w: Writer, scores: str) -> str:
    """Add a product of the scores' own query, of the type that other numbers have."""
    query = next(node.input[0] for node in reversed(w.b.nodes) if node.op_type == "MatMul")
    made = w.b.op("MatMul", query, w.b.const(w.random(HEAD_DIM, ROWS)))
    like = w.b.input("like", np.ones(1, np.float32), (1,))
    return w.b.op("Add", scores, w.b.op("CastLike", made, like))


def _whole_numbers(w: Writer) -> str:
    return w.b.input("numbers", np.arange(ROWS, dtype=np.int32).reshape(ROWS, 1), (ROWS, 1))


def _sides(w: Writer) -> tuple[str, str]:
    """Return numbers for each head and row, and others for each head and column.

    Both are projected from what the block reads.
    """
    rows, columns = (
        w.b.transpose(w.b.op("MatMul", "hidden", w.b.const(w.random(HIDDEN, NUM_HEADS))), 0, 2, 1)
        for _ in range(2)
    )
    return w.b.unsqueeze(rows, 3), w.b.unsqueeze(columns, 2)


def bias_of_columns(w: Writer, scores: str) -> str:
    """Add a number for each head and column, projected from what the block reads."""
    return w.b.op("Add", scores, _sides(w)[1])


def bias_of_rows(w: Writer, scores: str) -> str:
    """Take off a number for each head and row, projected from what the block reads."""
    return w.b.op("Sub", scores, _sides(w)[0])


def bias_of_both(op: str) -> Step:
    """Add what an operator makes of numbers for rows and of others for columns."""
    return lambda w, scores: w.b.op("Add", scores, w.b.op(op, *_sides(w)))


def filled_by_rows(w: Writer, scores: str) -> str:
    """Choose a number for each head and row, projected from what the block reads."""
    keep = w.b.input("keep", w.random(ROWS, ROWS) > 0, ("S", "S"))
    return w.b.op("Where", keep, scores, _sides(w)[0])


def bias_of_mean(axis: int) -> Step:
    """Take off the scores' mean over an axis."""
    return lambda w, scores: w.b.op("Sub", scores, w.b.op("ReduceMean", scores, axes=[axis]))


def distances(w: Writer, query: str, key: str) -> str:
    """The negative squares of the distances between queries and keys."""
    product = w.b.op("MatMul", query, w.b.transpose(key, 0, 1, 3, 2))
    squares = [w.b.reduce("ReduceSumSquare", operand, -1) for operand in (query, key)]
    both = w.b.op("Add", squares[0], w.b.transpose(squares[1], 0, 1, 3, 2))
    return w.b.op("Neg", w.b.op("Sub", both, w.b.op("Mul", product, w.b.scalar(2.0))))


def bias_from_another(scored: Callable[[Writer], tuple[str, str]]) -> Step:
    """Add a number for each head and pair, made of what another softmax weighs."""

    def bias(w: Writer, scores: str) -> str:
        shown, values = scored(w)
        context = w.b.op("MatMul", w.b.op("Softmax", shown, axis=-1), values)
        made = w.b.op("MatMul", context, w.b.const(w.random(HIDDEN, NUM_HEADS)))
        sides = (w.b.unsqueeze(w.b.transpose(made, 0, 2, 1), axis) for axis in (3, 2))
        return w.b.op("Add", scores, w.b.op("Mul", *sides))

    return bias


def rows_weighed(w: Writer) -> tuple[str, str]:
    """Return scores of all rows for each row of what the block reads, and those rows."""
    return w.b.op("MatMul", "hidden", w.b.const(w.random(HIDDEN, ROWS))), "hidden"


def gates_weighed(w: Writer) -> tuple[str, str]:
    """Return scores of a few learned rows for each row of what the block reads, and those rows."""
    scores = w.b.op("MatMul", "hidden", w.b.const(w.random(HIDDEN, NUM_HEADS)))
    return scores, w.b.const(w.random(NUM_HEADS, HIDDEN))


def mix_heads(w: Writer, value: str) -> str:
    """Talking heads: each head is a mixture of all."""
    matrix = w.b.const(w.random(NUM_HEADS, NUM_HEADS))
    return w.b.op("Einsum", value, matrix, equation="bnst,nm->bmst")


def less_other_heads(w: Writer, value: str) -> str:
    """Differential attention: of each head's weights those of another one are taken."""
    orders = (w.b.const(order) for order in (range(NUM_HEADS), range(NUM_HEADS)[::-1]))
    own, other = (w.b.op("Gather", value, order, axis=1) for order in orders)
    return w.b.op("Sub", own, w.b.op("Mul", other, w.b.scalar(0.5)))


def mix_columns(w: Writer, value: str) -> str:
    """Each column becomes a mixture of all."""
    return w.b.op("MatMul", value, w.b.const(w.random(ROWS, ROWS)))


def times(*shape: int) -> Step:
    """Multiply by a constant of this shape."""
    return lambda w, value: w.b.op("Mul", value, w.b.const(w.random(*shape)))


def plus(*shape: int) -> Step:
    """Add a constant of this shape."""
    return lambda w, value: w.b.op("Add", value, w.b.const(w.random(*shape)))


def unary(op_type: str, **attributes: Any) -> Step:
    """Apply an operator of one input."""
    return lambda w, value: w.b.op(op_type, value, **attributes)


def binary(op_type: str, number: float) -> Step:
    """Apply an operator with a number as its second input."""
    return lambda w, value: w.b.op(op_type, value, w.b.scalar(number))


def reversed_binary(op_type: str, number: float) -> Step:
    """Apply an operator with a number as its first input."""
    return lambda w, value: w.b.op(op_type, w.b.scalar(number), value)


def times_by_head(op_type: str, *factors: float) -> Step:
    """Multiply the scores of each head by a number of its own, or divide by it."""
    numbers = np.array(factors, np.float32).reshape(1, NUM_HEADS, 1, 1)
    return lambda w, scores: w.b.op(op_type, scores, w.b.const(numbers))


def clip(w: Writer, value: str) -> str:
    """Bound what real scores reach."""
    return w.b.op("Clip", value, w.b.scalar(-1.0), w.b.scalar(1.0))


def scale_by_input(w: Writer, value: str) -> str:
    """Multiply by a number that is known at run time only."""
    return w.b.op("Mul", value, w.b.input("scale", np.array([0.3], np.float32), (1,)))


def scaled_by_size(w: Writer, scores: str) -> str:
    """Divide scores by the greatest size that one of their row has."""
    return w.b.op("Div", scores, w.b.reduce("ReduceMax", w.b.op("Abs", scores), -1))


def scale_at_run_time(*dims: int | str, op_type: str = "Mul") -> Step:
    """Multiply or divide by an input of these extents."""

    def scaled(w: Writer, value: str) -> str:
        shape = [SIZES[dim] if isinstance(dim, str) else dim for dim in dims]
        return w.b.op(op_type, value, w.b.input("scale", w.random(*shape), dims))

    return scaled


def rows_scaled_under_cap(w: Writer, scores: str, op_type: str = "Mul") -> str:
    """Scale each row by a number of its own, and cap."""
    return cap(w, scale_at_run_time("B", 1, "S", 1, op_type=op_type)(w, scores))


def rows_divided_under_cap(w: Writer, scores: str) -> str:
    """Divide each row by a number of its own, which may be 0, and cap."""
    return rows_scaled_under_cap(w, scores, "Div")


def choose_of_two(w: Writer, scores: str) -> str:
    """Select between scores and twice the scores."""
    keep = w.b.input("keep", np.tri(ROWS, dtype=bool), ("S", "S"))
    return w.b.op("Where", keep, scores, w.b.op("Mul", scores, w.b.scalar(2.0)))


def choose_of_two_sums(w: Writer, scores: str) -> str:
    """Select between the scores and their sum with a tensor that isn't one number."""
    keep = w.b.input("keep", np.tri(ROWS, dtype=bool), ("S", "S"))
    return w.b.op("Where", keep, scores, w.b.op("Add", scores, w.b.const(w.random(ROWS, ROWS))))


def sum_of_unlike_parts(w: Writer, scores: str) -> str:
    """Add two parts of the scores, of which both or none may be kept."""
    b = w.b
    choices = [b.input(name, np.tri(ROWS, dtype=bool), ("S", "S")) for name in ("keep", "hide")]
    parts = [b.op("Mul", scores, b.op("Cast", choice, to=1)) for choice in choices]
    return b.op("Add", *parts)


def cap(w: Writer, value: str) -> str:
    """Softcap."""
    half = w.b.op("Tanh", w.b.op("Mul", value, w.b.scalar(0.5)))
    return w.b.op("Mul", half, w.b.scalar(2.0))


def negative_cap(w: Writer, value: str) -> str:
    """What looks like a cap and turns the sign."""
    half = w.b.op("Tanh", w.b.op("Mul", value, w.b.scalar(0.5)))
    return w.b.op("Mul", half, w.b.scalar(-2.0))


def turned_sum(*order: int) -> Step:
    """Multiply each weight and value, turn the products' axes, and sum up the last of them.

    What is left is turned back: heads stand before what follows the batch.
    """

    def product(w: Writer, weights: str, value: str) -> str:
        pairs = w.b.op("Mul", w.b.unsqueeze(weights, 4), w.b.unsqueeze(value, 2))
        turned = w.b.transpose(pairs, *order)
        summed = w.b.op("ReduceSum", turned, w.b.const([-1], np.int64), keepdims=0)
        return w.b.transpose(summed, 0, 2, 1, 3)

    return product


def quantized_product(w: Writer, query: str, key: str) -> str:
    """Multiply queries and keys as int8."""
    b = w.b
    query, q_scale, q_zero = b.ops("DynamicQuantizeLinear", query, count=3)
    turned = b.transpose(key, 0, 1, 3, 2)
    key, k_scale, k_zero = b.ops("DynamicQuantizeLinear", turned, count=3)
    whole = b.op("Cast", b.op("MatMulInteger", query, key, q_zero, k_zero), to=1)
    return b.op("Mul", whole, b.op("Mul", q_scale, k_scale))


def channel_scores(w: Writer, query: str, key: str) -> str:
    """Multiply queries and keys over the positions: (batch, heads, depth, depth)."""
    return w.b.op("MatMul", w.b.transpose(query, 0, 1, 3, 2), key)


def tied_scores(w: Writer, query: str, key: str) -> str:
    """Multiply queries and keys over the batch, too: (1, heads, rows, columns)."""
    return w.b.op("Einsum", query, key, equation="bnsd,bntd->nst")


def tied_product(w: Writer, weights: str, value: str) -> str:
    """Weigh the values of the whole batch alike."""
    return w.b.op("Einsum", weights, value, equation="nst,bntd->bnsd")


def scores_of_heads(w: Writer, query: str, key: str) -> str:
    """Multiply heads with each other over their positions and channels."""
    return w.b.op("Einsum", query, key, equation="bnsd,bmsd->bnm")


def product_of_heads(w: Writer, weights: str, value: str) -> str:
    """Weigh the heads."""
    return w.b.op("Einsum", weights, value, equation="bnm,bmsd->bnsd")


def channel_product(w: Writer, weights: str, value: str) -> str:
    """Weigh the values' channels."""
    return w.b.transpose(w.b.op("MatMul", weights, w.b.transpose(value, 0, 1, 3, 2)), 0, 1, 3, 2)


def scaled_by_heads(*numbers: float) -> Step:
    """Scale by a constant of each head."""
    data = np.asarray(numbers, np.float32).reshape(-1, 1, 1)
    return lambda w, scores: w.b.op("Mul", scores, w.b.const(data))


def scaled_like(number: float, like: int) -> Step:
    """Scale by the root of a constant that gets its type from a computed tensor, perhaps cut."""

    def scaled(w: Writer, scores: str) -> str:
        model = w.b.op("Cast", scores, to=like)
        factor = w.b.op("CastLike", w.b.const(number, np.float64), model)
        root = w.b.op("Sqrt", w.b.op("CastLike", factor, scores))
        return w.b.op("Mul", w.b.op("CastLike", scores, root), root)

    return scaled


def rounded_like(w: Writer, value: str) -> str:
    """Round to the type of another tensor, and back."""
    whole = w.b.op("CastLike", value, w.b.input("whole", np.ones(1, np.int32), (1,)))
    return w.b.op("CastLike", whole, value)


def constant_scores(w: Writer, scores: str) -> str:
    """Leave the scores aside."""
    return w.b.const(w.random(*w.score_shape))


def unknown_shape(w: Writer, value: str) -> str:
    """Reshape to what an input says."""
    shape = np.array([BATCH, NUM_HEADS, ROWS, ROWS], np.int64)
    return w.b.op("Reshape", value, w.b.input("shape", shape, (4,)))


def stacked_cache(shows: bool) -> Callable[[], Sample]:
    """Keys and values in one tensor behind those of earlier steps, perhaps an output."""

    def make() -> Sample:
        w = Writer(USUAL)
        query, *new = w.operands_of_product()
        b, dims = w.b, (2, "B", NUM_HEADS, "T", HEAD_DIM)
        both = b.op("Concat", *(b.unsqueeze(part, 0) for part in new), axis=0)
        past = b.input("past", w.random(2, BATCH, NUM_HEADS, SIZES["T"], HEAD_DIM), dims)
        joined = b.op("Concat", past, both, axis=3)
        picked = [b.op("Gather", joined, b.const(n, np.int64), axis=0) for n in (0, 1)]
        weights = w.weights(w.scores(query, picked[0]))
        outputs = [w.output(w.merged(w.product(weights, picked[1]))), joined]
        made = w.b.model(*outputs[: 1 + shows])
        if shows:
            made.graph.output[1].type.tensor_type.ClearField("shape")
        return Sample(made, w.b.feeds, w.record)

    return make


# Steps that look harmless -------------------------------------------------------------------------


def rounded(w: Writer, value: str) -> str:
    """Round towards zero, by a cast to an integer and back."""
    return w.b.op("Cast", w.b.op("Cast", value, to=onnx.TensorProto.INT32), to=1)


def bounded_by_two(w: Writer, value: str) -> str:
    """The greater of two bounds holds, be the other as low as it likes."""
    return w.b.op("Max", value, w.b.scalar(0.0), w.b.scalar(-3e38))


def bounded_by_input(w: Writer, value: str) -> str:
    """The greatest holds, be it the one that is known at run time only."""
    low = w.b.input("low", np.array(0.5, np.float32), ())
    return w.b.op("Max", value, w.b.scalar(-3e38), low)


def mask_rows(w: Writer, scores: str) -> str:
    """Hide whole queries: next to such a number their scores are all the same."""
    mask = np.zeros((BATCH, 1, ROWS, 1), np.float32)
    mask[0, 0, -2:] = -1e9
    return w.b.op("Add", scores, w.b.input("mask", mask, ("B", 1, "S", 1)))


def dropped(w: Writer, value: str) -> str:
    """Drop numbers by chance."""
    return w.b.op("Dropout", value, w.b.scalar(0.5), w.b.const(True), seed=1)


def masked_by_input(*dims: int | str) -> Step:
    """Add an input of (batch or 1, 1, 1, columns) to the scores, its extents as named here."""

    def scores(w: Writer, value: str) -> str:
        mask = w.random(BATCH, 1, 1, ROWS)
        added = w.b.op("Add", value, w.b.input("added", mask, mask.shape))
        w.b.inputs[-1] = helper.make_tensor_value_info("added", onnx.TensorProto.FLOAT, dims)
        return added

    return scores
