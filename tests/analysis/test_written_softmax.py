"""Softmaxes that are written out: what is fused, and beside it what must not be."""

from __future__ import annotations

import math
from functools import partial

import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.meanings import (
    BIAS,
    SELECT,
    SINKS,
    Meaning,
    Write,
    check_meaning,
    however_written,
)
from tests.analysis.samples import graph_twins, softmax_twins
from tests.analysis.samples.forms import NUM_HEADS, SIZES, Form
from tests.analysis.samples.twins import twin
from tests.analysis.verdicts import Make, check_declined

ROWS = SIZES["S"]

FUSED: dict[str, tuple[Make, Meaning]] = {
    "powers times one": (lambda: twin(weights=softmax_twins.powers_times_one()), Meaning(())),
    "powers times a list of one": (
        lambda: twin(weights=softmax_twins.powers_times_one(1)),
        Meaning(SELECT),
    ),
    "one more in the sum": (
        lambda: twin(weights=softmax_twins.sum_with(1.0, shift=False)),
        Meaning(SINKS),
    ),
    "a half more in the sum": (
        lambda: twin(weights=softmax_twins.sum_with(0.5, shift=False)),
        Meaning(SINKS),
    ),
    "one more in the sum of masked scores": (
        lambda: twin(Form(mask="keep_inf"), weights=softmax_twins.sum_with(1.0, shift=False)),
        Meaning((*SELECT, *SINKS)),
    ),
    "one more in the sum, shifted": (
        lambda: twin(weights=softmax_twins.one_more(1.0)),
        Meaning(SINKS),
    ),
    "three more in the sum, shifted by a difference": (
        lambda: twin(weights=softmax_twins.one_more(3.0, by="Sub")),
        Meaning(SINKS),
    ),
    "one more in the sum, shifted by a product": (
        lambda: twin(weights=softmax_twins.one_more(1.0, by="Mul")),
        Meaning(SINKS),
    ),
    "powers of a logarithm with a number of each row": (
        lambda: twin(weights=softmax_twins.less_logarithm(ROWS, 1)),
        Meaning(()),
    ),
    "learned number of heads in the sum": (
        lambda: twin(weights=softmax_twins.learned_sink(NUM_HEADS, 1, 1)),
        Meaning(SINKS),
    ),
    "learned number of heads in the sum, halved": (
        lambda: twin(weights=softmax_twins.learned_sink(NUM_HEADS, 1, 1, factor=0.5)),
        Meaning(SINKS),
    ),
    "learned number of all heads in the sum, halved": (
        lambda: twin(weights=softmax_twins.learned_sink(1, factor=0.5)),
        Meaning(SINKS),
    ),
    "a sink beside padding of another name": (
        lambda: twin(Form(dims="dynamic"), weights=softmax_twins.sink_beside_padding(0, -1)),
        Meaning((*BIAS, *SINKS)),
    ),
    "what is not lost in a sum that may be small": (
        lambda: twin(weights=softmax_twins.sum_with(1e-9, shift=False)),
        Meaning(SINKS),
    ),
    "what is lost in the sum": (lambda: twin(weights=softmax_twins.sum_with(1e-9)), Meaning(())),
    "what is below the sum": (
        lambda: twin(weights=softmax_twins.sum_with(1e-5, op_type="Max")),
        Meaning(()),
    ),
    "nothing more in the sum": (
        lambda: twin(weights=softmax_twins.sum_with(0.0, shift=False)),
        Meaning(()),
    ),
    "what is below the sum, by a clip": (
        lambda: twin(weights=softmax_twins.sum_with(1e-5, op_type="Clip")),
        Meaning(()),
    ),
    "powers times a mask": (
        lambda: twin(weights=softmax_twins.masked_powers("Mul")),
        Meaning(SELECT),
    ),
    **{
        f"powers times a mask, {word} zero guarded": (
            partial(twin, weights=softmax_twins.masked_powers("Mul", guard=word)),
            Meaning(SELECT, 1),
        )
        for word in ("Greater", "Less", "Equal", "LessOrEqual")
    },
    "powers chosen by a mask": (
        lambda: twin(weights=softmax_twins.masked_powers("Where")),
        Meaning(SELECT),
    ),
    "powers of a masked softmax of one's own": (
        lambda: twin(weights=softmax_twins.masked_powers_by_shown()),
        Meaning(SELECT),
    ),
    "power of a logarithmic softmax": (
        lambda: twin(weights=softmax_twins.log_softmax),
        Meaning(()),
    ),
    **{
        f"opposite of a logarithm {'before' if is_first else 'behind'} the scores": (
            partial(twin, weights=softmax_twins.plus_opposite_logarithm(is_first=is_first)),
            Meaning(()),
        )
        for is_first in (True, False)
    },
    "opposite of the largest score, and one more in the sum": (
        lambda: twin(weights=softmax_twins.plus_opposite_largest(2.0)),
        Meaning(SINKS),
    ),
    "division behind the values": (lambda: twin(**softmax_twins.divided_behind()), Meaning(())),
    "division behind the values by a product": (
        lambda: twin(Form(dims="batch"), **softmax_twins.divided_behind(ones=1.0)),
        Meaning(()),
    ),
    "division behind the values under a mask": (
        lambda: twin(Form(mask="two", dims="dynamic"), **softmax_twins.divided_behind(kept=True)),
        Meaning((*BIAS, *SELECT)),
    ),
    "division behind the values by what is lost": (
        lambda: twin(**softmax_twins.divided_behind(rest=1e-12)),
        Meaning(()),
    ),
    "division by the sum and what is lost": (
        lambda: twin(weights=softmax_twins.summed_by_product(1.0)),
        Meaning(()),
    ),
    **{
        f"one more in the sum, shifted by {op_type} with zero": (
            partial(twin, weights=softmax_twins.floored_sink(0.0, op_type)),
            Meaning(SINKS),
        )
        for op_type in ("Max", "Clip", "Relu")
    },
    "one more of each head in the sum, and in the shift": (
        lambda: twin(weights=softmax_twins.sink_in_shift(is_same=True)),
        Meaning(SINKS),
    ),
    **{
        f"largest score above minus infinity taken off, {'after' if is_first else 'before'} it": (
            partial(twin, weights=softmax_twins.less_largest(-math.inf, is_first=is_first)),
            Meaning(()),
        )
        for is_first in (True, False)
    },
    "powers of two": (lambda: twin(weights=softmax_twins.power_of(2.0)), Meaning(())),
    "column padded behind": (
        lambda: twin(weights=softmax_twins.padded_column(0, 1, 0.0, (0, ROWS))),
        Meaning(SINKS),
    ),
    "column padded before": (
        lambda: twin(weights=softmax_twins.padded_column(1, 0, 0.5, (1, ROWS + 1))),
        Meaning(SINKS),
    ),
    "column padded before, split off": (
        lambda: twin(weights=softmax_twins.padded_column(1, 0, 0.5, 1)),
        Meaning(SINKS),
    ),
}
DECLINED: dict[str, tuple[Make, Code]] = {
    "opposite of the logarithm of another sum": (
        lambda: twin(weights=softmax_twins.plus_opposite_logarithm(factor=2.0)),
        Code.UNSUPPORTED_OP,
    ),
    "a logarithm added to the scores": (
        lambda: twin(weights=softmax_twins.plus_opposite_logarithm("Identity")),
        Code.UNSUPPORTED_OP,
    ),
    "powers of hidden scores masked and divided by a guarded sum": (
        lambda: twin(
            Form(mask="keep_inf"), weights=softmax_twins.masked_powers("Mul", guard="Greater")
        ),
        Code.WEIGHTS_SCALED,
    ),
    "one more in the sum, shifted by the largest and one hundred": (
        lambda: twin(weights=softmax_twins.floored_sink(100.0)),
        Code.UNSUPPORTED_OP,
    ),
    "one more of each head in the sum, and another in the shift": (
        lambda: twin(weights=softmax_twins.sink_in_shift(is_same=False)),
        Code.UNSUPPORTED_OP,
    ),
    "largest score above a number taken off": (
        lambda: twin(weights=softmax_twins.less_largest(100.0)),
        Code.CONTENT_BIAS,
    ),
    "powers of two beside one of e": (
        lambda: twin(weights=softmax_twins.power_of(2.0, sink=True)),
        Code.UNSUPPORTED_OP,
    ),
    "one more in the sum, not shifted": (
        lambda: twin(weights=softmax_twins.sum_with(1.0)),
        Code.UNSUPPORTED_OP,
    ),
    "largest of what another mask shows taken off": (
        lambda: twin(weights=softmax_twins.masked_powers_by_shown(own=False)),
        Code.CONTENT_BIAS,
    ),
    "largest of what a mask shows, or one, taken off": (
        lambda: twin(weights=softmax_twins.masked_powers_by_shown(fill=1.0)),
        Code.CONTENT_BIAS,
    ),
    "division behind the values of powers that are shown": (
        softmax_twins.shown_powers,
        Code.WEIGHTS_READ,
    ),
    "one less in the sum": (
        lambda: twin(weights=softmax_twins.sum_with(-1.0, shift=False)),
        Code.UNSUPPORTED_OP,
    ),
    "one more in the sum, shifted by twice the largest": (
        lambda: twin(weights=softmax_twins.one_more(1.0, by="Mul by two")),
        Code.UNSUPPORTED_OP,
    ),
    "one more in the sum, shifted by a difference from another": (
        lambda: twin(weights=softmax_twins.one_more(1.0, by="Sub", own=False)),
        Code.UNSUPPORTED_OP,
    ),
    "one more in the sum, shifted by a product with another": (
        lambda: twin(weights=softmax_twins.one_more(1.0, by="Mul", own=False)),
        Code.UNSUPPORTED_OP,
    ),
    "infinitely more in the sum, shifted": (
        lambda: twin(weights=softmax_twins.one_more(math.inf)),
        Code.UNSUPPORTED_OP,
    ),
    "two less in the sum, shifted": (
        lambda: twin(weights=softmax_twins.one_more(-2.0)),
        Code.UNSUPPORTED_OP,
    ),
    "infinity in the sum": (
        lambda: twin(weights=softmax_twins.sum_with(math.inf, shift=False)),
        Code.UNSUPPORTED_OP,
    ),
    "one more in the sum, shifted by another": (
        lambda: twin(weights=softmax_twins.one_more(1.0, own=False)),
        Code.UNSUPPORTED_OP,
    ),
    "one more in the sum, shifted upwards": (
        lambda: twin(weights=softmax_twins.one_more(1.0, by="Reciprocal")),
        Code.UNSUPPORTED_OP,
    ),
    "learned number of heads in the sum of rows that a mask may hide": (
        lambda: twin(Form(mask="keep_inf"), weights=softmax_twins.learned_sink(NUM_HEADS, 1, 1)),
        Code.SCORES_CHANGED,
    ),
    "powers of a logarithm with a number of each column": (
        lambda: twin(weights=softmax_twins.less_logarithm(ROWS)),
        Code.UNSUPPORTED_OP,
    ),
    "learned number of rows in the sum": (
        lambda: twin(weights=softmax_twins.learned_sink(ROWS, 1)),
        Code.UNSUPPORTED_OP,
    ),
    "a sink beside padding of another name, cut at the wrong end": (
        lambda: twin(Form(dims="dynamic"), weights=softmax_twins.sink_beside_padding(1, ROWS + 1)),
        Code.UNSUPPORTED_OP,
    ),
    "what is lost in the sum, but for rows that a mask hides": (
        lambda: twin(weights=softmax_twins.masked_powers("Mul", rest=1e-9)),
        Code.UNSUPPORTED_OP,
    ),
    "what shows in the sum": (
        lambda: twin(weights=softmax_twins.sum_with(1e-6)),
        Code.UNSUPPORTED_OP,
    ),
    "what may be above the sum": (
        lambda: twin(weights=softmax_twins.sum_with(1e-5, shift=False, op_type="Max")),
        Code.UNSUPPORTED_OP,
    ),
    "what is above the sum": (
        lambda: twin(weights=softmax_twins.sum_with(2.0, op_type="Max")),
        Code.UNSUPPORTED_OP,
    ),
    "largest of twice what a mask shows taken off": (
        lambda: twin(weights=softmax_twins.masked_powers_by_shown(factor=2.0)),
        Code.CONTENT_BIAS,
    ),
    "division behind the values that are read undivided, too": (
        lambda: twin(**softmax_twins.divided_behind() | {"product": softmax_twins.undivided_too}),
        Code.WEIGHTS_READ,
    ),
    "column padded behind, the first one cut": (
        lambda: twin(weights=softmax_twins.padded_column(0, 1, 0.0, (1, ROWS + 1))),
        Code.UNSUPPORTED_OP,
    ),
    "two columns padded": (
        lambda: twin(weights=softmax_twins.padded_column(0, 2, 0.0, (0, ROWS))),
        Code.UNSUPPORTED_OP,
    ),
    "a column padded on each side": (
        lambda: twin(weights=softmax_twins.padded_column(1, 1, 0.0, (1, ROWS + 1))),
        Code.UNSUPPORTED_OP,
    ),
    "last column repeated": (
        lambda: twin(weights=softmax_twins.padded_column(0, 1, 0.0, (0, ROWS), mode="edge")),
        Code.UNSUPPORTED_OP,
    ),
    "one more in the sum, shifted by the largest or a half": (
        lambda: twin(weights=softmax_twins.floored_sink(0.0, top=0.5)),
        Code.CONTENT_BIAS,
    ),
}
STRAY: dict[str, Make] = {
    "division behind biased values": lambda: graph_twins.of_gemms(late=True, biased_context=True),
    "division by a sum that a product adds to": lambda: graph_twins.of_gemms(
        late=True, biased_sum=True
    ),
    "masked powers by the sum of all": lambda: twin(
        weights=softmax_twins.masked_powers("Mul", own=False)
    ),
    "division behind the values by twice the sum": lambda: twin(
        **softmax_twins.divided_behind(ones=2.0)
    ),
    "division behind twice the values": lambda: twin(**softmax_twins.divided_behind(alpha=2.0)),
    "division by twice the sum and what is lost": lambda: twin(
        weights=softmax_twins.summed_by_product(2.0)
    ),
    "sum that is no less than each of two numbers": lambda: twin(
        weights=softmax_twins.sum_with(1e-6, op_type="Max", top=9.0)
    ),
    "powers by half their sum": lambda: twin(weights=softmax_twins.doubled_inverse),
    "powers, and one where the mask hides": lambda: twin(
        weights=softmax_twins.masked_powers("Where", hidden=1.0)
    ),
    "powers, twice where the mask shows": lambda: twin(
        weights=softmax_twins.masked_powers("Mul", amount=2.0)
    ),
    "sum that is bounded above": lambda: twin(
        weights=softmax_twins.sum_with(1e-6, op_type="Clip", top=1.5)
    ),
}


@however_written(FUSED)
def test_softmax_is_fused_with_its_meaning(name: str, write: Write) -> None:
    make, meaning = FUSED[name]
    check_meaning(meaning, write(make()))


@pytest.mark.parametrize("name", STRAY)
def test_powers_that_are_no_softmax_are_named(name: str) -> None:
    check_declined(STRAY[name], Code.UNSUPPORTED_OP)


def test_powers_of_a_half_are_no_softmax() -> None:
    made = twin(weights=softmax_twins.power_of(0.5))
    assert onnx_fuse.explain(made.model, threshold=None).blocks == ()


@pytest.mark.parametrize("name", DECLINED)
def test_near_miss_is_declined_with_its_code(name: str) -> None:
    check_declined(*DECLINED[name])
