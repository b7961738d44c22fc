"""Shape rules of reductions, of operators that make tensors or shapes, and of sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto

from onnx_fuse.analysis.dims.dim import Dim, ceil_quotient, numbers_of, product, total
from onnx_fuse.analysis.dims.order import maximum, minimum
from onnx_fuse.analysis.shapes.facts import (
    MAX_CONTENT,
    NOTHING,
    CallFacts,
    Content,
    Fact,
    PartialShape,
    Rule,
    as_dims,
    content_of,
    normalized,
    of_rank,
)
from onnx_fuse.analysis.splice import spliced
from onnx_fuse.ir.attributes import AttributeRef

_CROP = "tf_crop_and_resize"  # a Resize of a region, whose extents are not the input's times scales

# --- shapes as numbers ----------------------------------------------------------------------------


def _scalar(dim: Dim | None) -> Content:
    content = np.empty((), dtype=object)
    content[()] = dim
    return content


def _shape(call: CallFacts) -> Sequence[Fact]:
    shape = call.shape(0)
    if shape is None:
        return [Fact([None], TensorProto.INT64)]
    taken = shape[slice(call.attr("start", 0), call.attr("end"))]
    return [Fact([Dim.of(len(taken))], TensorProto.INT64, content_of(taken))]


def _size(call: CallFacts) -> Sequence[Fact]:
    shape = call.shape(0)
    return [Fact((), TensorProto.INT64, None if shape is None else _scalar(product(shape)))]


def _range(call: CallFacts) -> Sequence[Fact]:
    start, limit, delta = (call.item(index) for index in range(3))
    step = None if delta is None else delta.as_int()
    given = None if start is not None else call.floats(0)
    is_fraction = given is not None and len(given) == 1 and math.isfinite(given[0])
    if given is not None and is_fraction and step:
        # Up to an integer, as many numbers follow 0.5 as follow 0.
        start = Dim.of(math.floor(given[0]) if step > 0 else math.ceil(given[0]))
    if start is None or limit is None or not step:
        return [Fact([None], call.dtype(0))]
    apart = ceil_quotient(limit - start, step) if step > 0 else ceil_quotient(start - limit, -step)
    count = maximum(apart, 0)
    number = count.as_int()
    content = None
    if number is not None and number <= MAX_CONTENT and not is_fraction:
        content = content_of([start + step * index for index in range(number)])
    return [Fact([count], call.dtype(0), content)]


def _constant_of_shape(call: CallFacts) -> Sequence[Fact]:
    shape, value = call.list_of("shape", 0), call.attr("value")
    dtype = TensorProto.FLOAT if value is None else call.tensor_dtype("value")
    if shape is None:
        return [Fact(of_rank(call.length(0)), dtype)]
    numbers = numbers_of(shape)
    content = None
    if numbers is not None and math.prod(numbers) <= MAX_CONTENT:
        fill = 0.0 if value is None else float(value.reshape(-1)[0])
        if fill.is_integer() and abs(fill) < 1 << 24:
            content = np.full(numbers, Dim.of(int(fill)), dtype=object)
    return [Fact(shape, dtype, content)]


def _constant(call: CallFacts) -> Sequence[Fact]:
    """A Constant whose value is an attribute of the function's call; others are known already."""
    for name, dtype in (("value_int", TensorProto.INT64), ("value_float", TensorProto.FLOAT)):
        if isinstance(call.node.attr(name), AttributeRef) and call.attr(name) is None:
            return [Fact((), dtype)]
        if (number := call.attr(name)) is not None:
            known = name == "value_int"
            return [Fact((), dtype, _scalar(Dim.of(number)) if known else None)]
    for name, dtype in (("value_ints", TensorProto.INT64), ("value_floats", TensorProto.FLOAT)):
        if (numbers := call.attr(name)) is not None:
            known = name == "value_ints" and len(numbers) <= MAX_CONTENT
            return [Fact([Dim.of(len(numbers))], dtype, content_of(numbers) if known else None)]
    return [NOTHING]


def _filled(call: CallFacts) -> Sequence[Fact]:
    shape = call.attr("shape")
    extents = None if shape is None else [Dim.of(size) for size in shape]
    return [Fact(extents, call.attr("dtype", TensorProto.FLOAT))]


