"""The rotation that queries and keys share, and its tables."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnx_fuse.analysis.algebra.axes import size
from onnx_fuse.analysis.algebra.expr import Expr
from onnx_fuse.analysis.operands.rope import Rope, canonical_order
from onnx_fuse.analysis.operands.rope_table import table_of
from onnx_fuse.analysis.record.arrangement import Arrangement
from onnx_fuse.analysis.record.reordered import reordered
from onnx_fuse.analysis.record.roles import Misfit


@dataclass(frozen=True)
class SharedRotation:
    """The rotation that queries and keys share.

    order: the lanes in the operator's order; is_interleaved: whether pairs stand side by side;
    dims: the number of lanes that are rotated; reordered: values among "q" and "k" that are given
    another order, as they aren't rotated themselves.
    """

    order: np.ndarray
    is_interleaved: bool = False
    dims: int = 0
    reordered: dict[str, Expr] = field(default_factory=dict)


def shared_rotation(block: Arrangement) -> SharedRotation:
    """Return the rotation of one block. Raises: Misfit."""
    ropes = {name: part.rope for name, part in block.parts.items() if part.rope is not None}
    head_dim = block.number(block.roles.depth, "the head size")
    own = block.lifted.rotation
    if own is not None:
        if ropes:
            raise Misfit(next(iter(ropes)))
        return SharedRotation(np.arange(head_dim), own.is_interleaved, own.dims)
    if not ropes:
        return SharedRotation(np.arange(head_dim))
    first = next(iter(ropes.values()))
    for name, rope in ropes.items():
        if (rope.pair != first.pair).any():
            raise Misfit(name)
    order, interleaved = canonical_order(first)
    is_straight = (order == np.arange(head_dim)).all()
    if block.parts["k"].past is not None and not is_straight:
        raise Misfit("k" if "k" in ropes else "q")
    found: dict[str, Expr] = {}
    for name in ("q", "k"):
        part = block.parts[name]
        if part.projection is not None:
            continue
        if not is_straight:
            turned = reordered(block, name, order) if part.rope is None else None
            if turned is None:
                raise Misfit(next(iter(ropes)))
            found[name] = turned
        elif part.rope is not None and not _is_whole(part.rope, head_dim):
            raise Misfit(name)
    return SharedRotation(order, interleaved, int(first.rotated.sum()), found)


def _is_whole(rope: Rope, head_dim: int) -> bool:
    """Return whether a rotation's source has all lanes of the head in their order."""
    stays = (rope.sigma == np.arange(head_dim)).all()
    return bool(stays) and size(rope.depth).as_int() == head_dim


def tables(block: Arrangement, rotation: SharedRotation) -> dict[str, Expr]:
    """Return the operands that hold cosines and sines. Raises: Misfit."""
    found: dict[str, Expr] = {}
    if block.lifted.rotation is not None:
        found |= block.lifted.rotation.tables
    for name in ("q", "k"):
        rope = block.parts[name].rope
        if rope is None:
            continue
        positions = block.roles.positions(name)
        for is_crossed, word in ((False, "cos"), (True, "sin")):
            table = table_of(
                rope,
                rotation.order,
                [block.roles.batch, block.heads(name), positions],
                block.extents,
                is_interleaved=rotation.is_interleaved,
                is_crossed=is_crossed,
            )
            if table is None:
                raise Misfit(name)
            found[f"{name}_{word}"] = table
    return found
