"""What operators make of arrays, also of arrays of extents where they only move elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx

from onnx_fuse.analysis.malformed import MALFORMED
from onnx_fuse.analysis.shapes.arithmetic import ELEMENTWISE, Array, converted


@dataclass(frozen=True)
class Known:
    """An operator's name and attributes, and its inputs as arrays: None where one is left out."""

    op: str
    arrays: Sequence[Array | None]
    attributes: Mapping[str, Any]
    opset: int
    outputs: int = 1

    def __getitem__(self, index: int) -> Array:
        """Return an input. Raises: ValueError if it is left out."""
        array = self.get(index)
        if array is None:
            raise ValueError(f"input {index} is left out")
        return array

    def get(self, index: int) -> Array | None:
        """Return an input that may be left out."""
        return self.arrays[index] if index < len(self.arrays) else None

    @property
    def given(self) -> list[Array]:
        """The inputs that aren't left out."""
        return [array for array in self.arrays if array is not None]

    def attr(self, name: str, default: Any = None) -> Any:
        """Return an attribute of the node; `default` if it doesn't have it."""
        return self.attributes.get(name, default)

    def integers(self, name: str, index: int) -> list[int] | None:
        """Return a list, an attribute in old opsets and an input in new ones; None if not given."""
        value = self.attr(name)
        if value is not None:
            return [int(item) for item in value]
        array = self.get(index)
        return None if array is None else [int(item) for item in array.reshape(-1)]


Fold: TypeAlias = Callable[[Known], Sequence[Array]]
"""From a node's inputs to its outputs; raises what numpy raises."""


# --- element by element ---------------------------------------------------------------------------


def _elementwise(function: Callable[..., Any]) -> Fold:
    def fold(node: Known) -> Sequence[Array]:
        return [function(*node.given)]

    return fold


def _modulo(node: Known) -> Sequence[Array]:
    a, b = node[0], node[1]
    if a.dtype.kind in "iu" and not np.all(b):
        raise ZeroDivisionError("integer division by zero")
    return [np.fmod(a, b) if node.attr("fmod", 0) else np.mod(a, b)]


def _cast(node: Known) -> Sequence[Array]:
    return [converted(node[0], onnx.helper.tensor_dtype_to_np_dtype(node.attr("to")))]


def _clip(node: Known) -> Sequence[Array]:
    result = node[0]
    low, high = node.get(1), node.get(2)
    for bound, name, limit in ((low, "min", np.maximum), (high, "max", np.minimum)):
        given = node.attr(name) if bound is None else bound
        if given is not None:
            result = limit(result, np.asarray(given).astype(result.dtype))
    return [result]


def _is_inf(node: Known) -> Sequence[Array]:
    x = node[0]
    positive = np.isposinf(x) if node.attr("detect_positive", 1) else np.zeros(x.shape, bool)
    negative = np.isneginf(x) if node.attr("detect_negative", 1) else np.zeros(x.shape, bool)
    return [positive | negative]


def _dequantize(node: Known) -> Sequence[Array]:
    x, scale, zero = node[0], node[1], node.get(2)
    axis, block = int(node.attr("axis", 1)), int(node.attr("block_size", 0))

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


def _dropout(node: Known) -> Sequence[Array]:
    training = node.get(2)
    if training is not None and bool(training):
        raise ValueError("dropout while training is random")
    return [node[0]]


# --- views ----------------------------------------------------------------------------------------


def _identity(node: Known) -> Sequence[Array]:
    return [node[0]]


