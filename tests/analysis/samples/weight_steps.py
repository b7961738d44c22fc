"""Steps in the place of a writer's softmax or behind it, many of which only look like one."""

from __future__ import annotations

import numpy as np
import onnx

from tests.analysis.samples.forms import NUM_HEADS
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import (
    BATCH,
    DOUBLE,
    ROWS,
    Step,
    after,
)


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


def zeroed_after(fill: float, *, turned: bool = False, own: bool = False) -> dict[str, Step]:
    """Fill by a mask before the softmax, and put to zero after it by the same mask.

    turned: by its opposite; own: by a mask of its own.
    """

    def filled(w: Writer, scores: str) -> str:
        keep = w.b.input("keep", np.tri(ROWS, dtype=bool), ("S", "S"))
        return w.b.op("Where", keep, scores, w.b.scalar(fill))

    def zeroed(w: Writer, weights: str) -> str:
        keep = "keep"
        if own:
            keep = w.b.input("other", np.tri(ROWS, dtype=bool), ("S", "S"))
        parts = (weights, w.b.scalar(0.0))
        return w.b.op("Where", keep, *(reversed(parts) if turned else parts))

    return after("scores", filled) | after("weights", zeroed)


def renormalised_by(
    number: float, *, bound: float = 0.0, behind: bool = False, asks: str = ""
) -> Step:
    """Mask after the softmax, and divide by a number where the sum is not above a bound.

    behind: put the number in the place of the quotient, not of the sum. asks: an input of which it
    is asked instead whether it is above.
    """

    def weights(w: Writer, weights: str) -> str:
        b = w.b
        if "keep" not in b.feeds:
            b.input("keep", np.tri(ROWS, dtype=bool), ("S", "S"))
        kept = b.op("Mul", weights, b.op("Cast", "keep", to=1))
        total = b.reduce("ReduceSum", kept, -1)
        asked = b.input(asks, w.random(ROWS, 1), ("S", 1)) if asks else total
        some = b.op("Greater", asked, b.scalar(bound))
        if behind:
            return b.op("Where", some, b.op("Div", kept, total), b.scalar(number))
        return b.op("Div", kept, b.op("Where", some, total, b.scalar(number)))

    return weights


def log_of_other_sum(w: Writer, scores: str) -> str:
    """exp(x - log(sum(exp(2 x)))): what looks like a softmax and sums to something else."""
    twice = w.b.op("Mul", scores, w.b.scalar(2.0))
    return w.b.op("Exp", w.b.op("Sub", scores, w.b.reduce("ReduceLogSumExp", twice, -1)))


def train(w: Writer, weights: str) -> str:
    """Drop weights by chance."""
    return w.b.op("Dropout", weights, w.b.scalar(0.5), w.b.const(True), seed=1)


def drop_nothing(w: Writer, weights: str) -> str:
    """A Dropout that was left in its training mode, but with nothing to drop."""
    return w.b.op("Dropout", weights, w.b.scalar(0.0), w.b.const(True), seed=1)


def scaled_product(alpha: float) -> Step:
    """The product of weights and values, times a number."""
    return lambda w, weights, value: w.b.op(
        "FusedMatMul", weights, value, domain="com.microsoft", alpha=alpha
    )


def in_float64(w: Writer, scores: str) -> str:
    """Take the softmax in float64."""
    wide = w.b.op("Cast", scores, to=DOUBLE)
    return w.b.op("Cast", w.b.op("Softmax", wide, axis=-1), to=1)


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


def renormalised_rows(w: Writer, weights: str) -> str:
    """Drop weights, and divide by the sums of the columns."""
    keep = w.b.input("keep", np.tri(ROWS, dtype=bool), ("S", "S"))
    kept = w.b.op("Mul", weights, w.b.op("Cast", keep, to=1))
    return w.b.op("Div", kept, w.b.reduce("ReduceSum", kept, -2))


def shifted_by_twice(w: Writer, scores: str) -> str:
    """Take off the largest of twice the scores."""
    twice = w.b.op("Mul", scores, w.b.scalar(2.0))
    return w.b.op("Sub", scores, w.b.reduce("ReduceMax", twice, -1))


