"""Steps from the scores to the weights in less usual forms, and those that only look like them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from tests.analysis.samples.builder import Array
from tests.analysis.samples.forms import SIZES
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import Step, after

ROWS, BATCH = SIZES["S"], SIZES["B"]
HALF, FLOAT, BOOL = (
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.BOOL,
)


def tri_without_rows(*rows: int) -> Array:
    """A triangle of which some rows show nothing at all."""
    data = np.tri(ROWS, dtype=bool)
    data[list(rows)] = False
    return data


def keep_of(w: Writer, name: str = "keep") -> str:
    """Return a bool input (q_seq, kv_seq), added once, whose second row shows nothing."""
    if name not in w.b.feeds:
        w.b.input(name, tri_without_rows(1), ("S", "S"))
    return name


def as_number(w: Writer, condition: str, *, inverted: bool = False) -> str:
    """Return 1 where a condition holds and 0 elsewhere, or the other way round."""
    number = w.b.op("Cast", condition, to=FLOAT)
    return w.b.op("Sub", w.b.scalar(1.0), number) if inverted else number


def plus_zeros(w: Writer, scores: str) -> str:
    """Add zeros, made at run time, of the scores' own shape, times a number."""
    zeros = w.b.op("ConstantOfShape", w.b.op("Shape", scores))
    return w.b.op("Add", scores, w.b.op("Mul", zeros, w.b.scalar(2.0)))


def less_than_zeros(w: Writer, scores: str) -> str:
    """Take the scores off from zeros, and turn their sign."""
    return w.b.op("Neg", w.b.op("Sub", w.b.scalar(0.0), scores))


def squared(w: Writer, value: str) -> str:
    """Multiply by itself."""
    return w.b.op("Mul", value, value)


# Masks before the softmax -------------------------------------------------------------------------


def selected(fill: float, name: str = "keep") -> Step:
    """Fill what a mask hides."""
    return lambda w, scores: w.b.op("Where", keep_of(w, name), scores, w.b.scalar(fill))


def selected_where_hidden(fill: float) -> Step:
    """The same by the opposite mask."""
    return lambda w, scores: w.b.op("Where", w.b.op("Not", keep_of(w)), w.b.scalar(fill), scores)


def lowered(amount: float, *, inverted: bool = True) -> Step:
    """Add a number where a mask hides, or where it shows."""

    def step(w: Writer, scores: str) -> str:
        hidden = as_number(w, keep_of(w), inverted=inverted)
        return w.b.op("Add", scores, w.b.op("Mul", hidden, w.b.scalar(amount)))

    return step


def lowered_by_choice(amount: float) -> Step:
    """Add one of two numbers by a mask."""

    def step(w: Writer, scores: str) -> str:
        bias = w.b.op("Where", keep_of(w), w.b.scalar(0.0), w.b.scalar(amount))
        return w.b.op("Add", scores, bias)

    return step


def padded(amount: float) -> Step:
    """Lower some columns of all rows by a number."""

    def step(w: Writer, scores: str) -> str:
        numbers = np.zeros((BATCH, 1, 1, ROWS), np.float32)
        numbers[0, ..., 0] = amount
        return w.b.op("Add", scores, w.b.const(numbers))

    return step


def biased_by_input(w: Writer, scores: str) -> str:
    """Add a tensor of which nothing is known."""
    return w.b.op("Add", scores, w.b.input("bias", w.random(ROWS, ROWS), ("S", "S")))


def times_angle(op_type: str) -> Step:
    """Multiply each row by what a tangent bounds, or divide by it."""

    def step(w: Writer, scores: str) -> str:
        return w.b.op(
            op_type, scores, w.b.op("Tanh", w.b.input("angle", w.random(ROWS, 1), ("S", 1)))
        )

    return step


def bounded_below_hidden_rows(w: Writer, scores: str) -> str:
    """Hide some rows, and bound the scores below: those of such rows are all one number."""
    hidden = np.where(tri_without_rows(1), 0, -np.inf).astype(np.float32)
    return w.b.op("Max", w.b.op("Add", scores, w.b.const(hidden)), w.b.scalar(-1e30))


def less_scores(w: Writer, scores: str) -> str:
    """A table less the scores."""
    return w.b.op("Sub", w.b.const(w.random(ROWS, ROWS)), scores)


def biased_by_multiple(number: float) -> Step:
    """Add the multiple of such a tensor by a number."""

    def step(w: Writer, scores: str) -> str:
        bias = w.b.input("bias", w.random(ROWS, ROWS), ("S", "S"))
        return w.b.op("Add", scores, w.b.op("Mul", bias, w.b.const([number], np.float32)))

    return step


def halved_sum(w: Writer, scores: str) -> str:
    """c * scores + (1 - c) * -inf, which is no number where c is 1."""
    keep = keep_of(w)
    kept = w.b.op("Mul", scores, as_number(w, keep))
    hidden = w.b.op("Mul", as_number(w, keep, inverted=True), w.b.scalar(-np.inf))
    return w.b.op("Add", kept, hidden)


