"""An operator's causal order is that of its own rows and columns, not of their sources."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import pytest

import onnx_fuse
from tests.analysis.check import check_results, fused, fused_nodes
from tests.analysis.samples import projections
from tests.analysis.samples.forms import CONTEXT, HEAD_DIM, NUM_HEADS, OUT, SIZES, Form
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.verdicts import check_fused
from tests.sessions import plain_session

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


LOWEST = float(np.finfo(np.float32).min)
# How an operator of com.microsoft is called, and what it reads.
ORDERED = {
    "packed": ("Attention", "x, w, b, , , added"),
    "packed, columns hidden": ("Attention", "x, w, b, shown"),
    "apart": ("MultiHeadAttention", "x, x, x, , , added"),
    "apart, columns hidden": ("MultiHeadAttention", "x, x, x, , shown"),
    "apart, both": ("MultiHeadAttention", "x, x, x, , shown, added"),
    "apart, behind a past": ("MultiHeadAttention", "x, x, x, , , longer, past, past"),
}


@pytest.mark.parametrize("fill", [LOWEST, -np.inf, -1e9])
@pytest.mark.parametrize("name", ORDERED)
def test_rows_that_show_nothing_are_those_of_the_operator(name: str, fill: float) -> None:
    """What its order hides has the lowest number, so it has a share where no score is above."""
    op_type, inputs = ORDERED[name]
    results = "y, keys, values" if "past" in inputs else "y"
    model = onnx.parser.parse_model(f"""
      <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
      g (float[2, 3, 8] x, float[1, 1, 3, 3] added, int32[2, 3] shown, float[1, 1, 3, 5] longer,
         float[2, 2, 2, 4] past) => (float[2, 3, 8] y) {{
        {results} = com.microsoft.{op_type} <num_heads = 2, unidirectional = 1,
            mask_filter_value: float = {fill!r}> ({inputs})
      }}""")
    rng = np.random.default_rng(0)
    for constant, shape in {"w": (8, 24), "b": (24,)}.items():
        data = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(data, constant))
    added = rng.standard_normal((1, 1, 3, 3)).astype(np.float32)
    added[0, 0, 0, :2] = added[0, 0, 1, 0] = fill
    feeds = {
        "x": rng.standard_normal((2, 3, 8)).astype(np.float32),
        "past": rng.standard_normal((2, 2, 2, 4)).astype(np.float32),
        "added": added,
        "longer": np.pad(added, ((0, 0), (0, 0), (0, 0), (2, 0)), constant_values=fill),
        "shown": np.array([[0, 1, 1], [0, 0, 1]], np.int32),
    }
    expected = plain_session(model).run(None, feeds)
    made = fused(model)
    for session in (plain_session(made), onnx_fuse.session(made)):
        check_results(session.run(None, feeds), expected)


@pytest.mark.parametrize(("fill", "is_left"), [(-10000.0, True), (LOWEST, False), (-np.inf, False)])
def test_order_is_a_mask_where_scores_may_be_as_low(fill: float, is_left: bool) -> None:
    model = onnx.parser.parse_model(f"""
      <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
      g (float[2, 3, 8] x, int32[2, 3] shown) => (float[2, 3, 8] y) {{
        y = com.microsoft.MultiHeadAttention <num_heads = 2, unidirectional = 1,
            mask_filter_value: float = {fill!r}> (x, x, x, , shown)
      }}""")
    (node,) = fused_nodes(fused(model))
    settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert settings["is_causal"] == is_left
    assert (b"attn_mask" in settings["operands"].split(b",")) != is_left
