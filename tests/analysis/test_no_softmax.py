"""Scores that weigh values without a softmax: named, and told from gates and activations."""

from __future__ import annotations

import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.samples import steps, twins, weight_steps
from tests.analysis.samples.forms import HIDDEN, NUM_HEADS, Form
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.twins import BATCH, ROWS, USUAL, Step, twin
from tests.analysis.verdicts import Make, check_declined


def squared(w: Writer, scores: str) -> str:
    """Square what is above zero, and divide it by the number of keys."""
    above = w.b.op("Relu", scores)
    return w.b.op("Div", w.b.op("Mul", above, above), w.b.scalar(float(ROWS)))


def gated_by_itself(w: Writer, scores: str) -> str:
    """Multiply each score by a gate that it makes."""
    return w.b.op("Mul", scores, w.b.op("Sigmoid", scores))


WEIGHTS: dict[str, Step] = {
    "sigmoid": steps.unary("Sigmoid"),
    "rectified": steps.unary("Relu"),
    "rectified and squared": squared,
    "gated by themselves": gated_by_itself,
    "logarithms of a softmax": weight_steps.logarithmic,
}
FORMS = {
    "plain": USUAL,
    "rotated and normalised": Form(rope="half", norm="rms"),
    "biased": Form(mask="padding"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_without_a_softmax_are_named(name: str, form: str) -> None:
    check_declined(lambda: twin(FORMS[form], weights=WEIGHTS[name]), Code.NO_SOFTMAX)


def graph_convolution(w: Writer) -> Sample:
    """Neighbours are summed up twice, by a matrix that is an input, with an activation between."""
    x = w.b.input("x", w.random(ROWS, HIDDEN), ("S", HIDDEN))
    edges = w.b.input("edges", w.random(ROWS, ROWS), ("S", "S"))
    for _ in range(2):
        x = w.b.op("Relu", w.b.op("MatMul", edges, x))
    return Sample(w.b.model(x, rank=2), w.b.feeds, w.record)


def gated_product(w: Writer) -> Sample:
    """A product of two projections is a gate of a third, and meets no other product."""
    query, key, value = w.operands_of_product()
    gate = w.b.op("Sigmoid", w.b.op("Mul", query, key))
    return Sample(w.b.model(w.output(w.merged(w.b.op("Mul", gate, value)))), w.b.feeds, w.record)


def shown_scores(w: Writer) -> Sample:
    """How well each pair of positions goes together is the model's result."""
    query, key, _ = w.operands_of_product()
    made = w.b.op("Sigmoid", w.scored(query, key))
    return Sample(w.b.model(made, rank=4), w.b.feeds, w.record)


def activated_context(w: Writer) -> Sample:
    """What attention without a softmax makes is activated and multiplied with more."""
    query, key, value = w.operands_of_product()
    context = w.b.op("Relu", w.b.op("MatMul", w.scored(query, key), value))
    made = w.b.op("MatMul", context, w.b.transpose(context, 0, 1, 3, 2))
    return Sample(w.b.model(made, rank=4), w.b.feeds, w.record)


def measured_scores(w: Writer, *, is_given: bool) -> Sample:
    """How far the scores are from certain, or from what an input says, is the model's result."""
    query, key, _ = w.operands_of_product()
    logarithms = w.b.op("LogSoftmax", w.scored(query, key), axis=-1)
    shape = ("B", NUM_HEADS, "S", "S")
    other = (
        w.b.input("wanted", w.random(BATCH, NUM_HEADS, ROWS, ROWS), shape)
        if is_given
        else w.b.op("Exp", logarithms)
    )
    made = w.b.reduce("ReduceSum", w.b.op("Mul", other, logarithms), -1)
    return Sample(w.b.model(made, rank=4), w.b.feeds, w.record)


NEAR_MISSES: dict[str, Make] = {
    "entropy of scores": lambda: measured_scores(Writer(USUAL), is_given=False),
    "scores measured by an input": lambda: measured_scores(Writer(USUAL), is_given=True),
    "graph convolution": lambda: graph_convolution(Writer(USUAL)),
    "gate of a product": lambda: gated_product(Writer(USUAL)),
    "scores that are shown": lambda: shown_scores(Writer(USUAL)),
    "activated context": lambda: activated_context(Writer(USUAL)),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_gates_and_activations_are_no_sites(name: str) -> None:
    assert onnx_fuse.explain(NEAR_MISSES[name]().model, threshold=None).blocks == ()


def test_rectified_scores_of_a_softmax_are_one_site() -> None:
    sample = twin(**twins.after("scores", steps.unary("Relu")))
    blocks = onnx_fuse.explain(sample.model, threshold=None).blocks
    assert [block.code for block in blocks] == [Code.SCORES_CHANGED]
