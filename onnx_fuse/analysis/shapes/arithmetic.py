"""Operators element by element: numpy, in the types and with the roundings that ONNX states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        return np.asarray(a / b)
    if not np.all(b):
        raise ZeroDivisionError("integer division by zero")
    quotient = np.floor_divide(a, b)
    # ONNX rounds towards zero, numpy down.
    return np.asarray(quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype))


def _power(a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu" and b.dtype.kind in "iu":
        return np.asarray(np.power(a.astype(np.float64), b).astype(a.dtype))
    return np.asarray(np.power(a, b.astype(a.dtype) if a.dtype.kind == "f" else b).astype(a.dtype))


def _folded_left(function: Callable[[Array, Array], Any]) -> Callable[..., Array]:
    def apply(first: Array, *others: Array) -> Array:
        for other in others:
            first = function(first, other)
        return np.asarray(first)

    return apply


def is_tiny(dtype: Any) -> bool:
    """Return whether a type has so few numbers that runtimes differ in what they round to them."""
    return str(np.dtype(dtype).name).startswith(("float8", "float4"))


def converted(array: Array, dtype: Any) -> Array:
    """Return the array in another type, as ONNX Cast does it."""
    target = np.dtype(dtype)
    if is_tiny(target):
        raise ValueError("what becomes of numbers that are too large is the runtime's choice")
    if target.kind == "b":
        return np.asarray(array != 0)
    if array.dtype.kind not in "biu" and target.kind in "iu":
        array = np.trunc(array.astype(np.float64))
    return np.asarray(array.astype(target))


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Add": np.add,
    "And": np.logical_and,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseNot": np.bitwise_not,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
    "Ceil": np.ceil,
    "Cos": np.cos,
    "Div": _divide,
    "Equal": np.equal,
    "Exp": np.exp,
    "Floor": np.floor,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "IsNaN": np.isnan,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Log": np.log,
    "Max": _folded_left(np.maximum),
    "Min": _folded_left(np.minimum),
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Pow": _power,
    "Reciprocal": lambda x: (1 / x).astype(x.dtype),
    "Relu": lambda x: np.maximum(x, np.zeros((), x.dtype)),
    "Round": np.rint,
    "Sigmoid": lambda x: (1 / (1 + np.exp(-x))).astype(x.dtype),
    "Sign": np.sign,
    "Sin": np.sin,
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
    "Sum": _folded_left(np.add),
    "Tanh": np.tanh,
    "Where": np.where,
    "Xor": np.logical_xor,
}
