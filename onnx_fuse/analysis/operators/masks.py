"""Masks of attention operators: tensors, lengths of padding, and windows around the diagonal."""

from __future__ import annotations

from functools import reduce

import numpy as np
from onnx import TensorProto

from onnx_fuse.analysis.algebra.axes import Axis, size
from onnx_fuse.analysis.algebra.expr import SLICE_INPUTS_OPSET, Call, Expr, int64
from onnx_fuse.analysis.algebra.extents import Extents, positions
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.operators.lifted import Atoms, shape_of
from onnx_fuse.analysis.scores.bounds import highest_added
from onnx_fuse.analysis.scores.chain import Bias, Chain, Placed, Select
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Code

_COLUMN = np.array([-1, 1], dtype=np.int64)  # a vector's elements one below the other


class Masks:
    """Adds the masks of one operator to the chain of its scores."""

    def __init__(self, node: Node, atoms: Atoms, views: Views, chain: Chain) -> None:
        self.node, self.atoms, self.views, self.chain = node, atoms, views, chain
        # From the graph's inputs, if they tell: then masks are the same for every block.
        self.extents = Extents(views, (*node.graph.inputs, *node.given), node.graph.opset)

    def add(self, mask: Value, *, lowest_hides: bool = False) -> None:
        """Add a mask of at most four axes: a condition, or numbers to add.

        lowest_hides: whether the lowest number of the mask's type says what minus infinity does.
        """
        shape = shape_of(self.node, mask, self.views)
        tail = self.atoms.scores[len(self.atoms.scores) - len(shape) :]
        index = tuple(
            () if extent == Dim.of(1) else axis for axis, extent in zip(tail, shape, strict=True)
        )
        if self.views.shapes.dtype(mask) == TensorProto.BOOL:
            self.show(mask, *index)
        else:
            added = self.infinite_for_lowest(mask) if lowest_hides else mask
            self.chain.operations.append(Bias(Placed(added, index)))

    def infinite_for_lowest(self, mask: Value, where: Expr | None = None) -> Expr:
        """Return the numbers of a mask, with minus infinity for the lowest of their type.

        where: the condition under which alone it is so.
        """
        numbers = np.float16 if self.views.shapes.dtype(mask) == TensorProto.FLOAT16 else np.float32
        lowest = np.asarray(np.finfo(numbers).min)
        if highest_added((Bias(Placed(mask, ())),), self.views.shapes) < -lowest:
            return mask
        is_lowest = Call("Equal", (mask, lowest))
        if where is not None:
            is_lowest = Call("And", (is_lowest, where))
        return Call("Where", (is_lowest, np.asarray(-np.inf, numbers), mask))

    def show(self, visible: Expr, *index: Axis) -> None:
        """Hide all but what a condition shows: the other scores become -inf."""
        self.chain.operations.append(Select(Placed(visible, index), Placed.number(-np.inf)))

    def add_where_hidden(self, visible: Expr, filler: float, *index: Axis) -> None:
        """Add a number to the scores that a condition does not show."""
        added = Call("Where", (visible, _float(0.0), _float(filler)))
        self.chain.operations.append(Bias(Placed(added, index)))

    def extent(self, extent: Dim, what: str) -> Expr:
        """Return an extent as int64, (1,). Raises: Declined."""
        found = self.extents.expr(extent)
        if found is None:
            raise Declined(Code.SHAPE_UNKNOWN, self.node, value=self.node.name, what=what)
        return found

    def positions(self, axis: Axis, what: str) -> Expr:
        """Return 0, 1, 2, ... along an axis, int64. Raises: Declined."""
        found = positions(size(axis), self.extents)
        if found is None:
            raise Declined(Code.SHAPE_UNKNOWN, self.node, value=self.node.name, what=what)
        return found

    def first_column(self) -> Expr:
        """Return the column of the first row's own position, behind the past. Raises: Declined."""
        past = self.atoms.past
        return int64(0) if past is None else self.extent(size(past), "the length of the past")

    def below(self, ends: Expr) -> Call:
        """Return which columns are below the end of each batch, (batch, columns)."""
        columns = self.positions(self.atoms.columns, "the number of columns")
        return Call("Less", (columns, Call("Reshape", (_int64(ends), _COLUMN))))

    def by_batch(self, vectors: Expr, part: int = 0) -> Call:
        """Return one of the vectors (batch,) that stand one after the other. Raises: Declined."""
        batch = size(self.atoms.batch)
        start, end = (self.extent(batch * Dim.of(at), "the batch") for at in (part, part + 1))
        if self.extents.opset < SLICE_INPUTS_OPSET:
            places = Call("Add", (self.positions(self.atoms.batch, "the batch"), start))
            return Call("Gather", (vectors, places), (("axis", 0),))
        return Call("Slice", (vectors, start, end, int64(0)))

    def second_of_two(self, lengths: Value) -> Call:
        """Return the second of two vectors (batch,), or zeros if `lengths` are not two of them."""
        batch = size(self.atoms.batch)
        one, two = (self.extent(batch * Dim.of(count), "the batch") for count in (1, 2))
        zero = np.zeros((), dtype=np.int32)
        long_enough = Call("Concat", (lengths, Call("Expand", (zero, one))), (("axis", 0),))
        is_two = Call("Equal", (Call("Shape", (lengths,)), two))
        return Call("Where", (is_two, self.by_batch(long_enough, 1), zero))

    def window(self, offset: Expr, left: int, right: int) -> Expr | None:
        """Return which columns are at most `left` before and `right` behind a row's own.

        A row's own column is `offset` behind its number; a negative bound is none. The result is
        (..., rows, columns) with the leading axes of `offset`, which broadcasts to (rows, 1).
        """
        columns = self.positions(self.atoms.columns, "the number of columns")
        rows = Call("Reshape", (self.positions(self.atoms.rows, "the number of rows"), _COLUMN))
        own = Call("Add", (rows, offset))
        found: list[Call] = []
        if right >= 0:
            found.append(Call("Less", (columns, Call("Add", (own, int64(right + 1))))))
        if left >= 0:
            first = Call("Add", (own, int64(-left - 1)))
            found.append(Call("Less", (first, columns)))
        return reduce(lambda a, b: Call("And", (a, b)), found) if found else None


def _float(number: float) -> np.ndarray:
    return np.asarray(number, dtype=np.float32)


def _int64(expr: Expr) -> Expr:
    return Call("Cast", (expr,), (("to", int(TensorProto.INT64)),))
