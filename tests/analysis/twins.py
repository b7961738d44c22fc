"""Graphs that differ by one step from attention that is fused: each step, the twin's own."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import numpy as np
import onnx

from tests.analysis.forms import HEAD_DIM, HIDDEN, NUM_HEADS, OUT, SIZES, Form
from tests.analysis.graphs import Sample, Writer

Step = Callable[..., Any]
ROWS, BATCH = SIZES["S"], SIZES["B"]
DOUBLE = onnx.TensorProto.DOUBLE
USUAL = Form()


def twin(form: Form = USUAL, **steps: Step) -> Sample:
    """Return the form's graph with some of the writer's steps exchanged for others."""
    writer = Writer(form)
    for name, step in steps.items():
        setattr(writer, name, MethodType(step, writer))
    return writer.sample()


def before(name: str, change: Step) -> dict[str, Step]:
    """Change the first argument of a step."""
    own = getattr(Writer, name)
    return {name: lambda w, value, *rest: own(w, change(w, value), *rest)}


def after(name: str, change: Step) -> dict[str, Step]:
    """Change the result of a step."""
    own = getattr(Writer, name)
    return {name: lambda w, *inputs: change(w, own(w, *inputs))}


def on(which: str, name: str, change: Step) -> dict[str, Step]:
    """Change the result of a step that is taken for "q" and "k", for one of them only."""
    own = getattr(Writer, name)

    def step(w: Writer, value: str, part: str) -> str:
        made = own(w, value, part)
        return change(w, made) if part == which else made

    return {name: step}


# Scores -------------------------------------------------------------------------------------------


def add_content_bias(w: Writer, scores: str) -> str:
    """Add a product of the scores' own query with a table: a bias made of content."""
    query = next(node.input[0] for node in reversed(w.b.nodes) if node.op_type == "MatMul")
    table = w.b.const(w.random(HEAD_DIM, ROWS))
    return w.b.op("Add", scores, w.b.op("MatMul", query, table))


def bias_from_source(w: Writer, scores: str) -> str:
    """Add a number for each head and column, projected from what the block reads."""
    made = w.b.op("MatMul", "hidden", w.b.const(w.random(HIDDEN, NUM_HEADS)))
    return w.b.op("Add", scores, w.b.unsqueeze(w.b.transpose(made, 0, 2, 1), 2))


def mix_heads(w: Writer, value: str) -> str:
    """Talking heads: each head is a mixture of all."""
    matrix = w.b.const(w.random(NUM_HEADS, NUM_HEADS))
    return w.b.op("Einsum", value, matrix, equation="bnst,nm->bmst")


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


def clip(w: Writer, value: str) -> str:
    """Bound what real scores reach."""
    return w.b.op("Clip", value, w.b.scalar(-1.0), w.b.scalar(1.0))


def scale_by_input(w: Writer, value: str) -> str:
    """Multiply by a number that is known at run time only."""
    return w.b.op("Mul", value, w.b.input("scale", np.array([0.3], np.float32), (1,)))


def scale_at_run_time(*dims: int | str) -> Step:
    """Multiply by an input of these extents."""

    def scaled(w: Writer, value: str) -> str:
        shape = [SIZES[dim] if isinstance(dim, str) else dim for dim in dims]
        return w.b.op("Mul", value, w.b.input("scale", w.random(*shape), dims))

    return scaled


def rows_scaled_under_cap(w: Writer, scores: str) -> str:
    """Scale each row by a number of its own, and cap."""
    return cap(w, scale_at_run_time("B", 1, "S", 1)(w, scores))


def choose_of_two(w: Writer, scores: str) -> str:
    """Select between scores and twice the scores."""
    keep = w.b.input("keep", np.tri(ROWS, dtype=bool), ("S", "S"))
    return w.b.op("Where", keep, scores, w.b.op("Mul", scores, w.b.scalar(2.0)))


def cap(w: Writer, value: str) -> str:
    """Softcap."""
    half = w.b.op("Tanh", w.b.op("Mul", value, w.b.scalar(0.5)))
    return w.b.op("Mul", half, w.b.scalar(2.0))


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


