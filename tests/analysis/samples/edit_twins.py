"""Steps that write some scores anew in place, and those that only look like it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.analysis.samples.forms import NUM_HEADS, SIZES
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import Step

BATCH, ROWS = SIZES["B"], SIZES["S"]
COLUMNS = (0, 3)  # that are written
END = np.iinfo(np.int64).max


def columns_written(number: float, reduction: str = "none", *, updates: Step | None = None) -> Step:
    """Write columns, which stand first for that: by one number, or what a step makes of them."""

    def step(w: Writer, scores: str) -> str:
        b = w.b
        first = b.transpose(scores, 3, 0, 1, 2)
        places = b.const([[column] for column in COLUMNS], np.int64)
        if updates is None:
            dims = (len(COLUMNS), "B", NUM_HEADS, "S")
            written = b.op("Expand", b.scalar(number), b.shape(dims))
        else:
            written = updates(w, b.op("Gather", first, b.const(COLUMNS, np.int64), axis=0))
        edited = b.op("ScatterND", first, places, written, reduction=reduction)
        return b.transpose(edited, 1, 2, 3, 0)

    return step


def by_elements(number: float, axis: int, at: Sequence[int] = COLUMNS) -> Step:
    """Write columns (or rows) element by element."""

    def step(w: Writer, scores: str) -> str:
        b, wide = w.b, [1, 1, 1, 1]
        wide[axis] = len(at)
        dims = ["B", NUM_HEADS, "S", "S"]
        dims[axis] = len(at)
        table = b.const(np.reshape(at, wide), np.int64)
        places = b.op("Expand", table, b.shape(dims))
        numbers = b.op("Expand", b.scalar(number), b.shape(dims))
        return b.op("ScatterElements", scores, places, numbers, axis=axis)

    return step


def where_marked(w: Writer, scores: str) -> str:
    """Write the scores that a mask of all of them marks, found one by one."""
    shape = (BATCH, NUM_HEADS, ROWS, ROWS)
    mark = w.b.input("mark", w.rng.uniform(size=shape) < 1 / 3, ("B", NUM_HEADS, "S", "S"))
    places = w.b.transpose(w.b.op("NonZero", mark), 1, 0)
    count = w.b.op("Slice", w.b.op("Shape", places), *(w.b.const([n], np.int64) for n in (0, 1)))
    return w.b.op("ScatterND", scores, places, w.b.op("Expand", w.b.scalar(-7.0), count))


def by_table(w: Writer, scores: str) -> str:
    """Write columns by numbers of their own."""
    written = w.b.const(w.random(len(COLUMNS), BATCH, NUM_HEADS, ROWS))
    return columns_written(0.0, updates=lambda _, __: written)(w, scores)


def halved(w: Writer, value: str) -> str:
    """Halve."""
    return w.b.op("Mul", value, w.b.scalar(0.5))


def nested(
    number: float,
    *,
    head: int = 1,
    back: int = 1,
    changed: Step | None = None,
    reduction: str = "none",
    is_given: bool = False,
) -> Step:
    """Write columns of one head by a number: the head is taken out, edited and written back.

    is_given: which head it is tells an input.
    """

    def step(w: Writer, scores: str) -> str:
        b, at = w.b, np.array(head, np.int64)
        place = b.input("head", at, ()) if is_given else b.const(at)
        part = b.op("Gather", scores, place, axis=1)
        part = part if changed is None else changed(w, part)
        table = np.broadcast_to(np.int64(COLUMNS), (BATCH, ROWS, len(COLUMNS)))
        edit = (b.const(table, np.int64), b.const(np.full(table.shape, number), np.float32))
        part = b.op("ScatterElements", part, *edit, axis=2, reduction=reduction)
        places = b.const(np.full((BATCH, 1, ROWS, ROWS), back), np.int64)
        return b.op("ScatterElements", scores, places, b.unsqueeze(part, 1), axis=1)

    return step


def head_biased(
    op: str = "Add",
    *,
    back: int = 1,
    is_turned: bool = False,
    is_written: bool = False,
    is_twice: bool = False,
    is_input: bool = False,
    rows: tuple[int, int] = (0, ROWS),
) -> Step:
    """Take rows of one head out, combine them with a table, and write them back from the first on.

    is_turned: the table stands first; is_written: a number is written to columns of the sum;
    is_twice: the same sum is written once more; is_input: an input is the table.
    """

    def step(w: Writer, scores: str) -> str:
        b, data = w.b, w.random(BATCH, 1, rows[1] - rows[0], ROWS)
        table = b.input("table", data, data.shape) if is_input else b.const(data)
        part = b.slice(b.slice(scores, 1, 2, 1), *rows, 2)
        part = b.op(op, *((table, part) if is_turned else (part, table)))
        if is_written:
            shape = (BATCH, 1, ROWS, len(COLUMNS))
            columns = b.const(np.broadcast_to(np.int64(COLUMNS), shape), np.int64)
            numbers = b.const(np.full(shape, -7.0), np.float32)
            part = b.op("ScatterElements", part, columns, numbers, axis=3)
        places = b.const(np.full(data.shape, back), np.int64)
        for _ in range(1 + is_twice):
            scores = b.op("ScatterElements", scores, places, part, axis=1)
        return scores

    return step


def heads_biased(
    op: str = "Add",
    *,
    at: tuple[int, int] = (0, 2),
    back: Sequence[int] = (0, 2),
    is_turned: bool = False,
    is_written: bool = False,
    by_query: bool = False,
    dims: Sequence[int] = (2, 1, 1),
) -> Step:
    """Take some heads out, combine them with a table, and write them back.

    at: the first of them, and the step to the next; is_turned: the table stands first; is_written:
    a number is written to columns of the sum, too; by_query: the numbers are the scores' own.
    """

    def step(w: Writer, scores: str) -> str:
        b = w.b
        part = b.slice(scores, at[0], END, 1, at[1])
        table = b.reduce("ReduceMean", part, -1) if by_query else b.const(w.random(*dims))
        part = b.op(op, *((table, part) if is_turned else (part, table)))
        if is_written:
            first = b.transpose(part, 3, 0, 1, 2)
            column = b.const([[0]], np.int64)
            shape = b.op("Shape", b.slice(first, 0, 1, 0))
            number = b.op("Expand", b.scalar(-7.0), shape)
            part = b.transpose(b.op("ScatterND", first, column, number), 1, 2, 3, 0)
        places = b.const(np.reshape(back, (-1, 1)), np.int64)
        turned = b.transpose(scores, 1, 0, 2, 3), b.transpose(part, 1, 0, 2, 3)
        edited = b.op("ScatterND", turned[0], places, turned[1])
        return b.transpose(edited, 1, 0, 2, 3)

    return step


def rows_edited(
    *numbers: float,
    stop: int = END,
    back: tuple[int, int] | None = None,
    counted: tuple[int, int] = (0, 1),
    changed: Step | None = None,
    reduction: str = "none",
) -> Step:
    """Take out the rows from 1 on, write columns of theirs, each by a number, and write them back.

    back: the slice of all rows to which they are written, if not that from which they come; the
    rows are counted from a number on, by a step. changed: what is done to the rows before.
    """

    def step(w: Writer, scores: str) -> str:
        b = w.b
        part = b.slice(scores, 1, stop, 2)
        part = part if changed is None else changed(w, part)
        part = b.transpose(part, 3, 0, 1, 2)
        for column, number in zip(COLUMNS, numbers, strict=True):
            at = b.const([column], np.int64)
            shape = b.op("Shape", b.op("Gather", part, at, axis=0))
            written = b.op("Expand", b.scalar(number), shape)
            part = b.op("ScatterND", part, b.unsqueeze(at, 1), written, reduction=reduction)
        length = b.op("Gather", b.op("Shape", scores), b.const(2, np.int64))
        first, by = (b.const(number, np.int64) for number in counted)
        rows = b.op("Range", first, b.op("Add", first, b.op("Mul", length, by)), by)
        rows = b.unsqueeze(b.slice(rows, *(back or (1, stop)), 0), 1)
        turned = b.transpose(part, 3, 1, 2, 0)
        edited = b.op("ScatterND", b.transpose(scores, 2, 0, 1, 3), rows, turned)
        return b.transpose(edited, 1, 2, 0, 3)

    return step


def by_labels(w: Writer, part: str) -> str:
    """Leave scores as they are, by an Einsum."""
    return w.b.op("Einsum", part, equation="bnst->bnst")


def in_parts(w: Writer, part: str) -> str:
    """Cut the heads into all and none."""
    return w.b.split(part, [NUM_HEADS, 0], 1)[0]


def shifted(w: Writer, scores: str) -> str:
    """Take off the largest of each row."""
    return w.b.op("Sub", scores, w.b.reduce("ReduceMax", scores, -1))


def exchanged(first: int, second: int, step: Step) -> Step:
    """Take a step where two axes are exchanged."""
    order = [*range(4)]
    order[first], order[second] = second, first
    return lambda w, value: w.b.transpose(step(w, w.b.transpose(value, *order)), *order)


def on_a_canvas(w: Writer, scores: str) -> str:
    """Write some of the scores to where all others are hidden."""
    canvas = w.b.const(np.full((ROWS, BATCH, NUM_HEADS, ROWS), -np.inf, np.float32))
    first = w.b.transpose(scores, 3, 0, 1, 2)
    places = w.b.const([[column] for column in COLUMNS], np.int64)
    kept = w.b.op("Gather", first, w.b.const(COLUMNS, np.int64), axis=0)
    return w.b.transpose(w.b.op("ScatterND", canvas, places, kept), 1, 2, 3, 0)


def by_input(w: Writer, scores: str) -> str:
    """Write columns by numbers that only the run knows."""
    data = w.random(len(COLUMNS), BATCH, NUM_HEADS, ROWS)
    written = w.b.input("written", data, (len(COLUMNS), "B", NUM_HEADS, "S"))
    return columns_written(0.0, updates=lambda _, __: written)(w, scores)


def joined(
    *changes: Step | None,
    axis: int = 1,
    sizes: Sequence[int] = (1, NUM_HEADS - 1),
    order: Sequence[int] = (0, 1),
) -> Step:
    """Cut the scores into parts, change some of them, and join them again, perhaps out of order."""

    def step(w: Writer, scores: str) -> str:
        parts = w.b.split(scores, sizes, axis)
        edited = [
            part if change is None else change(w, part)
            for part, change in zip(parts, changes, strict=True)
        ]
        return w.b.op("Concat", *(edited[place] for place in order), axis=axis)

    return step


def biased(*dims: int, opposite: bool = False) -> Step:
    """Add a table of these extents to the scores, or take it off."""
    return lambda w, part: w.b.op("Sub" if opposite else "Add", part, w.b.const(w.random(*dims)))


def hidden(number: float, count: int = NUM_HEADS - 1, *, inverted: bool = False) -> Step:
    """Replace some scores of each of `count` heads by a number."""

    def step(w: Writer, part: str) -> str:
        mask = w.b.const(w.rng.uniform(size=(count, 1, ROWS)) < 1 / 2, np.bool_)
        chosen = (w.b.scalar(number), part) if inverted else (part, w.b.scalar(number))
        return w.b.op("Where", mask, *chosen)

    return step


def of_two_sums(w: Writer, scores: str) -> str:
    """Join one head of a sum with the others of another."""
    b = w.b
    first, second = (biased(NUM_HEADS, 1, ROWS)(w, scores) for _ in range(2))
    return b.op("Concat", b.slice(first, 0, 1, 1), b.slice(second, 1, NUM_HEADS, 1), axis=1)
