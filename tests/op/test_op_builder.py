"""Sizes in a body: the nodes that compute one, and the number where there are literals."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnx_fuse.op.builder import BodyBuilder

LITERALS = {"num_heads": 12, "head_dim": 8, "kv_num_heads": 3}
SIZES = {
    "head_dim": 8,
    "7": 7,
    "num_heads * head_dim": 96,
    "num_heads / 2": 6,
    "num_heads / kv_num_heads * 2": 8,
    "num_heads * 2 / kv_num_heads": 8,
    "num_heads + kv_num_heads * head_dim + 1": 37,
}


@pytest.mark.parametrize("expression", SIZES)
def test_size_is_the_same_as_nodes_and_as_a_number(expression: str) -> None:
    builder = BodyBuilder(9, (), LITERALS)
    name = builder.size(expression)
    graph = helper.make_graph(
        builder.nodes, "g", [], [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [1])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)])
    (found,) = ReferenceEvaluator(model).run(None, {})
    assert found.tolist() == [SIZES[expression]]
    assert builder.literal_size(expression) == SIZES[expression]
