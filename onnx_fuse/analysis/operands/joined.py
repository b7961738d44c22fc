"""A tensor as parts that stand one after the other along one axis.

A Concat joins its inputs so, and a ScatterND that writes one run of positions anew joins what
stands before them, what it writes, and what stands behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from onnx_fuse.analysis.algebra.axes import Axis, Digit, Fixed, Index, Range, size
from onnx_fuse.analysis.algebra.nodes import joined_axis
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.scatters import scatter_of
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import Dim, total
from onnx_fuse.analysis.dims.order import place_on
from onnx_fuse.analysis.splice import spliced
from onnx_fuse.ir.graph import Node, Value


@dataclass(frozen=True)
class Part:
    """One of the parts: where its elements are, and the axis of its own positions among them."""

    ref: Ref
    positions: Axis


@dataclass(frozen=True)
class Joined:
    """The parts in order, none empty; `positions` is the axis along which the whole is joined.

    What isn't joined is one part, and no axis is named.
    """

    parts: tuple[Part, ...]
    positions: Axis

    def in_place(self, reads: Sequence[tuple[int, Index]], space: Space) -> list[Index] | None:
        """Return what the parts read of one tensor, by the positions of the whole.

        `reads` are numbers of parts, and indices of that tensor. None unless each part stands in
        the tensor where it stands in the whole, and both have as many positions.
        """
        if not self.positions:
            return [index for _, index in reads]
        parts = [space.resolve(part.positions) for part in self.parts]
        extents = [space.known(size(part)) for part in parts]
        starts = [total(extents[:number]) for number in range(len(parts))]
        own = [
            space.ranged(part, start, 1, total(extents))
            for part, start in zip(parts, starts, strict=True)
        ]
        read = [
            (own[number], tuple(_bounded(space.resolve(axis), space) for axis in index))
            for number, index in reads
        ]
        whole = space.resolve(self.positions)
        found: list[list[Index]] = []
        for place in range(len(read[0][1])):
            axes = [_replaced(index[place], digits, whole, space) for digits, index in read]
            moved = [
                spliced(index, place, axis)
                for axis, (_, index) in zip(axes, read, strict=True)
                if axis is not None
            ]
            if len(moved) == len(read):
                found.append(moved)
        return found[0] if len(found) == 1 else None


def _bounded(axis: Axis, space: Space) -> Axis:
    """Return an axis whose ranges begin on it: one that would begin behind its end is empty."""
    digits: list[Digit] = []
    for digit in axis:
        start = place_on(digit.extent, digit.start) if isinstance(digit, Range) else None
        if isinstance(digit, Range) and start is not None:
            digits.append(replace(digit, start=start))
        else:
            digits.append(digit)
    return space.resolve(tuple(digits))


def _replaced(axis: Axis, digits: Axis, by: Axis, space: Space) -> Axis | None:
    """Return an axis with others in the place of some of its digits; None if it hasn't those."""
    for start in range(len(axis) - len(digits) + 1):
        stop = start + len(digits)
        if space.match((digits,), (axis[start:stop],)) is not None:
            return (*axis[:start], *by, *axis[stop:])
    return None


def joined_of(ref: Ref, views: Views) -> Joined:
    """Return the parts of which elements are joined along an axis of positions.

    An axis at known numbers (the lanes of a head, say) is none of positions.
    """
    node = ref.value.producer
    reader = None if node is None else _READERS.get(node.op)
    found = None if node is None or reader is None else reader(node, ref, views)
    whole = Joined((Part(ref, ()),), ())
    if found is None:
        return whole
    axis, runs = found
    positions = views.space.resolve(ref.index[axis])
    if any(isinstance(digit, Fixed) for digit in positions):
        return whole
    parts: list[Part] = []
    for run in runs:
        if run.length == Dim.of(0):
            continue
        own = views.space.atom(run.length, "position")
        place = views.space.ranged(own, run.start, 1, run.extent)
        index = spliced(ref.index, axis, place)
        parts.append(Part(Ref(run.value, index), own))
    return Joined(tuple(parts), positions)


class _Run(NamedTuple):
    """Positions of a value that has `extent` of them."""

    value: Value
    start: Dim
    length: Dim
    extent: Dim


def _inputs(node: Node, ref: Ref, views: Views) -> tuple[int, list[_Run]] | None:
    """Return the axis of a Concat, and its inputs."""
    axis = joined_axis(node, len(ref.index))
    runs: list[_Run] = []
    for value in node.inputs:
        shape = None if value is None else views.shapes.shape(value)
        if value is None or shape is None:
            return None
        runs.append(_Run(value, Dim.of(0), shape[axis], shape[axis]))
    return axis, runs


def _written(node: Node, ref: Ref, views: Views) -> tuple[int, list[_Run]] | None:
    """Return the axis along which a ScatterND writes one run of positions, and what it joins."""
    written = scatter_of(node, views.shapes)
    run = None if written is None else written.run
    shape = None if written is None else views.shapes.shape(written.data)
    if written is None or run is None or shape is None:
        return None
    extent, (start, stop) = shape[written.axis], map(Dim.of, run)
    return written.axis, [
        _Run(written.data, Dim.of(0), start, extent),
        _Run(written.updates, Dim.of(0), stop - start, stop - start),
        _Run(written.data, stop, extent - stop, extent),
    ]


_READERS = {"Concat": _inputs, "ScatterND": _written}
