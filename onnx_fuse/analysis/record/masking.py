"""The canonical form of what applies to the scores.

where(keep, softcap * tanh(scale * q.k / softcap) + bias, fill), or without a cap
where(keep, scale * q.k + bias, fill).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_fuse.analysis.algebra.axes import Axis
from onnx_fuse.analysis.algebra.expr import Call, Expr, int64
from onnx_fuse.analysis.algebra.extents import Extents
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.record.roles import Misfit
from onnx_fuse.analysis.scores.chain import (
    Bias,
    Chain,
    Clamp,
    Keep,
    Operation,
    Placed,
    RowScale,
    Scale,
    Select,
    Shift,
    Tanh,
)
from onnx_fuse.ir.graph import Node
from onnx_fuse.report import Code

_LAST_AXIS_OPSET = 11  # from which a Concat takes -1 for it
_END = int(np.iinfo(np.int64).max)  # of an axis, however long


@dataclass(frozen=True)
class Masking:
    """The chain in canonical form; masks are (batch, heads, rows, columns), each full or 1.

    softcap: 0 for none. words: what kinds of mask there are, for the report.
    """

    scale: float
    softcap: float
    bias: Expr | None
    keep: Expr | None
    fill: Expr | None
    words: tuple[str, ...]


def masking_of(chain: Chain, groups: Sequence[Axis], extents: Extents, turned: int = 0) -> Masking:
    """Bring a chain to canonical form; `groups` are the atoms of batch, heads, rows and columns.

    turned: how many of the graph's last columns are the operator's first ones.

    Raises: Declined where no algebra does; Misfit where columns can't be turned.
    """
    form = _Form(groups, extents, turned)
    for operation in reversed(chain.operations):
        form.apply(operation)
    return form.masking()


@dataclass
class _Form:
    """The canonical form of the operations seen so far, innermost first."""

    groups: Sequence[Axis]
    extents: Extents
    turned: int
    scale: float = 1.0  # below the cap, if there is one
    cap: float = 1.0  # above it
    tanh: Node | None = None  # which caps
    may_divide_by_zero: bool = False  # rows of scores
    bias: Expr | None = None
    keep: Expr | None = None
    fill: Expr | None = None
    words: list[str] = field(default_factory=list)

    def apply(self, operation: Operation) -> None:
        """Take in one more operation. Raises: Declined."""
        match operation:
            case Scale(factor):
                if self.tanh is not None:
                    self.cap *= factor
                else:
                    self.scale *= factor
                self.bias = None if self.bias is None else _times(self.bias, factor)
                self.fill = None if self.fill is None else _times(self.fill, factor)
            case RowScale(node, highest):
                self.may_divide_by_zero |= node.op == "Div" and math.isinf(highest)
                if self.tanh is not None or self.bias is not None or self.keep is not None:
                    raise _refused(node, "mask and softmax")
            case Tanh(node):
                # Infinite scores have a cap; of a row of queries that are, the products are NaN.
                if self.tanh is not None or self.bias is not None or self.may_divide_by_zero:
                    raise _refused(node, "mask and softmax")
                # What a mask hides has its fill capped.
                self.fill = None if self.fill is None else Call("Tanh", (self.fill,))
                self.tanh = node
            case Bias(term, sign):
                self._add(_times(self._arranged(term), sign))
            case Keep(condition):
                self._select(condition, Placed.number(0.0), inverted=False)
            case Select(condition, fill, inverted):
                self._select(condition, fill, inverted=inverted)
            case Clamp(low):
                bound = np.asarray(low, dtype=np.float32)
                self.bias = None if self.bias is None else Call("Max", (self.bias, bound))
                self.fill = None if self.fill is None else Call("Max", (self.fill, bound))
            case Shift():
                pass

    def _arranged(self, placed: Placed) -> Expr:
        """Return a mask on the operator's axes. Raises: Declined, Misfit."""
        made = placed.arranged(self.groups, self.extents)
        space = self.extents.views.space
        if not self.turned or not space.atoms_of(self.groups[-1]) & space.atoms_of(*placed.index):
            return made
        if not placed.is_exact(self.extents.views):
            raise Misfit("k")  # one column for all in some runs
        if self.extents.opset < _LAST_AXIS_OPSET:
            raise Misfit("k")
        cuts = ((-self.turned, _END), (0, -self.turned))
        axis, step = int64(-1), int64(1)
        parts = (Call("Slice", (made, int64(a), int64(b), axis, step)) for a, b in cuts)
        return Call("Concat", tuple(parts), (("axis", -1),))

    def _add(self, term: Expr) -> None:
        self.words.append("bias")
        if self.fill is not None:
            self.fill = Call("Add", (self.fill, term))
        self.bias = term if self.bias is None else Call("Add", (self.bias, term))

    def _select(self, where: Placed, fill: Placed, *, inverted: bool) -> None:
        self.words.append("select")
        condition = self._arranged(where)
        other = self._arranged(fill)
        if inverted:
            condition = Call("Not", (condition,))
        self.fill = other if self.fill is None else Call("Where", (condition, self.fill, other))
        self.keep = condition if self.keep is None else Call("And", (self.keep, condition))

    def masking(self) -> Masking:
        """Return the form. Raises: Declined."""
        softcap, scale = 0.0, self.scale
        if self.tanh is not None:
            softcap, scale = self.cap, self.scale * self.cap
            if softcap <= 0:
                raise _refused(self.tanh, "product and softmax")
        words = tuple(dict.fromkeys(self.words))
        return Masking(scale, softcap, self.bias, self.keep, self.fill, words)


def _refused(node: Node, what: str) -> Declined:
    return Declined(Code.UNSUPPORTED_OP, node, what=what)


def _times(expr: Expr, number: float) -> Expr:
    return expr if number == 1.0 else Call("Mul", (expr, np.asarray(number, dtype=np.float32)))
