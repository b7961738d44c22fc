"""What `explain` says of scores and weights that no operator can take: which node does what."""

from __future__ import annotations

import numpy as np
import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.samples import steps, twins
from tests.analysis.samples.forms import HEAD_DIM, HIDDEN, NUM_HEADS, Form
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.sum_twins import divided_by_own_sum
from tests.analysis.samples.twins import ROWS, Step, after, on, twin
from tests.analysis.verdicts import Make, check_says_why

BATCH = twins.BATCH


def bounded(low: float, high: float) -> Step:
    """Bound the scores."""
    return lambda w, scores: w.b.op("Clip", scores, w.b.scalar(low), w.b.scalar(high))


def replaced(test: str) -> Step:
    """Put 0 for what isn't finite."""
    return lambda w, scores: w.b.op("Where", w.b.op(test, scores), w.b.scalar(0.0), scores)


def summed_up(w: Writer, scores: str) -> str:
    """Add to each score those of the keys before it."""
    return w.b.op("CumSum", scores, w.b.const(3, np.int64))


def thresholded(w: Writer, scores: str) -> str:
    """Hide small scores."""
    return w.b.op("Where", w.b.op("Less", scores, w.b.scalar(0.1)), w.b.scalar(-1e9), scores)


def pooled(w: Writer) -> Sample:
    """One number for each position, by which all positions are weighed."""
    x = w.b.input("x", w.random(BATCH, ROWS, HIDDEN), ("B", "S", HIDDEN))
    scores = w.b.op("Conv", w.b.transpose(x, 0, 2, 1), w.b.const(w.random(1, HIDDEN, 1)))
    return Sample(w.b.model(w.b.op("MatMul", w.b.op("Softmax", scores), x)), w.b.feeds, w.record)


def pooled_by_heads(w: Writer) -> Sample:
    """A number of each position for each head, by which the head's values are weighed."""
    b = w.b
    x = b.input("x", w.random(BATCH, ROWS, HIDDEN), ("B", "S", HIDDEN))
    scores = b.op("MatMul", x, b.const(w.random(HIDDEN, NUM_HEADS)))
    weights = b.unsqueeze(b.transpose(b.op("Softmax", scores, axis=1), 0, 2, 1), 2)
    values = b.op("MatMul", x, b.const(w.random(HIDDEN, NUM_HEADS * HEAD_DIM)))
    values = b.transpose(b.reshape(values, "B", "S", NUM_HEADS, HEAD_DIM), 0, 2, 1, 3)
    return Sample(b.model(b.op("MatMul", weights, values), rank=4), b.feeds, w.record)


def for_a_batch(w: Writer, key: str) -> str:
    """Repeat the keys of one sequence, if there is one alone."""
    return w.b.op("Expand", key, w.b.const([BATCH, 1, 1, 1], np.int64))


def of_any_batch(w: Writer, context: str) -> str:
    """Join the heads, of however many sequences."""
    return w.b.reshape(context, 0, 0, -1)


def additive(w: Writer, query: str, key: str) -> str:
    """The sum of each query and key, bounded and weighed."""
    both = w.b.op("Add", w.b.unsqueeze(query, 3), w.b.unsqueeze(key, 2))
    weight = w.b.const(w.random(1, NUM_HEADS, 1, 1, 1))
    weighed = w.b.op("Div", w.b.op("Tanh", both), weight)
    return w.b.op("ReduceSum", weighed, w.b.const([-1], np.int64), keepdims=0)


def joined_keys(w: Writer) -> Sample:
    """Linear attention, with learned keys and values before its own."""
    query, key, value = w.operands_of_product()
    key, value = (
        w.b.op("Concat", w.b.const(w.random(BATCH, NUM_HEADS, 2, HEAD_DIM)), part, axis=2)
        for part in (key, value)
    )
    table = w.b.op("MatMul", w.b.transpose(w.b.op("Softmax", key, axis=2), 0, 1, 3, 2), value)
    made = w.output(w.merged(w.b.op("MatMul", query, table)))
    return Sample(w.b.model(made), w.b.feeds, w.record)


