"""Scores of which some are written anew in several steps, each in a part of the one around it.

A part that is read, edited and written back is proved to be in its own place by sending the places
themselves the same way.
"""

from __future__ import annotations

import math

import numpy as np

from onnx_fuse.analysis.algebra.axes import Axis
from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.expr import Call, fold
from onnx_fuse.analysis.algebra.nodes import is_same
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import number_of
from onnx_fuse.analysis.dims.dim import numbers_of
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.scores.chain import Placed, Select
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


def nested_edit_of(node: Node, ref: Ref, shapes: Facts) -> Select | None:
    """Return what a node does to the scores whose own parts it writes; None if it moves any.

    All extents and places must be known.
    """
    source = node.inputs[0]
    if source is None:
        return None
    origin = _origin(source, shapes)
    extents = numbers_of(shapes.shape(origin))
    if extents is None or math.prod(extents) > LARGEST_TABLE:
        return None
    table = np.arange(math.prod(extents), dtype=np.float32).reshape(extents)
    places = _Numbers(origin, table, shapes, marks=True)
    own, moved = places.of(source), places.of(ref.value)
    numbers = _Numbers(origin, np.zeros_like(table), shapes, marks=False).of(ref.value)
    if own is None or moved is None or numbers is None or moved.shape != own.shape:
        return None
    kept = moved == own
    if not (kept | (moved == _WRITTEN)).all():
        return None
    return Select(_placed(kept, ref), _placed(numbers, ref))


def _origin(value: Value, shapes: Facts) -> Value:
    """Return the outermost value from which only moves and changes of precision lead to another."""
    while True:
        node = value.producer
        if node is None or not node.inputs or node.inputs[0] is None:
            return value
        if not (_is_move(node) or is_same(node, shapes)):
            return value
        value = node.inputs[0]


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
    """Computes values from given contents of one, or with `marks` marks what isn't made of it."""

    def __init__(self, source: Value, data: np.ndarray, shapes: Facts, *, marks: bool) -> None:
        self._shapes = shapes
        self._marks = marks
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
        data = None if node.inputs[0] is None else self.of(node.inputs[0], deepest - 1)
        if data is None:
            return None
        if is_same(node, self._shapes):
            return data
        if node.op in SCATTERS:
            updates = node.input(2)
            indices = self._constant(node.input(1))
            written = None if updates is None else self.of(updates, deepest - 1)
            plain = str(node.attr("reduction", "none")) == "none"
            if indices is None or written is None or not plain:
                return None
            data = data.copy()
            data[written_at(node, indices)] = written
            return data
        if not _is_move(node):
            return None
        others = all_known(map(self._constant, node.inputs[1:]))
        if others is None:
            return None
        attributes = tuple((name, node.attr(name)) for name in node.attributes)
        call = Call(node.op, (data, *others), attributes)
        return fold(call, node.graph.opset)[0]

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
