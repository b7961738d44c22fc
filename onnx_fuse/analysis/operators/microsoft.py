"""Attention and MultiHeadAttention of com.microsoft, as onnxruntime's CPU kernels compute them."""

from __future__ import annotations

import math

import numpy as np

from onnx_fuse.analysis.algebra.axes import Axis, Index, fixed, size
from onnx_fuse.analysis.algebra.expr import Call
from onnx_fuse.analysis.algebra.linear import Projection, Step
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.operands.operand import Operand, Past
from onnx_fuse.analysis.operators.lifted import (
    Atoms,
    Lifted,
    check_unused,
    empty_past,
    given,
    joined_pasts,
    lifted_parts,
    new_atoms,
    packed_columns,
    past_extent,
    refuse,
    shape_of,
    used_output,
)
from onnx_fuse.analysis.operators.masks import Masks
from onnx_fuse.analysis.scores.bounds import highest_score
from onnx_fuse.analysis.scores.chain import Chain, Placed, Scale, Select
from onnx_fuse.analysis.shapes.facts import Shape
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Code

_FILLER = -10000.0  # mask_filter_value, where a node does not give it
# What the causal order hides gets the lowest number, not minus infinity.
_LOWEST = float(np.finfo(np.float32).min)
_ABOVE_LOWEST = 3e38  # a score of at most this size stays above it


