"""Heads of queries, keys and values that nothing projects."""

from __future__ import annotations

import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.samples import steps, weight_steps
from tests.analysis.samples.forms import NUM_HEADS, SIZES, Form
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.twins import Step, after, twin
from tests.analysis.verdicts import check_declined, check_same, operands

ROWS = SIZES["S"]


def of_values(form: Form, **more: Step) -> Sample:
    """Neither queries, keys and values come from a projection, nor goes the context into one."""

    def activated(w: Writer, value: str) -> str:
        return w.b.op("Softplus", value)

    return twin(form, **after("heads_first", activated), **after("merged", activated), **more)


@pytest.mark.parametrize("dims", ["static", "dynamic"])
@pytest.mark.parametrize("heads", ["mha", "gqa_expand", "gqa_tile", "gqa_concat", "mqa_broadcast"])
def test_heads_of_values_have_a_sink_each(heads: str, dims: str) -> None:
    """Grouped heads are no rows of their keys' head: each has a sink of its own."""
    sample = of_values(Form(heads=heads, dims=dims, extra="sinks"))
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert operands(result.model) == [("query", "key", "value", "sinks")]
    check_same(sample, result.model)
    (block,) = result.report.blocks
    assert (block.num_heads, block.kv_num_heads) == (NUM_HEADS, Writer(Form(heads=heads)).kv_heads)


@pytest.mark.parametrize("dims", ["static", "dynamic"])
@pytest.mark.parametrize("heads", ["gqa_expand", "gqa_tile", "gqa_concat", "mqa_broadcast"])
def test_heads_of_values_are_what_the_output_has_beside_its_depth(heads: str, dims: str) -> None:
    """They need no masks and tables of their own, and nothing is moved behind the block."""
    sample = of_values(Form(heads=heads, dims=dims, rope="half", mask="padding"))
    result = onnx_fuse.fuse(sample.model, threshold=None)
    check_same(sample, result.model)
    (block,) = result.report.blocks
    assert (block.num_heads, block.kv_num_heads) == (NUM_HEADS, Writer(Form(heads=heads)).kv_heads)
    behind = result.dump.split("FusedAttentionBlock(")[1].split("\nfunction")[0]
    assert "Transpose" not in behind


@pytest.mark.parametrize(
    ("form", "more"),
    [
        (Form(heads="folded"), {}),
        (Form(heads="gqa_expand"), after("product", steps.unary("Softplus"))),
    ],
    ids=["among the rows", "before the rows of the output"],
)
def test_heads_that_may_be_rows_are_rows(form: Form, more: dict[str, Step]) -> None:
    sample = of_values(form, **more)
    result = onnx_fuse.fuse(sample.model, threshold=None)
    check_same(sample, result.model)
    (block,) = result.report.blocks
    kv_heads = Writer(form).kv_heads
    assert (block.num_heads, block.kv_num_heads) == (kv_heads, kv_heads)


@pytest.mark.parametrize("heads", ["mha", "gqa_expand", "mqa_broadcast"])
def test_rows_of_values_have_no_sink_each(heads: str) -> None:
    by_row = weight_steps.wrong_sink(1, 0, ROWS, by_row=True)
    check_declined(lambda: of_values(Form(heads=heads), weights=by_row), Code.UNSUPPORTED_OP)
