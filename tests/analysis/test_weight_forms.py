"""Less usual ways from the scores to the weights: what is fused, and beside it what must not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis import weight_twins as ways
from tests.analysis.check import TOLERANCE, fused_nodes, plain_session
from tests.analysis.forms import SIZES, Form
from tests.analysis.graphs import Sample
from tests.analysis.test_near_misses import check_says_why
from tests.analysis.twins import after, twin
from tests.analysis.weight_twins import each, masked_twice

Make = Callable[[], Sample]
SELECT, BIAS = ("attn_mask", "mask_fill"), ("attn_bias",)
CAP = Form(extra="softcap")
TRIANGLE = np.tri(SIZES["S"], dtype=bool)


class Meaning(NamedTuple):
    """The mask operands of a fused node, and whether what is no number is zero."""

    operands: tuple[str, ...]
    zero_nan: int = 0


FUSED: dict[str, tuple[Make, Meaning]] = {
    "zeroed behind a fill": (
        lambda: twin(**masked_twice(ways.selected(-1e9), ways.zeroed)),
        Meaning(SELECT, 1),
    ),
    "zeroed behind a fill by a comparison": (
        lambda: twin(**masked_twice(ways.selected(-1e9), ways.zeroed_again)),
        Meaning(SELECT, 1),
    ),
    "zeroed behind an infinite fill": (
        lambda: twin(**masked_twice(ways.selected(-np.inf), ways.zeroed)),
        Meaning(SELECT, 1),
    ),
    "times zero behind a fill": (
        lambda: twin(**masked_twice(ways.selected(-1e9), ways.times_kept)),
        Meaning(SELECT, 1),
    ),
    # Zero times what is no number is no number.
    "times zero behind an infinite fill": (
        lambda: twin(**masked_twice(ways.selected(-np.inf), ways.times_kept)),
        Meaning(SELECT, 0),
    ),
    "zeroed behind a sum": (
        lambda: twin(**masked_twice(ways.lowered(-1e9), ways.zeroed)),
        Meaning(SELECT, 1),
    ),
    "times zero behind a sum": (
        lambda: twin(**masked_twice(ways.lowered_by_choice(-1e9), ways.times_kept)),
        Meaning(SELECT, 1),
    ),
    "times zero behind an infinite sum": (
        lambda: twin(**masked_twice(ways.lowered_by_choice(-np.inf), ways.times_kept)),
        Meaning(SELECT, 0),
    ),
    "zeroed behind a low fill of padded scores": (
        lambda: twin(**masked_twice(each(ways.padded(-1e9), ways.selected(-3e38)), ways.zeroed)),
        Meaning((*BIAS, *SELECT), 1),
    ),
    "zeroed behind a fill that no capped score reaches": (
        lambda: twin(CAP, **masked_twice(ways.selected(-1e4), ways.zeroed)),
        Meaning(SELECT, 1),
    ),
    "zeroed behind a fill that no scaled score of half precision reaches": (
        lambda: twin(scored=ways.in_half(-1e4, 0.125), **after("weights", ways.zeroed)),
        Meaning(SELECT, 1),
    ),
    "zeroed by the same comparison": (
        lambda: twin(**ways.compared_twice("LessOrEqual", "LessOrEqual")),
        Meaning(SELECT, 1),
    ),
    "sum of opposite constant parts": (
        lambda: twin(**after("scores", ways.constant_parts(TRIANGLE, ~TRIANGLE))),
        Meaning(BIAS),
    ),
    "sum with minus infinity times zero": (
        lambda: twin(**after("scores", ways.halved_sum)),
        Meaning((*BIAS, *SELECT)),
    ),
}
DECLINED: dict[str, tuple[Make, Code]] = {
    "zeroed by another comparison": (
        lambda: twin(**ways.compared_twice("LessOrEqual", "Less")),
        Code.WEIGHTS_SCALED,
    ),
    "sum of constant parts that overlap": (
        lambda: twin(**after("scores", ways.constant_parts(TRIANGLE, ~TRIANGLE.T))),
        Code.CONTENT_BIAS,
    ),
    "zeroed behind a fill that padded scores reach": (
        lambda: twin(**masked_twice(each(ways.padded(-1e9), ways.selected(-1e9)), ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that another fill reaches": (
        lambda: twin(
            **masked_twice(each(ways.selected(-1e9, "other"), ways.selected(-1e9)), ways.zeroed)
        ),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that biased scores may reach": (
        lambda: twin(**masked_twice(each(ways.biased_by_input, ways.selected(-1e9)), ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that a cap reaches": (
        lambda: twin(CAP, **masked_twice(ways.selected(-100.0), ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that a float32 product may reach": (
        lambda: twin(scored=ways.in_half(-1e4, None), **after("weights", ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a fill that a product of half precision reaches": (
        lambda: twin(scored=ways.in_half(-1e4, 1.0), **after("weights", ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed behind a sum that scores reach": (
        lambda: twin(**masked_twice(ways.lowered(-1e4), ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "zeroed where a sum shows": (
        lambda: twin(**masked_twice(ways.lowered(-1e9, inverted=False), ways.zeroed)),
        Code.WEIGHTS_SCALED,
    ),
    "times a half behind a fill": (
        lambda: twin(**masked_twice(ways.selected(-1e9), ways.times_half_kept)),
        Code.WEIGHTS_SCALED,
    ),
}


def check_same(sample: Sample, model: onnx.ModelProto) -> None:
    """Compare results, no numbers included, with those of plain onnxruntime."""
    (expected,), (found,) = (
        plain_session(m).run(None, sample.feeds) for m in (sample.model, model)
    )
    assert not np.isnan(expected).all()
    bound = TOLERANCE * max(1.0, float(np.nanmax(np.abs(expected))))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("name", FUSED)
def test_form_is_fused_with_its_meaning(name: str) -> None:
    make, meaning = FUSED[name]
    sample = make()
    model = onnx_fuse.fuse(sample.model, threshold=None).model
    (node,) = fused_nodes(model)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    operands = attributes["operands"].decode().split(",")
    masks = {"attn_bias", "attn_mask", "mask_fill", "sinks"}
    assert tuple(name for name in operands if name in masks) == meaning.operands
    assert attributes["zero_nan"] == meaning.zero_nan
    if "sum with minus infinity" not in name:  # of which nothing is a number
        check_same(sample, model)


@pytest.mark.parametrize("name", DECLINED)
def test_near_miss_is_declined_with_its_code(name: str) -> None:
    make, code = DECLINED[name]
    sample = make()
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert [block.code for block in result.report.blocks] == [code]
    check_says_why(result.report.blocks[0], sample.model)
    assert result.model.SerializeToString() == sample.model.SerializeToString()
