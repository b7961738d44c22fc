"""Shape rules of elementwise operators: shapes broadcast, small integers are computed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from onnx import TensorProto

from onnx_fuse.analysis.dims.dim import Dim, total, truncated_quotient
from onnx_fuse.analysis.dims.order import maximum, minimum
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.shapes.facts import (
    MAX_CONTENT,
    NOTHING,
    CallFacts,
    Content,
    Fact,
    Rule,
    broadcast_shapes,
    elements,
    mapped,
)
from onnx_fuse.analysis.shapes.lengths import are_lengths

Element: TypeAlias = "Dim | None"
Function: TypeAlias = Callable[..., Element]

INTEGERS = frozenset(
    (
        TensorProto.INT8,
        TensorProto.INT16,
        TensorProto.INT32,
        TensorProto.INT64,
        TensorProto.UINT8,
        TensorProto.UINT16,
        TensorProto.UINT32,
        TensorProto.UINT64,
    )
)
# Types that hold the integers of shapes exactly.
_EXACT = frozenset((TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE))


# --- integers of one element ----------------------------------------------------------------------


def _truth(value: bool | None) -> Element:
    return None if value is None else Dim.of(int(value))


def _equal(a: Dim, b: Dim) -> Element:
    return _truth(True if a == b else False if (a - b).is_not(0) else None)


def _less(a: Dim, b: Dim) -> Element:
    low, high = (a - b).bounds()
    return _truth(True if high < 0 else False if low >= 0 else None)


def _less_or_equal(a: Dim, b: Dim) -> Element:
    return _truth(None if (greater := _less(b, a)) is None else greater == 0)


def _where(condition: Element, a: Element, b: Element) -> Element:
    if condition is None or (number := condition.as_int()) is None:
        return a if a == b else None
    return a if number else b


def _and(a: Element, b: Element) -> Element:
    if (a is not None and a == 0) or (b is not None and b == 0):
        return Dim.of(0)
    return None if a is None or b is None else a * b


def _or(a: Element, b: Element) -> Element:
    if (a is not None and a == 1) or (b is not None and b == 1):
        return Dim.of(1)
    return None if a is None or b is None else a + b - a * b


def _abs(a: Dim) -> Element:
    low, high = a.bounds()
    return a if low >= 0 else -a if high <= 0 else None


def _power(a: Dim, b: Dim) -> Element:
    exponent = b.as_int()
    if exponent is None or not 0 <= exponent <= 4:
        return None
    result = Dim.of(1)
    for _ in range(exponent):
        result = result * a
    return result


def _remainder(a: Dim, b: Dim) -> Element:
    return None if b == 0 else a % b


def _truncated_remainder(a: Dim, b: Dim) -> Element:
    return _remainder(a, b) if a.bounds()[0] >= 0 and b.bounds()[0] >= 0 else None


def _quotient(a: Dim, b: Dim) -> Element:
    return None if b == 0 else truncated_quotient(a, b)


def _known(function: Callable[..., Element]) -> Function:
    """Return the function, not called where an argument is not known."""
    return lambda *args: None if any(arg is None for arg in args) else function(*args)


_CONTENT: dict[str, Function] = {
    "Abs": _known(_abs),
    "Add": _known(operator.add),
    "And": _and,
    "Ceil": _known(lambda a: a),
    "Div": _known(_quotient),
    "Equal": _known(_equal),
    "Floor": _known(lambda a: a),
    "Greater": _known(lambda a, b: _less(b, a)),
    "GreaterOrEqual": _known(lambda a, b: _less_or_equal(b, a)),
    "Less": _known(_less),
    "LessOrEqual": _known(_less_or_equal),
    "Max": _known(lambda *args: maximum(*args)),
    "Min": _known(lambda *args: minimum(*args)),
    "Mod": _known(_remainder),
    "Mul": _known(operator.mul),
    "Neg": _known(operator.neg),
    "Not": _known(lambda a: 1 - a),
    "Or": _or,
    "Pow": _known(_power),
    "Round": _known(lambda a: a),
    "Sub": _known(operator.sub),
    "Sum": _known(lambda *args: total(args)),
    "Where": _where,
}


def computed_content(call: CallFacts, dtype: int | None) -> Content | None:
    """Return the integers that an elementwise node computes, if all inputs' are followed.

    None for an element that is not known, or that `dtype` might not hold.
    """
    function = _CONTENT.get(call.node.op)
    contents = all_known(call.content(index) for index in range(len(call.inputs)))
    if function is None or not contents:
        return None
    try:
        arrays = np.broadcast_arrays(*contents)
    except ValueError:
        return None
    if arrays[0].size > MAX_CONTENT:
        return None
    floating = call.dtype(1 if call.node.op == "Where" else 0) not in INTEGERS | {TensorProto.BOOL}
    if floating and call.node.op == "Div":
        function = _known(lambda a, b: a.divide(b))
    if call.node.op == "Mod" and call.attr("fmod", 0):
        function = _known(_truncated_remainder)
    return mapped(lambda *args: held(function(*args), dtype), *arrays)


def held(dim: Element, dtype: int | None) -> Element:
    """Return the integer, or None where a tensor of `dtype` might hold another one instead.

    float32 holds extents (below 2**24), but not every product of them.
    """
    if dim is None or not dim.fits_int64():
        return None
    if dtype in _EXACT or (dtype in INTEGERS and dim.as_int() is not None):
        return dim
    if dtype != TensorProto.FLOAT:
        return None
    number = dim.as_int()
    if number is not None:
        return dim if abs(number) < 1 << 24 else None
    return dim if dim.degree() == 1 else None


# --- rules ----------------------------------------------------------------------------------------


def _broadcasting(dtype_of: int, dtype: int | None = None) -> Rule:
    """Return all inputs broadcast; the type is `dtype` or that of input `dtype_of`."""

    def rule(call: CallFacts) -> Sequence[Fact]:
        element_type = dtype if dtype is not None else call.dtype(dtype_of)
        shape = broadcast_shapes([call.shape(index) for index in range(len(call.inputs))])
        return [Fact(shape, element_type, computed_content(call, element_type))]

    return rule


def _equality(call: CallFacts) -> Sequence[Fact]:
    """Equal; a length is no negative number, though its formula alone might be one."""
    [fact] = _broadcasting(0, TensorProto.BOOL)(call)
    for index, value in enumerate(call.node.inputs):
        other, content = call.content(1 - index), fact.content
        if other is None or content is None or not are_lengths(value):
            continue
        if all(dim is not None and dim.bounds()[1] < 0 for dim in elements(other)):
            return [Fact(fact.shape, fact.dtype, mapped(lambda _: Dim.of(0), content))]
    return [fact]


def _like_first(dtype: int | None = None) -> Rule:
    """Return the shape of the first input, and its type or `dtype`."""

    def rule(call: CallFacts) -> Sequence[Fact]:
        element_type = call.dtype(0) if dtype is None else dtype
        content = computed_content(call, element_type) if len(call.inputs) == 1 else None
        return [Fact(call.fact(0).shape, element_type, content)]

    return rule


def _identity(call: CallFacts) -> Sequence[Fact]:
    return [call.fact(0)]


def _cast(call: CallFacts) -> Sequence[Fact]:
    to = int(call.attr("to")) if call.node.op == "Cast" else call.dtype(1)
    source, content = call.dtype(0), call.content(0)

    def cast(dim: Element) -> Element:
        if to == TensorProto.BOOL and source != TensorProto.BOOL and dim is not None:
            dim = _truth(False if dim == 0 else True if dim.is_not(0) else None)
        return held(dim, to)

    kept = None if content is None or to is None else mapped(cast, content)
    return [Fact(call.fact(0).shape, to, kept)]


def _clip(call: CallFacts) -> Sequence[Fact]:
    content = None if call.given_as_attribute("min", "max") else call.content(0)
    for slot, limit in ((1, maximum), (2, minimum)):
        if call.has(slot):
            content = _limited(content, limit, call.item(slot))
    return [Fact(call.fact(0).shape, call.dtype(0), content)]


def _limited(content: Content | None, limit: Function, bound: Dim | None) -> Content | None:
    if content is None or bound is None:
        return None
    return mapped(lambda dim: _known(limit)(dim, bound), content)


def _dropout(call: CallFacts) -> Sequence[Fact]:
    return [call.fact(0), call.like(0, TensorProto.BOOL if call.opset >= 10 else None)]


def _quantize(call: CallFacts) -> Sequence[Fact]:
    dtype = call.dtype(2) if call.has(2) else call.attr("output_dtype") or TensorProto.UINT8
    return [Fact(call.fact(0).shape, dtype)]


def _dequantize(call: CallFacts) -> Sequence[Fact]:
    return [Fact(call.fact(0).shape, call.attr("output_dtype") or call.dtype(1))]


def _dynamic_quantize(call: CallFacts) -> Sequence[Fact]:
    scale, zero_point = Fact((), TensorProto.FLOAT), Fact((), TensorProto.UINT8)
    return [call.like(0, TensorProto.UINT8), scale, zero_point]


def _like_with_dtype(call: CallFacts) -> Sequence[Fact]:
    return [call.like(0, call.attr("dtype") or None)]


def _layer_norm(call: CallFacts) -> Sequence[Fact]:
    """LayerNormalization: the input's shape, then mean and inverse deviation with 1 on its axes."""
    shape, stash = call.shape(0), call.attr("stash_type", TensorProto.FLOAT)
    statistics = NOTHING
    if shape is not None:
        axis = int(call.attr("axis", -1))
        first = axis + len(shape) if axis < 0 else axis
        statistics = Fact([Dim.of(1) if i >= first else dim for i, dim in enumerate(shape)], stash)
    return [Fact(shape, call.dtype(1) if call.has(1) else call.dtype(0)), statistics, statistics]


