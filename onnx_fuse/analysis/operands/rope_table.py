"""The tables of a rotation as operands of the fused operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from onnx_fuse.analysis.algebra.arrange import arranged, reshaped
from onnx_fuse.analysis.algebra.axes import (
    Atom,
    Axis,
    Digit,
    Fixed,
    Index,
    atoms,
    merged,
    with_lanes_merged,
)
from onnx_fuse.analysis.algebra.expr import Call, Expr
from onnx_fuse.analysis.algebra.extents import Extents
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.operands.rope import Rope, Side
from onnx_fuse.analysis.scores.chain import Placed

_SEVERAL = 2


@dataclass(frozen=True)
class _Run:
    """Neighbouring lanes of one span that are multiplied by the same tables."""

    factors: tuple[Placed, ...]
    sign: np.ndarray
    lanes: np.ndarray


def table_of(
    rope: Rope,
    order: np.ndarray,
    groups: list[Axis],
    extents: Extents,
    *,
    is_interleaved: bool,
    is_crossed: bool,
) -> Expr | None:
    """Return the cos (or, `is_crossed`, sin) table as an operand, its lanes in the given order.

    It has one axis for each group, then the rotated lanes. None if it can't be brought there.
    """
    space = extents.views.space
    groups, along = [space.resolve(group) for group in groups], space.resolve(rope.positions)
    if rope.positions and along not in groups:
        return None
    lanes = order[: int(rope.rotated.sum())]
    signs = _crossed_signs(len(lanes), is_interleaved) if is_crossed else np.ones(len(lanes))
    spans: list[tuple[list[Axis], list[_Run]]] = []
    for span in rope.spans:
        side = span.turn.crossed if is_crossed else span.turn.straight
        runs = _runs(side, lanes, side.sign[lanes] * signs, extents.views)
        own = [span.positions if along and group == along else group for group in groups]
        spans.append((own, runs))
    varying = {_varying(run.factors, own, extents.views) for own, runs in spans for run in runs}
    # What is joined has the same extents: an axis that one part has, all have.
    whole = [len(varying) > 1 and any(has) for has in zip(*varying, strict=True)]
    if len(spans) > 1:
        whole[groups.index(along)] = True
    made = [_span_table(runs, own, whole, extents) for own, runs in spans]
    return made[0] if len(made) == 1 else _joined(made, groups.index(along))


def _joined(parts: Sequence[Expr | None], axis: int) -> Expr | None:
    """Return the parts joined along an axis; None if one of them is."""
    known: list[Expr] | None = all_known(parts)
    if known is None:
        return None
    return known[0] if len(known) == 1 else Call("Concat", tuple(known), (("axis", axis),))


def _crossed_signs(count: int, is_interleaved: bool) -> np.ndarray:
    """Return the signs of so many lanes: the operator subtracts in the first lane of each pair."""
    lane = np.arange(count)
    return np.where(lane % 2 == 0 if is_interleaved else lane < count // 2, -1.0, 1.0)


def _runs(side: Side, lanes: np.ndarray, sign: np.ndarray, views: Views) -> list[_Run]:
    """Return the runs of the lanes, which are in the operator's order, as are their signs."""
    factors = [side.factors[lane] for lane in lanes]
    runs: list[_Run] = []
    start = 0
    for stop in range(1, len(lanes) + 1):
        if stop < len(lanes) and _same_tables(factors[stop], factors[start], views):
            continue
        runs.append(_Run(factors[start], sign[start:stop], lanes[start:stop]))
        start = stop
    whole = _picked(factors, lanes, views) if len(runs) == len(lanes) else None
    return runs if whole is None else [_Run(whole, sign, lanes)]


def _picked(
    factors: Sequence[tuple[Placed, ...]], lanes: np.ndarray, views: Views
) -> tuple[Placed, ...] | None:
    """Return the factors of lanes of which each reads the same tables, at numbers of its own.

    One piece for each lane would be as many nodes.
    """
    if len({len(own) for own in factors}) != 1:
        return None
    found: list[Placed] = []
    for own in zip(*factors, strict=True):
        origins = all_known([_origin(factor, views) for factor in own])
        if origins is None or len({origin.value for origin in origins}) != 1:
            return None
        axes: list[Axis] = []
        for parts in zip(*(origin.index for origin in origins), strict=True):
            axis = _axis_of_lanes([views.space.resolve(part) for part in parts], lanes)
            if axis is None:
                return None
            axes.append(axis)
        found.append(Placed(origins[0].value, tuple(axes)))
    return tuple(found)


def _origin(factor: Placed, views: Views) -> Ref | None:
    """Return where a table's elements come from by views within its graph; None if not a value."""
    found = own = factor.ref
    if own is None:
        return None
    made = own.value.producer
    for ref in views.chain(own):
        above = ref.value.producer
        if made is None or above is None or above.graph is not made.graph:
            break
        found = ref
    return found


