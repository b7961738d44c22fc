"""Shapes inside and behind branches, loops and functions; large graphs; bound extents."""

from __future__ import annotations

import sys

import onnx
import pytest
from onnx import TensorProto, helper, parser

from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.ir.graph import Value
from onnx_fuse.ir.load import load
from onnx_fuse.ir.model import Model
from tests.cost import count_calls

HEAD = '<ir_version: 9, opset_import: ["" : 17, "f" : 1]>'


def model_of(text: str, functions: str = "") -> Model:
    proto = parser.parse_model(f"{HEAD} {text} {functions}")
    for output in proto.graph.output:
        output.ClearField("type")
    return load(proto)


def value_of(model: Model, name: str) -> Value:
    for graph in model.graphs():
        for value in (*graph.inputs, *(v for node in graph.nodes for v in node.outputs)):
            if value is not None and value.name == name:
                return value
    raise LookupError(name)


def shape_text(model: Model, name: str, **bindings: int) -> str:
    shape = Shapes(model, bindings).shape(value_of(model, name))
    return "unknown" if shape is None else ", ".join(map(str, shape))


def branches(condition: str, inputs: str, other: str = "s = Concat<axis = 0>(x, x)") -> Model:
    return model_of(
        f"""g ({inputs}) => (y) {{ {condition}
        y = If(c) <then_branch = t () => (r) {{ r = Relu(x) }},
                   else_branch = e () => (s) {{ {other} }}> }}"""
    )


def test_branches_that_agree_are_known() -> None:
    model = branches("", "bool c, float[n, 4] x", "s = Exp(x)")
    assert shape_text(model, "y") == "n, 4"


def test_branches_that_differ_are_known_where_they_agree() -> None:
    model = branches("", "bool c, float[n, 4] x")
    assert shape_text(model, "y") == "?y[0], 4"
    assert shape_text(model, "s") == "2*n, 4"


def test_a_branch_that_is_decided_by_shapes_is_taken() -> None:
    condition = """d = Shape(x) i = Constant<value_int = 1>() e = Gather(d, i)
        four = Constant<value_int = 4>() c = Equal(e, four)"""
    assert shape_text(branches(condition, "float[n, 4] x"), "y") == "n, 4"
    assert shape_text(branches(condition, "float[n, 5] x"), "y") == "2*n, 5"
    assert shape_text(branches(condition, "float[n, m] x"), "y") == "?y[0], m"


def loop(step: str) -> Model:
    return model_of(
        f"""g (int64 count, bool go, float[n, 4] x) => (y, z) {{
        y, z = Loop(count, go, x) <body = b (int64 i, bool c, float[p, q] v) => (k, w, s) {{
            k = Identity(c) {step} s = Relu(v) }}> }}"""
    )


def test_what_a_loop_carries_unchanged_is_known_inside_and_behind() -> None:
    model = loop("w = Exp(v)")
    assert shape_text(model, "v") == "n, 4"
    assert shape_text(model, "y") == "n, 4"
    assert shape_text(model, "z") == "?z[0], n, 4"


def test_what_a_loop_changes_is_not_known() -> None:
    model = loop("w = Concat<axis = 0>(v, x)")
    assert shape_text(model, "v") == "?v[0], 4"
    assert shape_text(model, "w") == "?v[0] + n, 4"
    assert shape_text(model, "y") == "?y[0], 4"
    assert shape_text(model, "z") == "?z[0], ?z[1], 4"


def test_a_loop_that_permutes_its_axes_keeps_none() -> None:
    assert shape_text(loop("w = Transpose(v)"), "y") == "?y[0], ?y[1]"


def test_a_counter_that_a_loop_carries_is_not_a_constant() -> None:
    model = model_of(
        """g (int64 count, bool go, float[n] x) => (y) {
        zero = Constant<value_int = 0>() end = Loop(count, go, zero) <body =
            b (int64 i, bool c, int64 v) => (k, w) {
                k = Identity(c) one = Constant<value_int = 1>() w = Add(v, one) }>
        a = Constant<value_ints = [0]>() u = Unsqueeze(end, a) y = ConstantOfShape(u) }"""
    )
    assert shape_text(model, "y") == "?end{0}"


def test_a_scan_takes_slices_and_stacks_them() -> None:
    model = model_of(
        """g (float[n, 4] s, float[time, n, 4] x) => (y, z) {
        y, z = Scan<num_scan_inputs = 1, body = b (float[p, q] v, float[r, t] e) => (w, o) {
            w = Add(v, e) o = Transpose(e) }>(s, x) }"""
    )
    assert shape_text(model, "e") == "n, 4"
    assert shape_text(model, "y") == "n, 4"
    assert shape_text(model, "z") == "time, 4, n"


HEADS = """<domain: "f", opset_import: ["" : 17]> heads <count> (v) => (r) {
    z = Constant<value_ints = [0, 0]>() h = Constant<value_int: int = @count>()
    a = Constant<value_ints = [0]>() h1 = Unsqueeze(h, a) m = Constant<value_ints = [-1]>()
    t = Concat<axis = 0>(z, h1, m) r = Reshape(v, t) }"""