def _skip_layer_norm(call: CallFacts) -> Sequence[Fact]:
    shape = call.shape(0)
    statistics = Fact(None if shape is None else [*shape[:-1], Dim.of(1)], TensorProto.FLOAT)
    return [call.like(0), statistics, statistics, call.like(0)]


def _batch_norm(call: CallFacts) -> Sequence[Fact]:
    return [call.like(0), *[call.like(3)] * 4]


_UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh Celu Ceil Cos Cosh Elu Erf Exp Floor HardSigmoid
    HardSwish Hardmax LeakyRelu Log LogSoftmax LpNormalization Mish Neg Reciprocal Relu Round Selu
    Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
    Gelu BitwiseNot Not Trilu CumSum CumProd InstanceNormalization GroupNormalization LRN
    MeanVarianceNormalization ReverseSequence PRelu ScatterElements Scatter
    TensorScatter"""
_BINARY = """Add Sub Mul Div Pow Mod Max Min Sum Mean And Or Xor
    BitShift BitwiseAnd BitwiseOr BitwiseXor"""
_COMPARISONS = "Greater GreaterOrEqual Less LessOrEqual"

RULES: dict[str, Rule] = {
    **{name: _like_first() for name in _UNARY.split()},
    **{name: _broadcasting(0) for name in _BINARY.split()},
    **{name: _broadcasting(0, TensorProto.BOOL) for name in _COMPARISONS.split()},
    **{name: _like_first(TensorProto.BOOL) for name in ("IsInf", "IsNaN")},
    **dict.fromkeys(("Cast", "CastLike"), _cast),
    **dict.fromkeys(
        ("Bernoulli", "EyeLike", "RandomNormalLike", "RandomUniformLike"), _like_with_dtype
    ),
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "DequantizeLinear": _dequantize,
    "Dropout": _dropout,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "Equal": _equality,
    "Identity": _identity,
    "QuantizeLinear": _quantize,
    "Where": _broadcasting(1),
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), _layer_norm
    ),
    **{
        f"com.microsoft:{name}": _like_first()
        for name in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu", "BiasAdd")
    },
    **{
        f"com.microsoft:{name}": _skip_layer_norm
        for name in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
    },
    "com.microsoft:DequantizeLinear": _dequantize,
    "com.microsoft:QuantizeLinear": _quantize,
}
