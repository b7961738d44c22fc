"""Caches, masks and windows of attention operators: each in the record, or declined."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.check import check_record, check_results, run
from tests.analysis.samples.builder import Array
from tests.analysis.samples.forms import HEAD_DIM, HIDDEN, NUM_HEADS, Form
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.operators import (
    BATCH,
    MICROSOFT,
    PAST,
    ROWS,
    WIDTH,
    Call,
    name_extents,
    written,
)
from tests.sessions import plain_session

ALL = PAST + ROWS
FILLER = np.float32(-10000.0)
CAUSAL = {
    "standard": "is_causal",
    "standard_flat": "is_causal",
    "multi_head": "unidirectional",
    "packed": "unidirectional",
}
CACHES = [
    (operator, cache, dims, causal)
    for operator in CAUSAL
    for cache in ("none", "past", "unseen", "shown")
    for dims in ("static", "dynamic")
    for causal in (0, 1)
    # onnxruntime's kernel insists on the output where it is given the past.
    if (operator, cache) != ("packed", "unseen")
]


@pytest.mark.parametrize(("operator", "cache", "dims", "causal"), CACHES)
def test_cache_is_taken_with_its_operator(
    operator: str, cache: str, dims: str, causal: int
) -> None:
    call = Call(operator, cache, dims, attributes={CAUSAL[operator]: causal})
    made = written(call)
    result = run(made)
    check_record(result.record, made.record)
    check_results(result.found, result.expected)


@pytest.mark.parametrize("operator", CAUSAL)
def test_past_may_be_empty(operator: str) -> None:
    """A Reshape takes an extent of 0 for that of its input, which is another axis's."""
    made = written(Call(operator, "past", "dynamic"))
    fused = onnx_fuse.fuse(made.model, threshold=None).model
    dims = {
        value.name: [d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in made.model.graph.input
    }
    feeds = {
        name: data.take([], dims[name].index("P")) if "P" in dims[name] else data
        for name, data in made.feeds.items()
    }
    expected = plain_session(made.model).run(None, feeds)
    for session in (plain_session(fused), onnx_fuse.session(fused)):
        check_results(session.run(None, feeds), expected)


@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize("operator", ["standard", "standard_flat"])
def test_body_keeps_an_operator_that_has_a_kernel(operator: str, opset: int) -> None:
    made = written(Call(operator, opset=opset, attributes={"is_causal": 1}))
    fused = onnx_fuse.fuse(made.model, threshold=None).model
    kinds = {node.op_type for function in fused.functions for node in function.node}
    assert ("Attention" in kinds, "Softmax" in kinds) == (opset < 25, opset == 25)
    expected, found = (
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        for model in (made.model, fused)
    )
    check_results(found.run(None, made.feeds), expected.run(None, made.feeds))


def below(ends: list[int], columns: int) -> Array:
    """Which columns are below an end, by batch."""
    return (np.arange(columns) < np.array(ends)[:, None])[:, None, None]


def around(first: Array | int, columns: int, left: int, right: int) -> Array:
    """Which columns are within a window of each row, whose own column is `first` + row."""
    own = (np.reshape(first, (-1, 1)) + np.arange(ROWS))[:, None, :, None]
    column = np.arange(columns)
    behind = column <= own + right if right >= 0 else column == column
    return behind & (column >= own - left if left >= 0 else column == column)


def int32(data: Array | list[int]) -> Array:
    return np.asarray(data, dtype=np.int32)


HOLES = int32(np.arange(BATCH * ALL).reshape(BATCH, ALL) % 3 != 1)
PAIRS = int32(np.arange(BATCH * ROWS * ALL).reshape(BATCH, ROWS, ALL) % 4 != 1)
ENDS = np.array([ROWS, ROWS - 2], dtype=np.int64)

# What is hidden gets a number added: the mask as the operator takes it, and what shows a column.
FILLED: dict[str, tuple[str, Array, tuple[int | str, ...], Array]] = {
    "columns": ("past", HOLES, ("B", "C"), HOLES[:, None, None] > 0),
    "pairs": ("past", PAIRS, ("B", "S", "C"), PAIRS[:, None] > 0),
    "ends": ("past", int32([ALL, ALL - 3]), ("B",), below([ALL, ALL - 3], ALL)),
    "ends without past": ("none", int32([4, 2]), ("B",), below([4, 2], ROWS)),
}
UNTIL_ENDS = below([5, 3], ROWS)
ENDS_AND_MORE = int32([5, 3, 0, 2, 4, 0, 5, 9])  # of which the kernel for CPUs reads the ends
LENGTHS = {
    ("ends", "multi_head"): (int32([5, 3]), UNTIL_ENDS),
    ("ends", "packed"): (int32([5, 3]), UNTIL_ENDS),
    ("ends and more", "multi_head"): (ENDS_AND_MORE, UNTIL_ENDS),
    ("ends and more", "packed"): (ENDS_AND_MORE, UNTIL_ENDS),
    ("ends and starts", "packed"): (int32([5, 3, 0, 1]), UNTIL_ENDS & ~below([0, 1], ROWS)),
}


@pytest.mark.parametrize("operator", ["multi_head", "packed"])
@pytest.mark.parametrize("name", FILLED)
def test_hidden_columns_are_filled(name: str, operator: str) -> None:
    check_filled(operator, "dynamic", FILLED[name])


@pytest.mark.parametrize("dims", ["static", "dynamic"])
@pytest.mark.parametrize(("name", "operator"), LENGTHS)
def test_lengths_are_read_as_the_kernel_does(name: str, operator: str, dims: str) -> None:
    """In a dynamic model nothing says how many there are for each batch."""
    lengths, visible = LENGTHS[name, operator]
    check_filled(operator, dims, ("none", lengths, ("N",), visible))


def check_filled(
    operator: str, dims: str, row: tuple[str, Array, tuple[int | str, ...], Array]
) -> None:
    cache, mask, extents, visible = row
    call = Call(operator, cache, dims, mask=mask, mask_dims=extents)
    made = written(call)
    added = np.where(visible, np.float32(0), FILLER)
    shape = (BATCH, NUM_HEADS, ROWS, call.columns)
    made.record.operands["attn_bias"] = np.broadcast_to(added, shape)
    result = run(made)
    check_record(result.record, made.record)
    check_results(result.found, result.expected)


def test_one_number_for_each_batch_is_no_mask() -> None:
    made = written(Call("packed", mask=int32(np.ones((BATCH, 1))), mask_dims=("B", 1)))
    check_record(run(made).record, made.record)


# Columns that the standard operator hides by -inf: its call, what shows them, and whether the
# causal order is left to the fused operator.
UNSEEN: dict[str, tuple[Call, Array, bool]] = {
    "lengths": (Call("standard", opset=24, lengths=ENDS), below([5, 3], ROWS), False),
    "causal from lengths": (
        Call("standard", opset=24, lengths=ENDS, attributes={"is_causal": 1}),
        below([5, 3], ROWS) & around(ENDS - ROWS, ROWS, -1, 0),
        False,
    ),
    "left window": (
        Call("standard_flat", opset=25, attributes={"is_causal": 1, "left_window_size": 2}),
        around(0, ROWS, 2, -1),
        True,
    ),
    "both windows": (
        Call("standard", opset=25, attributes={"left_window_size": 1, "right_window_size": 2}),
        around(0, ROWS, 1, 2),
        False,
    ),
    "window behind a past": (
        Call("standard", "past", opset=25, attributes={"left_window_size": 3}),
        around(PAST, ALL, 3, -1),
        False,
    ),
    "window from lengths": (
        Call("standard", opset=25, lengths=ENDS, attributes={"right_window_size": 1}),
        below([5, 3], ROWS) & around(ENDS - ROWS, ROWS, -1, 1),
        False,
    ),
}


@pytest.mark.parametrize("name", UNSEEN)
@pytest.mark.parametrize("dims", ["static", "dynamic"])
def test_columns_are_hidden_by_numbers(name: str, dims: str) -> None:
    call, visible, is_causal = UNSEEN[name]
    call.dims = dims
    made = written(call)
    shape = (BATCH, NUM_HEADS, ROWS, call.columns)
    made.record.operands["attn_mask"] = np.broadcast_to(visible, shape)
    made.record.operands["mask_fill"] = np.broadcast_to(np.float32(-np.inf), shape)
    made.record.attributes["is_causal"] = int(is_causal)
    result = run(made)
    check_record(result.record, made.record)
    check_results(result.found, result.expected)


def projected(w: Writer, *shape: int | str) -> str:
    """Project the input, its columns in a shape of their own."""
    if "x" not in w.b.feeds:
        w.b.input("x", w.random(BATCH, ROWS, HIDDEN), ("B", "S", HIDDEN))
    width = int(np.prod([n for n in shape if isinstance(n, int)]))
    made = w.b.op("MatMul", "x", w.b.const(w.random(HIDDEN, width) / np.float32(4)))
    return w.b.reshape(made, "B", "S", *shape)


def by_heads(w: Writer) -> str:
    return w.b.transpose(projected(w, NUM_HEADS, HEAD_DIM), 0, 2, 1, 3)


def multi_head(w: Writer, *inputs: str, count: int = 1, **attributes: int) -> Sample:
    options = {"num_heads": NUM_HEADS, "domain": MICROSOFT} | attributes
    outputs = w.b.ops("MultiHeadAttention", *inputs, count=count, **options)
    return Sample(w.b.model(*outputs), w.b.feeds, w.record)


@pytest.mark.parametrize(("size", "is_kept"), [(HEAD_DIM, True), (HEAD_DIM + 2, False)])
def test_body_keeps_an_operator_that_shows_keys_and_values_of_one_size(
    size: int, is_kept: bool
) -> None:
    """The kernel takes keys and values that are joined before, but of one size only."""
    w = Writer(Form())
    parts = [projected(w, NUM_HEADS * each) for each in (HEAD_DIM, HEAD_DIM, size)]
    made = multi_head(w, *parts, count=3)
    expected = plain_session(made.model).run(None, made.feeds)
    fused = onnx_fuse.fuse(made.model, threshold=None).model
    for session in (plain_session(fused), onnx_fuse.session(fused)):
        check_results(session.run(None, made.feeds), expected)
    body = [node.op_type for function in fused.functions for node in function.node]
    assert ("MultiHeadAttention" in body) == is_kept


def in_one_tensor(w: Writer) -> Sample:
    return multi_head(w, projected(w, NUM_HEADS, 3, HEAD_DIM))


def two_sequences(w: Writer) -> Sample:
    context = w.b.input("context", w.random(BATCH, 7, WIDTH), ("B", "T", WIDTH))
    return multi_head(w, projected(w, WIDTH), context, context, unidirectional=1)


def two_sequences_behind_a_past(w: Writer) -> Sample:
    """A single row sees all of them in onnxruntime."""
    w.b.opset = 23
    given = []
    for name, count in {"k": 7, "v": 7, "past_k": PAST, "past_v": PAST}.items():
        data = w.random(BATCH, NUM_HEADS, count, HEAD_DIM)
        given.append(w.b.input(name, data, ("B", NUM_HEADS, count, HEAD_DIM)))
    k, v, past_k, past_v = given
    made = w.b.ops("Attention", by_heads(w), k, v, "", past_k, past_v, count=3, is_causal=1)
    return Sample(w.b.model(*made, rank=4), w.b.feeds, w.record)


def lengths(*numbers: int) -> Callable[[Writer], Sample]:
    """Lengths of which it is known that they are too many or too few for the operator."""

    def make(w: Writer) -> Sample:
        w.b.dynamic = frozenset()
        parts = [projected(w, WIDTH) for _ in "qkv"]
        return multi_head(w, *parts, "", w.b.input("mask", int32([*numbers]), (len(numbers),)))

    return make


def scores_shown(w: Writer) -> Sample:
    w.b.opset = 23
    parts = [by_heads(w) for _ in "qkv"]
    outputs = w.b.ops("Attention", *parts, count=4)
    return Sample(w.b.model(outputs[0], outputs[3], rank=4), w.b.feeds, w.record)


def negative_scale(w: Writer) -> Sample:
    w.b.opset = 23
    parts = [by_heads(w) for _ in "qkv"]
    return Sample(w.b.model(w.b.op("Attention", *parts, scale=-0.25), rank=4), w.b.feeds, w.record)


def shorter_mask(w: Writer) -> Sample:
    w.b.opset = 24
    name_extents(w, M=4)
    mask = w.b.input("mask", np.ones((ROWS, 4), bool), ("S", "M"))
    lengths = w.b.input("lengths", np.array([4, 3]), ("B",))
    parts = [by_heads(w) for _ in "qkv"]
    return Sample(
        w.b.model(w.b.op("Attention", *parts, mask, "", "", lengths), rank=4), w.b.feeds, w.record
    )


def cache_in_place(w: Writer) -> Sample:
    parts = [projected(w, WIDTH) for _ in "qkv"]
    options = {"num_heads": NUM_HEADS, "domain": MICROSOFT}
    made = w.b.op("DecoderMaskedMultiHeadAttention", *parts, **options)
    return Sample(w.b.model(made), w.b.feeds, w.record)


def cache_with_length(w: Writer) -> Sample:
    parts = [projected(w, WIDTH) for _ in "qkv"]
    length = w.b.input("length", int32([2]), (1,))
    return multi_head(w, *parts, "", "", "", "", "", length)


def attribute_of_later_releases(w: Writer) -> Sample:
    w.b.opset = 23
    made = w.b.op("Attention", *(by_heads(w) for _ in "qkv"), tree=1)
    return Sample(w.b.model(made, rank=4), w.b.feeds, w.record)


def packed(*, of: str) -> Callable[[Writer], Sample]:
    """Attention of packed weights and a bias, one of which is known at run time only."""

    def make(w: Writer) -> Sample:
        hidden = w.source("hidden", "S", HIDDEN)
        shapes = {"weight": (HIDDEN, 3 * WIDTH), "bias": (3 * WIDTH,)}
        parts = [
            w.b.input(name, w.random(*shape), shape) if name == of else w.b.const(w.random(*shape))
            for name, shape in shapes.items()
        ]
        made = w.b.op("Attention", hidden, *parts, num_heads=NUM_HEADS, domain=MICROSOFT)
        return Sample(w.b.model(made), w.b.feeds, w.record)

    return make


def bias_at_run_time(w: Writer) -> Sample:
    parts = [projected(w, WIDTH) for _ in "qkv"]
    return multi_head(w, *parts, w.b.input("bias", w.random(3 * WIDTH), (3 * WIDTH,)))


def past_of_another_sequence(w: Writer) -> Sample:
    dims = ("B", NUM_HEADS, "P", HEAD_DIM)
    caches = [w.b.input(n, w.random(BATCH, NUM_HEADS, PAST, HEAD_DIM), dims) for n in ("k", "v")]
    inputs = (projected(w, WIDTH), by_heads(w), by_heads(w), "", "", "", *caches)
    return multi_head(w, *inputs, count=3)


DECLINED: dict[str, Callable[[Writer], Sample]] = {
    "a cache with a length of its own": cache_with_length,
    "an attribute of later releases": attribute_of_later_releases,
    "queries, keys and values in one tensor": in_one_tensor,
    "causal between two sequences": two_sequences,
    "causal between two sequences behind a past": two_sequences_behind_a_past,
    "lengths of another batch": lengths(5, 3, 2),
    "lengths with starts, which only packed weights may have": lengths(5, 3, 0, 1),
    "scores shown": scores_shown,
    "scale without a root": negative_scale,
    "mask shorter than the keys": shorter_mask,
    "cache written in place": cache_in_place,
    "packed weights given at run time": packed(of="weight"),
    "packed bias given at run time": packed(of="bias"),
    "bias given at run time": bias_at_run_time,
    "past beside keys of another sequence": past_of_another_sequence,
}


@pytest.mark.parametrize("name", DECLINED)
def test_operator_is_declined(name: str) -> None:
    check_refused(DECLINED[name](Writer(Form(dims="dynamic"))))


def check_refused(sample: Sample) -> None:
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert [block.code for block in result.report.blocks] == [Code.UNSUPPORTED_ATTRIBUTE]


@pytest.mark.parametrize(
    ("dims", "setting"),
    [
        ("static", "shorter than the keys"),
        ("dynamic", "of a length not proved to be that of the keys"),
    ],
)
def test_mask_of_unproved_length_is_not_called_shorter(dims: str, setting: str) -> None:
    sample = shorter_mask(Writer(Form(dims=dims)))
    (block,) = onnx_fuse.explain(sample.model, threshold=None).blocks
    assert block.code is Code.UNSUPPORTED_ATTRIBUTE
    assert block.reason is not None
    assert f"attn_mask is {setting}," in block.reason


def check_fused(sample: Sample, **expected: int) -> None:
    """Fuse, compare attributes of the only node, and the results."""
    result = run(sample)
    assert {name: result.record.attributes[name] for name in expected} == expected
    check_results(result.found, result.expected)


@pytest.mark.parametrize("causal", [0, 1])
def test_heads_of_given_queries_are_those_of_the_operator(causal: int) -> None:
    """Not rows: the causal order counts these."""
    w = Writer(Form(dims="dynamic"))
    w.b.opset, kv_heads = 23, NUM_HEADS // 2
    parts = [
        w.b.input(name, w.random(BATCH, heads, length, HEAD_DIM), ("B", heads, dim, HEAD_DIM))
        for name, heads, length, dim in (
            ("q", NUM_HEADS, ROWS, "S"),
            ("k", kv_heads, ROWS, "S"),
            ("v", kv_heads, ROWS, "S"),
            ("past_k", kv_heads, PAST, "P"),
            ("past_v", kv_heads, PAST, "P"),
        )
    ]
    inputs = (*parts[:3], "", *parts[3:])
    made = w.b.ops("Attention", *inputs, count=3, is_causal=causal)
    sample = Sample(w.b.model(w.merged(made[0]), rank=4), w.b.feeds, w.record)
    check_fused(sample, num_heads=NUM_HEADS, kv_num_heads=kv_heads, is_causal=causal)


def test_bias_is_added_to_what_is_given() -> None:
    w = Writer(Form(dims="dynamic"))
    parts = [w.b.input(n, w.random(BATCH, ROWS, WIDTH), ("B", "S", WIDTH)) for n in "qkv"]
    sample = multi_head(w, *parts, w.b.const(w.random(3 * WIDTH)))
    check_fused(sample, num_heads=NUM_HEADS)


def test_attention_of_integers_is_named() -> None:
    w = Writer(Form())
    x = w.b.input("x", np.zeros((BATCH, ROWS, HIDDEN), np.uint8), ("B", "S", HIDDEN))
    weight = w.b.const(np.zeros((HIDDEN, 3 * WIDTH)), np.int8)
    parts = (x, weight, w.b.const(w.random(3 * WIDTH)), w.b.scalar(0.1), w.b.scalar(0.1))
    made = w.b.op("QAttention", *parts, num_heads=NUM_HEADS, domain=MICROSOFT)
    result = onnx_fuse.fuse(w.b.model(made), threshold=None)
    assert [block.code for block in result.report.blocks] == [Code.QUANTIZED]


@pytest.mark.parametrize(
    ("op_type", "domain"),
    [
        ("SparseAttention", MICROSOFT),
        ("PackedMultiHeadAttention", MICROSOFT),
        ("LinearAttention", ""),
        ("FlexAttention", "ai.onnx.preview"),
    ],
)
def test_attention_of_another_kind_is_named(op_type: str, domain: str) -> None:
    w = Writer(Form())
    made = w.b.op(op_type, *(projected(w, WIDTH) for _ in "qkv"), domain=domain)
    result = onnx_fuse.fuse(w.b.model(made), threshold=None)
    assert [block.code for block in result.report.blocks] == [Code.UNSUPPORTED_OP]


def test_bias_of_keys_by_heads_is_already_in_them() -> None:
    w = Writer(Form(dims="dynamic"))
    bias = w.b.const(w.random(3 * WIDTH))
    sample = multi_head(w, projected(w, WIDTH), by_heads(w), by_heads(w), bias)
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert result.report.num_fused == 1
    sessions = (plain_session(model) for model in (sample.model, result.model))
    check_results(*(session.run(None, sample.feeds) for session in sessions))
