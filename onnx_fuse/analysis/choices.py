"""Choices written as arithmetic: factors of zeros and ones, and sums of which one part is zero."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from onnx_fuse.analysis.block_shapes import Facts
from onnx_fuse.analysis.expr import Call, Expr
from onnx_fuse.analysis.nodes import is_float_cast, made_by
from onnx_fuse.analysis.views import carried, is_random
from onnx_fuse.ir.graph import Node, Value

_LONGEST_SUM = 8  # numbers added one after the other


@dataclass(frozen=True)
class Choice:
    """A tensor that is `amount` where a condition of its shape holds, and 0 elsewhere."""

    condition: Expr
    amount: float = 1.0


@dataclass(frozen=True)
class Alternative:
    """`first` where a condition holds, `second` elsewhere.

    `place` is a tensor of the condition's shape.
    """

    condition: Expr
    place: Value
    first: Value
    second: Value


def choice_of(factor: Value, shapes: Facts) -> Choice | None:
    """Return the choice that a tensor stands for; None if it isn't zeros and one other number."""
    if shapes.is_constant(factor):
        return _constant_choice(shapes.constant(factor))
    node = factor.producer
    if node is None or node.domain or is_random(shapes, node):
        return None
    source = node.inputs[0] if node.inputs else None
    if source is None:
        return None
    if node.op_type == "Cast":
        if shapes.dtype(source) == TensorProto.BOOL:
            return Choice(source)
        whole = choice_of(source, shapes)
        return whole if whole is not None and whole.amount == 1.0 else None
    if node.op_type == "Mul":
        return _product(factor, node, shapes)
    if node.op_type == "Sub":
        return _rest(node, shapes)
    # Whatever part is taken of zeros and ones, it is zeros and ones.
    parts = [None if part is None else choice_of(part, shapes) for part in carried(factor)]
    amounts = {None if part is None else part.amount for part in parts}
    amount = amounts.pop() if len(amounts) == 1 else None
    return None if amount is None else Choice(_as_condition(factor), amount)


def _constant_choice(data: np.ndarray | None) -> Choice | None:
    if data is None or data.size == 0:
        return None
    amount = float(data.ravel()[np.argmax(data != 0)]) or 1.0
    if not np.isfinite(amount) or not np.isin(data, (0, amount)).all():
        return None
    return Choice(data != 0, amount)


def _product(factor: Value, node: Node, shapes: Facts) -> Choice | None:
    """Match the product of two choices; a number other than 0 is one that always holds."""
    amount = 1.0
    for value in node.inputs:
        part = None if value is None else choice_of(value, shapes)
        if part is None:
            return None
        amount *= part.amount
    return Choice(_as_condition(factor), amount)


def _rest(node: Node, shapes: Facts) -> Choice | None:
    """Match 1 - choice."""
    one, other = node.inputs
    whole = None if other is None else choice_of(other, shapes)
    if one is None or shapes.scalar(one) != 1.0 or whole is None or whole.amount != 1.0:
        return None
    return Choice(Call("Not", (whole.condition,))) if not shapes.shape(one) else None


def _as_condition(factor: Value) -> Expr:
    return Call("Cast", (factor,), (("to", int(TensorProto.BOOL)),))


def alternative_of(node: Node, shapes: Facts) -> Alternative | None:
    """Match where(c, x, y), and c * x + (1 - c) * y."""
    if node.domain:
        return None
    if node.op_type == "Where":
        condition, first, second = node.inputs
        if condition is None or first is None or second is None:
            return None
        return Alternative(condition, condition, first, second)
    products = [made_by(value, "Mul") for value in node.inputs]
    if node.op_type != "Add" or products[0] is None or products[1] is None:
        return None
    for one in _kept(products[0], shapes):
        for other in _kept(products[1], shapes):
            if _are_opposite(one[2], other[2]):
                return Alternative(one[2], one[1], one[0], other[0])
    return None


def _kept(product: Node, shapes: Facts) -> list[tuple[Value, Value, Expr]]:
    """Return (x, factor, condition) of each x * factor whose factor is zeros and ones."""
    found: list[tuple[Value, Value, Expr]] = []
    for main in (0, 1):
        value, factor = product.inputs[main], product.inputs[1 - main]
        choice = None if factor is None else choice_of(factor, shapes)
        if value is not None and factor is not None and choice is not None and choice.amount == 1.0:
            found.append((value, factor, choice.condition))
    return found


def _are_opposite(one: Expr, other: Expr) -> bool:
    """Return whether one condition is the other's negation."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and bool((one != other).all())
    return any(_negated(a) is b for a, b in ((one, other), (other, one)))


def _negated(condition: Expr) -> Expr | None:
    if isinstance(condition, Call):
        return condition.inputs[0] if condition.op_type == "Not" else None
    node = made_by(condition, "Not") if isinstance(condition, Value) else None
    return None if node is None else node.inputs[0]


def common_origin(first: Value, second: Value, shapes: Facts) -> tuple[Value, float, float] | None:
    """Return a tensor, and the numbers of which added to it each of two values is the sum."""
    others = dict(_sums(second, shapes))
    for origin, number in _sums(first, shapes):
        if origin in others:
            return origin, number, others[origin]
    return None


def _sums(value: Value, shapes: Facts) -> list[tuple[Value, float]]:
    """Return the values of which a value is the sum with a number, nearest first."""
    found = [(value, 0.0)]
    while len(found) <= _LONGEST_SUM:
        value, total = found[-1]
        node = value.producer
        if node is None or node.domain or node.inputs[0] is None:
            break
        if node.op_type == "Identity" or is_float_cast(node, shapes):
            found.append((node.inputs[0], total))
            continue
        added = _addend(node, shapes)
        if added is None:
            break
        found.append((added[0], total + added[1]))
    return found


def _addend(node: Node, shapes: Facts) -> tuple[Value, float] | None:
    """Return (x, number) of x + number or x - number."""
    if node.op_type not in ("Add", "Sub"):
        return None
    for main in (0, 1) if node.op_type == "Add" else (0,):
        value, other = node.inputs[main], node.inputs[1 - main]
        number = None if other is None else shapes.scalar(other)
        if value is not None and number is not None and np.isfinite(number):
            return value, number if node.op_type == "Add" else -number
    return None
