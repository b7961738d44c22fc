"""Extents that are declared to vary, and that the graph allows only one number for."""

from __future__ import annotations

import pytest
from onnx import parser

import onnx_fuse
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.ir.load import load
from tests.analysis.samples import operand_twins, steps
from tests.analysis.samples.forms import Form
from tests.analysis.samples.twins import BATCH, ROWS, Step, after, twin
from tests.analysis.verdicts import check_fused, operands

BATCH_AND_SEQ = "d = Shape(x) i = Constant<value_ints = [0, 1]>() bs = Gather(d, i)"
HEADS = f"{BATCH_AND_SEQ} h = Constant<value_ints = [2, 3]>() c = Concat<axis = 0>(bs, h)"
FOUR = "f = Constant<value_ints = [4, 1]>() r = Tile(x, f)"
TABLE = "(float[b, s, 6] x, float[8, 6] t) => (y)"
SHAPES = {
    "a product sums it": (
        "(float[b, s] x, float[8, 6] v) => (y) { y = MatMul(x, v) }",
        "b, 8",
    ),
    "a product with a vector sums it": (
        "(float[b, s] x, float[8] v) => (y) { y = MatMul(x, v) }",
        "b, 8",
    ),
    "a table was added, and the elements are counted": (
        f"{TABLE} {{ a = Add(x, t) {HEADS} y = Reshape(a, c) }}",
        "b, 8, 6",
    ),
    "it follows from another one": (
        """(float[b, s] x, float[8, 6] v, float[s, b, 6] w) => (y) { p = MatMul(x, v)
        k = Constant<value_ints = [8, 96]>() r = Reshape(w, k) y = MatMul(p, r) }""",
        "16, 8",
    ),
    "four times it meets a number": (
        f"(float[b, s] x, float[8, 1] t) => (y) {{ {FOUR} y = Add(r, t) }}",
        "2, s",
    ),
    "a number meets four times it": (
        f"(float[b, s] x, bool[2, 8, 1] t) => (y) {{ {FOUR} y = Where(t, r, r) }}",
        "2, s",
    ),
    # Near misses:
    "four times it meets a number that four doesn't divide": (
        f"(float[b, s] x, float[6, 1] t) => (y) {{ {FOUR} y = Add(r, t) }}",
        "b, s",
    ),
    "four times it meets one": (
        f"(float[b, s] x, float[1, 1] t) => (y) {{ {FOUR} y = Add(r, t) }}",
        "b, s",
    ),
    "one more than it meets a number": (
        """(float[b, s] x, float[1, s] u, float[8, 1] t) => (y) {
        r = Concat<axis = 0>(x, u) y = Add(r, t) }""",
        "b, s",
    ),
    "a table was added, which a single row would broadcast to": (
        f"{TABLE} {{ y = Add(x, t) }}",
        "b, s, 6",
    ),
    "the elements are counted, and two extents vary": (
        "(float[b, s] x) => (y) { k = Constant<value_ints = [4, 4]>() y = Reshape(x, k) }",
        "b, s",
    ),
    "a Reshape takes what is left": (
        """(float[b, 8] x) => (y) { k = Constant<value_ints = [2, -1]>() y = Reshape(x, k) }""",
        "b, 8",
    ),
    "a Reshape takes an extent as it is": (
        """(float[b, 8] x) => (y) { k = Constant<value_ints = [0, 8]>() y = Reshape(x, k) }""",
        "b, 8",
    ),
    "nothing reads the product": (
        "(float[b, s] x, float[8, 6] v) => (y) { p = MatMul(x, v) y = Relu(x) }",
        "b, s",
    ),
    "the product is in a branch": (
        """(float[b, s] x, float[8, 6] v, bool q) => (y) {
        y = If(q) <then_branch = t () => (r) { r = MatMul(x, v) },
                   else_branch = e () => (r) { r = Relu(x) }> }""",
        "b, s",
    ),
    "a product sums one": (
        "(float[b, s] x, float[1, 6] v) => (y) { y = MatMul(x, v) }",
        "b, s",
    ),
}


@pytest.mark.parametrize("why", SHAPES)
def test_what_an_extent_must_be(why: str) -> None:
    text, expected = SHAPES[why]
    proto = parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]> g {text}')
    for output in proto.graph.output:
        output.ClearField("type")
    model = load(proto)
    shape = Shapes(model).shape(model.graph.inputs[0])
    assert shape is not None
    assert ", ".join(map(str, shape)) == expected


def test_a_shape_that_is_declared_inside_the_graph_forces_nothing() -> None:
    proto = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 17, "other" : 1]> g (float[b, s] x, float[s, 6] v)
        => (y) <float[2, 8] o> { o = other.Own(x) y = MatMul(o, v) }"""
    )
    proto.graph.output[0].ClearField("type")
    model = load(proto)
    shapes = Shapes(model)
    assert [str(shapes.shape(value)) for value in model.graph.inputs] == ["(b, s)", "(s, 6)"]


def _added(*shape: int) -> Step:
    """Add constant numbers, as those are that were traced at one length."""
    return lambda w, value: w.b.op("Add", value, w.b.const(w.random(*shape)))


CONSTANT: dict[str, dict[str, Step]] = {
    "mask": after("scores", _added(ROWS, ROWS)),
    "mask of each batch": after("scores", _added(BATCH, 1, 1, ROWS)),
    "mask of two batches, given": after("scores", steps.masked_by_input(2, 1, 1, ROWS)),
    "table": after("source", _added(ROWS, 1)),
    "values": {"product": operand_twins.values_of_two_batches},
}


@pytest.mark.parametrize("what", CONSTANT)
@pytest.mark.parametrize("rope", ["none", "half"])
def test_what_was_traced_at_one_length_is_fused_as_if_no_extent_varied(
    what: str, rope: str
) -> None:
    varying, fixed = (
        twin(Form(dims=dims, rope=rope), **CONSTANT[what]) for dims in ("dynamic", "static")
    )
    (expected,) = operands(onnx_fuse.fuse(fixed.model, threshold=None).model)
    check_fused(varying, expected)
