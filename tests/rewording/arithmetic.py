"""Other words for sums, powers, softmax, norms and masks."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from tests.rewording.wording import TAKES_AXES, Wording, attributes_of, exchanged, rule


@rule("Add", "Mul", "And", "Or", "Max", "Min", "Equal")
def operands_exchanged(w: Wording, node: onnx.NodeProto) -> str | None:
    return w.op(node.op_type, *reversed(node.input))


@rule("Add")
def as_sum_of_any(w: Wording, node: onnx.NodeProto) -> str | None:
    return w.op("Sum", *node.input) if w.is_float(node.input[0]) else None


def other_operand(w: Wording, node: onnx.NodeProto) -> tuple[str, float] | None:
    """Return what is multiplied by a positive number of a moderate size, and the number."""
    for x, y in (node.input, reversed(node.input)):
        number = w.number(y)
        if number is not None and w.is_float(x) and 1e-4 < number < 1e4:
            return x, number
    return None


@rule("Mul")
def divided_by_its_inverse(w: Wording, node: onnx.NodeProto) -> str | None:
    found = other_operand(w, node)
    return w.op("Div", found[0], w.like(found[0], 1 / found[1])) if found else None


@rule("Mul")
def times_roots(w: Wording, node: onnx.NodeProto) -> str | None:
    found = other_operand(w, node)
    if not found:
        return None
    x, number = found
    return w.op("Mul", w.op("Mul", x, w.like(x, number**0.5)), w.like(x, number**0.5))


@rule("Div")
def times_reciprocal(w: Wording, node: onnx.NodeProto) -> str | None:
    x, y = node.input
    return w.op("Mul", x, w.op("Reciprocal", y)) if w.is_float(x) else None


@rule("Neg")
def times_minus_one(w: Wording, node: onnx.NodeProto) -> str | None:
    x = node.input[0]
    return w.op("Mul", x, w.like(x, -1.0)) if w.is_float(x) else None


@rule("Pow")
def as_root_or_square(w: Wording, node: onnx.NodeProto) -> str | None:
    x = node.input[0]
    match w.number(node.input[1]):
        case 2.0:
            return w.op("Mul", x, x)
        case 0.5:
            return w.op("Sqrt", x)
    return None


@rule("Sqrt")
def as_half_power(w: Wording, node: onnx.NodeProto) -> str | None:
    x = node.input[0]
    return w.op("Pow", x, w.like(x, 0.5)) if w.is_float(x) else None


@rule("Reciprocal")
def one_over_it(w: Wording, node: onnx.NodeProto) -> str | None:
    x = node.input[0]
    return w.op("Div", w.like(x, 1.0), x) if w.is_float(x) else None


# --- softmax and norms


def softmax_axis(w: Wording, node: onnx.NodeProto) -> int | None:
    """Return a softmax's own axis, None where it may be more than one."""
    rank = w.rank(node.input[0])
    axis = int(attributes_of(node).get("axis", -1 if w.opset >= TAKES_AXES else 1))
    if rank < 1 or (w.opset < TAKES_AXES and axis % rank != rank - 1):
        return None
    return axis % rank


@rule("Softmax")
def as_powers_over_sum(w: Wording, node: onnx.NodeProto) -> str | None:
    x, axis = node.input[0], softmax_axis(w, node)
    if axis is None:
        return None
    powers = w.op("Exp", w.op("Sub", x, w.reduce("ReduceMax", x, axis)))
    return w.op("Div", powers, w.reduce("ReduceSum", powers, axis))


@rule("Softmax")
def power_of_log(w: Wording, node: onnx.NodeProto) -> str | None:
    axis = softmax_axis(w, node)
    return None if axis is None else w.op("Exp", w.op("LogSoftmax", node.input[0], axis=axis))


