"""Attention of the standard, opset 23 and later."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnx_fuse.analysis.algebra.axes import Axis, Index, size
from onnx_fuse.analysis.algebra.expr import Call, Expr
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.operators.kept import has_kernel
from onnx_fuse.analysis.operators.lifted import (
    Atoms,
    Lifted,
    check_unused,
    given,
    joined_pasts,
    lifted_parts,
    new_atoms,
    past_extent,
    refuse,
    shape_of,
)
from onnx_fuse.analysis.operators.masks import Masks
from onnx_fuse.analysis.scores.chain import Chain, Scale, Tanh
from onnx_fuse.analysis.shapes.facts import Shape
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Code


def standard_attention(node: Node, views: Views) -> Lifted:
    """Attention of opset 23 and later.

    Its inputs are (batch, heads, rows, depth), or (batch, rows, heads * depth) with head counts.
    """
    check_unused(node, 3)
    values, shapes = zip(*(given(node, position, views) for position in range(3)), strict=True)
    split = len(shapes[0]) == 4
    counts = _head_counts(node, shapes)
    heads, kv_heads, _ = counts
    widths = [
        shape[-1] if split else shape[-1] // Dim.of(count)
        for shape, count in zip(shapes, counts, strict=True)
    ]
    row_axis = 2 if split else 1
    before = node.input(4)
    made = new_atoms(
        views.space,
        shapes[0][0],
        (kv_heads, heads // kv_heads),
        shapes[0][row_axis],
        (past_extent(node, before, 2, (1, 2), views), shapes[1][row_axis]),
        (widths[0], widths[2]),
    )

    def index(own: Axis, positions: Axis, depth: Axis) -> Index:
        return (
            (made.batch, own, positions, depth)
            if split
            else (made.batch, positions, (*own, *depth))
        )

    refs = (
        Ref(values[0], index(made.heads, made.rows, made.depth)),
        Ref(values[1], index(made.kv_heads, made.new, made.depth)),
        Ref(values[2], index(made.kv_heads, made.new, made.depth_v)),
    )
    chain = Chain()
    is_causal = _add_masks(node, Masks(node, made, views, chain))
    _add_scale(node, made, chain)
    context = index(made.heads, made.rows, made.depth_v)
    # A row that shows nothing is 0, and a NaN of another cause stays, as onnxruntime has it.
    scores, found = lifted_parts(node, refs, made, context, chain, zero_nan=2)
    return Lifted(
        scores,
        found,
        pasts=joined_pasts(node, made, 4),
        is_causal=is_causal,
    )


def _head_counts(node: Node, shapes: Sequence[Shape]) -> list[int]:
    """Return how many heads query, key and value have. Raises: Declined if one is not known."""
    names = ("q_num_heads", "kv_num_heads", "kv_num_heads")
    split = len(shapes[0]) == 4
    counts = all_known(
        shape[1].as_int() if split else node.attr(name)
        for shape, name in zip(shapes, names, strict=True)
    )
    if counts is None:
        raise Declined(Code.SHAPE_UNKNOWN, node, value=node.name, what="the number of heads")
    return [int(count) for count in counts]


def _add_scale(node: Node, atoms: Atoms, chain: Chain) -> None:
    """Add what applies before the masks: scale and cap."""
    width, scale = size(atoms.depth).as_int(), node.attr("scale")
    if scale is None and width is None:
        raise Declined(Code.SHAPE_UNKNOWN, node, value=node.name, what="the head size")
    if scale is not None and not float(scale) >= 0:
        # The operator multiplies query and key by the scale's root, which is NaN.
        raise refuse(node, "scale", float(scale))
    softcap = float(node.attr("softcap", 0.0))
    if softcap:
        chain.operations += [Scale(softcap), Tanh(node), Scale(1.0 / softcap)]
    chain.operations.append(
        Scale(float(scale) if scale is not None else 1.0 / math.sqrt(width or 1))
    )


def _add_masks(node: Node, masks: Masks) -> bool:
    """Add the masks, and return whether the causal one is left to the fused operator."""
    made, mask, ends = masks.atoms, node.input(3), node.input(6)
    if mask is not None:
        if ends is not None:
            _check_width(node, shape_of(node, mask, masks.views)[-1], size(made.columns))
        # As onnxruntime's kernel has it; without one it runs the standard's body, which doesn't.
        masks.add(mask, lowest_hides=has_kernel(node, masks.views))
    if ends is not None:
        masks.show(masks.below(ends), made.batch, made.columns)
    is_causal = bool(node.attr("is_causal", 0))
    left, right = (int(node.attr(f"{side}_window_size", -1)) for side in ("left", "right"))
    if is_causal and made.past is not None and size(made.rows) != size(made.new):
        # The kernel lets a single row see everything behind a past.
        raise refuse(node, "is_causal", "1 for two sequences behind a past")
    if is_causal:
        # The fused operator counts a row's own column from the past's length, not from `ends`.
        right = -1 if ends is None else 0
    visible = masks.window(_own_columns(masks, ends), left, right)
    if visible is not None:
        index = (made.rows, made.columns)
        masks.show(visible, *(index if ends is None else (made.batch, *index)))
    return is_causal and ends is None


def _check_width(node: Node, width: Dim, columns: Dim) -> None:
    """Raise Declined for a mask that isn't proved to be as long as the keys."""
    if width == columns:
        return
    numbers = width.as_int(), columns.as_int()
    what = "of a length not proved to be that of the keys"
    raise refuse(node, "attn_mask", what if None in numbers else "shorter than the keys")


def _own_columns(masks: Masks, ends: Value | None) -> Expr:
    """Return the column of the first row: behind the past, or so that the last row's ends."""
    if ends is None:
        return masks.first_column()
    each = Call("Reshape", (ends, np.array([-1, 1, 1], dtype=np.int64)))
    return Call("Sub", (each, masks.extent(size(masks.atoms.rows), "the number of rows")))
