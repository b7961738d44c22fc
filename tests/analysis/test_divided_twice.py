"""Weights of a softmax divided by their own sum: nothing, where that sum is one."""

from __future__ import annotations

import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.samples import softmax_twins, steps
from tests.analysis.samples.forms import Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.sum_twins import divided_by_own_sum, sum_by_own, times_inverse_of_sum
from tests.analysis.samples.twins import Step, after, twin
from tests.analysis.samples.weight_twins import each
from tests.analysis.verdicts import ALL, OUT, Make, check_declined, check_fused

FUSED: dict[str, Step] = {
    "by their sum": divided_by_own_sum(),
    "times the inverse of their sum": times_inverse_of_sum(),
    "by their sum and what is lost in it": divided_by_own_sum("Add", 1e-9),
    "by what is lost in their sum, and it": divided_by_own_sum("Add", 1e-9, is_first=False),
    "by their sum or a small number": divided_by_own_sum("Max", 1e-6),
    "by their sum, bounded below": divided_by_own_sum("Clip", 1e-6),
}
DECLINED: dict[str, Make] = {
    "doubled before": lambda: twin(
        **after(
            "weights", each(steps.binary("Mul", 2.0), steps.unary("Identity"), divided_by_own_sum())
        )
    ),
    "times the inverse of sums over queries": lambda: twin(
        **after("weights", times_inverse_of_sum(over=2))
    ),
    "times the root of their sum": lambda: twin(
        **after("weights", times_inverse_of_sum(op_type="Sqrt"))
    ),
    "their sum by them": lambda: twin(**after("weights", sum_by_own)),
    "by their sum and more": lambda: twin(**after("weights", divided_by_own_sum("Add", 1e-6))),
    "by no less than two": lambda: twin(**after("weights", divided_by_own_sum("Max", 2.0))),
    "by no more than a half": lambda: twin(
        **after("weights", divided_by_own_sum("Clip", 1e-9, 0.5))
    ),
    "by sums over queries": lambda: twin(**after("weights", divided_by_own_sum(over=2))),
    "beside a sink": lambda: twin(Form(extra="sinks"), **after("weights", divided_by_own_sum())),
    "where rows may be zero": lambda: twin(
        Form(mask="nan_guard"), **after("weights", divided_by_own_sum())
    ),
    "where rows of powers may be zero": lambda: twin(
        weights=lambda w, scores: divided_by_own_sum()(
            w, softmax_twins.masked_powers("Where", guard="Greater")(w, scores)
        )
    ),
    "halved before": lambda: twin(
        **after("weights", lambda w, p: divided_by_own_sum()(w, steps.binary("Mul", 0.5)(w, p)))
    ),
}


MASKS = {"none": (), "padding": ("attn_bias",), "causal": ("attn_mask", "mask_fill")}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", FUSED)
def test_sum_of_one_divides_nothing(name: str, mask: str) -> None:
    made = twin(Form(mask=mask), **after("weights", FUSED[name]))
    check_fused(made, (*ALL, *MASKS[mask], *OUT))


def test_second_division_is_no_site_of_its_own() -> None:
    def weights(w: Writer, scores: str) -> str:
        powers = w.b.op("Exp", w.b.op("LogSoftmax", scores, axis=-1))
        return divided_by_own_sum()(w, powers)

    sample = twin(weights=weights)
    report = onnx_fuse.explain(sample.model, threshold=None)
    assert (report.num_fused, report.num_declined) == (1, 0)


@pytest.mark.parametrize("name", DECLINED)
def test_other_sum_is_declined(name: str) -> None:
    check_declined(DECLINED[name], Code.WEIGHTS_SCALED)
