"""RotaryEmbedding, the operator, of the standard (opset 23) and of com.microsoft."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_fuse.analysis.algebra.axes import ONE, Atom, Axis, Index, fixed, size
from onnx_fuse.analysis.algebra.expr import Call
from onnx_fuse.analysis.algebra.extents import Extents, positions
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.operands.rope import Rope, Side, Span, Turn
from onnx_fuse.analysis.scores.chain import Placed
from onnx_fuse.ir.graph import Node, Value

ROTATIONS = ("RotaryEmbedding", "com.microsoft:RotaryEmbedding")


def rope_of_operator(node: Node, ref: Ref, depth: Axis, views: Views) -> Rope | None:
    """Return the rotation that a RotaryEmbedding makes; None if not along the `depth` atoms.

    Its tables are per row, or gathered by positions.
    """
    source = node.inputs[0]
    if source is None:
        return None
    order = (1, 2, 3) if node.op == "RotaryEmbedding" else (2, 3, 1)
    cos, sin, ids = (node.input(position) for position in order)
    if cos is None or sin is None or float(node.attr("scale", 1.0)) != 1.0:
        return None
    resolved = views.space.resolve_index(ref.index)
    count = int(np.prod([digit.extent.as_int() or 0 for digit in depth]))
    rotated = int(node.attr("rotary_embedding_dim", 0)) or count
    axis = resolved[-1]
    heads, inner = axis[: len(axis) - len(depth)], axis[len(axis) - len(depth) :]
    if inner != depth or (len(resolved) == 4 and heads) or rotated % 2:
        return None
    # The operator cuts rows of all heads by a count of its own.
    own, width = int(node.attr("num_heads", 0)), (views.shapes.shape(source) or (ONE,))[-1]
    if len(resolved) == 3 and own and width != own * count:
        return None
    batch, row = resolved[0], resolved[2] if len(resolved) == 4 else resolved[1]
    lanes = _Lanes(count, rotated, is_interleaved=node.attr("interleaved", 0) == 1)
    lookup = _Lookup(views, source, ids, (batch, row, fixed(lanes.column, Dim.of(rotated // 2))))
    straight, crossed = lookup.factor(cos), lookup.factor(sin)
    if straight is None or crossed is None:
        return None
    turn = Turn(
        Side(tuple((straight,) if spins else () for spins in lanes.is_rotated), np.ones(count)),
        Side(tuple((crossed,) if spins else () for spins in lanes.is_rotated), lanes.sign),
    )
    new = tuple(Atom(digit.extent, "depth") for digit in depth)
    return Rope(
        Ref(source, (*resolved[:-1], (*heads, *new))),
        new,
        lanes.number,
        lanes.pair,
        (Span((), turn),),
    )


class _Lanes:
    """How the standard rotates the elements of a head, its lanes: each array is (lanes,).

    `column` is the table's that a lane reads, `pair` the lane that is turned into it, with `sign`;
    a lane that isn't rotated is its own pair, with sign 0.
    """

    def __init__(self, count: int, rotated: int, *, is_interleaved: bool) -> None:
        half = rotated // 2
        self.number = lane = np.arange(count)
        self.is_rotated = lane < rotated
        is_first = lane % 2 == 0 if is_interleaved else lane < half
        other = lane ^ 1 if is_interleaved else (lane + half) % rotated
        self.column = np.minimum(lane // 2 if is_interleaved else lane % half, half - 1)
        self.pair = np.where(self.is_rotated, other, lane)
        self.sign = np.where(self.is_rotated, np.where(is_first, -1.0, 1.0), 0.0)


@dataclass(frozen=True)
class _Lookup:
    """Which elements of its tables a rotation reads: by rows, or by what `ids` has for them."""

    views: Views
    source: Value
    ids: Value | None
    index: Index  # batch, row and column

    def factor(self, table: Value) -> Placed | None:
        """Return a table and the elements read of it; None if it isn't as the operator has it."""
        shapes, (batch, row, column) = self.views.shapes, self.index
        shape = shapes.shape(table)
        if shape is None or shape[-1] != size(column):
            return None
        if self.ids is None:
            return (
                Placed(table, (_whole(batch, shape[0]), row, column)) if len(shape) == 3 else None
            )
        places = shapes.shape(self.ids)
        if places is None or len(shape) != 2:
            return None
        if places == (ONE,):
            # The position of the first row; the others follow.
            extents = Extents(self.views, (self.source,), self.source.graph.opset)
            after = positions(size(row), extents)
            if after is None:
                return None
            rows = Call("Gather", (table, Call("Add", (self.ids, after))), (("axis", 0),))
            return Placed(rows, (row, column))
        if len(places) != 2:
            return None
        rows = Call("Gather", (table, self.ids), (("axis", 0),))
        return Placed(rows, (_whole(batch, places[0]), row, column))


def _whole(axis: Axis, extent: Dim) -> Axis:
    """Return the axis of what has this extent beside it: the only place if that is 1."""
    return () if extent == ONE else axis
