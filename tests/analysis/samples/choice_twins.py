"""Factors made of masks: zeros and one number, and those that only look like it."""

from __future__ import annotations

import numpy as np
import onnx

from tests.analysis.samples.forms import SIZES
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import Step
from tests.analysis.samples.weight_twins import FLOAT, as_number, keep_of

ROWS = SIZES["S"]
WHOLE = onnx.TensorProto.INT32


def times(factor: Step) -> Step:
    """Multiply by a factor that a step makes of a mask's zeros and ones."""
    return lambda w, value: w.b.op("Mul", value, factor(w, as_number(w, keep_of(w))))


def chosen(shown: float, hidden: float) -> Step:
    """One number where the mask shows, and another one where it hides."""
    return lambda w, _: w.b.op("Where", keep_of(w), w.b.scalar(shown), w.b.scalar(hidden))


def chosen_where_hidden(hidden: float, shown: float) -> Step:
    """The same, by the opposite mask."""

    def step(w: Writer, _: str) -> str:
        mask = w.b.op("Not", keep_of(w))
        return w.b.op("Where", mask, w.b.scalar(hidden), w.b.scalar(shown))

    return step


def lost(factor: float) -> Step:
    """A number less what hides, times a factor: 1 - factor * (1 - keep)."""

    def step(w: Writer, kept: str) -> str:
        hidden = w.b.op("Mul", w.b.op("Sub", w.b.scalar(1.0), kept), w.b.scalar(factor))
        return w.b.op("Sub", w.b.scalar(1.0), hidden)

    return step


def negated_difference(w: Writer, kept: str) -> str:
    """-(hidden - 1)."""
    hidden = w.b.op("Sub", w.b.scalar(1.0), kept)
    return w.b.op("Neg", w.b.op("Sub", hidden, w.b.scalar(1.0)))


def doubled_and_halved(w: Writer, kept: str) -> str:
    """2 * keep / 2."""
    return w.b.op("Div", w.b.op("Mul", kept, w.b.scalar(2.0)), w.b.scalar(2.0))


def less_one(*dims: int) -> Step:
    """Keep - 1, as a constant of these extents."""
    return lambda w, kept: w.b.op("Sub", kept, w.b.const(np.ones(dims, np.float32)))


def divides(number: float | None) -> Step:
    """A number divided by the zeros and ones, or these by themselves."""
    return lambda w, kept: w.b.op("Div", kept if number is None else w.b.scalar(number), kept)


def dropped(w: Writer, kept: str) -> str:
    """Drop some of the mask by chance, and scale what is left of it."""
    return w.b.op("Dropout", kept, w.b.scalar(0.5), w.b.const(True), seed=1)


def without_fractions(number: float) -> Step:
    """The zeros and ones times a number, as whole numbers, by that number."""

    def step(w: Writer, kept: str) -> str:
        whole = w.b.op("Cast", w.b.op("Mul", kept, w.b.scalar(number)), to=WHOLE)
        return w.b.op("Div", w.b.op("Cast", whole, to=FLOAT), w.b.scalar(number))

    return step


def times_input(w: Writer, kept: str) -> str:
    """The zeros and ones times numbers that only the run knows."""
    return w.b.op("Mul", kept, w.b.input("factor", w.random(ROWS, ROWS), ("S", "S")))


def times_other(w: Writer, kept: str) -> str:
    """The zeros and ones times others."""
    other = w.b.input("other", np.tri(ROWS, k=1, dtype=np.bool_), ("S", "S"))
    return w.b.op("Mul", kept, w.b.op("Cast", other, to=FLOAT))


def times_doubled(w: Writer, kept: str) -> str:
    """The zeros and ones times zeros and twos."""
    return w.b.op("Mul", kept, w.b.op("Mul", kept, w.b.scalar(2.0)))


def whole_input(w: Writer, _: str) -> str:
    """Whole numbers of an input."""
    numbers = w.rng.integers(0, 3, (ROWS, ROWS), np.int32)
    return w.b.op("Cast", w.b.input("whole", numbers, ("S", "S")), to=FLOAT)


def nothing_hidden(w: Writer, _: str) -> str:
    """Whether zero times what hides is zero, which it is everywhere."""
    nothing = w.b.op("Mul", as_number(w, keep_of(w), inverted=True), w.b.scalar(0.0))
    return w.b.op("Cast", w.b.op("Equal", nothing, w.b.scalar(0.0)), to=FLOAT)


def triangle(number: float) -> Step:
    """A number where the row is behind the column, in a matrix of run-time size."""

    def step(w: Writer, kept: str) -> str:
        value = onnx.helper.make_tensor("", FLOAT, [1], [number])
        filled = w.b.op("ConstantOfShape", w.b.op("Shape", kept), value=value)
        return w.b.op("Trilu", filled, upper=0)

    return step


def triangle_of_input(w: Writer, _: str) -> str:
    """Numbers that only the run knows, where the row is behind the column."""
    numbers = w.random(ROWS, ROWS)
    return w.b.op("Trilu", w.b.input("factor", numbers, ("S", "S")), upper=0)
