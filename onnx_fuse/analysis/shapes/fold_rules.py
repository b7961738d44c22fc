"""How operators compute constants: numpy, in the types and with the roundings that ONNX states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx

from onnx_fuse.analysis.shapes.facts import Call, normalized

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Fold: TypeAlias = Callable[[Call, Sequence["Array | None"]], Sequence[Array]]
"""From a node's inputs (None where left out) to its outputs; raises what numpy raises."""


def _given(arrays: Sequence[Array | None], index: int) -> Array | None:
    return arrays[index] if index < len(arrays) else None


def _needed(arrays: Sequence[Array | None], index: int) -> Array:
    array = _given(arrays, index)
    if array is None:
        raise ValueError(f"input {index} is left out")
    return array


def _integers(
    call: Call, arrays: Sequence[Array | None], name: str, index: int
) -> list[int] | None:
    """A list that is an attribute in old opsets and an input in new ones; None if not given."""
    value = call.attr(name)
    if value is not None:
        return [int(item) for item in value]
    array = _given(arrays, index)
    return None if array is None else [int(item) for item in array.reshape(-1)]


# --- element by element ---------------------------------------------------------------------------


def _elementwise(function: Callable[..., Any]) -> Fold:
    def fold(_: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
        return [function(*[array for array in arrays if array is not None])]

    return fold


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        return np.asarray(a / b)
    if not np.all(b):
        raise ZeroDivisionError("integer division by zero")
    quotient = np.floor_divide(a, b)
    # ONNX rounds towards zero, numpy down.
    return np.asarray(quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype))


