"""Projections that the model computes anyway stay outside: no block computes them once more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.samples.builder import Array, Builder
from tests.analysis.samples.graphs import Record, Sample
from tests.analysis.verdicts import operands

BATCH, ROWS, HEADS, DEPTH = 2, 5, 3, 4
HIDDEN = HEADS * DEPTH
PACKED = ("hidden", "qkv_weight", "out_weight")
VALUES = ("hidden", "key", "value", "q_weight", "out_weight")


class Blocks:
    """Writes attention blocks of one input."""

    def __init__(self, dynamic: str = "") -> None:
        self.rng = np.random.default_rng(3)
        self.b = Builder({"B": BATCH, "S": ROWS}, dynamic)
        self.x = self.b.input("x", self.random(BATCH, ROWS, HIDDEN), ("B", "S", HIDDEN))

    def random(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(np.float32)

    def product(self, value: str = "", columns: int = HIDDEN) -> str:
        return self.b.op("MatMul", value or self.x, self.b.const(self.random(HIDDEN, columns)))

    def heads(self, value: str, count: int = HEADS) -> str:
        return self.b.transpose(self.b.reshape(value, "B", "S", count, DEPTH), 0, 2, 1, 3)

    def attended(
        self, query: str, key: str, value: str, keys: int = HEADS, values: int = HEADS
    ) -> str:
        """The context of projected queries, keys and values, the heads side by side."""
        query, key, value = self.heads(query), self.heads(key, keys), self.heads(value, values)
        scores = self.b.op("MatMul", query, self.b.transpose(key, 0, 1, 3, 2))
        context = self.b.op("MatMul", self.b.op("Softmax", scores, axis=-1), value)
        return self.b.reshape(self.b.transpose(context, 0, 2, 1, 3), "B", "S", HIDDEN)

    def split(self, packed: str, count: int = 3) -> list[str]:
        return self.b.ops("Split", packed, count=count, axis=2)

    def sample(self, *outputs: str) -> Sample:
        return Sample(self.b.model(*outputs), self.b.feeds, Record())


def gated(w: Blocks) -> Sample:
    """Half of what the queries' product makes is a gate of the context."""
    query, gate = w.split(w.product(columns=2 * HIDDEN), 2)
    context = w.attended(query, w.product(), w.product())
    return w.sample(w.product(w.b.op("Mul", context, w.b.op("Sigmoid", gate))))


def gate_of_its_own(w: Blocks) -> Sample:
    query, gate = w.product(), w.product()
    context = w.attended(query, w.product(), w.product())
    return w.sample(w.product(w.b.op("Mul", context, w.b.op("Sigmoid", gate))))


def shown_values(w: Blocks) -> Sample:
    value = w.product()
    return w.sample(w.product(w.attended(w.product(), w.product(), value)), value)


def values_handed_on(w: Blocks) -> Sample:
    """A second block adds the first one's values to its own."""
    first = w.product()
    made = w.product(w.attended(w.product(), w.product(), first))
    second = w.b.op("Add", w.product(made), first)
    return w.sample(w.product(w.attended(w.product(made), w.product(made), second)))


def shared_keys(w: Blocks) -> Sample:
    """Two blocks have the same keys and values."""
    key, value = w.product(), w.product()
    blocks = (w.product(w.attended(w.product(), key, value)) for _ in range(2))
    return w.sample(*blocks)


def shared_product(w: Blocks) -> Sample:
    """Two blocks have columns of their own of one product."""
    parts = w.split(w.product(columns=6 * HIDDEN), 6)
    return w.sample(*(w.product(w.attended(*parts[at : at + 3])) for at in (0, 3)))


def one_shows_its_values(w: Blocks) -> Sample:
    """Two blocks have columns of one product, of which one's values are shown."""
    parts = w.split(w.product(columns=6 * HIDDEN), 6)
    blocks = (w.product(w.attended(*parts[at : at + 3])) for at in (0, 3))
    return w.sample(*blocks, parts[2])


def one_weight(w: Blocks) -> Sample:
    """Keys are the values, too."""
    key = w.product()
    return w.sample(w.product(w.attended(w.product(), key, key)))


