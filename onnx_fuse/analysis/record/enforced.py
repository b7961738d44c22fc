"""Whether the operator's own checks enforce what was taken for equal where the graph broadcasts.

Of two extents that meet on a product's batch axis, or beside a mask or a table, one may be 1 in a
run. A block was read as if they were equal, so such a run must be refused by the operator: two
operands must have the two extents where it wants one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_fuse.analysis.algebra.axes import ONE
from onnx_fuse.analysis.algebra.block_shapes import BlockShapes
from onnx_fuse.analysis.algebra.expr import Call, Expr
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.dims.dim import Dim, product
from onnx_fuse.analysis.dims.order import deciding_one
from onnx_fuse.analysis.known import all_known
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.op.schema import OPERANDS
from onnx_fuse.report import Code

_SHAPES = {operand.name: operand.shape for operand in OPERANDS}

# An extent as a quotient, which a run that succeeds has without a rest; None if nothing tells it.
Extent = tuple[Dim, Dim] | None


def check_enforced(
    node: Node, space: Space, shapes: BlockShapes, operands: dict[str, Expr], queries: Value
) -> None:
    """Raise Declined where the operands leave open what broadcasting was taken for.

    Tables and masks may be 1 along an axis, and then broadcast in the operator as in the graph. So
    they tell nothing of the others, and an extent that only they have may stand for any of those.
    """
    if not any(equation.is_assumed for equation in space.equations):
        return
    told = _Told(shapes, Space(), set())
    wanted: dict[str, tuple[Dim, Dim]] = {}
    for name, expr in operands.items():
        for dim, extent in zip(_SHAPES[name], told.shape(expr) or (), strict=False):
            if extent is not None and "|" not in dim:
                told.equate(wanted.setdefault(dim, extent), extent)
                told.bases.update(extent[0].bases | extent[1].bases)
    for equation in space.equations:
        one, other = equation.first, equation.second
        terms = {*told.terms(one), *told.terms(other)}
        if equation.is_assumed and len(terms) > 1:
            if told.stands_aside(terms):
                continue
            what = f"{one} and {other} meet, and one of them may be 1"
            raise Declined(Code.SHAPE_UNKNOWN, node, value=queries.name, what=what)
        told.space.equate(one, other)


@dataclass(frozen=True)
class _Told:
    """What the graph alone tells of the operands, without what the block was read with.

    `space` has what is equal if the operator and the nodes before it run.
    """

    shapes: BlockShapes
    space: Space
    bases: set[str]  # of the extents of all but tables and masks
    # Extents that only tables and masks have, and which of the others they stand for.
    aside: dict[Dim, Dim] = field(default_factory=dict)

    def equate(self, first: tuple[Dim, Dim], second: tuple[Dim, Dim]) -> None:
        """Note that two quotients are equal."""
        self.space.equate(first[0] * second[1], second[0] * first[1])

    def stands_aside(self, terms: set[Dim]) -> bool:
        """Return whether one of two extents is only tables' or masks', and stands for the other.

        Those of the other operands are read as they would be without it.
        """
        for one in terms:
            (other, *others) = terms - {one}
            if not others and self.bases.isdisjoint(one.bases):
                return self.aside.setdefault(one, other) == other
        return False

    def terms(self, extent: Dim) -> list[Dim]:
        """Return what has to be equal for an extent to be each of the greatest's arguments."""
        extent = deciding_one(extent)
        arguments = () if extent.bases <= self.bases else extent.arguments_of("max")
        own = [term for argument in arguments for term in self.terms(argument)]
        return own or [self.space.known(extent)]

    def shape(self, expr: Expr) -> Sequence[Extent] | None:
        """Return the extents of an operand, as far as they are told."""
        if isinstance(expr, Value):
            shape = self.shapes.apart(expr)
            return None if shape is None else [(extent, ONE) for extent in shape]
        inner = self.shape(expr.inputs[0]) if isinstance(expr, Call) else None
        if not isinstance(expr, Call) or inner is None:
            return None
        attributes = dict(expr.attributes)
        match expr.op_type:
            case "Transpose":
                return [inner[axis] for axis in attributes["perm"]]
            case "Unsqueeze":
                axes = attributes["axes"] if attributes else np.asarray(expr.inputs[1])
                left, rank = iter(inner), len(inner) + len(axes)
                return [(ONE, ONE) if at in axes else next(left) for at in range(rank)]
            case "Reshape":
                return self._regrouped(inner, expr.inputs[1], zero_is_meant=bool(attributes))
        return None

    def _regrouped(
        self, inner: Sequence[Extent], target: Expr, *, zero_is_meant: bool
    ) -> Sequence[Extent]:
        """Return the extents of a Reshape, which keeps the number of elements."""
        extents: list[Extent] = []
        at_open: int | None = None
        for part in target.inputs if isinstance(target, Call) else (target,):
            for number in part.tolist() if isinstance(part, np.ndarray) else (None,):
                if number == 0 and not zero_is_meant:
                    extents.append(inner[len(extents)])
                    continue
                if number == -1:
                    at_open = len(extents)
                extents.append(self._asked(part) if number is None else (Dim.of(number), ONE))
        whole = _counted(inner)
        others = _counted([extent for at, extent in enumerate(extents) if at != at_open])
        if at_open is not None:
            extents[at_open] = _quotient(whole, others)
        elif whole is not None and others is not None:
            self.equate(whole, others)
        return extents

    def _asked(self, expr: Expr) -> Extent:
        """Return an extent that is asked of a tensor's shape."""
        match expr:
            case Call("Gather", (Call("Shape", (Value() as value,)), np.ndarray() as axis)):
                shape = self.shapes.apart(value)
                return None if shape is None else (shape[int(axis.item())], ONE)
        return None


def _counted(extents: Sequence[Extent]) -> Extent:
    """Return the product of extents; None if one isn't told."""
    known = all_known(extents)
    if known is None:
        return None
    return product(above for above, _ in known), product(below for _, below in known)


def _quotient(whole: Extent, part: Extent) -> Extent:
    if whole is None or part is None:
        return None
    return whole[0] * part[1], whole[1] * part[0]
