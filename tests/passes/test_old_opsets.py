"""What is put around the operator has the form that the model's opset knows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

import onnx_fuse
from tests.sessions import plain_session


def _check(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return what a model is fused to, which both sessions have to run as the model itself."""
    result = onnx_fuse.fuse(model, threshold=None)
    assert result.report.num_fused == 1
    (expected,) = plain_session(model).run(None, feeds)
    for session in (plain_session(result.model), onnx_fuse.session(result.model)):
        np.testing.assert_allclose(session.run(None, feeds)[0], expected, atol=1e-5)
    return result.model


@pytest.mark.parametrize(("opset", "attributes"), [(9, 3), (10, 0)])
def test_rows_are_cut_by_attributes_before_bounds_were_inputs(opset: int, attributes: int) -> None:
    """Queries are read in front of their scale, behind which they were cut."""
    bounds = {"starts": 1, "ends": 3, "axes": 2}
    constants = "".join(f", int64[1] {name} = {{{at}}}" for name, at in bounds.items())
    cut = "Slice(scaled, starts, ends, axes)"
    if attributes:
        constants, options = "", ", ".join(f"{name} = [{at}]" for name, at in bounds.items())
        cut = f"Slice <{options}> (scaled)"
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        g (float[2, 4, 24] x, float[2, 6, 24] c) => (float[2, 3, 2, 8] y)
        <int64[4] heads = {{0, 0, 3, 8}}, float half = {{0.5}}{constants}> {{
            x_heads = Reshape(x, heads)
            x_first = Transpose <perm = [0, 2, 1, 3]> (x_heads)
            scaled = Mul(x_first, half)
            q = {cut}
            c_heads = Reshape(c, heads)
            k = Transpose <perm = [0, 2, 3, 1]> (c_heads)
            v = Transpose <perm = [0, 2, 1, 3]> (c_heads)
            s = MatMul(q, k)
            p = Softmax <axis = 3> (s)
            y = MatMul(p, v)
        }}""")
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.standard_normal((2, 4, 24)).astype(np.float32),
        "c": rng.standard_normal((2, 6, 24)).astype(np.float32),
    }
    made = _check(model, feeds)
    assert "Mul" not in [node.op_type for node in made.graph.node]
    (node,) = (node for node in made.graph.node if node.op_type == "Slice")
    assert len(node.attribute) == attributes


@pytest.mark.parametrize("opset", [9, 10, 11])
@pytest.mark.parametrize(
    ("length", "mask"),
    [
        ("B", [3, 2]),
        ("M", [3, 4, 0, 1]),
        ("3B+2", [2, 4, 0, 2, 4, 0, 2, 4]),
    ],
)
def test_lengths_hide_columns_before_there_was_a_range(
    opset: int, length: str, mask: list[int]
) -> None:
    """Neither Range (opset 11) nor a Slice by computed bounds (opset 10) tells what they hide."""
    rng = np.random.default_rng(0)
    weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 48), 48))
    shapes = {"x": (TensorProto.FLOAT, ["B", "S", 16]), "m": (TensorProto.INT32, [length])}
    inputs = [helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "S", 16])
    node = helper.make_node(
        "Attention", ["x", "w", "b", "m"], ["y"], domain="com.microsoft", num_heads=2
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph([node], "g", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    feeds = {"x": rng.standard_normal((2, 4, 16)).astype(np.float32)}
    _check(model, feeds | {"m": np.array(mask, np.int32)})
