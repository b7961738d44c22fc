"""Extents that only a run knows, as expressions that read them off tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from onnx_fuse.analysis.algebra.axes import Axis
from onnx_fuse.analysis.algebra.expr import Call, Expr, int64
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.known import all_known
from onnx_fuse.ir.graph import Value

_INTEGER_MIN_OPSET = 12  # from which Min and Max take integers
_RANGE_OPSET = 11


@dataclass(frozen=True)
class Extents:
    """Where an extent can be read at run time: axes of tensors whose symbolic size is known.

    Those of `may_be_empty` are 0 in some runs.
    """

    views: Views
    values: tuple[Value, ...]
    opset: int
    may_be_empty: frozenset[Dim] = frozenset()

    def expr(self, extent: Dim) -> Expr | None:
        """Return an extent as an int64 tensor of shape (1,); None if no tensor's axes give it."""
        return self._expr(self.views.space.known(extent))  # as the tensors' shapes have it

    def _expr(self, extent: Dim) -> Expr | None:
        found = self._read(extent)
        if found is not None:
            return found
        total: Expr | None = None
        for factor, bases in extent.terms():
            parts: list[Expr] | None = all_known(map(self._read, bases))
            if parts is None:
                return None
            if factor != 1 or not parts:
                parts.append(int64(factor))
            term = reduce(lambda left, right: Call("Mul", (left, right)), parts)
            total = term if total is None else Call("Add", (total, term))
        return total

    def _read(self, extent: Dim) -> Expr | None:
        number = extent.as_int()
        if number is not None:
            return int64(number)
        found = self._axis(extent) or self._quotient(extent)
        if found is None and self.opset >= _INTEGER_MIN_OPSET:
            return self._bounded(extent)
        return found

    def _axis(self, extent: Dim) -> Call | None:
        for value in (*self.values, *self._graph_inputs()):
            for axis, known in enumerate(self.views.shapes.shape(value) or ()):
                if known == extent:
                    return Call(
                        "Gather",
                        (Call("Shape", (value,)), int64(axis)),
                        (("axis", 0),),
                    )
        return None

    def _quotient(self, extent: Dim) -> Expr | None:
        """Return an axis divided by a number; no axis is below 0, so Div rounds down, too."""
        arguments = extent.arguments_of("floordiv")
        number = arguments[1].as_int() if arguments else None
        if number is None or number <= 0:
            return None
        whole = self._axis(self.views.space.known(arguments[0]))
        return None if whole is None else Call("Div", (whole, int64(number)))

    def _bounded(self, extent: Dim) -> Expr | None:
        """Return the smaller or larger of two extents, as slices leave it."""
        for name, op_type in (("min", "Min"), ("max", "Max")):
            parts: list[Expr] | None = all_known(map(self._expr, extent.arguments_of(name)))
            if parts:
                return Call(op_type, tuple(parts))
        return None

    def _graph_inputs(self) -> tuple[Value, ...]:
        return tuple(self.values[0].graph.inputs) if self.values else ()

    def is_maybe_empty(self, axis: Axis) -> bool:
        """Return whether the extent of an axis is 0 in some runs."""
        return any(digit.extent in self.may_be_empty for digit in axis)


def positions(extent: Dim, extents: Extents) -> Expr | None:
    """Return 0, 1, 2, ... below an extent, int64; None if no tensor's axes give it."""
    number, limit = extent.as_int(), extents.expr(extent)
    if number is not None:
        return np.arange(number, dtype=np.int64)
    if limit is None:
        return None
    if extents.opset < _RANGE_OPSET:
        found = Call("NonZero", (Call("Expand", (int64(1), limit)),))  # (1, extent)
        return Call("Reshape", (found, int64(-1)))
    scalar = Call("Reshape", (limit, np.zeros(0, dtype=np.int64)))
    return Call("Range", (np.asarray(0), scalar, np.asarray(1)))
