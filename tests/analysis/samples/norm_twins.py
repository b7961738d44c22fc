"""Norms of queries and keys that differ by one step from those that the operator takes in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from tests.analysis.samples.forms import HEAD_DIM, HIDDEN, NUM_HEADS
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.steps import rounded, unary
from tests.analysis.samples.twins import BATCH, DOUBLE, ROWS, Step, on, twin


def batch_normed(
    axis: int = 2, *, variance: float = 0.5, given: bool = False, training: int = 0
) -> Step:
    """Norm an axis by constants, one of which may be given; or by the batch's own moments."""

    def normed(w: Writer, value: str) -> str:
        count = {1: ROWS, 2: NUM_HEADS}[axis]
        order = [0, axis, *({1, 2, 3} - {axis})]
        moments = [w.random(count) for _ in range(3)] + [np.full(count, variance, np.float32)]
        inputs = [w.b.const(moment) for moment in moments]
        if given:
            inputs[3] = w.b.input("variance", moments[3], (count,))
        made = w.b.ops(
            "BatchNormalization",
            w.b.transpose(value, *order),
            *inputs,
            count=1 + 2 * training,
            **({"training_mode": 1} if training else {}),
        )[0]
        return w.b.transpose(made, *np.argsort(order).tolist())

    return normed


def norm_along(*axes: int) -> Step:
    """An RMS norm of (batch, seq, heads, depth) along other axes than the depth."""

    def normed(w: Writer, value: str) -> str:
        square = w.b.op("Mul", value, value)
        mean = w.b.op("ReduceMean", square, axes=list(axes), keepdims=1)
        mean = w.b.op("Add", mean, w.b.scalar(1e-5))
        return w.b.op("Div", value, w.b.op("Sqrt", mean))

    return normed


def of_sum(
    *, axis: int = -1, power: float = 2.0, centred: int | None = None, root: float | None = None
) -> Step:
    """Divide by the root of a sum of powers and a number; centre both by a mean before, perhaps.

    root: the root is this power.
    """

    def normed(w: Writer, value: str) -> str:
        b = w.b
        if centred is not None:
            value = b.op("Sub", value, b.reduce("ReduceMean", value, centred))
        total = b.reduce("ReduceSum", b.op("Pow", value, b.scalar(power)), axis)
        total = b.op("Add", total, b.scalar(0.5))
        length = b.op("Sqrt", total) if root is None else b.op("Pow", total, b.scalar(root))
        return b.op("Div", value, length)

    return normed


def of_sum_of_squares(w: Writer, value: str) -> str:
    """Times one over the root of a sum of squares, made by one operator, and a number."""
    total = w.b.op("Add", w.b.reduce("ReduceSumSquare", value, -1), w.b.scalar(0.5))
    return w.b.op("Mul", value, w.b.op("Reciprocal", w.b.op("Sqrt", total)))


def centred_before(axis: int, *, factor: float = 1.0) -> Step:
    """An RMS norm, as one operator, of what is left without a factor of its mean along an axis."""

    def normed(w: Writer, value: str) -> str:
        mean = w.b.op("ReduceMean", value, axes=[axis], keepdims=1)
        mean = mean if factor == 1.0 else w.b.op("Mul", mean, w.b.scalar(factor))
        left, weight = w.b.op("Sub", value, mean), w.b.const(w.random(HEAD_DIM))
        return w.b.op("SimplifiedLayerNormalization", left, weight, axis=-1, epsilon=1e-5)

    return normed


def weighted_by(number: float) -> Step:
    """A layer norm, of whose weight the first lane has this number."""

    def normed(w: Writer, value: str) -> str:
        weight = np.array([number, *w.random(HEAD_DIM - 1)], dtype=np.float32)
        return w.b.op("LayerNormalization", value, w.b.const(weight), axis=-1)

    return normed


def weighted_alike(number: float) -> Step:
    """A layer norm whose weight is one number, once for each element that is normed."""

    def normed(w: Writer, value: str) -> str:
        filled = onnx.numpy_helper.from_array(np.array([number], np.float32))
        weight = w.b.op("ConstantOfShape", w.b.op("Shape", value), value=filled)
        return w.b.op("LayerNormalization", value, weight, axis=-1)

    return normed


def quartic_norm(w: Writer, value: str) -> str:
    """Divide by the root of the mean of the fourth powers."""
    mean = w.b.reduce("ReduceMean", w.b.op("Pow", value, w.b.scalar(4.0)), -1)
    return w.b.op("Div", value, w.b.op("Sqrt", w.b.op("Add", mean, w.b.scalar(1e-5))))