def channel_product(w: Writer, weights: str, value: str) -> str:
    """Weigh the values' channels."""
    return w.b.transpose(w.b.op("MatMul", weights, w.b.transpose(value, 0, 1, 3, 2)), 0, 1, 3, 2)


# Weights ------------------------------------------------------------------------------------------


def softmax_along(axis: int) -> Step:
    """Normalise along another axis."""
    return lambda w, scores: w.b.op("Softmax", scores, axis=axis)


def logarithmic(w: Writer, scores: str) -> str:
    """Take the logarithm of the weights for the weights."""
    return w.b.op("LogSoftmax", scores, axis=-1)


def mask_weights(w: Writer, weights: str) -> str:
    """Drop weights after the softmax, without normalising again."""
    keep = w.b.input("keep", np.tri(ROWS, dtype=np.float32), ("S", "S"))
    return w.b.op("Mul", weights, keep)


def train(w: Writer, weights: str) -> str:
    """Drop weights by chance."""
    return w.b.op("Dropout", weights, w.b.scalar(0.5), w.b.const(True), seed=1)


def guard_with(number: float) -> Step:
    """Put another number than 0 for what isn't one."""
    return lambda w, p: w.b.op("Where", w.b.op("IsNaN", p), w.b.scalar(number), p)


def guard_of_others(w: Writer, weights: str) -> str:
    """Put 0 for what isn't a number in the transposed weights."""
    turned = w.b.transpose(weights, 0, 1, 3, 2)
    return w.b.op("Where", w.b.op("IsNaN", turned), w.b.scalar(0.0), weights)


def softmax_of_other_sums(w: Writer, scores: str) -> str:
    """Divide the powers by the sums of the transposed powers."""
    power = w.b.op("Exp", scores)
    total = w.b.reduce("ReduceSum", w.b.transpose(power, 0, 1, 3, 2), -1)
    return w.b.op("Div", power, total)


def softmax_of_other_powers(w: Writer, scores: str) -> str:
    """Divide the powers by the sums of the powers of twice the scores."""
    twice = w.b.op("Exp", w.b.op("Add", scores, scores))
    return w.b.op("Div", w.b.op("Exp", scores), w.b.reduce("ReduceSum", twice, -1))


def shifted_by_others(w: Writer, scores: str) -> str:
    """Take off the largest of each column, not of each row."""
    turned = w.b.transpose(scores, 0, 1, 3, 2)
    return w.b.op("Sub", scores, w.b.reduce("ReduceMax", turned, -1))


def reciprocal_softmax(w: Writer, scores: str) -> str:
    """Multiply the powers by the reciprocal of their sum."""
    power = w.b.op("Exp", scores)
    return w.b.op("Mul", w.b.op("Reciprocal", w.b.reduce("ReduceSum", power, -1)), power)


def logsumexp_softmax(w: Writer, scores: str) -> str:
    """exp(x - (log(sum(exp(x - max))) + max)), the maximum's axis dropped and made again."""
    peak = w.b.op("ReduceMax", scores, axes=[-1], keepdims=0)
    powers = w.b.op("Exp", w.b.op("Sub", scores, w.b.unsqueeze(peak, -1)))
    level = w.b.op("Log", w.b.op("ReduceSum", powers, w.b.const([-1], np.int64), keepdims=0))
    return w.b.op("Exp", w.b.op("Sub", scores, w.b.unsqueeze(w.b.op("Add", level, peak), 3)))


def softmax_of_transposed(w: Writer, scores: str) -> str:
    """Sum the powers along the first of two exchanged axes."""
    power = w.b.op("Exp", scores)
    total = w.b.reduce("ReduceSum", w.b.transpose(power, 0, 1, 3, 2), 2)
    return w.b.op("Div", power, w.b.transpose(total, 0, 1, 3, 2))


