"""What a node joins of several tensors, where the joined axis stands at known lanes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnx_fuse.analysis.algebra.axes import Fixed, evaluate, fixed
from onnx_fuse.analysis.algebra.nodes import joined_axis, padding_along_axis
from onnx_fuse.analysis.algebra.refs import Ref, Refs
from onnx_fuse.analysis.algebra.scatters import scatter_of
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.splice import spliced
from onnx_fuse.ir.graph import Node

Parts = list[tuple[np.ndarray, Ref]]


def lane_parts(refs: Refs, ref: Ref) -> Parts | None:
    """Return, for each tensor that is read, (the lanes that read it, where they do).

    Lanes that read none are 0. None where the node joins nothing, or lanes aren't known.
    """
    node = ref.value.producer
    rule = None if node is None else _RULES.get(node.op)
    return None if node is None or rule is None else rule(refs, node, ref)


def _lanes(refs: Refs, ref: Ref, axis: int) -> np.ndarray | None:
    """Return the place on an axis at which each lane stands; None if it isn't known."""
    digits = refs.space.resolve(ref.index[axis])
    return evaluate(digits, {}) if all(isinstance(digit, Fixed) for digit in digits) else None


def _of_concat(refs: Refs, node: Node, ref: Ref) -> Parts | None:
    axis = joined_axis(node, len(ref.index))
    lane = _lanes(refs, ref, axis)
    if lane is None:
        return None
    start, parts = 0, []
    for value in node.inputs:
        if value is None:
            return None
        shape = refs.shapes.shape(value)
        extent = None if shape is None else shape[axis].as_int()
        if extent is None:
            return None
        inside = (lane >= start) & (lane < start + extent)
        if inside.any():
            local = fixed(np.where(inside, lane - start, 0), Dim.of(extent))
            parts.append((inside, Ref(value, spliced(ref.index, axis, local))))
        start += extent
    return parts


def _of_pad(refs: Refs, node: Node, ref: Ref) -> Parts | None:
    """Return what a Pad takes over, which adds zeros along an axis."""
    padding, source = padding_along_axis(node, refs.shapes), node.input(0)
    shape = None if source is None else refs.shapes.shape(source)
    if padding is None or padding.fill != 0 or source is None or shape is None:
        return None
    axis, extent = padding.axis % len(shape), shape[padding.axis].as_int()
    lane = _lanes(refs, ref, axis)
    if not extent or lane is None:
        return None
    lane = lane - padding.before
    inside = (lane >= 0) & (lane < extent)
    local = fixed(np.where(inside, lane, 0), Dim.of(extent))
    return [(inside, Ref(source, spliced(ref.index, axis, local)))]


def _of_scatter(refs: Refs, node: Node, ref: Ref) -> Parts | None:
    """Return what a ScatterND leaves, and what it writes to numbered places of one axis."""
    written = scatter_of(node, refs.shapes)
    lane = None if written is None else _lanes(refs, ref, written.axis)
    if written is None or lane is None:
        return None
    table = written.places
    is_written, order = np.isin(lane, table), np.argsort(table)
    at = order[np.searchsorted(table[order], np.where(is_written, lane, table[0]))]
    index = spliced(ref.index, written.axis, fixed(at, Dim.of(len(table))))
    parts = ((~is_written, ref.index, written.data), (is_written, index, written.updates))
    return [(lanes, Ref(value, index)) for lanes, index, value in parts if lanes.any()]


_RULES: dict[str, Callable[[Refs, Node, Ref], Parts | None]] = {
    "Concat": _of_concat,
    "Pad": _of_pad,
    "ScatterND": _of_scatter,
}