def packed(w: Blocks) -> Sample:
    return w.sample(w.product(w.attended(*w.split(w.product(columns=3 * HIDDEN)))))


def asked_for_its_shape(w: Blocks) -> Sample:
    """Of the values' product the shape is read, by others than the block."""
    value = w.product()
    made = w.product(w.attended(w.product(), w.product(), value))
    return w.sample(w.b.op("Expand", w.b.scalar(1.0), w.b.op("Shape", value)), made)


def one_head_of_values(w: Blocks) -> Sample:
    """All heads of queries and keys share one of the values."""
    value = w.product(columns=DEPTH)
    return w.sample(w.product(w.attended(w.product(), w.product(), value, values=1)))


def one_head_of_keys(w: Blocks) -> Sample:
    key = w.product(columns=DEPTH)
    return w.sample(w.product(w.attended(w.product(), key, w.product(), keys=1)))


def one_head_of_both(w: Blocks) -> Sample:
    key, value = w.product(columns=DEPTH), w.product(columns=DEPTH)
    return w.sample(w.product(w.attended(w.product(), key, value, keys=1, values=1)))


CASES: dict[str, tuple[Callable[[Blocks], Sample], list[tuple[str, ...]]]] = {
    "a gate beside the queries": (
        gated,
        [("context", "query", "k_weight", "v_weight", "gate", "out_weight")],
    ),
    "a gate of its own": (gate_of_its_own, [("hidden", "qkv_weight", "gate", "out_weight")]),
    "values that are shown": (
        shown_values,
        [("hidden", "context", "value", "q_weight", "k_weight", "out_weight")],
    ),
    "values that a later block adds to its own": (
        values_handed_on,
        [("hidden", "context", "value", "q_weight", "k_weight", "out_weight")] * 2,
    ),
    "keys and values of two blocks": (shared_keys, [VALUES] * 2),
    "one product for two blocks": (shared_product, [PACKED] * 2),
    "one product for two blocks, shown in part": (
        one_shows_its_values,
        [("query", "key", "value", "out_weight")] * 2,
    ),
    "one weight for keys and values": (one_weight, [VALUES]),
    "a head of values for several of keys": (
        one_head_of_values,
        [("hidden", "context", "value", "q_weight", "k_weight", "out_weight")],
    ),
    "a head of keys for several of values": (
        one_head_of_keys,
        [("hidden", "value_context", "key", "q_weight", "v_weight", "out_weight")],
    ),
    "a head of keys and values for all queries": (one_head_of_both, [PACKED]),
    "a product that nobody else reads": (packed, [PACKED]),
    "a product that is asked for its shape": (asked_for_its_shape, [PACKED]),
}


@pytest.mark.parametrize("dynamic", ["", "BS"])
@pytest.mark.parametrize("name", CASES)
def test_no_product_is_computed_twice(name: str, dynamic: str) -> None:
    make, expected = CASES[name]
    sample = make(Blocks(dynamic))
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert operands(result.model) == expected
    onnx_fuse.verify(sample.model, result).check()


def test_a_block_that_is_left_as_it_is_needs_its_keys() -> None:
    """The one of two blocks that is small enough takes the keys that both have as values."""
    w = Blocks()
    key, value = w.product(), w.product()
    wide = w.b.op("Concat", w.x, w.x, axis=1)
    small = w.product(w.attended(w.product(), key, value))
    query = w.b.reshape(w.product(wide), BATCH, 2 * ROWS, HEADS, DEPTH)
    scores = w.b.op(
        "MatMul", w.b.transpose(query, 0, 2, 1, 3), w.b.transpose(w.heads(key), 0, 1, 3, 2)
    )
    large = w.b.op("MatMul", w.b.op("Softmax", scores, axis=-1), w.heads(value))
    sample = w.sample(small, w.b.reshape(large, BATCH, HEADS, -1))
    result = onnx_fuse.fuse(sample.model, threshold=BATCH * ROWS)
    assert [block.status for block in result.report.blocks] == ["fused", "declined"]
    assert operands(result.model) == [VALUES]


