from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from onnx_fuse.errors import InvalidModel
from onnx_fuse.ir.build import new_function
from onnx_fuse.ir.check import check_model
from onnx_fuse.ir.constant import Constant
from onnx_fuse.ir.load import load
from onnx_fuse.ir.save import to_proto
from tests.ir.samples import parse

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '
CHAIN = (
    HEAD + "g (float[2] x) => (float[2] y) <float[2] k = {1, 2}, float[2] spare = {3, 4}>"
    " { a = Neg(x) b = Add(a, k) c = Abs(b) y = Sub(c, a) }"
)


def named(model):
    """Return {name: value} of the main graph and {operator: node} of the last node of each type."""
    values = {each.name: each for each in (*model.graph.inputs, *model.graph.initializers)}
    nodes = {}
    for graph in model.graphs():
        for node in graph.nodes:
            nodes[node.op] = node
            values.update((each.name, each) for each in node.outputs if each is not None)
    return values, nodes


def ops(model):
    return [node.op for node in model.graph.nodes]


def test_a_reseated_value_keeps_name_uses_and_being_an_output():
    model = load(parse(CHAIN))
    values, nodes = named(model)
    y = values["y"]
    fused = model.graph.add_node("Fused", [values["x"]], [y], domain="d", before=nodes["Sub"])
    assert y.producer is fused
    assert nodes["Sub"].outputs == [None]
    assert (y.name, y.is_output) == ("y", True)
    assert model.graph.outputs == [y]
    model.graph.remove_dead([nodes["Sub"]])
    assert ops(model) == ["d:Fused"]
    assert [each.name for each in model.graph.initializers] == ["spare"]
    check_model(model)


def test_a_reseated_inner_value_takes_its_readers_along():
    model = load(parse(CHAIN))
    values, nodes = named(model)
    model.graph.add_node("Fused", [values["x"]], [values["b"]], before=nodes["Add"])
    assert [use.node.op for use in values["b"].uses] == ["Abs"]
    model.graph.remove_dead([nodes["Add"]])
    assert ops(model) == ["Neg", "Fused", "Abs", "Sub"]


@pytest.mark.parametrize("name", ["x", "k"])
def test_what_no_node_makes_cannot_be_reseated(name):
    model = load(parse(CHAIN))
    values, nodes = named(model)
    with pytest.raises(ValueError, match=f"'{name}'"):
        model.graph.add_node("Fused", [], [values[name]], before=nodes["Sub"])


def test_fresh_names_are_unique_in_the_whole_model_and_deterministic():
    model = load(parse(CHAIN))
    _, nodes = named(model)
    graph = model.graph
    first = graph.add_node("Op", [], ["a", None, "new"], name="n", before=nodes["Neg"])
    second = graph.add_node("Op", [], ["a", "b"], name="n", before=nodes["Neg"])
    assert [each and each.name for each in first.outputs] == ["a_1", None, "new"]
    assert (first.name, second.name) == ("n", "n_1")
    assert [each.name for each in second.outputs] == ["a_2", "b_1"]
    assert graph.add_initializer("k", np.zeros(2, np.float32)).name == "k_1"
    assert graph.unique_name("k") == "k_2"


def test_names_of_nested_graphs_and_functions_are_taken_too():
    model = load(
        parse(
            '<ir_version: 8, opset_import: ["" : 17, "f" : 1]>'
            " g (float[2] x, bool c) => (float[2] y) { y = If(c) <"
            " then_branch = t () => (float[2] u) { u = f.body(x) },"
            " else_branch = e () => (float[2] v) { v = Neg(x) }> }"
            ' <opset_import: ["" : 17], domain: "f"> body (p) => (q) { q = Neg(p) }'
        )
    )
    assert [model.graph.unique_name(name) for name in "yuvpq"] == [
        "y_1",
        "u_1",
        "v_1",
        "p_1",
        "q_1",
    ]


def test_uses_stay_in_node_order_after_a_rewrite():
    model = load(parse(CHAIN))
    values, nodes = named(model)
    a = values["a"]
    early = model.graph.add_node("Early", [a, a], ["e"], before=nodes["Add"])
    late = model.graph.add_node("Late", [values["x"]], ["l"], before=nodes["Sub"])
    model.graph.replace_input(late, 0, a)
    assert [(use.node.op, use.index) for use in a.uses] == [
        ("Early", 0),
        ("Early", 1),
        ("Add", 0),
        ("Late", 0),
        ("Sub", 1),
    ]
    model.graph.replace_input(early, 0, None)
    assert early.inputs == [None, a]
    assert len(a.uses) == 4


REMOVALS = {
    "a read node stays": ("Abs", ["Neg", "Add", "Abs", "Sub"], ["k", "spare"]),
    "a returned node stays": ("Sub", ["Neg", "Add", "Abs", "Sub"], ["k", "spare"]),
}


