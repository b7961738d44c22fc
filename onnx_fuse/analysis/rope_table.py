"""The tables of a rotation as operands of the fused operator."""

from __future__ import annotations

import numpy as np

from onnx_fuse.analysis.axes import Atom, Axis, Fixed, atoms, index_atoms, with_lanes_merged
from onnx_fuse.analysis.dims import Dim
from onnx_fuse.analysis.expr import Call, Expr, Extents, arranged
from onnx_fuse.analysis.refs import Ref
from onnx_fuse.analysis.rope import Factor, Rope
from onnx_fuse.analysis.views import Views
from onnx_fuse.ir.graph import Value


def table_of(
    rope: Rope,
    order: np.ndarray,
    interleaved: bool,
    crossed: bool,
    groups: list[Axis],
    extents: Extents,
) -> Expr | None:
    """Return the cos (or, `crossed`, sin) table as an operand.

    It has one axis for each group, then the rotated lanes. None if it can't be brought there.
    """
    lanes = order[: int(rope.rotated.sum())]
    factors = [(rope.crossed if crossed else rope.straight)[lane] for lane in lanes]
    sign = (rope.crossed_sign if crossed else rope.straight_sign)[lanes]
    if crossed:
        count = np.arange(len(lanes))
        first = count % 2 == 0 if interleaved else count < len(lanes) // 2
        sign = np.where(first, -sign, sign)
    runs: list[tuple[tuple[Factor, ...], np.ndarray]] = []
    start = 0
    for stop in range(1, len(lanes) + 1):
        if stop < len(lanes) and _same_tables(factors[stop], factors[start], extents.views):
            continue
        runs.append((factors[start], lanes[start:stop]))
        start = stop
    varying = {_varying(run, groups, extents.views) for run, _ in runs}
    # What is joined has the same extents: an axis that one part has, all have.
    whole = tuple(len(varying) > 1 and any(has) for has in zip(*varying, strict=True))
    pieces: list[Expr] = []
    for run, places in runs:
        piece = _piece(run, places, groups, whole, extents)
        if piece is None:
            return None
        pieces.append(piece)
    table = pieces[0] if len(pieces) == 1 else Call("Concat", tuple(pieces), (("axis", -1),))
    if (sign == 1.0).all():
        return table
    if (sign == -1.0).all():
        return Call("Neg", (table,))
    return Call("Mul", (table, sign.astype(np.float32)))


def _same_tables(first: tuple[Factor, ...], second: tuple[Factor, ...], views: Views) -> bool:
    return len(first) == len(second) and all(
        (a.table is b.table and a.index is b.index)
        or (
            isinstance(a.table, Value)
            and isinstance(b.table, Value)
            and views.same(Ref(a.table, a.index), Ref(b.table, b.index))
        )
        for a, b in zip(first, second, strict=True)
    )


def _varying(factors: tuple[Factor, ...], groups: list[Axis], views: Views) -> tuple[bool, ...]:
    """Return along which groups the product of the factors varies."""
    space = views.space
    found = [{*index_atoms(space.resolve_index(factor.index))} for factor in factors]
    return tuple(
        any(not own.isdisjoint(atoms(space.resolve(group))) for own in found) for group in groups
    )


def _piece(
    factors: tuple[Factor, ...],
    lanes: np.ndarray,
    groups: list[Axis],
    whole: tuple[bool, ...],
    extents: Extents,
) -> Expr | None:
    """Return the product of the factors for these lanes, (groups..., len(lanes)).

    A group that is not `whole` has an extent of 1 where it doesn't matter.
    """
    lane_atom = Atom(Dim.of(len(lanes)), "lane")
    lane_axis: Axis = (lane_atom,) if len(lanes) > 1 else ()

    def arrange(source: Expr, axes: tuple[Axis, ...]) -> Expr | None:
        every = (*whole, False)
        return arranged(source, axes, [*groups, (lane_atom,)], extents, whole=every)

    if not factors:
        return arrange(np.ones(len(lanes), np.float32), (lane_axis,))
    total: Expr | None = None
    for factor in factors:
        axes: list[Axis] = []
        source = factor.table
        for position, axis in enumerate(factor.index):
            resolved = with_lanes_merged(extents.views.space.resolve(axis))
            if not any(isinstance(digit, Fixed) and digit.index.ndim for digit in resolved):
                axes.append(resolved)
                continue
            digit = resolved[0]
            if len(resolved) != 1 or not isinstance(digit, Fixed):
                return None
            picked = digit.index[lanes]
            if not (
                len(lanes) == digit.extent.as_int() and (picked == np.arange(len(lanes))).all()
            ):
                source = Call("Gather", (source, picked), (("axis", position),))
            axes.append(lane_axis)
        arranged_factor = arrange(source, tuple(axes))
        if arranged_factor is None:
            return None
        total = arranged_factor if total is None else Call("Mul", (total, arranged_factor))
    return total
