"""ScatterNDs that write numbered places of one axis, along all of the others.

The places are constants; how many the others are only a run may know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_fuse.analysis.algebra.axes import ONE
from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.nodes import made_by
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.ir.graph import Node, Value


@dataclass(frozen=True)
class Scatter:
    """A tensor of which `updates` are written to the `places` of an axis, each at most once."""

    data: Value
    updates: Value
    axis: int
    places: np.ndarray

    @property
    def run(self) -> tuple[int, int] | None:
        """From where to before where the places are, if they are so in order."""
        is_run = self.places[0] >= 0 and (np.diff(self.places) == 1).all()
        return (int(self.places[0]), int(self.places[-1]) + 1) if is_run else None


def scatter_of(node: Node | None, shapes: Facts) -> Scatter | None:
    """Return what a node writes where; None if it isn't such a ScatterND."""
    if node is None or node.op != "ScatterND" or node.attr("reduction", "none") != "none":
        return None
    data, indices, updates = node.inputs
    if data is None or indices is None or updates is None:
        return None
    places, shape = shapes.constant(indices), shapes.shape(data)
    if shape is None:
        return None
    found = _joined(indices, shape, shapes) if places is None else _places_along(places, shape)
    return None if found is None else Scatter(data, updates, *found)


def _joined(indices: Value, shape: Sequence[Dim], shapes: Facts) -> tuple[int, np.ndarray] | None:
    """As `_places_along`, where indices are joined of a number for each axis.

    Each but one counts all places of its own axis.
    """
    node, own = indices.producer, shapes.shape(indices)
    columns = [] if node is None or node.op != "Concat" else node.given
    if own is None or len(own) != len(columns) + 1 or len(columns) > len(shape):
        return None
    found: tuple[int, np.ndarray] | None = None
    for axis, column in enumerate(columns):
        numbers = _numbers_along(axis, column, len(columns), shapes)
        if numbers is None:
            return None
        if own[axis] == shape[axis] and _counts(numbers, shape[axis], shapes):
            continue
        table = shapes.constant(numbers)
        if found is not None or table is None or own[axis] != Dim.of(table.size):
            return None
        if not table.size or table.min() < 0 or len({*table.tolist()}) != table.size:
            return None
        found = axis, table
    return found


def _numbers_along(axis: int, column: Value, rank: int, shapes: Facts) -> Value | None:
    """Return the vector that a column of indices, of axes (rank, then 1), repeats along others."""
    shape = shapes.shape(column)
    below = _source(column, "Unsqueeze", "Reshape")
    if shape is None or below is None or len(shape) != rank + 1 or shape[-1] != ONE:
        return None
    if shapes.shape(below) != shape[:-1]:
        return None
    narrow = _source(below, "Expand") or below
    extents = shapes.shape(narrow)
    place = -1 if extents is None else axis - rank + len(extents)
    if extents is None or place < 0:
        return None
    if any(extent != ONE for at, extent in enumerate(extents) if at != place):
        return None
    vector: Value | None = narrow
    while vector is not None and len(shapes.shape(vector) or ()) != 1:
        vector = _source(vector, "Unsqueeze", "Reshape")
    return vector


def _source(value: Value, *op_types: str) -> Value | None:
    """Return the first input of the node of one of these types that makes a value."""
    node = made_by(value, *op_types)
    return None if node is None else node.input(0)


def _counts(numbers: Value, extent: Dim, shapes: Facts) -> bool:
    """Return whether a vector is 0, 1, 2, ... below an extent."""
    node, shape = numbers.producer, shapes.shape(numbers)
    if shape is None or shape[0] != extent:
        return False
    data = shapes.constant(numbers)
    if data is not None:
        return bool((data == np.arange(data.size)).all())
    if node is None or node.op != "Range":
        return False
    start, step = (shapes.constant(value) for value in node.given[::2])
    return start is not None and step is not None and (int(start), int(step)) == (0, 1)


def _places_along(places: np.ndarray, shape: Sequence[Dim]) -> tuple[int, np.ndarray] | None:
    """Return the axis of which indices choose places, and these; all of the others are chosen."""
    counts = places.shape[:-1]
    if not places.size or places.shape[-1] != len(counts):
        return None
    tables = []
    for axis in range(len(counts)):  # of places that vary along this axis alone
        rows = np.moveaxis(places[..., axis], axis, 0)
        tables.append(rows.reshape(len(rows), -1)[:, 0])
    if (np.stack(np.meshgrid(*tables, indexing="ij"), axis=-1) != places).any():
        return None
    cut = [
        axis
        for axis, (table, extent) in enumerate(zip(tables, shape, strict=False))
        if extent != Dim.of(len(table)) or (table != np.arange(len(table))).any()
    ]
    if len(cut) != 1 or len({*tables[cut[0]].tolist()}) != counts[cut[0]]:
        return None
    return cut[0], tables[cut[0]]
