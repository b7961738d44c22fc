"""Queries, keys and values that are put together of parts, or made by more than a projection."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.analysis.samples.forms import HEAD_DIM, HIDDEN, NUM_HEADS, SIZES
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.operand_twins import rotation, swapped

Operands = Callable[[Writer], tuple[str, str, str]]
_LATENT, _PLAIN, _WIDE = 6, 4, 5


def with_a_row(join: str) -> Operands:
    """One more key and value behind the others: learned ones by Concat, zeros by Pad."""

    def operands(w: Writer) -> tuple[str, str, str]:
        query, key, value = Writer.operands_of_product(w)
        return query, _longer(w, key, join), _longer(w, value, join)

    return operands


def with_a_key(w: Writer) -> tuple[str, str, str]:
    """One more learned key behind the others, and no value."""
    query, key, value = Writer.operands_of_product(w)
    return query, _longer(w, key, "Concat"), value


def weights_but_the_last(w: Writer, scores: str) -> str:
    """Cut the last column behind the softmax."""
    return w.b.slice(w.b.op("Softmax", scores, axis=-1), 0, SIZES["S"], 3)


def _longer(w: Writer, value: str, join: str) -> str:
    b = w.b
    if join == "Pad":
        return b.op("Pad", value, b.const([0, 0, 0, 0, 0, 0, 1, 0], np.int64))
    row = b.const(w.random(1, NUM_HEADS, 1, HEAD_DIM))
    wide = b.op("Expand", row, b.shape(("B", NUM_HEADS, 1, HEAD_DIM)))
    return b.op("Concat", value, wide, axis=2)


def joined(w: Writer, first: str, second: str) -> str:
    """Join lanes."""
    return w.b.op("Concat", first, second, axis=3)


def written(*, start: int = 0, reduction: str = "none") -> Callable[[Writer, str, str], str]:
    """Write lanes into zeros, the second ones behind the first; the first ones from a place on."""

    def written(w: Writer, first: str, second: str) -> str:
        whole = w.b.const(np.zeros((_PLAIN + HEAD_DIM, SIZES["S"], NUM_HEADS, SIZES["B"])))
        whole = w.b.op("Cast", whole, to=1)
        runs = (start + np.arange(_PLAIN), _PLAIN + np.arange(HEAD_DIM))
        for run, part in zip(runs, (first, second), strict=True):
            turned, places = w.b.transpose(part, 3, 2, 1, 0), w.b.const(run[:, None], np.int64)
            whole = w.b.op("ScatterND", whole, places, turned, reduction=reduction)
        return w.b.transpose(whole, 3, 2, 1, 0)

    return written


def written_by_number(
    *, start: int = 0, is_reversed: bool = False
) -> Callable[[Writer, str, str], str]:
    """Write lanes into zeros where numbers say that are computed for each axis.

    start: of the first lanes; is_reversed: whether batches are counted from their last one.
    """

    def numbers(w: Writer, whole: str, axis: int) -> str:
        zero, one, less = (w.b.const(number, np.int64) for number in (0, 1, -1))
        extent = w.b.op("Gather", w.b.op("Shape", whole), w.b.const(axis, np.int64), axis=0)
        if is_reversed and axis == 0:
            return w.b.op("Range", less, w.b.op("Sub", less, extent), less)
        return w.b.op("Range", zero, extent, one)

    def written(w: Writer, plain: str, turned: str) -> str:
        b, lanes = w.b, _PLAIN + HEAD_DIM
        whole = b.op("ConstantOfShape", b.shape(("B", NUM_HEADS, "S", lanes)))
        for part, run in ((plain, start + np.arange(_PLAIN)), (turned, np.arange(_PLAIN, lanes))):
            vectors = [*(numbers(w, whole, axis) for axis in range(3)), b.const(run, np.int64)]
            shape = b.shape(("B", NUM_HEADS, "S", len(run)))
            columns: list[str] = []
            for axis, vector in enumerate(vectors):
                along = b.reshape(vector, *(-1 if each == axis else 1 for each in range(4)))
                columns.append(b.unsqueeze(b.op("Expand", along, shape), -1))
            whole = b.op("ScatterND", whole, b.op("Concat", *columns, axis=-1), part)
        return whole

    return written


def from_a_latent(join: Callable[[Writer, str, str], str] = joined) -> Operands:
    """Lanes that are rotated behind others that aren't, those of the keys shared by all heads.

    The other lanes, and values of another size, are projected from a smaller tensor.
    """

    def operands(w: Writer) -> tuple[str, str, str]:
        b, turned = w.b, HEAD_DIM
        x = b.input("hidden", w.random(SIZES["B"], SIZES["S"], HIDDEN), ("B", "S", HIDDEN))
        query = _heads(w, _linear(w, x, HIDDEN, NUM_HEADS * (_PLAIN + turned)), _PLAIN + turned)
        plain, rotary = b.split(query, [_PLAIN, turned], 3)
        latent, shared = b.split(_linear(w, x, HIDDEN, _LATENT + turned), [_LATENT, turned], 2)
        both = _heads(w, _linear(w, latent, _LATENT, NUM_HEADS * (_PLAIN + _WIDE)), _PLAIN + _WIDE)
        key, value = b.split(both, [_PLAIN, _WIDE], 3)
        shared = b.unsqueeze(shared, 1)
        shared = rotation(w, shared, swapped(w, shared))
        wide = b.op("Expand", shared, b.shape(("B", NUM_HEADS, "S", turned)))
        query = joined(w, plain, rotation(w, rotary, swapped(w, rotary)))
        w.value_dim = _WIDE
        return query, join(w, key, wide), value

    return operands


def _linear(w: Writer, value: str, rows: int, columns: int) -> str:
    return w.b.op("MatMul", value, w.b.const(w.random(rows, columns)))


def _heads(w: Writer, value: str, depth: int) -> str:
    return w.b.transpose(w.b.reshape(value, "B", "S", NUM_HEADS, depth), 0, 2, 1, 3)


def by_strided_convolutions(group: int) -> Operands:
    """Keys and values of every two rows, by convolutions of so many channels a group."""

    def operands(w: Writer) -> tuple[str, str, str]:
        query, _, _ = Writer.operands_of_product(w)
        return query, _convolved(w, group), _convolved(w, group)

    return operands


def _convolved(w: Writer, group: int) -> str:
    b = w.b
    turned = b.transpose("hidden", 0, 2, 1)
    weight = b.const(w.random(NUM_HEADS * HEAD_DIM, group, 2))
    made = b.op("Conv", turned, weight, strides=[2], group=HIDDEN // group)
    made = b.transpose(made, 0, 2, 1)
    kept = b.reshape(made, "B", SIZES["S"] // 2, NUM_HEADS, HEAD_DIM)
    return b.transpose(kept, 0, 2, 1, 3)


def gated(w: Writer, context: str) -> str:
    """Multiply the context by what is projected for it beside the queries."""
    gate = _linear(w, "hidden", HIDDEN, NUM_HEADS * w.value_dim)
    gate = w.b.reshape(w.b.op("Sigmoid", gate), "B", "S", NUM_HEADS, w.value_dim)
    return w.b.op("Mul", context, gate)
