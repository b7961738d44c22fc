"""Gates that are sinks by other words, and gates that are nearly so."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
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
from tests.analysis.samples.forms import NUM_HEADS, SIZES, Form
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.softmax_twins import masked_powers, shifted
from tests.analysis.samples.twins import Step, twin
from tests.analysis.samples.weight_twins import as_number, keep_of
from tests.analysis.verdicts import Make, check_declined

ROWS = SIZES["S"]
HEADS = (NUM_HEADS, 1, 1)


def kept(w: Writer, scores: str) -> str:
    return scores


def softmax(w: Writer, scores: str) -> str:
    return w.b.op("Softmax", scores, axis=-1)


def logarithm(w: Writer, scores: str) -> str:
    return w.b.reduce("ReduceLogSumExp", scores, -1)


def written_logarithm(w: Writer, scores: str) -> str:
    """log(sum(exp(x - max(x)))) + max(x)."""
    taken, peak = shifted(w, scores)
    total = w.b.reduce("ReduceSum", w.b.op("Exp", taken), -1)
    return w.b.op("Add", w.b.op("Log", total), peak)


def plain_logarithm(w: Writer, scores: str) -> str:
    """log(sum(exp(x)))."""
    return w.b.op("Log", w.b.reduce("ReduceSum", w.b.op("Exp", scores), -1))


def other_added(w: Writer, scores: str) -> str:
    """log(sum(exp(x - max(x)))) + min(x)."""
    taken, _ = shifted(w, scores)
    total = w.b.reduce("ReduceSum", w.b.op("Exp", taken), -1)
    return w.b.op("Add", w.b.op("Log", total), w.b.reduce("ReduceMin", scores, -1))


def of_queries(w: Writer, scores: str) -> str:
    """The logarithm of sums over the queries."""
    return w.b.transpose(w.b.reduce("ReduceLogSumExp", scores, 2), 0, 1, 3, 2)


def of_all_heads(w: Writer, scores: str) -> str:
    """The logarithm of sums over the keys of all heads."""
    return w.b.op("ReduceLogSumExp", scores, axes=[1, -1], keepdims=1)


def gated(
    *sinks: int,
    level: Step = logarithm,
    of: Step = kept,
    made: Step = softmax,
    op_type: str = "Sub",
    gate: str | Step = "Sigmoid",
    on_weights: bool = False,
    turned: bool = False,
    divides: bool = False,
) -> dict[str, Step]:
    """Multiply the context by a gate: of the logarithm of a sum, less a constant of a shape.

    of: what the sum has the powers of, given the scores; made: the softmax of these; on_weights:
    the weights are multiplied instead; turned: the context is transposed before; divides: the gate
    divides instead.
    """
    at: dict[str, str] = {}

    def factor(w: Writer) -> str:
        sum_of_powers = level(w, of(w, at["scores"]))
        less = w.b.op(op_type, sum_of_powers, w.b.const(w.random(*sinks))) if sinks else None
        value = less or sum_of_powers
        return w.b.op(gate, value) if isinstance(gate, str) else gate(w, value)

    def weights(w: Writer, scores: str) -> str:
        at["scores"] = scores
        found = made(w, scores)
        return w.b.op("Mul", found, factor(w)) if on_weights else found

    def product(w: Writer, found: str, value: str) -> str:
        context = w.b.op("MatMul", found, value)
        if on_weights or turned:
            return context
        return w.b.op("Div", context, factor(w)) if divides else w.b.op("Mul", factor(w), context)

    def merged(w: Writer, context: str) -> str:
        heads = w.b.transpose(context, 0, 2, 1, 3)
        return w.b.op("Mul", heads, w.b.transpose(factor(w), 0, 2, 1, 3)) if turned else heads

    return {"weights": weights, "product": product, "merged": merged}


def one_more(w: Writer, value: str, number: float = 1.0, negated: bool = True) -> str:
    """1 + exp(-x), or another number and sign."""
    value = w.b.op("Neg", value) if negated else value
    return w.b.op("Add", w.b.scalar(number), w.b.op("Exp", value))


def written_sigmoid(w: Writer, value: str, number: float = 1.0, negated: bool = True) -> str:
    return w.b.op("Div", w.b.scalar(1.0), one_more(w, value, number, negated))


def turned_difference(w: Writer, value: str) -> str:
    """1 / (1 + exp(sink - x)), where the value is x - sink."""
    difference = next(node for node in w.b.nodes if node.output[0] == value)
    difference.input[:] = difference.input[::-1]
    return w.b.op("Reciprocal", one_more(w, value, negated=False))


def causal(*, leaves: bool) -> Step:
    """Hide by a constant, which leaves something of each row, or nothing of the first one."""

    def scores(w: Writer, query: str, key: str) -> str:
        shown = np.tri(ROWS, k=0 if leaves else -1, dtype=bool)
        hidden = np.where(shown, np.float32(0), -np.inf).astype(np.float32)
        return w.b.op("Add", Writer.scores(w, query, key), w.b.const(hidden))

    return scores


def lowest_added(w: Writer, query: str, key: str) -> str:
    """Add the lowest number where a mask hides: no score makes it infinite."""
    numbers = (w.b.scalar(0.0), w.b.scalar(float(np.finfo(np.float32).min)))
    return w.b.op("Add", Writer.scores(w, query, key), w.b.op("Where", keep_of(w), *numbers))


def biased_behind_shift(w: Writer, query: str, key: str) -> str:
    bias = w.b.const(w.random(ROWS, ROWS))
    return w.b.op("Add", shifted(w, Writer.scores(w, query, key))[0], bias)


def masked_weights(w: Writer, scores: str) -> str:
    left = w.b.op("Mul", softmax(w, scores), as_number(w, keep_of(w)))
    return w.b.op("Div", left, w.b.reduce("ReduceSum", left, -1))


def masked(w: Writer, scores: str) -> str:
    return w.b.op("Where", keep_of(w), scores, w.b.scalar(-1e9))


def twice(w: Writer, scores: str) -> str:
    return w.b.op("Mul", scores, w.b.scalar(2.0))


def less_largest(w: Writer, scores: str) -> str:
    return shifted(w, scores)[0]


def guarded(w: Writer, scores: str) -> str:
    found = softmax(w, scores)
    return w.b.op("Where", w.b.op("IsNaN", found), w.b.scalar(0.0), found)


def written_softmax(w: Writer, scores: str) -> str:
    power = w.b.op("Exp", less_largest(w, scores))
    return w.b.op("Div", power, w.b.reduce("ReduceSum", power, -1))


FUSED: dict[str, tuple[Make, Meaning]] = {
    "gate of each head": (lambda: twin(**gated(*HEADS)), Meaning(SINKS)),
    "gate of open extents": (lambda: twin(Form(dims="dynamic"), **gated(*HEADS)), Meaning(SINKS)),
    "gate by a sum written out": (
        lambda: twin(**gated(*HEADS, level=written_logarithm)),
        Meaning(SINKS),
    ),
    "gate by a sum written out, nothing taken off": (
        lambda: twin(**gated(*HEADS, level=plain_logarithm)),
        Meaning(SINKS),
    ),
    "gate of the sum alone": (lambda: twin(**gated()), Meaning(SINKS)),
    "gate written out": (lambda: twin(**gated(*HEADS, gate=written_sigmoid)), Meaning(SINKS)),
    "gate written out, of the sum alone": (
        lambda: twin(**gated(gate=written_sigmoid)),
        Meaning(SINKS),
    ),
    "gate written out with the sink less the sum": (
        lambda: twin(**gated(*HEADS, gate=turned_difference)),
        Meaning(SINKS),
    ),
    "gate that divides": (
        lambda: twin(**gated(*HEADS, gate=one_more, divides=True)),
        Meaning(SINKS),
    ),
    "gate behind a transposition": (lambda: twin(**gated(*HEADS, turned=True)), Meaning(SINKS)),
    "gate on the weights": (lambda: twin(**gated(*HEADS, on_weights=True)), Meaning(SINKS)),
    "gate beside a softmax written out": (
        lambda: twin(**gated(*HEADS, made=written_softmax)),
        Meaning(SINKS),
    ),
    "gate beside a mask of finite numbers": (
        lambda: twin(Form(mask="drop_finite"), **gated(*HEADS)),
        Meaning((*SELECT, *SINKS)),
    ),
    "gate beside the lowest number, added": (
        lambda: twin(scores=lowest_added, **gated(*HEADS)),
        Meaning((*BIAS, *SINKS)),
    ),
    "gate beside a constant that leaves some of each row": (
        lambda: twin(scores=causal(leaves=True), **gated(*HEADS)),
        Meaning((*BIAS, *SINKS)),
    ),
    "gate beside a mask of minus infinity, guarded": (
        lambda: twin(Form(mask="keep_inf"), **gated(*HEADS, made=guarded)),
        Meaning((*SELECT, *SINKS), 1),
    ),
}
DECLINED: dict[str, tuple[Make, Code]] = {
    "gate beside a bias that may hide rows": (
        lambda: twin(Form(mask="two"), **gated(*HEADS)),
        Code.SCORES_CHANGED,
    ),
    "gate beside a mask of minus infinity": (
        lambda: twin(Form(mask="keep_inf"), **gated(*HEADS)),
        Code.SCORES_CHANGED,
    ),
    "gate beside a constant that leaves nothing of a row": (
        lambda: twin(scores=causal(leaves=False), **gated(*HEADS)),
        Code.SCORES_CHANGED,
    ),
    "gate of the scores before a mask": (
        lambda: twin(**gated(*HEADS, made=lambda w, scores: softmax(w, masked(w, scores)))),
        Code.WEIGHTS_SCALED,
    ),
    "gate of the scores behind a mask of its own": (
        lambda: twin(**gated(*HEADS, of=masked)),
        Code.WEIGHTS_SCALED,
    ),
    "gate of scores from which the largest was taken off before a bias": (
        lambda: twin(scores=biased_behind_shift, **gated(*HEADS)),
        Code.WEIGHTS_SCALED,
    ),
    "gate beside powers that are masked": (
        lambda: twin(**gated(*HEADS, made=masked_powers("Where"))),
        Code.WEIGHTS_SCALED,
    ),
    "gate beside weights that are masked and divided by their new sum": (
        lambda: twin(**gated(*HEADS, made=masked_weights)),
        Code.WEIGHTS_SCALED,
    ),
    "gate of twice the scores": (lambda: twin(**gated(*HEADS, of=twice)), Code.WEIGHTS_SCALED),
    "gate of the scores less their largest": (
        lambda: twin(**gated(*HEADS, of=less_largest)),
        Code.WEIGHTS_SCALED,
    ),
    "gate by a sum written out, another number added than was taken off": (
        lambda: twin(**gated(*HEADS, level=other_added)),
        Code.WEIGHTS_SCALED,
    ),
    "gate over the queries": (
        lambda: twin(**gated(*HEADS, level=of_queries)),
        Code.WEIGHTS_SCALED,
    ),
    "gate over the keys of all heads": (
        lambda: twin(**gated(level=of_all_heads)),
        Code.WEIGHTS_SCALED,
    ),
    "gate of a sum and a number": (
        lambda: twin(**gated(*HEADS, op_type="Add")),
        Code.WEIGHTS_SCALED,
    ),
    "gate by another activation": (
        lambda: twin(**gated(*HEADS, gate="Tanh")),
        Code.WEIGHTS_SCALED,
    ),
    "gate written out of another number": (
        lambda: twin(**gated(*HEADS, gate=partial(written_sigmoid, number=2.0))),
        Code.WEIGHTS_SCALED,
    ),
    "gate written out of another sign": (
        lambda: twin(**gated(*HEADS, gate=partial(written_sigmoid, negated=False))),
        Code.WEIGHTS_SCALED,
    ),
    "gate written out of another sign, of the sum alone": (
        lambda: twin(**gated(gate=partial(written_sigmoid, negated=False))),
        Code.WEIGHTS_SCALED,
    ),
    "gate that divides by what should multiply": (
        lambda: twin(**gated(*HEADS, divides=True)),
        Code.WEIGHTS_SCALED,
    ),
    "gate that multiplies by what should divide": (
        lambda: twin(**gated(*HEADS, gate=one_more)),
        Code.WEIGHTS_SCALED,
    ),
    "gate of another number for each row": (
        lambda: twin(**gated(ROWS, 1)),
        Code.UNSUPPORTED_OP,
    ),
    "gate on weights of twice the scores": (
        lambda: twin(**gated(*HEADS, of=twice, on_weights=True)),
        Code.WEIGHTS_SCALED,
    ),
}


def shown(op_type: str) -> Sample:
    """A gate, and what one of its operators makes, as an output."""
    made = twin(**gated(*HEADS))
    name = next(node.output[0] for node in made.model.graph.node if node.op_type == op_type)
    made.model.graph.output.append(onnx.ValueInfoProto(name=name))
    made.model.graph.output[-1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return made


@however_written(FUSED)
def test_gate_is_a_sink(name: str, write: Write) -> None:
    make, meaning = FUSED[name]
    check_meaning(meaning, write(make()))


@pytest.mark.parametrize("name", DECLINED)
def test_what_is_nearly_a_sink_is_declined(name: str) -> None:
    check_declined(*DECLINED[name])


@pytest.mark.parametrize("op_type", ["Sigmoid", "Softmax"])
def test_gate_that_is_shown_is_no_sink(op_type: str) -> None:
    check_declined(partial(shown, op_type), Code.WEIGHTS_SCALED)


def test_gate_of_the_context_itself_stays_behind_the_block() -> None:
    def product(w: Writer, weights: str, value: str) -> str:
        context = w.b.op("MatMul", weights, value)
        return w.b.op("Mul", context, w.b.op("Sigmoid", context))

    assert onnx_fuse.explain(twin(product=product).model, threshold=None).blocks[0].code is None
