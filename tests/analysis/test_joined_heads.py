"""Heads that are computed one by one and joined are one block, if they differ in weights alone."""

from __future__ import annotations

import pytest

import onnx_fuse
from tests.analysis.check import fused_nodes
from tests.analysis.samples import head_lists as lists
from tests.analysis.samples.head_lists import DEPTH, HEADS, HeadList, only
from tests.analysis.verdicts import ALL, OUT, check_same, operands

PROJECTED = tuple(f"{name}_{part}" for part in ("weight", "bias") for name in "qkv")

# One block: how many heads it has, of them with keys of their own, and its operands.
ONE: dict[str, tuple[HeadList, tuple[int, int], tuple[str, ...]]] = {
    "heads with weights of their own": (HeadList(), (HEADS, HEADS), (*ALL, *OUT)),
    "of open extents": (HeadList(dynamic="BS"), (HEADS, HEADS), (*ALL, *OUT)),
    "without an output": (HeadList(has_output=False), (HEADS, HEADS), ALL),
    "heads joined in another order": (HeadList(order=(2, 0, 1)), (HEADS, HEADS), (*ALL, *OUT)),
    "groups of heads": (HeadList(width=2, dynamic="BS"), (2 * HEADS, 2 * HEADS), (*ALL, *OUT)),
    "groups of heads before the rows": (
        HeadList(width=2, layout="heads", dynamic="BS"),
        (2 * HEADS, 2 * HEADS),
        (*ALL, *OUT),
    ),
    "stacked before the depth": (
        HeadList(layout="stacked", dynamic="BS"),
        (HEADS, HEADS),
        (*ALL, *OUT),
    ),
    "stacked before all": (HeadList(layout="stacked first"), (HEADS, HEADS), (*ALL, *OUT)),
    "stacked behind the depth": (HeadList(layout="stacked last"), (HEADS, HEADS), (*ALL, *OUT)),
    "each with the same mask": (
        HeadList(scores=lists.hidden_behind()),
        (HEADS, HEADS),
        (*ALL, "attn_mask", "mask_fill", *OUT),
    ),
    "each with a norm": (
        HeadList(query=lists.normed(), key=lists.normed()),
        (HEADS, HEADS),
        (*ALL, "q_norm_weight", "k_norm_weight", *OUT),
    ),
    "each rotated": (
        HeadList(query=lists.rotated(), key=lists.rotated()),
        (HEADS, HEADS),
        (*ALL, "q_cos", "q_sin", "k_cos", "k_sin", *OUT),
    ),
    "one key and value for all": (HeadList(shares="kv"), (HEADS, 1), (*ALL, *OUT)),
    "one key for all": (HeadList(shares="k"), (HEADS, HEADS), (*ALL, *OUT)),
    "keys of another source": (
        HeadList(key_source=lists.other_input),
        (HEADS, HEADS),
        ("hidden", "context", *PROJECTED, *OUT),
    ),
    "lanes in another order": (HeadList(context=lists.lanes_mixed), (HEADS, HEADS), (*ALL, *OUT)),
}

# As many blocks as there are parts, and their contexts joined behind them.
SEVERAL: dict[str, HeadList] = {
    "a scale of its own": HeadList(scores=only(1, lists.times(0.5))),
    "a mask of its own": HeadList(scores=only(1, lists.hidden_behind())),
    "a mask of other places": HeadList(
        scores=lambda w, head, value: lists.hidden_behind(inverted=head == 1)(w, head, value)
    ),
    "a mask of another fill": HeadList(
        scores=lambda w, head, value: lists.hidden_behind(-1e9 - head * 1e8)(w, head, value)
    ),
    "a bias for each head": HeadList(scores=lists.plus_own),
    "random numbers": HeadList(scores=lists.plus_random),
    "a mask of several heads": HeadList(width=2, scores=lists.hidden_behind()),
    "a source of its own": HeadList(source=only(2, lists.other_input)),
    "keys of a source of their own": HeadList(key_source=only(2, lists.other_input)),
    "a source scaled apart": HeadList(source=only(2, lists.times(2.0))),
    "a norm of its own": HeadList(query=only(1, lists.normed())),
    "a norm of another epsilon": HeadList(
        query=lambda w, head, value: lists.normed(1e-5 * (1 + head))(w, head, value)
    ),
    "a rotation of its own": HeadList(
        query=lambda w, head, value: lists.rotated(1.0 + head)(w, head, value)
    ),
    "a depth of its own": HeadList(depths=(DEPTH, DEPTH, 2 * DEPTH)),
    "a head that is read": HeadList(context=only(1, lists.shown)),
    "a head that comes twice": HeadList(order=(0, 1, 2, 2)),
    "a head with its lanes in another order": HeadList(context=only(1, lists.lanes_mixed)),
    "a changed head": HeadList(context=only(1, lists.times(2.0))),
}


@pytest.mark.parametrize("name", ONE)
def test_heads_that_differ_in_weights_are_one_block(name: str) -> None:
    writer, heads, expected = ONE[name]
    sample = writer.sample()
    result = onnx_fuse.fuse(sample.model, threshold=None)
    (block,) = result.report.blocks
    assert (block.num_heads, block.kv_num_heads, block.head_dim) == (*heads, DEPTH)
    assert operands(result.model) == [expected]
    check_same(sample, result.model)


@pytest.mark.parametrize("name", SEVERAL)
def test_heads_that_differ_otherwise_are_several_blocks(name: str) -> None:
    sample = SEVERAL[name].sample()
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert len(fused_nodes(result.model)) == HEADS
    check_same(sample, result.model)


def test_part_that_is_no_attention_leaves_the_others_apart() -> None:
    sample = HeadList(joined=lists.beside_another).sample()
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert [block.num_heads for block in result.report.blocks] == [1] * HEADS
    check_same(sample, result.model)
