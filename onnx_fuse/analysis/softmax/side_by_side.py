"""Weights that meet several values, whose contexts stand side by side.

Those products are one product, of the weights with the values joined along their depth.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx_fuse.analysis.algebra.axes import Axis, atoms, size
from onnx_fuse.analysis.algebra.nodes import joined_axis, only_reader
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import Dim, numbers_of
from onnx_fuse.analysis.splice import spliced
from onnx_fuse.ir.graph import Node, Value


def side_by_side(
    contexts: Sequence[Ref], weights: Ref, views: Views
) -> tuple[list[int], Ref, Axis] | None:
    """Return the order in which contexts of some weights are joined, what they are then, its depth.

    None unless they alone are joined, each once, along nothing but their depths.
    """
    ends = [_before_join(context, views) for context in contexts]
    joins = {end[0] for end in ends if end is not None}
    if len(joins) != 1 or None in ends:
        return None
    (node,) = joins
    made, refs = node.outputs[0], [end[1] for end in ends if end is not None]
    order = _order(node, [ref.value for ref in refs])
    if made is None or order is None:
        return None
    scored = views.space.atoms_of(*weights.index)
    indices = [views.space.resolve_index(ref.index) for ref in refs]
    place = joined_axis(node, len(indices[0]))
    rest = [spliced(index, place, ()) for index in indices]
    depths = numbers_of(size(index[place]) for index in indices)
    if depths is None or any(other != rest[0] for other in rest):
        return None
    if any({*atoms(index[place])} & scored for index in indices):
        return None
    depth = views.space.atom(Dim.of(sum(depths)), "depth")
    return order, Ref(made, spliced(refs[0].index, place, depth)), depth


def _before_join(context: Ref, views: Views) -> tuple[Node, Ref] | None:
    """Return the Concat that alone reads elements, behind views, and the elements there."""
    ref: Ref | None = context
    while ref is not None:
        use = only_reader(ref.value)
        if use is None:
            return None
        if use.node.op == "Concat":
            return use.node, ref
        ref = views.push(ref, use.node)
    return None


def _order(node: Node, values: Sequence[Value]) -> list[int] | None:
    """Return the numbers of the values in the order of a node's inputs; None if it has others."""
    if len(node.inputs) != len(values) or {*node.inputs} != {*values}:
        return None
    return [values.index(value) for value in node.given]
