"""What applies to the product of query and key before the softmax, operator by operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_fuse.analysis.algebra.arrange import arranged, vector
from onnx_fuse.analysis.algebra.axes import Atom, Axis, Index, size
from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.expr import Call, Expr, int64, leaves
from onnx_fuse.analysis.algebra.extents import Extents
from onnx_fuse.analysis.algebra.linear import Step
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import number_in, number_of
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.splice import spliced
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Code


@dataclass(frozen=True)
class Placed:
    """A tensor and the index at which it is read."""

    expr: Expr
    index: Index

    @staticmethod
    def number(value: float) -> Placed:
        """Return the same float32 number for all elements."""
        return Placed(np.asarray(value, dtype=np.float32), ())

    @staticmethod
    def of(ref: Ref) -> Placed:
        """Return elements of the graph's own."""
        return Placed(ref.value, ref.index)

    @property
    def ref(self) -> Ref | None:
        """The graph's own elements; None where something is computed of them."""
        return Ref(self.expr, self.index) if isinstance(self.expr, Value) else None

    def constant(self, shapes: Facts) -> np.ndarray | None:
        """Return its numbers if they are constant; None if they aren't, or aren't known."""
        match self.expr:
            case Value():
                return shapes.constant(self.expr)
            case np.ndarray():
                return self.expr
        return None

    def only_number(self, shapes: Facts) -> float | None:
        """Return the one number of which it consists."""
        match self.expr:
            case Value():
                return number_of(self.expr, shapes)
            case np.ndarray():
                return number_in(self.expr)
        return None

    def arranged(self, groups: Sequence[Axis], extents: Extents) -> Expr:
        """Return it with one axis for each group of atoms. Raises: Declined."""
        made = arranged(self.expr, self.index, groups, extents, trailing=True)
        if made is not None and _is_regrouped(made, self.expr):
            made = arranged(self.whole(extents), self.index, groups, extents, trailing=True)
        if made is None:
            raise self.unplaced(extents)
        return made

    def unplaced(self, extents: Extents) -> Declined:
        """Return why it can't be arranged."""
        value = next(iter(leaves(self.expr)), None)
        shape = None if value is None else extents.views.shapes.shape(value)
        return Declined(
            Code.MASK_SHAPE,
            None if value is None else value.producer,
            value="a computed mask" if value is None else value.name,
            shape=f"({', '.join(map(str, shape or ()))})",
        )

    def whole(self, extents: Extents) -> Expr:
        """Return it expanded along axes that may be 1 in a run, where that changes the meaning.

        It does where one is split, or is merged with others by its number. Raises: Declined.
        """
        full = [self._may_be_one(axis, extents.views) for axis in range(len(self.index))]
        made = _broadcast(self.expr, self.index, full, extents) if any(full) else self.expr
        if made is None:
            raise self.unplaced(extents)
        return made

    def _may_be_one(self, axis: int, views: Views) -> bool:
        """Return whether an axis with a name stands for several digits or a number."""
        own = views.space.resolve(self.index[axis])
        if not (len(own) > 1 or (own and size(own).as_int() is not None)):
            return False
        for value in leaves(self.expr):
            shape = views.shapes.shape(value) or ()
            place = axis - len(self.index)
            known = views.space.known(shape[place]) if -place <= len(shape) else size(own)
            if known.as_int() is None and known != size(own):
                return all(isinstance(digit, Atom) for digit in own)
        return False

    def is_exact(self, views: Views) -> bool:
        """Return whether each axis is proved to be as long as its index: no run broadcasts it."""
        shapes = [views.shapes.shape(value) for value in leaves(self.expr)]
        extents = [size(views.space.resolve(axis)) for axis in self.index]
        return all(shape is not None and [*shape] == extents for shape in shapes)


@dataclass(frozen=True)
class Sections(Placed):
    """What stands beside the scores of several sets of keys, joined along their columns.

    Each term varies along its own one of `columns`; the whole has `column`. `expr` tells what all
    of it is computed from: a Concat that is never made, as the terms' other axes may differ.
    """

    terms: tuple[Placed, ...]
    columns: tuple[Axis, ...]
    column: Axis

    @staticmethod
    def joined(terms: Sequence[Placed], columns: Sequence[Axis], column: Axis) -> Sections:
        """Return terms joined along `column`, each beside one of `columns`."""
        expr = Call("Concat", tuple(term.expr for term in terms))
        return Sections(expr, (), tuple(terms), tuple(columns), column)

    def arranged(self, groups: Sequence[Axis], extents: Extents) -> Expr:
        """As `Placed.arranged`; what one term varies along, all are repeated along."""
        space = extents.views.space
        whole = [space.resolve(group) for group in groups]
        place = whole.index(space.resolve(self.column))
        atoms = space.atoms_of(*(axis for term in self.terms for axis in term.index))
        full = [bool(atoms & space.atoms_of(group)) for group in whole]
        full[place] = True
        parts: list[Expr] = []
        for term, column in zip(self.terms, self.columns, strict=True):
            own = spliced(whole, place, column)
            part = arranged(term.whole(extents), term.index, own, extents, whole=full)
            if part is not None and not term.is_exact(extents.views):
                part = _broadcast(part, own, full, extents)
            if part is None:
                raise term.unplaced(extents)
            parts.append(part)
        return Call("Concat", tuple(parts), (("axis", place),))