def split_channels(w: Writer) -> Sample:
    """Two branches of channels, weighed against each other by a grouped convolution of them."""
    x = w.b.input("x", w.random(BATCH, HIDDEN, ROWS), ("B", HIDDEN, "S"))
    scores = w.b.op("Conv", x, w.b.const(w.random(HIDDEN, HIDDEN // 2, 1)), group=2)
    scores = w.b.transpose(w.b.reshape(scores, "B", 2, HIDDEN // 2, "S"), 0, 2, 3, 1)
    parts = w.b.reshape(x, "B", HIDDEN // 2, "S", 2)
    made = w.b.op("MatMul", w.b.op("Softmax", scores), w.b.transpose(parts, 0, 1, 3, 2))
    return Sample(w.b.model(made, rank=4), w.b.feeds, w.record)


def widened(w: Writer, weights: str) -> str:
    """Put weights of zero before and behind each row's, and cut them off."""
    wide = w.b.op("Pad", weights, w.b.const([0, 0, 0, 1, 0, 0, 0, 1], np.int64))
    return w.b.slice(wide, 1, ROWS + 1, 3)


def of_unknown_rank(w: Writer, scores: str) -> str:
    """Scores by a shape of which not even the length is known."""
    shape = w.b.const([BATCH, NUM_HEADS, ROWS, ROWS], np.int64)
    kept = w.b.input("kept", np.ones(4, dtype=np.bool_), (4,))
    return w.b.op("Reshape", scores, w.b.op("Compress", shape, kept))


def less_mean(w: Writer, weights: str) -> str:
    """Take off the mean, and what is below zero."""
    return w.b.op("Relu", w.b.op("Sub", weights, w.b.reduce("ReduceMean", weights, -1)))


def by_joined_logarithms(w: Writer, scores: str) -> str:
    """Take off the logarithm of the sum of these powers and of others."""
    own = w.b.reduce("ReduceLogSumExp", scores, -1)
    other = w.b.reduce("ReduceLogSumExp", w.b.op("Mul", scores, w.b.scalar(0.5)), -1)
    total = w.b.op("Log", w.b.op("Add", w.b.op("Exp", own), w.b.op("Exp", other)))
    return w.b.op("Exp", w.b.op("Sub", scores, total))


def by_joined_sums(w: Writer, powers: str, value: str) -> str:
    """Divide by more than the sum of the powers, behind the product with the values."""
    total = w.b.reduce("ReduceSum", powers, -1)
    both = w.b.op("Concat", total, w.b.op("Mul", total, total), axis=-1)
    context = w.b.op("MatMul", powers, value)
    return w.b.op("Div", context, w.b.reduce("ReduceSum", both, -1))


# What is there, its code, and what its reason names.
REASONS: dict[str, tuple[Make, Code, str]] = {
    "scores bounded far away": (
        lambda: twin(**after("scores", bounded(-5e4, 5e4))),
        Code.SCORES_CHANGED,
        "(Clip) stands between the scores and the softmax and bounds them by -50000 and 50000",
    ),
    "scores bounded by what is not known": (
        lambda: twin(**after("scores", steps.bounded_by_input)),
        Code.SCORES_CHANGED,
        "and bounds them",
    ),
    "scores that are NaN replaced": (
        lambda: twin(**after("scores", replaced("IsNaN"))),
        Code.SCORES_CHANGED,
        "replaces those that are NaN",
    ),
    "infinite scores replaced": (
        lambda: twin(**after("scores", replaced("IsInf"))),
        Code.SCORES_CHANGED,
        "replaces those that are infinite",
    ),
    "rectified scores": (
        lambda: twin(**after("scores", steps.unary("Relu"))),
        Code.SCORES_CHANGED,
        "(Relu) stands between the scores and the softmax and changes them",
    ),
    "sums of the scores of earlier keys": (
        lambda: twin(**after("scores", summed_up)),
        Code.MIXED_SCORES,
        "(CumSum) mixes",
    ),
    "small scores hidden": (
        lambda: twin(**after("scores", thresholded)),
        Code.CONTENT_BIAS,
        "the mask '",
    ),
    "pooling": (
        lambda: pooled(Writer(twins.USUAL)),
        Code.NO_SCORES,
        "(Conv) multiplies one tensor by constants",
    ),
    "pooling by heads": (
        lambda: pooled_by_heads(Writer(twins.USUAL)),
        Code.NO_SCORES,
        "(MatMul) multiplies one tensor by constants",
    ),
    "keys of a number of sequences that the values needn't have": (
        lambda: twin(Form(dims="dynamic"), output=of_any_batch, **on("k", "normed", for_a_batch)),
        Code.SHAPE_UNKNOWN,
        "(2, 4, S, S) and 'v27_0' (B, 4, S, 8) go together",
    ),
    "keys and values of a number of sequences that the queries needn't have": (
        lambda: twin(Form(dims="dynamic"), output=of_any_batch, **after("repeated", for_a_batch)),
        Code.SHAPE_UNKNOWN,
        "(B, 4, S, 8) and 'v29_0' (2, 4, 8, S) go together",
    ),
    "additive attention": (lambda: twin(scored=additive), Code.NO_SCORES, "it comes from '"),
    "a bias of pairs": (
        lambda: twin(**after("scores", steps.bias_of_both("Mul"))),
        Code.CONTENT_BIAS,
        "bias '",
    ),
    "keys of linear attention, joined": (
        lambda: joined_keys(Writer(twins.USUAL)),
        Code.NO_SCORES,
        "(Concat) one tensor is multiplied by constants",
    ),
    "channels weighed by a grouped convolution": (
        lambda: split_channels(Writer(twins.USUAL)),
        Code.NO_SCORES,
        "(Conv) multiplies one tensor by constants",
    ),
    "scores of unknown rank, weights changed": (
        lambda: twin(
            **after("scores", of_unknown_rank), **after("weights", steps.binary("Max", 0.0))
        ),
        Code.SHAPE_UNKNOWN,
        "how many axes it has",
    ),
    "factor by key": (
        lambda: twin(**after("scores", steps.times(1, 1, 1, ROWS))),
        Code.SCALE_NOT_SCALAR,
        "has numbers of their own for the keys of one query",
    ),
    "infinite factor": (
        lambda: twin(**after("scores", steps.binary("Mul", np.inf))),
        Code.SCALE_NOT_SCALAR,
        "is not finite, or its inverse isn't",
    ),
    "powers by a sum that others are in": (
        lambda: twin(weights=by_joined_logarithms),
        Code.UNSUPPORTED_OP,
        "(Exp) between scores and values, which no sum of its results alone divides,",
    ),
    "powers divided by joined sums behind the product": (
        lambda: twin(weights=steps.unary("Exp"), product=by_joined_sums),
        Code.UNSUPPORTED_OP,
        "(Exp) between scores and values, which no sum of its results alone divides,",
    ),
    "weights less a number": (
        lambda: twin(**after("weights", steps.binary("Sub", 0.2))),
        Code.WEIGHTS_SCALED,
        "(Sub) changes the weights",
    ),
    "weights less their mean": (
        lambda: twin(**after("weights", less_mean)),
        Code.WEIGHTS_SCALED,
        "(Sub) changes the weights",
    ),
    "weights with others around them": (
        lambda: twin(**after("weights", widened)),
        Code.WEIGHTS_SCALED,
        "(Pad) changes the weights",
    ),
    "weights of length one": (
        lambda: twin(**after("weights", steps.unary("LpNormalization", p=2))),
        Code.WEIGHTS_SCALED,
        "(LpNormalization) changes the weights",
    ),
    "weights divided by their sum and more": (
        lambda: twin(**after("weights", divided_by_own_sum("Add", 1e-6))),
        Code.WEIGHTS_SCALED,
        "(Div) changes the weights",
    ),
    "weights divided by the sum over queries": (
        lambda: twin(**after("weights", divided_by_own_sum(over=2))),
        Code.WEIGHTS_SCALED,
        "(Div) changes the weights",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_reason_says_what_is_in_the_way(name: str) -> None:
    make, code, words = REASONS[name]
    sample = make()
    (block,) = onnx_fuse.explain(sample.model, threshold=None).blocks
    assert block.code is code
    assert words in str(block.reason)
    check_says_why(block, sample.model)


def less_half_of(changed: Step | None) -> Step:
    """Weights less half of those of changed scores, or of themselves."""

    def weights(w: Writer, scores: str) -> str:
        own = w.b.op("Softmax", scores, axis=-1)
        other = own if changed is None else w.b.op("Softmax", changed(w, scores), axis=-1)
        return w.b.op("Sub", own, w.b.op("Mul", other, w.b.scalar(0.5)))

    return weights


@pytest.mark.parametrize(
    ("other", "code"), [(bounded(-1.0, 1.0), Code.WEIGHTS_COMBINED), (None, Code.WEIGHTS_SCALED)]
)
def test_weights_of_several_softmaxes_are_told_from_changed_ones(
    other: Step | None, code: Code
) -> None:
    made = twin(weights=less_half_of(other))
    blocks = onnx_fuse.fuse(made.model, threshold=None).report.blocks
    assert code in [block.code for block in blocks]
    for block in blocks:
        check_says_why(block, made.model)


def of_halves(w: Writer, scores: str) -> str:
    """Weights of each half of the keys, each summing up to one, side by side again."""
    halves = w.b.split(scores, [ROWS // 2, ROWS - ROWS // 2], -1)
    return w.b.op("Concat", *(w.b.op("Softmax", half, axis=-1) for half in halves), axis=-1)


def test_weights_of_several_softmaxes_side_by_side_are_said_to_be_combined() -> None:
    made = twin(weights=of_halves)
    blocks = onnx_fuse.explain(made.model, threshold=None).blocks
    assert [block.code for block in blocks] == [Code.WEIGHTS_COMBINED] * 2
    for block in blocks:
        check_says_why(block, made.model)
