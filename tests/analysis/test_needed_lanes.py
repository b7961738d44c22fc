"""Lanes that only make heads deeper: of zeros in queries and keys, and cut off the context."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.analysis.samples.forms import HEAD_DIM, NUM_HEADS, SIZES, Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import Step, twin
from tests.analysis.verdicts import ALL, BOTH, OUT, VALUE, check_fused

ZEROS = 4
BATCH, ROWS = SIZES["B"], SIZES["S"]


def pad(before: int = 0, behind: int = ZEROS, number: float = 0.0, mode: str = "constant") -> Step:
    """Make the last axis longer."""

    def padded(w: Writer, value: str) -> str:
        amounts = w.b.const([0, 0, 0, before, 0, 0, 0, behind], np.int64)
        return w.b.op("Pad", value, amounts, w.b.scalar(number), mode=mode)

    return padded


def join(number: float, *, first: bool = False) -> Step:
    """Join lanes of one number to the last axis."""

    def joined(w: Writer, value: str) -> str:
        lanes = w.b.const(np.full((BATCH, NUM_HEADS, ROWS, ZEROS), number, np.float32))
        return w.b.op("Concat", *((lanes, value) if first else (value, lanes)), axis=-1)

    return joined


def write(start: int) -> Step:
    """Write the lanes from a place on among zeros."""

    def written(w: Writer, value: str) -> str:
        zeros = w.b.const(np.zeros((BATCH, NUM_HEADS, ROWS, HEAD_DIM + ZEROS), np.float32))
        places = np.moveaxis(np.indices((BATCH, NUM_HEADS, ROWS, HEAD_DIM)), 0, -1)
        places[..., 3] += start
        return w.b.op("ScatterND", zeros, w.b.const(places, np.int64), value)

    return written


def pad_rows(w: Writer, value: str) -> str:
    """Make positions and lanes more by zeros, and cut the positions off again."""
    wide = w.b.op("Pad", value, w.b.const([0, 0, 0, 0, 0, 0, 2, ZEROS], np.int64))
    return w.b.slice(wide, 0, ROWS, 2)


def times(number: float, step: Step) -> Step:
    """Multiply behind a step."""
    return lambda w, value: w.b.op("Mul", step(w, value), w.b.scalar(number))


def cut(w: Writer, context: str) -> str:
    """Leave the first lanes."""
    return w.b.slice(context, 0, HEAD_DIM, 3)


def cut_by_pad(w: Writer, context: str) -> str:
    """Leave them by a Pad of fewer than none."""
    return w.b.op("Pad", context, w.b.const([0, 0, 0, 0, 0, 0, 0, -ZEROS], np.int64))


def cut_behind_views(w: Writer, context: str) -> str:
    """Leave them behind other orders of the axes."""
    turned = w.b.transpose(context, 0, 2, 1, 3)
    return w.b.transpose(w.b.split(turned, [HEAD_DIM, ZEROS], 3)[0], 0, 2, 1, 3)


def cut_apart(w: Writer, context: str) -> str:
    """Leave the last lanes."""
    return w.b.slice(context, ZEROS, ZEROS + HEAD_DIM, 3)


def cut_and_read(w: Writer, context: str) -> str:
    """Leave the first lanes, and add the largest of all of them."""
    return w.b.op("Add", cut(w, context), w.b.reduce("ReduceMax", context, -1))


def cut_rows(w: Writer, context: str) -> str:
    """Leave the first lanes of all rows but the first, which is 0 instead."""
    bounds = ([1, 0], [ROWS, HEAD_DIM], [2, 3])
    part = w.b.op("Slice", context, *(w.b.const(bound, np.int64) for bound in bounds))
    first = w.b.const(np.zeros((BATCH, NUM_HEADS, 1, HEAD_DIM), np.float32))
    return w.b.op("Concat", first, part, axis=2)


def deeper(
    query: Step | None = None,
    key: Step | None = None,
    value: Step | None = None,
    context: Step | None = None,
) -> dict[str, Step]:
    """Change the operands before the products, and the context."""

    def operands(w: Writer) -> tuple[str, ...]:
        own = Writer.operands_of_product(w)
        made = zip((query, key, value), own, strict=True)
        return tuple(step(w, one) if step else one for step, one in made)

    def product(w: Writer, weights: str, values: str) -> str:
        made = Writer.product(w, weights, values)
        return context(w, made) if context else made

    return {"operands_of_product": operands, "product": product}


def same(step: Step, context: Step = cut) -> dict[str, Step]:
    return deeper(step, step, step, context)


TURNED = ("q_cos", "q_sin", "k_cos", "k_sin")
WHOLE = (*ALL, *OUT)
FUSED: dict[str, tuple[Form, dict[str, Step], tuple[str, ...]]] = {
    "by a Pad": (Form(), same(pad()), WHOLE),
    "by a Pad before": (Form(), same(pad(ZEROS, 0), cut_apart), WHOLE),
    "by a Pad on both sides": (Form(), same(pad(ZEROS, 3), cut_apart), WHOLE),
    "by zeros joined": (Form(), same(join(0.0)), WHOLE),
    "by zeros joined before": (Form(), same(join(0.0, first=True), cut_apart), WHOLE),
    "by a Pad and by zeros joined": (Form(), deeper(pad(), join(0.0)), WHOLE),
    "behind a rotation": (Form(rope="half"), same(pad()), (*ALL, *TURNED, *OUT)),
    "of open extents": (Form(dims="dynamic"), same(pad()), WHOLE),
    "of grouped heads": (Form(heads="gqa_expand"), same(pad()), WHOLE),
    "and scaled": (Form(), deeper(times(2.0, pad()), times(0.5, pad())), WHOLE),
    "and of rows, which are cut off": (Form(), deeper(pad_rows, pad()), WHOLE),
    "of queries and keys": (Form(), deeper(pad(), pad()), WHOLE),
    "of values": (Form(), deeper(value=pad(), context=cut), WHOLE),
    "of values by zeros left": (Form(), deeper(value=write(0), context=cut), WHOLE),
    "of values by any numbers": (Form(), deeper(value=join(3.0), context=cut), WHOLE),
    "of values by what is there": (Form(), deeper(value=pad(mode="edge"), context=cut), WHOLE),
    "of values, cut behind views": (Form(), deeper(value=pad(), context=cut_behind_views), WHOLE),
    "of values, cut by a Pad": (Form(), deeper(value=pad(), context=cut_by_pad), WHOLE),
}
NOT: dict[str, tuple[dict[str, Step], tuple[str, ...]]] = {
    "by ones": (deeper(pad(number=1.0), pad(number=1.0)), BOTH),
    "by ones joined": (deeper(join(1.0), join(1.0)), BOTH),
    "by what is there": (deeper(pad(mode="reflect"), pad(mode="reflect")), BOTH),
    "of queries by zeros, of keys by ones": (deeper(pad(), pad(number=1.0)), BOTH),
    "on different sides": (deeper(pad(), pad(ZEROS, 0)), BOTH),
    "of values by zeros left, others cut": (deeper(value=write(1), context=cut), VALUE),
    "of values, others cut": (deeper(value=pad(), context=cut_apart), VALUE),
    "of values, all of them read": (deeper(value=pad(), context=cut_and_read), VALUE[:-2]),
    "of values, rows cut, too": (deeper(value=pad(), context=cut_rows), VALUE[:-2]),
}


@pytest.mark.parametrize("name", FUSED)
def test_lanes_that_are_not_needed_are_left_out(name: str) -> None:
    form, steps, expected = FUSED[name]
    check_fused(twin(form, **steps), expected)


@pytest.mark.parametrize("name", NOT)
def test_lanes_that_count_stay(name: str) -> None:
    steps, expected = NOT[name]
    check_fused(twin(**steps), expected)


def test_zeros_times_infinity_stay() -> None:
    check_fused(twin(**deeper(times(math.inf, pad()), pad())), BOTH)
