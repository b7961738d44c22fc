"""Every form of mask in float16: the block computes in float32, and its operands are float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.samples import edit_twins
from tests.analysis.samples.forms import LEVELS, SIZES, Form
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.twins import after, twin
from tests.analysis.samples.weight_twins import biased_by_input, selected
from tests.sessions import plain_session

OUT_OF_RANGE = ("clamp", "zeroed", "zeroed_times")  # their fills are beyond float16
SAMPLES = {
    **{mask: Writer(Form(mask=mask)).sample for mask in LEVELS["mask"] if mask not in OUT_OF_RANGE},
    "written in place": lambda: twin(**after("scores", edit_twins.by_input)),
    "heads biased, joined again": lambda: twin(
        **after("scores", edit_twins.joined(biased_by_input, edit_twins.biased(3, 1, 5)))
    ),
    "sinks": Writer(Form(extra="sinks")).sample,
    "softcap": Writer(Form(extra="softcap", mask="add2")).sample,
    "some rows rotated": Writer(Form(rope="rows_behind")).sample,
    "some rows of a named number rotated": Writer(Form(rope="rows_behind", dims="dynamic")).sample,
}
# Some ten roundings to float16 on the way, each of half of its last bit.
TOLERANCE = 10 * 2.0**-11
ROWS = SIZES["S"]


def halved(sample: Sample) -> Sample:
    """Return the sample with float16 for float32 everywhere."""
    model = onnx.ModelProto()
    model.CopyFrom(sample.model)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            data = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(data, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    is_float = {name: data.dtype == np.float32 for name, data in sample.feeds.items()}
    feeds = {n: d.astype(np.float16) if is_float[n] else d for n, d in sample.feeds.items()}
    return Sample(model, feeds, sample.record)


@pytest.mark.parametrize("name", SAMPLES)
def test_half_precision_block_is_fused_and_computes_the_same(name: str) -> None:
    sample = halved(SAMPLES[name]())
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert [block.status for block in result.report.blocks] == ["fused"]
    (expected,) = plain_session(sample.model).run(None, sample.feeds)
    (found,) = onnx_fuse.session(result.model).run(None, sample.feeds)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    bound = TOLERANCE * float(np.nanmax(np.abs(expected)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


HALF, NARROW = TensorProto.FLOAT16, TensorProto.BFLOAT16
ADDED, TABLE, CHOSEN = "an input", "a table", "chosen"


def rounded(how: str, number: float, dtype: int = HALF) -> Sample:
    """Hide a row and a column of the scores, then cast them to half precision and back."""

    def scores(w: Writer, value: str) -> str:
        hidden = np.zeros((1, 1, ROWS, ROWS), dtype=bool)
        hidden[..., 1, :] = hidden[..., 3] = True
        mask = np.where(hidden, number, 0.0).astype(np.float32)
        if how == CHOSEN:
            masked = w.b.op("Where", w.b.const(hidden), w.b.scalar(number), value)
        else:
            added = w.b.const(mask) if how == TABLE else w.b.input("added", mask, mask.shape)
            masked = w.b.op("Add", value, added)
        return w.b.op("Cast", w.b.op("Cast", masked, to=dtype), to=TensorProto.FLOAT)

    return twin(**after("scores", scores))


# What is added leaves its last bits of the scores, what is chosen nothing in any case.
ROUNDED: dict[tuple[str, float, int], Code | None] = {
    (ADDED, -1e4, HALF): Code.SCORES_CHANGED,
    (TABLE, -65504.0, HALF): Code.SCORES_CHANGED,
    (TABLE, -16.0, HALF): Code.SCORES_CHANGED,
    (TABLE, -8.0, HALF): None,
    (TABLE, -2.0, NARROW): Code.SCORES_CHANGED,
    (TABLE, -1.0, NARROW): None,
    (TABLE, -np.inf, HALF): None,
    (CHOSEN, -65504.0, HALF): None,
    (CHOSEN, -3e38, NARROW): None,
    (CHOSEN, -1e9, HALF): Code.SCORES_CHANGED,
    (CHOSEN, -np.inf, HALF): None,
}


@pytest.mark.parametrize(("how", "number", "dtype"), ROUNDED)
def test_scores_are_rounded_where_they_are_not_lost(how: str, number: float, dtype: int) -> None:
    sample = rounded(how, number, dtype)
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert [block.code for block in result.report.blocks] == [ROUNDED[how, number, dtype]]
    (expected,) = plain_session(sample.model).run(None, sample.feeds)
    (found,) = plain_session(result.model).run(None, sample.feeds)
    bound = 2.0**-5 * float(np.nanmax(np.abs(expected)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def test_logarithm_of_a_sum_is_lost_earlier_in_half_precision() -> None:
    sample = twin(Form(extra="log_of_sum"), **after("scores", selected(-100.0)))
    codes = [
        [block.code for block in onnx_fuse.explain(made.model, threshold=None).blocks]
        for made in (sample, halved(sample))
    ]
    assert codes == [[None], [Code.SCORES_CHANGED]]
