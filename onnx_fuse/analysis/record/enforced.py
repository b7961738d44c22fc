"""Whether the operator's own checks enforce what was taken for equal where the graph broadcasts.

Of two extents that meet on a product's batch axis, or beside a mask or a table, one may be 1 in a
run. A block was read as if they were equal, so such a run must be refused by the operator: two
operands must have the two extents where it wants one.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest

from onnx_fuse.analysis.algebra.block_shapes import BlockShapes
from onnx_fuse.analysis.algebra.expr import Expr
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.record.operand_extents import Extent, OperandExtents
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.op.schema import OPERANDS
from onnx_fuse.report import Code

_SHAPES = {operand.name: operand.shape for operand in OPERANDS}


def check_enforced(
    node: Node, space: Space, shapes: BlockShapes, sources: Mapping[str, Expr], queries: Value
) -> None:
    """Raise Declined where the operands leave open what broadcasting was taken for.

    sources: all operands but tables and masks.
    """
    if not any(equation.is_assumed for equation in space.equations):
        return
    checks = _Checks(shapes, sources)
    for equation in space.equations:
        one, other = equation.first, equation.second
        terms = checks.terms(one) | checks.terms(other)
        if not equation.is_assumed or len(terms) == 1:
            checks.space.equate(one, other)
        elif not checks.stands_aside(terms):
            what = f"{one} and {other} meet, and one of them may be 1"
            raise Declined(Code.SHAPE_UNKNOWN, node, value=queries.name, what=what)


class _Checks:
    """What holds of the extents if the operator, which checks its operands' shapes, runs.

    Sources must have exactly the extents that it wants: that tells what is equal. Tables and masks
    may be 1 along an axis ("batch|1"), and then broadcast in the operator as in the graph. So they
    tell nothing of the others, and an extent that only they have may stand for one of those.
    """

    def __init__(self, shapes: BlockShapes, sources: Mapping[str, Expr]) -> None:
        self.space = Space()  # what is equal
        self._bases: set[str] = set()  # of the sources' extents
        self._aside: dict[Dim, Dim] = {}  # extents of tables and masks only: what each stands for
        self._are_all_told = True
        extents, wanted = OperandExtents(shapes, self.space), dict[str, Extent]()
        for name, expr in sources.items():
            for dim, extent in zip_longest(_SHAPES[name], extents.of(expr)):
                if extent is None:
                    self._are_all_told = False
                    continue
                extents.equate(wanted.setdefault(dim, extent), extent)
                self._bases |= extent.above.bases | extent.below.bases

    def terms(self, extent: Dim) -> set[Dim]:
        """Return what has to be equal for an extent to be each of the greatest's arguments."""
        own = {term for one in extent.arguments_of("max") for term in self.terms(one)}
        return own or {self.space.known(extent)}

    def stands_aside(self, terms: set[Dim]) -> bool:
        """Return whether one of two extents is only tables' or masks', and stands for the other.

        The sources, all of whose extents must be told, are read as they would be without it. For a
        second one it can't stand.
        """
        if len(terms) != 2 or not self._are_all_told:
            return False
        first, second = sorted(terms, key=str)  # the same in every run
        for one, other in ((first, second), (second, first)):
            if self._bases.isdisjoint(one.bases):
                return self._aside.setdefault(one, other) == other
        return False