# --- reductions -----------------------------------------------------------------------------------


def _reduced(shape: PartialShape, axes: Sequence[int], keep: bool) -> list[Dim | None]:
    gone = {normalized(axis, len(shape)) for axis in axes}
    if keep:
        return [Dim.of(1) if axis in gone else dim for axis, dim in enumerate(shape)]
    return [dim for axis, dim in enumerate(shape) if axis not in gone]


def _reduce(call: CallFacts) -> Sequence[Fact]:
    shape, axes, keep = call.shape(0), call.ints_of("axes", 1), call.attr("keepdims", 1) == 1
    if shape is None or axes is None:
        return [Fact(of_rank(call.rank(0)) if keep else None, call.dtype(0))]
    if not axes and call.attr("noop_with_empty_axes", 0):
        return [call.fact(0)]
    axes = axes or list(range(len(shape)))
    content = call.content(0)
    if content is not None:
        content = _reduced_content(call.node.op, content, keep)
    return [Fact(_reduced(shape, axes, keep), call.dtype(0), content)]


def _reduced_content(name: str, content: Content, keep: bool) -> Content | None:
    functions: dict[str, Callable[[list[Dim]], Dim]] = {
        "ReduceProd": product,
        "ReduceSum": total,
        "ReduceMax": lambda dims: maximum(*dims),
        "ReduceMin": lambda dims: minimum(*dims),
    }
    function = functions.get(name)
    dims = as_dims(content)
    if function is None or content.ndim != 1 or not dims:
        return None
    result = _scalar(function(dims))
    return result.reshape(1) if keep else result


def _arg_extreme(call: CallFacts) -> Sequence[Fact]:
    shape = call.shape(0)
    if shape is None:
        return [Fact(None, TensorProto.INT64)]
    axes = [int(call.attr("axis", 0))]
    return [Fact(_reduced(shape, axes, call.attr("keepdims", 1) == 1), TensorProto.INT64)]


def _top_k(call: CallFacts) -> Sequence[Fact]:
    shape, count = call.shape(0), call.attr("k")
    axis = None if shape is None else normalized(int(call.attr("axis", -1)), len(shape))
    if shape is None or axis is None:
        return [Fact(None, call.dtype(0)), Fact(None, TensorProto.INT64)]
    result = spliced(shape, axis, call.item(1) if count is None else Dim.of(count))
    return [Fact(result, call.dtype(0)), Fact(result, TensorProto.INT64)]


def _non_zero(call: CallFacts) -> Sequence[Fact]:
    shape = call.shape(0)
    return [Fact([None if shape is None else Dim.of(max(len(shape), 1)), None], TensorProto.INT64)]


def _compress(call: CallFacts) -> Sequence[Fact]:
    shape, axis = call.shape(0), call.attr("axis")
    if axis is None or shape is None:
        return [Fact([None] if axis is None else None, call.dtype(0))]
    place = normalized(int(axis), len(shape))
    return [Fact([None if i == place else dim for i, dim in enumerate(shape)], call.dtype(0))]


def _unique(call: CallFacts) -> Sequence[Fact]:
    return [*_compress(call), *[Fact([None], TensorProto.INT64)] * 3]


def _resize(call: CallFacts) -> Sequence[Fact]:
    """Resize and Upsample: extents are given as sizes, or are the input's times scales."""
    shape = call.shape(0)
    if shape is None:
        return [Fact(None, call.dtype(0))]
    unknown = [Fact(of_rank(len(shape)), call.dtype(0))]
    if call.given_as_attribute("axes") or call.attr("coordinate_transformation_mode") == _CROP:
        return unknown
    if call.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        return unknown
    sizes = call.list_of("sizes", 3) if call.opset >= 11 else None
    if sizes:
        return [Fact(sizes, call.dtype(0))] if len(sizes) == len(shape) else unknown
    scales = call.attr("scales") or call.floats(2 if call.opset >= 11 else 1)
    if scales is None or len(scales) != len(shape):
        return unknown
    return [Fact(list(map(_scaled, shape, scales)), call.dtype(0))]


