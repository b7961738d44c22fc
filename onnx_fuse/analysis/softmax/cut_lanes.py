"""Lanes of the context that are cut off again: the values don't need them.

Where a kernel takes values only that are as deep as the keys, models make them longer before and
cut the context.
"""

from __future__ import annotations

from dataclasses import replace

from onnx_fuse.analysis.algebra.axes import Atom, Axis, exchanged
from onnx_fuse.analysis.algebra.nodes import only_reader
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.softmax.values import Values
from onnx_fuse.analysis.trail import Trail
from onnx_fuse.ir.graph import Graph, Node

_CUTS = ("Slice", "Split", "Pad")


def without_cut_lanes(
    values: Values, depth: Axis, graph: Graph, views: Views, trail: Trail
) -> Values:
    """Return the product with only those lanes of the values that are left of its context.

    `depth` are all of them.
    """
    at: Ref | None = values.context
    while at is not None and not values.parts:
        use = only_reader(at.value)
        if use is None or use.node.graph is not graph or use.index != 0:
            break
        at = at.resolve(views.space)
        cut = _cut(use.node, at, depth, views)
        if cut is not None:
            context, atom, part = cut
            value = exchanged(values.value.resolve(views.space).index, atom, part)
            if value is None:
                break
            trail.add_between(context.value, values.context.value)
            value_ref = Ref(values.value.value, value)
            return replace(values, value=value_ref, context=context)
        at = views.onward(at, use.node)
    return values


def _cut(node: Node, ref: Ref, depth: Axis, views: Views) -> tuple[Ref, Atom, Axis] | None:
    """Return what a node leaves of the context, of which atom it cuts lanes off, and what is left.

    None if it does anything else.
    """
    used = [value for value in node.made if value.is_used]
    fresh = views.ref(used[0], "depth") if node.op in _CUTS and len(used) == 1 else None
    below = None if fresh is None else views.pull(fresh)
    if fresh is None or below is None or below.value is not ref.value:
        return None
    axes, found = list(ref.index), list[tuple[Atom, Axis]]()
    pairs = zip(below.resolve(views.space).index, fresh.resolve(views.space).index, strict=True)
    for place, (left, new) in enumerate(pairs):
        match axes[place]:
            case (Atom() as atom,) if atom in depth and left != new:
                found.append((atom, left))
                axes[place] = new
            case _ if left != new:
                return None
    if len(found) != 1:
        return None
    return Ref(fresh.value, tuple(axes)), *found[0]