def _is_regrouped(made: Expr, source: Expr) -> bool:
    """Return whether anything but the order of the axes changed, and axes of 1 that were added."""
    while made is not source:
        if not isinstance(made, Call) or made.op_type not in ("Transpose", "Unsqueeze"):
            return True
        made = made.inputs[0]
    return False


def _broadcast(
    part: Expr, groups: Sequence[Axis], full: Sequence[bool], extents: Extents
) -> Expr | None:
    """Return a tensor whose axes may be 1 in a run, expanded along those that are to be full."""
    sizes: list[Expr] | None = all_known(
        extents.expr(size(axis)) if is_full else int64(1)
        for axis, is_full in zip(groups, full, strict=True)
    )
    if sizes is None:
        return None
    return Call("Expand", (part, vector(sizes)))


@dataclass(frozen=True)
class Scale:
    """score * factor."""

    factor: float


@dataclass(frozen=True)
class RowScale:
    """score * a number of its row, none above `highest` in size; `node` multiplies.

    The chain's `query_steps` and `query_factors` hold them.
    """

    node: Node
    highest: float


@dataclass(frozen=True)
class Bias:
    """score + sign * term."""

    term: Placed
    sign: float = 1.0


@dataclass(frozen=True)
class Shift:
    """score - a number of its row, no larger than scores are; the softmax doesn't see it."""


@dataclass(frozen=True)
class Select:
    """where(condition, score, fill), or with `inverted` where(condition, fill, score).

    place: the graph's own elements that are not 0 (or True) where the condition holds.
    """

    condition: Placed
    fill: Placed
    inverted: bool = False
    place: Ref | None = None

    @property
    def hides_for_good(self) -> bool:
        """Whether what it hides becomes -inf, by a constant of ours."""
        fill = self.fill.expr
        return isinstance(fill, np.ndarray) and bool((fill == -np.inf).all())


@dataclass(frozen=True)
class Keep:
    """score * condition, a factor of zeros and ones."""

    condition: Placed


@dataclass(frozen=True)
class Tanh:
    """tanh(score), as `node` has it: between two scalings, a cap."""

    node: Node


@dataclass(frozen=True)
class Clamp:
    """max(score, low), where no score but a masked one is below `low`."""

    low: float


Operation = Scale | RowScale | Bias | Shift | Select | Keep | Tanh | Clamp


@dataclass
class Chain:
    """What applies to the product, outermost first while it is collected.

    query_steps, query_factors: constants and computed numbers by which a row is scaled.
    sinks: one more column, which the softmax sees and the values don't. joined: the softmax's own
    column atom where one was joined, and the position in it at which the scores begin. roundings:
    Casts of the scores to half precision, zeroings: products with zeros and ones, centrings: what
    takes off a number of each row that isn't its maximum, limits: masks if no score inside is
    larger in size than a number, each with the number of operations outside of it.
    """

    operations: list[Operation] = field(default_factory=list)
    query_steps: list[Step] = field(default_factory=list)
    query_factors: list[tuple[str, Placed]] = field(default_factory=list)  # ("Mul" | "Div", factor)
    sinks: Placed | None = None
    joined: tuple[Atom, int] | None = None
    roundings: list[tuple[int, Node]] = field(default_factory=list)
    zeroings: list[tuple[int, Node]] = field(default_factory=list)
    centrings: list[tuple[int, Node]] = field(default_factory=list)
    limits: list[tuple[int, Node, float]] = field(default_factory=list)
    product: Value | None = None
    top: Ref | None = None

    def consists_of(self, *kinds: type[Operation]) -> bool:
        """Return whether every operation is of these kinds."""
        return all(isinstance(operation, kinds) for operation in self.operations)

    def keeps_shifts(self, shapes: Facts) -> bool:
        """Return whether a number that is added to a row of scores is added to all that comes out.

        What a mask hides for good stays hidden.
        """
        return all(
            isinstance(op, (Scale, Bias, Shift))
            or (isinstance(op, Select) and op.fill.only_number(shapes) == -math.inf)
            for op in self.operations
        )

    @property
    def factor(self) -> float:
        """The product of all scalings."""
        return math.prod(part.factor for part in self.operations if isinstance(part, Scale))