def norm_of_rows(w: Writer, value: str) -> str:
    """An RMS norm whose mean is taken of (batch * seq * heads, depth), its axis dropped."""
    flat = w.b.reshape(value, -1, HEAD_DIM)
    mean = w.b.op("ReduceMean", w.b.op("Mul", flat, flat), axes=[1], keepdims=0)
    root = w.b.op("Sqrt", w.b.op("Add", mean, w.b.scalar(1e-5)))
    return w.b.op("Div", value, w.b.reshape(root, "B", "S", NUM_HEADS, 1))


def renormalised_rows(w: Writer, weights: str) -> str:
    """Drop weights, and divide by the sums of the columns."""
    keep = w.b.input("keep", np.tri(ROWS, dtype=bool), ("S", "S"))
    kept = w.b.op("Mul", weights, w.b.op("Cast", keep, to=1))
    return w.b.op("Div", kept, w.b.reduce("ReduceSum", kept, -2))


def shifted_by_twice(w: Writer, scores: str) -> str:
    """Take off the largest of twice the scores."""
    twice = w.b.op("Mul", scores, w.b.scalar(2.0))
    return w.b.op("Sub", scores, w.b.reduce("ReduceMax", twice, -1))


def picked_by_rank(w: Writer, key: str) -> str:
    """Put the keys of each batch's first head into the order of their first numbers."""
    first = w.b.reshape(w.b.slice(w.b.slice(key, 0, 1, 0), 0, 1, -1), -1, NUM_HEADS)
    ranked = w.b.ops("TopK", w.b.transpose(first, 1, 0), w.b.const([ROWS], np.int64), count=2)
    order = w.b.reshape(w.b.slice(ranked[1], 0, 1, 0), ROWS)
    return w.b.op("Gather", key, order, axis=1)


def wrong_sink(count: int, start: int, stop: int, *, by_row: bool = False) -> Step:
    """Join `count` columns at the end, and keep the columns from start to stop."""

    def weights(w: Writer, scores: str) -> str:
        numbers = w.random(BATCH, NUM_HEADS, ROWS, count)
        column = w.b.const(numbers if by_row else numbers * 0 + numbers[:1, :, :1])
        joined = w.b.op("Softmax", w.b.op("Concat", scores, column, axis=-1), axis=-1)
        return w.b.slice(joined, start, stop, -1)

    return weights


def masked_sink(w: Writer, scores: str) -> str:
    """Join a column, and add a mask to scores and sink together."""
    numbers = w.random(1, NUM_HEADS, 1, 1)
    wide = w.b.op("Expand", w.b.const(numbers), w.b.shape(("B", NUM_HEADS, "S", 1)))
    joined = w.b.op("Concat", scores, wide, axis=-1)
    masked = w.b.op("Add", joined, w.b.const(w.random(ROWS, ROWS + 1)))
    return w.b.slice(w.b.op("Softmax", masked, axis=-1), 0, ROWS, -1)


def two_sinks(w: Writer, scores: str) -> str:
    """Two numbers a head that take part in the softmax, not one."""
    column = w.b.const(w.random(1, NUM_HEADS, 1, 2))
    wide = w.b.op("Expand", column, w.b.shape(("B", NUM_HEADS, "S", 2)))
    joined = w.b.op("Softmax", w.b.op("Concat", scores, wide, axis=-1), axis=-1)
    return w.b.slice(joined, 0, ROWS, -1)


def constant_scores(w: Writer, scores: str) -> str:
    """Leave the scores aside."""
    return w.b.const(w.random(*w.score_shape))


# Queries and keys ---------------------------------------------------------------------------------


def shifted_rotation(w: Writer, value: str, name: str) -> str:
    """x * cos + roll(x) * sin: three numbers round, not two."""
    b = w.b
    first, second = b.split(value, [3, HEAD_DIM - 3], 3)
    rolled = b.op("Concat", b.op("Neg", second), first, axis=-1)
    return rotation(w, value, rolled)


def mixing_rotation(w: Writer, value: str, name: str) -> str:
    """A rotation and the number itself once more."""
    return w.b.op("Add", rotation(w, value, swapped(w, value)), value)


