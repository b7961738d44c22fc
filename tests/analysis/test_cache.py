"""Keys and values of earlier steps, joined before the new ones: what of them is a cache."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnx_fuse
from onnx_fuse.analysis.attention import recognise
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.ir.check import check_model
from onnx_fuse.ir.load import load
from tests.analysis.check import fused_nodes
from tests.analysis.samples import cache_twins as caches
from tests.analysis.samples.cache_twins import cached
from tests.analysis.samples.forms import SIZES
from tests.analysis.samples.steps import (
    add_whole_numbers,
    add_whole_numbers_in_branch,
    binary,
)
from tests.analysis.samples.twins import after
from tests.analysis.verdicts import Make, check_fused
from tests.sessions import plain_session

BATCH, ROWS, PAST = SIZES["B"], SIZES["S"], caches.PAST
APART = ("hidden", "key", "value", "q_weight", "q_bias", "out_weight", "out_bias")
QUERY = ("context", "query", "k_weight", "v_weight")
PASTS = ("past_key", "past_value")
QKV, OUT = ("hidden", "qkv_weight", "qkv_bias"), ("out_weight", "out_bias")


CASES: dict[str, tuple[Make, tuple[str, ...]]] = {
    "joined": (cached, (*QKV, "past_key", "past_value", *OUT)),
    "learned": (lambda: cached(caches.learned), (*QKV, *PASTS, *OUT)),
    "learned behind the others": (lambda: cached(caches.learned_behind), (*QKV, *PASTS, *OUT)),
    "learned behind the others, repeated": (
        lambda: cached(caches.repeated_behind),
        (*QKV, *PASTS, *OUT),
    ),
    "zeros behind learned ones behind the others": (
        lambda: cached(caches.learned_and_zeros_behind, **caches.added(1, 1, ROWS)),
        (*QKV, *PASTS, "attn_bias", *OUT),
    ),
    "learned behind the others, with a bias by row": (
        lambda: cached(caches.learned_behind, **caches.added(BATCH, 1, ROWS, columns=1)),
        (*QKV, *PASTS, "attn_bias", *OUT),
    ),
    "learned behind the others, with a bias by column": (
        lambda: cached(caches.learned_behind, **caches.added(BATCH, 1, 1)),
        (*QKV, *PASTS, "attn_bias", *OUT),
    ),
    "learned behind the others, hidden": (
        lambda: cached(caches.learned_behind, **after("scores", caches.hidden)),
        (*QKV, *PASTS, "attn_mask", "mask_fill", *OUT),
    ),
    "learned behind the others, with a bias of as many columns as a run says": (
        lambda: cached(caches.learned_behind, **caches.added(BATCH, 1, 1, columns="N")),
        (*APART[:-2], "attn_bias", *OUT),
    ),
    "zeros behind the others, as many as a run says": (
        lambda: cached(caches.zeros_behind),
        APART,
    ),
    "a number before the others": (
        lambda: cached(caches.padded(0, 0, 2, 0, 0, 0, 0, 0)),
        (*QKV, *PASTS, *OUT),
    ),
    "a number behind the others": (
        lambda: cached(caches.padded(0, 0, 0, 0, 0, 0, PAST, 0), **caches.added(BATCH, 1, ROWS)),
        (*QKV, *PASTS, "attn_bias", *OUT),
    ),
    "numbers before the others and behind them": (
        lambda: cached(caches.padded(0, 0, 1, 0, 0, 0, 1, 0)),
        APART,
    ),
    "a number behind the keys, before the values": (
        lambda: cached(caches.padded(0, 0, 0, 0, 0, 0, 1, 0, values=(0, 0, 1, 0, 0, 0, 0, 0))),
        APART,
    ),
    "more numbers behind, some cut off before": (
        lambda: cached(caches.padded(0, 0, -1, 0, 0, 0, 2, 0)),
        APART,
    ),
    "the last again": (
        lambda: cached(caches.padded(0, 0, 0, 0, 0, 0, 1, 0, mode="edge")),
        APART,
    ),
    "a number of the run behind the others": (lambda: cached(caches.padded_by_input), APART),
    "given behind the others": (lambda: cached(caches.given_behind), APART),
    "keys behind the others, values before them": (lambda: cached(caches.behind_and_before), APART),
    "learned behind the others and before them": (
        lambda: cached(caches.behind_an_earlier_one),
        APART,
    ),
    "as many as new ones": (lambda: cached(caches.as_many), (*QKV, *PASTS, *OUT)),
    "biased by halves": (
        lambda: cached(**after("scores", caches.biased_by_halves)),
        (*QKV, *PASTS, "attn_bias", *OUT),
    ),
    "of two lengths": (lambda: cached(caches.uneven), APART),
    "of two lengths, one as many as new ones": (lambda: cached(caches.halves), APART),
    "rotated in their last lanes": (
        lambda: cached(caches.last_rotated),
        ("value_context", "query", "key", "v_weight", "v_bias", *PASTS, *OUT),
    ),
    "queries rotated in their last lanes": (
        lambda: cached(caches.last_of_query_rotated),
        (*QUERY, "k_bias", "v_bias", *PASTS, *OUT),
    ),
    "queries rotated in their last lanes by an operator": (
        lambda: cached(caches.last_of_query_by_operator),
        (*QUERY, "k_bias", "v_bias", *PASTS, *OUT),
    ),
    "queries rotated in their first lanes by an operator": (
        lambda: cached(caches.first_of_query_by_operator),
        (*QKV, "q_cos", "q_sin", *PASTS, *OUT),
    ),
    "keys of a rotated part for all heads": (
        lambda: cached(caches.one_for_all_heads),
        ("value_context", "query", "key", "v_weight", "v_bias", *PASTS, *OUT),
    ),
    "rotated but for one": (
        lambda: cached(caches.rotated_behind_one),
        (*QKV, "q_cos", "q_sin", "k_cos", "k_sin", "past_key", "past_value", *OUT),
    ),
    "scaled together": (lambda: cached(caches.scaled_together), APART),
    "of one tensor": (lambda: cached(caches.of_one_tensor), APART),
    "rotated together": (
        lambda: cached(caches.rotated_together),
        ("hidden", "key", "value", "q_weight", "q_bias", "q_cos", "q_sin", "k_cos", "k_sin", *OUT),
    ),
    "normed together": (
        lambda: cached(caches.normed_together),
        ("hidden", "key", "value", "q_weight", "q_bias", "k_norm_weight", *OUT),
    ),
    "weights halved": (lambda: cached(**after("weights", binary("Mul", 0.5))), APART),
    "with a third tensor": (lambda: cached(caches.of_three), APART),
    "keys with two others": (lambda: cached(caches.keys_of_three), APART),
    "one for both beside another": (lambda: cached(caches.one_for_both), APART),
    "halves of two": (lambda: cached(caches.halves_of_two), APART),
    "keys of more lanes": (lambda: cached(caches.keys_of_more_lanes), APART),
    "values of more lanes": (lambda: cached(caches.values_of_more_lanes), APART),
    "across each other": (
        lambda: cached(
            caches.across, merged=caches.merged_two_heads, output=lambda w, merged: merged
        ),
        ("hidden", "key", "value", "q_weight", "q_bias"),
    ),
    "joined twice": (lambda: cached(caches.joined_twice), APART),
    "of two pasts": (lambda: cached(caches.of_two_pasts), APART),
    "of two pasts that are counted": (
        lambda: cached(caches.of_two_pasts, **after("scores", caches.masked_by_length)),
        (*APART[:-2], "attn_bias", *OUT),
    ),
    "beside a bias of the scores' type": (
        lambda: cached(**after("scores", add_whole_numbers)),
        (*QKV, *PASTS, "attn_bias", *OUT),
    ),
    "beside a bias of the scores' type in a branch": (
        lambda: cached(**after("scores", add_whole_numbers_in_branch)),
        (*APART[:-2], "attn_bias", *OUT),
    ),
    "values of no weight": (
        lambda: cached(caches.values_of_no_weight),
        ("hidden", "context", "value", "q_weight", "k_weight", "q_bias", "k_bias", *PASTS, *OUT),
    ),
    "keys of no weight": (
        lambda: cached(caches.keys_of_no_weight),
        (
            "hidden",
            "value_context",
            "key",
            "q_weight",
            "v_weight",
            "q_bias",
            "v_bias",
            *PASTS,
            *OUT,
        ),
    ),
    "of no weight": (lambda: cached(caches.of_no_weight), APART),
    "fewer values of no weight": (lambda: cached(caches.fewer_of_no_weight), APART),
    "asked by values": (
        lambda: cached(caches.asked_by_values),
        ("hidden", "key", "value", "q_weight", "q_bias", "q_cos", "q_sin", *OUT),
    ),
    "asked by keys": (
        lambda: cached(caches.asked_by_keys),
        ("hidden", "key", "value", "q_weight", *OUT),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_cache_is_taken_in_where_it_is_one(name: str) -> None:
    make, expected = CASES[name]
    made = make()
    result = onnx_fuse.fuse(made.model, threshold=None)
    (node,) = fused_nodes(result.model)
    operands = {a.name: a for a in node.attribute}["operands"].s.decode()
    assert tuple(operands.split(",")) == expected
    assert len(node.output) == (3 if "past_key" in expected else 1)
    check_model(result.graph)
    results = [plain_session(m).run(None, made.feeds) for m in (made.model, result.model)]
    for own, other in zip(*results, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-5 * max(1.0, np.abs(other).max()))


def test_weights_are_shown_in_the_graphs_order() -> None:
    """Learned keys that stand behind the others stay there: their weights are the last ones."""
    made = cached(caches.learned_behind)
    weights = next(n.output[0] for n in made.model.graph.node if n.op_type == "Softmax")
    made.model.graph.output.add().CopyFrom(
        onnx.helper.make_tensor_value_info(weights, onnx.TensorProto.FLOAT, None)
    )
    check_fused(made, APART)


def test_one_part_of_a_stack_is_no_cache_of_both() -> None:
    """The record has none, whatever the plan then leaves outside."""
    model = load(cached(caches.one_for_both).model)
    (site,) = recognise(model.graph, Shapes(model))
    assert site.block is not None
    assert site.block.presents == ()
