"""GroupQueryAttention of com.microsoft, as onnxruntime's CPU kernel computes it.

It writes keys and values into a cache, where each batch has its own length, and may rotate queries
and keys by their places in it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from onnx import TensorProto

from onnx_fuse.analysis.algebra.expr import Call, Expr, int64
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.operators.lifted import (
    Atoms,
    Lifted,
    Rotation,
    check_unused,
    given,
    joined_pasts,
    lifted_parts,
    new_atoms,
    packed_columns,
    refuse,
    shape_of,
)
from onnx_fuse.analysis.operators.masks import Masks
from onnx_fuse.analysis.scores.chain import Bias, Chain, Placed, Scale, Tanh
from onnx_fuse.analysis.shapes.facts import Shape
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.op.core import Core, Takes
from onnx_fuse.report import Code

_HEAD_SINK = 11


def grouped_query_attention(node: Node, views: Views) -> Lifted:
    """Return what the operator computes: a causal attention behind a past of its own length.

    Raises: Declined.
    """
    _check_plain(node, views)
    made, refs = _queries_keys_values(node, views)
    chain = Chain(sinks=_sinks(node, made))
    bias = node.input(10)
    if bias is not None:
        placed = _bias(node, bias, made, views)
        masks = Masks(node, made, views, chain)
        # The kernel makes a row zero of which nothing is above the lowest number, but for a cap's,
        # and where there is one column in all.
        if float(node.attr("softcap", 0.0)) <= 0:
            total, _ = given(node, 6, views)
            several = Call("Less", (np.asarray(1, np.int32), total))
            placed = replace(placed, expr=masks.infinite_for_lowest(bias, several))
        chain.operations.append(Bias(placed))
    softcap = float(node.attr("softcap", 0.0))
    if softcap > 0:
        chain.operations += [Scale(softcap), Tanh(node), Scale(1.0 / softcap)]
    width = made.depth[0].extent.as_int() or 1
    chain.operations.append(Scale(float(node.attr("scale", 0.0)) or 1.0 / math.sqrt(width)))
    context = (made.batch, made.rows, (*made.heads, *made.depth_v))
    scores, values = lifted_parts(node, refs, made, context, chain, zero_nan=0)
    return Lifted(
        scores,
        values,
        pasts=joined_pasts(node, made, 3),
        is_causal=bool(node.attr("causal", 1)),
        window_size=max(int(node.attr("local_window_size", -1)), 0),
        has_window_cache=bool(node.attr("sliding_window_cache", 0)),
        lengths=_lengths(node, views),
        rotation=_rotation(node, views),
        core=_core(node),
    )


def _check_plain(node: Node, views: Views) -> None:
    window = int(node.attr("local_window_size", -1))
    is_causal = int(node.attr("causal", 1))
    if window == 0 or (window > 0 and not is_causal):
        # No window up to onnxruntime 1.21, then one of nothing; without an order none is allowed.
        raise refuse(node, "local_window_size", window)
    latest = node.attr("sliding_window_cache", 0)
    if latest not in (0, 1) or (latest and window < 0):
        raise refuse(node, "sliding_window_cache", latest)
    if is_causal not in (0, 1):
        raise refuse(node, "causal", is_causal)
    if node.attr("smooth_softmax", 0) not in (-1, 0, 1):
        raise refuse(node, "smooth_softmax", node.attr("smooth_softmax"))
    check_unused(node, 3)
    for position, name in ((3, "past_key"), (4, "past_value")):
        if node.input(position) is None:
            raise refuse(node, name, "not given")
    for position in (3, 4):
        value, _ = given(node, position, views)
        dtype = views.shapes.dtype(value)
        if dtype != TensorProto.FLOAT:
            word = "of no known type" if dtype is None else TensorProto.DataType.Name(dtype).lower()
            raise Declined(Code.CACHE_TYPE, node, value=value.name, dtype=word)
    lengths, total = (shape_of(node, given(node, at, views)[0], views) for at in (5, 6))
    if len(lengths) != 1 and not _is_column(lengths):
        raise refuse(node, "seqlens_k", f"of shape ({', '.join(map(str, lengths))})")
    if len(total) > 1:
        raise refuse(node, "total_sequence_length", f"of {len(total)} axes")


def _is_column(shape: Shape) -> bool:
    return len(shape) == 2 and shape[1] == 1


def _queries_keys_values(node: Node, views: Views) -> tuple[Atoms, tuple[Ref, Ref, Ref]]:
    """Return the axes, and queries, keys and values: apart, or side by side in one tensor."""
    space = views.space
    heads, kv_heads = int(node.attr("num_heads")), int(node.attr("kv_num_heads"))
    query, shape = given(node, 0, views)
    is_packed = node.input(1) is None
    total = shape[2].as_int()
    if total is None:
        raise Declined(Code.SHAPE_UNKNOWN, node, value=query.name, what="its width")
    width = total // (heads + 2 * kv_heads if is_packed else heads)
    past = given(node, 3, views)[1]
    made = new_atoms(
        space,
        shape[0],
        (kv_heads, heads // kv_heads),
        shape[1],
        (past[2], shape[1]),
        (Dim.of(width), Dim.of(width)),
    )
    present = node.outputs[1] if len(node.outputs) > 1 else None
    shown = None if present is None else views.shapes.shape(present)
    if shown is not None:  # the cache is as long as it says, not always past and new together
        made = replace(made, columns=space.atom(shown[2], "column"))
    if not is_packed:
        key, value = (given(node, position, views)[0] for position in (1, 2))
        return made, (
            Ref(query, (made.batch, made.rows, (*made.heads, *made.depth))),
            Ref(key, (made.batch, made.new, (*made.kv_heads, *made.depth))),
            Ref(value, (made.batch, made.new, (*made.kv_heads, *made.depth_v))),
        )
    widths = (heads * width, kv_heads * width, kv_heads * width)
    columns = packed_columns(made, widths, Dim.of(total), space)
    q, k, v = (
        Ref(query, (made.batch, made.rows if name == "q" else made.new, own))
        for name, own in columns.items()
    )
    return made, (q, k, v)


def _lengths(node: Node, views: Views) -> dict[str, Expr]:
    """Return what says where in the cache each batch stands, and where it is rotated to."""
    read = {5: "seqlens_k", 6: "total_sequence_length"}
    if node.input(9) is not None and node.attr("do_rotary", 0):
        read[9] = "position_ids"
    found: dict[str, Expr] = {
        name: given(node, position, views)[0] for position, name in read.items()
    }
    if _is_column(given(node, 5, views)[1]):  # as a sum over a mask's columns leaves it
        found["seqlens_k"] = Call("Reshape", (found["seqlens_k"], int64(-1)))
    return found


def _sinks(node: Node, made: Atoms) -> Placed | None:
    """Return the logit of each head beside its scores; a smooth softmax has a 0 there."""
    sinks = node.input(_HEAD_SINK)
    if sinks is not None:
        return Placed(sinks, (made.heads,))
    return Placed.number(0.0) if _is_smooth(node) else None


def _is_smooth(node: Node) -> bool:
    return int(node.attr("smooth_softmax", 0)) == 1 and node.input(_HEAD_SINK) is None


def _core(node: Node) -> Core | None:
    """Return what the body's operator keeps: older ones know a smooth softmax and no sinks."""
    if not _is_smooth(node):
        return None
    return Core(
        node.domain, node.bare_op, Takes.ROWS, Takes.ROWS, (), (("smooth_softmax", 1),), joins=True
    )


