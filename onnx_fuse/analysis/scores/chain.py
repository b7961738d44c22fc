"""What applies to the product of query and key before the softmax, operator by operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_fuse.analysis.algebra.arrange import arranged
from onnx_fuse.analysis.algebra.axes import Atom, Axis, Index
from onnx_fuse.analysis.algebra.expr import Expr, leaves
from onnx_fuse.analysis.algebra.extents import Extents
from onnx_fuse.analysis.algebra.linear import Step
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.declined import Declined
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

    def arranged(self, groups: Sequence[Axis], extents: Extents) -> Expr:
        """Return it with one axis for each group of atoms. Raises: Declined."""
        result = arranged(self.expr, self.index, groups, extents, trailing=True)
        if result is None:
            value = next(iter(leaves(self.expr)), None)
            shape = None if value is None else extents.views.shapes.shape(value)
            raise Declined(
                Code.MASK_SHAPE,
                None if value is None else value.producer,
                value="a computed mask" if value is None else value.name,
                shape=f"({', '.join(map(str, shape or ()))})",
            )
        return result


@dataclass(frozen=True)
class Scale:
    """score * factor."""

    factor: float


@dataclass(frozen=True)
class RowScale:
    """score * a number of its row, none above `highest` in size.

    The chain's `query_steps` and `query_factors` hold them.
    """

    highest: float = math.inf


@dataclass(frozen=True)
class Bias:
    """score + sign * term."""

    term: Placed
    sign: float = 1.0


@dataclass(frozen=True)
class Shift:
    """score - the maximum of its row, which the softmax takes off anyway."""


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
    """tanh(score): between two scalings, a cap."""


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
    Casts of the scores to half precision, zeroings: products with zeros and ones, each with the
    number of operations outside of it.
    """

    operations: list[Operation] = field(default_factory=list)
    query_steps: list[Step] = field(default_factory=list)
    query_factors: list[tuple[str, Placed]] = field(default_factory=list)  # ("mul" | "div", factor)
    sinks: Placed | None = None
    joined: tuple[Atom, int] | None = None
    roundings: list[tuple[int, Node]] = field(default_factory=list)
    zeroings: list[tuple[int, Node]] = field(default_factory=list)
    product: Value | None = None
    top: Ref | None = None

    def consists_of(self, *kinds: type[Operation]) -> bool:
        """Return whether every operation is of these kinds."""
        return all(isinstance(operation, kinds) for operation in self.operations)

    def keeps_shifts(self) -> bool:
        """Return whether a number that is added to a row of scores is added to all that comes out.

        What a mask hides for good stays hidden.
        """
        return all(
            isinstance(op, (Scale, Bias, Shift)) or (isinstance(op, Select) and op.hides_for_good)
            for op in self.operations
        )

    @property
    def factor(self) -> float:
        """The product of all scalings."""
        return math.prod(part.factor for part in self.operations if isinstance(part, Scale))