@pytest.mark.parametrize(("root", "left", "constants"), REMOVALS.values(), ids=REMOVALS.keys())
def test_a_node_that_is_needed_is_not_removed(root, left, constants):
    model = load(parse(CHAIN))
    model.graph.remove_dead([named(model)[1][root]])
    assert ops(model) == left
    assert [each.name for each in model.graph.initializers] == constants
    assert not model.is_changed


def test_removal_follows_producers_but_keeps_what_was_dead_before():
    model = load(
        parse(
            HEAD + "g (float[2] x) => (float[2] y) <float[2] k = {1, 2}, float[2] m = {1, 2}>"
            " { old = Neg(x) a = Exp(x) b = Add(a, k) c = Mul(b, m) y = Abs(x) also = Sub(m, x) }"
        )
    )
    _, nodes = named(model)
    model.graph.remove_dead([nodes["Mul"]])
    assert ops(model) == ["Neg", "Abs", "Sub"]
    assert [each.name for each in model.graph.initializers] == ["m"]
    model.graph.remove_dead([nodes["Mul"]])  # once more: nothing to do
    check_model(model)


def test_removing_a_control_flow_node_releases_what_its_branches_read():
    model = load(
        parse(
            HEAD + "g (float[2] x, bool c) => (float[2] y) { a = Neg(x) z = If(c) <"
            " then_branch = t () => (float[2] u) <float[2] i = {1, 2}> { u = Add(a, i) },"
            " else_branch = e () => (float[2] v) { v = Identity(a) }> y = Abs(x) }"
        )
    )
    _, nodes = named(model)
    model.graph.remove_dead([nodes["If"]])
    assert ops(model) == ["Abs"]
    assert [use.node.op for use in model.graph.inputs[0].uses] == ["Abs"]
    assert [node.op_type for node in to_proto(model).graph.node] == ["Abs"]


def test_a_node_without_outputs_and_an_overridable_initializer_stay(small):
    small.graph.node.append(onnx.helper.make_node("Log", ["unused"], [], domain="com.example"))
    small.graph.input.append(onnx.helper.make_tensor_value_info("unused", TensorProto.FLOAT, [2]))
    small.graph.node.append(onnx.helper.make_node("Neg", ["unused"], ["n"]))
    model = load(small)
    model.graph.remove_dead(list(model.graph.nodes)[-2:])
    assert ops(model)[-1] == "com.example:Log"
    assert [each.name for each in model.graph.initializers] == ["w", "b", "unused"]


def test_a_branch_can_be_rewritten_like_a_graph():
    model = load(
        parse(
            HEAD + "g (float[2] x, bool c) => (float[2] y) { a = Neg(x) y = If(c) <"
            " then_branch = t () => (float[2] u) <float[2] i = {1, 2}>"
            " { w = Add(a, i) u = Abs(w) },"
            " else_branch = e () => (float[2] v) { v = Identity(a) }> }"
        )
    )
    values, nodes = named(model)
    branch = nodes["Abs"].graph
    weight = branch.add_initializer("w", np.array([5, 6], np.float32))
    branch.add_node("Sub", [values["x"], weight], [values["u"]], before=nodes["Abs"])
    branch.remove_dead([nodes["Abs"]])
    check_model(model)
    proto = to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    inner = proto.graph.node[1].attribute[0].g
    assert [(node.op_type, list(node.input)) for node in inner.node] == [("Sub", ["x", "w_1"])]
    assert [each.name for each in inner.initializer] == ["w_1"]
    assert proto.graph.node[1].attribute[1] == parse_else(model)


def parse_else(model):
    return onnx.ModelProto.FromString(bytes(model.data)).graph.node[1].attribute[1]


def test_a_function_can_be_rewritten_and_imports_what_it_needs():
    model = load(
        parse(
            '<ir_version: 8, opset_import: ["" : 17, "f" : 1]>'
            " g (float[2] x) => (float[2] y) { y = f.body(x) }"
            ' <opset_import: ["" : 17], domain: "f"> body (p) => (q) { r = Neg(p) q = Abs(r) }'
        )
    )
    body = model.functions[0].graph
    inner = body.nodes[1]
    body.add_node("Fused", [body.inputs[0]], [body.outputs[0]], domain="new", before=inner)
    body.add_opset("new", 2)
    body.remove_dead([inner])
    with pytest.raises(ValueError, match="no initializers"):
        body.add_initializer("k", np.zeros(2, np.float32))
    proto = to_proto(model)
    function = proto.functions[0]
    assert [(node.domain, node.op_type) for node in function.node] == [("new", "Fused")]
    assert {each.domain: each.version for each in function.opset_import} == {"": 17, "new": 2}
    assert {each.domain: each.version for each in proto.opset_import} == {"": 17, "f": 1, "new": 2}
    assert list(proto.functions[0].output) == ["q"]