def wrong_sink(count: int, start: int, stop: int, *, by_row: bool = False) -> Step:
    """Join `count` columns at the end, and keep the columns from start to stop."""

    def weights(w: Writer, scores: str) -> str:
        numbers = w.random(BATCH, NUM_HEADS, ROWS, count)
        column = w.b.const(numbers if by_row else numbers * 0 + numbers[:1, :, :1])
        joined = w.b.op("Softmax", w.b.op("Concat", scores, column, axis=-1), axis=-1)
        return w.b.slice(joined, start, stop, -1)

    return weights


def sink_of_heads(
    *, is_first: bool = False, count: int = 1, factor: float = 1.0, axis: int = -1
) -> Step:
    """Join a column (or a row) for each head before or behind the scores, and cut it off again.

    count: how many columns, with two one at each end. factor: by what all are multiplied then.
    """

    def weights(w: Writer, scores: str) -> str:
        dims: list[str | int] = ["B", NUM_HEADS, "S", "S"]
        dims[axis] = 1
        numbers = (w.b.const(w.random(1, NUM_HEADS, 1, 1)) for _ in range(count))
        wide = [w.b.op("Expand", number, w.b.shape(dims)) for number in numbers]
        parts = [*wide[:1], scores, *wide[1:]] if is_first else [scores, *wide]
        joined = w.b.op("Concat", *parts, axis=axis)
        if factor != 1.0:
            joined = w.b.op("Mul", joined, w.b.scalar(factor))
        start = 1 if is_first else 0
        return w.b.slice(w.b.op("Softmax", joined, axis=-1), start, start + ROWS, axis)

    return weights


def sink_of_zeros(w: Writer, scores: str) -> str:
    """Join a column of zeros, as many as a run asks for, and cut it off again."""
    zeros = w.b.op("ConstantOfShape", w.b.shape(("B", NUM_HEADS, "S", 1)))
    joined = w.b.op("Concat", scores, zeros, axis=-1)
    return w.b.slice(w.b.op("Softmax", joined, axis=-1), 0, -1, -1)


def masked_sink(w: Writer, scores: str) -> str:
    """Join a column, and add a number of the row to scores and sink together."""
    numbers = w.random(1, NUM_HEADS, 1, 1)
    wide = w.b.op("Expand", w.b.const(numbers), w.b.shape(("B", NUM_HEADS, "S", 1)))
    joined = w.b.op("Concat", scores, wide, axis=-1)
    masked = w.b.op("Add", joined, w.b.const(w.random(ROWS, 1)))
    return w.b.slice(w.b.op("Softmax", masked, axis=-1), 0, ROWS, -1)


def sink_beside_shifted(w: Writer, scores: str) -> str:
    """The rows' maximum is taken off the scores and not off the sink."""
    column = w.b.const(w.random(1, NUM_HEADS, 1, 1))
    wide = w.b.op("Expand", column, w.b.shape(("B", NUM_HEADS, "S", 1)))
    shifted = w.b.op("Sub", scores, w.b.reduce("ReduceMax", scores, -1))
    joined = w.b.op("Softmax", w.b.op("Concat", shifted, wide, axis=-1), axis=-1)
    return w.b.slice(joined, 0, ROWS, -1)


def two_sinks(w: Writer, scores: str) -> str:
    """Two numbers a head that take part in the softmax, not one."""
    column = w.b.const(w.random(1, NUM_HEADS, 1, 2))
    wide = w.b.op("Expand", column, w.b.shape(("B", NUM_HEADS, "S", 2)))
    joined = w.b.op("Softmax", w.b.op("Concat", scores, wide, axis=-1), axis=-1)
    return w.b.slice(joined, 0, ROWS, -1)


def cast_sink(dtype: int) -> Step:
    """Join a column that is of another type where it is expanded."""

    def weights(w: Writer, scores: str) -> str:
        column = w.b.op("Cast", w.b.input("sinks", w.random(NUM_HEADS), (NUM_HEADS,)), to=dtype)
        wide = w.b.op(
            "Expand",
            w.b.reshape(column, 1, NUM_HEADS, 1, 1),
            w.b.shape(("B", NUM_HEADS, "S", 1)),
        )
        beside = w.b.op("Cast", wide, to=onnx.TensorProto.FLOAT)
        joined = w.b.op("Softmax", w.b.op("Concat", scores, beside, axis=-1), axis=-1)
        return w.b.slice(joined, 0, ROWS, -1)

    return weights


def product_with_weights(w: Writer, weights: str, value: str) -> str:
    """Weigh the weights by themselves, then the values."""
    return w.b.op("MatMul", w.b.op("MatMul", weights, weights), value)