def test_functions_are_known_for_each_call() -> None:
    model = model_of(
        """g (float[n, s, 48] x, float[n, p, 48] u) => (y, w) {
        y = f.heads<count = 4>(x) w = f.heads<count = 6>(u) }""",
        HEADS,
    )
    assert shape_text(model, "y") == "n, s, 4, 12"
    assert shape_text(model, "w") == "n, p, 6, 8"
    # Inside the definition only what holds for both.
    assert shape_text(model, "v") == "n, ?v[1], 48"
    assert shape_text(model, "h1") == "1"
    assert shape_text(model, "r") == "n, ?v[1], ?r[2], ?r[3]"


def test_calls_that_agree_make_a_definition_known() -> None:
    model = model_of(
        "g (float[n, s, 48] x) => (y) { w = f.heads<count = 4>(x) y = f.heads<count = 4>(x) }",
        HEADS,
    )
    assert shape_text(model, "r") == "n, s, 4, 12"


def test_two_calls_do_not_share_what_is_unknown() -> None:
    model = model_of(
        "g (float[n] x) => (y) { a = f.places(x) b = f.places(x) y = Concat<axis = 1>(a, b) }",
        """<domain: "f", opset_import: ["" : 17]> places (v) => (r) { r = NonZero(v) }""",
    )
    assert shape_text(model, "y") == "1, ?a[1] + ?b[1]"


def test_functions_that_call_functions_are_known_without_exponential_work() -> None:
    definitions = ['<domain: "f", opset_import: ["" : 17]> f0 (v) => (r) { r = Relu(v) }']
    definitions += [
        f"""<domain: "f", opset_import: ["" : 17, "f" : 1]> f{i} (v) => (r) {{
        a = f.f{i - 1}(v) r = f.f{i - 1}(a) }}"""
        for i in range(1, 25)
    ]
    model = model_of("g (float[n] x) => (y) { y = f.f24(x) }", "\n".join(definitions))
    assert shape_text(model, "y") == "n"


def test_bindings_are_numbers_for_named_extents_of_inputs() -> None:
    model = model_of("g (float[n, m] x) => (y) { y = Transpose(x) }")
    assert shape_text(model, "y", n=3) == "m, 3"
    assert shape_text(model, "y", other=3) == "m, n"


def chain(length: int) -> onnx.ModelProto:
    """Reshape after reshape, each target computed from the shape before it."""
    nodes = [helper.make_node("Constant", [], ["minus"], value_ints=[-1])]
    for i in range(length // 4):
        nodes += [
            helper.make_node("Shape", [f"x{i}"], [f"s{i}"], end=2),
            helper.make_node("Concat", [f"s{i}", "minus"], [f"t{i}"], axis=0),
            helper.make_node("Reshape", [f"x{i}", f"t{i}"], [f"r{i}"]),
            helper.make_node("Relu", [f"r{i}"], [f"x{i + 1}"]),
        ]
    first = helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["n", "s", 48])
    last = onnx.ValueInfoProto(name=f"x{length // 4}")
    graph = helper.make_graph(nodes, "g", [first], [last])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_a_deep_graph_needs_no_deep_stack() -> None:
    model = load(chain(20_000))
    shapes = Shapes(model)
    assert sys.getrecursionlimit() < 20_000
    assert ", ".join(map(str, shapes.shape(model.graph.outputs[0]) or ())) == "n, s, 48"
    assert not shapes.is_constant(model.graph.outputs[0])


def test_cost_is_linear_in_the_number_of_nodes() -> None:
    def cost(length: int) -> int:
        model = load(chain(length))
        return count_calls(lambda: Shapes(model).shape(model.graph.outputs[0]))

    # Eight times the nodes: a quadratic step would make it sixty-four times the cost.
    assert 8_000 < cost(8_000) < 8.1 * cost(1_000)


@pytest.mark.parametrize(
    "body",
    [
        "t = Constant<value_ints = [-3, 2]>() y = Reshape(x, t)",
        "t = Constant<value_ints = [-3]>() y = ConstantOfShape(t)",
        "y = Transpose<perm = [0, 5]>(x)",
        "y = Gemm(x, x, x, x)",
        "y = Concat<axis = 7>(x, x)",
        "y = MatMul(x)",
        'y = Einsum<equation = "ab,,c->">(x)',
        "t = Constant<value_ints = [1, 2, 3]>() y = Slice(x, t)",
        "y = Conv<kernel_shape = [2]>(x, x)",
        "y = Unsqueeze(x, x)",
    ],
)
def test_an_invalid_node_has_no_facts_and_does_no_harm(body: str) -> None:
    model = model_of(f"g (float[n, 4] x) => (y) {{ {body} }}")
    shapes = Shapes(model)
    shape = shapes.shape(model.graph.outputs[0])
    assert shape is None or all(dim.bounds()[1] >= 0 for dim in shape)
    assert shapes.constant(model.graph.outputs[0]) is None
