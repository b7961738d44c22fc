"""Operators that choose, reorder or repeat elements of one tensor, as maps between axes.

Each rule goes from the output to the input that its elements come from.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnx_fuse.analysis.algebra.axes import Axis, Index, merged, size
from onnx_fuse.analysis.algebra.nodes import (
    CASTS,
    is_random,
    keeps_type,
    padded_axes,
    sliced_axes,
)
from onnx_fuse.analysis.algebra.refs import Ref, Refs
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.dims.order import place_on
from onnx_fuse.analysis.shapes.folding import cut_into_sequence
from onnx_fuse.analysis.splice import spliced
from onnx_fuse.ir.graph import Node, Value


def permutation(node: Node, rank: int) -> list[int] | None:
    """Return the axes of its input that a Transpose of this rank puts in place.

    An Einsum does the same if it names the axes of one input anew; None if it does anything else.
    """
    if node.op != "Einsum":
        perm = node.attr("perm")
        return [int(axis) for axis in perm] if perm is not None else list(range(rank))[::-1]
    # Of several inputs, commas would stand before the arrow.
    before, arrow, after = str(node.attr("equation", "")).replace(" ", "").partition("->")
    if not arrow or "." in before or sorted(before) != sorted(after):
        return None
    return [before.index(label) for label in after] if len(set(before)) == len(before) else None


def _source(node: Node) -> Value:
    source = node.inputs[0]
    assert source is not None
    return source


def _part(refs: Refs, index: Index, axis: int, start: Dim, extent: Dim) -> Index:
    """Return the index of a part in the whole: on this axis, it begins at `start` of `extent`."""
    part = refs.space.ranged(refs.space.resolve(index[axis]), start, 1, extent)
    return spliced(index, axis, part)


def _transpose(refs: Refs, node: Node, ref: Ref) -> Ref | None:
    source = _source(node)
    perm = permutation(node, len(ref.index))
    if perm is None:
        return None
    return Ref(source, tuple(ref.index[perm.index(axis)] for axis in range(len(perm))))


def _regrouped(refs: Refs, node: Node, ref: Ref) -> Ref | None:
    source = _source(node)
    return refs.regrouped(ref, source)


def _same(refs: Refs, node: Node, ref: Ref) -> Ref | None:
    source = node.inputs[0]
    if source is None or ref.value is not node.outputs[0] or is_random(node, refs.shapes):
        return None
    return Ref(source, ref.index)


def _cast(refs: Refs, node: Node, ref: Ref) -> Ref | None:
    """Return a Cast to the type that a tensor has."""
    return _same(refs, node, ref) if keeps_type(node, refs.shapes) else None


def _expand(refs: Refs, node: Node, ref: Ref) -> Ref | None:
    """As `Refs.broadcast`, but an Expand may well repeat."""
    source = _source(node)
    return refs.repeated(ref.index, source)


def _tile(refs: Refs, node: Node, ref: Ref) -> Ref | None:
    source = _source(node)
    shape = refs.shapes.shape(source)
    if shape is None:
        return None
    axes: list[Axis] = []
    for axis, extent in zip(ref.index, shape, strict=True):
        total = size(axis)
        if total == extent:
            axes.append(axis)
            continue
        times = total.divide(extent)
        parts = None if times is None else refs.space.regroup((axis,), (times, extent))
        if parts is None:
            return None
        axes.append(parts[1])
    return Ref(source, tuple(axes))


def _slice(refs: Refs, node: Node, ref: Ref) -> Ref | None:
    source = _source(node)
    shape = refs.shapes.shape(source)
    slices = sliced_axes(node, refs.shapes)
    if shape is None or slices is None:
        return None
    axes = list(ref.index)
    for position, start, step in slices:
        axis = position % len(shape)
        extent = shape[axis]
        place = place_on(extent, start) if (start.as_int() or 0) < 0 else start
        if step < 1 or place is None:
            return None
        taken = size(axes[axis])
        if taken == extent and step == 1:
            continue
        axes[axis] = refs.space.ranged(refs.space.resolve(axes[axis]), place, step, extent)
    return Ref(source, tuple(axes))


def _pad(refs: Refs, node: Node, ref: Ref) -> Ref | None:
    """Return what a Pad takes over, where none of what it adds is read."""
    source = _source(node)
    shape, pads = refs.shapes.shape(source), padded_axes(node, refs.shapes)
    if shape is None or pads is None:
        return None
    axes = [*ref.index]
    for position, before, behind in pads:
        axis = position % len(shape)
        if before or behind:
            inner = refs.space.within(refs.space.resolve(axes[axis]), before, shape[axis])
            if inner is None:
                return None
            axes[axis] = inner
    return Ref(source, tuple(axes))


def _split(refs: Refs, node: Node, ref: Ref) -> Ref | None:
    source = _source(node)
    shape = refs.shapes.shape(source)
    if shape is None:
        return None
    axis = int(node.attr("axis", 0)) % len(shape)
    start = Dim.of(0)
    for output in node.outputs:
        if output is ref.value:
            break
        before = None if output is None else refs.shapes.shape(output)
        if before is None:
            return None
        start = start + before[axis]
    own = refs.shapes.shape(ref.value)
    end, extent = None if own is None else (start + own[axis]).as_int(), shape[axis].as_int()
    if end is not None and extent is not None and end > extent:  # of a graph that never runs
        return None
    return Ref(source, _part(refs, ref.index, axis, start, shape[axis]))


def _gather(refs: Refs, node: Node, ref: Ref) -> Ref | None:
    """Gather by constant indices, or GatherND by such into the first axis."""
    source, indices = node.given
    shape, table = refs.shapes.shape(source), refs.shapes.constant(indices)
    if shape is None or table is None:
        return None
    if node.op == "GatherND":
        if table.shape[-1] != 1 or node.attr("batch_dims", 0):
            return None
        table = table[..., 0]
    axis = int(node.attr("axis", 0)) % len(shape)
    inner = merged(ref.index[axis : axis + table.ndim])
    picked = refs.space.picked(refs.space.resolve(inner), table.astype(np.int64), shape[axis])
    if picked is None:
        return None
    return Ref(source, (*ref.index[:axis], picked, *ref.index[axis + table.ndim :]))


def _sequence_at(refs: Refs, node: Node, ref: Ref) -> Ref | None:
    """Return one part of a tensor that SplitToSequence cut."""
    split, position = cut_into_sequence(node), node.inputs[1]
    number = None if position is None else refs.shapes.scalar(position)
    if split is None or number is None or number < 0:
        return None
    source = split.inputs[0]
    shape = None if source is None else refs.shapes.shape(source)
    if source is None or shape is None or not split.attr("keepdims", 1):
        return None
    axis = int(split.attr("axis", 0)) % len(shape)
    sizes = split.input(1)
    parts = None if sizes is None else refs.shapes.constant(sizes)
    if parts is None:
        return None
    start = int(number) * int(parts) if parts.ndim == 0 else int(parts[: int(number)].sum())
    return Ref(source, _part(refs, ref.index, axis, Dim.of(start), shape[axis]))


Rule = Callable[[Refs, Node, Ref], Ref | None]

# Operators that give their first input as it is, and those that only move brackets.
SAME = frozenset({*CASTS, "Dropout", "Identity"})
REGROUPED = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
RULES: dict[str, Rule] = {
    **dict.fromkeys(CASTS, _cast),
    "Dropout": _same,
    "Einsum": _transpose,
    "Expand": _expand,
    "Gather": _gather,
    "GatherND": _gather,
    "Identity": _same,
    "Pad": _pad,
    "SequenceAt": _sequence_at,
    "Slice": _slice,
    "Split": _split,
    "Tile": _tile,
    "Transpose": _transpose,
    **dict.fromkeys(REGROUPED, _regrouped),
}
