"""Scores of which parts are taken out, edited and written back, in a graph of unknown extents.

That a part comes back to its own place is proved in the axis algebra: what is read at the places to
which it is written must be the part itself, but for the edits. Which scores are written anew is
then told by the graph's own operators, on a canvas of the scores' shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from onnx_fuse.analysis.algebra.axes import Axis
from onnx_fuse.analysis.algebra.expr import Call, Expr
from onnx_fuse.analysis.algebra.nodes import is_same
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import number_of
from onnx_fuse.analysis.algebra.view_rules import SAME
from onnx_fuse.analysis.algebra.views import CARRIERS, Views
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.scores.chain import Bias, Operation, Placed, Select
from onnx_fuse.analysis.scores.edits import SCATTERS, dtype_of, extents_of, extents_written
from onnx_fuse.ir.graph import Node, Value

_COPIED = CARRIERS - SAME - {"Concat"}  # what is written again, on flags
_DEEPEST = 24  # operators above each other between a result and the scores


def edited_parts_of(node: Node, ref: Ref, views: Views) -> list[Operation] | None:
    """Return what a node does to the scores whose own parts it writes; None if it moves any.

    Only one number may be written, if in several steps, or else numbers may be added.
    """
    source = node.input(0)
    whole = None if source is None else views.ref(source)
    if whole is None:
        return None
    canvas = _Canvas(views, views.origin(whole).value)
    made = canvas.of(ref.value)
    if made is None or len(canvas.numbers) + bool(canvas.mains) > 1:
        return None
    if canvas.mains:
        added = _Canvas(views, canvas.source, adds=True).of(ref.value)
        return None if added is None else [Bias(Placed(added, ref.index))]
    kept = Placed(made, ref.index)
    return [Select(kept, Placed.number(number)) for number in canvas.numbers]


@dataclass
class _Canvas:
    """Computes what is made of `source` from True in its place, and False for what is written.

    With `adds` it is made of zeros, to which the graph's own numbers are added. numbers: those that
    are written. mains: which input of a sum is made of `source`.
    """

    views: Views
    source: Value
    adds: bool = False
    numbers: dict[float, None] = field(default_factory=dict)
    mains: dict[Node, int] = field(default_factory=dict)

    def of(self, value: Value, deepest: int = _DEEPEST) -> Expr | None:
        """Return the value's canvas; None where it is not made of the source's parts alone."""
        shapes = self.views.shapes
        if value is self.source:
            dtype = dtype_of(value, shapes) if self.adds else np.bool_
            blank = np.asarray(not self.adds, dtype=dtype)
            return Call("Expand", (blank, extents_of(value, shapes)))
        node = value.producer
        if node is None or not deepest or len(node.outputs) != 1:
            return None
        if node.op in ("Add", "Sub"):
            return self._sum(node, deepest)
        first = node.inputs[0]
        inner = None if first is None else self.of(first, deepest - 1)
        if inner is None or is_same(node, shapes):
            return inner
        if node.op in SCATTERS:
            return self._edited(node, inner, deepest)
        if node.op not in _COPIED or None in node.inputs:
            return None
        others = tuple(given for given in node.inputs[1:] if given is not None)
        return Call(node.op, (inner, *others), _attributes(node))

    def _sum(self, node: Node, deepest: int) -> Expr | None:
        """Return the canvas of what something is added to, or taken off, in its own type."""
        shapes = self.views.shapes
        for main in (0, 1) if node.op == "Add" else (0,):
            part, other, total = node.inputs[main], node.inputs[1 - main], node.outputs[0]
            inner = None if part is None else self.of(part, deepest - 1)
            if part is None or other is None or total is None or inner is None:
                continue
            if shapes.shape(part) is None or shapes.shape(part) != shapes.shape(total):
                return None
            if shapes.dtype(part) != shapes.dtype(self.source):
                return None
            self.mains[node] = main
            if not self.adds:
                return inner
            return Call(node.op, (inner, other) if main == 0 else (other, inner))
        return None

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
            written = None if extents is None else Call("Expand", (np.asarray(False), extents))
        else:
            written = self.of(updates, deepest - 1)
            written = written if self._comes_back(node, indices, updates) else None
        if written is None:
            return None
        return Call(node.op, (inner, indices, written), _attributes(node))

    def _comes_back(self, node: Node, indices: Value, updates: Value) -> bool:
        """Return whether a ScatterND writes to each place what is made of the element there."""
        data, part = node.inputs[0], self.views.ref(updates)
        if node.op != "ScatterND" or data is None or part is None or not part.index:
            return False
        extents = self.views.shapes.shape(data)
        places = self._places(indices, part.index[0], extents[0]) if extents else None
        if places is None:
            return False
        there = Ref(data, (places, *part.index[1:]))
        return self.views.same(there, self._unedited(part))

    def _places(self, indices: Value, row: Axis, extent: Dim) -> Axis | None:
        """Return where along the first axis a row is written, by places counted from 0.

        They are counted by a Range, or are constants in even steps.
        """
        shape = self.views.shapes.shape(indices)
        if shape is None or len(shape) != 2 or shape[1].as_int() != 1:
            return None
        data = self.views.shapes.constant(indices)
        if data is not None and data.size:
            first, second = (int(data[min(at, data.size - 1), 0]) for at in (0, 1))
            by = max(second - first, 1)
            even = first >= 0 and (data[:, 0] == first + by * np.arange(data.size)).all()
            return self.views.space.ranged(row, Dim.of(first), by, extent) if even else None
        counted = self.views.origin(Ref(indices, (row, ())))
        made = counted.value.producer
        if made is None or made.op != "Range":
            return None
        start, _, step = (number_of(value, self.views.shapes) for value in made.inputs)
        return counted.index[0] if (start, step) == (0.0, 1.0) else None

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
