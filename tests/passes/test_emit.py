"""Types of what is added around the operator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnx_fuse.analysis.algebra.expr import Call, Expr
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.ir.load import load
from onnx_fuse.passes.emit import Emitter

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
g (float16[2] half, float[2] whole, bool[2] choice) => (float16[2] y) { y = Identity(half) }
"""
NUMBER = np.float32([1.0])


@pytest.mark.parametrize(
    ("op_type", "inputs", "dtype", "casts"),
    [
        ("Add", ("half", "half"), HALF, 0),
        ("Add", ("half", NUMBER), HALF, 0),
        ("Add", ("half", "whole"), FLOAT, 1),
        ("Where", ("choice", NUMBER, "half"), HALF, 0),
        ("Where", ("choice", "half", "whole"), FLOAT, 1),
        ("Where", ("choice", NUMBER, NUMBER), FLOAT, 0),
        ("Greater", ("half", NUMBER), TensorProto.BOOL, 0),
    ],
)
def test_numbers_that_meet_have_one_type(
    op_type: str, inputs: tuple[str | np.ndarray, ...], dtype: int, casts: int
) -> None:
    model = load(onnx.parser.parse_model(MODEL))
    known = {value.name: value for value in model.graph.inputs}
    parts: list[Expr] = [known[part] if isinstance(part, str) else part for part in inputs]
    emitter = Emitter(model.graph, Shapes(model))
    call = Call(op_type, tuple(parts))
    assert emitter.dtype(call) == dtype
    emitter.value(call, "made")
    assert [node.op for node in model.graph.nodes].count("Cast") == casts


def test_extents_are_integers_of_whatever_tensor_they_are() -> None:
    model = load(onnx.parser.parse_model(MODEL))
    half, whole, _ = model.graph.inputs
    first = np.zeros(1, dtype=np.int64)
    extents = [Call("Gather", (Call("Shape", (value,)), first)) for value in (half, whole)]
    emitter = Emitter(model.graph, Shapes(model))
    total = Call("Add", tuple(extents))
    assert emitter.dtype(total) == TensorProto.INT64
    emitter.value(total, "total")
    assert "Cast" not in [node.op for node in model.graph.nodes]
