"""Adds the nodes that an expression stands for, each computation once for all blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnx_fuse.analysis.algebra.expr import SLICE_INPUTS_OPSET, Call, Expr, content, key
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.ir.graph import Graph, Node, Value

# Bytes of a constant that is computed here; what is larger is left to the runtime.
_LARGEST_FOLD = 1 << 24
_ARITHMETIC = frozenset(
    {"Add", "Sub", "Mul", "Div", "Max", "Min", "Concat", "Less", "Greater", "Equal"}
)
_FLOATS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT)


class Emitter:
    """Adds nodes and constants to one graph."""

    def __init__(self, graph: Graph, shapes: Shapes) -> None:
        self.graph = graph
        self.shapes = shapes
        self._made: dict[object, Value] = {}
        self._dtypes: dict[Value, int] = {}

    def value(self, expr: Expr, hint: str) -> Value:
        """Return a value that holds the expression.

        It is made where its inputs are known, or is the one made before.
        """
        if isinstance(expr, Value):
            return expr
        made = self._made.get(key(expr))
        if made is None or not self.graph.defines(made):
            made = self._made[key(expr)] = self._new_value(expr, hint)
        return made

    def _new_value(self, expr: np.ndarray | Call, hint: str) -> Value:
        folded = content(self._in_types(expr), self.graph.model.opset, _small)
        if folded is not None:
            return self.graph.add_constant(hint, folded)
        assert isinstance(expr, Call)
        return self._call(expr, hint)

    def as_float(self, expr: Expr) -> Expr:
        """Return the expression as float32."""
        dtype = self.dtype(expr)
        if dtype == TensorProto.FLOAT:
            return expr
        if isinstance(expr, np.ndarray):
            return expr.astype(np.float32)
        return Call("Cast", (expr,), (("to", int(TensorProto.FLOAT)),))

    def dtype(self, expr: Expr) -> int:
        """Return the element type of an expression."""
        match expr:
            case Value():
                known = self._dtypes.get(expr) or self.shapes.dtype(expr)
                return TensorProto.FLOAT if known is None else known
            case Call(op_type="Cast"):
                return int(dict(expr.attributes)["to"])
            case Call(op_type="Less" | "Greater" | "Not" | "And"):
                return TensorProto.BOOL
            case Call(op_type="Shape" | "NonZero"):
                return TensorProto.INT64
            case Call():
                return self._common_dtype(_data_of(expr))
            case _:
                return int(helper.np_dtype_to_tensor_dtype(expr.dtype))

    def _common_dtype(self, parts: Sequence[Expr]) -> int:
        """Return the type of what is computed from parts: float32 if half precision meets it.

        A constant takes the type of what it meets.
        """
        variable = [part for part in parts if not isinstance(part, np.ndarray)]
        found = [self.dtype(part) for part in variable or parts[:1]]
        return int(TensorProto.FLOAT if TensorProto.FLOAT in found else found[0])

    def _call(self, call: Call, hint: str) -> Value:
        inputs = [
            self.value(self._typed(part, call), f"{hint}_{call.op_type}") for part in call.inputs
        ]
        node = self.node(call, inputs, f"{hint}_{call.op_type}", None)
        (output,) = node.made
        self._dtypes[output] = self.dtype(call)
        return output

    def node(
        self,
        call: Call,
        inputs: Sequence[Value],
        name: str,
        output: Value | None,
    ) -> Node:
        """Add the call's node, right after the last of its inputs."""
        attributes: dict[str, Any] = {
            attribute: list(item) if isinstance(item, tuple) else item
            for attribute, item in call.attributes
        }
        place = self.after(inputs)
        if call.op_type == "Slice" and self.graph.model.opset < SLICE_INPUTS_OPSET:
            attributes, inputs = self._slice_bounds(inputs), inputs[:1]
        return self.graph.add_node(
            call.op_type,
            inputs,
            [name if output is None else output],
            attributes=attributes,
            name=name,
            before=place,
        )

    def _slice_bounds(self, inputs: Sequence[Value]) -> dict[str, list[int]]:
        """Return a Slice's constant bounds as the attributes that old opsets have for them."""
        bounds: dict[str, list[int]] = {}
        for name, value in zip(("starts", "ends", "axes"), inputs[1:4], strict=True):
            constant = self.shapes.constant(value)
            assert constant is not None
            bounds[name] = constant.ravel().tolist()
        return bounds

    def _typed(self, part: Expr, call: Call) -> Expr:
        """Bring numbers of several types that meet in one call to their common one."""
        parts, own = _data_of(call), self.dtype(part)
        if len(parts) < 2 or own not in _FLOATS or not any(part is other for other in parts):
            return part
        dtype = self._common_dtype(parts)
        if own == dtype or dtype not in _FLOATS:
            return part
        if isinstance(part, np.ndarray):
            return part.astype(helper.tensor_dtype_to_np_dtype(dtype))
        return Call("Cast", (part,), (("to", dtype),))

    def after(self, inputs: Sequence[Value]) -> Node:
        """Return the earliest node before which all the inputs are made."""
        made = [v.producer for v in inputs if v.graph is self.graph and v.producer is not None]
        if not made:
            return self.graph.nodes[0]
        following = max(made, key=lambda node: node.rank).next
        assert following is not None
        return following

    def _in_types(self, expr: Expr) -> Expr:
        """Return an expression as `_typed` brings its parts to their types, all the way up."""
        if not isinstance(expr, Call):
            return expr
        typed = (self._typed(part, expr) for part in expr.inputs)
        return replace(expr, inputs=tuple(map(self._in_types, typed)))


def _small(value: Value) -> np.ndarray | None:
    """Return the numbers of a constant that isn't too large to be computed with."""
    constant = value.constant
    return None if constant is None or constant.nbytes > _LARGEST_FOLD else constant.numpy()


def _data_of(call: Call) -> Sequence[Expr]:
    """Return the inputs that meet in a call: all of an arithmetic one, else the first."""
    if call.op_type == "Where":
        return call.inputs[1:]
    return call.inputs if call.op_type in _ARITHMETIC else call.inputs[:1]
