"""ScatterNDs by constant indices that write places of one axis, along all of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_fuse.analysis.algebra.block_shapes import Facts
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
    found = None if places is None or shape is None else _places_along(places, shape)
    return None if found is None else Scatter(data, updates, *found)


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