def leaking_rotation(w: Writer, value: str, name: str) -> str:
    """The table is multiplied by numbers of the rotated tensor."""
    straight = w.b.op("Mul", value, value)
    return w.b.op("Add", straight, w.b.op("Mul", swapped(w, value), _table(w)))


def exchanged(w: Writer, value: str, name: str) -> str:
    """Exchange the halves, and rotate nothing."""
    first, second = w.b.split(value, [HEAD_DIM // 2] * 2, 3)
    return w.b.op("Concat", second, first, axis=-1)


def nearly_permuted_rotation(w: Writer, value: str, name: str) -> str:
    """x * cos + (x . R) * sin with a matrix that exchanges halves, and mixes in one more number."""
    matrix, half = np.zeros((HEAD_DIM, HEAD_DIM), np.float32), HEAD_DIM // 2
    lane = np.arange(half)
    matrix[lane + half, lane], matrix[lane, lane + half] = -1.0, 1.0
    matrix[HEAD_DIM - 1, 0] = 0.5
    return rotation(w, value, w.b.op("MatMul", value, w.b.const(matrix)))


def dense_rotation(w: Writer, value: str, name: str) -> str:
    """x * cos + (x . R) * sin with a matrix that mixes all."""
    return rotation(w, value, w.b.op("MatMul", value, w.b.const(w.random(HEAD_DIM, HEAD_DIM))))


def mismatched_rotation(w: Writer, value: str, name: str) -> str:
    """Queries are rotated by halves, keys by pairs."""
    if name == "q":
        return rotation(w, value, swapped(w, value))
    odd = [w.b.slice(value, n, HEAD_DIM, -1, 2) for n in (1, 0)]
    pair = [w.b.unsqueeze(part, 4) for part in (w.b.op("Neg", odd[0]), odd[1])]
    joined = w.b.op("Concat", *pair, axis=4)
    crossed = w.b.op("Reshape", joined, w.b.const([0, 0, 0, HEAD_DIM], np.int64))
    return rotation(w, value, crossed)


def swapped(w: Writer, value: str) -> str:
    first, second = w.b.split(value, [HEAD_DIM // 2] * 2, 3)
    return w.b.op("Concat", w.b.op("Neg", second), first, axis=-1)


def _table(w: Writer) -> str:
    return w.b.const(w.random(ROWS, HEAD_DIM))


def rotation(w: Writer, value: str, crossed: str) -> str:
    straight = w.b.op("Mul", value, _table(w))
    return w.b.op("Add", straight, w.b.op("Mul", crossed, _table(w)))


def norm_along(*axes: int) -> Step:
    """An RMS norm of (batch, seq, heads, depth) along other axes than the depth."""

    def normed(w: Writer, value: str) -> str:
        square = w.b.op("Mul", value, value)
        mean = w.b.op("ReduceMean", square, axes=list(axes), keepdims=1)
        mean = w.b.op("Add", mean, w.b.scalar(1e-5))
        return w.b.op("Div", value, w.b.op("Sqrt", mean))

    return normed


def quartic_norm(w: Writer, value: str) -> str:
    """Divide by the root of the mean of the fourth powers."""
    mean = w.b.reduce("ReduceMean", w.b.op("Pow", value, w.b.scalar(4.0)), -1)
    return w.b.op("Div", value, w.b.op("Sqrt", w.b.op("Add", mean, w.b.scalar(1e-5))))


def repeated_first(axis: int) -> Step:
    """Put the first of an axis of (batch, seq, heads, depth) in place of all."""
    shape = [BATCH, ROWS, NUM_HEADS, HEAD_DIM]

    def normed(w: Writer, value: str) -> str:
        return w.b.op("Expand", w.b.slice(value, 0, 1, axis), w.b.const(shape, np.int64))

    return normed


def lopsided_norm(w: Writer, value: str) -> str:
    """Divide by the root of the mean square of another tensor than the one that is divided."""
    other = w.b.op("Relu", value)
    mean = w.b.reduce("ReduceMean", w.b.op("Mul", other, other), -1)
    return w.b.op("Div", value, w.b.op("Sqrt", w.b.op("Add", mean, w.b.scalar(1e-5))))


def turned_norm(w: Writer, value: str) -> str:
    """Divide by the root of the mean square of other rows: of the heads in reverse."""
    turned = w.b.slice(value, -1, -NUM_HEADS - 1, 2, -1)
    mean = w.b.reduce("ReduceMean", w.b.op("Mul", turned, turned), -1)
    return w.b.op("Div", value, w.b.op("Sqrt", w.b.op("Add", mean, w.b.scalar(1e-5))))


def mixed_square_norm(w: Writer, value: str) -> str:
    """Divide by the root of the mean of each number times one of another head."""
    turned = w.b.slice(value, -1, -NUM_HEADS - 1, 2, -1)
    mean = w.b.reduce("ReduceMean", w.b.op("Mul", value, turned), -1)
    return w.b.op("Div", value, w.b.op("Sqrt", w.b.op("Add", mean, w.b.scalar(9.0))))


def shifted_mean_norm(w: Writer, value: str) -> str:
    """A LayerNorm whose mean is that over another axis."""
    centred = w.b.op("Sub", value, w.b.reduce("ReduceMean", value, 1))
    mean = w.b.reduce("ReduceMean", w.b.op("Mul", centred, centred), -1)
    return w.b.op("Div", centred, w.b.op("Sqrt", w.b.op("Add", mean, w.b.scalar(1e-5))))


def quantized_projection(w: Writer, value: str) -> str:
    """Multiply by an int8 matrix, as dynamic quantization writes it."""
    b = w.b
    flat = b.reshape(value, "B", "S", NUM_HEADS * HEAD_DIM)
    whole, scale, zero = b.ops("DynamicQuantizeLinear", flat, count=3)
    weight = b.const(w.rng.integers(-90, 90, (NUM_HEADS * HEAD_DIM,) * 2), np.int8)
    made = b.op("Cast", b.op("MatMulInteger", whole, weight, zero), to=1)
    scaled = b.op("Mul", made, b.op("Mul", scale, b.scalar(0.01)))
    return b.reshape(scaled, "B", "S", NUM_HEADS, HEAD_DIM)


def runtime_projection(w: Writer, value: str) -> str:
    """Multiply by a matrix that is a graph input."""
    matrix = w.b.input("matrix", w.random(HEAD_DIM, HEAD_DIM), (HEAD_DIM, HEAD_DIM))
    return w.b.op("MatMul", value, matrix)


def by_batch(w: Writer, value: str) -> str:
    """Multiply each batch by a constant matrix of its own."""
    return w.b.op("MatMul", value, w.b.const(w.random(BATCH, 1, HEAD_DIM, HEAD_DIM)))


def unknown_shape(w: Writer, value: str) -> str:
    """Reshape to what an input says."""
    shape = np.array([BATCH, NUM_HEADS, ROWS, ROWS], np.int64)
    return w.b.op("Reshape", value, w.b.input("shape", shape, (4,)))


# Output -------------------------------------------------------------------------------------------


def runtime_output(w: Writer, context: str) -> str:
    """Project by a matrix that is a graph input."""
    width = NUM_HEADS * HEAD_DIM
    matrix = w.b.input("matrix", w.random(width, OUT), (width, OUT))
    return w.b.op("MatMul", w.b.reshape(context, "B", "S", width), matrix)


def output_by_batch(w: Writer, context: str) -> str:
    """Project each batch by a constant matrix of its own."""
    width = NUM_HEADS * HEAD_DIM
    flat = w.b.reshape(context, "B", "S", width)
    return w.b.op("MatMul", flat, w.b.const(w.random(BATCH, width, OUT)))


def residual(w: Writer, output: str) -> str:
    """Add a tensor, not a bias."""
    return w.b.op("Add", output, w.b.input("residual", w.random(BATCH, ROWS, OUT), ("B", "S", OUT)))


def biased_rows(w: Writer, output: str) -> str:
    """Add a constant of its own to each row."""
    return w.b.op("Add", output, w.b.const(w.random(ROWS, OUT)))


def position_output(w: Writer, context: str) -> str:
    """Project over the positions too."""
    flat = w.b.reshape(context, "B", ROWS * NUM_HEADS * HEAD_DIM)
    return w.b.op("MatMul", flat, w.b.const(w.random(ROWS * NUM_HEADS * HEAD_DIM, OUT)))


# Whole graphs -------------------------------------------------------------------------------------


def gate() -> Sample:
    """A mixture of experts: the weights of a softmax select among constant vectors."""
    w = Writer(USUAL)
    hidden = w.source("hidden", "S", HIDDEN)
    chosen = w.b.op("Softmax", w.b.op("MatMul", hidden, w.b.const(w.random(HIDDEN, 6))), axis=-1)
    made = w.b.op("MatMul", chosen, w.b.const(w.random(6, OUT)))
    return Sample(w.b.model(made), w.b.feeds, w.record)


def classifier() -> Sample:
    """A softmax at the end of a model."""
    w = Writer(USUAL)
    hidden = w.source("hidden", "S", HIDDEN)
    made = w.b.op("Softmax", w.b.op("MatMul", hidden, w.b.const(w.random(HIDDEN, 6))), axis=-1)
    return Sample(w.b.model(made), w.b.feeds, w.record)


def linear_attention() -> Sample:
    """softmax(q) . (softmax(k)^T . v), each over its own axis."""
    w = Writer(USUAL)
    query, key, value = w.operands_of_product()
    query = w.b.op("Softmax", query, axis=-1)
    key = w.b.op("Softmax", key, axis=2)
    table = w.b.op("MatMul", w.b.transpose(key, 0, 1, 3, 2), value)
    made = w.output(w.merged(w.b.op("MatMul", query, table)))
    return Sample(w.b.model(made), w.b.feeds, w.record)


def in_parts() -> Sample:
    """The first rows attend as usual, the others by rectified scores; their contexts are joined."""
    w = Writer(USUAL)
    query, key, value = w.operands_of_product()
    parts = []
    for start, stop, kind in ((0, 3, "Identity"), (3, ROWS, "Relu")):
        scores = w.b.op(kind, w.scored(w.b.slice(query, start, stop, 2), key))
        parts.append(w.b.op("MatMul", w.b.op("Softmax", scores, axis=-1), value))
    made = w.output(w.merged(w.b.op("Concat", *parts, axis=2)))
    return Sample(w.b.model(made), w.b.feeds, w.record)


def landmarks() -> Sample:
    """softmax(q . l^T) . (softmax(l . k^T) . v): both approximate one attention by landmarks."""
    w = Writer(USUAL)
    query, key, value = w.operands_of_product()
    few = w.b.op("ReduceMean", key, axes=[2], keepdims=1)
    few = w.b.op("Concat", few, w.b.slice(key, 0, 2, 2), axis=2)
    inner = w.b.op("MatMul", w.b.op("Softmax", w.scored(few, key), axis=-1), value)
    outer = w.b.op("Softmax", w.scored(query, few), axis=-1)
    made = w.output(w.merged(w.b.op("MatMul", outer, inner)))
    return Sample(w.b.model(made), w.b.feeds, w.record)


def pooled() -> Sample:
    """Each position is compared with itself alone, and the weights pool the positions."""
    w = Writer(USUAL)
    query, key, value = w.operands_of_product()
    scores = w.b.op("Einsum", query, key, equation="bnsd,bnsd->bns")
    weights = w.b.op("Softmax", scores, axis=-1)
    made = w.b.op("Einsum", weights, value, equation="bns,bnsd->bnd")
    return Sample(w.b.model(made), w.b.feeds, w.record)


def double() -> Sample:
    """Attention in float64."""
    w = Writer(USUAL)
    hidden = w.b.input("hidden", w.random(BATCH, ROWS, HIDDEN).astype(float), ("B", "S", HIDDEN))
    parts = []
    for _ in range(3):
        weight = w.b.const(w.random(HIDDEN, NUM_HEADS * HEAD_DIM).astype(float) / 4)
        flat = w.b.op("MatMul", hidden, weight)
        parts.append(w.heads_first(w.b.reshape(flat, "B", "S", NUM_HEADS, HEAD_DIM)))
    weights = w.b.op("Softmax", w.scored(*parts[:2]), axis=-1)
    merged = w.merged(w.b.op("MatMul", weights, parts[2]))
    made = w.b.reshape(merged, "B", "S", NUM_HEADS * HEAD_DIM)
    return Sample(w.b.model(made, dtype=DOUBLE), w.b.feeds, w.record)


def old_softmax() -> Sample:
    """Before opset 13 a softmax of axis 2 normalises over axes 2 and 3 together."""
    made = twin(weights=softmax_along(2))
    made.model.opset_import[0].version = 12
    return made


def shown(*names: str) -> Callable[[], Sample]:
    """The usual graph with results of steps among its outputs."""

    def make() -> Sample:
        w = Writer(Form(mask="add2", norm="rms", rope="half"))
        found: list[str] = []
        for name in names:
            own = getattr(w, name)

            def step(*inputs: str, own: Step = own) -> str:
                found.append(own(*inputs))
                return found[-1]

            setattr(w, name, step)
        made = w.sample()
        extra = [onnx.ValueInfoProto(name=name) for name in found]
        for value in extra:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        made.model.graph.output.extend(extra)
        return made

    return make


def read_twice(name: str) -> Callable[[], Sample]:
    """The usual graph with a second reader of a step's result, whose own result is an output."""

    def make() -> Sample:
        found: list[str] = []
        own = getattr(Writer, name)

        def step(w: Writer, *inputs: str) -> str:
            result = own(w, *inputs)
            found.append(w.b.op("Exp", w.b.op("Tanh", result)))
            return result

        made = twin(Form(mask="add2", norm="rms", rope="half"), **{name: step})
        extra = onnx.ValueInfoProto(name=found[0])
        extra.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        made.model.graph.output.append(extra)
        return made

    return make


# Steps that look harmless -------------------------------------------------------------------------


def rounded(w: Writer, value: str) -> str:
    """Round towards zero, by a cast to an integer and back."""
    return w.b.op("Cast", w.b.op("Cast", value, to=onnx.TensorProto.INT32), to=1)


def bounded_by_two(w: Writer, value: str) -> str:
    """The greater of two bounds holds, be the other as low as it likes."""
    return w.b.op("Max", value, w.b.scalar(0.0), w.b.scalar(-3e38))


def mask_rows(w: Writer, scores: str) -> str:
    """Hide whole queries: next to such a number their scores are all the same."""
    mask = np.zeros((BATCH, 1, ROWS, 1), np.float32)
    mask[0, 0, -2:] = -1e9
    return w.b.op("Add", scores, w.b.input("mask", mask, ("B", 1, "S", 1)))


def clipped_norm(w: Writer, value: str) -> str:
    """Divide by the length, but by no more than 1: Clip as it was before opset 11."""
    length = w.b.op("ReduceL2", value, axes=[-1], keepdims=1)
    return w.b.op("Div", value, w.b.op("Clip", length, min=1e-5, max=1.0))


def rounding_norm(w: Writer, value: str) -> str:
    """Divide by the root of the mean square of the rounded numbers."""
    whole = rounded(w, value)
    mean = w.b.reduce("ReduceMean", w.b.op("Mul", whole, whole), -1)
    return w.b.op("Div", value, w.b.op("Sqrt", w.b.op("Add", mean, w.b.scalar(1e-5))))


def dropped(w: Writer, value: str) -> str:
    """Drop numbers by chance."""
    return w.b.op("Dropout", value, w.b.scalar(0.5), w.b.const(True), seed=1)


def old_clip() -> Sample:
    """The usual graph with a key norm that is bounded above, in opset 10."""
    made = twin(**on("k", "normed", clipped_norm))
    made.model.opset_import[0].version = 10
    return made
