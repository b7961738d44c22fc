"""Scores that are a sum of products: what is one product, and beside it what is none."""

from __future__ import annotations

import pytest

from onnx_fuse.report import Code
from tests.analysis.check import check_results, fused, fused_nodes
from tests.analysis.samples import sum_twins as sums
from tests.analysis.samples.forms import NUM_HEADS, Form
from tests.analysis.samples.twins import after, twin
from tests.analysis.verdicts import Make, check_declined
from tests.sessions import plain_session

FUSED: dict[str, Make] = {
    "another product": lambda: twin(**after("scored", sums.plus())),
    "a product of keys that all heads share": lambda: twin(
        **after("scored", sums.plus(key_heads=1))
    ),
    "a product of a scale of its own": lambda: twin(**after("scored", sums.plus(factor=0.3))),
    "a product in another precision": lambda: twin(**after("scored", sums.plus_in_double)),
    "a product taken off": lambda: twin(**after("scored", sums.plus("Sub"))),
    "scores taken off a product": lambda: twin(**after("scored", sums.taken_from)),
    "a product behind the scale": lambda: twin(**after("scaled_scores", sums.plus())),
    "two more products": lambda: twin(
        **after("scored", lambda w, scores: sums.plus()(w, sums.plus(factor=0.5)(w, scores)))
    ),
    "a product of parts of queries and keys": lambda: twin(**after("scored", sums.plus_of_own)),
    "a product whose batch holds the heads": lambda: twin(
        **after("scored", sums.plus_in_three_axes)
    ),
    "a product and a bias in one sum": lambda: twin(**after("scored", sums.plus_two)),
    "a product and a mask": lambda: twin(**after("scored", sums.plus_masked(-1e9))),
    "a product under a mask": lambda: twin(Form(mask="causal"), **after("scored", sums.plus())),
    "a product beside rotated keys of fewer heads": lambda: twin(
        Form(rope="half", heads="gqa_expand", dims="dynamic"),
        **after("scored", sums.plus(key_heads=1)),
    ),
    "a product beside scores of three axes": lambda: twin(
        Form(order="3d", dims="dynamic"),
        **after("as_four", sums.plus(key_heads=1)),
    ),
}

DECLINED: dict[str, tuple[Make, Code]] = {
    "a bounded product": (
        lambda: twin(**after("scored", sums.plus_capped)),
        Code.CONTENT_BIAS,
    ),
    "a product times a number of each row": (
        lambda: twin(**after("scored", sums.plus_by_row)),
        Code.CONTENT_BIAS,
    ),
    "a product with relative places": (
        lambda: twin(**after("scored", sums.plus_shifted)),
        Code.CONTENT_BIAS,
    ),
    "a product with keys of each row": (
        lambda: twin(**after("scored", sums.plus_of_pairs)),
        Code.CONTENT_BIAS,
    ),
    "a product times zero": (
        lambda: twin(**after("scored", sums.plus(factor=0.0))),
        Code.CONTENT_BIAS,
    ),
    "a product times numbers whose own product is zero": (
        lambda: twin(**after("scored", sums.plus_vanishing)),
        Code.CONTENT_BIAS,
    ),
    "a product of a named number of batches": (
        lambda: twin(Form(dims="batch"), **after("scored", sums.plus_of_other)),
        Code.CONTENT_BIAS,
    ),
    "a product beside capped scores": (
        lambda: twin(Form(extra="softcap"), **after("capped", sums.plus())),
        Code.CONTENT_BIAS,
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_sum_of_products_is_one_product(name: str) -> None:
    sample = FUSED[name]()
    model = fused(sample.model)
    (node,) = fused_nodes(model)
    attributes = {a.name: a.i for a in node.attribute}
    assert attributes["num_heads"] == NUM_HEADS
    assert attributes["head_dim"] > attributes["v_head_dim"]
    expected, found = (plain_session(m).run(None, sample.feeds) for m in (sample.model, model))
    check_results(found, expected)


@pytest.mark.parametrize("name", DECLINED)
def test_sum_with_something_else_is_declined(name: str) -> None:
    check_declined(*DECLINED[name])
