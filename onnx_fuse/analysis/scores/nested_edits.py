"""Scores of which some are written anew in several steps, each in a part of the one around it.

A part that is read, edited and written back is proved to be in its own place by sending the places
themselves the same way. An edit writes a number or adds one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnx_fuse.analysis.algebra.axes import Axis
from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.expr import Call, fold
from onnx_fuse.analysis.algebra.nodes import is_same
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import number_of
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import numbers_of
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.scores.chain import Bias, Operation, Placed, Select
from onnx_fuse.analysis.scores.edits import LARGEST_TABLE, SCATTERS, written_at
from onnx_fuse.ir.graph import Node, Value

_DEEPEST = 24  # operators above each other between a result and what it was made of
_MOVES = frozenset(
    {
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Slice",
        "Gather",
        "GatherND",
        "Expand",
    }
)
_WRITTEN = -1  # in the place of a number that was written


@dataclass(frozen=True)
class NestedEdit:
    """Scores as they were before the edits, and what these did to them, the last one first."""

    before: Ref
    operations: list[Operation]


def nested_edit_of(node: Node, ref: Ref, views: Views) -> NestedEdit | None:
    """Return what a node does to the scores whose own parts it writes; None if it moves any.

    All extents and places must be known. A part may have been read before an earlier edit, with
    which this one is then read at once.
    """
    for is_last in (True, False):
        before = _before(node, ref, views, past_others=not is_last)
        operations = None if before is None else _operations(before, ref, views.shapes)
        if before is not None and operations is not None:
            return NestedEdit(before, operations)
    return None


def _before(node: Node, ref: Ref, views: Views, *, past_others: bool) -> Ref | None:
    """Return the scores from which a node's data were made by moves, perhaps past other edits."""
    data = node.inputs[0]
    below = None if data is None else Ref(data, ref.index)
    found = below
    while below is not None:
        found = below
        made = below.value.producer
        if made is None or not made.inputs or made.inputs[0] is None:
            break
        if past_others and made.op in SCATTERS:
            below = Ref(made.inputs[0], below.index)
        else:
            is_moved = _is_move(made) or is_same(made, views.shapes)
            below = views.pull(below) if is_moved else None
    return found


def _operations(before: Ref, ref: Ref, shapes: Facts) -> list[Operation] | None:
    """Return what leads from the scores before to `ref`; None if any comes to another place."""
    extents = numbers_of(shapes.shape(before.value))
    if extents is None or math.prod(extents) > LARGEST_TABLE:
        return None
    table = np.arange(math.prod(extents), dtype=np.float32).reshape(extents)
    own = _Numbers(before.value, table, shapes, marks=True, edits=False).of(ref.value)
    moved = _Numbers(before.value, table, shapes, marks=True).of(ref.value)
    zeros = np.zeros_like(table)
    numbers = _Numbers(before.value, zeros, shapes, marks=False).of(ref.value)
    if own is None or moved is None or numbers is None:
        return None
    kept = moved == own
    if not (kept | (moved == _WRITTEN)).all():
        return None
    added = np.where(kept, numbers, np.float32(0))
    selects = [] if kept.all() else [Select(_placed(kept, ref), _placed(numbers, ref))]
    return [*selects, *([Bias(_placed(added, ref))] if added.any() else [])]


def _is_move(node: Node) -> bool:
    return node.op in _MOVES


def _placed(data: np.ndarray, ref: Ref) -> Placed:
    """Return a table at the scores' index, short where it doesn't vary."""
    index: list[Axis] = list(ref.index)
    for position in range(data.ndim):
        first = data.take([0], axis=position)
        if np.array_equal(np.broadcast_to(first, data.shape), data):
            data, index[position] = first, ()
    return Placed(data, tuple(index))


class _Numbers:
    """Computes values from given contents of one, or with `marks` marks what isn't made of it.

    Without `edits` they are computed as if nothing had been written.
    """

    def __init__(
        self, source: Value, data: np.ndarray, shapes: Facts, *, marks: bool, edits: bool = True
    ) -> None:
        self._shapes = shapes
        self._marks = marks
        self._edits = edits
        self._known: dict[Value, np.ndarray | None] = {source: data}

    def of(self, value: Value, deepest: int = _DEEPEST) -> np.ndarray | None:
        """Return the numbers of a value; None where they aren't known."""
        if value not in self._known:
            data = self._constant(value)
            if data is not None:
                data = np.full(data.shape, _WRITTEN, np.float32) if self._marks else data
            self._known[value] = (
                data if data is not None or not deepest else self._made(value, deepest)
            )
        return self._known[value]

    def _made(self, value: Value, deepest: int) -> np.ndarray | None:
        node = value.producer
        if node is None or len(node.outputs) != 1:
            return None
        if node.op in ("Add", "Sub"):
            return self._sum(node, deepest)
        data = None if node.inputs[0] is None else self.of(node.inputs[0], deepest - 1)
        if data is None:
            return None
        if is_same(node, self._shapes) or (node.op in SCATTERS and not self._edits):
            return data
        if node.op in SCATTERS:
            return self._edited(node, data, deepest)
        if not _is_move(node):
            return None
        others = all_known(map(self._constant, node.inputs[1:]))
        if others is None:
            return None
        attributes = tuple((name, node.attr(name)) for name in node.attributes)
        call = Call(node.op, (data, *others), attributes)
        return fold(call, node.graph.opset)[0]

    def _sum(self, node: Node, deepest: int) -> np.ndarray | None:
        """Return the numbers of a sum with a constant: a place stays what it is."""
        constants = [self._constant(value) for value in node.inputs]
        main = 0 if node.op == "Sub" or constants[0] is None else 1
        added, scores = constants[1 - main], node.inputs[main]
        data = None if scores is None or added is None else self.of(scores, deepest - 1)
        if data is None or added is None:
            return None
        if self._marks:
            return np.broadcast_to(data, np.broadcast_shapes(data.shape, added.shape))
        return np.asarray(data - added if node.op == "Sub" else data + added)

    def _edited(self, node: Node, data: np.ndarray, deepest: int) -> np.ndarray | None:
        updates = node.input(2)
        indices = self._constant(node.input(1))
        written = None if updates is None else self.of(updates, deepest - 1)
        plain = str(node.attr("reduction", "none")) == "none"
        if indices is None or written is None or not plain:
            return None
        data = data.copy()
        data[written_at(node, indices)] = written
        return data

    def _constant(self, value: Value | None) -> np.ndarray | None:
        """Return a constant's numbers, or the number of which all of a value are."""
        if value is None:
            return None
        data = self._shapes.constant(value)
        if data is not None:
            return np.asarray(data)
        number = number_of(value, self._shapes)
        extents = numbers_of(self._shapes.shape(value))
        if number is None or extents is None:
            return None
        return np.full(extents, number, dtype=np.float32)
