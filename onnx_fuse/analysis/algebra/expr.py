"""Small expressions over a graph's values: what a rewrite computes around the fused operator.

The recogniser says *what* an operand is (this mask, with its axes brought to batch, head, row,
column); the pass adds the nodes. Expressions have structural keys, so that what several blocks need
is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.splice import spliced
from onnx_fuse.ir.graph import Value

SCATTERS = ("ScatterND", "ScatterElements", "Scatter")
SLICE_INPUTS_OPSET = 10  # from which a Slice has steps, and bounds that a run may compute


@dataclass(frozen=True, eq=False)
class Call:
    """One node to be made: an operator of the default domain with one output."""

    op_type: str
    inputs: tuple[Expr, ...]
    attributes: tuple[tuple[str, Any], ...] = ()


Expr = Value | np.ndarray | Call


def int64(number: int) -> np.ndarray:
    """Return an int64 tensor of shape (1,)."""
    return np.array([number], dtype=np.int64)


def nodes_added(expr: Expr) -> int:
    """Return how many nodes an expression adds on the way of its data.

    Those that move data count three times.
    """
    if not isinstance(expr, Call):
        return 0
    return (1 if expr.op_type in ("Reshape", "Unsqueeze") else 3) + nodes_added(expr.inputs[0])


def key(expr: Expr) -> object:
    """Return a key that is equal exactly for what computes the same by the same nodes."""
    match expr:
        case Call():
            attributes = tuple((name, str(value)) for name, value in expr.attributes)
            return (expr.op_type, tuple(key(part) for part in expr.inputs), attributes)
        case np.ndarray():
            return (str(expr.dtype), expr.shape, expr.tobytes())
        case _:
            return id(expr)


def leaves(expr: Expr) -> list[Value]:
    """Return the values that an expression reads."""
    match expr:
        case Call():
            return [value for part in expr.inputs for value in leaves(part)]
        case Value():
            return [expr]
        case _:
            return []


def values_read(expr: Expr) -> list[Value]:
    """Return the values of which an expression reads more than the shape."""
    match expr:
        case Call("Shape"):
            return []
        case Call():
            return [value for part in expr.inputs for value in values_read(part)]
        case _:
            return leaves(expr)


def same(first: Expr, second: Expr) -> bool:
    """Return whether two expressions compute the same by the same nodes."""
    return key(first) == key(second)


def content(
    expr: Expr, opset: int, known: Callable[[Value], np.ndarray | None]
) -> np.ndarray | None:
    """Return the numbers of an expression; None where `known` doesn't say those of a value.

    None, too, where only a shape is asked for: the tensor isn't read for that.
    """
    if isinstance(expr, Value):
        return known(expr)
    if isinstance(expr, np.ndarray):
        return expr
    inputs: list[Expr] | None = None
    if expr.op_type != "Shape":
        inputs = all_known(content(part, opset, known) for part in expr.inputs)
    return None if inputs is None else fold(replace(expr, inputs=tuple(inputs)), opset)[0]


def fold(call: Call, opset: int, outputs: int = 1) -> list[np.ndarray]:
    """Return what a call of arrays computes, by onnx's own reference evaluator.

    The bounds of an expression's Slice are inputs, also where the opset has attributes for them.
    """
    if call.op_type in SCATTERS:  # which that evaluator does number by number
        return [_scattered(call)]
    if call.op_type == "Slice" and len(call.inputs) > 1:
        opset = max(opset, SLICE_INPUTS_OPSET)
    names = [f"x{position}" for position in range(len(call.inputs))]
    feeds = dict(zip(names, call.inputs, strict=True))
    made = [f"y{position}" for position in range(outputs)]
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(data.dtype), data.shape)
        for name, data in feeds.items()
        if isinstance(data, np.ndarray)
    ]
    node = helper.make_node(call.op_type, names, made, **dict(call.attributes))
    graph = helper.make_graph(
        [node], "fold", inputs, [onnx.ValueInfoProto(name=name) for name in made]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return [np.asarray(result) for result in ReferenceEvaluator(model).run(None, feeds)]


def _scattered(call: Call) -> np.ndarray:
    """Return what a scatter of arrays writes, or adds."""
    data, indices, written = map(np.asarray, call.inputs)
    attributes, made = dict(call.attributes), data.copy()
    if call.op_type == "ScatterND":
        places = tuple(np.moveaxis(indices, -1, 0))
    else:
        places = tuple(np.indices(indices.shape))
        places = spliced(places, int(attributes.get("axis", 0)) % data.ndim, indices)
    if attributes.get("reduction", "none") == "add":
        np.add.at(made, places, written)
    else:
        made[places] = written
    return made
