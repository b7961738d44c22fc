"""What a node's `op` says beside what the file says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_fuse.ir.load import load

X = "x"
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)
CASES: list[tuple[str, tuple[object, ...], str]] = [
    ("Concat", (X,), "Identity"),
    ("Concat", (X, X), "Concat"),
    ("Sum", (X,), "Identity"),
    ("Sum", (X, X), "Add"),
    ("Sum", (X, X, X), "Sum"),
    ("Sum", (X, ZERO), "Identity"),
    ("Add", (X, ZERO), "Identity"),
    ("Add", (ZERO, X), "Identity"),
    ("Add", (X, ONE), "Add"),
    ("Add", (X, np.zeros(1, np.float32)), "Add"),  # x may have no axis
    ("Add", (X, np.zeros((1, 1), np.float32)), "Add"),
    ("Sub", (X, ZERO), "Identity"),
    ("Sub", (ZERO, X), "Sub"),
    ("Sub", (X, ONE), "Sub"),
    ("Mul", (X, ONE), "Identity"),
    ("Mul", (ONE, X), "Identity"),
    ("Mul", (X, ZERO), "Mul"),
    ("Mul", (X, X), "Mul"),
    ("Div", (X, ONE), "Identity"),
    ("Div", (ONE, X), "Div"),
    ("Pow", (X, ONE), "Identity"),
    ("Pow", (ONE, X), "Pow"),
    ("Pow", (X, TWO), "Pow"),
    ("Max", (X, ZERO), "Max"),
]


def model_of(op_type: str, operands: tuple[object, ...], *, as_inputs: bool) -> onnx.ModelProto:
    """One node of x and of initializers, which a caller may override if they are inputs as well."""
    names = [X if operand is X else f"c{place}" for place, operand in enumerate(operands)]
    constants = [
        numpy_helper.from_array(np.asarray(operand), name)
        for name, operand in zip(names, operands, strict=True)
        if name != X
    ]
    attributes = {"axis": 0} if op_type == "Concat" else {}
    node = helper.make_node(op_type, names, ["y"], op_type, **attributes)
    shapes = {X: ["n", 3]} | {tensor.name: list(tensor.dims) for tensor in constants if as_inputs}
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", inputs, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize(("op_type", "operands", "op"), CASES)
def test_op_is_the_plainest_one(op_type: str, operands: tuple[object, ...], op: str) -> None:
    (node,) = load(model_of(op_type, operands, as_inputs=False)).graph.nodes
    assert (node.op, node.bare_op) == (op, op_type)
    if op == "Identity":
        assert node.inputs[0] is not None
        assert node.inputs[0].name == X


def test_number_that_a_caller_gives_is_not_neutral() -> None:
    (node,) = load(model_of("Add", (X, ZERO), as_inputs=True)).graph.nodes
    assert node.op == "Add"


@pytest.mark.parametrize(
    ("equation", "op"),
    [
        ("ij,->ij", "Mul"),
        (",ij -> ij", "Mul"),
        ("...j,->...j", "Mul"),
        ("ij,->ji", "Einsum"),
        ("ij,->i", "Einsum"),
        ("ij,ij->ij", "Einsum"),
        ("ij,i->ij", "Einsum"),
        ("ij,", "Einsum"),
    ],
)
def test_einsum_with_a_number_is_a_product(equation: str, op: str) -> None:
    model = model_of("Einsum", (X, TWO), as_inputs=False)
    model.graph.node[0].attribute.append(helper.make_attribute("equation", equation))
    (node,) = load(model).graph.nodes
    assert (node.op, node.bare_op) == (op, "Einsum")