def norm_of_another_domain(op_type: str) -> Sample:
    """The usual graph with a key norm of which nothing is known but a standard operator's name."""
    made = twin(**on("k", "normed", unary(op_type, domain="com.example")))
    name = next(node.output[0] for node in made.model.graph.node if node.op_type == op_type)
    shape = (BATCH, ROWS, NUM_HEADS, HEAD_DIM)
    declared = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
    made.model.graph.value_info.append(declared)
    return made


def lopsided_norm(w: Writer, value: str) -> str:
    """Divide by the root of the mean square of another tensor than the one that is divided."""
    other = w.b.op("Relu", value)
    mean = w.b.reduce("ReduceMean", w.b.op("Mul", other, other), -1)
    return w.b.op("Div", value, w.b.op("Sqrt", w.b.op("Add", mean, w.b.scalar(1e-5))))


def unit_or_nothing(w: Writer, value: str) -> str:
    """Bring numbers to length one; those of the first row are all 0 and stay so."""
    rows = np.ones((ROWS, 1, 1), np.float32)
    rows[0] = 0.0
    return w.b.op("LpNormalization", w.b.op("Mul", value, w.b.const(rows)), p=2)


def norm_bounded_above(w: Writer, value: str) -> str:
    """Divide by the length, but by no more than a half."""
    length = w.b.op("ReduceL2", value, axes=[-1], keepdims=1)
    return w.b.op("Div", value, w.b.op("Clip", length, w.b.scalar(1e-5), w.b.scalar(0.5)))


def norm_bounded_by_two(w: Writer, value: str) -> str:
    """Divide by the length, but by no less than each of two numbers."""
    length = w.b.op("ReduceL2", value, axes=[-1], keepdims=1)
    return w.b.op("Div", value, w.b.op("Max", length, w.b.scalar(1e-5), w.b.scalar(9.0)))


def by_power_of_square(exponent: float, *, least: float = 0.0, plus: float = 0.0) -> Step:
    """Times a power of the sum of squares, to which a number is added and which is no less."""

    def normed(w: Writer, value: str) -> str:
        b, square = w.b, w.b.reduce("ReduceSum", w.b.op("Mul", value, value), -1)
        square = b.op("Max", b.op("Add", square, b.scalar(plus)), b.scalar(least))
        return b.op("Mul", value, b.op("Pow", square, b.scalar(exponent)))

    return normed


def by_bounded_inverse(
    bound: Callable[[Writer, str], str], *, plus: float = 0.0, over: str = "ReduceSum"
) -> Step:
    """Times what a step makes of one over the root of the sum (or mean) of squares."""

    def normed(w: Writer, value: str) -> str:
        square = w.b.reduce(over, w.b.op("Mul", value, value), -1)
        square = w.b.op("Add", square, w.b.scalar(plus)) if plus else square
        return w.b.op("Mul", value, bound(w, w.b.op("Reciprocal", w.b.op("Sqrt", square))))

    return normed


def bounded(op_type: str, *numbers: float) -> Callable[[Writer, str], str]:
    """Bounded by numbers, as an operator does it."""
    return lambda w, value: w.b.op(op_type, value, *map(w.b.scalar, numbers))


def bounded_at_run_time(w: Writer, value: str) -> str:
    """No more than an input."""
    return w.b.op("Min", value, w.b.input("most", np.array(0.3, np.float32), ()))


def by_inverse_root(inverse: Callable[[Writer, str], str]) -> Step:
    """Times what a step makes of the mean square and a small number: one over its root, say."""

    def normed(w: Writer, value: str) -> str:
        mean = w.b.reduce("ReduceMean", w.b.op("Mul", value, value), -1)
        return w.b.op("Mul", value, inverse(w, w.b.op("Add", mean, w.b.scalar(1e-5))))

    return normed


def over_root(number: float) -> Callable[[Writer, str], str]:
    """A number by the root."""
    return lambda w, square: w.b.op("Div", w.b.scalar(number), w.b.op("Sqrt", square))


def power(exponent: float) -> Callable[[Writer, str], str]:
    """A power."""
    return lambda w, square: w.b.op("Pow", square, w.b.scalar(exponent))


def variance_bounded_by(*bounds: float, op: str = "Max") -> Step:
    """A LayerNorm by moments whose variance an operator bounds by these numbers."""

    def normed(w: Writer, value: str) -> str:
        b, mean = w.b, w.b.reduce("ReduceMean", value, -1)
        second = b.reduce("ReduceMean", b.op("Mul", value, value), -1)
        variance = b.op("Sub", second, b.op("Mul", mean, mean))
        variance = b.op(op, variance, *map(b.scalar, bounds))
        root = b.op("Sqrt", b.op("Add", variance, b.scalar(1e-5)))
        return b.op("Div", b.op("Sub", value, mean), root)

    return normed


