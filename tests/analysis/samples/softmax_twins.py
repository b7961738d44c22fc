"""Softmaxes that are written out, with more in their sum or less, and what only looks like one."""

from __future__ import annotations

import numpy as np
import onnx

from tests.analysis.samples.forms import NUM_HEADS, SIZES
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.operators import name_extents
from tests.analysis.samples.twins import Step, twin
from tests.analysis.samples.weight_twins import FLOAT, as_number, keep_of

ROWS = SIZES["S"]


def shifted(w: Writer, scores: str) -> tuple[str, str]:
    """Return the scores less their rows' maximum, and that maximum."""
    peak = w.b.reduce("ReduceMax", scores, -1)
    return w.b.op("Sub", scores, peak), peak


def plus_opposite_logarithm(op: str = "Neg", factor: float = 1.0, *, is_first: bool = True) -> Step:
    """exp(-logsumexp(x) + x), or of another operator, or the logarithm of other powers' sum."""

    def weights(w: Writer, scores: str) -> str:
        level = w.b.reduce("ReduceLogSumExp", w.b.op("Mul", scores, w.b.scalar(factor)), -1)
        both = (w.b.op(op, level), scores)
        return w.b.op("Exp", w.b.op("Add", *(both if is_first else both[::-1])))

    return weights


def plus_opposite_largest(sink: float) -> Step:
    """exp(x + -max(x)) over the sum of those powers and of a sink's, shifted as they are."""

    def weights(w: Writer, scores: str) -> str:
        down = w.b.op("Neg", w.b.reduce("ReduceMax", scores, -1))
        power = w.b.op("Exp", w.b.op("Add", scores, down))
        total = w.b.reduce("ReduceSum", power, -1)
        rest = w.b.op("Mul", w.b.op("Exp", down), w.b.scalar(sink))
        return w.b.op("Div", power, w.b.op("Add", total, rest))

    return weights


def less_largest(floor: float, *, is_first: bool = True) -> Step:
    """A softmax written out: the largest score that is taken off is no less than a number."""

    def weights(w: Writer, scores: str) -> str:
        both = (w.b.scalar(floor), w.b.reduce("ReduceMax", scores, -1))
        largest = w.b.op("Max", *(both if is_first else both[::-1]))
        power = w.b.op("Exp", w.b.op("Sub", scores, largest))
        return w.b.op("Div", power, w.b.reduce("ReduceSum", power, -1))

    return weights


def sum_with(
    number: float, *, shift: bool = True, op_type: str = "Add", top: float | None = None
) -> Step:
    """Divide by the sum of the powers and a number (or what the operator makes of them)."""

    def weights(w: Writer, scores: str) -> str:
        power = w.b.op("Exp", shifted(w, scores)[0] if shift else scores)
        total = w.b.reduce("ReduceSum", power, -1)
        numbers = [w.b.scalar(n) for n in (number, top) if n is not None]
        return w.b.op("Div", power, w.b.op(op_type, total, *numbers))

    return weights


def one_more(factor: float, *, by: str = "Neg", own: bool = True) -> Step:
    """Add to the sum a number times the power of 0, shifted as the scores are.

    by: how it is shifted; own: by the same maximum, not by the largest of twice the scores.
    """

    def weights(w: Writer, scores: str) -> str:
        b = w.b
        power, peak = shifted(w, scores)
        power = b.op("Exp", power)
        if not own:
            peak = b.reduce("ReduceMax", b.op("Mul", scores, b.scalar(2.0)), -1)
        zero = {
            "Neg": lambda: b.op("Neg", peak),
            "Sub": lambda: b.op("Sub", b.scalar(0.0), peak),
            "Mul": lambda: b.op("Mul", peak, b.scalar(-1.0)),
            "Mul by two": lambda: b.op("Mul", peak, b.scalar(-2.0)),
            "Reciprocal": lambda: b.op("Identity", peak),
        }[by]()
        extra = b.op("Exp", zero)
        if factor != 1.0:
            extra = b.op("Mul", b.scalar(factor), extra)
        return b.op("Div", power, b.op("Add", extra, b.reduce("ReduceSum", power, -1)))

    return weights


def learned_sink(*shape: int, factor: float = 1.0) -> Step:
    """Add to the sum the power of a constant of this shape, shifted as the scores are."""

    def weights(w: Writer, scores: str) -> str:
        b = w.b
        power, peak = shifted(w, scores)
        power = b.op("Exp", power)
        extra = b.op("Exp", b.op("Sub", b.const(w.random(*shape)), peak))
        extra = b.op("Mul", extra, b.scalar(factor))
        return b.op("Div", power, b.op("Add", b.reduce("ReduceSum", power, -1), extra))

    return weights


