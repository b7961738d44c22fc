"""One more column beside the scores, joined by Concat or Pad, which the softmax alone sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_fuse.analysis.algebra.axes import ONE
from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.expr import Expr
from onnx_fuse.analysis.algebra.nodes import joined_axis, padding_along_axis
from onnx_fuse.analysis.scores.leads import Leads
from onnx_fuse.ir.graph import Node, Value

JOINS = ("Concat", "Pad")


@dataclass(frozen=True)
class SinkColumn:
    """What a node joins along an axis: the scores, which begin at `start`, and one column."""

    axis: int
    scores: Value
    column: Expr
    start: int


def sink_column(node: Node, rank: int, leads: Leads, shapes: Facts) -> SinkColumn | None:
    """Return what a node joins to the scores; None if it is not one column."""
    if node.op == "Concat" and len(node.inputs) == 2:
        return _concat(node, rank, leads, shapes)
    return _pad(node, shapes) if node.op == "Pad" else None


def _concat(node: Node, rank: int, leads: Leads, shapes: Facts) -> SinkColumn | None:
    axis = joined_axis(node, rank)
    ranks = [leads(value) for value in node.inputs]
    main = 0 if ranks[0] > ranks[1] else 1
    scores, column = node.inputs[main], node.inputs[1 - main]
    width = None if column is None else shapes.shape(column)
    if ranks[0] == ranks[1] or scores is None or column is None or width is None:
        return None
    return SinkColumn(axis, scores, column, main) if width[axis] == ONE else None


def _pad(node: Node, shapes: Facts) -> SinkColumn | None:
    """Match a column of one number before or behind the scores."""
    scores, padding = node.inputs[0], padding_along_axis(node, shapes)
    if scores is None or padding is None or {padding.before, padding.behind} != {0, 1}:
        return None
    column = np.asarray(padding.fill, dtype=np.float32)
    return SinkColumn(padding.axis, scores, column, padding.before)