def _axis_of_lanes(parts: Sequence[Axis], lanes: np.ndarray) -> Axis | None:
    """Return an axis at which each lane stands as on its own; None if more than numbers differ."""
    digits: list[Digit] = []
    for own in zip_longest(*parts):
        first = own[0]
        if not isinstance(first, Fixed):
            if any(digit is not first for digit in own):
                return None
            digits.append(first)
            continue
        numbers = np.zeros(int(lanes.max()) + 1, dtype=np.int64)
        for lane, digit in zip(lanes.tolist(), own, strict=True):
            if not isinstance(digit, Fixed) or digit.extent != first.extent:
                return None
            numbers[lane] = digit.index[lane] if digit.index.ndim else digit.index
        digits.append(Fixed(numbers, first.extent))
    return tuple(digits)


def _same_tables(first: tuple[Placed, ...], second: tuple[Placed, ...], views: Views) -> bool:
    return len(first) == len(second) and all(
        (a.expr is b.expr and a.index is b.index)
        or (a.ref is not None and b.ref is not None and views.same(a.ref, b.ref))
        for a, b in zip(first, second, strict=True)
    )


def _varying(factors: tuple[Placed, ...], groups: list[Axis], views: Views) -> tuple[bool, ...]:
    """Return along which groups the product of the factors varies."""
    space = views.space
    found = [space.atoms_of(*factor.index) for factor in factors]
    return tuple(
        any(not own.isdisjoint(atoms(space.resolve(group))) for own in found) for group in groups
    )


def _span_table(
    runs: Sequence[_Run], groups: list[Axis], whole: Sequence[bool], extents: Extents
) -> Expr | None:
    """Return the table of one span's positions, (groups..., lanes)."""
    made = _joined([_piece(run, groups, whole, extents) for run in runs], -1)
    sign = np.concatenate([run.sign if run.factors else np.ones(len(run.lanes)) for run in runs])
    if made is None or (sign == 1.0).all():
        return made
    return Call("Mul", (made, sign.astype(np.float32)))


def _lanes_joined(factor: Placed, extents: Extents) -> tuple[Expr, Index] | None:
    """Return a table, and where its lanes stand, with all axes in which they differ as one."""
    axes = [*extents.views.space.resolve_index(factor.index)]
    differing = [
        position
        for position, axis in enumerate(axes)
        if any(isinstance(digit, Fixed) and digit.index.ndim for digit in axis)
    ]
    if len(differing) < _SEVERAL:
        return factor.expr, tuple(axes)
    start, stop = differing[0], differing[-1] + 1
    (digit, *others) = with_lanes_merged(merged(axes[start:stop]), numbers=True)
    if others or not isinstance(digit, Fixed):
        return None
    whole = [*axes[:start], (digit,), *axes[stop:]]
    source = reshaped(factor.expr, axes, whole, extents)
    return None if source is None else (source, tuple(whole))


def _piece(run: _Run, groups: list[Axis], whole: Sequence[bool], extents: Extents) -> Expr | None:
    """Return the product of a run's factors, or its sign if it has none: (groups..., len(lanes)).

    A group that is not `whole` has an extent of 1 where it doesn't matter.
    """
    lanes = run.lanes
    lane_atom = Atom(Dim.of(len(lanes)), "lane")
    lane_axis: Axis = (lane_atom,) if len(lanes) > 1 else ()
    found: list[tuple[Expr, tuple[Axis, ...]]] = []
    for factor in run.factors:
        axes: list[Axis] = []
        joined = _lanes_joined(factor, extents)
        if joined is None:
            return None
        source, index = joined
        for position, axis in enumerate(index):
            resolved = with_lanes_merged(axis)
            if not any(isinstance(digit, Fixed) and digit.index.ndim for digit in resolved):
                axes.append(resolved)
                continue
            *outer, digit = resolved
            if not isinstance(digit, Fixed) or any(isinstance(own, Fixed) for own in outer):
                return None
            picked = digit.index[lanes]
            if len(lanes) != digit.extent.as_int() or (picked != np.arange(len(lanes))).any():
                if outer:  # lanes of each head, in another order
                    return None
                source = Call("Gather", (source, picked), (("axis", position),))
            axes.append((*outer, *lane_axis))
        found.append((source, tuple(axes)))
    if not found:
        found = [(run.sign.astype(np.float32), (lane_axis,))]
    # Every lane stands in the table, also where all have the same factors.
    by_lane = any(lane_atom in axis for _, axes in found for axis in axes)
    every = (*whole, bool(lane_axis) and not by_lane)
    total: Expr | None = None
    for source, index in found:
        made = arranged(source, index, [*groups, (lane_atom,)], extents, whole=every)
        if made is None:
            return None
        total = made if total is None else Call("Mul", (total, made))
    return total