def in_half(fill: float, factor: float | None) -> Step:
    """Multiply, scale and fill in float16; without a factor the product itself is float32."""

    def step(w: Writer, query: str, key: str) -> str:
        b, turned = w.b, w.b.transpose(key, 0, 1, 3, 2)
        if factor is None:
            scores = b.op("Cast", b.op("MatMul", query, turned), to=HALF)
        else:
            sides = [b.op("Cast", side, to=HALF) for side in (query, turned)]
            scores = b.op("Mul", b.op("MatMul", *sides), b.const(factor, np.float16))
        filled = b.op("Where", keep_of(w), scores, b.const(fill, np.float16))
        return b.op("Cast", filled, to=FLOAT)

    return step


# Masks behind it ----------------------------------------------------------------------------------


def lowered_by_place(slope: float) -> Step:
    """Add a number for each column: its distance from the last one times a slope."""

    def step(w: Writer, scores: str) -> str:
        b = w.b
        length = b.op("Gather", b.op("Shape", "hidden"), b.const(1, np.int64))
        first = b.op("Sub", b.const(1, np.int64), length)
        places = b.op("Range", first, b.const(1, np.int64), b.const(1, np.int64))
        return b.op("Add", scores, b.op("Mul", b.op("Cast", places, to=FLOAT), b.scalar(slope)))

    return step


def raised_by_count(dtype: type[np.integer[Any]], slope: float) -> Step:
    """Add to each column the number of those up to it that an input counts, times a slope."""

    def step(w: Writer, scores: str) -> str:
        b = w.b
        counted = b.input("counted", np.ones((BATCH, 1, 1, ROWS), dtype), ("B", 1, 1, "S"))
        places = b.op("CumSum", counted, b.const(3, np.int64))
        return b.op("Add", scores, b.op("Mul", b.op("Cast", places, to=FLOAT), b.scalar(slope)))

    return step


def zeroed(w: Writer, weights: str) -> str:
    """Choose zero where the mask hides."""
    return w.b.op("Where", keep_of(w), weights, w.b.scalar(0.0))


def zeroed_by(name: str) -> Step:
    """The same by another mask."""
    return lambda w, weights: w.b.op("Where", keep_of(w, name), weights, w.b.scalar(0.0))


def nearly_zeroed(w: Writer, weights: str) -> str:
    """The same, but with ones in the last column, where zeros are joined with them."""
    b, one = w.b, onnx.numpy_helper.from_array(np.ones(1, np.float32))
    zeros = b.op("ConstantOfShape", b.op("Shape", b.slice(weights, 0, ROWS - 1, -1)))
    ones = b.op("ConstantOfShape", b.op("Shape", b.slice(weights, ROWS - 1, ROWS, -1)), value=one)
    return b.op("Where", keep_of(w), weights, b.op("Concat", zeros, ones, axis=-1))


def zeroed_again(w: Writer, weights: str) -> str:
    """The same by a comparison, and with constant zeros of all columns."""
    hidden = w.b.op("Equal", w.b.op("Cast", keep_of(w), to=FLOAT), w.b.scalar(0.0))
    return w.b.op("Where", hidden, w.b.const(np.zeros(ROWS, np.float32)), weights)


def times_kept(w: Writer, weights: str) -> str:
    """Multiply by 1 where the mask shows, by 0 elsewhere."""
    return w.b.op("Mul", as_number(w, keep_of(w)), weights)


def times_half_kept(w: Writer, weights: str) -> str:
    """The same, and halve."""
    return w.b.op("Mul", w.b.op("Mul", as_number(w, keep_of(w)), w.b.scalar(0.5)), weights)


def masked_twice(first: Step, second: Step, **steps: Step) -> dict[str, Step]:
    """Take a step before the softmax and another one behind it."""
    return after("scores", first) | after("weights", second) | steps


def kept_times(amount: float) -> Step:
    """Multiply the scores by a number where a mask shows, by 0 elsewhere."""

    def step(w: Writer, scores: str) -> str:
        factor = w.b.op("Mul", as_number(w, keep_of(w)), w.b.scalar(amount))
        return w.b.op("Mul", scores, factor)

    return step


def kept_less(w: Writer, scores: str, other: str | None = None) -> str:
    """The scores where a mask shows, and where it hides others (or themselves) of opposite sign."""
    shown, hidden = (as_number(w, keep_of(w), inverted=inverted) for inverted in (False, True))
    return w.b.op("Sub", w.b.op("Mul", scores, shown), w.b.op("Mul", other or scores, hidden))


def kept_less_a_number(w: Writer, scores: str) -> str:
    """The same of a number."""
    return kept_less(w, scores, w.b.scalar(7.0))


