"""Scores less a number of their row, which the softmax doesn't see, and what it would."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_fuse.report import Code
from tests.analysis.meanings import BIAS, SELECT, Meaning, Write, check_meaning, however_written
from tests.analysis.samples import steps
from tests.analysis.samples.forms import HEAD_DIM, SIZES, Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import Step, after, before, twin
from tests.analysis.samples.weight_twins import keep_of
from tests.analysis.verdicts import Make, check_declined

ROWS = SIZES["S"]


def less(
    reduction: str,
    *,
    axis: int = -1,
    op_type: str = "Sub",
    factor: float = 1.0,
    count: int | None = None,
) -> Step:
    """Take a number of each row off scores: a reduction of them, perhaps over a count.

    factor: of the scores that are reduced.
    """

    def step(w: Writer, scores: str) -> str:
        b = w.b
        reduced = b.reduce(reduction, scores if factor == 1.0 else twice(w, scores), axis)
        if count is not None:
            reduced = b.op("Div", reduced, b.scalar(count))
        if op_type == "Add":
            return b.op("Add", b.op("Neg", reduced), scores)
        return b.op(op_type, scores, reduced)

    return step


def twice(w: Writer, scores: str) -> str:
    return w.b.op("Mul", scores, w.b.scalar(2.0))


def filled(number: float, *, then: Step | None = None) -> Step:
    """Hide scores by a number, and change them behind that."""

    def step(w: Writer, scores: str) -> str:
        hidden = w.b.op("Where", keep_of(w), scores, w.b.scalar(number))
        return hidden if then is None else then(w, hidden)

    return step


def biased(*, then: Step) -> Step:
    def step(w: Writer, scores: str) -> str:
        bias = w.b.const(w.random(ROWS, ROWS))
        return then(w, w.b.op("Add", scores, bias))

    return step


def halved(w: Writer, query: str, key: str) -> str:
    """Centre the product before it is scaled."""
    product = w.b.op("MatMul", query, w.b.transpose(key, 0, 1, 3, 2))
    return w.b.op("Mul", less("ReduceMean")(w, product), w.b.scalar(HEAD_DIM**-0.5))


FUSED: dict[str, tuple[Make, Meaning]] = {
    "their mean": (lambda: twin(**before("weights", less("ReduceMean"))), Meaning(())),
    "their mean, of open extents": (
        lambda: twin(Form(dims="dynamic"), **before("weights", less("ReduceMean"))),
        Meaning(()),
    ),
    "their mean, added with the other sign": (
        lambda: twin(**before("weights", less("ReduceMean", op_type="Add"))),
        Meaning(()),
    ),
    "their mean, added": (lambda: twin(**after("scores", steps.bias_of_mean(3))), Meaning(())),
    "their sum over their number": (
        lambda: twin(**before("weights", less("ReduceSum", count=ROWS))),
        Meaning(()),
    ),
    "their least": (lambda: twin(**before("weights", less("ReduceMin"))), Meaning(())),
    "the logarithm of the sum of their powers": (
        lambda: twin(**before("weights", less("ReduceLogSumExp"))),
        Meaning(()),
    ),
    "their mean, before they are scaled": (lambda: twin(scores=halved), Meaning(())),
    "their mean, before a mask": (
        lambda: twin(Form(mask="two"), **after("scaled_scores", less("ReduceMean"))),
        Meaning(BIAS),
    ),
    "their mean, before a mask of minus infinity": (
        lambda: twin(Form(mask="keep_inf"), **after("scaled_scores", less("ReduceMean"))),
        Meaning(SELECT),
    ),
    "their mean, behind a small bias": (
        lambda: twin(**before("weights", biased(then=less("ReduceMean")))),
        Meaning(BIAS),
    ),
}
DECLINED: dict[str, tuple[Make, Code]] = {
    "the mean of columns": (
        lambda: twin(**before("weights", less("ReduceMean", axis=2))),
        Code.CONTENT_BIAS,
    ),
    "the sum over another number": (
        lambda: twin(**before("weights", less("ReduceSum", count=ROWS - 1))),
        Code.CONTENT_BIAS,
    ),
    "the mean of twice the scores": (
        lambda: twin(**before("weights", less("ReduceMean", factor=2.0))),
        Code.CONTENT_BIAS,
    ),
    "the mean behind a mask": (
        lambda: twin(**before("weights", filled(-1e9, then=less("ReduceMean")))),
        Code.SCORES_CHANGED,
    ),
    "the mean behind a mask of minus infinity": (
        lambda: twin(**before("weights", filled(-np.inf, then=less("ReduceMean")))),
        Code.SCORES_CHANGED,
    ),
    "the mean, before a mask that may not hide": (
        lambda: twin(
            **before("weights", lambda w, scores: filled(-1.0)(w, less("ReduceMean")(w, scores)))
        ),
        Code.CONTENT_BIAS,
    ),
    "the mean behind a bias that may be large": (
        lambda: twin(Form(mask="two"), **before("weights", less("ReduceMean"))),
        Code.SCORES_CHANGED,
    ),
}


@however_written(FUSED)
def test_scores_less_a_number_of_the_row_are_the_scores(name: str, write: Write) -> None:
    make, meaning = FUSED[name]
    check_meaning(meaning, write(make()))


@pytest.mark.parametrize("name", DECLINED)
def test_near_miss_is_declined(name: str) -> None:
    check_declined(*DECLINED[name])
