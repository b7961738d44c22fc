"""Tensors that consist of one number, whatever their shape, and what such numbers bound."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.nodes import FLOATS, is_float_cast
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views, carried
from onnx_fuse.ir.graph import Node, Value

LARGEST_FLOAT = float(np.finfo(np.float32).max)  # of float32, which the operator's scale is

_LARGEST = 1 << 16  # elements of a constant that are looked at
_NUMBERS = (*FLOATS, TensorProto.DOUBLE)
_WHOLE = (TensorProto.INT32, TensorProto.INT64)  # whose quotients are cut
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Div": operator.truediv,
    "Mul": operator.mul,
    "Neg": operator.neg,
    "Sub": operator.sub,
}


def number_of(value: Value | None, shapes: Facts) -> float | None:
    """Return the one number of which a tensor consists."""
    while value is not None:
        data = shapes.constant(value) if _is_small(value, shapes) else None
        if data is not None:
            return number_in(data)
        node = value.producer
        if node is None:
            return None
        if node.op == "ConstantOfShape":
            given: Any = node.attr("value")
            return 0.0 if given is None else float(np.asarray(given).ravel()[0])
        if node.op in _ARITHMETIC:
            return _computed(value, node, shapes)
        if len(node.inputs) > 1 and node.op == "Concat":
            return None
        above = carried(value) or (node.inputs[:1] if is_float_cast(node, shapes) else ())
        value = above[0] if above else None
    return None


def number_in(data: np.ndarray) -> float | None:
    """Return the one number of which an array consists."""
    is_one = data.size > 0 and (data == data.ravel()[0]).all()
    return float(data.ravel()[0]) if is_one else None


def _computed(value: Value, node: Node, shapes: Facts) -> float | None:
    """Return what arithmetic makes of numbers, rounded as it rounds; None if that is no number."""
    dtype = shapes.dtype(value)
    if dtype is None or dtype not in (*_NUMBERS, *(() if node.op == "Div" else _WHOLE)):
        return None
    numbers = {given: number_of(given, shapes) for given in dict.fromkeys(node.inputs)}
    if None in numbers.values():
        return None
    scalar = helper.tensor_dtype_to_np_dtype(dtype).type
    with np.errstate(all="ignore"):
        result = _ARITHMETIC[node.op](*(scalar(numbers[given]) for given in node.inputs))
    return None if math.isnan(result) else float(result)


def scaling_of(ref: Ref, views: Views) -> tuple[Ref, float] | None:
    """Return (x, factor) where elements are x * factor, x / number or -x. Float32 holds factor."""
    node = ref.value.producer
    if node is None:
        return None
    if node.op == "Neg":
        return Ref(node.given[0], ref.index), -1.0
    for main in {"Mul": (0, 1), "Div": (0,)}.get(node.op, ()):
        value, number = node.input(main), number_of(node.input(1 - main), views.shapes)
        if value is None or number is None or (node.op == "Div" and not number):
            continue
        factor = number if node.op == "Mul" else 1.0 / number
        below = views.broadcast(ref.index, value)
        if below is not None and math.isfinite(number) and abs(factor) <= LARGEST_FLOAT:
            return below, factor
    return None


def limits_of(node: Node, main: int, shapes: Facts) -> tuple[float, float]:
    """Return between which numbers a Clip, Max, Min or Relu holds one input; NaN if not known."""
    if node.op == "Relu":
        return 0.0, math.inf
    if node.op == "Clip":
        low, high = node.attr("min"), node.attr("max")
        return (
            _limit(node.input(1), -math.inf, shapes) if low is None else float(low),
            _limit(node.input(2), math.inf, shapes) if high is None else float(high),
        )
    others = [_limit(value, math.nan, shapes) for i, value in enumerate(node.inputs) if i != main]
    # Of numbers that are not known, nothing is: numpy, unlike Python, keeps a NaN.
    if node.op == "Max":
        return float(np.max(others, initial=-math.inf)), math.inf
    return -math.inf, float(np.min(others, initial=math.inf))


def _limit(value: Value | None, default: float, shapes: Facts) -> float:
    number = default if value is None else number_of(value, shapes)
    return math.nan if number is None else number


def _is_small(value: Value, shapes: Facts) -> bool:
    extents = [extent.as_int() for extent in shapes.shape(value) or ()]
    return math.prod(extent or 0 for extent in extents) <= _LARGEST