def function_proto(name="New", domain="d"):
    return onnx.parser.parse_function(
        f'<opset_import: ["" : 17], domain: "{domain}"> {name} (a) => (b) {{ b = Neg(a) }}'
    )


def test_functions_and_imports_come_and_go():
    text = CHAIN.replace("ir_version: 8", "ir_version: 7")
    model = load(parse(text))
    model.add_function(new_function(model, function_proto("First")))
    model.add_function(new_function(model, function_proto("Second")))
    model.add_opset("d", 1)
    proto = to_proto(model)
    assert [each.name for each in proto.functions] == ["First", "Second"]
    assert proto.ir_version == 8
    assert {each.domain: each.version for each in proto.opset_import} == {"": 17, "d": 1}
    with pytest.raises(ValueError, match="d:First"):
        model.add_function(new_function(model, function_proto("First")))
    again = load(proto)
    again.add_function(new_function(again, function_proto("Third")))
    assert [each.name for each in to_proto(again).functions] == ["Third", "First", "Second"]
    for name in ("First", "Second", "Third"):
        again.remove_function(name, "d")
    again.remove_opset("d")
    with pytest.raises(KeyError):
        again.remove_function("First", "d")
    left = to_proto(again)
    left.ir_version = 7
    assert left == parse(text)


def broken_by(change):
    model = load(parse(CHAIN))
    values, nodes = named(model)
    change(model, values, nodes)
    return model


BREAKS = {
    "read before defined": (
        lambda m, v, n: m.graph.replace_input(n["Neg"], 0, v["c"]),
        "Neg .*reads 'c' before",
    ),
    "reads itself": (
        lambda m, v, n: m.graph.replace_input(n["Abs"], 0, v["c"]),
        "Abs .*reads 'c' before",
    ),
    "reads a removed initializer": (
        lambda m, v, n: (
            m.graph.remove_initializer(v["spare"]),
            m.graph.replace_input(n["Neg"], 0, v["spare"]),
        ),
        "Neg .*reads 'spare'",
    ),
    "an output without producer": (
        lambda m, v, n: (
            m.graph.add_node("Op", [v["x"]], [v["y"]], before=n["Neg"]),
            m.graph.remove_dead([v["y"].producer]),
            m.graph.nodes.remove(v["y"].producer),
        ),
        "output 'y' is not defined",
    ),
    "two of one name": (lambda m, v, n: setattr(v["c"], "name", "b"), "'b' is defined twice"),
    "two nodes of one name": (
        lambda m, v, n: (setattr(n["Neg"], "name", "n"), setattr(n["Abs"], "name", "n")),
        "two nodes are named 'n'",
    ),
    "a value of another model": (
        lambda m, v, n: m.graph.replace_input(n["Abs"], 0, load(parse(CHAIN)).graph.inputs[0]),
        "not in",
    ),
}


@pytest.mark.parametrize(("change", "words"), BREAKS.values(), ids=BREAKS.keys())
def test_check_names_what_a_pass_broke(change, words):
    with pytest.raises(InvalidModel, match=words):
        check_model(broken_by(change))


def test_check_accepts_what_no_pass_broke():
    check_model(broken_by(lambda m, v, n: None))


def test_a_computed_constant_is_evaluated_on_each_request_and_checked():
    calls = []

    def make():
        calls.append(1)
        return np.arange(6, dtype=np.float32).reshape(2, 3)

    constant = Constant.computed(TensorProto.FLOAT, (2, 3), make)
    assert not calls
    assert constant.nbytes == 24
    constant.numpy()
    constant.numpy()
    assert len(calls) == 2
    with pytest.raises(ValueError, match="declared"):
        Constant.computed(TensorProto.FLOAT, (3, 2), make).numpy()
    with pytest.raises(ValueError, match="declared"):
        Constant.computed(TensorProto.DOUBLE, (2, 3), make).numpy()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["insert", "remove"]), st.integers(0, 99)), max_size=80))
def test_the_node_list_is_a_list(steps):
    """Insertions and removals in any order, against Python's own list."""
    model = load(parse(CHAIN))
    graph = model.graph
    expected = list(graph.nodes)
    for kind, number in steps:
        at = number % len(expected)
        if kind == "insert" or len(expected) < 3:
            expected.insert(at, graph.add_node("Op", [], ["y"], before=expected[at]))
        else:
            graph.nodes.remove(expected.pop(at))
    assert list(graph.nodes) == expected
    assert len(graph.nodes) == len(expected)
    assert [node.rank for node in expected] == sorted({node.rank for node in expected})


def test_ranks_stay_in_order_however_often_one_place_is_used():
    model = load(parse(CHAIN))
    last = model.graph.nodes[-1]
    for _ in range(300):
        model.graph.add_node("Op", [], ["y"], before=last)
    ranks = [node.rank for node in model.graph.nodes]
    assert ranks == sorted(set(ranks))
