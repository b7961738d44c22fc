"""Guards against NaN and infinity behind a softmax: Where(IsNaN(p), 0, p) and its like.

A softmax's weight is NaN or between 0 and 1. So a choice that asks for infinity is never taken, and
one that asks for NaN has a meaning of its own: the weights of a row without any column are zero.
"""

from __future__ import annotations

from onnx_fuse.analysis.algebra.nodes import followers, readers
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import number_of
from onnx_fuse.analysis.algebra.views import CARRIERS, Views
from onnx_fuse.ir.graph import Node, Use

_TESTS = frozenset({"IsNaN", "IsInf", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
# What each asks of the weights: only what is no number is not equal to itself.
_ASKS = {"IsNaN": "nan", "IsInf": "inf", "Equal": "number"}


class Guards:
    """The weights on their way from the softmax to the product, and whether NaN became zero."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._weights: list[Ref] = []
        self.zero_nan = False

    def readers(self, ref: Ref) -> list[Use]:
        """Return who reads the weights `ref` for their numbers, not only to test them."""
        self._weights.append(ref)
        return [use for use in readers(ref.value) if not _only_tests(use.node)]

    def passed(self, node: Node) -> Ref | None:
        """Return the result of a guard, which holds the weights again; None if it is no guard."""
        if node.op != "Where" or node.outputs[0] is None:
            return None
        weights = self._weights[-1]
        condition, *parts = node.inputs
        asked = None if condition is None else self._views.broadcast(weights.index, condition)
        asks = None if asked is None else self._asks(asked)
        fill, kept = parts if asks != "number" else reversed(parts)
        if kept is not weights.value or asks is None:
            return None
        if asks != "inf":
            if fill is None or number_of(fill, self._views.shapes) != 0.0:
                return None
            self.zero_nan = True
        return Ref(node.outputs[0], weights.index)

    def _asks(self, condition: Ref) -> str | None:
        """Return what a condition asks for: "nan", "number" (which is all but NaN), or "inf".

        The last never holds.
        """
        *_, condition = self._views.chain(condition)
        node = condition.value.producer
        if node is None:
            return None
        sources = [
            None if value is None else self._views.broadcast(condition.index, value)
            for value in node.inputs
        ]
        if node.op == "And":
            sides = [None if source is None else self._asks(source) for source in sources]
            return "inf" if "inf" in sides else None
        if node.op == "Not" and sources[0] is not None:
            return {"nan": "number", "number": "nan"}.get(self._asks(sources[0]) or "")
        return None if any(map(self._is_other, sources)) else _ASKS.get(node.op)

    def _is_other(self, source: Ref | None) -> bool:
        """Return whether elements are not those of the weights."""
        if source is None:
            return True
        return not any(self._views.same(source, weights) for weights in self._weights)


def _only_tests(node: Node) -> bool:
    """Return whether a node, or whoever reads what it carries on, only compares."""
    if node.op in _TESTS:
        return True
    if node.op not in CARRIERS:
        return False
    return all(map(_only_tests, followers(node))) and not any(v.is_output for v in node.made)
