"""Where the elements of an operand come from: up to the product or the projection that makes them.

Only views and pointwise operators are gone through.
"""

from __future__ import annotations

from functools import partial

from onnx_fuse.analysis.algebra.axes import Atom
from onnx_fuse.analysis.algebra.contraction import contraction_of
from onnx_fuse.analysis.algebra.linear import projection_of
from onnx_fuse.analysis.algebra.nodes import inputs_of
from onnx_fuse.analysis.algebra.quantized_products import is_quantized_projection
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.record.dependence import LONGEST_TRACE, is_of_constants
from onnx_fuse.analysis.search import reachable
from onnx_fuse.ir.graph import Node, Value

_MATRIX = 2  # the axes of one


def ascent(views: Views, ref: Ref) -> list[Ref]:
    """Return the elements and where they come from, up to what a product or no view makes.

    Only views and pointwise operators lie between them.
    """
    found = [ref]
    for _ in range(LONGEST_TRACE):
        node = ref.value.producer
        if node is None or contraction_of(node, views.shapes) is not None:
            break
        if is_quantized_projection(node, views.shapes):
            break
        below = views.pull(ref) or _pointwise(views, node, ref)
        if below is None:
            break
        ref = below
        found.append(ref)
    return found


def _pointwise(views: Views, node: Node, ref: Ref) -> Ref | None:
    """Return the input of the output's shape, if there is one.

    Then the operator treats the elements one by one, or in rows.
    """
    shape = views.shapes.shape(ref.value)
    for value in node.inputs:
        if (
            value is not None
            and not views.shapes.is_constant(value)
            and views.shapes.shape(value) == shape
        ):
            return Ref(value, ref.index)
    return None


def trace(views: Views, ref: Ref, *, given: bool = False) -> tuple[Ref, set[Atom]] | None:
    """Follow views and pointwise operators to a projection; return its source and column atoms.

    given: by a weight that callers may have to give, as those of a function do.
    """
    top = ascent(views, ref)[-1]
    contraction = contraction_of(top.value.producer, views.shapes)
    projection = None if contraction is None else projection_of(contraction, top, views)
    if given and projection is None and contraction is not None:
        projection = projection_of(contraction, top, views, partial(is_weight, views))
    if projection is None:
        return None
    projection = projection.resolve(views.space)
    return projection.source, {*projection.column_atoms}


def is_projected(views: Views, ref: Ref) -> bool:
    """Return whether views and pointwise operators lead up to a projection."""
    return trace(views, ref) is not None


def is_product(views: Views, ref: Ref) -> bool:
    """Return whether views and pointwise operators lead up to a product of computed tensors."""
    contraction = contraction_of(ascent(views, ref)[-1].value.producer, views.shapes)
    if contraction is None:
        return False
    return not any(map(views.shapes.is_constant, contraction.factors))


def is_weight(views: Views, value: Value) -> bool:
    """Return whether a value is a weight, also one that callers may override or have to give.

    Weights that have to be given are matrices: they have no batch and no heads.
    """
    above = (found for found in reachable(value, inputs_of) if found.producer is None)
    if all(found.is_constant or found.is_initializer for found in above):
        return True
    ref = views.ref(value, "x")
    origin = None if ref is None else views.origin(ref)
    return origin is not None and origin.value.is_input and len(origin.index) == _MATRIX


def source_of(views: Views, ref: Ref) -> Value:
    """Return what an operand is projected from, or the operand itself, at its outermost view."""
    traced = trace(views, ref)
    return views.origin(ref if traced is None else traced[0]).value


def way(views: Views, ref: Ref) -> list[Value]:
    """Return an operand and the values above it, up to its projection's result.

    An empty tensor in which keys are written is nobody's content: another layer may share it.
    """
    above = [found.value for found in ascent(views, ref)]
    # Nothing is of constants alone behind what isn't.
    while above and is_of_constants(above[-1]):
        del above[-1]
    return [value for value in above if value.producer is not None]