def mean_by_sum(
    w: Writer, value: str, op_type: str = "ReduceSum", *, count: float = HEAD_DIM, by: str = "Div"
) -> str:
    """A sum along the last axis over a number, or times its inverse; or the number over the sum."""
    total = w.b.reduce(op_type, value, -1)
    if by == "over":
        return w.b.op("Div", w.b.scalar(count), total)
    return w.b.op(by, total, w.b.scalar(count if by == "Div" else 1.0 / count))


def by_sums(
    *,
    by: str = "Div",
    squares: str = "ReduceSumSquare",
    counts: tuple[float, float] = (HEAD_DIM, HEAD_DIM),
    bound: tuple[float, ...] | None = (0.0,),
    chosen: bool | None = None,
    negated: bool = False,
) -> Step:
    """A layer norm by moments that are sums over numbers: (of the numbers, of their squares).

    bound: between which numbers the variance is held, by a Clip; chosen: by a constant condition,
    instead of no number; negated: the square of the mean is added with the other sign.
    """

    def normed(w: Writer, value: str) -> str:
        b, mean = w.b, mean_by_sum(w, value, count=counts[0], by=by)
        is_sum = squares == "ReduceSum"
        squared = b.op("Mul", value, value) if is_sum else value
        second, square = (
            mean_by_sum(w, squared, squares, count=counts[1], by=by),
            b.op("Mul", mean, mean),
        )
        less = b.op("Add", second, b.op("Neg", square)) if negated else b.op("Sub", second, square)
        variance = less if bound is None else b.op("Clip", less, *map(b.scalar, bound))
        if chosen is not None:
            variance = b.op("Where", b.const(chosen, bool), variance, b.scalar(float("nan")))
        root = b.op("Sqrt", b.op("Add", variance, b.scalar(1e-5)))
        factor = b.op("Mul", b.op("Reciprocal", root), b.const(w.random(HEAD_DIM)))
        return b.op("Mul", b.op("Sub", value, mean), factor)

    return normed


def rms_by_sum(op_type: str, *, count: float = HEAD_DIM, by: str = "Div") -> Step:
    """An RMS norm whose mean is a sum over a number."""

    def normed(w: Writer, value: str) -> str:
        b, squares = w.b, op_type == "ReduceSumSquare"
        squared = value if squares else b.op("Mul", value, value)
        mean = mean_by_sum(w, squared, op_type, count=count, by=by)
        return b.op("Div", value, b.op("Sqrt", b.op("Add", mean, b.scalar(1e-5))))

    return normed


def centred_apart(*, above: int | None = -1, below: int | None = -1, factor: float = 1.0) -> Step:
    """A LayerNorm of two differences from a mean, each over an axis of its own, or none.

    factor: what the numbers of the second one are multiplied by.
    """

    def normed(w: Writer, value: str) -> str:
        def centred(x: str, axis: int | None) -> str:
            return x if axis is None else w.b.op("Sub", x, w.b.reduce("ReduceMean", x, axis))

        other = value if factor == 1.0 else w.b.op("Mul", value, w.b.scalar(factor))
        root = w.root_of_mean_square(centred(other, below))
        return w.b.op("Div", centred(value, above), root)

    return normed


def centred_behind(
    way: str = "less",
    *,
    mean: int = -1,
    centre: int = -1,
    square: int = -1,
    factor: float = 1.0,
    weighs: bool = True,
) -> Step:
    """Divide by the root of a variance, times a weight, and take off what the mean becomes so.

    That mean, the one in the variance and the variance are over these axes; `factor` multiplies
    what is taken off.
    """

    def normed(w: Writer, value: str) -> str:
        b = w.b
        average = b.reduce("ReduceMean", value, mean)
        centred = b.op("Sub", value, b.reduce("ReduceMean", value, centre))
        variance = b.reduce("ReduceMean", b.op("Mul", centred, centred), square)
        root = b.op("Sqrt", b.op("Add", variance, b.scalar(1e-5)))
        scale = b.op("Reciprocal", root)
        scale = b.op("Mul", scale, b.const(w.random(HEAD_DIM))) if weighs else scale
        other = scale if factor == 1.0 else b.op("Mul", scale, b.scalar(factor))
        scaled, shift = b.op("Mul", value, scale), b.const(w.random(HEAD_DIM))
        match way:
            case "negated":
                return b.op("Add", scaled, b.op("Mul", b.op("Neg", average), other))
            case "shifted":
                return b.op("Add", scaled, b.op("Sub", shift, b.op("Mul", average, other)))
            case "less":
                return b.op("Sub", scaled, b.op("Mul", other, average))
            case "more":
                return b.op("Add", scaled, b.op("Mul", other, average))
        assert way == "taken from"
        return b.op("Sub", b.op("Mul", other, average), scaled)

    return normed


