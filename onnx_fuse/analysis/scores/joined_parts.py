"""Scores of which parts are edited apart and joined again: heads with a bias of their own, say.

Each input of a Concat is followed up through its own operators to the scores that all of them are
parts of, in which it must stand where it is joined. What the parts are combined with is then joined
as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto, helper

from onnx_fuse.analysis.algebra.axes import ONE, Index, evaluate, fixed
from onnx_fuse.analysis.algebra.block_shapes import Shape
from onnx_fuse.analysis.algebra.expr import Call, Expr, int64
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import number_of
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.scores.chain import Bias, Placed, Select
from onnx_fuse.analysis.scores.edits import extents_of, part_of
from onnx_fuse.analysis.scores.leads import Leads
from onnx_fuse.ir.graph import Node, Value

# Which inputs of an operator may be the part that it edits.
_MAIN: dict[str, tuple[int, ...]] = {"Add": (0, 1), "Sub": (0,), "Where": (1, 2)}


@dataclass(frozen=True)
class JoinedParts:
    """What applies to the scores `whole`, outermost first, and where they are read."""

    operations: Sequence[Select | Bias]
    whole: Ref


@dataclass
class _Part:
    """One part: what is added to it, and before that where it is shown, each beside the part.

    extent: its length along the joined axis. added: with True what is taken off. shown: with True
    what hides. views: where the views above the operators have it from, nearest first.
    """

    extent: int
    added: list[tuple[Value, bool]] = field(default_factory=list)
    shown: list[tuple[Value, bool]] = field(default_factory=list)
    views: list[Ref] = field(default_factory=list)


def joined_parts(node: Node, ref: Ref, leads: Leads, views: Views) -> JoinedParts | None:
    """Return what a Concat's parts are combined with; None if it joins anything else.

    All that is hidden must become the same number, and the joined axis have a known extent.
    """
    axis = int(node.attr("axis", 1)) % len(ref.index)
    read = _Reading(views, leads, ref, axis)
    found = read.parts()
    if found is None or len(read.fills) > 1:
        return None
    parts, whole = found
    operations: list[Select | Bias] = []
    if any(part.shown for part in parts):
        condition = read.joined(parts, whole, [part.shown for part in parts], True)
        operations.append(Select(condition, Placed.number(read.fills.pop())))
    if any(part.added for part in parts):
        operations.append(Bias(read.joined(parts, whole, [part.added for part in parts], 0.0)))
    return JoinedParts(operations, Ref(whole, ref.index))


@dataclass
class _Reading:
    """Follows the parts that one Concat joins along `axis`; `fills` are the numbers that hide."""

    views: Views
    leads: Leads
    ref: Ref
    axis: int
    fills: set[float] = field(default_factory=set)

    def parts(self) -> tuple[list[_Part], Value] | None:
        """Return the parts, and what they are parts of."""
        shape = self.views.shapes.shape(self.ref.value)
        extent = None if shape is None else shape[self.axis].as_int()
        if extent is None:
            return None
        index = list(self.ref.index)
        index[self.axis] = fixed(np.arange(extent), Dim.of(extent))
        branches = self.views.concat_parts(Ref(self.ref.value, tuple(index)))
        parts: list[_Part] = []
        for lanes, branch in branches or ():
            part = self._part(branch, _Part(int(np.count_nonzero(lanes))))
            if part is None:
                return None
            parts.append(part)
        for first in parts[0].views if parts else ():
            if all(
                any(at.value is first.value and self._stays(at, lanes) for at in part.views)
                for part, (lanes, _) in zip(parts, branches or (), strict=True)
            ):
                return parts, first.value
        return None

    def _part(self, ref: Ref, part: _Part) -> _Part | None:
        """Read the operators of one part, up to the views that cut it out."""
        shape, index = self.views.shapes.shape(ref.value), ref.index
        while True:
            part.views = list(self.views.chain(ref))
            at = next((at for at in part.views if self._main(at.value.producer) is not None), None)
            node = None if at is None else at.value.producer
            main = self._main(node)
            # Beside a part that is cut out further on stand more numbers than beside this one.
            if at is None or node is None or main is None or not self._is_like(at, shape, index):
                return part
            source = node.inputs[main]
            up = None if source is None else self.views.broadcast(at.index, source)
            if up is None or not self._combine(node, main, part):
                return None
            ref = up

    def _is_like(self, at: Ref, shape: Shape | None, index: Index) -> bool:
        space = self.views.space
        same = space.match(at.resolve(space).index, space.resolve_index(index)) is not None
        return same and self.views.shapes.shape(at.value) == shape

    def _main(self, node: Node | None) -> int | None:
        """Return which input of an operator holds the scores that it combines with something."""
        candidates = () if node is None else _MAIN.get(node.op, ())
        values = [None if node is None else node.inputs[place] for place in candidates]
        ranks = [self.leads(value) for value in values]
        return candidates[ranks.index(max(ranks))] if any(ranks) else None

    def _combine(self, node: Node, main: int, part: _Part) -> bool:
        """Note what an operator combines a part with; False if that can't be joined."""
        if node.op != "Where":
            other = node.inputs[1 - main]
            if other is None:
                return False
            part.added.append((other, node.op == "Sub"))
            return self._stands_beside(other)
        condition, fill = node.inputs[0], node.inputs[3 - main]
        number = None if fill is None else number_of(fill, self.views.shapes)
        if condition is None or number is None or part.added:
            return False
        self.fills.add(number)
        part.shown.append((condition, main == 2))
        return self._stands_beside(condition)

    def _stands_beside(self, value: Value) -> bool:
        shape = self.views.shapes.shape(value)
        return shape is not None and len(shape) <= len(self.ref.index)

    def _stays(self, at: Ref, lanes: np.ndarray) -> bool:
        """Return whether a part is read where it is joined."""
        space = self.views.space
        at = at.resolve(space)
        if len(at.index) != len(self.ref.index):
            return False
        if space.match(self._others(at.index), self._others(self.ref.index)) is None:
            return False
        try:
            places = np.broadcast_to(evaluate(at.index[self.axis], {}), lanes.shape)
        except (KeyError, ValueError):
            return False
        return np.array_equal(places[lanes], np.flatnonzero(lanes))

    def _others(self, index: Index) -> Index:
        return self.views.space.resolve_index((*index[: self.axis], *index[self.axis + 1 :]))

    def joined(
        self,
        parts: Sequence[_Part],
        whole: Value,
        combined: Sequence[Sequence[tuple[Value, bool]]],
        start: float | bool,
    ) -> Placed:
        """Return what all parts are combined with, of extent 1 along what none of it varies in."""
        rank = len(self.ref.index)
        varies = {
            rank - len(shape) + position
            for values in combined
            for value, _ in values
            for shape in [self.views.shapes.shape(value) or ()]
            for position, extent in enumerate(shape)
            if extent != ONE
        }
        known = extents_of(whole, self.views.shapes)
        tensors: list[Expr] = []
        for part, values in zip(parts, combined, strict=True):
            extents = [
                int64(part.extent)
                if axis == self.axis
                else part_of(known, axis, axis + 1)
                if axis in varies
                else int64(1)
                for axis in range(rank)
            ]
            made: Expr = Call("Expand", (np.asarray(start, self._dtype(start)), _vector(extents)))
            for value, is_opposite in values:
                made = _combined(made, value, is_opposite, is_mask=start is True)
            tensors.append(made)
        index = tuple(
            axis if position == self.axis or position in varies else ()
            for position, axis in enumerate(self.ref.index)
        )
        return Placed(Call("Concat", tuple(tensors), (("axis", self.axis),)), index)

    def _dtype(self, number: float | bool) -> np.dtype[np.generic]:
        known = self.views.shapes.dtype(self.ref.value) or TensorProto.FLOAT
        return np.dtype(np.bool_) if number is True else helper.tensor_dtype_to_np_dtype(known)


def _combined(made: Expr, value: Value, is_opposite: bool, *, is_mask: bool) -> Expr:
    if is_mask:
        return Call("And", (made, Call("Not", (value,)) if is_opposite else value))
    return Call("Sub" if is_opposite else "Add", (made, value))


def _vector(parts: Sequence[Expr]) -> Expr:
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate([np.asarray(part) for part in parts])
    return Call("Concat", tuple(parts), (("axis", 0),))
