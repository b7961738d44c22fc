"""Scores of which parts are edited apart, and written back or joined again.

That a part comes back to its own place is proved in the axis algebra: what is read at the places to
which it is written, or where it is joined, must be the part itself, but for the edits. What these
do is then told by the graph's own operators, on a canvas of the scores' shape: first which scores
are written anew, then by which numbers, and what is added to the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from onnx_fuse.analysis.algebra.arrange import arranged
from onnx_fuse.analysis.algebra.axes import Axis, Fixed, Index, evaluate, fixed, merged
from onnx_fuse.analysis.algebra.expr import SCATTERS, Call, Expr
from onnx_fuse.analysis.algebra.extents import Extents
from onnx_fuse.analysis.algebra.nodes import is_same, joined_axis
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import number_of
from onnx_fuse.analysis.algebra.view_rules import SAME
from onnx_fuse.analysis.algebra.views import CARRIERS, Views
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.scores.chain import Bias, Operation, Placed, Select
from onnx_fuse.analysis.scores.edits import (
    dtype_of,
    extents_of,
    extents_written,
    placed,
)
from onnx_fuse.analysis.scores.leads import Leads, sources
from onnx_fuse.analysis.search import reachable
from onnx_fuse.analysis.splice import spliced
from onnx_fuse.ir.graph import Node, Value

_CUTS = frozenset({"Split", "SequenceAt"})  # of which each result is a part
_COPIED = CARRIERS - SAME - _CUTS - {"Concat"}  # what is written again, on a canvas
_DEEPEST = 24  # operators above each other between a result and the scores


@dataclass(frozen=True)
class EditedParts:
    """Scores as they were before the edits, and what these did to them, the last one first."""

    before: Ref
    operations: list[Operation]


def edited_parts_of(node: Node, ref: Ref, views: Views, leads: Leads) -> EditedParts | None:
    """Return what a node, and those above it, do to the scores whose own parts they bring back.

    None if one moves any.
    """
    befores = _written_to(node, ref, views) if node.op in SCATTERS else _cut(ref, views, leads)
    for before, source in befores:
        operations = _edits(ref, source, views)
        if operations is not None:
            return EditedParts(Ref(before, ref.index), operations)
    return None


def _written_to(node: Node, ref: Ref, views: Views) -> Iterator[tuple[Value, Value]]:
    """Yield what a node writes parts to, and of what that is a view.

    A part may have been read before an earlier edit, with which this one is then read at once.
    """
    before = node.input(0)
    while before is not None:
        source = views.origin(Ref(before, ref.index)).value
        yield before, source
        below = source.producer
        is_edit = below is not None and below.op in SCATTERS and source is before
        before = below.input(0) if below is not None and is_edit else None


def _cut(ref: Ref, views: Views, leads: Leads) -> Iterator[tuple[Value, Value]]:
    """Yield twice what the parts of joined scores may be cut out of, nearest first."""
    shape = views.shapes.shape(ref.value)

    def above(value: Value) -> list[Value | None]:
        return [source for source in sources(value) if leads(source)]

    for value in islice(reachable(ref.value, above, steps=_DEEPEST), 1, None):
        if views.shapes.shape(value) == shape:
            yield value, value


def _edits(ref: Ref, source: Value, views: Views) -> list[Operation] | None:
    """Return what makes `ref` of `source`, if each part of that stays in its place."""
    node, flags = ref.value.producer, _Canvas(views, source)
    kept = flags.of(ref.value)
    if node is None or kept is None:
        return None

    def on_canvas(made: Expr) -> Placed:
        return placed(made, ref, views.shapes, node.graph.opset)

    if len(flags.numbers) <= 1 and not flags.has_sums:
        return [Select(on_canvas(kept), Placed.number(number)) for number in flags.numbers]
    content = _Canvas(views, source, holds_numbers=True).of(ref.value)
    if content is None:
        return None
    if not flags.numbers:
        return [Bias(on_canvas(content))]
    written = Select(on_canvas(kept), on_canvas(content))
    if not flags.has_sums:
        return [written]
    zero = np.asarray(0, dtype=dtype_of(source, views.shapes))
    return [written, Bias(on_canvas(Call("Where", (kept, content, zero))))]


@dataclass
class _Canvas:
    """Computes what is made of `source` from True in its place, and False for what is written.

    holds_numbers: it is made of zeros, to which the graph's own numbers are added, and of those
    that are written. numbers: these, in the order found. mains: which input of a sum or a choice is
    made of `source`.
    """

    views: Views
    source: Value
    holds_numbers: bool = False
    numbers: dict[float, None] = field(default_factory=dict)
    mains: dict[Node, int] = field(default_factory=dict)

    @property
    def has_sums(self) -> bool:
        """Whether anything is added to the source's parts."""
        return any(node.op != "Where" for node in self.mains)

    def of(self, value: Value, deepest: int = _DEEPEST) -> Expr | None:
        """Return the value's canvas; None where it is not made of the source's parts alone."""
        shapes = self.views.shapes
        if value is self.source:
            blank = self._written(0.0) if self.holds_numbers else np.asarray(True)
            return Call("Expand", (blank, extents_of(value, shapes)))
        node = value.producer
        if node is None or not deepest:
            return None
        if node.op in _CUTS:
            return self._part(value, deepest)
        if node.op in ("Add", "Sub"):
            return self._sum(node, deepest)
        if node.op == "Where":
            return self._choice(node, deepest)
        if node.op == "Concat":
            return self._joined(node, deepest)
        first = node.input(0)
        inner = None if first is None else self.of(first, deepest - 1)
        if inner is None or is_same(node, shapes):
            return inner
        if node.op in SCATTERS:
            return self._edited(node, inner, deepest)
        if node.op not in _COPIED or None in node.inputs:
            return None
        others = tuple(given for given in node.inputs[1:] if given is not None)
        return Call(node.op, (inner, *others), _attributes(node))

    def _written(self, number: float) -> np.ndarray:
        """Return a canvas' element where a number was written."""
        if not self.holds_numbers:
            return np.asarray(False)
        return np.asarray(number, dtype=dtype_of(self.source, self.views.shapes))

    def _main(self, node: Node, main: int, deepest: int) -> Expr | None:
        """Return the canvas of an input of a pointwise operator that has all of the result's axes.

        As for whole scores, two names that meet are taken for equal.
        """
        part, made = node.inputs[main], node.outputs[0]
        inner = None if part is None else self.of(part, deepest - 1)
        whole = None if made is None else self.views.ref(made)
        if part is None or inner is None or whole is None:
            return None
        below = self.views.broadcast(whole.index, part)
        if below is None or self.views.space.resolve_index(whole.index) != below.index:
            return None
        self.mains[node] = main
        return inner

    def _sum(self, node: Node, deepest: int) -> Expr | None:
        """Return the canvas of what something is added to, or taken off, in its own type."""
        for main in (0, 1) if node.op == "Add" else (0,):
            other, inner = node.inputs[1 - main], self._main(node, main, deepest)
            if other is None or inner is None:
                continue
            if self.views.shapes.dtype(other) != self.views.shapes.dtype(self.source):
                return None
            if not self.holds_numbers:
                return inner
            return Call(node.op, (inner, other) if main == 0 else (other, inner))
        return None

    def _choice(self, node: Node, deepest: int) -> Expr | None:
        """Return the canvas of a part or, where a condition says so, a number."""
        condition = node.inputs[0]
        for main in (1, 2):
            other = node.inputs[3 - main]
            number = None if other is None else number_of(other, self.views.shapes)
            inner = None if number is None else self._main(node, main, deepest)
            if condition is None or number is None or inner is None:
                continue
            self.numbers[number] = None
            stays = condition if main == 1 else Call("Not", (condition,))
            if not self.holds_numbers:
                return Call("And", (inner, stays))
            return Call("Where", (stays, inner, self._written(number)))
        return None

    def _part(self, value: Value, deepest: int) -> Expr | None:
        """Return the canvas of one of several parts that a node cuts."""
        own = self.views.ref(value)
        above = None if own is None else self.views.pull(own)
        inner = None if above is None else self.of(above.value, deepest - 1)
        if own is None or above is None or inner is None:
            return None
        extents = Extents(self.views, (self.source,), self.source.graph.opset)
        whole = (True,) * len(own.index)
        return arranged(inner, above.index, own.index, extents, whole=whole)

    def _joined(self, node: Node, deepest: int) -> Expr | None:
        """Return the canvas of parts that are joined where they stand in the source."""
        views, shape = self.views, self.views.shapes.shape(node.made[0])
        whole = views.ref(self.source)
        if whole is None or shape is None or shape != views.shapes.shape(self.source):
            return None
        axis, start = joined_axis(node, len(shape)), Dim.of(0)
        parts: list[Expr] = []
        for value in node.given:
            part, own = self.of(value, deepest - 1), views.shapes.shape(value)
            if part is None or own is None:
                return None
            atom = views.space.atom(own[axis], "part")
            there = views.space.ranged(atom, start, 1, shape[axis])
            read = self._unedited(Ref(value, spliced(whole.index, axis, atom)))
            if not views.same(read, Ref(self.source, spliced(whole.index, axis, there))):
                return None
            parts.append(part)
            start = start + own[axis]
        return Call("Concat", tuple(parts), (("axis", axis),))

    def _edited(self, node: Node, inner: Expr, deepest: int) -> Expr | None:
        indices, updates = node.input(1), node.input(2)
        if indices is None or updates is None or str(node.attr("reduction", "none")) != "none":
            return None
        shapes = self.views.shapes
        number = number_of(updates, shapes)
        written: Expr | None = None
        if number is not None:
            self.numbers[number] = None
            extents = extents_written(node, inner, indices, shapes)
            written = None if extents is None else Call("Expand", (self._written(number), extents))
        else:
            written = self.of(updates, deepest - 1)
            written = written if self._comes_back(node, indices, updates) else None
        if written is None:
            return None
        return Call(node.op, (inner, indices, written), _attributes(node))

    def _comes_back(self, node: Node, indices: Value, updates: Value) -> bool:
        """Return whether a node writes to each place what is made of the element there."""
        data, part = node.inputs[0], self.views.ref(updates)
        if data is None or part is None:
            return False
        places = self._places(node, indices, part.index)
        if places is None:
            return False
        return self.views.same(self._unedited(Ref(data, places)), self._unedited(part))

    def _places(self, node: Node, indices: Value, written: Index) -> Index | None:
        """Return where a node writes each element of `written`; None if it can't be proved."""
        data = node.inputs[0]
        shape, extents = self.views.shapes.shape(indices), data and self.views.shapes.shape(data)
        if not shape or not extents:
            return None
        if node.op != "ScatterND":
            at = int(node.attr("axis", 0)) % len(extents)
            place = self._place(Ref(indices, written), extents[at])
            own = [
                self.views.space.ranged(axis, Dim.of(0), 1, extent)
                for axis, extent in zip(written, extents, strict=True)
            ]
            return None if place is None else spliced(own, at, place)
        depth = shape[-1].as_int()
        if not depth or depth > len(extents):
            return None
        rows = len(shape) - 1
        places = [
            self._place(Ref(indices, (*written[:rows], fixed(axis, shape[-1]))), extents[axis])
            for axis in range(depth)
        ]
        known: list[Axis] | None = all_known(places)
        return None if known is None else (*known, *written[rows:])

    def _place(self, number: Ref, extent: Dim) -> Axis | None:
        """Return the place on an axis that one of the numbers chooses.

        These are counted by a Range, or are constants.
        """
        counted = self.views.origin(number)
        data = self.views.shapes.constant(counted.value)
        if data is not None:
            return self._known_place(data, counted.index, extent)
        made = counted.value.producer
        if made is None or made.op != "Range":
            return None
        start, _, step = (number_of(value, self.views.shapes) for value in made.inputs)
        return counted.index[0] if (start, step) == (0.0, 1.0) else None

    def _known_place(self, data: np.ndarray, index: Index, extent: Dim) -> Axis | None:
        """Return the place that constants choose."""
        if not data.size:
            return None
        for at in reversed(range(data.ndim)):
            if all(isinstance(digit, Fixed) for digit in index[at]):
                chosen = data.take(evaluate(index[at], {}), axis=at)
            else:
                chosen = data.take(0, axis=at)
                if (data != np.expand_dims(chosen, at)).any():
                    continue
            data, index = chosen, spliced(index, at)
        return self.views.space.picked(merged(index), data.astype(np.int64), extent)

    def _unedited(self, ref: Ref) -> Ref:
        """Return where elements come from that no edit has written."""
        while True:
            ref = self.views.origin(ref)
            node = ref.value.producer
            if node is None or ref.value is self.source:
                return ref
            main = 0 if node.op in SCATTERS else self.mains.get(node)
            data = None if main is None else node.inputs[main]
            if data is None:
                return ref
            ref = Ref(data, ref.index)


def _attributes(node: Node) -> tuple[tuple[str, object], ...]:
    return tuple((name, node.attr(name)) for name in node.attributes)