@rule("Softmax")
def along_another_axis(w: Wording, node: onnx.NodeProto) -> str | None:
    axis, rank = softmax_axis(w, node), w.rank(node.input[0])
    if axis is None or rank < 2 or w.opset < TAKES_AXES:
        return None
    other = w.random.choice([at for at in range(rank) if at != axis])
    perm = exchanged(rank, axis, other)
    return w.turn(w.op("Softmax", w.turn(node.input[0], perm), axis=other), perm)


@rule("Softmax")
def of_flat_scores(w: Wording, node: onnx.NodeProto) -> str | None:
    x, axis, rank = node.input[0], softmax_axis(w, node), w.rank(node.input[0])
    if axis is None or axis != rank - 1:
        return None
    flat = w.op("Reshape", x, w.joined(w.ints(-1), w.extents(x, axis, rank)))
    return w.op("Reshape", w.op("Softmax", flat, axis=1), w.op("Shape", x))


@rule("LayerNormalization")
def norm_written_out(w: Wording, node: onnx.NodeProto) -> str | None:
    x, given, rank = node.input[0], attributes_of(node), w.rank(node.input[0])
    many = sum(map(bool, node.output)) > 1
    if many or rank < 1 or given.get("axis", -1) % rank != rank - 1 or not w.is_float(x):
        return None
    away = w.op("Sub", x, w.reduce("ReduceMean", x, -1))
    square = w.reduce("ReduceMean", w.op("Mul", away, away), -1)
    root = w.op("Sqrt", w.op("Add", square, w.like(x, given.get("epsilon", 1e-5))))
    scaled = w.op("Mul", w.op("Div", away, root), node.input[1])
    return w.op("Add", scaled, node.input[2]) if len(node.input) > 2 else scaled


# --- masks


@rule("Where")
def the_other_way_round(w: Wording, node: onnx.NodeProto) -> str | None:
    condition, x, y = node.input
    return w.op("Where", w.op("Not", condition), y, x)


_MIRRORED = {
    "Less": "Greater",
    "Greater": "Less",
    "LessOrEqual": "GreaterOrEqual",
    "GreaterOrEqual": "LessOrEqual",
}
_OPPOSITE = {
    "Less": "GreaterOrEqual",
    "Greater": "LessOrEqual",
    "LessOrEqual": "Greater",
    "GreaterOrEqual": "Less",
}


@rule(*_MIRRORED)
def from_the_other_side(w: Wording, node: onnx.NodeProto) -> str | None:
    return w.op(_MIRRORED[node.op_type], *reversed(node.input))


@rule(*_OPPOSITE)
def not_the_opposite(w: Wording, node: onnx.NodeProto) -> str | None:
    return w.op("Not", w.op(_OPPOSITE[node.op_type], *node.input))


@rule("And")
def not_either_not(w: Wording, node: onnx.NodeProto) -> str | None:
    return w.op("Not", w.op("Or", *(w.op("Not", x) for x in node.input)))


@rule("And")
def product_of_bits(w: Wording, node: onnx.NodeProto) -> str | None:
    bits = [w.op("Cast", x, to=TensorProto.INT32) for x in node.input]
    return w.op("Cast", w.op("Mul", *bits), to=TensorProto.BOOL)


@rule("Cast")
def one_or_zero(w: Wording, node: onnx.NodeProto) -> str | None:
    is_flag = w.types.get(node.input[0]) == TensorProto.BOOL
    if not is_flag or attributes_of(node)["to"] != TensorProto.FLOAT:
        return None
    one, zero = w.const(1, np.float32), w.const(0, np.float32)
    return w.op("Where", node.input[0], one, zero)


@rule("Clip")
def greater_and_less(w: Wording, node: onnx.NodeProto) -> str | None:
    given = attributes_of(node)
    if len(node.input) < 2 or not node.input[1] or given.keys() & {"min", "max"}:
        return None
    least = w.op("Max", *node.input[:2])
    return w.op("Min", least, node.input[2]) if len(node.input) > 2 and node.input[2] else least