def _bias(node: Node, bias: Value, made: Atoms, views: Views) -> Placed:
    """Return what is added to the scores: (batch or 1, heads or 1, rows, columns)."""
    shape = shape_of(node, bias, views)
    if len(shape) != len(made.scores) or views.shapes.dtype(bias) != TensorProto.FLOAT:
        raise refuse(node, "attention_bias", f"of shape ({', '.join(map(str, shape))})")
    batch, heads, rows, columns = made.scores
    leading = zip((batch, heads), shape, strict=False)
    index = tuple(() if extent == Dim.of(1) else axis for axis, extent in leading)
    return Placed(bias, (*index, rows, columns))


def _rotation(node: Node, views: Views) -> Rotation | None:
    """Return the rotation by place, whose tables have a column for each pair."""
    if not node.attr("do_rotary", 0):
        return None
    (cos, shape), (sin, _) = (given(node, position, views) for position in (7, 8))
    half = shape[1].as_int() if len(shape) == 2 else None
    if half is None:
        raise Declined(Code.SHAPE_UNKNOWN, node, value=cos.name, what="its columns")
    if any(views.shapes.dtype(table) != TensorProto.FLOAT for table in (cos, sin)):
        raise refuse(node, "cos_cache", "of another type than float32")
    tables = {"cos_cache": cos, "sin_cache": sin}
    return Rotation(tables, 2 * half, node.attr("rotary_interleaved", 0) == 1)
