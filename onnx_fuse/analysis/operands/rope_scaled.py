"""Rotations that tables multiply, and tables that multiply what isn't rotated.

A factor that differs among positions (a temperature that grows with them, say) goes into cosines
and sines; where nothing is rotated it is a rotation whose sines are 0.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnx_fuse.analysis.algebra.axes import Axis, index_atoms
from onnx_fuse.analysis.algebra.expr import Call
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import numbers_of
from onnx_fuse.analysis.operands.rope import Rope, Side, Span, Turn
from onnx_fuse.analysis.operands.rope_reading import lanes_of, may_be_made_of, rope_of
from onnx_fuse.analysis.scores.chain import Placed


def scaled_rope_of(ref: Ref, depth: Axis, views: Views) -> Rope | None:
    """Return the rotation along the `depth` atoms whose result, times tables, `ref` is; or None."""
    rope = rope_of(ref, depth, views)
    if rope is not None:
        return rope
    found = _multiplied(ref, depth, views)
    if found is None:
        return None
    below, factor = found
    source, own = views.origin(below), views.space.resolve(depth)
    above, node = source.value.producer, ref.value.producer
    if above is not None and node is not None and above.graph is node.graph:
        rope = scaled_rope_of(source, own, views)
    if rope is None:
        return _unrotated(below.resolve(views.space), own, factor)
    # A computed divisor may be 0: then the rotated is infinite, but its two parts are no number.
    is_safe = node is not None and (node.op == "Mul" or isinstance(factor.expr, np.ndarray))
    return times(rope, factor) if is_safe else None


def _multiplied(ref: Ref, depth: Axis, views: Views) -> tuple[Ref, Placed] | None:
    """Return (x, table) of x * table, or of x / (1 / table).

    None unless only x has all of the result's axes.
    """
    node = ref.value.producer
    extents = numbers_of(digit.extent for digit in depth)
    if node is None or node.op not in ("Mul", "Div") or extents is None:
        return None
    whole = {*index_atoms(views.space.resolve_index(ref.index))}
    sides: list[tuple[Ref, bool]] = []
    for value in node.inputs:
        below = None if value is None else views.broadcast(ref.index, value)
        if below is None:
            return None
        sides.append((below, whole <= {*index_atoms(views.space.resolve_index(below.index))}))
    divides = node.op == "Div"
    (x, is_whole), (table, is_also) = (
        sides if divides else sorted(sides, key=lambda side: not side[1])
    )
    at = views.beside(lanes_of(ref, depth, extents, views).index, table.value)
    if not is_whole or is_also or at is None or may_be_made_of(table.value, x.value):
        return None
    constant = views.shapes.constant(table.value)
    if constant is not None and not np.isfinite(constant).all():  # 0 times it is no 0
        return None
    if not divides:
        return x, Placed.of(at)
    if constant is None:
        return x, Placed(Call("Reciprocal", (table.value,)), at.index)
    with np.errstate(divide="ignore"):
        inverse = np.reciprocal(constant.astype(np.float32))
    return (x, Placed(inverse, at.index)) if np.isfinite(inverse).all() else None


def _unrotated(source: Ref, depth: Axis, factor: Placed) -> Rope | None:
    """Return the rotation that multiplies by a table alone."""
    count = int(np.prod([digit.extent.as_int() or 0 for digit in depth]))
    if count % 2:  # the operator rotates pairs
        return None
    lane = np.arange(count)
    nothing = Side(((),) * count, np.zeros(count))
    turn = Turn(Side(((factor,),) * count, np.ones(count)), nothing)
    return Rope(source, depth, lane, (lane + count // 2) % count, (Span((), turn),))


def times(rope: Rope, factor: Placed) -> Rope | None:
    """Return a rotation times a table; None where some lanes or positions have no table."""
    if len(rope.spans) > 1 or not rope.rotated.all():
        return None
    (span,) = rope.spans
    turn = Turn(span.turn.straight.times(factor), span.turn.crossed.times(factor))
    return replace(rope, spans=(replace(span, turn=turn),))