def _modulo(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    a, b = _needed(arrays, 0), _needed(arrays, 1)
    if a.dtype.kind in "iu" and not np.all(b):
        raise ZeroDivisionError("integer division by zero")
    return [np.fmod(a, b) if call.attr("fmod", 0) else np.mod(a, b)]


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
    """Whether a type has so few numbers that runtimes differ in what they round to them."""
    return str(np.dtype(dtype).name).startswith(("float8", "float4"))


def converted(array: Array, dtype: Any) -> Array:
    """The array in another type, as ONNX Cast does it."""
    target = np.dtype(dtype)
    if is_tiny(target):
        raise ValueError("what becomes of numbers that are too large is the runtime's choice")
    if target.kind == "b":
        return np.asarray(array != 0)
    if array.dtype.kind not in "biu" and target.kind in "iu":
        array = np.trunc(array.astype(np.float64))
    return np.asarray(array.astype(target))


def _cast(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    dtype = call.dtype(1) if call.node.op == "CastLike" else call.attr("to")
    if dtype is None:
        raise TypeError("the type is not known")
    return [converted(_needed(arrays, 0), onnx.helper.tensor_dtype_to_np_dtype(dtype))]


def _clip(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    result = _needed(arrays, 0)
    low, high = _given(arrays, 1), _given(arrays, 2)
    for bound, name, limit in ((low, "min", np.maximum), (high, "max", np.minimum)):
        given = call.attr(name) if bound is None else bound
        if given is not None:
            result = limit(result, np.asarray(given).astype(result.dtype))
    return [result]


def _is_inf(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    x = _needed(arrays, 0)
    positive = np.isposinf(x) if call.attr("detect_positive", 1) else np.zeros(x.shape, bool)
    negative = np.isneginf(x) if call.attr("detect_negative", 1) else np.zeros(x.shape, bool)
    return [positive | negative]


def _dequantize(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    x, scale, zero = _needed(arrays, 0), _needed(arrays, 1), _given(arrays, 2)
    axis, block = int(call.attr("axis", 1)), int(call.attr("block_size", 0))

    def spread(parameter: Array) -> Array:
        if parameter.size == 1:
            return parameter.reshape(())
        if parameter.ndim == 1 and not block:
            place = [1] * x.ndim
            place[axis] = parameter.size
            return parameter.reshape(place)
        size = block or -(-x.shape[axis] // parameter.shape[axis])
        return np.repeat(parameter, size, axis=axis).take(range(x.shape[axis]), axis=axis)

    wide = (
        np.int32
        if x.dtype.kind in "iu" or x.dtype.name in ("int4", "uint4", "int2", "uint2")
        else np.float32
    )
    shifted = x.astype(wide)
    if zero is not None:
        shifted = shifted - spread(zero).astype(wide)
    return [(shifted.astype(np.float32) * spread(scale).astype(np.float32)).astype(scale.dtype)]


def _dropout(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    training = _given(arrays, 2)
    if training is not None and bool(training):
        raise ValueError("dropout while training is random")
    return [_needed(arrays, 0)]


# --- views ----------------------------------------------------------------------------------------


def _identity(_: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    return [_needed(arrays, 0)]


def _reshape(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    x = _needed(arrays, 0)
    target = _integers(call, arrays, "shape", 1) or []
    if not call.attr("allowzero", 0):
        target = [x.shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return [x.reshape(target)]


def _transpose(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    return [_needed(arrays, 0).transpose(call.attr("perm"))]


def _squeeze(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    axes = _integers(call, arrays, "axes", 1)
    return [np.squeeze(_needed(arrays, 0), None if not axes else tuple(axes))]


def _unsqueeze(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    return [np.expand_dims(_needed(arrays, 0), tuple(_integers(call, arrays, "axes", 1) or ()))]


def _flatten(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    x, axis = _needed(arrays, 0), int(call.attr("axis", 1))
    rows = int(np.prod(x.shape[:axis], dtype=np.int64))
    return [x.reshape(rows, x.size // rows if rows else 0)]


def _slice(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    x = _needed(arrays, 0)
    starts, ends, axes, steps = (
        _integers(call, arrays, name, index)
        for index, name in enumerate(("starts", "ends", "axes", "steps"), start=1)
    )
    if starts is None or ends is None:
        raise ValueError("no starts or ends")
    cut = [slice(None)] * x.ndim
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = axes[index] if axes else index
        step = steps[index] if steps else 1
        cut[axis] = slice(start, None if step < 0 and end < -x.shape[axis] else end, step)
    return [x[tuple(cut)]]


def _split(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    x, axis = _needed(arrays, 0), int(call.attr("axis", 0))
    sizes = _integers(call, arrays, "split", 1)
    if sizes is None:
        count = int(call.attr("num_outputs", len(call.node.outputs)))
        part = -(-x.shape[axis] // count)
        sizes = [part] * (count - 1) + [x.shape[axis] - part * (count - 1)]
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _concat(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    return [
        np.concatenate([array for array in arrays if array is not None], int(call.attr("axis", 1)))
    ]


def _expand(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    x = _needed(arrays, 0)
    target = _integers(call, arrays, "shape", 1) or []
    return [np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(target)))]


def _tile(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    return [np.tile(_needed(arrays, 0), _integers(call, arrays, "repeats", 1) or [])]


def _pad(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    x, pads = _needed(arrays, 0), _integers(call, arrays, "pads", 1) or []
    axes = _integers(call, arrays, "axes", 3) if call.opset >= 18 else None
    axes = list(range(x.ndim)) if axes is None else axes
    if call.attr("mode", "constant") != "constant" or min(pads, default=0) < 0:
        raise ValueError("only padding with a constant is folded")
    widths = [(0, 0)] * x.ndim
    for index, axis in enumerate(axes):
        widths[axis] = (pads[index], pads[index + len(axes)])
    fill = _given(arrays, 2) if call.opset >= 11 else np.asarray(call.attr("value", 0.0))
    return [np.pad(x, widths, constant_values=0 if fill is None else fill.item())]


def _gather(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    return [np.take(_needed(arrays, 0), _needed(arrays, 1), axis=int(call.attr("axis", 0)))]


def _gather_elements(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    x, indices, axis = _needed(arrays, 0), _needed(arrays, 1), int(call.attr("axis", 0))
    grid: list[Array] = list(np.indices(indices.shape, sparse=True))
    grid[axis] = indices
    return [x[tuple(grid)]]


def _gather_nd(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    x, indices, batch = _needed(arrays, 0), _needed(arrays, 1), int(call.attr("batch_dims", 0))
    grid = np.indices(indices.shape[:-1], sparse=True)[:batch]
    return [x[(*grid, *np.moveaxis(indices, -1, 0))]]


def _scatter_nd(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    if call.attr("reduction", "none") != "none":
        raise ValueError("only replacing is folded")
    result = _needed(arrays, 0).copy()
    result[tuple(np.moveaxis(_needed(arrays, 1), -1, 0))] = _needed(arrays, 2)
    return [result]


# --- makers ---------------------------------------------------------------------------------------


def _range(_: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    start, limit, delta = (_needed(arrays, index).reshape(()) for index in range(3))
    count = max(int(np.ceil((limit.astype(np.float64) - start) / delta)), 0)
    return [(start + np.arange(count) * delta).astype(start.dtype)]


def _constant_of_shape(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    value = call.attr("value")
    fill = np.zeros(1, np.float32) if value is None else value
    return [np.broadcast_to(fill.reshape(()), tuple(int(n) for n in _needed(arrays, 0)))]


def _eye_like(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    rows, columns = _needed(arrays, 0).shape
    return [np.eye(rows, columns, int(call.attr("k", 0)))]


def _trilu(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    x, diagonal = _needed(arrays, 0), _given(arrays, 1)
    offset = 0 if diagonal is None else int(diagonal)
    return [np.triu(x, offset) if call.attr("upper", 1) else np.tril(x, offset)]


def _one_hot(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    indices, depth, values = (_needed(arrays, index) for index in range(3))
    size = int(depth.reshape(()))
    hot = (indices[..., None] % size) == np.arange(size)
    hot &= ((indices >= -size) & (indices < size))[..., None]
    axis = normalized(int(call.attr("axis", -1)), indices.ndim + 1)
    return [np.moveaxis(np.where(hot, values[1], values[0]), -1, -1 if axis is None else axis)]


def _cumulative_sum(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    x, axis = _needed(arrays, 0), int(_needed(arrays, 1).reshape(()))
    if call.attr("reverse", 0):
        x = np.flip(x, axis)
    result = np.cumsum(x, axis, dtype=x.dtype)
    if call.attr("exclusive", 0):
        result = result - x
    return [np.flip(result, axis) if call.attr("reverse", 0) else result]


# --- reductions and products ----------------------------------------------------------------------


def _reduction(function: Callable[..., Any]) -> Fold:
    def fold(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
        x, axes = _needed(arrays, 0), _integers(call, arrays, "axes", 1)
        if not axes and call.attr("noop_with_empty_axes", 0):
            return [x]
        return [
            np.asarray(
                function(
                    x, axis=tuple(axes) if axes else None, keepdims=bool(call.attr("keepdims", 1))
                )
            )
        ]

    return fold


def _norm(x: Array, axis: tuple[int, ...] | None, keepdims: bool) -> Array:
    return np.asarray(np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims)))


def _arg_extreme(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    x, axis = _needed(arrays, 0), int(call.attr("axis", 0))
    function = np.argmax if call.node.op == "ArgMax" else np.argmin
    if call.attr("select_last_index", 0):
        raise ValueError("only the first index is folded")
    result = function(x, axis)
    return [np.expand_dims(result, axis) if call.attr("keepdims", 1) else np.asarray(result)]


def _non_zero(_: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    return [np.asarray(np.nonzero(np.atleast_1d(_needed(arrays, 0))), dtype=np.int64)]


def _matmul(_: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    return [np.matmul(_needed(arrays, 0), _needed(arrays, 1))]


def _einsum(call: Call, arrays: Sequence[Array | None]) -> Sequence[Array]:
    return [np.einsum(call.attr("equation"), *[array for array in arrays if array is not None])]


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
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

FOLDS: dict[str, Fold] = {
    **{name: _elementwise(function) for name, function in _ELEMENTWISE.items()},
    "ArgMax": _arg_extreme,
    "ArgMin": _arg_extreme,
    "Cast": _cast,
    "CastLike": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumulative_sum,
    "DequantizeLinear": _dequantize,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Identity": _identity,
    "IsInf": _is_inf,
    "MatMul": _matmul,
    "Mod": _modulo,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "ReduceL2": _reduction(_norm),
    "ReduceMax": _reduction(np.max),
    "ReduceMean": _reduction(np.mean),
    "ReduceMin": _reduction(np.min),
    "ReduceProd": _reduction(np.prod),
    "ReduceSum": _reduction(np.sum),
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "com.microsoft:DequantizeLinear": _dequantize,
}

_VIEWS = """Cast CastLike Concat DequantizeLinear Dropout Flatten Gather Identity Reshape Slice
    Split Squeeze Transpose Unsqueeze com.microsoft:DequantizeLinear"""

KEEPS_SIZE: dict[str, bool] = dict.fromkeys([*_VIEWS.split(), *_ELEMENTWISE, "Clip"], True)
"""Operators whose result is about as large as what they read: these are folded at any size."""
