"""Masks in every form, with what they mean to the record."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.analysis.samples.builder import Array
from tests.analysis.samples.forms import NUM_HEADS

if TYPE_CHECKING:
    from tests.analysis.samples.graphs import Writer

Mask = Callable[["Writer", str], str]
FILL = np.float32(-1e4)
LOW = -1e9
ZERO_NAN = ("nan_guard", "renormalised", "zeroed", "zeroed_times")
AMOUNT = 2.0  # what a factor that hides scores multiplies the others by
LOWEST = float(np.finfo(np.float32).min)
_CAUSAL_ROWS = 16  # of the triangle from which a dynamic graph slices what it needs


def masked(w: Writer, scores: str) -> str:
    """Mask (batch, num_heads, q_seq, kv_seq) scores, and note the operands that it means."""
    form, late = w.form.mask, w.scale if w.form.scale == "late" else 1.0
    made = _MASKS[form](w, scores) if form in _MASKS else scores
    for name in ("attn_bias", "mask_fill"):
        if name in w.operands and late != 1.0:
            w.operands[name] = w.operands[name] * np.float32(late)
    return made


def guarded(w: Writer, weights: str) -> str:
    """Put 0 for what isn't a number, or mask and normalise again, where the form has it."""
    if w.form.mask == "renormalised":
        return _renormalised(w, weights)
    if w.form.mask.startswith("zeroed"):
        return _zeroed(w, weights)
    if w.form.mask != "nan_guard":
        return weights
    return w.b.op("Where", w.b.op("IsNaN", weights), w.b.scalar(0.0), weights)


def _note(w: Writer, bias: Array | None, keep: Array | None = None, fill: object = None) -> None:
    for name, data in (("attn_bias", bias), ("attn_mask", keep), ("mask_fill", fill)):
        if data is not None:
            w.operands[name] = np.broadcast_to(np.asarray(data), w.score_shape)


def _float(w: Writer, name: str, *dims: int | str) -> tuple[str, Array]:
    data = w.random(*(w.b.sizes[d] if isinstance(d, str) else d for d in dims))
    return w.b.input(name, data, dims), data


def _choice(w: Writer, name: str, *dims: int | str) -> tuple[str, Array]:
    """A bool input that keeps the first column of every row, and two thirds of the others."""
    shape = tuple(w.b.sizes[d] if isinstance(d, str) else d for d in dims)
    data = w.rng.uniform(size=shape) < 2 / 3
    data[..., 0] = True
    return w.b.input(name, data, dims), data


def _added(*dims: str | int, left: bool = False) -> Mask:
    def write(w: Writer, scores: str) -> str:
        mask, data = _float(w, "mask", *(w.kv_seq if dim == "T" else dim for dim in dims))
        _note(w, data)
        return w.b.op("Add", *((mask, scores) if left else (scores, mask)))

    return write


def _padding(w: Writer, scores: str) -> str:
    """(1 - mask) * fill, of an integer mask (batch, kv_seq)."""
    b = w.b
    data = (w.rng.uniform(size=(b.sizes["B"], b.sizes[w.kv_seq])) < 2 / 3).astype(np.int64)
    mask = b.input("mask", data, ("B", w.kv_seq))
    wide = b.op("Cast", b.unsqueeze(mask, 1, 2), to=1)
    bias = b.op("Mul", b.op("Sub", b.scalar(1.0), wide), b.scalar(FILL))
    _note(w, (1 - data.astype(np.float32))[:, None, None] * FILL)
    return b.op("Add", scores, bias)


def _two(w: Writer, scores: str) -> str:
    first, one = _float(w, "position_bias", w.kv_seq)
    second, other = _float(w, "mask", "B", 1, "S", w.kv_seq)
    _note(w, one + other)
    return w.b.op("Add", w.b.op("Add", scores, first), second)


def _keep_inf(w: Writer, scores: str) -> str:
    keep, data = _choice(w, "keep", "B", 1, "S", w.kv_seq)
    _note(w, None, data, np.float32(-np.inf))
    return w.b.op("Where", keep, scores, w.b.scalar(-np.inf))


def _drop_finite(w: Writer, scores: str) -> str:
    keep, data = _choice(w, "keep", "B", 1, 1, w.kv_seq)
    _note(w, None, data, FILL)
    return w.b.op("Where", w.b.op("Not", keep), w.b.scalar(FILL), scores)


def _keep_and(w: Writer, scores: str) -> str:
    first, one = _choice(w, "keep", "B", 1, 1, w.kv_seq)
    second, other = _choice(w, "allowed", "S", w.kv_seq)
    _note(w, None, one & other, FILL)
    return w.b.op("Where", w.b.op("And", first, second), scores, w.b.scalar(FILL))


def _keep_twice(w: Writer, scores: str) -> str:
    first, one = _choice(w, "keep", "B", 1, 1, w.kv_seq)
    second, other = _choice(w, "allowed", "S", w.kv_seq)
    _note(w, None, one & other, np.where(other, FILL, 2 * FILL))
    kept = w.b.op("Where", first, scores, w.b.scalar(FILL))
    return w.b.op("Where", second, kept, w.b.scalar(2 * FILL))


def _select_then_add(w: Writer, scores: str) -> str:
    keep, data = _choice(w, "keep", "B", 1, 1, w.kv_seq)
    mask, bias = _float(w, "mask", "S", w.kv_seq)
    _note(w, bias, data, FILL + bias)
    return w.b.op("Add", w.b.op("Where", keep, scores, w.b.scalar(FILL)), mask)


