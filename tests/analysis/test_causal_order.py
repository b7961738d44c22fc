"""An operator's causal order is that of its own rows and columns, not of their sources."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.analysis.samples import projections
from tests.analysis.samples.forms import CONTEXT, HEAD_DIM, NUM_HEADS, OUT, SIZES, Form
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.verdicts import check_fused

BATCH, ROWS = SIZES["B"], SIZES["S"]
COUNT = 6
Parts = tuple[str, str, str]


def attended(change: Callable[[Writer, str, str, str], Parts], rows: int) -> Sample:
    """Return the standard's operator on changed queries, keys and values."""
    w = Writer(Form())
    w.b.opset = 23
    parts = change(w, *map(w.heads_first, projections.project(w)))
    context = w.b.transpose(w.b.op("Attention", *parts, is_causal=1), 0, 2, 1, 3)
    flat = w.b.reshape(context, BATCH, rows, NUM_HEADS * HEAD_DIM)
    made = w.b.op("MatMul", flat, w.b.const(w.random(NUM_HEADS * HEAD_DIM, OUT)))
    return Sample(w.b.model(made), w.b.feeds, w.record)


def turned(w: Writer) -> str:
    """Project (2, 3) positions, which stand in the order (3, 2) afterwards."""
    b = w.b
    if "places" not in b.feeds:
        b.input("places", w.random(BATCH, 2, 3, CONTEXT), (BATCH, 2, 3, CONTEXT))
    made = b.op("MatMul", "places", b.const(w.random(CONTEXT, NUM_HEADS * HEAD_DIM)))
    apart = b.reshape(made, BATCH, 2, 3, NUM_HEADS, HEAD_DIM)
    return b.reshape(b.transpose(apart, 0, 3, 2, 1, 4), BATCH, NUM_HEADS, COUNT, HEAD_DIM)


def one_row_repeated(w: Writer, query: str, key: str, value: str) -> Parts:
    """All queries are the first one, but each sees one column more."""
    shape = w.b.const([BATCH, NUM_HEADS, ROWS, HEAD_DIM], np.int64)
    return w.b.op("Expand", w.b.slice(query, 0, 1, 2), shape), key, value


QUERY = ("context", "query", "k_weight", "v_weight", "k_bias", "v_bias", "out_weight")
CASES: dict[str, tuple[Callable[[], Sample], tuple[str, ...]]] = {
    "usual": (
        lambda: attended(lambda w, *parts: parts, ROWS),
        ("hidden", "qkv_weight", "qkv_bias", "out_weight"),
    ),
    "one row repeated": (lambda: attended(one_row_repeated, ROWS), QUERY),
    "rows turned": (lambda: attended(lambda w, q, k, v: (turned(w), k, v), COUNT), QUERY),
    "columns turned": (
        lambda: attended(lambda w, q, k, v: (q, turned(w), turned(w)), ROWS),
        ("hidden", "value_context", "key", "q_weight", "v_weight", "q_bias", "out_weight"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_only_rows_and_columns_as_they_stand_have_the_operators_order(name: str) -> None:
    make, expected = CASES[name]
    check_fused(make(), expected)