def less_logarithm(*shape: int) -> Step:
    """exp(x - (log(sum(exp(x - c))) + c)) with a constant c of this shape."""

    def weights(w: Writer, scores: str) -> str:
        b, own = w.b, w.b.const(w.random(*shape))
        total = b.reduce("ReduceSum", b.op("Exp", b.op("Sub", scores, own)), -1)
        level = b.op("Add", b.op("Log", total), own)
        return b.op("Exp", b.op("Sub", scores, level))

    return weights


def sink_beside_padding(start: int, stop: int) -> Step:
    """Join a column to scores with a bias whose extent has a name of its own, and cut it off."""

    def weights(w: Writer, scores: str) -> str:
        b = w.b
        name_extents(w, M=ROWS)
        biased = b.op("Add", scores, b.input("padding", w.random(1, 1, 1, ROWS), (1, 1, 1, "M")))
        column = b.const(w.random(1, NUM_HEADS, 1, 1))
        wide = b.op("Expand", column, b.shape(("B", NUM_HEADS, "S", 1)))
        joined = b.op("Softmax", b.op("Concat", biased, wide, axis=-1), axis=-1)
        return b.slice(joined, start, stop, -1)

    return weights


def masked_powers(
    op_type: str,
    *,
    own: bool = True,
    guard: str = "",
    hidden: float = 0.0,
    amount: float = 1.0,
    rest: float = 0.0,
) -> Step:
    """Hide powers, and divide by the sum of those that are left (or of all).

    guard: how it is asked whether anything is left; hidden: what hidden powers become; amount: by
    what the others are multiplied; rest: added to the sum.
    """

    def weights(w: Writer, scores: str) -> str:
        b = w.b
        power = b.op("Exp", shifted(w, scores)[0])
        if op_type == "Where":
            kept = b.op("Where", keep_of(w), power, b.scalar(hidden))
        else:
            factor = as_number(w, keep_of(w))
            factor = factor if amount == 1.0 else b.op("Mul", factor, b.scalar(amount))
            kept = b.op("Mul", power, factor)
        total = b.reduce("ReduceSum", kept if own else power, -1)
        total = b.op("Add", total, b.scalar(rest)) if rest else total
        zero, one = b.scalar(0.0), b.scalar(1.0)
        if guard:
            asked = b.op(guard, *((zero, total) if guard == "Less" else (total, zero)))
            parts = (total, one) if guard in ("Greater", "Less") else (one, total)
            total = b.op("Where", asked, *parts)
        return b.op("Div", kept, total)

    return weights


def doubled_inverse(w: Writer, scores: str) -> str:
    """Multiply by two divided by the sum."""
    power = w.b.op("Exp", shifted(w, scores)[0])
    twice = w.b.op("Div", w.b.scalar(2.0), w.b.reduce("ReduceSum", power, -1))
    return w.b.op("Mul", power, twice)


def log_softmax(w: Writer, scores: str) -> str:
    """exp(logsoftmax(x))."""
    return w.b.op("Exp", w.b.op("LogSoftmax", scores, axis=-1))


def divided_behind(
    *, ones: float | None = None, kept: bool = False, rest: float = 0.0, alpha: float = 1.0
) -> dict[str, Step]:
    """Multiply the powers by the values, and divide what comes out by their sum.

    ones: the sum is a product with this constant; kept: by a mask; rest: added to the sum; alpha:
    of the product with the values.
    """

    def weights(w: Writer, scores: str) -> str:
        power = w.b.op("Exp", shifted(w, scores)[0])
        return w.b.op("Mul", power, as_number(w, keep_of(w))) if kept else power

    def product(w: Writer, powers: str, value: str) -> str:
        b = w.b
        if ones is None:
            total = b.reduce("ReduceSum", powers, -1)
        else:
            total = b.op("MatMul", powers, b.const(np.full((ROWS, 1), ones, np.float32)))
        if rest:
            total = b.op("Add", total, b.scalar(rest))
        return b.op("Div", scaled_product(w, powers, value, alpha), total)

    return {"weights": weights, "product": product}


def scaled_product(w: Writer, left: str, right: str, alpha: float) -> str:
    """A product that multiplies by a number, too."""
    if alpha == 1.0:
        return w.b.op("MatMul", left, right)
    return w.b.op("FusedMatMul", left, right, domain="com.microsoft", alpha=alpha)


def summed_by_product(alpha: float) -> Step:
    """Sum the powers by a product with ones, times a number; what is added to the sum is lost."""

    def weights(w: Writer, scores: str) -> str:
        b = w.b
        power = b.op("Exp", shifted(w, scores)[0])
        total = scaled_product(w, power, b.const(np.ones((ROWS, 1), np.float32)), alpha)
        return b.op("Div", power, b.op("Add", total, b.scalar(1e-12)))

    return weights


