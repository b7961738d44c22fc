"""The float64 reference against naive loops, and against ONNX's operators where they overlap."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnx_fuse.op import schema
from onnx_fuse.op.block_attributes import BlockAttributes
from onnx_fuse.op.reference import reference
from tests.op import cases
from tests.op.cases import CLOSE, Block, Case


class Naive:
    """A block computed one number at a time, each from its definition."""

    def __init__(self, block: Block) -> None:
        self.a, self.given = block.attributes, block.operands
        self.past = self.given["past_key"].shape[2] if "past_key" in self.given else 0

    def __call__(self, batch: int, row: int) -> list[float]:
        """Return one row of the output."""
        a = self.a
        merged = [
            number * self.gate(batch, row, head, i)
            for head in range(a.num_heads)
            for i, number in enumerate(self.context(batch, head, row))
        ]
        if "out_weight" not in self.given:
            return merged
        bias = self.given.get("out_bias", np.zeros(a.out_size))
        return [
            sum(x * self.weight("out_weight", i, column) for i, x in enumerate(merged))
            + float(bias[column])
            for column in range(a.out_size)
        ]

    def gate(self, *index: int) -> float:
        return float(self.at("gate", *index)) if "gate" in self.given else 1.0

    def weight(self, name: str, row: int, column: int) -> float:
        panel = self.given[name][column // 16]
        if panel.ndim == 3:
            return float(panel[row // 2, column % 16, row % 2])
        return float(panel[row, column % 16])

    def projected(self, part: str, batch: int, head: int, row: int, i: int) -> float:
        a = self.a
        value = {"q": "query", "k": "key", "v": "value"}[part]
        if value in self.given:
            return float(self.given[value][batch, head, row, i])
        if "qkv" in self.given:
            return float(self.given["qkv"][batch, row, self.column(part, head, i)])
        chain = {"q": [], "k": ["context"], "v": ["value_context", "context"]}[part]
        source = next(self.given[name] for name in [*chain, "hidden"] if name in self.given)
        packed = "qkv_weight" in self.given
        size = a.v_head_dim if part == "v" else a.head_dim
        column = self.column(part, head, i) if packed else head * size + i
        prefix = "qkv" if packed else part
        bias = self.given.get(f"{prefix}_bias")
        return math.fsum(
            float(x) * self.weight(f"{prefix}_weight", r, column)
            for r, x in enumerate(source[batch, row])
        ) + (0.0 if bias is None else float(bias[column]))

    def column(self, part: str, head: int, i: int) -> int:
        """Return where an element stands if Q, K and V are side by side."""
        a = self.a
        keys = a.num_heads * a.head_dim
        start = {"q": 0, "k": keys, "v": keys + a.kv_num_heads * a.head_dim}[part]
        return start + head * (a.v_head_dim if part == "v" else a.head_dim) + i

    def normed(self, part: str, batch: int, head: int, row: int, i: int) -> float:
        a = self.a
        x = self.projected(part, batch, head, row, i)
        kind, over_heads, epsilon = a.norm(part)
        if kind == "none":
            return x
        heads = range(a.num_heads if part == "q" else a.kv_num_heads) if over_heads else [head]
        group = [self.projected(part, batch, h, row, j) for h in heads for j in range(a.head_dim)]
        if kind == "layer":
            mean = sum(group) / len(group)
            group, x = [y - mean for y in group], x - mean
        squares = sum(y * y for y in group)
        if kind == "l2":
            x /= max(math.sqrt(squares), epsilon)
        else:
            x /= math.sqrt(squares / len(group) + epsilon)
        if f"{part}_norm_weight" in self.given:
            x *= float(self.given[f"{part}_norm_weight"][head, i])
        if f"{part}_norm_bias" in self.given:
            x += float(self.given[f"{part}_norm_bias"][head, i])
        return x

    def rotated(self, part: str, batch: int, head: int, row: int, i: int) -> float:
        width, half = self.a.rotary_embedding_dim, self.a.rotary_embedding_dim // 2
        x = self.normed(part, batch, head, row, i)
        if f"{part}_cos" not in self.given or i >= width:
            return x
        is_first = i % 2 == 0 if self.a.interleaved else i < half
        pair = (i ^ 1) if self.a.interleaved else (i + half) % width
        other = self.normed(part, batch, head, row, pair)
        cos, sin = (
            float(self.at(f"{part}_{name}", batch, head, row, i)) for name in ("cos", "sin")
        )
        return x * cos + (-other if is_first else other) * sin

    def joined(self, part: str, batch: int, head: int, column: int, i: int) -> float:
        name = {"k": "past_key", "v": "past_value"}[part]
        if column < self.past:
            return float(self.given[name][batch, head, column, i])
        if part == "v":
            return self.projected("v", batch, head, column - self.past, i)
        return self.rotated("k", batch, head, column - self.past, i)

    def score(self, batch: int, head: int, row: int, column: int, q: list[float]) -> float:
        a = self.a
        shared = head // (a.num_heads // a.kv_num_heads)
        key = [self.joined("k", batch, shared, column, i) for i in range(a.head_dim)]
        s = a.scale * sum(x * y for x, y in zip(q, key, strict=True))
        if a.softcap:
            s = a.softcap * math.tanh(s / a.softcap)
        if "attn_bias" in self.given:
            s += float(self.at("attn_bias", batch, head, row, column))
        if "attn_mask" in self.given and not self.at("attn_mask", batch, head, row, column):
            s = float(self.at("mask_fill", batch, head, row, column))
        return -math.inf if a.is_causal and column > row + self.past else s

    def at(self, name: str, *index: int) -> Any:
        array = self.given[name]
        array = array.reshape((1,) * (4 - array.ndim) + array.shape)
        return array[tuple(i if dim > 1 else 0 for i, dim in zip(index, array.shape, strict=True))]

    def weights(self, batch: int, head: int, row: int) -> list[float]:
        a = self.a
        columns = range(self.past + self.kv_seq())
        q = [self.rotated("q", batch, head, row, i) for i in range(a.head_dim)]
        scores = [self.score(batch, head, row, column, q) for column in columns]
        logits = [*scores, float(self.given["sinks"][head])] if "sinks" in self.given else scores
        highest = max(logits)
        if highest == -math.inf:
            return [0.0 if a.zero_nan else math.nan] * len(scores)
        total = sum(math.exp(s - highest) for s in logits)
        return [math.exp(s - highest) / total for s in scores]

    def context(self, batch: int, head: int, row: int) -> list[float]:
        shared = head // (self.a.num_heads // self.a.kv_num_heads)
        weights = self.weights(batch, head, row)
        return [
            sum(w * self.joined("v", batch, shared, c, i) for c, w in enumerate(weights))
            for i in range(self.a.v_head_dim)
        ]

    def kv_seq(self) -> int:
        if "value" in self.given:
            return self.given["value"].shape[2]
        if "qkv" in self.given:
            return self.given["qkv"].shape[1]
        source = self.given.get("context", self.given.get("hidden"))
        assert source is not None
        return source.shape[1]


NAIVE = [Case(**row) for row in cases.pairwise(cases.FEATURES)]


@pytest.mark.parametrize("number", range(len(NAIVE)))
def test_reference_equals_naive_loops(number: int) -> None:
    block = cases.make(NAIVE[number], number)
    naive = Naive(block)
    output, key, value, weights = reference(block.operands, block.attributes).values()
    assert output.dtype == key.dtype == value.dtype == weights.dtype == np.float64
    # One row of each sequence: the rows of an attention block know nothing of each other.
    for batch, row in ((0, number % cases.Sizes.q_seq), (1, (number + 3) % cases.Sizes.q_seq)):
        np.testing.assert_allclose(output[batch, row], naive(batch, row), **CLOSE)
        head = number % block.attributes.num_heads
        expected = naive.weights(batch, head, row)
        np.testing.assert_allclose(weights[batch, head, row], expected, **CLOSE)
    for array, part in ((key, "k"), (value, "v")):
        for index in ((0, 0, 0, 0), (1, array.shape[1] - 1, array.shape[2] - 1, 2)):
            assert abs(array[index] - naive.joined(part, *index)) < CLOSE["atol"]


with_attention = pytest.mark.skipif(
    onnx.defs.onnx_opset_version() < 25, reason="no Attention, or not that of today"
)


def run(op: str, inputs: list[NDArray[Any] | None], **attributes: Any) -> list[NDArray[Any]]:
    """Return what onnx.reference makes of one node of the newest opset, in float64."""
    names = ["" if array is None else f"input_{i}" for i, array in enumerate(inputs)]
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    values = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in feeds.items()
    ]
    count = 4 if op == "Attention" else 1
    outputs = [f"output_{i}" for i in range(count)]
    node = helper.make_node(op, names, outputs, **attributes)
    results = [
        helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None) for name in outputs
    ]
    graph = helper.make_graph([node], "node", values, results)
    with np.errstate(all="ignore"):
        found: list[NDArray[Any]] = ReferenceEvaluator(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
        ).run(None, feeds)
    return found


def values(random: np.random.Generator, kv_heads: int, past: int) -> dict[str, NDArray[Any]]:
    shapes = {"query": (2, 4, 3, 8), "key": (2, kv_heads, 5, 8), "value": (2, kv_heads, 5, 6)}
    if past:
        shapes |= {"past_key": (2, kv_heads, past, 8), "past_value": (2, kv_heads, past, 6)}
    return {name: random.standard_normal(shape) for name, shape in shapes.items()}


@with_attention
@pytest.mark.parametrize(
    ("kv_heads", "past", "mask", "softcap"),
    list(itertools.product((4, 2, 1), (0, 2), ("none", "bias", "bool"), (0.0, 1.5))),
)
def test_reference_equals_the_onnx_attention_op(
    kv_heads: int, past: int, mask: str, softcap: float
) -> None:
    if softcap and mask != "none" and softcap_follows_mask():
        pytest.skip("this onnx caps the scores after the mask")
    random = np.random.default_rng(0)
    operands = values(random, kv_heads, past)
    a = BlockAttributes(4, kv_heads, 8, 6, 0, scale=0.25, softcap=softcap)
    attn_mask: NDArray[Any] | None = None
    if mask == "bias":
        operands["attn_bias"] = attn_mask = random.standard_normal((3, 5 + past))
    if mask == "bool":
        operands["attn_mask"] = attn_mask = random.random((2, 1, 3, 5 + past)) < 0.7
        operands["mask_fill"] = np.array(-np.inf)
        attn_mask[..., 0] = True
    inputs = [operands["query"], operands["key"], operands["value"], attn_mask]
    inputs += [operands.get("past_key"), operands.get("past_value")]
    expected = run("Attention", inputs, scale=0.25, softcap=softcap, qk_matmul_output_mode=3)
    output, key, value, weights = reference(operands, a).values()
    merged = expected[0].transpose(0, 2, 1, 3).reshape(output.shape)
    np.testing.assert_allclose(output, merged, **CLOSE)
    np.testing.assert_array_equal(key, expected[1])
    np.testing.assert_array_equal(value, expected[2])
    np.testing.assert_allclose(weights, expected[3], **CLOSE)


def softcap_follows_mask() -> bool:
    """Return whether onnx.reference's Attention caps after adding the mask, as it did once."""
    x = np.ones((1, 1, 1, 1))
    two = np.ones((1, 1, 2, 1))
    mask = np.array([[0.0, -np.inf]])
    found = run("Attention", [x, two, np.array([[[[0.0], [1.0]]]]), mask], softcap=1.0)[0]
    return float(found[0, 0, 0, 0]) != 0.0