def product_and_that_of_a_view(w: Writer, weights: str, value: str) -> str:
    """Multiply the weights and what a view makes of them by the values."""
    b = w.b
    context, other = (b.op("MatMul", p, value) for p in (weights, b.op("Identity", weights)))
    return b.op("Add", context, other)


def product_of_halves(total: str) -> Step:
    """Multiply the first columns of the weights by the first values, the others by the others."""

    def product(w: Writer, weights: str, value: str) -> str:
        b = w.b
        products = [
            b.op("MatMul", b.slice(weights, start, stop, -1), b.slice(value, start, stop, -2))
            for start, stop in ((0, 2), (2, np.iinfo(np.int64).max))
        ]
        return b.op(total, *products)

    return product


def viewed_twice(op_type: str) -> Step:
    """Let a view of the weights meet the values, and add what an operator makes of another one."""

    def product(w: Writer, weights: str, value: str) -> str:
        b = w.b
        context, other = (b.op("MatMul", b.op(t, weights), value) for t in ("Identity", op_type))
        return b.op("Add", context, other)

    return product


def each(*steps: Step) -> Step:
    """Take one step after the other."""

    def step(w: Writer, value: str) -> str:
        for one in steps:
            value = one(w, value)
        return value

    return step


def constant_parts(first: Array, second: Array) -> Step:
    """Keep the scores by one constant of zeros and ones, and lowered scores by another."""

    def step(w: Writer, scores: str) -> str:
        lower = w.b.op("Sub", scores, w.b.scalar(1e4))
        parts = zip((scores, lower), (first, second), strict=True)
        products = [w.b.op("Mul", x, w.b.const(c.astype(np.float32))) for x, c in parts]
        return w.b.op("Add", *products)

    return step


def compared_twice(first: str, second: str) -> dict[str, Step]:
    """Hide by a comparison of places before the softmax, and by one made anew behind it."""

    def before(w: Writer, scores: str) -> str:
        w.b.input("places", np.arange(ROWS), ("S",))
        return w.b.op("Where", compared(w, first), scores, w.b.scalar(-1e9))

    def behind(w: Writer, weights: str) -> str:
        return w.b.op("Where", compared(w, second), weights, w.b.scalar(0.0))

    def compared(w: Writer, op_type: str) -> str:
        return w.b.op(op_type, w.b.unsqueeze("places", 0), w.b.unsqueeze("places", 1))

    return masked_twice(before, behind)


def hidden_beyond(first: int, second: int) -> dict[str, Step]:
    """Hide columns from one place on before the softmax, and from another one on behind it."""

    def shown(w: Writer, place: int) -> str:
        if "places" not in w.b.feeds:
            w.b.input("places", np.arange(ROWS), ("S",))
        return w.b.op("Less", w.b.unsqueeze("places", 0), w.b.const([place], np.int64))

    return masked_twice(
        lambda w, scores: w.b.op("Where", shown(w, first), scores, w.b.scalar(-1e9)),
        lambda w, weights: w.b.op("Where", shown(w, second), weights, w.b.scalar(0.0)),
    )


# Weights, one by one ------------------------------------------------------------------------------


def not_itself(w: Writer, weights: str) -> str:
    """Put zeros of its shape for what is not equal to itself."""
    same = w.b.op("Equal", weights, weights)
    zeros = w.b.op("Expand", w.b.scalar(0.0), w.b.op("Shape", weights))
    return w.b.op("Where", w.b.op("Not", same), zeros, weights)


def where_equal(*parts: float | None) -> Step:
    """Choose the first where the weights equal themselves, else the second; None: the weights."""

    def step(w: Writer, weights: str) -> str:
        chosen = (weights if part is None else w.b.scalar(part) for part in parts)
        return w.b.op("Where", w.b.op("Equal", weights, weights), *chosen)

    return step


def one_if_infinite(w: Writer, weights: str) -> str:
    """Put 1 for what is infinite, and on the diagonal, which no weight is."""
    eye = w.b.const(np.eye(ROWS, dtype=bool))
    asked = w.b.op("And", w.b.op("IsInf", weights), eye)
    return w.b.op("Where", asked, w.b.scalar(1.0), weights)


def itself_if_infinite(w: Writer, weights: str) -> str:
    """Keep what is infinite, which no weight is, and put a number in the place of all else."""
    return w.b.op("Where", w.b.op("IsInf", weights), weights, w.b.const(np.full(ROWS, 0.2, "f4")))


def equal_to(number: float) -> Step:
    """Put zero for weights that are not equal to a number."""

    def step(w: Writer, weights: str) -> str:
        same = w.b.op("Equal", weights, w.b.scalar(number))
        return w.b.op("Where", same, weights, w.b.scalar(0.0))

    return step


def capped(w: Writer, scores: str) -> str:
    """Cap what a mask has filled."""
    b = w.b
    filled = b.op("Where", keep_of(w), scores, b.scalar(-1e9))
    return b.op("Mul", b.op("Tanh", b.op("Div", filled, b.scalar(5.0))), b.scalar(5.0))
