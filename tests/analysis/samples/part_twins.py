"""Steps that take out a part of the scores, edit it, and write it back by indices of all axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.analysis.samples.edit_twins import END
from tests.analysis.samples.forms import NUM_HEADS, SIZES
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import DOUBLE, Step

BATCH, ROWS = SIZES["B"], SIZES["S"]
LATER = (0, 0, 1, 1)  # rows and columns from the second on


def part_edited(
    change: Step,
    *,
    starts: Sequence[int] = LATER,
    back: Sequence[int] | None = None,
    axes: Sequence[int] = (0, 1, 2, 3),
    is_twice: bool = False,
) -> Step:
    """Edit what stands from `starts` on, and write it to where `back` begins.

    axes: along which axis of the part each index of a place runs. is_twice: it is written again.
    """

    def step(w: Writer, scores: str) -> str:
        part = scores
        for axis, start in enumerate(starts):
            part = w.b.slice(part, start, END, axis) if start else part
        edited = change(w, part)
        firsts = starts if back is None else back
        ranges = [_positions(w, scores, axis, firsts[axis]) for axis in range(4)]
        places = _places(w, part, dict(zip(axes, ranges, strict=True)))
        for _ in range(1 + is_twice):
            scores = w.b.op("ScatterND", scores, places, edited)
        return scores

    return step


def row_edited(change: Step, *, row: int = -1, back: int = -1, is_twice: bool = False) -> Step:
    """Edit one row, of which an index below zero counts from the end, and write it to another."""

    def step(w: Writer, scores: str) -> str:
        part = w.b.op("Gather", scores, w.b.const(row, np.int64), axis=2)
        edited = change(w, part)
        ranges: dict[int, str] = {
            place: _positions(w, scores, axis, 0) for place, axis in enumerate((0, 1, 3))
        }
        places = _places(w, part, ranges, {2: w.b.const([back], np.int64)})
        for _ in range(1 + is_twice):
            scores = w.b.op("ScatterND", scores, places, edited)
        return scores

    return step


def _positions(w: Writer, scores: str, axis: int, first: int) -> str:
    """Return the positions on an axis from the first one on."""
    length = w.b.op("Gather", w.b.op("Shape", scores), w.b.const(axis, np.int64))
    zero, one = w.b.const(0, np.int64), w.b.const(1, np.int64)
    counted = w.b.op("Range", zero, length, one)
    return w.b.slice(counted, first, END, 0) if first else counted


def _places(
    w: Writer, part: str, ranges: dict[int, str], fixed: dict[int, str] | None = None
) -> str:
    """Return an index for each axis of the scores: ranges along the part's axes, in their order."""
    shape, indices = w.b.op("Shape", part), list[str]()
    for axis, numbers in ranges.items():
        own = [-1 if place == axis else 1 for place in range(len(ranges))]
        indices.append(w.b.op("Reshape", numbers, w.b.const(own, np.int64)))
    for place, number in (fixed or {}).items():
        indices.insert(place, number)
    wide = [w.b.unsqueeze(w.b.op("Expand", index, shape), len(ranges)) for index in indices]
    return w.b.op("Concat", *wide, axis=-1)


def _given(w: Writer, data: np.ndarray, *dims: int | str) -> str:
    """Return an input whose extents have these names, or the numbers that they are."""
    w.b.input("given", data, data.shape)
    dtype = helper.np_dtype_to_tensor_dtype(data.dtype)
    w.b.inputs[-1] = helper.make_tensor_value_info("given", dtype, dims)
    return "given"


def given_added(*dims: int | str, op: str = "Add", is_turned: bool = False) -> Step:
    """Combine a part with an input that has an element for each of its rows and columns."""

    def step(w: Writer, part: str) -> str:
        table = _given(w, w.random(BATCH, 1, ROWS - 1, ROWS - 1), *dims)
        return w.b.op(op, *((table, part) if is_turned else (part, table)))

    return step


def given_chosen(*dims: int | str, number: float = -7.0, is_turned: bool = False) -> Step:
    """Write a number where an input says so, or where it doesn't."""

    def step(w: Writer, part: str) -> str:
        mask = _given(w, w.rng.uniform(size=(BATCH, 1, ROWS - 1, ROWS - 1)) < 1 / 2, *dims)
        chosen = (w.b.scalar(number), part) if is_turned else (part, w.b.scalar(number))
        return w.b.op("Where", mask, *chosen)

    return step


def chosen_by_themselves(w: Writer, part: str) -> str:
    """Write a number where the scores are below zero."""
    return w.b.op("Where", w.b.op("Less", part, w.b.scalar(0.0)), w.b.scalar(-7.0), part)


def chosen_of_table(w: Writer, part: str) -> str:
    """Write numbers of their own where a mask says so."""
    mask = w.b.const(w.rng.uniform(size=(ROWS - 1, ROWS - 1)) < 1 / 2, np.bool_)
    return w.b.op("Where", mask, part, w.b.const(w.random(ROWS - 1, ROWS - 1)))


def chosen(number: float, dtype: type[np.floating[Any]] = np.float32) -> Step:
    """Write a number to every other head."""

    def step(w: Writer, part: str) -> str:
        mask = w.b.const(np.arange(NUM_HEADS).reshape(-1, 1, 1) % 2, np.bool_)
        return w.b.op("Where", mask, part, w.b.const(number, dtype))

    return step


def in_double(step: Step) -> Step:
    """Take a step in double precision, and go back."""

    def wide(w: Writer, part: str) -> str:
        made = step(w, w.b.op("Cast", part, to=DOUBLE))
        return w.b.op("Cast", made, to=onnx.TensorProto.FLOAT)

    return wide


def row_repeated(w: Writer, scores: str) -> str:
    """Add three rows of numbers to the first row, and write the sums to the first three."""
    part = w.b.slice(scores, 0, 1, 2)
    edited = w.b.op("Add", part, w.b.const(w.random(3, 1)))
    ranges = {axis: _positions(w, scores, axis, 0) for axis in range(4)}
    ranges[2] = w.b.slice(ranges[2], 0, 3, 0)
    return w.b.op("ScatterND", scores, _places(w, edited, ranges), edited)
