"""Guards against NaN and infinity behind a softmax: Where(IsNaN(p), 0, p) and its like.

A softmax's weight is NaN or between 0 and 1. So a choice that asks for infinity is never taken, and
one that asks for NaN has a meaning of its own: the weights of a row without any column are zero.
"""

from __future__ import annotations

from onnx_fuse.analysis.block_shapes import Facts
from onnx_fuse.analysis.nodes import readers
from onnx_fuse.ir.graph import Node, Use, Value

_TESTS = frozenset({"IsNaN", "IsInf", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
_CARRIES = frozenset({"Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze"})


class Guards:
    """The weights on their way from the softmax to the product, and whether NaN became zero."""

    def __init__(self, shapes: Facts) -> None:
        self._shapes = shapes
        self._weights: set[Value] = set()
        self.zero_nan = False

    def readers(self, value: Value) -> list[Use]:
        """Return who reads the weights `value` for their numbers, not only to test them."""
        self._weights.add(value)
        return [use for use in readers(value) if not _only_tests(use.node)]

    def passed(self, node: Node) -> Value | None:
        """Return the result of a guard, which holds the weights again; None if it is no guard."""
        if node.op_type != "Where" or node.domain:
            return None
        condition, fill, kept = node.inputs
        asks = None if condition is None else self._asks(condition)
        if kept not in self._weights or asks is None:
            return None
        if asks == "nan":
            if fill is None or self._shapes.scalar(fill) != 0.0:
                return None
            self.zero_nan = True
        return node.outputs[0]

    def _asks(self, condition: Value) -> str | None:
        """Return what a condition asks for: "nan", or "inf" and so nothing that ever holds."""
        node = condition.producer
        if node is None or node.domain:
            return None
        if node.op_type == "And":
            sides = [None if value is None else self._asks(value) for value in node.inputs]
            return "inf" if "inf" in sides else None
        source = node.inputs[0]
        if source is None:
            return None
        if node.op_type in _CARRIES:
            return self._asks(source)
        if node.op_type in ("IsNaN", "IsInf") and self._is_weights(source):
            return "nan" if node.op_type == "IsNaN" else "inf"
        return None

    def _is_weights(self, value: Value) -> bool:
        while value not in self._weights:
            node = value.producer
            source = node.inputs[0] if node is not None and node.op_type in _CARRIES else None
            if source is None:
                return False
            value = source
        return True


def _only_tests(node: Node) -> bool:
    """Return whether a node, or whoever reads what it carries on, only compares."""
    if node.op_type in _TESTS:
        return True
    if node.op_type not in _CARRIES:
        return False
    found = [use.node for value in node.outputs if value is not None for use in value.uses]
    shown = any(value is not None and value.is_output for value in node.outputs)
    return bool(found) and not shown and all(_only_tests(other) for other in found)