def _clamp(w: Writer, scores: str) -> str:
    mask, data = _float(w, "mask", "B", 1, "S", w.kv_seq)
    data[..., -1] = LOWEST
    _note(w, data)
    return w.b.op("Max", w.b.op("Add", scores, mask), w.b.scalar(LOWEST))


def _causal(w: Writer, scores: str) -> str:
    """Keep what a constant triangle shows."""
    table, keep = _triangle(w, np.True_)
    _note(w, None, keep, np.float32(-np.inf))
    return w.b.op("Where", table, scores, w.b.scalar(-np.inf))


def _triangle(w: Writer, amount: np.generic) -> tuple[str, Array]:
    """A constant triangle, cut to size where the size isn't known, and where it isn't zero."""
    b, rows = w.b, w.b.sizes["S"]
    count = _CAUSAL_ROWS if "S" in b.dynamic else rows
    table = b.const(np.tril(np.full((1, 1, count, count), amount)))
    if "S" in b.dynamic:
        zero, last = b.const([0, 0], np.int64), b.op("Concat", *[b.extent("S")] * 2, axis=0)
        table = b.op("Slice", table, zero, last, b.const([2, 3], np.int64))
    return table, np.tril(np.ones((rows, rows), bool))


def _times(w: Writer, scores: str) -> str:
    """Scores * mask - 1e4 * (1 - mask)."""
    b = w.b
    keep, data = _choice(w, "keep", "B", 1, 1, w.kv_seq)
    number = b.op("Cast", keep, to=1)
    bias = b.op("Mul", b.op("Sub", b.scalar(1.0), number), b.scalar(FILL))
    _note(w, None, data, FILL)
    return b.op("Add", b.op("Mul", scores, number), bias)


def _one_of_two_sums(w: Writer, scores: str) -> str:
    """The scores, or the scores less a number."""
    keep, data = _choice(w, "keep", "B", 1, 1, w.kv_seq)
    _note(w, np.where(data, np.float32(0), FILL))
    return w.b.op("Where", keep, scores, w.b.op("Sub", scores, w.b.scalar(-FILL)))


def _sum_of_two_parts(w: Writer, scores: str) -> str:
    """The same as a sum of two products, of which one is zero."""
    b = w.b
    keep, data = _choice(w, "keep", "B", 1, 1, w.kv_seq)
    _note(w, np.where(data, np.float32(0), FILL))
    kept, hidden = (b.op("Cast", choice, to=1) for choice in (keep, b.op("Not", keep)))
    lower = b.op("Add", scores, b.scalar(FILL))
    return b.op("Add", b.op("Mul", hidden, lower), b.op("Mul", kept, scores))


def _times_amount(w: Writer, scores: str) -> str:
    """Scores times a constant of zeros and twos, which holds a part of the scale."""
    table, keep = _triangle(w, np.float32(AMOUNT))
    _note(w, None, keep, np.float32(0))
    return w.b.op("Mul", scores, table)


def _renormalised(w: Writer, weights: str) -> str:
    """Drop weights, and divide what is left by its sum; of a row that keeps nothing, by 1."""
    b = w.b
    keep, data = _choice(w, "keep", "B", 1, "S", w.kv_seq)
    data[0, 0, 1] = False
    _note(w, None, data, np.float32(-np.inf))
    kept = b.op("Mul", weights, b.op("Cast", keep, to=1))
    total = b.reduce("ReduceSum", kept, -1)
    some = b.op("Greater", total, b.scalar(0.0))
    again = b.op("Div", kept, b.op("Where", some, total, b.scalar(1.0)))
    return b.op("Where", some, again, b.scalar(0.0))


def _hidden(w: Writer, scores: str) -> str:
    """A fill that no score reaches; one row shows nothing at all, and becomes zero behind."""
    b = w.b
    keep, data = _choice(w, "keep", "B", 1, "S", w.kv_seq)
    data[0, 0, 1] = False
    _note(w, None, data, np.float32(-np.inf))
    if w.form.mask == "zeroed":
        return b.op("Where", keep, scores, b.scalar(LOW))
    kept, hidden = (b.op("Cast", choice, to=1) for choice in (keep, b.op("Not", keep)))
    return b.op("Add", b.op("Mul", scores, kept), b.op("Mul", b.scalar(LOW), hidden))


def _zeroed(w: Writer, weights: str) -> str:
    b = w.b
    if w.form.mask == "zeroed":
        return b.op("Where", b.op("Not", "keep"), b.scalar(0.0), weights)
    nothing = b.op("Mul", b.op("Cast", b.op("Not", "keep"), to=1), b.scalar(0.0))
    return b.op("Add", b.op("Mul", b.op("Cast", "keep", to=1), weights), nothing)


def _nan_guard(w: Writer, scores: str) -> str:
    """One row keeps nothing at all."""
    masked = _keep_inf(w, scores)
    w.b.feeds["keep"][0, 0, 1] = False
    return masked


_MASKS = {
    "add2": _added("S", "T"),
    "add3": _added(1, "S", "T", left=True),
    "add4": _added("B", 1, 1, "T"),
    "heads_bias": _added(1, NUM_HEADS, "S", "T"),
    "padding": _padding,
    "two": _two,
    "keep_inf": _keep_inf,
    "drop_finite": _drop_finite,
    "keep_and": _keep_and,
    "keep_twice": _keep_twice,
    "select_then_add": _select_then_add,
    "clamp": _clamp,
    "causal": _causal,
    "times": _times,
    "nan_guard": _nan_guard,
    "one_of_two_sums": _one_of_two_sums,
    "sum_of_two_parts": _sum_of_two_parts,
    "times_amount": _times_amount,
    "zeroed": _hidden,
    "zeroed_times": _hidden,
}
