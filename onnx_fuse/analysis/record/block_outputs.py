"""What the operator gives back: the output, the joined keys and values, the weights."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from onnx_fuse.analysis.algebra.arrange import layout_cost
from onnx_fuse.analysis.algebra.axes import Axis, every_value, index_atoms
from onnx_fuse.analysis.algebra.expr import Expr, nodes_added
from onnx_fuse.analysis.algebra.linear import LinearMap
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.record.arrangement import Arrangement
from onnx_fuse.analysis.record.records import Result, Weight
from onnx_fuse.analysis.record.roles import Misfit
from onnx_fuse.analysis.scores.chain import Placed


def placed_output(block: Arrangement) -> tuple[Weight | None, Ref, tuple[Axis, ...]]:
    """Return the output projection, the value that the block takes over, and its axes.

    The value is the one of its views that takes the fewest nodes to make.

    Raises: Misfit, Declined.
    """
    depth_v = block.space.resolve(block.parts["v"].depth)
    found = block.output
    columns: Axis = (*block.roles.heads, *depth_v)
    out_weight: Weight | None = None
    if found.projection is not None:
        projection = found.projection.resolve(block.space)
        if {*index_atoms(projection.summed)} != {*columns}:
            raise Misfit("output")  # a projection of each head, or of some of them
        columns = projection.column_atoms
        out_weight = _out_weight(block, projection, depth_v)
    axes = (block.roles.batch, block.roles.rows, columns)
    best: tuple[int, Ref] | None = None
    for choice in found.choices:
        ref = choice.resolve(block.space)
        cost = layout_cost(axes, ref, block.extents)
        if cost is not None and (best is None or cost <= best[0]):
            best = (cost, ref)
    if best is None:
        raise block.unknown(found.ref.value, "how the output is laid out")
    return out_weight, best[1], axes


def _out_weight(block: Arrangement, projection: LinearMap, depth_v: Axis) -> Weight:
    """Return the projection's weight, whose rows are (heads, value depth)."""
    alpha, summed = projection.alpha * block.values.scale, (block.roles.heads, depth_v)
    lanes = every_value(projection.column_atoms)
    return Weight(((replace(projection, summed=summed, alpha=alpha), lanes),))


def gate(block: Arrangement) -> Expr | None:
    """Return what multiplies the context before its projection, from the view that costs least.

    Its axes are (batch, q_seq, num_heads, v_head_dim), each full or 1. Raises: Misfit.
    """
    ref = block.output.gate
    if ref is None:
        return None
    depth = block.space.resolve(block.parts["v"].depth)
    groups = (block.roles.batch, block.roles.rows, block.roles.heads, depth)
    found: list[Expr] = []
    for choice in block.sources(ref) if Placed.of(ref).is_exact(block.views) else (ref,):
        with contextlib.suppress(Declined):  # as a mask would be
            found.append(Placed.of(choice).arranged(groups, block.extents))
    if not found:
        raise Misfit("output")
    return min(found, key=nodes_added)


def presents(block: Arrangement) -> tuple[Result, ...]:
    """Return the joined keys and values that the graph reads, none without a cache.

    Raises: Misfit.
    """
    found: list[Result] = []
    for name in ("k", "v"):
        part = block.parts[name]
        if part.past is None:
            continue
        axes = (block.roles.batch, block.roles.kv_heads, block.roles.columns, part.depth)
        ref = part.past.present
        present = Result(None if ref is None else ref.resolve(block.space), axes)
        shown = None if ref is None else Ref(ref.value, present.part_index)
        if shown is not None and layout_cost(axes, shown, block.extents) is None:
            raise Misfit(name)
        found.append(present)
    if found and not _are_whole(*found):
        raise Misfit("k")
    return tuple(found)


def attn_weights(block: Arrangement) -> Result | None:
    """Return the softmax's weights that others read than the product with the values.

    Raises: Declined where their layout isn't the operator's.
    """
    shown = block.values.shown
    if shown is None:
        return None
    roles = block.roles
    result = Result(
        shown.resolve(block.space), (roles.batch, roles.heads, roles.rows, roles.columns)
    )
    assert result.ref is not None
    if layout_cost(result.axes, result.ref, block.extents) is None:
        raise block.unknown(shown.value, "how the attention weights are laid out")
    return result


def _are_whole(keys: Result, values: Result) -> bool:
    """Return whether two caches become two tensors, or the two parts of one."""
    if keys.stack_axis is None and values.stack_axis is None:
        return keys.ref is None or values.ref is None or keys.ref.value is not values.ref.value
    if keys.ref is None or values.ref is None or keys.ref.value is not values.ref.value:
        return False
    return keys.stack_axis == values.stack_axis and {keys.part, values.part} == {0, 1}
