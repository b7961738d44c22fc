"""What a value is computed from, asked of the graph alone."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import parser

from onnx_fuse.analysis.record.dependence import needs, unshaped
from onnx_fuse.ir.graph import Value
from onnx_fuse.ir.load import load

GRAPH = """<ir_version: 9, opset_import: ["" : 17]> g (float[2] x, bool c) => (float[2] y) {
    a = Relu(x) b = Neg(a) q = Abs(b) r = Neg(q) s = Abs(x)
    y = If(c) <then_branch = t () => (float[2] u) { v = Neg(r) u = Abs(v) },
               else_branch = e () => (float[2] w) { w = Neg(b) }> }"""


def _values() -> dict[str, Value]:
    """Return the values of a graph, and of the graphs in it, by name."""
    graph = load(parser.parse_model(GRAPH)).graph
    nodes = [node for each in graph.walk() for node in each.nodes]
    made = [value for node in nodes for value in node.made]
    return {value.name: value for value in (*graph.inputs, *made)}


def test_what_is_computed_from_a_value_needs_it() -> None:
    at = _values()
    assert needs(at["r"], {at["q"]})
    assert needs(at["r"], {at["x"]})
    assert needs(at["r"], {at["s"], at["b"]})  # the first of them, behind another one
    assert needs(at["q"], {at["q"]})
    assert not needs(at["b"], {at["q"]})
    assert not needs(at["s"], {at["q"]})
    assert not needs(at["r"], {at["s"]})
    assert not needs(at["r"], set())


def test_a_branch_is_computed_from_what_stands_before_it() -> None:
    # Places of nodes in a branch say nothing of those of nodes outside.
    at = _values()
    assert needs(at["u"], {at["q"]})
    assert needs(at["u"], {at["v"]})
    assert not needs(at["w"], {at["q"]})
    assert not needs(at["r"], {at["v"]})


def test_nothing_is_searched_above_the_first_of_what_is_asked_for() -> None:
    at = _values()
    searched: list[str] = []

    def noted(value: Value) -> Sequence[Value]:
        searched.append(value.name)
        return unshaped(value)

    assert not needs(at["b"], {at["q"]}, noted)
    assert searched == []
    assert not needs(at["r"], {at["s"]}, noted)
    assert searched == []
