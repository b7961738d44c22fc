"""Why no product of query and key was reached: what stands in its place, or in its way."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.contraction import contraction_of, is_matrix_product
from onnx_fuse.analysis.algebra.quantized_products import is_quantized
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.scores.leads import Lead, Leads, sources
from onnx_fuse.analysis.search import reachable
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Code

_MIXING = frozenset({"Conv", "CumSum"})  # of whose results each has several scores in it
_SEARCHED = 200  # values searched for a quantized product


def quantized_above(value: Value) -> Node | None:
    """Return a quantized product, or a dequantizer, among what a value may hold the elements of."""
    for found in reachable(value, sources, limit=_SEARCHED):
        if found.producer is not None and is_quantized(found.producer):
            return found.producer
    return None


def unmatched(product: Node, shapes: Facts) -> Declined:
    """Return that the axes of a product's factors are not known to be equal."""
    known = ((value.name, shapes.shape(value)) for value in product.given[:2])
    factors = " and ".join(
        f"'{name}'" + ("" if shape is None else f" ({', '.join(map(str, shape))})")
        for name, shape in known
    )
    what = f"which axes of {factors} go together"
    return Declined(Code.SHAPE_UNKNOWN, product, value=product.made[0].name, what=what)


def unreached(node: Node, ref: Ref, leads: Leads, shapes: Facts) -> Declined:
    """Return why a softmax is none of attention's scores.

    `node` is the softmax, `ref` the last that could be followed.
    """
    made = ref.value.producer
    if made is None:
        return _declined(node, node, f"it is '{ref.value.name}', an input of the graph")
    above = max(map(leads, made.given), default=Lead.NONE)
    contraction = contraction_of(made, shapes)
    if made.op == "TopK" and above is Lead.BY_CONSTANT:
        return Declined(Code.GATE, made, node=node.name)
    own = f"'{ref.value.name}' ({made.op})"
    if above is Lead.PRODUCT:
        if contraction is not None or made.op in _MIXING:
            return Declined(Code.MIXED_SCORES, made)
        return Declined(Code.SCORES_CHANGED, made, what="changes them")
    squares = _squares_above(ref.value, shapes)
    if squares is not None:
        what = f"'{squares.label}' ({squares.bare_op}) sums up squares"
        return _declined(node, squares, f"{what}; distances are, as |q|^2 - 2 q.k + |k|^2")
    if contraction is None and is_matrix_product(made):
        return unmatched(made, shapes)
    if contraction is None and above is Lead.BY_CONSTANT:
        return _declined(node, made, f"above {own} one tensor is multiplied by constants")
    factors: Sequence[Value | None] = made.inputs[:2] if made.op == "Conv" else ()
    if contraction is not None:
        factors = contraction.factors
    if any(value is not None and shapes.is_constant(value) for value in factors):
        return _declined(node, made, f"{own} multiplies one tensor by constants")
    if contraction is None:
        return _declined(node, made, f"it comes from {own}")
    return _declined(node, made, f"in {own} not every query meets every key")


def _squares_above(value: Value, shapes: Facts) -> Node | None:
    """Return what sums up the squares of which a value is made: of differences, perhaps."""
    for found in reachable(value, sources, limit=_SEARCHED):
        contraction = contraction_of(found.producer, shapes)
        is_square = contraction is not None and contraction.is_of_squares
        if found.producer is not None and (is_square or found.producer.op == "ReduceSumSquare"):
            return found.producer
    return None


def _declined(node: Node, at: Node, what: str) -> Declined:
    return Declined(Code.NO_SCORES, at, node=node.name, what=what)
