"""Attention of which a part stands around a branch: that part stays where it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnx_fuse
from tests.analysis.check import check_results
from tests.analysis.samples.forms import Form
from tests.analysis.samples.graphs import Sample, sample
from tests.sessions import plain_session

FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL


def in_a_branch_from(number: int) -> Sample:
    """The usual graph whose nodes stand in a branch from one of its matrix products on."""
    made = sample(Form(projection="no_bias"))
    graph = made.model.graph
    nodes, name = list(graph.node), graph.output[0].name
    products = [place for place, node in enumerate(nodes) if node.op_type == "MatMul"]
    at = products[number]
    result = helper.make_tensor_value_info(name, FLOAT, [None] * 3)
    branch = helper.make_graph(nodes[at:], "branch", [], [result])
    unused = helper.make_tensor_value_info("unused", FLOAT, [None] * 3)
    other = helper.make_graph(
        [helper.make_node("Neg", [graph.input[0].name], ["unused"], "negative")],
        "other",
        [],
        [unused],
    )
    choice = helper.make_node(
        "If", ["is_on"], ["y"], "choice", then_branch=branch, else_branch=other
    )
    outer = helper.make_graph(
        [*nodes[:at], choice],
        "outer",
        [*graph.input, helper.make_tensor_value_info("is_on", BOOL, [])],
        [helper.make_tensor_value_info("y", FLOAT, [None] * 3)],
        list(graph.initializer),
    )
    model = helper.make_model(outer, opset_imports=made.model.opset_import, ir_version=9)
    return Sample(model, made.feeds | {"is_on": np.array(True)}, made.record)


def fused_in(graph: onnx.GraphProto) -> list[tuple[str, ...]]:
    """Return the operands of the blocks in a graph, those of inner graphs apart."""
    nodes = [node for node in graph.node if node.domain == "onnx_fuse"]
    texts = [{a.name: a for a in node.attribute}["operands"].s.decode() for node in nodes]
    return [tuple(text.split(",")) for text in texts]


@pytest.mark.parametrize(
    ("number", "outside", "inside"),
    [
        (3, [], [("query", "key", "value", "out_weight")]),
        (5, [("hidden", "qkv_weight")], []),
    ],
    ids=["the projections", "all but the output's product"],
)
def test_part_around_a_branch_stays_there(
    number: int, outside: list[tuple[str, ...]], inside: list[tuple[str, ...]]
) -> None:
    made = in_a_branch_from(number)
    onnx.checker.check_model(made.model)
    model = onnx_fuse.fuse(made.model, threshold=None).model
    onnx.checker.check_model(model)
    assert fused_in(model.graph) == outside
    (choice,) = (node for node in model.graph.node if node.op_type == "If")
    assert [block for a in choice.attribute for block in fused_in(a.g)] == inside
    expected = plain_session(made.model).run(None, made.feeds)
    check_results(plain_session(model).run(None, made.feeds), expected)
