"""Makes the record of one attention from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from onnx_fuse.analysis.algebra.axes import size
from onnx_fuse.analysis.algebra.uniform import LARGEST_FLOAT
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.record.arrangement import Arrangement
from onnx_fuse.analysis.record.block_inputs import norms, operands, pasts
from onnx_fuse.analysis.record.block_outputs import (
    attn_weights,
    gate,
    placed_output,
    presents,
)
from onnx_fuse.analysis.record.dependence import TYPED, kind_of, needs, unshaped
from onnx_fuse.analysis.record.masking import masking_of
from onnx_fuse.analysis.record.records import AttentionBlock
from onnx_fuse.analysis.record.roles import Misfit
from onnx_fuse.analysis.record.rotation import shared_rotation, tables
from onnx_fuse.analysis.record.sinks import sinks
from onnx_fuse.analysis.shapes.control import captured
from onnx_fuse.ir.graph import Value
from onnx_fuse.report import Code


def assemble(block: Arrangement) -> AttentionBlock:
    """Return the record of one attention. Raises: Misfit, Declined."""
    _check_columns(block)
    rotation = shared_rotation(block)
    head_dim = block.number(block.roles.depth, "the head size")
    v_head_dim = block.number(block.parts["v"].depth, "the values' head size")
    groups = [block.roles.batch, block.roles.heads, block.roles.rows, block.roles.columns]
    masking = masking_of(block.scores.chain, groups, block.extents, block.roles.turned)
    scale = _scale(block, masking.scale)
    sources, weights = operands(block, rotation, v_head_dim)
    sources |= pasts(block)
    out_weight, output, output_axes = placed_output(block)
    replaced = output.value.producer
    assert replaced is not None
    record = AttentionBlock(
        node=block.node,
        kind=kind_of(block.parts["q"].source, block.parts["k"].source, block.parts["v"].source),
        num_heads=block.number(block.roles.heads, "the number of heads"),
        kv_num_heads=block.number(block.roles.kv_heads, "the number of key/value heads"),
        head_dim=head_dim,
        v_head_dim=v_head_dim,
        batch=size(block.roles.batch),
        q_seq=size(block.roles.rows),
        sources=sources,
        weights=weights,
        products=_products(block),
        scores=block.scores.made,
        norms=norms(block, rotation.order, head_dim),
        tables=tables(block, rotation),
        rotary_dim=rotation.dims,
        interleaved=rotation.is_interleaved,
        scale=scale,
        softcap=masking.softcap,
        masking=masking,
        sinks=sinks(block),
        zero_nan=block.values.zero_nan,
        is_causal=block.lifted.is_causal,
        window_size=block.lifted.window_size,
        has_window_cache=block.lifted.has_window_cache,
        gate=gate(block),
        out_weight=out_weight,
        output=output,
        output_axes=output_axes,
        output_factors=tuple(
            (op, factor.arranged(output.index, block.extents))
            for op, factor in block.values.factors
        ),
        replaced=replaced,
        presents=presents(block),
        attn_weights=attn_weights(block),
        lengths=block.lifted.lengths,
        core=block.lifted.core,
        core_inputs=block.lifted.core_inputs,
        extents=block.extents,
    )
    _check_order(block, record)
    return record


def _products(block: Arrangement) -> dict[str, Value]:
    """Return the projections' results, of parts that may enter without theirs."""
    return {
        name: part.choices[0].value
        for name, part in block.parts.items()
        if part.projection is not None and part.plain is not None
    }


def _check_columns(block: Arrangement) -> None:
    """Check that orders of rows and columns are the operator's own. Raises: Misfit."""
    lifted = block.lifted
    if block.roles.turned and (lifted.core or block.values.shown):
        raise Misfit("k")
    if not lifted.is_causal:
        return
    rows, columns = (block.space.resolve(axis) for axis in block.scores.index[-2:])
    if block.roles.rows != rows:
        raise Misfit("q")
    if block.roles.columns != columns:
        raise Misfit("k")
    if block.parts["k"].past is not None and not (lifted.pasts or lifted.parts):
        raise Misfit("k")  # an order that counts them as columns of the operator's own


def _scale(block: Arrangement, scale: float) -> float:
    """Return what multiplies the product of queries and keys, of which `scale` is the scores' own.

    An operand's factor stays outside if with it the scale were more than float32 holds, or one that
    the attention operator in the body doesn't take: the standard's takes no scale that isn't above
    0, and others read 0 as none.

    Raises: Misfit.
    """
    is_kept = block.lifted.core is not None or bool(block.lifted.lengths)
    for name in ("q", "k"):
        own = block.parts[name].scale
        scale *= own
        if (own != 1.0 and abs(scale) > LARGEST_FLOAT) or (is_kept and np.float32(own) <= 0):
            raise Misfit(name)
    return scale


def _check_order(block: Arrangement, record: AttentionBlock) -> None:
    """Check that what the operator reads isn't computed from what it makes beside its output.

    Raises: Misfit, Declined.
    """
    shown = [result.ref for result in record.results[1:] if result.ref is not None]
    sources = partial(_awaited, block)
    for ref in shown:
        if any(needs(value, {ref.value}, sources) for value in record.attended):
            raise _out_of_order(block, record, ref.value)
        # Who asks for the shape of an operator's own output stands behind it anyway.
        if ref.value.producer is not block.node and any(
            block.extents.expr(extent) is None for extent in block.shapes.shape(ref.value) or ()
        ):
            raise Misfit("k")


def _awaited(block: Arrangement, value: Value) -> Sequence[Value]:
    """Return what has to be made before a value: its numbers, and what its node's bodies read.

    A type that is known is written down where it is asked for.
    """
    node = value.producer
    if node is None:
        return ()
    if node.op in TYPED and any(block.shapes.dtype(given) is None for given in node.given):
        return node.given
    return (*unshaped(value), *captured(node))


def _out_of_order(block: Arrangement, record: AttentionBlock, value: Value) -> Exception:
    """Return what a result means that the operator itself would read."""
    weights = record.attn_weights
    if weights is None or weights.ref is None or value is not weights.ref.value:
        return Misfit("k")
    what = "read to make what the block reads"
    return Declined(Code.WEIGHTS_READ, block.node, value=value.name, what=what)
