"""Tensors that consist of one number, whatever their shape."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.nodes import FLOATS, is_float_cast
from onnx_fuse.analysis.algebra.views import carried
from onnx_fuse.ir.graph import Node, Value

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
            same = data.size > 0 and (data == data.ravel()[0]).all()
            return float(data.ravel()[0]) if same else None
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


def _is_small(value: Value, shapes: Facts) -> bool:
    extents = [extent.as_int() for extent in shapes.shape(value) or ()]
    return math.prod(extent or 0 for extent in extents) <= _LARGEST