def packed_attention(node: Node, views: Views) -> Lifted:
    """Attention of com.microsoft: one input, one packed weight of three parts, one bias."""
    bias, mask, before, added = (node.input(position) for position in range(2, 6))
    source, shape = given(node, 0, views)
    weight, weight_shape = given(node, 1, views)
    if not views.shapes.is_constant(weight) or (
        bias is not None and not views.shapes.is_constant(bias)
    ):
        raise refuse(node, "weights", "computed")
    total = weight_shape[1].as_int()
    heads = int(node.attr("num_heads"))
    if total is None:
        raise Declined(Code.SHAPE_UNKNOWN, node, value=weight.name, what="its columns")
    sizes = [int(width) for width in node.attr("qkv_hidden_sizes") or [total // 3] * 3]
    made = new_atoms(
        views.space,
        shape[0],
        (heads, 1),
        shape[1],
        (past_extent(node, before, 3, (1,), views), shape[1]),
        (Dim.of(sizes[0] // heads), Dim.of(sizes[2] // heads)),
    )
    pasts = {} if made.past is None else _stacked_pasts(node, made, before)
    columns = packed_columns(made, sizes, Dim.of(total), views.space)
    parts: dict[str, Operand] = {}
    for name, own in columns.items():
        inner = views.space.atom(weight_shape[0], "channel")
        steps = () if bias is None else (Step("Add", Ref(bias, (own,))),)
        rows = Ref(source, (made.batch, made.rows if name == "q" else made.new, inner))
        weights = Ref(weight, (inner, own))
        projection = Projection(weights, (inner,), 1.0, steps, source=rows)
        parts[name] = Operand(
            (rows,), made.depth_of(name), projection=projection, past=pasts.get(name)
        )
    chain = Chain()
    is_causal = _add_masks(Masks(node, made, views, chain), mask, added)
    _add_scale(node, sizes[0] // heads, chain)
    whole = Ref(source, (made.batch, made.rows, ()))
    context = (made.batch, made.rows, (*made.heads, *made.depth_v))
    scores, values = lifted_parts(node, (whole,) * 3, made, context, chain, zero_nan=0)
    return Lifted(scores, values, parts=parts, is_causal=is_causal)


def _stacked_pasts(node: Node, atoms: Atoms, before: Value | None) -> dict[str, Past]:
    """Return the caches of keys and values where they are the halves of one tensor."""
    after = used_output(node, 1)
    found: dict[str, Past] = {}
    for position, name in enumerate("kv"):
        half = fixed(position, Dim.of(2))
        found[name] = Past(
            empty_past(atoms)
            if before is None
            else Placed(before, (half, *atoms.cached(name, atoms.past))),
            None if after is None else Ref(after, (half, *atoms.cached(name, atoms.columns))),
            atoms.past or (),
            atoms.new,
        )
    return found


def multi_head_attention(node: Node, views: Views) -> Lifted:
    """MultiHeadAttention of com.microsoft: separate queries, keys and values.

    Each may have its part of one bias. Keys and values of four axes are those of another sequence,
    projected before, (batch, heads, columns, depth).
    """
    bias, mask, added, before = (node.input(at) for at in range(3, 7))
    (query, key, value), shapes = _unpacked(node, views)
    heads = int(node.attr("num_heads"))
    split = len(shapes[1]) == 4
    width = shapes[0][2].as_int()
    if width is None:
        raise Declined(Code.SHAPE_UNKNOWN, node, value=query.name, what="its width")
    check_unused(node, 3)
    past = past_extent(node, before, 2, (1, 2), views)
    if past is not None and split:
        raise refuse(node, "past_key", "given beside keys of four axes")
    depth_v = shapes[2][3] if split else shapes[2][2] // Dim.of(heads)
    made = new_atoms(
        views.space,
        shapes[0][0],
        (heads, 1),
        shapes[0][1],
        (past, shapes[1][2 if split else 1]),
        (Dim.of(width // heads), depth_v),
    )
    refs = [Ref(query, (made.batch, made.rows, (*made.heads, *made.depth)))]
    for name, tensor in (("k", key), ("v", value)):
        merged: Index = (made.batch, made.new, (*made.kv_heads, *made.depth_of(name)))
        refs.append(Ref(tensor, made.cached(name, made.new) if split else merged))
    if node.attr("unidirectional", 0) and size(made.rows) != size(made.new):
        # The kernel lets a single row see everything, whatever stands before it.
        raise refuse(node, "unidirectional", "1 for two sequences")
    chain = Chain()
    is_causal = _add_masks(Masks(node, made, views, chain), mask, added)
    _add_scale(node, width // heads, chain)
    context: Index = (made.batch, made.rows, (*made.heads, *made.depth_v))
    scores, values = lifted_parts(
        node, (refs[0], refs[1], refs[2]), made, context, chain, zero_nan=0
    )
    steps = {} if bias is None else _biases(node, bias, made, width, views)
    if split:  # whoever projected them has added their biases
        steps = {name: step for name, step in steps.items() if name == "q"}
    pasts = joined_pasts(node, made, 6)
    return Lifted(scores, values, steps=steps, pasts=pasts, is_causal=is_causal)


def _unpacked(node: Node, views: Views) -> tuple[tuple[Value, ...], tuple[Shape, ...]]:
    """Return query, key and value, and their shapes. Raises: Declined where they are packed."""
    if node.input(1) is None or node.input(2) is None:
        raise refuse(node, "query, key and value", "packed")
    values, shapes = zip(*(given(node, position, views) for position in range(3)), strict=True)
    if len(shapes[0]) != 3 or len(shapes[1]) != len(shapes[2]) or len(shapes[1]) not in (3, 4):
        raise refuse(node, "query, key and value", "packed")
    return values, shapes


def _biases(
    node: Node, bias: Value, made: Atoms, width: int, views: Views
) -> dict[str, tuple[Step, ...]]:
    """Return each part of one bias, in the order of queries, keys, values."""
    if not views.shapes.is_constant(bias):
        raise refuse(node, "bias", "computed")
    total = shape_of(node, bias, views)[0]
    columns = packed_columns(made, (width, width, width), total, views.space)
    return {name: (Step("Add", Ref(bias, (own,))),) for name, own in columns.items()}


def _add_scale(node: Node, head_dim: int, chain: Chain) -> None:
    scale = float(node.attr("scale", 0.0)) or 1.0 / math.sqrt(head_dim)
    chain.operations.append(Scale(scale))


def _add_masks(masks: Masks, mask: Value | None, added: Value | None) -> bool:
    """Add the masks, and return whether the causal one is left to the fused operator.

    That hides for good. Here what is hidden has a share in a row of which all that is shown is as
    low, so then it is a mask like any other, outside of `mask` and below what is added.
    """
    operations = masks.chain.operations
    if added is not None:
        masks.add(added)
    place = len(operations)
    if mask is not None:
        _fill_hidden(masks, mask)
    if not masks.node.attr("unidirectional", 0):
        return False
    if highest_score(operations[::-1], None, masks.views.shapes) <= _ABOVE_LOWEST:
        return True
    visible = masks.window(masks.first_column(), -1, 0)
    assert visible is not None
    index = (masks.atoms.rows, masks.atoms.columns)
    operations.insert(place, Select(Placed(visible, index), Placed.number(_LOWEST)))
    return False


def _fill_hidden(masks: Masks, mask: Value) -> None:
    """Add the filler wherever a mask hides a column."""
    node, made = masks.node, masks.atoms
    filler = float(node.attr("mask_filter_value", _FILLER))
    shape = shape_of(node, mask, masks.views)
    index: tuple[Axis, ...] = (made.batch, made.columns)
    match len(shape):
        case 3:
            visible = Call("Greater", (mask, np.zeros((), dtype=np.int32)))
            index = (made.batch, made.rows, made.columns)
        case 2 if shape[1].as_int() != 1:
            visible = Call("Greater", (mask, np.zeros((), dtype=np.int32)))
        case 2 if node.op == "com.microsoft:Attention":
            return  # one number for each batch: a mask that is none
        case 1:
            visible = _between_ends(masks, mask, shape[0])
        case _:
            raise _refused_mask(node, shape)
    masks.add_where_hidden(visible, filler, *index)


def _between_ends(masks: Masks, mask: Value, length: Dim) -> Call:
    """Return which columns a vector shows, (batch, columns).

    It holds the end of each batch. As many starts may follow, if the operator reads them; what
    follows in one of 3 * batch + 2, the kernel does not read. Which one it is may only be known
    when the model runs.
    """
    batch, has_starts = size(masks.atoms.batch), masks.node.op == "com.microsoft:Attention"
    if length == batch:
        return masks.below(mask)
    if length == batch * Dim.of(3) + Dim.of(2):
        return masks.below(masks.by_batch(mask))
    known = batch.as_int() is not None and length.as_int() is not None
    is_twice = known or length == batch * Dim.of(2)
    if is_twice and (length != batch * Dim.of(2) or not has_starts):
        raise _refused_mask(masks.node, (length,))
    shown = masks.below(masks.by_batch(mask))
    if not has_starts:
        return shown
    starts = masks.by_batch(mask, 1) if is_twice else masks.second_of_two(mask)
    return Call("And", (shown, Call("Not", (masks.below(starts),))))


def _refused_mask(node: Node, shape: tuple[Dim, ...]) -> Declined:
    return refuse(node, "mask", f"of shape ({', '.join(map(str, shape))})")
