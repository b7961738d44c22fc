"""A value as a sum of products of one tensor's elements and tables, followed lane by lane."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace

import numpy as np

from onnx_fuse.analysis.algebra.axes import (
    Fixed,
    Index,
    atoms,
    fixed,
    index_atoms,
    lanes_at,
    size,
    with_lanes_merged,
)
from onnx_fuse.analysis.algebra.contraction import plain_product_of
from onnx_fuse.analysis.algebra.linear import gathered
from onnx_fuse.analysis.algebra.nodes import is_float_cast
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.operands.lane_parts import lane_parts
from onnx_fuse.analysis.operands.rope_operator import ROTATIONS, rope_of_operator
from onnx_fuse.analysis.scores.chain import Placed
from onnx_fuse.ir.graph import Node, Value

_PAIR = 2


@dataclass(frozen=True)
class Coefficient:
    """For the lanes in `inside`: sign * product of the factors. Vectors are (lanes,)."""

    inside: np.ndarray
    sign: np.ndarray
    factors: tuple[Placed, ...] = ()

    def times(self, sign: float | np.ndarray) -> Coefficient:
        """Return the coefficient times a number, or one for each lane."""
        return replace(self, sign=self.sign * sign)

    def within(self, lanes: np.ndarray) -> Coefficient:
        """Return the coefficient for those of its lanes that are in `lanes` too."""
        return replace(self, inside=self.inside & lanes)


@dataclass(frozen=True)
class Term:
    """coefficient * source[index]."""

    index: Index
    coefficient: Coefficient


@dataclass(frozen=True)
class Region:
    """The values between a rotation's result and one candidate for its source."""

    views: Views
    base: Value
    reaching: Set[Value]  # those that depend on the base

    def terms(self, ref: Ref, coefficient: Coefficient) -> list[Term] | None:
        """Return coefficient * `ref` as a sum of products of base and tables, or None."""
        if ref.value is self.base:
            return [Term(ref.index, coefficient)]
        node = ref.value.producer
        if node is None or ref.value not in self.reaching:
            return None
        match node.op:
            case "Neg" | "Cast" | "CastLike":
                source = node.inputs[0]
                exact = node.op == "Neg" or is_float_cast(node, self.views.shapes)
                if source is None or not exact:
                    return None
                below = Ref(source, ref.index)
                return self.terms(below, coefficient.times(-1.0 if node.op == "Neg" else 1.0))
            case "Add" | "Sub":
                return self._sum(node, ref, coefficient)
            case "Mul":
                return self._product(node, ref, coefficient)
            case "Concat" | "Pad" | "ScatterND":
                return self._joined(ref, coefficient)
            case op if op in ROTATIONS:
                return self._turned(node, ref, coefficient)
        pulled = self.views.pull(ref)
        if pulled is not None:
            return self.terms(pulled, coefficient)
        return self._permuted(node, ref, coefficient) or self._mixed(node, ref, coefficient)

    def _sum(self, node: Node, ref: Ref, coefficient: Coefficient) -> list[Term] | None:
        found: list[Term] = []
        signs = (1.0, -1.0 if node.op == "Sub" else 1.0)
        for value, sign in zip(node.inputs, signs, strict=True):
            assert value is not None
            below = self.views.broadcast(ref.index, value)
            part = None if below is None else self.terms(below, coefficient.times(sign))
            if part is None:
                return None
            found.extend(part)
        return found

    def _product(self, node: Node, ref: Ref, coefficient: Coefficient) -> list[Term] | None:
        first, second = node.inputs
        assert first is not None
        assert second is not None
        if (first in self.reaching) == (second in self.reaching):
            return None
        variable, table = (first, second) if first in self.reaching else (second, first)
        below = self.views.broadcast(ref.index, variable)
        at = self.views.beside(ref.index, table)
        if below is None or at is None:
            return None
        factors = (*coefficient.factors, Placed.of(at))
        return self.terms(below, replace(coefficient, factors=factors))

    def _joined(self, ref: Ref, coefficient: Coefficient) -> list[Term] | None:
        """Return what is joined of parts, each of which is read by some of the lanes."""
        parts = lane_parts(self.views, ref)
        if parts is None:
            pulled = self.views.pull(ref)
            return None if pulled is None else self.terms(pulled, coefficient)
        found: list[Term] = []
        for lanes, below in parts:
            own = coefficient.within(lanes)
            if not own.inside.any():
                continue
            part = self.terms(below, own)
            if part is None:
                return None
            found.extend(part)
        return found

    def _turned(self, node: Node, ref: Ref, coefficient: Coefficient) -> list[Term] | None:
        """Return what a RotaryEmbedding makes of the lanes: themselves, and what it crosses in."""
        *heads, lanes = with_lanes_merged(self.views.space.resolve(ref.index[-1])) or ((),)
        if not isinstance(lanes, Fixed) or not lanes.index.ndim:
            return None
        depth = self.views.space.atom(lanes.extent, "depth")
        whole = Ref(ref.value, (*ref.index[:-1], (*heads, *depth)))
        rope = rope_of_operator(node, whole, depth, self.views)
        if rope is None:
            return None
        (span,), at = rope.spans, lanes.index
        rotated = rope.rotated[at]
        first = int(np.argmax(rope.rotated))
        cos, sin = (
            tuple(Placed(table.expr, lanes_at(table.index, at)) for table in side.factors[first])
            for side in (span.turn.straight, span.turn.crossed)
        )
        crossed = coefficient.times(span.turn.crossed.sign[at])
        found: list[Term] = []
        for lane, own, factors in (
            (at, coefficient.within(~rotated), ()),
            (at, coefficient.within(rotated), cos),
            (rope.pair[at], crossed.within(rotated), sin),
        ):
            if not own.inside.any():
                continue
            below = Ref(rope.source.value, (*ref.index[:-1], (*heads, *fixed(lane, lanes.extent))))
            more = replace(own, factors=(*own.factors, *factors))
            part = self.terms(below, more)
            if part is None:
                return None
            found.extend(part)
        return found

    def _mixed(self, node: Node, ref: Ref, coefficient: Coefficient) -> list[Term] | None:
        """A product of pairs of lanes with a table of matrices, as the sum that it stands for."""
        contraction = plain_product_of(node, self.views.shapes)
        if contraction is None:
            return None
        known = [value in self.reaching for value in contraction.factors]
        own = contraction if known[0] else contraction.swapped()
        operands = own.pull(self.views, ref)
        if all(known) or len(own.summed) != 1 or operands is None:
            return None
        variable, table = operands
        (axis,) = own.summed_axes(variable.index)
        if size(axis) != _PAIR:
            return None
        found: list[Term] = []
        for number in range(_PAIR):
            at = fixed(number, Dim.of(_PAIR))
            below, beside = (
                tuple(at if other == axis else other for other in side.index) for side in operands
            )
            factors = (*coefficient.factors, Placed(table.value, beside))
            part = self.terms(Ref(variable.value, below), replace(coefficient, factors=factors))
            if part is None:
                return None
            found.extend(part)
        return found

    def _permuted(self, node: Node, ref: Ref, coefficient: Coefficient) -> list[Term] | None:
        """A product with a constant that has at most one number in each column."""
        contraction = plain_product_of(node, self.views.shapes)
        if contraction is None:
            return None
        if len(contraction.summed) != 1 or not self.views.shapes.is_constant(contraction.right):
            return None
        operands = contraction.pull(self.views, ref)
        if operands is None:
            return None
        source, weight = operands
        axis = contraction.summed_axes(source.index)[0]
        rows = atoms(axis)
        count = rows[0].extent.as_int() if len(rows) == 1 else None
        if count is None or {*index_atoms(weight.index)} != {*rows}:
            return None
        lanes = len(coefficient.inside)
        matrix = gathered(weight, self.views.shapes, {rows[0]: np.arange(count)[:, None]})
        matrix = np.broadcast_to(matrix, (count, lanes))
        if ((matrix != 0).sum(axis=0) > 1).any():
            return None
        taken = np.argmax(matrix != 0, axis=0)
        number = matrix[taken, np.arange(lanes)]
        at = fixed(taken, Dim.of(count))
        below = Ref(source.value, tuple(at if own == axis else own for own in source.index))
        return self.terms(below, coefficient.within(number != 0).times(number))
