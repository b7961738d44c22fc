"""Blocks within products of several tensors are fused as if these were products of two."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

import onnx_fuse
from onnx_fuse.ir.text import dump
from tests.analysis.verdicts import ALL, OUT, operands

HIDDEN, HEADS, DEPTH = 8, 2, 4
PROJECTED = "bid,dhk,bje,ehk->bhij", "bhij,bje,ehk,hkd->bid"
MIXED = "bid,dhk,bje,ehk->bhij", "bhij,big,ghk,hkd->bid"  # the values are the row's own


def model(scores: str, context: str) -> onnx.ModelProto:
    """Return an attention of two products."""
    rng = np.random.default_rng(0)
    made = {"q": "dhk", "k": "ehk", "v": "ehk", "o": "hkd"}
    sizes = {"d": HIDDEN, "e": HIDDEN, "h": HEADS, "k": DEPTH}
    weights = [
        onnx.numpy_helper.from_array(
            rng.standard_normal([sizes[c] for c in term]).astype(np.float32), name
        )
        for name, term in made.items()
    ]
    nodes = [
        helper.make_node("Einsum", ["x", "q", "x", "k"], ["scores"], "scores", equation=scores),
        helper.make_node("Softmax", ["scores"], ["weights"], "softmax", axis=-1),
        helper.make_node("Einsum", ["weights", "x", "v", "o"], ["y"], "context", equation=context),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["batch", "seq", HIDDEN])],
        [helper.make_tensor_value_info("y", kind, ["batch", "seq", HIDDEN])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_block_is_whole_within_long_products() -> None:
    original = model(*PROJECTED)
    result = onnx_fuse.fuse(original, threshold=None)
    assert operands(result.model) == [(*ALL[:2], *OUT[:1])]
    assert onnx_fuse.verify(original, result.model).passed
    step = onnx_fuse.FuseAttentionBlock(threshold=None)
    assert dump(onnx_fuse.run_passes(onnx_fuse.load(original), [step])) == result.dump


def test_product_that_sums_no_keys_is_left_as_it_is() -> None:
    original = model(*MIXED)
    result = onnx_fuse.fuse(original, threshold=None)
    assert result.report.num_fused == 0
    assert result.model.SerializeToString() == original.SerializeToString()


def test_long_products_stay_where_nothing_is_fused() -> None:
    original = model(*PROJECTED)
    result = onnx_fuse.fuse(original, threshold=0)
    assert result.model.SerializeToString() == original.SerializeToString()
