"""The extents that a block's operands have by what the graph alone says of its tensors.

Nothing that the block was read with enters here: these extents are what that is checked by.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from onnx_fuse.analysis.algebra.axes import ONE
from onnx_fuse.analysis.algebra.block_shapes import BlockShapes
from onnx_fuse.analysis.algebra.expr import Call, Expr
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.dims.dim import Dim, product
from onnx_fuse.analysis.known import all_known
from onnx_fuse.ir.graph import Value


class Extent(NamedTuple):
    """An extent as `above / below`, a quotient without a rest in every run that succeeds."""

    above: Dim
    below: Dim = ONE


class OperandExtents:
    """The extents of expressions over the graph's values.

    `space` learns what is equal if the nodes run that an expression is made of: a Reshape keeps the
    number of elements.
    """

    def __init__(self, shapes: BlockShapes, space: Space) -> None:
        self._shapes = shapes
        self._space = space

    def of(self, expr: Expr) -> Sequence[Extent | None]:
        """Return the extents of an expression, None for one that nothing tells.

        No extents at all if not even their number is told.
        """
        return self._shape(expr) or ()

    def equate(self, first: Extent, second: Extent) -> None:
        """Note that two extents are equal."""
        self._space.equate(first.above * second.below, second.above * first.below)

    def _shape(self, expr: Expr) -> Sequence[Extent | None] | None:
        if isinstance(expr, Value):
            shape = self._shapes.apart(expr)
            return None if shape is None else [Extent(extent) for extent in shape]
        inner = self._shape(expr.inputs[0]) if isinstance(expr, Call) else None
        if not isinstance(expr, Call) or inner is None:
            return None
        attributes = dict(expr.attributes)
        match expr.op_type:
            case "Transpose":
                return [inner[axis] for axis in attributes["perm"]]
            case "Concat":
                joined = [self._shape(part) for part in expr.inputs]
                return self._joined(joined, attributes["axis"])
            case "Unsqueeze":
                axes = attributes["axes"] if attributes else np.asarray(expr.inputs[1])
                left, rank = iter(inner), len(inner) + len(axes)
                return [Extent(ONE) if at in axes else next(left) for at in range(rank)]
            case "Reshape":
                return self._reshaped(inner, expr.inputs[1], zero_is_meant=bool(attributes))
        return None

    def _joined(
        self, shapes: Sequence[Sequence[Extent | None] | None], axis: int
    ) -> Sequence[Extent | None] | None:
        """Return the extents of a Concat, all of whose inputs have equal ones but for the axis."""
        told = [shape for shape in shapes if shape is not None]
        if not told:
            return None
        first, *others = told
        for other in others:
            for at, (one, another) in enumerate(zip(first, other, strict=False)):
                if at != axis and one is not None and another is not None:
                    self.equate(one, another)
        lengths = all_known(None if shape is None else shape[axis] for shape in shapes)
        length = None if lengths is None else reduce(_sum, lengths)
        return [length if at == axis else extent for at, extent in enumerate(first)]

    def _reshaped(
        self, inner: Sequence[Extent | None], target: Expr, *, zero_is_meant: bool
    ) -> Sequence[Extent | None]:
        """Return the extents of a Reshape of `inner`, which keeps the number of elements."""
        extents: list[Extent | None] = []
        at_open: int | None = None
        for part in target.inputs if isinstance(target, Call) else (target,):
            for number in part.tolist() if isinstance(part, np.ndarray) else (None,):
                if number == 0 and not zero_is_meant:
                    extents.append(inner[len(extents)])
                    continue
                if number == -1:
                    at_open = len(extents)
                extents.append(self._asked(part) if number is None else Extent(Dim.of(number)))
        whole = _count(inner)
        others = _count([extent for at, extent in enumerate(extents) if at != at_open])
        if at_open is not None:
            extents[at_open] = _quotient(whole, others)
        elif whole is not None and others is not None:
            self.equate(whole, others)
        return extents

    def _asked(self, expr: Expr) -> Extent | None:
        """Return an extent that is asked of a tensor's shape."""
        match expr:
            case Call("Gather", (Call("Shape", (Value() as value,)), np.ndarray() as axis)):
                shape = self._shapes.apart(value)
                return None if shape is None else Extent(shape[int(axis.item())])
        return None


def _sum(first: Extent, second: Extent) -> Extent:
    above = first.above * second.below + second.above * first.below
    return Extent(above, first.below * second.below)


def _count(extents: Sequence[Extent | None]) -> Extent | None:
    """Return the number of elements; None if an extent isn't told."""
    known = all_known(extents)
    if known is None:
        return None
    return Extent(product(one.above for one in known), product(one.below for one in known))


def _quotient(whole: Extent | None, part: Extent | None) -> Extent | None:
    if whole is None or part is None:
        return None
    return Extent(whole.above * part.below, whole.below * part.above)