def test_what_a_block_gives_out_is_not_read_in_the_model() -> None:
    """Keys of a cache leave the model, but as an output of the operator."""
    w = Blocks()
    b = w.b
    past = [
        b.input(f"past_{name}", w.random(BATCH, HEADS, 3, DEPTH), ("B", HEADS, 3, DEPTH))
        for name in "kv"
    ]
    key, value = (b.op("Concat", old, w.heads(w.product()), axis=2) for old in past)
    query = w.heads(w.product())
    scores = b.op("MatMul", query, b.transpose(key, 0, 1, 3, 2))
    context = b.op("MatMul", b.op("Softmax", scores, axis=-1), value)
    made = w.product(b.reshape(b.transpose(context, 0, 2, 1, 3), "B", "S", HIDDEN))
    model = b.model(made)
    model.graph.output.extend(b.model(key, value, rank=4).graph.output)
    result = onnx_fuse.fuse(model, threshold=None)
    assert operands(result.model) == [
        ("hidden", "qkv_weight", "past_key", "past_value", "out_weight")
    ]


def scored(w: Blocks) -> tuple[str, str]:
    """The scaled scores of projected queries and keys, and projected values."""
    query, key, value = (w.heads(w.product()) for _ in range(3))
    scores = w.b.op("MatMul", query, w.b.transpose(key, 0, 1, 3, 2))
    return w.b.op("Mul", scores, w.b.scalar(0.5)), value


def weighed(w: Blocks, scores: str, value: str) -> str:
    context = w.b.op("MatMul", w.b.op("Softmax", scores, axis=-1), value)
    return w.product(w.b.reshape(w.b.transpose(context, 0, 2, 1, 3), "B", "S", HIDDEN))


def shown_scores(w: Blocks) -> Sample:
    scores, value = scored(w)
    return w.sample(weighed(w, scores, value), scores)


def averaged_scores(w: Blocks) -> Sample:
    scores, value = scored(w)
    return w.sample(weighed(w, scores, value), w.b.op("ReduceMean", scores, axes=[1], keepdims=0))


def scores_handed_on(w: Blocks) -> Sample:
    """A second block adds the first one's scores to its own."""
    first, value = scored(w)
    second, other = scored(w)
    made = weighed(w, first, value)
    return w.sample(made, weighed(w, w.b.op("Add", second, first), other))


def both_ways(w: Blocks) -> Sample:
    """The same scores weigh keys for each query, and queries for each key."""
    scores, value = scored(w)
    turned = w.b.transpose(scores, 0, 1, 3, 2)
    other = w.heads(w.product())
    return w.sample(weighed(w, scores, value), weighed(w, turned, other))


def scores_asked_for_their_shape(w: Blocks) -> Sample:
    scores, value = scored(w)
    made = weighed(w, scores, value)
    return w.sample(w.b.op("Expand", w.b.scalar(1.0), w.b.op("Shape", scores)), made)


def maximum_taken_off(w: Blocks) -> Sample:
    """What else is made of the scores is taken in."""
    scores, value = scored(w)
    peak = w.b.reduce("ReduceMax", scores, -1)
    return w.sample(weighed(w, w.b.op("Sub", scores, peak), value))


SCORES: dict[str, tuple[Callable[[Blocks], Sample], list[str | None]]] = {
    "shown": (shown_scores, ["needed as"]),
    "averaged and shown": (averaged_scores, ["read by"]),
    "handed on": (scores_handed_on, ["read by", "read by"]),
    "both ways": (both_ways, ["read by", "read by"]),
    "asked for their shape": (scores_asked_for_their_shape, [None]),
    "their maximum taken off": (maximum_taken_off, [None]),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dynamic", ["", "BS"])
def test_scores_that_the_model_needs_are_computed_once(name: str, dynamic: str) -> None:
    make, expected = SCORES[name]
    result = onnx_fuse.fuse(make(Blocks(dynamic)).model, threshold=None)
    codes = [block.code for block in result.report.blocks]
    assert codes == [None if what is None else Code.SCORES_READ for what in expected]
    for block, what in zip(result.report.blocks, expected, strict=True):
        assert what is None or f"are also {what}" in (block.reason or "")
