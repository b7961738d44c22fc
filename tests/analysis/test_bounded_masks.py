"""Masks as an upper bound of the scores: high where they are shown, low where they are hidden."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_fuse.report import Code
from tests.analysis.meanings import BIAS, SELECT, Meaning, Write, check_meaning, however_written
from tests.analysis.samples.forms import Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import Step, before, twin
from tests.analysis.samples.weight_twins import keep_of
from tests.analysis.verdicts import Make, check_declined


def bounded(high: float, low: float, *, op_type: str = "Min", of: float | None = None) -> Step:
    """Bound scores by one of two numbers each, or by the larger of one of them and another."""

    def step(w: Writer, scores: str) -> str:
        b = w.b
        bound = b.op("Where", keep_of(w), b.scalar(high), b.scalar(low))
        return b.op(op_type, scores, bound if of is None else b.op("Max", bound, b.scalar(of)))

    return step


def hidden_too(w: Writer, scores: str) -> str:
    """The same where a mask shows what it should hide."""
    b = w.b
    return b.op("Min", b.op("Where", keep_of(w), b.scalar(-1e9), b.scalar(3e38)), scores)


FUSED: dict[str, tuple[Make, Meaning]] = {
    "numbers beyond all products": (
        lambda: twin(**before("weights", bounded(3e38, -1e9))),
        Meaning(SELECT),
    ),
    "infinities": (
        lambda: twin(**before("weights", bounded(np.inf, -np.inf))),
        Meaning(SELECT),
    ),
    "the other way round": (lambda: twin(**before("weights", hidden_too)), Meaning(SELECT)),
    "open extents": (
        lambda: twin(Form(dims="dynamic"), **before("weights", bounded(3e38, -1e9))),
        Meaning(SELECT),
    ),
    "behind a mask of its own": (
        lambda: twin(Form(mask="drop_finite"), **before("weights", bounded(3e38, -3e38))),
        Meaning(SELECT),
    ),
    "before a bias": (
        lambda: twin(
            Form(mask="add4"),
            scaled_scores=lambda w, scores: bounded(3e38, -1e9)(w, Writer.scaled_scores(w, scores)),
        ),
        Meaning((*BIAS, *SELECT)),
    ),
}
DECLINED: dict[str, Make] = {
    "low that scores may be below": lambda: twin(**before("weights", bounded(3e38, -1e4))),
    "high that scores may be above": lambda: twin(**before("weights", bounded(1e4, -1e9))),
    "low beside a bias that may be lower": lambda: twin(
        Form(mask="two"), **before("weights", bounded(3e38, -1e9))
    ),
    "a bound below": lambda: twin(**before("weights", bounded(3e38, -1e9, op_type="Max"))),
    "numbers that are computed": lambda: twin(**before("weights", bounded(3e38, -1e9, of=-5.0))),
}


@however_written(FUSED)
def test_bound_is_a_mask(name: str, write: Write) -> None:
    make, meaning = FUSED[name]
    check_meaning(meaning, write(make()))


@pytest.mark.parametrize("name", DECLINED)
def test_other_bound_is_declined(name: str) -> None:
    check_declined(DECLINED[name], Code.SCORES_CHANGED)