def in_wider_type(w: Writer, value: str, *, back: int = onnx.TensorProto.FLOAT) -> str:
    """Divide by the root of the mean square in float64, and come back, by way of a type."""
    wide = w.b.op("Cast", value, to=DOUBLE)
    square = w.b.reduce("ReduceMean", w.b.op("Mul", wide, wide), -1)
    root = w.b.op("Sqrt", w.b.op("Add", square, w.b.const(1e-6, np.float64)))
    narrow = w.b.op("Cast", w.b.op("Div", wide, root), to=back)
    return narrow if back == onnx.TensorProto.FLOAT else w.b.op("Cast", narrow, to=1)


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


def moments_of_two(w: Writer, value: str) -> str:
    """A LayerNorm by moments, the second of them another tensor's."""
    b, mean = w.b, w.b.reduce("ReduceMean", value, -1)
    second = b.reduce("ReduceMean", b.op("Mul", value, b.op("Relu", value)), -1)
    variance = b.op("Max", b.op("Sub", second, b.op("Mul", mean, mean)), b.scalar(0.0))
    root = b.op("Sqrt", b.op("Add", variance, b.scalar(1e-5)))
    return b.op("Div", b.op("Sub", value, mean), root)


def shifted_mean_norm(w: Writer, value: str) -> str:
    """A LayerNorm whose mean is that over another axis."""
    centred = w.b.op("Sub", value, w.b.reduce("ReduceMean", value, 1))
    mean = w.b.reduce("ReduceMean", w.b.op("Mul", centred, centred), -1)
    return w.b.op("Div", centred, w.b.op("Sqrt", w.b.op("Add", mean, w.b.scalar(1e-5))))


def norm_of_rows(w: Writer, value: str) -> str:
    """An RMS norm whose mean is taken of (batch * seq * heads, depth), its axis dropped."""
    flat = w.b.reshape(value, -1, HEAD_DIM)
    mean = w.b.op("ReduceMean", w.b.op("Mul", flat, flat), axes=[1], keepdims=0)
    root = w.b.op("Sqrt", w.b.op("Add", mean, w.b.scalar(1e-5)))
    return w.b.op("Div", value, w.b.reshape(root, "B", "S", NUM_HEADS, 1))


def clipped_norm(w: Writer, value: str) -> str:
    """Divide by the length, but by no more than 1: Clip as it was before opset 11."""
    length = w.b.op("ReduceL2", value, axes=[-1], keepdims=1)
    return w.b.op("Div", value, w.b.op("Clip", length, min=1e-5, max=1.0))


def rounding_norm(w: Writer, value: str) -> str:
    """Divide by the root of the mean square of the rounded numbers."""
    whole = rounded(w, value)
    mean = w.b.reduce("ReduceMean", w.b.op("Mul", whole, whole), -1)
    return w.b.op("Div", value, w.b.op("Sqrt", w.b.op("Add", mean, w.b.scalar(1e-5))))


def old_clip() -> Sample:
    """The usual graph with a key norm that is bounded above, in opset 10."""
    made = twin(**on("k", "normed", clipped_norm))
    made.model.opset_import[0].version = 10
    return made


def moments_of_two_axes(w: Writer, value: str) -> str:
    """A LayerNorm by moments, the first of them over positions."""
    b, mean = w.b, w.b.reduce("ReduceMean", value, 3)
    first, second = (
        b.reduce("ReduceMean", value, 1),
        b.reduce("ReduceMean", b.op("Mul", value, value), 3),
    )
    variance = b.op("Relu", b.op("Sub", second, b.op("Mul", first, first)))
    root = b.op("Sqrt", b.op("Add", variance, b.scalar(1e-5)))
    return b.op("Div", b.op("Sub", value, mean), root)


def _of_length_one(w: Writer, value: str, count: int) -> str:
    runs = w.b.reshape(value, "B", "S", NUM_HEADS // count, count * HEAD_DIM)
    return w.b.op("Div", runs, w.root_of_mean_square(runs))


def normed_over_heads(count: int) -> Step:
    """Queries and keys whose length is one over so many heads at a time, before they are apart."""

    def operands(w: Writer) -> tuple[str, str, str]:
        hidden, width = w.source("hidden", "S", HIDDEN), NUM_HEADS * HEAD_DIM
        query, key, value = (
            w.b.op("MatMul", hidden, w.b.const(w.random(HIDDEN, width))) for _ in range(3)
        )
        normed = (_of_length_one(w, part, count) for part in (query, key))
        parts = (w.b.reshape(part, "B", "S", NUM_HEADS, HEAD_DIM) for part in (*normed, value))
        query, key, value = map(w.heads_first, parts)
        return query, key, value

    return operands
