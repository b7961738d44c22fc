"""Formulas that exporters write out node by node, whatever views and casts stand in between."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx_fuse.analysis.algebra.axes import Axis, Index, size
from onnx_fuse.analysis.algebra.nodes import keeps_axes, made_by, reduced_axes
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import limits_of, number_of
from onnx_fuse.analysis.algebra.views import Views, carried
from onnx_fuse.ir.graph import Node, Value

# Pointwise operators that take any number of inputs; they are read where they have two.
_VARIADIC = frozenset({"Max", "Mean", "Min", "Sum"})
_LARGEST_FLOAT = 3e38  # at or above it, an upper bound is none
_ROUNDING = 2.0**-23  # of the inverse of a number in float32, and of what float64 makes of it
INVERSES = ("Reciprocal", "Div", "Pow")  # of which one makes 1 / x


@dataclass(frozen=True)
class Made:
    """Elements of a node's result."""

    node: Node
    index: Index


@dataclass(frozen=True)
class Reduced:
    """Elements of what a node reduces: those of one result stand where only `over` differs."""

    node: Node
    source: Ref
    over: Axis


@dataclass(frozen=True)
class Bounded:
    """Elements that are those of `source`, but none is below `low` or above `high`."""

    source: Ref
    low: float
    high: float


@dataclass(frozen=True)
class Formula:
    """Reads a formula upwards from its result: each step is a node and the elements it takes."""

    views: Views

    def leads_to(self, value: Value | None, *op_types: str) -> bool:
        """Return whether one of these makes a value, by a look that proves nothing about places."""
        while value is not None:
            if made_by(value, *op_types) is not None:
                return True
            chosen = self._chosen(value.producer)
            value = next(iter(carried(value)), None) if chosen is None else chosen
        return False

    def made(self, ref: Ref | None, *op_types: str) -> Made | None:
        """Return the node of one of these operators that makes the elements; None if none does.

        A choice by a constant that is the same everywhere is looked through.
        """
        if ref is None or not self.leads_to(ref.value, *op_types):
            return None
        at = self.views.origin(ref)
        node = made_by(at.value, *op_types)
        if node is None:
            chosen = self._chosen(at.value.producer)
            below = None if chosen is None else self.views.broadcast(at.index, chosen)
            return self.made(below, *op_types)
        if node.op in _VARIADIC and len(node.inputs) != 2:
            return None
        return Made(node, at.index)

    def _chosen(self, node: Node | None) -> Value | None:
        """Return the input that a Where gives as a whole, as a constant has it; None if both."""
        if node is None or node.op != "Where":
            return None
        condition, shown, other = node.given
        data = self.views.shapes.constant(condition)
        if data is None or not data.size:
            return None
        return shown if data.all() else None if data.any() else other

    def operand(self, made: Made | None, position: int) -> Ref | None:
        """Return the elements that a pointwise operator takes from one of its inputs."""
        value = None if made is None else made.node.input(position)
        return None if made is None or value is None else self.views.broadcast(made.index, value)

    def beside(self, made: Made | None, position: int) -> Ref | None:
        """As `operand`, for what stands beside other elements: see `Views.beside`."""
        value = None if made is None else made.node.input(position)
        return None if made is None or value is None else self.views.beside(made.index, value)

    def number(self, made: Made | None, position: int) -> float | None:
        """Return an input that is a constant number, or consists of one."""
        value = None if made is None else made.node.input(position)
        return None if value is None else number_of(value, self.views.shapes)

    def with_number(self, made: Made | None) -> tuple[Ref, float] | None:
        """Return (x, number) where an operator combines the two, in either order."""
        for variable, constant in ((0, 1), (1, 0)):
            number = self.number(made, constant)
            ref = None if number is None else self.operand(made, variable)
            if ref is not None and number is not None:
                return ref, number
        return None

    def bounded(self, ref: Ref | None) -> Bounded | None:
        """Return what a Clip, Max, Min or Relu bounds by numbers alone; None if none does."""
        made = self.made(ref, "Clip", "Max", "Min", "Relu")
        if made is None:
            return None
        for main in (0, 1) if made.node.op in _VARIADIC else (0,):
            low, high = limits_of(made.node, main, self.views.shapes)
            source = None if math.isnan(low) or math.isnan(high) else self.operand(made, main)
            if source is not None:
                return Bounded(source, low, high)
        return None

    def at_least(self, ref: Ref | None) -> tuple[Ref | None, float]:
        """Return x and a number where the elements are max(x, number).

        They themselves and minus infinity where nothing bounds them so.
        """
        bounded = self.bounded(ref)
        if bounded is None or bounded.high < _LARGEST_FLOAT:
            return ref, -math.inf
        return bounded.source, bounded.low

    def difference(self, ref: Ref | None) -> tuple[Ref, Ref] | None:
        """Return from what elements something is taken off, and what: a - b, -b + a, or a + -b."""
        made = self.made(ref, "Sub", "Add")
        first, second = self.operand(made, 0), self.operand(made, 1)
        if made is None or first is None or second is None:
            return None
        if made.node.op == "Sub":
            return first, second
        for kept, other in ((first, second), (second, first)):
            taken = self.operand(self.made(other, "Neg"), 0)
            if taken is not None:
                return kept, taken
        return None

    def inverse(self, ref: Ref | None) -> Ref | None:
        """Return x where the elements are 1 / x: Reciprocal, a quotient or a power."""
        made = self.made(ref, *INVERSES)
        match None if made is None else made.node.op:
            case "Reciprocal":
                return self.operand(made, 0)
            case "Div" if self.number(made, 0) == 1.0:
                return self.operand(made, 1)
            case "Pow" if self.number(made, 1) == -1.0:
                return self.operand(made, 0)
        return None

    def divided(self, made: Made | None, main: int) -> Ref | None:
        """Return by what a Div, or a Mul by an inverse, divides the input `main`."""
        if made is None or made.node.op not in ("Div", "Mul"):
            return None
        other = self.operand(made, 1 - main)
        if made.node.op == "Mul":
            return self.inverse(other)
        return other if main == 0 else None

    def reduced(self, ref: Ref | None, *op_types: str) -> Reduced | None:
        """Return what a Reduce operator of one of these types makes the elements from."""
        made = self.made(ref, *op_types)
        source = None if made is None else made.node.inputs[0]
        shape = None if source is None else self.views.shapes.shape(source)
        if made is None or source is None or shape is None:
            return None
        axes = reduced_axes(made.node, self.views.shapes, len(shape))
        if axes is None:
            return None
        kept = list(made.index)
        if keeps_axes(made.node):
            kept = [axis for position, axis in enumerate(kept) if position not in axes]
        over: Axis = ()
        for axis in axes:
            fresh = self.views.space.atom(shape[axis], "reduced")
            kept.insert(axis, fresh)
            over += fresh
        return Reduced(made.node, Ref(source, tuple(kept)), over)

    def mean(self, ref: Ref | None, *sums: str) -> Reduced | None:
        """Return what elements are the mean of: by ReduceMean, or a sum over how many there are.

        sums: the operators that may make the sum, ReduceSum if there are none.
        """
        whole = self.reduced(ref, "ReduceMean")
        return whole or self._over_count(ref, *sums or ("ReduceSum",))

    def _over_count(self, ref: Ref | None, *sums: str) -> Reduced | None:
        """Return what elements are a sum of, divided by the number of its terms."""
        made = self.made(ref, "Mul", "Div")
        is_product = made is not None and made.node.op == "Mul"
        for main in (0, 1) if is_product else (0,):
            number = self.number(made, 1 - main)
            total = None if number is None else self.reduced(self.operand(made, main), *sums)
            count = None if total is None else size(self.views.space.resolve(total.over)).as_int()
            if number is None or not count:
                continue
            times = number * count if is_product else number / count
            if abs(times - 1.0) <= _ROUNDING:
                return total
        return None

    def largest(self, ref: Ref | None) -> Reduced | None:
        """Return what elements are the maxima of; minus infinity bounds none of them."""
        source, low = self.at_least(ref)
        return self.reduced(source if low == -math.inf else ref, "ReduceMax")

    def runs_over(self, over: Axis, source: Ref, ref: Ref) -> Axis | None:
        """Return the atoms of `ref` over which a reduction of `source` runs, there `over`.

        None where `source` isn't the same tensor as `ref`, row by row.
        """
        above, own = self.views.origin(source), self.views.origin(ref)
        if above.value is not own.value:
            return None
        return self.views.space.match(above.index, own.index, over)

    def is_over(self, reduced: Reduced | None, ref: Ref, axis: Axis) -> bool:
        """Return whether a reduction is of the same tensor as `ref`, over this axis of it."""
        over = None if reduced is None else self.runs_over(reduced.over, reduced.source, ref)
        if over is None:
            return False
        return self.views.space.atoms_of(over) == self.views.space.atoms_of(axis)
