"""One more column beside the scores, joined by Concat or Pad, which the softmax alone sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_fuse.analysis.algebra.axes import ONE
from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.expr import Expr
from onnx_fuse.analysis.dims.dim import numbers_of
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
    axis = int(node.attr("axis", 1)) % rank
    ranks = [leads(value) for value in node.inputs]
    main = 0 if ranks[0] > ranks[1] else 1
    scores, column = node.inputs[main], node.inputs[1 - main]
    width = None if column is None else shapes.shape(column)
    if ranks[0] == ranks[1] or scores is None or column is None or width is None:
        return None
    return SinkColumn(axis, scores, column, main) if width[axis] == ONE else None


def _pad(node: Node, shapes: Facts) -> SinkColumn | None:
    """Match a column of one number before or behind the scores."""
    scores, number = node.inputs[0], _padding(node, shapes)
    amounts = _amounts(node, shapes)
    if (
        scores is None
        or number is None
        or amounts is None
        or node.attr("mode", "constant") != ("constant")
    ):
        return None
    padded = np.flatnonzero(amounts)
    if len(padded) != 1 or amounts[padded[0]] != 1:
        return None
    behind, place = divmod(int(padded[0]), len(amounts) // 2)
    column = np.asarray(number, dtype=np.float32)
    return SinkColumn(_axes(node, len(amounts) // 2, shapes)[place], scores, column, 1 - behind)


def _padding(node: Node, shapes: Facts) -> float | None:
    given = node.input(2)
    return float(node.attr("value", 0.0)) if given is None else shapes.scalar(given)


def _amounts(node: Node, shapes: Facts) -> Sequence[int] | None:
    """Return how much stands before each axis, then how much behind each."""
    given = node.input(1)
    if given is None:
        pads = node.attr("pads")
        return None if pads is None else [int(number) for number in pads]
    content = shapes.content(given)
    return None if content is None else numbers_of(content.ravel())


def _axes(node: Node, count: int, shapes: Facts) -> list[int]:
    given = node.input(3)
    axes = None if given is None else shapes.constant(given)
    return list(range(count)) if axes is None else [int(axis) for axis in axes]
