"""A tensor brought to other axes: the expression that slices, turns and groups it so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_fuse.analysis.algebra.axes import (
    ONE,
    Atom,
    Axis,
    Digit,
    Fixed,
    Index,
    Range,
    merged,
    size,
)
from onnx_fuse.analysis.algebra.expr import SLICE_INPUTS_OPSET, Call, Expr, int64, nodes_added
from onnx_fuse.analysis.algebra.extents import Extents
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.dims.dim import Dim, ceil_quotient
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.splice import spliced

Groups = Sequence[Axis]  # the atoms of each axis that is wanted

_UNSQUEEZE_OPSET = 13  # from which its axes are an input
_ALLOWZERO_OPSET = 14  # from which a Reshape may say that it means 0


def reshaped(value: Expr, before: Groups, after: Groups, extents: Extents) -> Expr | None:
    """Return `value`, whose axes are `before`, reshaped to `after`.

    Both have the same digits in the same order. None if an extent can't be computed.
    """
    if [size(axis) for axis in before] == [size(axis) for axis in after]:
        return value
    added = _added_ones(before, after)
    if added:  # no Reshape, which can leave no extent of an empty tensor open
        if extents.opset < _UNSQUEEZE_OPSET:
            return Call("Unsqueeze", (value,), (("axes", added),))
        return Call("Unsqueeze", (value, np.array(added, dtype=np.int64)))
    if any(map(extents.is_maybe_empty, after)):
        return _reshaped_exactly(value, before, after, extents)
    parts: list[Expr] = []
    open_axis = False
    for position, axis in enumerate(after):
        extent = size(axis)
        number = extent.as_int()
        if number is not None:
            parts.append(int64(number))
        elif position < len(before) and size(before[position]) == extent:
            parts.append(int64(0))
        elif not open_axis:
            open_axis = True
            parts.append(int64(-1))
        else:
            known = extents.expr(size(axis))
            if known is None:
                return None
            parts.append(known)
    return Call("Reshape", (value, vector(parts)))


def _added_ones(before: Groups, after: Groups) -> tuple[int, ...]:
    """Return which axes of `after` are 1, if the others are those of `before`; else none."""
    rest = [size(axis) for axis in before]
    added: list[int] = []
    for position, axis in enumerate(after):
        if rest and rest[0] == size(axis):
            del rest[0]
        elif size(axis) == ONE:
            added.append(position)
        else:
            return ()
    return () if rest else tuple(added)


def _reshaped_exactly(value: Expr, before: Groups, after: Groups, extents: Extents) -> Expr | None:
    """Return `value` reshaped where an extent may be 0.

    No other can then be left open, and a 0 means that of the input at the same place unless
    `allowzero` says that it means itself. None where neither will do.
    """
    sizes = [size(axis) for axis in after]
    stays = [
        position < len(before) and size(before[position]) == extent
        for position, extent in enumerate(sizes)
    ]
    parts: list[Expr | None] = [
        int64(0) if stay and extent.as_int() is None else extents.expr(extent)
        for stay, extent in zip(stays, sizes, strict=True)
    ]
    stand = all(
        stay or not extents.is_maybe_empty(axis) for stay, axis in zip(stays, after, strict=True)
    )
    attributes: tuple[tuple[str, Any], ...] = ()
    if not stand:
        parts = [extents.expr(extent) for extent in sizes]
        attributes = (("allowzero", 1),)
    known: list[Expr] | None = all_known(parts)
    if known is None or (not stand and extents.opset < _ALLOWZERO_OPSET):
        return None
    return Call("Reshape", (value, vector(known)), attributes)


def vector(parts: Sequence[Expr]) -> Expr:
    """Return int64 vectors joined: a constant where all are."""
    constants = [part for part in parts if isinstance(part, np.ndarray)]
    if len(constants) == len(parts):
        return np.concatenate(constants)
    return Call("Concat", tuple(parts), (("axis", 0),))


def _without_selections(
    value: Expr, axes: list[Axis], extents: Extents
) -> tuple[Expr, list[Axis]] | None:
    """Cut away what fixed digits and ranges leave out; the axes returned hold atoms only.

    An axis of which one place is taken is gathered away: a Reshape without it could not say that an
    extent is 0, as that of a past is in the first step.
    """
    if any(not isinstance(digit, Atom) for axis in axes for digit in axis[1:]):
        digits: list[Axis] = [(digit,) for digit in merged(axes)]
        apart = reshaped(value, axes, digits, extents)
        if apart is None:
            return None
        value, axes = apart, digits
    for position in reversed(range(len(axes))):
        axis = axes[position]
        if axis and not isinstance(axis[0], Atom):
            cut = _chosen(value, position, axis[0], axis[1:], extents)
            if cut is None:
                return None
            value, left = cut
            axes = [*spliced(axes, position, *left)]
    return value, axes


def _chosen(
    value: Expr, position: int, first: Digit, rest: Axis, extents: Extents
) -> tuple[Expr, list[Axis]] | None:
    """Return what the first digit of an axis chooses, and what is left of the axis, if it is."""
    match first:
        case Fixed() if first.index.ndim == 0 and not rest:
            place = np.asarray(int(first.index), dtype=np.int64)
            return Call("Gather", (value, place), (("axis", position),)), []
        case Fixed() if first.index.ndim == 0:
            start, step, kept = Dim.of(int(first.index)), 1, rest
            end = start + 1
        case Range() if all(isinstance(digit, Atom) for digit in first.inner):
            start, step, kept = first.start, first.step, (*first.inner, *rest)
            count = size(first.inner)
            end = start + count * step
            if step != 1 and count == ceil_quotient(first.extent - start, step):
                end = first.extent  # known, even where the count can't be computed
        case _:
            return None
    tail = size(rest)
    if step != 1 and tail != ONE:
        return None
    made = _sliced(value, position, (start * tail, end * tail), step, extents)
    return None if made is None else (made, [kept])


def _sliced(
    value: Expr, position: int, bounds: tuple[Dim, Dim], step: int, extents: Extents
) -> Expr | None:
    """Return a Slice of one axis; None if a bound can't be computed, or not in the opset."""
    begin, end = (extents.expr(bound) for bound in bounds)
    if begin is None or end is None:
        return None
    is_plain = step == 1 and isinstance(begin, np.ndarray) and isinstance(end, np.ndarray)
    if not is_plain and extents.opset < SLICE_INPUTS_OPSET:
        return None
    return Call("Slice", (value, begin, end, int64(position), int64(step)))