def _scaled(dim: Dim, scale: float) -> Dim | None:
    """Return `floor(dim * scale)`; None where that may depend on how the product is rounded."""
    if float(scale).is_integer():
        return dim * int(scale)
    number = dim.as_int()
    exact = None if number is None else number * scale
    if exact is None or abs(exact - round(exact)) < 1e-3:
        return None
    return Dim.of(math.floor(exact))


# --- sequences ------------------------------------------------------------------------------------


def _split_to_sequence(call: CallFacts) -> Sequence[Fact]:
    shape = call.shape(0)
    axis = None if shape is None else normalized(int(call.attr("axis", 0)), len(shape))
    if shape is None or axis is None:
        return [NOTHING]
    extent = shape[axis].as_int()
    parts: list[Dim] | None = None
    if not call.has(1):
        parts = None if extent is None or extent > MAX_CONTENT else [Dim.of(1)] * extent
    elif call.shape(1) == ():
        size = (call.ints(1) or [0])[0]
        if extent is not None and size > 0 and extent <= MAX_CONTENT * size:
            parts = [Dim.of(min(size, extent - start)) for start in range(0, extent, size)]
    else:
        parts = call.list_of("split", 1)
    if parts is None:
        return [NOTHING]
    dropped = not call.has(1) and not call.attr("keepdims", 1)
    cut = [[] if dropped else [part] for part in parts]
    items = tuple(Fact(spliced(shape, axis, *part), call.dtype(0)) for part in cut)
    return [Fact(items=items)]


def _sequence_construct(call: CallFacts) -> Sequence[Fact]:
    return [Fact(items=tuple(call.fact(index) for index in range(len(call.inputs))))]


def _sequence_empty(_: CallFacts) -> Sequence[Fact]:
    return [Fact(items=())]


def _place(call: CallFacts, index: int, count: int) -> int | None:
    places = call.ints(index)
    return None if places is None or len(places) != 1 else normalized(places[0], count)


def _sequence_at(call: CallFacts) -> Sequence[Fact]:
    items = call.fact(0).items
    place = None if items is None else _place(call, 1, len(items))
    return [NOTHING if items is None or place is None else items[place]]


def _sequence_insert(call: CallFacts) -> Sequence[Fact]:
    items = call.fact(0).items
    if items is None:
        return [NOTHING]
    place = _place(call, 2, len(items) + 1) if call.has(2) else len(items)
    if place is None:
        return [NOTHING]
    return [Fact(items=(*items[:place], call.fact(1), *items[place:]))]


def _sequence_length(call: CallFacts) -> Sequence[Fact]:
    items = call.fact(0).items
    return [Fact((), TensorProto.INT64, None if items is None else _scalar(Dim.of(len(items))))]


def _concat_from_sequence(call: CallFacts) -> Sequence[Fact]:
    items = call.fact(0).items
    if not items or any(item.shape is None for item in items):
        return [NOTHING]
    shapes = [item.extents for item in items]
    first, stacked = shapes[0], bool(call.attr("new_axis", 0))
    axis = normalized(int(call.attr("axis", 0)), len(first) + stacked)
    if axis is None or any(len(shape) != len(first) for shape in shapes):
        return [NOTHING]
    if stacked:
        return [Fact((*first[:axis], Dim.of(len(items)), *first[axis:]), items[0].dtype)]
    return [Fact(spliced(first, axis, total(s[axis] for s in shapes)), items[0].dtype)]


_REDUCTIONS = """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare"""

RULES: dict[str, Rule] = {
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg_extreme),
    **dict.fromkeys(("RandomNormal", "RandomUniform"), _filled),
    "Compress": _compress,
    "ConcatFromSequence": _concat_from_sequence,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "NonZero": _non_zero,
    "Range": _range,
    "Resize": _resize,
    "Upsample": _resize,
    "SequenceAt": _sequence_at,
    "SequenceConstruct": _sequence_construct,
    "SequenceEmpty": _sequence_empty,
    "SequenceInsert": _sequence_insert,
    "SequenceLength": _sequence_length,
    "Shape": _shape,
    "Size": _size,
    "SplitToSequence": _split_to_sequence,
    "TopK": _top_k,
    "Unique": _unique,
}