def _reshape(node: Known) -> Sequence[Array]:
    x = node[0]
    target = node.integers("shape", 1) or []
    if not node.attr("allowzero", 0):
        target = [x.shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return [x.reshape(target)]


def _transpose(node: Known) -> Sequence[Array]:
    return [node[0].transpose(node.attr("perm"))]


def _squeeze(node: Known) -> Sequence[Array]:
    axes = node.integers("axes", 1)
    return [np.squeeze(node[0], None if not axes else tuple(axes))]


def _unsqueeze(node: Known) -> Sequence[Array]:
    return [np.expand_dims(node[0], tuple(node.integers("axes", 1) or ()))]


def _flatten(node: Known) -> Sequence[Array]:
    x, axis = node[0], int(node.attr("axis", 1))
    rows = int(np.prod(x.shape[:axis], dtype=np.int64))
    return [x.reshape(rows, x.size // rows if rows else 0)]


def _slice(node: Known) -> Sequence[Array]:
    x = node[0]
    starts, ends, axes, steps = (
        node.integers(name, index)
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


def _split(node: Known) -> Sequence[Array]:
    x, axis = node[0], int(node.attr("axis", 0))
    sizes = node.integers("split", 1)
    if sizes is None:
        count = int(node.attr("num_outputs", node.outputs))
        part = -(-x.shape[axis] // count)
        sizes = [part] * (count - 1) + [x.shape[axis] - part * (count - 1)]
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _sequence_at(node: Known) -> Sequence[Array]:
    """Return a part of what was cut: inputs are the place, the whole, and the parts' lengths."""
    position, x, sizes = int(node[0].reshape(())), node[1], node.get(2)
    axis = int(node.attr("axis", 0))
    if sizes is None or sizes.ndim == 0:
        size = 1 if sizes is None else int(sizes)
        starts = np.arange(size, x.shape[axis], size)
    else:
        starts = np.cumsum(sizes)[:-1]
    part = np.split(x, starts, axis)[position]
    return [np.squeeze(part, axis) if sizes is None and not node.attr("keepdims", 1) else part]


def _concat(node: Known) -> Sequence[Array]:
    return [np.concatenate(node.given, int(node.attr("axis", 1)))]


def _expand(node: Known) -> Sequence[Array]:
    x = node[0]
    target = node.integers("shape", 1) or []
    return [np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(target)))]


def _tile(node: Known) -> Sequence[Array]:
    return [np.tile(node[0], node.integers("repeats", 1) or [])]


def _pad(node: Known) -> Sequence[Array]:
    x, pads = node[0], node.integers("pads", 1) or []
    axes = node.integers("axes", 3) if node.opset >= 18 else None
    axes = list(range(x.ndim)) if axes is None else axes
    if node.attr("mode", "constant") != "constant" or min(pads, default=0) < 0:
        raise ValueError("only padding with a constant is folded")
    widths = [(0, 0)] * x.ndim
    for index, axis in enumerate(axes):
        widths[axis] = (pads[index], pads[index + len(axes)])
    fill = node.get(2) if node.opset >= 11 else np.asarray(node.attr("value", 0.0))
    return [np.pad(x, widths, constant_values=0 if fill is None else fill.item())]


def _gather(node: Known) -> Sequence[Array]:
    return [np.take(node[0], node[1], axis=int(node.attr("axis", 0)))]


def _gather_elements(node: Known) -> Sequence[Array]:
    x, indices, axis = node[0], node[1], int(node.attr("axis", 0))
    grid: list[Array] = list(np.indices(indices.shape, sparse=True))
    grid[axis] = indices
    return [x[tuple(grid)]]


def _gather_nd(node: Known) -> Sequence[Array]:
    x, indices, batch = node[0], node[1], int(node.attr("batch_dims", 0))
    grid = np.indices(indices.shape[:-1], sparse=True)[:batch]
    return [x[(*grid, *np.moveaxis(indices, -1, 0))]]


def _scatter(node: Known) -> Sequence[Array]:
    """Return the first input with numbers written, or added, at places."""
    result, indices, updates = node[0].copy(), node[1], node[2]
    if node.op == "ScatterND":
        places: list[Array] = [*np.moveaxis(indices, -1, 0)]
    else:
        places = [*np.indices(indices.shape)]
        places[int(node.attr("axis", 0))] = indices
    match node.attr("reduction", "none"):
        case "none":
            result[tuple(places)] = updates
        case "add":
            np.add.at(result, tuple(places), updates)
        case _:
            raise ValueError("only replacing and adding is folded")
    return [result]


# --- makers ---------------------------------------------------------------------------------------


def _range(node: Known) -> Sequence[Array]:
    start, limit, delta = (node[index].reshape(()) for index in range(3))
    distances = (limit.astype(np.float64) - start, (limit - start).astype(np.float64))
    counts = {max(int(np.ceil(distance / delta)), 0) for distance in distances}
    if len(counts) > 1:
        raise ValueError("rounding decides how many steps there are")
    count = counts.pop()
    return [(start + np.arange(count) * delta).astype(start.dtype)]


def _constant(node: Known) -> Sequence[Array]:
    ((name, value),) = node.attributes.items()
    dtype = np.int64 if name.startswith("value_int") else np.float32
    return [value if name == "value" else np.asarray(value, dtype=dtype)]


def _shape(node: Known) -> Sequence[Array]:
    extents = node[0].shape[int(node.attr("start", 0)) : node.attr("end")]
    return [np.array(extents, dtype=np.int64)]


def _constant_of_shape(node: Known) -> Sequence[Array]:
    value = node.attr("value")
    fill = np.zeros(1, np.float32) if value is None else value
    return [np.broadcast_to(fill.reshape(()), tuple(int(n) for n in node[0]))]


def _eye_like(node: Known) -> Sequence[Array]:
    rows, columns = node[0].shape
    return [np.eye(rows, columns, int(node.attr("k", 0)))]


def _trilu(node: Known) -> Sequence[Array]:
    x, diagonal = node[0], node.get(1)
    offset = 0 if diagonal is None else int(diagonal)
    return [np.triu(x, offset) if node.attr("upper", 1) else np.tril(x, offset)]


def _one_hot(node: Known) -> Sequence[Array]:
    indices, depth, values = (node[index] for index in range(3))
    size = int(depth.reshape(()))
    hot = (indices[..., None] % size) == np.arange(size)
    hot &= ((indices >= -size) & (indices < size))[..., None]
    return [np.moveaxis(np.where(hot, values[1], values[0]), -1, int(node.attr("axis", -1)))]


def _cumulative_sum(node: Known) -> Sequence[Array]:
    x, axis = node[0], int(node[1].reshape(()))
    if node.attr("reverse", 0):
        x = np.flip(x, axis)
    result = np.cumsum(x, axis, dtype=x.dtype)
    if node.attr("exclusive", 0):
        result = result - x
    return [np.flip(result, axis) if node.attr("reverse", 0) else result]


# --- reductions and products ----------------------------------------------------------------------


def _reduction(function: Callable[..., Any]) -> Fold:
    def fold(node: Known) -> Sequence[Array]:
        x, axes = node[0], node.integers("axes", 1)
        if not axes and node.attr("noop_with_empty_axes", 0):
            return [x]
        return [
            np.asarray(
                function(
                    x, axis=tuple(axes) if axes else None, keepdims=node.attr("keepdims", 1) == 1
                )
            )
        ]

    return fold


def _norm(x: Array, axis: tuple[int, ...] | None, keepdims: bool) -> Array:
    return np.asarray(np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims)))


def _arg_extreme(node: Known) -> Sequence[Array]:
    x, axis = node[0], int(node.attr("axis", 0))
    function = np.argmax if node.op == "ArgMax" else np.argmin
    if node.attr("select_last_index", 0):
        raise ValueError("only the first index is folded")
    result = function(x, axis)
    return [np.expand_dims(result, axis) if node.attr("keepdims", 1) == 1 else np.asarray(result)]


def _non_zero(node: Known) -> Sequence[Array]:
    return [np.asarray(np.nonzero(np.atleast_1d(node[0])), dtype=np.int64)]


def _matmul(node: Known) -> Sequence[Array]:
    return [np.matmul(node[0], node[1])]


def _einsum(node: Known) -> Sequence[Array]:
    return [np.einsum(node.attr("equation"), *node.given)]


FOLDS: dict[str, Fold] = {
    **{name: _elementwise(function) for name, function in ELEMENTWISE.items()},
    "ArgMax": _arg_extreme,
    "ArgMin": _arg_extreme,
    "Cast": _cast,
    "CastLike": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
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
    "Scatter": _scatter,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "SequenceAt": _sequence_at,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "com.microsoft:DequantizeLinear": _dequantize,
}

_VIEWS = """Cast CastLike Concat DequantizeLinear Dropout Flatten Gather Identity Reshape
    SequenceAt Slice Split Squeeze Transpose Unsqueeze com.microsoft:DequantizeLinear"""

KEEPS_SIZE = frozenset({*_VIEWS.split(), *ELEMENTWISE, "Clip"})
"""Operators whose result is about as large as what they read: these are folded at any size."""


def folded(node: Known) -> Sequence[Array]:
    """Return what a node computes: nothing if it is invalid, or not folded with its settings."""
    try:
        with np.errstate(all="ignore"):
            return FOLDS[node.op](node)
    except MALFORMED:
        return ()
