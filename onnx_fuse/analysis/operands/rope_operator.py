"""RotaryEmbedding, the operator, of the standard (opset 23) and of com.microsoft."""

from __future__ import annotations

import numpy as np

from onnx_fuse.analysis.algebra.axes import ONE, Atom, Axis, fixed, size
from onnx_fuse.analysis.algebra.expr import Call, Extents, positions
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.operands.rope import Factor, Rope, Span, Turn
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
    lane = np.arange(count)
    half = rotated // 2
    interleaved = node.attr("interleaved", 0) == 1
    at = lane // 2 if interleaved else lane % half
    pair = np.where(lane < rotated, lane ^ 1 if interleaved else (lane + half) % rotated, lane)
    first = (lane % 2 == 0) if interleaved else (lane < half)
    tables = [
        _table(table, ids, source, batch, row, np.minimum(at, half - 1), half, views)
        for table in (cos, sin)
    ]
    if tables[0] is None or tables[1] is None:
        return None
    new = tuple(Atom(digit.extent, "depth") for digit in depth)
    inside = lane < rotated
    turn = Turn(
        tuple((tables[0],) if spins else () for spins in inside),
        tuple((tables[1],) if spins else () for spins in inside),
        np.ones(count),
        np.where(inside, np.where(first, -1.0, 1.0), 0.0),
    )
    return Rope(
        Ref(source, (*resolved[:-1], (*heads, *new))),
        new,
        lane,
        pair,
        (Span((), turn),),
    )


def _table(
    table: Value,
    ids: Value | None,
    source: Value,
    batch: Axis,
    row: Axis,
    at: np.ndarray,
    half: int,
    views: Views,
) -> Factor | None:
    shape = views.shapes.shape(table)
    if shape is None or shape[-1].as_int() != half:
        return None
    column = fixed(at, Dim.of(half))
    if ids is None:
        if len(shape) != 3:
            return None
        at_batch = () if shape[0].as_int() == 1 else batch
        return Factor(table, (at_batch, row, column))
    ids_shape = views.shapes.shape(ids)
    if ids_shape is None or len(shape) != 2:
        return None
    if len(ids_shape) == 1 and ids_shape[0] == ONE:
        # The position of the first row; the others follow.
        after = positions(size(row), Extents(views, (source,), source.graph.opset))
        if after is None:
            return None
        rows = Call("Gather", (table, Call("Add", (ids, after))), (("axis", 0),))
        return Factor(rows, (row, column))
    if len(ids_shape) != 2:
        return None
    at_batch = () if ids_shape[0].as_int() == 1 else batch
    return Factor(Call("Gather", (table, ids), (("axis", 0),)), (at_batch, row, column))
