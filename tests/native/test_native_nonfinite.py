"""Infinities and NaN come out as float32 arithmetic has them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.native import blocks
from tests.op import cases

SPECIAL = (np.nan, np.inf, -np.inf)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize(("zero_nan", "causal"), [(0, 1), (1, 0), (1, 1), (2, 1)])
@pytest.mark.parametrize("operand", ["hidden", "past_key", "past_value"])
@pytest.mark.parametrize(("q_seq", "past"), [(14, 20), (14, 300), (1, 300)])
def test_one_element_of_an_input(
    q_seq: int, past: int, operand: str, zero_nan: int, causal: int, value: float, isa: str
) -> None:
    block = blocks.make(
        q_seq=q_seq, past=past, heads=(2, 1), is_causal=causal, zero_nan=zero_nan, out=0
    )
    array = block.operands[operand].copy()
    array[..., -min(3, array.shape[-2]), 5] = value
    block = blocks.change(block, {}, {operand: array})
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("zero_nan", [0, 1, 2])
@pytest.mark.parametrize("columns", [40, 600])
@pytest.mark.parametrize("attn_weights", [False, True])
def test_rows_of_the_bias(
    attn_weights: bool, columns: int, zero_nan: int, value: float, isa: str
) -> None:
    block = blocks.make(q_seq=13, kv_seq=columns, zero_nan=zero_nan, attn_weights=attn_weights)
    bias = np.zeros((13, columns), np.float32)
    bias[3] = value  # a whole row
    bias[7, columns - 2] = value  # one element
    bias[9, : columns - 1] = value  # all but one
    block = blocks.change(block, {}, {"attn_bias": bias})
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("sizes", [{"q_seq": 13}, {"q_seq": 1, "past": 300}])
@pytest.mark.parametrize("attn_weights", [False, True])
def test_sink(attn_weights: bool, sizes: dict[str, int], value: float, isa: str) -> None:
    block = blocks.make(**sizes, attn_weights=attn_weights)
    block = blocks.change(block, {}, {"sinks": np.array([value, 0.5], np.float32)})
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("value", [*SPECIAL, 0.0])
@pytest.mark.parametrize("sizes", [{"q_seq": 13}, {"q_seq": 1, "past": 300}])
def test_gate(sizes: dict[str, int], value: float, isa: str) -> None:
    """Of rows that are not finite, too: 0 * NaN is NaN, and a gate of infinities keeps signs."""
    block = blocks.make(**sizes, heads=(4, 2), out=32)
    gate = np.full((1, sizes["q_seq"], 4, 16), 0.5, np.float32)
    gate[:, -1, 1, 3] = value
    operands = {"gate": gate}
    for seen in (0.0, np.inf, -np.inf):
        operands["attn_bias"] = np.zeros((4, sizes["q_seq"], 1), np.float32)
        operands["attn_bias"][1, -1] = seen
        changed = blocks.change(block, {}, operands)
        blocks.assert_right(blocks.run(changed, isa), changed)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("columns", [40, 600])
def test_fully_masked_row_is_nan_or_zero(columns: int, isa: str) -> None:
    keep = np.ones((5, columns), np.bool_)
    keep[2] = False
    operands = {"attn_mask": keep, "mask_fill": np.array(-np.inf, np.float32)}
    for zero_nan in (0, 1, 2):
        block = blocks.make(q_seq=5, kv_seq=columns, zero_nan=zero_nan, out=0)
        output = blocks.run(blocks.change(block, {}, operands), isa)[0]
        assert np.isnan(output[0, 2]).all() if zero_nan == 0 else (output[0, 2] == 0).all()
        assert np.isfinite(np.delete(output[0], 2, axis=0)).all()


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("scale", [3e4, -3e4])
def test_large_finite_scores_do_not_overflow(scale: float, isa: str) -> None:
    block = blocks.make(q_seq=20, scale=scale)
    output = blocks.run(block, isa)[0]
    assert np.isfinite(output).all()


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("sizes", [{"batch": 0}, {"q_seq": 0}, {"kv_seq": 0}, {"hidden": 0}])
@pytest.mark.parametrize("attn_weights", [False, True])
def test_empty_dimensions(attn_weights: bool, sizes: dict[str, int], isa: str) -> None:
    block = blocks.make(**{"q_seq": 4, **sizes}, attn_weights=attn_weights)
    found = blocks.run(block, isa)
    if found[0].size:
        assert blocks.worst(found, block) <= cases.tolerance(block)
    else:
        assert found[0].shape == (sizes.get("batch", 1), sizes.get("q_seq", 4), 32)
