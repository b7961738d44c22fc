"""Lanes of the depth in which queries and keys are 0: their products add nothing to the scores.

Where a kernel takes heads of a few sizes only, models make them longer by zeros.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnx_fuse.analysis.algebra.axes import Atom, exchanged, merged
from onnx_fuse.analysis.algebra.nodes import joined_axis, padded_axes, padding_of
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import number_of, scaling_of
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import Dim, numbers_of
from onnx_fuse.analysis.scores.sums import Scores
from onnx_fuse.ir.graph import Node


def without_zero_lanes(scores: Scores, views: Views) -> Scores:
    """Return the scores without the lanes in which both of their operands are 0, if there are such.

    Lanes in which only one is stay: a number of the other that isn't finite makes NaN there.
    """
    depth = merged(views.space.resolve_index(scores.depth))
    count = depth[0].extent.as_int() if len(depth) == 1 else None
    if scores.products or count is None or not isinstance(depth[0], Atom):
        return scores
    zero = np.ones(count, dtype=bool)
    for ref in (scores.query, scores.key):
        zero &= _zero_lanes(ref, depth[0], count, views)
    (kept,) = np.nonzero(~zero)
    if not zero.any() or not kept.size or kept[-1] - kept[0] + 1 != kept.size:
        return scores
    own = views.space.atom(Dim.of(kept.size), "depth")
    part = views.space.ranged(own, Dim.of(int(kept[0])), 1, depth[0].extent)
    query, key = (
        exchanged(ref.resolve(views.space).index, depth[0], part)
        for ref in (scores.query, scores.key)
    )
    if query is None or key is None:
        return scores
    refs = Ref(scores.query.value, query), Ref(scores.key.value, key)
    return replace(scores, query=refs[0], key=refs[1], depth=(own,))


def _zero_lanes(ref: Ref, depth: Atom, count: int, views: Views) -> np.ndarray:
    """Return of each lane whether all elements there are surely 0."""
    at: Ref | None = ref
    while at is not None and (node := at.value.producer) is not None:
        found = _added(node, at.resolve(views.space), depth, views)
        if found is not None and len(found) == count:
            return found
        scaled = scaling_of(at, views)  # 0 times a number is 0
        at = views.pull(at) or views.before_cast(at) or (None if scaled is None else scaled[0])
    return np.zeros(count, dtype=bool)


def _added(node: Node, ref: Ref, depth: Atom, views: Views) -> np.ndarray | None:
    """Return which lanes a node fills with zeros, if it joins some to the depth."""
    if node.op == "Pad":
        for axis, before, behind in padded_axes(node, views.shapes) or ():
            if ref.index[axis] == (depth,) and before >= 0 and behind >= 0 and (before or behind):
                lanes = np.arange(depth.extent.as_int() or 0)
                outside = (lanes < before) | (lanes >= len(lanes) - behind)
                return outside if padding_of(node, views.shapes) == 0.0 else None
    if node.op == "Concat" and ref.index[axis := joined_axis(node, len(ref.index))] == (depth,):
        shapes = [views.shapes.shape(value) for value in node.given]
        widths = numbers_of([None if shape is None else shape[axis] for shape in shapes])
        zeros = [number_of(value, views.shapes) == 0.0 for value in node.given]
        return None if widths is None else np.repeat(zeros, widths)
    return None
