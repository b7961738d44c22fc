"""Attention that already is one operator gives the record that it would give written out."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.check import check_record, check_results, run
from tests.analysis.forms import HEAD_DIM, NUM_HEADS, SIZES, Form
from tests.analysis.graphs import Sample, Writer

OPSET = 23  # the first with Attention
MASKS = ("none", "bias", "choice")


def mask_of(w: Writer, kind: str) -> list[str]:
    """Add a mask as an input; its meaning goes to the record."""
    rows = SIZES["S"]
    match kind:
        case "bias":
            data = w.random(SIZES["B"], 1, rows, rows)
            w.operands["attn_bias"] = np.broadcast_to(data, w.score_shape)
            return [w.b.input("mask", data, ("B", 1, "S", "S"))]
        case "choice":
            keep = np.tril(np.ones((rows, rows), bool))
            w.operands["attn_mask"] = np.broadcast_to(keep, w.score_shape)
            w.operands["mask_fill"] = np.broadcast_to(np.float32(-np.inf), w.score_shape)
            return [w.b.input("mask", keep, ("S", "S"))]
    return []


def standard(w: Writer, mask: list[str]) -> str:
    """Attention of the standard on (batch, heads, seq, depth)."""
    query, key, value = w.operands_of_product()
    made = w.b.op("Attention", query, key, value, *mask, scale=w.scale)
    return w.output(w.merged(made))


def standard_flat(w: Writer, mask: list[str]) -> str:
    """Attention of the standard on (batch, seq, heads * depth), with its own scale."""
    counts = {"q_num_heads": NUM_HEADS, "kv_num_heads": w.kv_heads}
    made = w.b.op("Attention", *flat(w), *mask, **counts)
    return w.output(w.b.reshape(made, "B", "S", NUM_HEADS, HEAD_DIM))


def multi_head(w: Writer, mask: list[str]) -> str:
    """MultiHeadAttention of com.microsoft, its bias after the mask of padding."""
    slots = ["", "", *mask] if mask else []
    options = {"num_heads": NUM_HEADS, "domain": "com.microsoft"}
    made = w.b.op("MultiHeadAttention", *flat(w), *slots, **options)
    return w.output(w.b.reshape(made, "B", "S", NUM_HEADS, HEAD_DIM))


def flat(w: Writer) -> list[str]:
    """Queries, keys and values with their heads side by side."""
    w.heads_first = lambda value: value  # type: ignore[method-assign]
    heads = (NUM_HEADS, w.kv_heads, w.kv_heads)
    parts = w.operands_of_product()
    return [w.b.reshape(p, "B", "S", n * HEAD_DIM) for p, n in zip(parts, heads, strict=True)]


OPERATORS = {"standard": standard, "standard_flat": standard_flat, "multi_head": multi_head}
CASES = [
    (operator, projection, heads, dims, mask)
    for operator in OPERATORS
    for projection in ("add_right", "packed_3nd", "gemm")
    for heads in ("mha", "folded")  # folded: fewer key heads, and nothing repeats them
    for dims in ("static", "dynamic")
    for mask in MASKS
    if operator != "multi_head" or (heads == "mha" and mask != "choice")
]


def made_of(operator: str, form: Form, mask: str) -> Sample:
    w = Writer(form)
    w.b.opset = 17 if operator == "multi_head" else OPSET
    output = OPERATORS[operator](w, mask_of(w, mask))
    w.record.attributes = w.attributes() | {"zero_nan": int(operator != "multi_head")}
    return Sample(w.b.model(output), w.b.feeds, w.record)


@pytest.mark.parametrize(("operator", "projection", "heads", "dims", "mask"), CASES)
def test_operator_is_taken_with_its_projections(
    operator: str, projection: str, heads: str, dims: str, mask: str
) -> None:
    form = Form(projection=projection, heads=heads, dims=dims)
    made = made_of(operator, form, mask)
    result = run(made)
    check_record(result.record, made.record)
    check_results(result.found, result.expected)
