"""The product of weights and values, as the way down from a softmax finds it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnx_fuse.analysis.algebra.axes import Axis
from onnx_fuse.analysis.algebra.linear import Step
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.scores.chain import Placed


@dataclass(frozen=True)
class ValuePart:
    """The product of one part of the weights, whose columns are `column`, with its values.

    column: None if it is one of the whole weights.
    """

    value: Ref
    context: Ref
    column: Axis | None = None


@dataclass(frozen=True)
class Values:
    """The product of weights and values.

    steps: constants by which the weights of a head are scaled. shown: the weights before that,
    where others read them than the product, or they are an output of the graph. several: why that
    is no block of its own if others are products, too. parts: what the product is the sum of, where
    the weights are cut, or what stands side by side in it; then `value` is that of the first.
    lanes: the depth of all that stands side by side. scale: multiplies the product. factors: what
    else its rows are to be multiplied or divided by. zero_nan: the operator's attribute.
    """

    value: Ref
    context: Ref
    zero_nan: int
    steps: tuple[Step, ...] = ()
    shown: Ref | None = None
    several: Declined | None = None
    parts: tuple[ValuePart, ...] = ()
    lanes: Axis = ()
    scale: float = 1.0
    factors: tuple[tuple[str, Placed], ...] = ()  # ("Mul" | "Div", factor)

    @property
    def each(self) -> tuple[Values, ...]:
        """The products that stand side by side, as if each were the only one."""
        parts = self.parts if self.lanes else ()
        return tuple(replace(self, value=part.value, parts=(), lanes=()) for part in parts) or (
            self,
        )
