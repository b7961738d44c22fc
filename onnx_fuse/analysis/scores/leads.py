"""Says on which side of an operator the scores are: where a product of queries and keys is."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.contraction import contraction_of, is_matrix_product
from onnx_fuse.analysis.algebra.expr import SCATTERS
from onnx_fuse.analysis.algebra.views import carried
from onnx_fuse.analysis.search import reachable
from onnx_fuse.ir.graph import Value

_POINTWISE = frozenset(
    {"Add", "Sub", "Sum", "Mul", "Div", "Neg", "Where", "Max", "Min", "Clip", "Tanh"}
)
_SEARCHED = 200  # values searched for the product on one side of a sum


def sources(value: Value) -> Sequence[Value | None]:
    """Return the inputs of a pointwise operator or carrier whose elements become the value's."""
    node = value.producer
    if node is not None and node.op in (*SCATTERS, "Pad"):
        return node.inputs[:1]
    if node is None or node.op not in _POINTWISE:
        return carried(value)
    return node.inputs[1:] if node.op == "Where" else node.inputs


class Lead(IntEnum):
    """How surely a value holds the scores: which product is among the operators that make it."""

    NONE = 0  # none, one of constants, or a sum of squares, among pointwise operators and views
    BY_CONSTANT = 1  # of a computed tensor and a constant
    PRODUCT = 2  # of two computed tensors


class Leads:
    """Asks how surely values hold the scores, and remembers the answers."""

    def __init__(self, shapes: Facts) -> None:
        self._shapes = shapes
        self._known: dict[Value, Lead] = {}

    def __call__(self, value: Value | None) -> Lead:
        """Say how surely a value holds the scores; one that is left out doesn't."""
        if value is None:
            return Lead.NONE
        if value not in self._known:
            found = reachable(value, self._unmultiplied, limit=_SEARCHED)
            self._known[value] = max(map(self._certainty, found))
        return self._known[value]

    def _certainty(self, value: Value) -> Lead:
        """Say it of a value that a product itself makes."""
        factors, contraction = self._factors(value), contraction_of(value.producer, self._shapes)
        if not factors or (contraction is not None and contraction.is_of_squares):
            return Lead.NONE
        return Lead(2 - sum(map(self._shapes.is_constant, factors)))

    def _unmultiplied(self, value: Value) -> Sequence[Value | None]:
        """As `sources`, but for a product none."""
        return () if self._factors(value) else sources(value)

    def _factors(self, value: Value) -> Sequence[Value]:
        """Return what a product multiplies, also where its axes aren't known to fit."""
        node = value.producer
        contraction = contraction_of(node, self._shapes)
        if contraction is not None:
            return contraction.factors
        return node.given[:2] if node is not None and is_matrix_product(node) else ()
