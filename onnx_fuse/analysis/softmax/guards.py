"""Guards against NaN and infinity behind a softmax: Where(IsNaN(p), 0, p) and its like.

A softmax's weight is NaN or between 0 and 1. So a choice that asks for infinity is never taken, and
one that asks for NaN has a meaning of its own: the weights of a row without any column are zero.
"""

from __future__ import annotations

from onnx_fuse.analysis.algebra.formula import Formula, Made
from onnx_fuse.analysis.algebra.nodes import followers, readers
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import CARRIERS, Views
from onnx_fuse.analysis.scores.choices import condition_of
from onnx_fuse.ir.graph import Node, Use

_TESTS = frozenset({"IsNaN", "IsInf", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
# What each asks of the weights: only what is no number is not equal to itself.
_ASKS = {"IsNaN": "nan", "IsInf": "inf", "Equal": "number"}


class Guards:
    """The weights on their way from the softmax to the product, and whether NaN became zero."""

    def __init__(self, views: Views) -> None:
        self._formula = Formula(views)
        self._weights: list[Ref] = []
        self.zero_nan = False

    def readers(self, ref: Ref) -> list[Use]:
        """Return who reads the weights `ref` for their numbers, not only to test them."""
        self._weights.append(ref)
        return [use for use in readers(ref.value) if not only_tests(use.node)]

    def passed(self, node: Node) -> Ref | None:
        """Return the result of a guard, which holds the weights again; None if it is no guard."""
        if node.op != "Where" or node.outputs[0] is None:
            return None
        weights = self._weights[-1]
        whole = Made(node, weights.index)
        place = self._formula.operand(whole, 0)
        asks = None if place is None else self._asks(place)
        kept = 1 if asks == "number" else 2
        if asks is None or node.inputs[kept] is not weights.value:
            return None
        if asks != "inf":
            if self._formula.number(whole, 3 - kept) != 0.0:
                return None
            self.zero_nan = True
        return Ref(node.outputs[0], weights.index)

    def _asks(self, place: Ref) -> str | None:
        """Return what a condition asks for: "nan", "number" (which is all but NaN), or "inf".

        The last never holds.
        """
        asked = condition_of(place, self._formula)
        made = self._formula.made(asked.told, "And", *_ASKS)
        if made is None:
            return None
        sources = [self._formula.operand(made, at) for at in range(len(made.node.inputs))]
        if made.node.op == "And":
            sides = [None if source is None else self._asks(source) for source in sources]
            return "inf" if "inf" in sides and not asked.inverted else None
        asks = None if any(map(self._is_other, sources)) else _ASKS[made.node.op]
        return {"nan": "number", "number": "nan"}.get(asks or "") if asked.inverted else asks

    def _is_other(self, source: Ref | None) -> bool:
        """Return whether elements are not those of the weights."""
        if source is None:
            return True
        return not any(self._formula.views.same(source, weights) for weights in self._weights)


def only_tests(node: Node) -> bool:
    """Return whether a node, or whoever reads what it carries on, only compares."""
    if node.op in _TESTS:
        return True
    if node.op not in CARRIERS:
        return False
    return all(map(only_tests, followers(node))) and not any(v.is_output for v in node.made)
