"""What has the form of attention between positions and is none, or only a part of one."""

from __future__ import annotations

from typing import Any

import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.samples import graph_twins, operand_twins, steps, weight_steps
from tests.analysis.samples.twins import Step, after, before, on, twin
from tests.analysis.verdicts import Make, check_declined

DECLINED: dict[str, tuple[Make, Code]] = {
    "attention between channels": (
        lambda: twin(scored=steps.channel_scores, product=steps.channel_product),
        Code.CHANNEL_ATTENTION,
    ),
    "attention between heads, over positions and channels": (
        lambda: twin(scored=steps.scores_of_heads, product=steps.product_of_heads),
        Code.CHANNEL_ATTENTION,
    ),
    "attention between channels, behind a convolution of neighbours": (
        lambda: graph_twins.behind_a_convolution(("bcn,bdn->bcd", "bcd,bdn->bcn")),
        Code.CHANNEL_ATTENTION,
    ),
    "attention between channels, by weights that callers give": (
        graph_twins.channels_by_given_weights,
        Code.CHANNEL_ATTENTION,
    ),
    "attention between channels, the keys' positions mixed": (
        lambda: twin(
            scored=steps.channel_scores,
            product=steps.channel_product,
            **on("k", "normed", operand_twins.mixed_positions),
        ),
        Code.CHANNEL_ATTENTION,
    ),
    "no heads": (lambda: graph_twins.sized(heads=0), Code.CONSTANT),
    "gate": (graph_twins.gate, Code.GATE),
    "gate of a stream of residuals": (
        lambda: graph_twins.gate(graph_twins.normed_stream),
        Code.GATE,
    ),
    "gate behind an activation": (lambda: graph_twins.gate(graph_twins.activated), Code.GATE),
    "mean of bins": (lambda: graph_twins.gate(graph_twins.projected, 1), Code.GATE),
    "router of experts": (graph_twins.experts, Code.GATE),
    "router": (
        lambda: twin(scored=steps.routed, **after("scores", steps.ranked)),
        Code.GATE,
    ),
    "positions weighed by a network": (
        lambda: graph_twins.pooled_by(steps.unary("Tanh")),
        Code.NO_SCORES,
    ),
    "positions weighed by a network, the weights changed": (
        lambda: graph_twins.pooled_by(steps.unary("Tanh"), weight_steps.mask_weights),
        Code.NO_SCORES,
    ),
    "positions weighed without a network, the weights changed": (
        lambda: graph_twins.pooled_by(steps.unary("Identity"), weight_steps.mask_weights),
        Code.WEIGHTS_SCALED,
    ),
    "positions weighed by a network with gates": (
        lambda: graph_twins.pooled_by(
            lambda w, x: w.b.op("Mul", x, w.b.op("Sigmoid", w.b.op("Neg", x)))
        ),
        Code.NO_SCORES,
    ),
    "each position with itself": (graph_twins.pooled, Code.NO_SCORES),
    "sums of queries and keys": (lambda: twin(scored=steps.summed("Add")), Code.NO_SCORES),
    "distances of queries and keys": (lambda: twin(scored=steps.summed("Sub")), Code.NO_SCORES),
    "constant scores": (lambda: twin(**before("weights", steps.constant_scores)), Code.CONSTANT),
    "constant queries and keys": (
        lambda: twin(operands_of_product=operand_twins.constant_positions("q", "k")),
        Code.CONSTANT,
    ),
    "constant queries and keys of as many batches as are given": (
        lambda: twin(operands_of_product=operand_twins.positions_of_batches("q", "k")),
        Code.CONSTANT,
    ),
    "constant keys of computed values": (
        lambda: twin(operands_of_product=operand_twins.constant_positions("k")),
        Code.GATE,
    ),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_is_no_attention_says_so(name: str) -> None:
    check_declined(*DECLINED[name])


@pytest.mark.parametrize("change", [{}, {"scale": 0.5}, {"is_masked": True}], ids=str)
def test_both_parts_of_linear_attention_are_named(change: dict[str, Any]) -> None:
    blocks = onnx_fuse.explain(graph_twins.linear_attention(**change).model, threshold=None).blocks
    assert [block.code for block in blocks] == [Code.LINEAR_ATTENTION] * 2


@pytest.mark.parametrize("change", [graph_twins.projected, graph_twins.activated])
def test_linear_attention_of_projections_may_be_one_by_landmarks(change: Step) -> None:
    blocks = onnx_fuse.explain(graph_twins.linear_attention(change=change).model, threshold=None)
    assert [block.code for block in blocks.blocks] == [Code.PARTIAL] * 2


def test_both_parts_of_attention_by_landmarks_are_named() -> None:
    blocks = onnx_fuse.explain(graph_twins.landmarks().model, threshold=None).blocks
    assert [block.code for block in blocks] == [Code.PARTIAL] * 2


def test_part_of_an_attention_is_not_fused_without_the_others() -> None:
    blocks = onnx_fuse.explain(graph_twins.in_parts().model, threshold=None).blocks
    assert [block.code for block in blocks] == [Code.PARTIAL, Code.SCORES_CHANGED]


@pytest.mark.parametrize(
    "make",
    [
        lambda: graph_twins.weighed_by("B"),
        lambda: graph_twins.weighed_by(is_computed=True),
    ],
    ids=["of each batch", "computed"],
)
def test_what_values_are_weighed_by_may_be_no_weight(make: Make) -> None:
    blocks = onnx_fuse.explain(make().model, threshold=None).blocks
    assert [block.code for block in blocks] == [Code.WEIGHTS_READ, Code.PARTIAL]


def test_classifier_has_no_site() -> None:
    assert onnx_fuse.explain(graph_twins.classifier().model).blocks == ()
