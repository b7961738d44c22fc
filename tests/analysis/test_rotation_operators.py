"""Rotations by an operator, of some rows, heads or lanes, and what is nearly one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.samples.forms import HEAD_DIM, NUM_HEADS
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.operand_twins import tables
from tests.analysis.samples.twins import BATCH, ROWS, Step, twin
from tests.analysis.verdicts import BOTH, ROTATED, check_fused

HALF = HEAD_DIM // 2
WIDTH = NUM_HEADS * HEAD_DIM


def operator(w: Writer, value: str, name: str, *, half: int = HALF, **attributes: float) -> str:
    """com.microsoft's RotaryEmbedding."""
    ids = w.b.input(f"positions_{name}", np.tile(np.arange(ROWS), (BATCH, 1)), ("B", "S"))
    options = {"domain": "com.microsoft", **attributes}
    return w.b.op("RotaryEmbedding", value, ids, *tables(w, ROWS, half), **options)


def some_rows(**attributes: float) -> Step:
    """The operator rotates all rows but the first."""

    def rotated(w: Writer, value: str, name: str) -> str:
        b, count = w.b, ROWS - 1
        first, rest = b.split(value, [1, count], 2)
        ids = b.const(np.tile(np.arange(count), (BATCH, 1)), np.int64)
        half = int(attributes.get("rotary_embedding_dim", HEAD_DIM)) // 2
        options = {"domain": "com.microsoft", "num_heads": NUM_HEADS, **attributes}
        turned = b.op("RotaryEmbedding", rest, ids, *tables(w, count, half), **options)
        return b.op("Concat", first, turned, axis=2)

    return rotated


def some_rows_side_by_side(w: Writer, value: str, name: str) -> str:
    """The same by the standard's operator, on rows that hold all heads."""
    b, count = w.b, ROWS - 1
    b.opset = 23
    first, rest = b.split(value, [1, count], 2)
    flat = b.reshape(b.transpose(rest, 0, 2, 1, 3), BATCH, count, WIDTH)
    made = b.op("RotaryEmbedding", flat, *tables(w, BATCH, count, HALF), num_heads=NUM_HEADS)
    turned = b.transpose(b.reshape(made, BATCH, count, NUM_HEADS, HEAD_DIM), 0, 2, 1, 3)
    return b.op("Concat", first, turned, axis=2)


def some_heads(w: Writer, value: str, name: str) -> str:
    """The operator rotates all heads but the first."""
    first, rest = w.b.split(value, [1, NUM_HEADS - 1], 1)
    return w.b.op("Concat", first, operator(w, rest, name), axis=1)


def some_lanes(w: Writer, value: str, name: str) -> str:
    """Two operators rotate half of the lanes each."""
    parts = w.b.split(value, [HALF] * 2, 3)
    turned = [operator(w, part, f"{name}{n}", half=HALF // 2) for n, part in enumerate(parts)]
    return w.b.op("Concat", *turned, axis=3)


def written_rows(w: Writer, value: str, name: str) -> str:
    """Rows that an operator rotated are written over others."""
    b = w.b
    rows = b.transpose(operator(w, value, name), 2, 1, 0, 3)
    new = b.slice(rows, 1, 4, 0)
    places = b.const([[1], [2], [3]], np.int64)
    made = b.op("ScatterND", b.transpose(value, 2, 1, 0, 3), places, new)
    return b.transpose(made, 2, 1, 0, 3)


def of_rows(half: int) -> Step:
    """The operator tells heads from each other by its tables' width alone."""

    def rotated(w: Writer, value: str, name: str) -> str:
        rows = w.b.reshape(w.b.transpose(value, 0, 2, 1, 3), BATCH, ROWS, WIDTH)
        made = operator(w, rows, name, half=half)
        return w.b.transpose(w.b.reshape(made, BATCH, ROWS, NUM_HEADS, HEAD_DIM), 0, 2, 1, 3)

    return rotated


WHOLE: dict[str, Step] = {
    "some rows by an operator": some_rows(),
    "pairs of some rows by an operator": some_rows(interleaved=1),
    "some lanes of some rows by an operator": some_rows(rotary_embedding_dim=HALF),
    "some rows side by side by an operator": some_rows_side_by_side,
    "some heads by an operator": some_heads,
    "lanes by two operators": some_lanes,
    "written rows by an operator": written_rows,
    "rows of all heads, told by the tables' width": of_rows(HALF),
}


# What is nearly a rotation ------------------------------------------------------------------------


def of_first_head(w: Writer, value: str, name: str) -> str:
    """The operator takes all heads for one, of which it rotates the first lanes."""
    rows = w.b.reshape(w.b.transpose(value, 0, 2, 1, 3), BATCH, 1, ROWS, WIDTH)
    made = operator(w, rows, name, rotary_embedding_dim=HEAD_DIM, num_heads=1)
    return w.b.transpose(w.b.reshape(made, BATCH, ROWS, NUM_HEADS, HEAD_DIM), 0, 2, 1, 3)


def across_heads(w: Writer, value: str, name: str) -> str:
    """The operator pairs heads, not lanes."""
    lanes = w.b.slice(value, 0, NUM_HEADS, 3)
    made = operator(w, w.b.transpose(lanes, 0, 3, 2, 1), name, half=NUM_HEADS // 2)
    return w.b.transpose(made, 0, 3, 2, 1)


def rows_moved(w: Writer, value: str, name: str) -> str:
    """Rows that an operator rotated come before one that it did not."""
    rest = w.b.slice(operator(w, value, name), 1, ROWS, 2)
    return w.b.op("Concat", rest, w.b.slice(value, 0, 1, 2), axis=2)


IN_PART: dict[str, Step] = {
    "an operator's rows moved": rows_moved,
    "an operator's scaled rows": some_rows(scale=2.0),
    "an operator's scale": lambda w, value, name: operator(w, value, name, scale=2.0),
    "an operator's smaller heads": of_rows(HALF // 2),
    "an operator's larger heads": of_rows(2 * HALF),
    "an operator's first head": of_first_head,
    "an operator across heads": across_heads,
}


@pytest.mark.parametrize("name", WHOLE)
def test_operator_is_taken_in(name: str) -> None:
    check_fused(twin(rotated=WHOLE[name]), ROTATED)


@pytest.mark.parametrize("name", IN_PART)
def test_what_an_operator_nearly_rotates_enters_as_values(name: str) -> None:
    check_fused(twin(rotated=IN_PART[name]), BOTH)
