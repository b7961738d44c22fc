"""Weights put to zero after the softmax, where the same mask hid their scores before it.

They are zero there anyway, but in rows of which the mask shows nothing: those are zero as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto

from onnx_fuse.analysis.block_shapes import Facts
from onnx_fuse.analysis.chain import Chain, Placed, Select, Shift
from onnx_fuse.analysis.choices import choice_of
from onnx_fuse.analysis.expr import Call, Expr, same
from onnx_fuse.analysis.nodes import made_by, only_reader
from onnx_fuse.analysis.views import Views
from onnx_fuse.ir.graph import Node, Value

# At or below it a fill hides its column for good: no real score comes so near that the column's
# weight would not be rounded to zero. Half precision overflows at 65504, so scores of 1e4 are none
# in it, and converters write -1e4 for whatever is lower.
_HIDES = -1e9
_HIDES_HALF = -1e4
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Zeroed:
    """Weights that stay where a condition holds (with `inverted` where it does not), else 0.

    `place` is a tensor of the condition's shape.
    """

    condition: Expr
    inverted: bool
    place: Value
    weights: Value


def zeroed_of(node: Node, weights: Value, shapes: Facts) -> Zeroed | None:
    """Match where(c, w, 0), where(c, 0, w), and w * c with nothing but zeros added to it."""
    result = node.outputs[0] if node.outputs and not node.domain else None
    if result is None:
        return None
    if node.op_type == "Where":
        condition, first, second = node.inputs
        other = second if first is weights else first
        if condition is None or other is None or shapes.scalar(other) != 0.0:
            return None
        return Zeroed(condition, second is weights, condition, result)
    if node.op_type != "Mul":
        return None
    factor = node.inputs[1] if node.inputs[0] is weights else node.inputs[0]
    choice = None if factor is None else choice_of(factor, shapes)
    if factor is None or choice is None or choice.amount != 1.0:
        return None
    return Zeroed(choice.condition, False, factor, _without_zeros(result, shapes))


def _without_zeros(value: Value, shapes: Facts) -> Value:
    """Return the sum of a value and zeros, if that is what is made of it."""
    use = only_reader(value)
    node = None if use is None else use.node
    if node is None or node.op_type != "Add" or node.domain or node.outputs[0] is None:
        return value
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    return node.outputs[0] if other is not None and _is_zero(other, shapes) else value


def _is_zero(value: Value, shapes: Facts) -> bool:
    """Return whether all elements are zero: a constant, or zeros times a choice."""
    if shapes.is_constant(value):
        data = shapes.constant(value)
        return data is not None and not data.any()
    product = made_by(value, "Mul")
    if product is None or product.inputs[0] is None or product.inputs[1] is None:
        return False
    return any(
        shapes.scalar(zero) == 0.0 and choice_of(other, shapes) is not None
        for zero, other in (product.inputs, reversed(product.inputs))
        if zero is not None and other is not None
    )


def hides_before(chain: Chain, zeroed: Zeroed, placed: Placed, views: Views) -> bool:
    """Return whether a chain's last step is a mask by the same condition, and then let it hide all.

    Its fill becomes -inf, with which a row that shows nothing is NaN and not any numbers.
    """
    steps = [op for op in chain.operations if not isinstance(op, Shift)]
    mask = steps[0] if steps else None
    if not isinstance(mask, Select) or not _is_low(mask.fill, views.shapes):
        return False
    before, inverted = _positive(mask.condition.expr, mask.inverted)
    after, turned = _positive(zeroed.condition, zeroed.inverted)
    space = views.space
    if inverted != turned or not same(before, after):
        return False
    if space.resolve_index(mask.condition.index) != space.resolve_index(placed.index):
        return False
    hidden = replace(mask, fill=Placed.number(-np.inf))
    chain.operations[chain.operations.index(mask)] = hidden
    return True


def _is_low(fill: Placed, shapes: Facts) -> bool:
    expr = fill.expr
    if isinstance(expr, np.ndarray):
        return bool((expr <= _HIDES).all())
    number = shapes.scalar(expr) if isinstance(expr, Value) else None
    if not isinstance(expr, Value) or number is None:
        return False
    return number <= (_HIDES_HALF if shapes.dtype(expr) in _HALVES else _HIDES)


def _positive(condition: Expr, inverted: bool) -> tuple[Expr, bool]:
    """Return a condition without negations, and whether it is inverted then."""
    while True:
        if isinstance(condition, Call) and condition.op_type == "Not":
            condition = condition.inputs[0]
        elif isinstance(condition, Value) and (node := made_by(condition, "Not")) is not None:
            source = node.inputs[0]
            if source is None:
                return condition, inverted
            condition = source
        else:
            return condition, inverted
        inverted = not inverted
