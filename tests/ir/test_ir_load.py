"""What a loaded model says of its values, nodes and graphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_fuse.ir.attributes import AttributeRef
from onnx_fuse.ir.check import check_model
from onnx_fuse.ir.load import load
from tests.cost import count_calls
from tests.ir.samples import parse, value, zoo_files


def test_values_know_their_producer_uses_type_and_shape(small):
    model = load(small)
    graph = model.graph
    product, total = value(model, "product"), value(model, "sum")
    assert [node.op for node in graph.nodes] == [
        "MatMul",
        "Add",
        "Constant",
        "Unsqueeze",
        "com.example:Strange",
    ]
    assert product.producer is graph.nodes[0]
    assert [(use.node.op, use.index) for use in product.uses] == [
        ("Add", 0),
        ("com.example:Strange", 2),
    ]
    assert graph.nodes[4].inputs == [total, None, product]
    assert (graph.nodes[4].domain, graph.nodes[1].overload) == ("com.example", "variant")
    assert (total.dtype, total.shape) == (TensorProto.FLOAT, ("batch", 4))
    assert (product.dtype, product.shape) == (None, None)
    assert (value(model, "x").is_input, value(model, "y").is_output) == (True, True)
    assert [each.name for each in graph.initializers] == ["w", "b", "unused"]
    assert model.opsets == {"": 18, "com.example": 3}
    assert value(model, "w").numpy()[3, 3] == 15
    assert not value(model, "w").numpy().flags.writeable


def test_the_callers_message_is_not_changed_nor_followed(small):
    before = small.SerializeToString(deterministic=True)
    model = load(small)
    graph = model.graph
    graph.replace_input(graph.nodes[1], 0, value(model, "x"))
    graph.remove_dead([graph.nodes[3]])
    assert small.SerializeToString(deterministic=True) == before
    small.graph.node[0].op_type = "Gemm"
    assert graph.nodes[0].op == "MatMul"


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("value_int: int = 3", np.array(3, np.int64)),
        ("value_ints: ints = [1, 2]", np.array([1, 2], np.int64)),
        ("value_float: float = 0.5", np.array(0.5, np.float32)),
        ("value_floats: floats = [0.5, 2.0]", np.array([0.5, 2], np.float32)),
        ('value_string: string = "ab"', np.array(b"ab", np.object_)),
        ("value: tensor = int32[2, 1] {4, 5}", np.array([[4], [5]], np.int32)),
    ],
)
def test_a_constant_node_is_a_constant(attribute, expected):
    model = load(
        parse(
            '<ir_version: 8, opset_import: ["" : 17]>'
            f" g () => (y) {{ y = Constant<{attribute}>() }}"
        )
    )
    actual = model.graph.outputs[0].numpy()
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.tolist() == expected.tolist()


def test_a_sparse_initializer_is_a_dense_constant(small):
    values = helper.make_tensor("s", TensorProto.FLOAT, [2], [7, 8])
    indices = helper.make_tensor("s_indices", TensorProto.INT64, [2, 2], [0, 1, 2, 0])
    small.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 2]))
    flat = helper.make_sparse_tensor(
        helper.make_tensor("t", TensorProto.FLOAT, [1], [9]),
        helper.make_tensor("t_indices", TensorProto.INT64, [1], [4]),
        [3, 2],
    )
    small.graph.sparse_initializer.append(flat)
    model = load(small)
    assert value(model, "s").numpy().tolist() == [[0, 7], [0, 0], [8, 0]]
    assert value(model, "t").numpy().tolist() == [[0, 0], [0, 0], [9, 0]]


def test_an_initializer_that_callers_can_override_is_no_constant(small):
    small.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [4]))
    model = load(small)
    assert value(model, "b").is_input
    assert value(model, "b").is_initializer
    assert not value(model, "b").is_constant
    assert [each.name for each in model.graph.inputs] == ["x", "b"]


def test_before_ir_version_4_listed_initializers_are_constants(small):
    small.ir_version = 3
    for name, shape in (("w", [4, 4]), ("b", [4]), ("unused", [2])):
        small.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    model = load(small)
    assert value(model, "w").is_constant
    assert [each.name for each in model.graph.inputs] == ["x"]


NESTED = """
    <ir_version: 10, opset_import: ["" : 18]>
    main (float[4] x, bool c) => (float[4] y) {
        shared = Relu(x)
        y = If(c) <
            then_branch = a () => (float[4] t) { u = Neg(shared)  t = Add(u, shared) },
            else_branch = b () => (float[4] t) <float[4] k = {1, 2, 3, 4}> {
                t = If(c) <
                    then_branch = d () => (float[4] v) { v = Mul(shared, k) },
                    else_branch = e () => (float[4] w) { w = Identity(x) }
                >
            }
        >
        last = Identity(shared)
    }
