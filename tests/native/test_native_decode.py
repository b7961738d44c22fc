"""One query position: K's rows are read as they lie, the heads of a group together, and a long
cache in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.native import blocks
from tests.op.cases import Block

HEADS = [(6, 6), (6, 2), (6, 1), (18, 1)]
SCORES: dict[str, tuple[int, ...]] = {
    "none": (),
    "columns": (1, 1, 1, -1),
    "heads": (1, -2, 1, 1),
    "all": (2, -2, 1, -1),
}


def _decode(
    heads: tuple[int, int], dims: tuple[int, int], past: int, terms: str, **attributes: Any
) -> Block:
    """Return a block of one position with everything that differs from head to head."""
    random = np.random.default_rng(past)
    block = blocks.make(batch=2, q_seq=1, past=past, heads=heads, dims=dims, seed=past)
    angles = random.standard_normal((2, heads[0], 1, 10))
    operands = {
        "q_cos": np.cos(angles).astype(np.float32),
        "q_sin": np.sin(angles).astype(np.float32),
        "k_cos": np.cos(angles[:1, :1]).astype(np.float32),
        "k_sin": np.sin(angles[:1, :1]).astype(np.float32),
        "q_norm_weight": random.standard_normal((heads[0], dims[0])).astype(np.float32),
        "sinks": random.standard_normal(heads[0]).astype(np.float32),
        "gate": random.standard_normal((2, 1, heads[0], dims[1])).astype(np.float32),
    }
    if terms != "none":
        known = {-1: past + 1, -2: heads[0]}
        shape = [known.get(dim, dim) for dim in SCORES[terms]]
        operands["attn_bias"] = random.standard_normal(shape).astype(np.float32)
        operands["attn_mask"] = random.random(shape) < 0.8
        operands["mask_fill"] = random.standard_normal(shape).astype(np.float32)
    attributes = {"rotary_embedding_dim": 10, "q_norm": "rms", **attributes}
    return blocks.change(block, attributes, operands)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("terms", SCORES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("past", [1, 15, 300, 900])
def test_one_position_after_the_past(
    past: int, heads: tuple[int, int], terms: str, isa: str
) -> None:
    block = _decode(heads, (16, 16), past, terms, is_causal=1)
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("dims", [(12, 20), (33, 16), (64, 64)])
@pytest.mark.parametrize("over_heads", [0, 1])
def test_head_sizes(over_heads: int, dims: tuple[int, int], isa: str) -> None:
    block = _decode((4, 2), dims, 40, "all", q_norm_over_heads=over_heads)
    blocks.assert_right(blocks.run(block, isa), block)


# Columns that are seen, of 600 in parts of 256.
SEEN = {
    "last part": slice(512, 600),
    "first part": slice(0, 256),
    "across parts": slice(250, 260),
    "nothing": slice(0, 0),
}


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("value", [0.5, np.inf, np.nan])
@pytest.mark.parametrize("zero_nan", [0, 1, 2])
@pytest.mark.parametrize("seen", SEEN)
def test_parts_without_a_visible_column(seen: str, zero_nan: int, value: float, isa: str) -> None:
    block = blocks.make(q_seq=1, past=599, heads=(4, 2), zero_nan=zero_nan)
    bias = np.full((1, 1, 1, 600), -np.inf, np.float32)
    bias[..., SEEN[seen]] = 0.5
    past_value = block.operands["past_value"].copy()
    past_value[..., 300, 5] = value  # 0 * inf is NaN, whoever sees it
    block = blocks.change(block, {}, {"attn_bias": bias, "past_value": past_value})
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("heads", [(12, 12), (12, 2), (6, 1), (32, 1)])
def test_parts_are_shared_without_a_change_of_a_bit(heads: tuple[int, int], threads: int) -> None:
    block = blocks.make(batch=2, q_seq=1, past=1500, heads=heads)
    gate = np.random.default_rng(1).standard_normal((2, 1, heads[0], 16)).astype(np.float32)
    block = blocks.change(block, {}, {"gate": gate})
    alone = blocks.run(block)
    blocks.assert_right(alone, block)
    for one, other in zip(alone, blocks.run(block, threads=threads), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("kv_seq", [1, 17, 300])
@pytest.mark.parametrize("causal", [0, 1])
def test_given_keys_are_read_where_they_are(causal: int, kv_seq: int, isa: str) -> None:
    random = np.random.default_rng(kv_seq)
    block = blocks.make(q_seq=1, kv_seq=kv_seq, heads=(4, 2), is_causal=causal)
    for name in ("context", "k_weight", "k_bias", "v_weight", "v_bias"):
        del block.operands[name]
    shape = (1, 2, kv_seq, 16)
    given = {name: random.standard_normal(shape).astype(np.float32) for name in ("key", "value")}
    block = blocks.change(block, {}, given)
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
def test_rows_a_multiple_of_a_page_apart(isa: str) -> None:
    block = blocks.make(q_seq=70, hidden=1024, out=17)
    blocks.assert_right(blocks.run(block, isa), block)
