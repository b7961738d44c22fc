"""The rotation that queries and keys share, and its tables."""

from __future__ import annotations

import numpy as np

from onnx_fuse.analysis.algebra.axes import size
from onnx_fuse.analysis.algebra.expr import Expr
from onnx_fuse.analysis.operands.rope import canonical_order
from onnx_fuse.analysis.operands.rope_table import table_of
from onnx_fuse.analysis.record.arrangement import Arrangement
from onnx_fuse.analysis.record.reordered import reordered
from onnx_fuse.analysis.record.roles import Misfit


def rotation(block: Arrangement) -> tuple[np.ndarray, bool, int]:
    """Return (order, interleaved, rotated) of the rotation that queries and keys share.

    order: the lanes in the operator's order; interleaved: whether pairs stand side by side;
    rotated: the number of lanes that are rotated. Raises: Misfit.
    """
    ropes = {name: part.rope for name, part in block.parts.items() if part.rope is not None}
    head_dim = block.number(block.roles.depth, "the head size")
    own = block.lifted.rotation
    if own is not None:
        if ropes:
            raise Misfit(next(iter(ropes)))
        return np.arange(head_dim), own.is_interleaved, own.dims
    if not ropes:
        return np.arange(head_dim), False, 0
    first = next(iter(ropes.values()))
    for name, rope in ropes.items():
        if (rope.pair != first.pair).any():
            raise Misfit(name)
    order, interleaved = canonical_order(first)
    if block.parts["k"].past is not None and (order != np.arange(head_dim)).any():
        raise Misfit("k" if "k" in ropes else "q")
    for name in ("q", "k"):
        part = block.parts[name]
        if part.projection is None:
            straight = (order == np.arange(head_dim)).all()
            whole = part.rope is None or (
                (part.rope.sigma == np.arange(head_dim)).all()
                and size(part.rope.depth).as_int() == head_dim
            )
            if not straight and (part.rope or reordered(block, name, order) is None):
                raise Misfit(next(iter(ropes)))
            if not whole:
                raise Misfit(name)
    return order, interleaved, int(first.rotated.sum())


def tables(block: Arrangement, order: np.ndarray, interleaved: bool) -> dict[str, Expr]:
    """Return the operands that hold cosines and sines. Raises: Misfit."""
    found: dict[str, Expr] = {}
    if block.lifted.rotation is not None:
        found |= block.lifted.rotation.tables
    for name in ("q", "k"):
        rope = block.parts[name].rope
        if rope is None:
            continue
        positions = block.roles.positions(name)
        for crossed, word in ((False, "cos"), (True, "sin")):
            table = table_of(
                rope,
                order,
                interleaved,
                crossed,
                [block.roles.batch, block.heads(name), positions],
                block.extents,
            )
            if table is None:
                raise Misfit(name)
            found[f"{name}_{word}"] = table
    return found