@with_attention
def test_causal_order_is_that_of_the_onnx_attention_op() -> None:
    operands = values(np.random.default_rng(0), 4, 0)
    a = BlockAttributes(4, 4, 8, 6, 0, scale=0.25, is_causal=1)
    inputs: list[NDArray[Any] | None] = [operands[name] for name in ("query", "key", "value")]
    expected = run("Attention", inputs, scale=0.25, is_causal=1)[0]
    output = reference(operands, a)["output"]
    np.testing.assert_allclose(
        output, expected.transpose(0, 2, 1, 3).reshape(output.shape), **CLOSE
    )


@with_attention
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("width", [8, 6])
def test_rotation_is_that_of_the_onnx_rotary_embedding_op(interleaved: int, width: int) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 4, 3, 8))
    angles = random.standard_normal((2, 3, width // 2))
    cos, sin = np.cos(angles), np.sin(angles)
    [expected] = run(
        "RotaryEmbedding", [x, cos, sin], interleaved=interleaved, rotary_embedding_dim=width
    )
    wide = (lambda t: np.repeat(t, 2, -1)) if interleaved else (lambda t: np.tile(t, 2))
    operands = {
        "query": x,
        "key": x,
        "value": x,
        "k_cos": wide(cos)[:, None],
        "k_sin": wide(sin)[:, None],
    }
    a = BlockAttributes(
        4, 4, 8, 8, 0, scale=1.0, interleaved=interleaved, rotary_embedding_dim=width
    )
    np.testing.assert_allclose(reference(operands, a)["present_key"], expected, **CLOSE)


def masked_rows(**attributes: Any) -> NDArray[Any]:
    """Return the output for four rows whose columns are all hidden, but for the last row's."""
    ones = np.ones((1, 1, 4, 2))
    hidden = np.full((4, 4), -np.inf)
    hidden[3] = 0
    hidden[0, 0] = attributes.pop("first", -np.inf)
    operands = {"query": ones, "key": ones, "value": ones, "attn_bias": hidden}
    if "sinks" in attributes:
        operands["sinks"] = np.array([attributes.pop("sinks")])
    a = BlockAttributes(1, 1, 2, 2, 0, scale=1.0, **attributes)
    return reference(operands, a)["output"]


def test_fully_masked_row_is_nan_and_no_other_row() -> None:
    assert np.isnan(masked_rows()).tolist() == [[[True] * 2] * 3 + [[False] * 2]]


@pytest.mark.parametrize("zero_nan", [1, 2])
def test_zero_nan_makes_a_fully_masked_row_zero(zero_nan: int) -> None:
    assert masked_rows(zero_nan=zero_nan)[0, :, 0].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(("zero_nan", "is_nan"), [(0, True), (1, False), (2, True)])
def test_zero_nan_of_empty_rows_keeps_what_no_mask_caused(zero_nan: int, is_nan: bool) -> None:
    assert np.isnan(masked_rows(zero_nan=zero_nan, first=np.nan)[0, :, 0]).tolist() == [
        is_nan,
        zero_nan == 0,
        zero_nan == 0,
        False,
    ]


def test_sink_makes_a_fully_masked_row_zero() -> None:
    output = masked_rows(sinks=0.0)
    assert output[0, :3].tolist() == [[0, 0]] * 3
    assert 0 < output[0, 3, 0] < 1


def test_finite_fill_of_a_whole_row_gives_equal_weights() -> None:
    value = np.arange(4.0).reshape(1, 1, 4, 1)
    operands = {
        "query": np.ones((1, 1, 1, 2)),
        "key": np.arange(8.0).reshape(1, 1, 4, 2),
        "value": value,
        "attn_mask": np.zeros((), np.bool_),
        "mask_fill": np.array(-1e9),
    }
    output = reference(operands, BlockAttributes(1, 1, 2, 1, 0, scale=1.0))["output"]
    assert output.tolist() == [[[1.5]]]


def test_reference_changes_no_operand() -> None:
    block = cases.make(Case(norm="layer_bias", rope="interleaved", past=True, is_causal=1))
    before = {name: array.copy() for name, array in block.operands.items()}
    reference(block.operands, block.attributes)
    for name in schema.in_order(before):
        np.testing.assert_array_equal(block.operands[name], before[name])