def arranged(
    source: Expr,
    index: Index,
    groups: Groups,
    extents: Extents,
    *,
    whole: Sequence[bool] = (),
    trailing: bool = False,
) -> Expr | None:
    """Return the elements of `source` at `index` as a tensor with one axis for each group.

    A group of which the tensor has no atom becomes an axis of extent 1 (broadcast) unless it is to
    be `whole`; a group of which it has only some is expanded to its full extent. With `trailing`,
    leading axes of extent 1 may be left out, as broadcasting has it. None where it can't be proved.
    """
    space = extents.views.space
    picked = _without_selections(source, list(space.resolve_index(index)), extents)
    if picked is None:
        return None
    value, axes = picked
    groups = [space.resolve(axis) for axis in groups]
    have = [*merged(axes)]
    want = [*merged(groups)]
    if len(set(map(id, have))) != len(have) or any(digit not in want for digit in have):
        return None
    order = [digit for digit in want if digit in have]
    present: list[Axis] = [tuple(digit for digit in axis if digit in have) for axis in groups]
    if order != have:
        runs = [run for axis in _runs(axes, order) for run in axis]
        apart = reshaped(value, axes, runs, extents)
        if apart is None:
            return None
        target = sorted(range(len(runs)), key=lambda i: order.index(runs[i][0]))
        value = Call("Transpose", (apart,), (("perm", tuple(target)),))
        axes = [runs[i] for i in target]
    whole = whole or [False] * len(groups)
    partial = [
        (bool(kept) or full) and len(kept) != len(axis)
        for kept, axis, full in zip(present, groups, whole, strict=True)
    ]
    if not any(partial):
        stands = _without_leading_ones(axes) == _without_leading_ones(present)
        if trailing and stands and len(axes) <= len(groups):
            return value
        return reshaped(value, axes, present, extents)
    return _expanded(value, axes, groups, present, partial, extents)


def in_layout(made: Expr, axes: Groups, ref: Ref, extents: Extents) -> Expr | None:
    """Return a tensor of these axes as the value `ref` has it, repeated where only that varies.

    None where it can't be proved, or the value has elements that the tensor hasn't; the tensor
    itself where it already stands so.
    """
    index = extents.views.space.resolve_index(ref.index)
    if not all(isinstance(digit, Atom) for axis in index for digit in axis):
        return None
    return arranged(made, tuple(axes), index, extents, whole=(True,) * len(index))


def layout_cost(axes: Groups, ref: Ref, extents: Extents) -> int | None:
    """Return how many nodes `in_layout` adds to a tensor of these axes, as `nodes_added` counts.

    0 where it stands as it is, None where it can't be proved.
    """
    made = in_layout(np.zeros(()), axes, ref, extents)
    return None if made is None else nodes_added(made)


def _without_leading_ones(axes: Sequence[Axis]) -> list[Axis]:
    kept = list(axes)
    while kept and not kept[0]:
        kept.pop(0)
    return kept


def _runs(axes: Sequence[Axis], order: list[Digit]) -> list[list[Axis]]:
    """Cut each axis into the longest runs of atoms that stay together in `order`."""
    cut: list[list[Axis]] = []
    for axis in axes:
        parts: list[Axis] = []
        for digit in axis:
            if parts and order.index(parts[-1][-1]) + 1 == order.index(digit):
                parts[-1] = (*parts[-1], digit)
            else:
                parts.append((digit,))
        cut.append(parts)
    return cut


def _expanded(
    value: Expr,
    axes: Sequence[Axis],
    groups: Sequence[Axis],
    present: Sequence[Axis],
    partial: Sequence[bool],
    extents: Extents,
) -> Expr | None:
    """Reshape to one axis for each atom, expand the missing ones, and group."""
    apart: list[Axis] = []
    full: list[Axis] = []
    for axis, kept, incomplete in zip(groups, present, partial, strict=True):
        if incomplete:
            apart.extend((digit,) if digit in kept else () for digit in axis)
            full.extend((digit,) for digit in axis)
        else:
            apart.append(kept)
            full.append(kept)
    sizes = [part for axis in full if (part := extents.expr(size(axis))) is not None]
    narrow = reshaped(value, axes, apart, extents)
    if narrow is None or len(sizes) != len(full):
        return None
    wide = Call("Expand", (narrow, vector(sizes)))
    after = [
        axis if incomplete else kept
        for axis, kept, incomplete in zip(groups, present, partial, strict=True)
    ]
    return reshaped(wide, full, after, extents)
