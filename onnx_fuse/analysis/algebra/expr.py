"""Small expressions over a graph's values: what a rewrite computes around the fused operator.

The recogniser says *what* an operand is (this mask, with its axes brought to batch, head, row,
column); the pass adds the nodes. Expressions have structural keys, so that what several blocks need
is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.shapes.fold_rules import Known, folded
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
    inputs: list[np.ndarray] | None = None
    if expr.op_type != "Shape":
        inputs = all_known(content(part, opset, known) for part in expr.inputs)
    if inputs is None:
        return None
    results = folded(Known(expr.op_type, inputs, dict(expr.attributes), opset))
    return np.asarray(results[0]) if results else None
