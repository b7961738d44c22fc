"""Whether the operator's own checks enforce what was taken for equal where the graph broadcasts.

Of two extents that meet on a product's batch axis, or beside a mask or a table, one may be 1 in a
run. A block was read as if they were equal, so such a run must be refused by the operator: two
operands must have the two extents where it wants one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest

from onnx_fuse.analysis.algebra.block_shapes import BlockShapes
from onnx_fuse.analysis.algebra.expr import values_read
from onnx_fuse.analysis.algebra.nodes import SIZES
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.algebra.view_rules import RULES
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.dims.polynomials import bases_of
from onnx_fuse.analysis.record.operand_extents import Extent, OperandExtents
from onnx_fuse.analysis.record.records import AttentionBlock
from onnx_fuse.analysis.search import reachable
from onnx_fuse.ir.graph import Value
from onnx_fuse.op.schema import OPERANDS
from onnx_fuse.report import Code

_SHAPES = {operand.name: operand.shape for operand in OPERANDS}
_VIEWS = (RULES.keys() | {"Concat"}) - {"Einsum"}


def check_enforced(
    block: AttentionBlock, space: Space, shapes: BlockShapes, queries: Value
) -> None:
    """Raise Declined where the operands leave open what broadcasting was taken for."""
    if not any(equation.is_assumed for equation in space.equations):
        return
    checks = _Checks(shapes, block)
    for equation in space.equations:
        one, other = equation.first, equation.second
        terms = checks.terms(one) | checks.terms(other)
        if not equation.is_assumed or len(terms) == 1:
            checks.space.equate(one, other)
        elif not checks.stands_aside(terms):
            value, what = queries.name, f"{one} and {other} meet, and one of them may be 1"
            raise Declined(Code.SHAPE_UNKNOWN, block.node, value=value, what=what)


def _made_by_views(block: AttentionBlock, shapes: BlockShapes) -> set[str]:
    """Return what the extents depend on that views make between the sources and the results.

    Such a view of a source is another one if the extent stands for another. Elsewhere extents
    follow from those of the sources, or from what meets them and broadcasts.
    """

    def above(value: Value) -> list[Value]:
        return [] if value in flowing or value.producer is None else value.producer.given

    def extents(values: Iterable[Value]) -> list[Dim]:
        return [extent for value in values for extent in shapes.apart(value) or ()]

    flowing = {value for expr in block.sources.values() for value in values_read(expr)}
    ends = [result.ref.value for result in block.results if result.ref is not None]
    needed = {value for end in ends for value in reachable(end, above)} - flowing
    nodes = {value.producer for value in needed if value.graph is block.node.graph}
    found: set[str] = set()
    for node in sorted(filter(None, nodes), key=lambda node: node.rank):
        read = [value for value in node.given if value in flowing]
        if not read or node.op in SIZES:
            continue
        flowing.update(node.made)
        if node.op in _VIEWS:
            known = {base for extent in extents(read) for base in extent.bases}
            made = [extent for extent in extents(node.made) if not extent.bases <= known]
            found.update(name for extent in made for name in _names(extent))
    return found


def _names(extent: Dim, *, is_own: bool = True) -> Iterator[str]:
    """Yield what an extent depends on, but for what only broadcast before it was computed with."""
    for base in bases_of(extent.polynomial):
        yield base.text
        if is_own or base.operation != "max":
            for argument in base.args:
                yield from _names(Dim(argument), is_own=False)


class _Checks:
    """What holds of the extents if the operator, which checks its operands' shapes, runs.

    Sources must have exactly the extents that it wants: that tells what is equal. Tables and masks
    may be 1 along an axis ("batch|1"), and then broadcast in the operator as in the graph. So they
    tell nothing of the others, and an extent that only they have may stand for one of those.
    """

    def __init__(self, shapes: BlockShapes, block: AttentionBlock) -> None:
        self.space = Space()  # what is equal
        self._bases: set[str] = set()  # of the sources' extents
        self._made = _made_by_views(block, shapes)
        self._aside: dict[Dim, Dim] = {}  # extents of tables and masks only: what each stands for
        self._are_all_told = True
        extents, wanted = OperandExtents(shapes, self.space), dict[str, Extent]()
        for name, expr in block.sources.items():
            for dim, extent in zip_longest(_SHAPES[name], extents.of(expr)):
                if extent is None:
                    self._are_all_told = False
                    continue
                extents.equate(wanted.setdefault(dim, extent), extent)
                self._bases |= extent.above.bases | extent.below.bases

    def terms(self, extent: Dim) -> set[Dim]:
        """Return what has to be equal for an extent to be each of the greatest's arguments.

        Sources may have the greatest itself, whatever it is made of.
        """
        known = self.space.known(extent)
        arguments = () if known.bases <= self._bases else known.arguments_of("max")
        return {term for argument in arguments for term in self.terms(argument)} or {known}

    def stands_aside(self, terms: set[Dim]) -> bool:
        """Return whether one of two extents is only tables' or masks', and stands for the other.

        The sources, all of whose extents must be told, are read as they would be without it: none
        of their views has to do with it. For a second one it can't stand.
        """
        if len(terms) != 2 or not self._are_all_told:
            return False
        first, second = sorted(terms, key=str)  # the same in every run
        for one, other in ((first, second), (second, first)):
            if (self._bases | self._made).isdisjoint(one.bases):
                return self._aside.setdefault(one, other) == other
        return False