"""


def test_captures_of_nested_graphs_are_uses():
    model = load(parse(NESTED))
    shared = value(model, "shared")
    assert [use.node.op for use in shared.uses] == ["Neg", "Add", "Mul", "Identity"]
    assert [use.node.graph.name for use in shared.uses] == ["a", "a", "d", "main"]
    assert [graph.name for graph in model.graphs()] == ["main", "a", "b", "d", "e"]
    branch = model.graph.nodes[1].attr("else_branch")
    assert branch.parent is model.graph.nodes[1]
    assert branch.initializers[0].uses[0].node.op == "Mul"
    check_model(model)


def test_a_bodys_input_hides_an_outer_value():
    model = load(
        parse(
            """
            <ir_version: 10, opset_import: ["" : 18]>
            main (float[4] x, int64 n, bool c) => (float[4] y) {
                y = Loop(n, c, x) <body = b (int64 i, bool d, float[4] x) => (bool e, float[4] t) {
                    e = Identity(c)
                    t = Neg(x)
                }>
            }
            """
        )
    )
    (body,) = model.graph.nodes[0].subgraphs
    assert body.nodes[0].inputs[0] is model.graph.inputs[2]
    assert body.nodes[1].inputs[0] is body.inputs[2]


def test_a_function_is_a_graph_with_attribute_references():
    model = load(
        parse(
            """
            <ir_version: 10, opset_import: ["" : 18, "local" : 1]>
            main (float[4] x) => (float[4] y) { y = local.twice<factor = 2.0>(x) }
            <opset_import: ["" : 18], domain: "local">
            twice <factor> (a) => (b) { f = Constant<value_float: float = @factor>() b = Mul(a, f) }
            """
        )
    )
    (function,) = model.functions
    constant, product = function.graph.nodes
    assert (function.name, function.domain, function.opsets) == ("twice", "local", {"": 18})
    assert constant.attr("value_float") == AttributeRef("factor", onnx.AttributeProto.FLOAT)
    assert not constant.outputs[0].is_constant
    assert product.inputs == [function.graph.inputs[0], constant.outputs[0]]
    assert function.graph.outputs == product.outputs
    assert [graph.function for graph in model.graphs()] == [None, function]


def test_attributes_are_python_values():
    node = helper.make_node("Op", ["x"], ["y"], domain="d", i=1, f=0.5, s="t", ints=[1, 2])
    node.attribute.append(helper.make_attribute("floats", [0.5, 1.5]))
    node.attribute.append(helper.make_attribute("strings", ["a", "b"]))
    node.attribute.append(helper.make_attribute("t", numpy_helper.from_array(np.eye(2))))
    node.attribute.append(helper.make_attribute("none", [], attr_type=onnx.AttributeProto.INTS))
    node.attribute.append(onnx.AttributeProto(name="bytes", type=3, s=b"\xff"))
    graph = helper.make_graph([node], "g", [helper.make_empty_tensor_value_info("x")], [])
    loaded = load(helper.make_model(graph)).graph.nodes[0]
    attributes = dict(loaded.attributes)
    assert attributes.pop("t").tolist() == [[1, 0], [0, 1]]
    assert attributes == {
        "i": 1,
        "f": 0.5,
        "s": "t",
        "ints": [1, 2],
        "floats": [0.5, 1.5],
        "strings": ["a", "b"],
        "none": [],
        "bytes": b"\xff",
    }
    assert loaded.attr("i") == 1
    assert loaded.attr("missing", 7) == 7


def test_types_that_graphsurgeon_trips_over_load():
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    optional = helper.make_optional_type_proto(tensor)
    sequence = helper.make_sequence_type_proto(tensor)
    nodes = [
        helper.make_node("Optional", ["x"], ["o"]),
        helper.make_node("SequenceConstruct", ["x"], ["s"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_value_info("x", tensor)],
        [helper.make_value_info("o", optional), helper.make_value_info("s", sequence)],
    )
    model = load(helper.make_model(graph))
    assert [(each.dtype, each.shape) for each in model.graph.outputs] == [(None, None)] * 2


def test_an_unsorted_graph_is_brought_in_order():
    model = parse(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] z)'
        " { y = Neg(x) z = Abs(y) }"
    )
    nodes = [model.graph.node[1], model.graph.node[0]]
    shuffled = helper.make_graph(nodes, "g", model.graph.input, model.graph.output)
    loaded = load(helper.make_model(shuffled))
    assert [node.op for node in loaded.graph.nodes] == ["Neg", "Abs"]
    check_model(loaded)


@pytest.mark.parametrize("path", zoo_files(), ids=lambda path: path.stem)
def test_a_real_model_is_read_as_onnx_reads_it(path):
    model, proto = load(path), onnx.load(path)
    check_model(model)
    assert [each.name for each in model.graph.outputs] == [each.name for each in proto.graph.output]
    assert len(model.graph.nodes) == len(proto.graph.node)
    readers: dict[str, int] = {}
    for node, expected in zip(model.graph.nodes, proto.graph.node, strict=True):
        assert [v.name if v else "" for v in node.inputs] == list(expected.input)
        assert [v.name if v else "" for v in node.outputs] == list(expected.output)
        assert list(node.attributes) == [each.name for each in expected.attribute]
        for name in expected.input:
            readers[name] = readers.get(name, 0) + 1
    for each, expected in zip(model.graph.initializers, proto.graph.initializer, strict=True):
        array = numpy_helper.to_array(expected)
        assert each.numpy().dtype == array.dtype
        assert each.numpy().tobytes() == array.tobytes()
        direct = [use for use in each.uses if use.node.graph is model.graph]
        assert len(direct) == readers.get(each.name, 0)


def test_cost_of_loading_grows_with_the_number_of_nodes():
    """Linear: four times the nodes at four times the cost; quadratic would be sixteen."""

    def cost(nodes: int) -> int:
        lines = "".join(f"v{i + 1} = Add(v{i}, v0) " for i in range(nodes))
        text = f"g (float[2] v0) => (float[2] v{nodes}) {{ {lines} }}"
        model = parse(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
        return count_calls(lambda: load(model))

    assert 20_000 < cost(20_000) < 4.1 * cost(5_000)
