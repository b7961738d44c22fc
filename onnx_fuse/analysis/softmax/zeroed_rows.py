"""Rows of the context put to zero where the scores' own mask shows nothing of them.

That is what weights of zero make of them: the mask hides for good, and the softmax's NaN is zero.
"""

from __future__ import annotations

from dataclasses import replace

from onnx_fuse.analysis.algebra.axes import Axis
from onnx_fuse.analysis.algebra.formula import Formula
from onnx_fuse.analysis.algebra.nodes import only_reader
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.scores.chain import Chain
from onnx_fuse.analysis.softmax.empty_rows import hides_rows
from onnx_fuse.analysis.softmax.output import OutputWalk
from onnx_fuse.analysis.softmax.values import Values
from onnx_fuse.analysis.softmax.zeroed import Zeroed, hides_before, zeroed_of
from onnx_fuse.analysis.trail import Trail
from onnx_fuse.ir.graph import Node


def with_zeroed_rows(
    values: Values, chain: Chain, column: Axis, node: Node, views: Views, trail: Trail
) -> Values:
    """Return the product behind the choice of zero, and let the chain hide what that chooses.

    Only if an output projection follows, which the block would lack otherwise. Weights that others
    read stay as they are, and so do rows that are multiplied or divided.
    """
    if values.shown is not None or values.several is not None or values.factors:
        return values
    found = _zeroed_below(values.context, node, views)
    if found is None or OutputWalk(views, node, Trail()).output(found.weights).projection is None:
        return values
    formula = Formula(views)
    zero_nan = hides_before(chain, found, formula)
    if zero_nan is None:
        zero_nan = hides_rows(chain, found, column, formula)
    if zero_nan is None:
        return values
    trail.add_between(found.weights.value, values.context.value)
    return replace(values, context=found.weights, zero_nan=values.zero_nan or zero_nan)


def _zeroed_below(context: Ref, node: Node, views: Views) -> Zeroed | None:
    """Return what puts some of a context to zero, if nothing but views stands in between."""
    ref: Ref | None = context
    formula = Formula(views)
    while ref is not None:
        use = only_reader(ref.value)
        if use is None or use.node.graph is not node.graph:
            return None
        zeroed = zeroed_of(use.node, ref, formula)
        if zeroed is not None:
            return zeroed
        ref = views.onward(ref, use.node)
    return None
