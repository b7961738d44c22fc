"""Quantized products: around attention they enter as values, inside of it they are named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from onnx import TensorProto

import onnx_fuse
from onnx_fuse.analysis.algebra.quantized_products import is_quantized_projection
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.ir.load import load
from onnx_fuse.report import Code
from tests.analysis.check import check_results, run
from tests.analysis.samples.builder import Array, Builder
from tests.analysis.samples.forms import HEAD_DIM, NUM_HEADS, Form
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.operators import BATCH, MICROSOFT, ROWS, WIDTH
from tests.analysis.samples.twins import Step, twin
from tests.analysis.verdicts import check_declined
from tests.sessions import plain_session

Product = Callable[[Writer, str, str], str]


def dynamic_product(w: Writer, weights: str, value: str, *, is_joined: bool) -> str:
    """Both are quantized as they come; the scales follow the product, or are inside of it."""
    b = w.b
    right, scale, zero = b.ops("DynamicQuantizeLinear", value, count=3)
    if is_joined:
        return b.op("DynamicQuantizeMatMul", weights, right, scale, zero, domain=MICROSOFT)
    left, own_scale, own_zero = b.ops("DynamicQuantizeLinear", weights, count=3)
    whole = b.op("MatMulInteger", left, right, own_zero, zero)
    scales = b.op("Mul", own_scale, scale)
    return b.op("Mul", b.op("Cast", whole, to=TensorProto.FLOAT), scales)


def scale_of(w: Writer) -> tuple[str, str]:
    return w.b.scalar(1 / 32), w.b.const(128, np.uint8)


def static_product(w: Writer, weights: str, value: str, *, takes_numbers: bool = False) -> str:
    """Both are quantized by scales that are known; the weights may be integers already."""
    quantized = scale_of(w)
    left = weights if takes_numbers else w.b.op("QuantizeLinear", weights, *quantized)
    right = w.b.op("QuantizeLinear", value, *quantized)
    whole = w.b.op("QLinearMatMul", left, *quantized, right, *quantized, *quantized)
    return w.b.op("DequantizeLinear", whole, *quantized)


def integer_softmax(w: Writer, scores: str) -> str:
    quantized = scale_of(w)
    given = w.b.op("QuantizeLinear", scores, *quantized)
    options = {"axis": -1, "opset": 13, "domain": MICROSOFT}
    return w.b.op("QLinearSoftmax", given, *quantized, *quantized, **options)


def masked_integers(w: Writer, scores: str) -> str:
    """Mask the integers that a softmax makes, and add what stands in their place."""
    quantized = scale_of(w)
    weights, options = integer_softmax(w, scores), {"domain": MICROSOFT}
    for op_type in ("QLinearMul", "QLinearAdd"):
        other = w.b.const(128, np.uint8)
        weights = w.b.op(op_type, weights, *quantized, other, *quantized, *quantized, **options)
    return weights


PRODUCTS: dict[str, dict[str, Step | Product]] = {
    "scaled after it": {"product": partial(dynamic_product, is_joined=False)},
    "scaled by itself": {"product": partial(dynamic_product, is_joined=True)},
    "by known scales": {"product": static_product},
    "behind a softmax of integers": {
        "weights": integer_softmax,
        "product": partial(static_product, takes_numbers=True),
    },
    "behind a softmax of integers that are masked": {
        "weights": masked_integers,
        "product": partial(static_product, takes_numbers=True),
    },
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_product_of_integers_is_named(name: str) -> None:
    steps = {key: lambda *args, make=make: make(*args) for key, make in PRODUCTS[name].items()}
    check_declined(lambda: twin(**steps), Code.QUANTIZED)


def test_softmax_of_integers_without_values_is_no_attention() -> None:
    w = Writer(Form())
    quantized = scale_of(w)
    logits = w.b.input("logits", w.random(BATCH, ROWS, WIDTH), ("B", "S", WIDTH))
    chosen = w.b.op("DequantizeLinear", integer_softmax(w, logits), *quantized)
    assert onnx_fuse.explain(w.b.model(chosen), threshold=None).blocks == ()


def learned_query(keys: Callable[[Writer, str], str]) -> Sample:
    """Cross-attention of a constant query with keys made of the context in some way."""
    w = Writer(Form())
    context = w.b.input("context", w.random(BATCH, ROWS, WIDTH), ("B", "S", WIDTH))
    query = w.b.const(w.random(1, NUM_HEADS, 3, HEAD_DIM))
    key, value = (
        w.b.transpose(w.b.reshape(keys(w, context), "B", "S", NUM_HEADS, HEAD_DIM), *perm)
        for perm in ((0, 2, 3, 1), (0, 2, 1, 3))
    )
    weights = w.b.op("Softmax", w.b.op("MatMul", query, key), axis=-1)
    made = w.b.transpose(w.b.op("MatMul", weights, value), 0, 2, 1, 3)
    return Sample(w.b.model(made, rank=4), w.b.feeds, w.record)


def quantized_weights(w: Writer) -> tuple[str, str]:
    return w.b.const(w.rng.integers(-90, 90, (WIDTH, WIDTH)), np.int8), w.b.scalar(0.01)


def joined_projection(w: Writer, context: str) -> str:
    return w.b.op("DynamicQuantizeMatMul", context, *quantized_weights(w), domain=MICROSOFT)


def integer_projection(w: Writer, context: str) -> str:
    whole, scale, zero = w.b.ops("DynamicQuantizeLinear", context, count=3)
    weights, own = quantized_weights(w)
    made = w.b.op("MatMulInteger", whole, weights, zero)
    scales = w.b.op("Mul", scale, own)
    return w.b.op("Mul", w.b.op("Cast", made, to=TensorProto.FLOAT), scales)


def dequantized_projection(w: Writer, context: str, *, of_integers: bool = True) -> str:
    """Multiply floats made of integers: weights alone, or what they are multiplied with, too."""
    quantized = scale_of(w)
    if of_integers:
        whole = w.b.op("QuantizeLinear", context, *quantized)
        context = w.b.op("DequantizeLinear", whole, *quantized)
    weights, scale = quantized_weights(w)
    return w.b.op("MatMul", context, w.b.op("DequantizeLinear", weights, scale))


@pytest.mark.parametrize("of_integers", [True, False])
def test_projection_of_integers_stays_outside_and_one_of_floats_does_not(of_integers: bool) -> None:
    sample = learned_query(partial(dequantized_projection, of_integers=of_integers))
    result = onnx_fuse.fuse(sample.model, threshold=None)
    (block,) = result.report.blocks
    parts = {outside.part for outside in block.outside}
    assert block.code is None
    assert ({"k", "v"} <= parts) == of_integers
    assert of_integers or not {"k", "v"} & parts
    assert onnx_fuse.verify(sample.model, result).passed


@pytest.mark.parametrize(
    ("op_type", "both"),
    [("MatMul", True), ("MatMul", False), ("Add", True), ("Relu", True), ("Constant", False)],
)
def test_only_a_product_of_two_dequantized_tensors_is_a_projection(
    op_type: str, both: bool
) -> None:
    w = Writer(Form())
    quantized = scale_of(w)
    context = w.b.input("context", w.random(BATCH, ROWS, WIDTH), ("B", "S", WIDTH))
    floats = w.b.op("DequantizeLinear", w.b.op("QuantizeLinear", context, *quantized), *quantized)
    dequantized = w.b.op("DequantizeLinear", *quantized_weights(w))
    weights = dequantized if both else w.b.const(w.random(WIDTH, WIDTH))
    operands = {"Constant": [], "Relu": [floats]}.get(op_type, [floats, weights])
    attributes = {"value_float": 1.0} if op_type == "Constant" else {}
    made = w.b.op(op_type, *operands, **attributes)
    model = load(w.b.model(made, rank=0 if op_type == "Constant" else 3))
    node = model.graph.outputs[0].producer
    assert is_quantized_projection(node, Shapes(model)) == (op_type == "MatMul" and both)


@pytest.mark.parametrize("keys", [joined_projection, integer_projection, dequantized_projection])
def test_learned_query_meets_quantized_keys(keys: Callable[[Writer, str], str]) -> None:
    result = run(learned_query(keys))
    check_results(result.found, result.expected)


def test_keys_without_a_projection_are_no_attention_for_a_constant() -> None:
    sample = learned_query(lambda w, context: w.b.op("Sigmoid", context))
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert [block.code for block in result.report.blocks] == [Code.NO_SCORES]


# --- shapes ---------------------------------------------------------------------------------------

_SCALES = ("scale", "zero")
SHAPES: dict[str, tuple[str, tuple[str, ...], dict[str, int]]] = {
    "sum": ("QLinearAdd", ("x", *_SCALES, "row", *_SCALES, *_SCALES), {}),
    "product": ("QLinearMul", ("row", *_SCALES, "x", *_SCALES, *_SCALES), {}),
    "softmax": ("QLinearSoftmax", ("x", *_SCALES, *_SCALES), {"axis": -1, "opset": 13}),
    "joined": ("QLinearConcat", (*_SCALES, "x", *_SCALES, "x", *_SCALES), {"axis": 1}),
    "matrices": ("QGemm", ("matrix", *_SCALES, "square", *_SCALES), {"transB": 1}),
    "rows of a table": (
        "GatherBlockQuantized",
        ("table", "places", "scales"),
        {"block_size": 16, "bits": 4, "quantize_axis": 1},
    ),
}


def shape_model(name: str) -> tuple[Builder, str]:
    b = Builder({"B": 2, "S": 3}, dynamic=("B", "S"))
    tensors: dict[str, Array] = {
        "scale": np.float32(0.1),
        "zero": np.uint8(128),
        "row": np.full(4, 7, np.uint8),
        "square": np.full((5, 4), 9, np.uint8),
        "table": np.full((6, 16), 0x12, np.uint8),
        "scales": np.full((6, 2), 0.5, np.float32),
    }
    op, inputs, attributes = SHAPES[name]
    known = {key: b.const(data) for key, data in tensors.items()}
    known["x"] = b.input("x", np.full((2, 3, 4), 130, np.uint8), ("B", "S", 4))
    known["matrix"] = b.input("matrix", np.full((2, 4), 130, np.uint8), ("B", 4))
    known["places"] = b.input("places", np.ones((2, 3), np.int64), ("B", "S"))
    return b, b.op(op, *(known[key] for key in inputs), domain=MICROSOFT, **attributes)


@pytest.mark.parametrize("name", SHAPES)
def test_shape_is_what_a_run_gives(name: str) -> None:
    b, made = shape_model(name)
    proto = b.model(made)
    proto.graph.output[0].ClearField("type")
    model = load(proto)
    shapes, value = Shapes(model), model.graph.outputs[0]
    found = plain_session(proto).run(None, b.feeds)[0]
    shape = shapes.shape(value)
    assert shape is not None
    assert [dim.evaluate({"B": 2, "S": 3}) for dim in shape] == list(found.shape)
    assert shapes.dtype(value) == (
        TensorProto.FLOAT if found.dtype == np.float32 else TensorProto.UINT8
    )