def masked_powers_by_shown(*, own: bool = True, fill: float = -np.inf, factor: float = 1.0) -> Step:
    """Take off the largest of what a mask shows, and hide the powers by the same mask.

    own: by the same mask, not by another one; factor: of the scores whose largest is taken off.
    """

    def weights(w: Writer, scores: str) -> str:
        b = w.b
        compared = scores if factor == 1.0 else b.op("Mul", scores, b.scalar(factor))
        seen = b.op("Where", keep_of(w), compared, b.scalar(fill))
        taken = b.op("Sub", scores, b.reduce("ReduceMax", seen, -1))
        mask = keep_of(w) if own else b.input("other", np.tri(ROWS, dtype=bool).T, ("S", "S"))
        kept = b.op("Where", mask, b.op("Exp", taken), b.scalar(0.0))
        return b.op("Div", kept, b.reduce("ReduceSum", kept, -1))

    return weights


def undivided_too(w: Writer, powers: str, value: str) -> str:
    """Divide behind the values, and add some of what was not divided."""
    context = w.b.op("MatMul", powers, value)
    divided = w.b.op("Div", context, w.b.reduce("ReduceSum", powers, -1))
    return w.b.op("Add", divided, w.b.op("Mul", context, w.b.scalar(0.01)))


def shown_powers() -> Sample:
    """Divide behind the values, with the powers among the outputs."""
    made = twin(**divided_behind())
    power = next(node.output[0] for node in made.model.graph.node if node.op_type == "Exp")
    shown = onnx.ValueInfoProto(name=power)
    shown.type.tensor_type.elem_type = FLOAT
    made.model.graph.output.append(shown)
    return made


def floored_sink(floor: float, op_type: str = "Clip", top: float | None = None) -> Step:
    """Take off the largest of the scores and a number, and add the power of 0 to the sum.

    top: a bound above what is taken off.
    """

    def weights(w: Writer, scores: str) -> str:
        b = w.b
        peak = b.reduce("ReduceMax", scores, -1)
        bounds = [b.scalar(n) for n in (floor, top) if n is not None]
        peak = b.op("Relu", peak) if op_type == "Relu" else b.op(op_type, peak, *bounds)
        power = b.op("Exp", b.op("Sub", scores, peak))
        total = b.op("Add", b.reduce("ReduceSum", power, -1), b.op("Exp", b.op("Neg", peak)))
        return b.op("Div", power, total)

    return weights


def sink_in_shift(*, is_same: bool) -> Step:
    """Take off the largest of the scores and a number of each head, and add a power to the sum.

    It is that of the same number, or of another one.
    """

    def weights(w: Writer, scores: str) -> str:
        b, heads = w.b, np.linspace(-1, 2, NUM_HEADS, dtype=np.float32).reshape(1, -1, 1, 1)
        sink = b.const(heads)
        peak = b.op("Max", b.reduce("ReduceMax", scores, -1), sink)
        own = sink if is_same else b.const(heads[:, ::-1])
        power = b.op("Exp", b.op("Sub", scores, peak))
        rest = b.op("Exp", b.op("Sub", own, peak))
        return b.op("Div", power, b.op("Add", b.reduce("ReduceSum", power, -1), rest))

    return weights


def power_of(base: float, *, sink: bool = False) -> Step:
    """Raise a number to the scores, and divide by the sum (and the power of e to the shift)."""

    def weights(w: Writer, scores: str) -> str:
        b = w.b
        taken, peak = shifted(w, scores)
        power = b.op("Pow", b.scalar(base), taken)
        total = b.reduce("ReduceSum", power, -1)
        if sink:
            total = b.op("Add", total, b.op("Exp", b.op("Neg", peak)))
        return b.op("Div", power, total)

    return weights


def padded_column(
    before: int, behind: int, number: float, cut: tuple[int, int] | int, mode: str = "constant"
) -> Step:
    """Pad columns of one number, and cut some off again behind the softmax.

    cut: from where to where, or so many at the beginning by a Split.
    """

    def weights(w: Writer, scores: str) -> str:
        b = w.b
        pads = b.const([0, 0, 0, before, 0, 0, 0, behind], np.int64)
        wide = b.op("Softmax", b.op("Pad", scores, pads, b.scalar(number), mode=mode), axis=-1)
        if isinstance(cut, int):
            return b.split(wide, [cut, ROWS + before + behind - cut], -1)[1]
        return b.slice(wide, *cut, -1)

    return weights


def powers_times_one(*shape: int) -> Step:
    """Multiply the powers by a mask that is one number, and shows everything."""

    def written(w: Writer, scores: str) -> str:
        one = w.b.const(np.ones(shape, np.float32))
        power = w.b.op("Mul", w.b.op("Exp", shifted(w, scores)[0]), one)
        return w.b.op("Div", power, w.b.reduce("ReduceSum", power, -1))

    return written
