"""Weights that others read: the operator gives them, where they are what meets the values."""

from __future__ import annotations

from functools import partial

import onnx
import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.check import fused_nodes
from tests.analysis.meanings import Write, however_written
from tests.analysis.samples import graph_twins, steps, twins, weight_steps
from tests.analysis.samples import weight_twins as ways
from tests.analysis.samples.forms import LEVELS, NUM_HEADS, SIZES, Form
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.twins import Step, after, twin
from tests.analysis.verdicts import Make, check_declined, check_same

ROWS = SIZES["S"]
USUAL = Form(mask="add2", norm="rms", rope="half")


def shows(
    show: Step | None = None, form: Form = USUAL, change: Step | None = None, **steps: Step
) -> Sample:
    """The form's graph with another output: the weights, or what `show` makes of them.

    change: a step that follows on the weights' way to the values.
    """
    shown: list[str] = []
    own = steps.pop("weights", Writer.weights)

    def weights(w: Writer, scores: str) -> str:
        made = own(w, scores)
        shown.append(made if show is None else show(w, made))
        return made if change is None else change(w, made)

    return with_output(twin(form, weights=weights, **steps), shown)


def with_output(sample: Sample, names: list[str]) -> Sample:
    """Add a value of the graph to its outputs."""
    (name,) = names
    known = {v.name: v for v in onnx.shape_inference.infer_shapes(sample.model).graph.value_info}
    sample.model.graph.output.append(known[name])
    return sample


def input_of(w: Writer, op_type: str) -> str:
    """Return what the last of these nodes reads."""
    return next(str(n.input[0]) for n in reversed(w.b.nodes) if n.op_type == op_type)


def of_all_heads_and_batches(w: Writer, weights: str) -> str:
    return w.b.reshape(weights, ("B", NUM_HEADS), "S", w.kv_seq)


def in_between(form: Form, **steps: Step) -> Sample:
    """Show the weights as the product with the values has them, in the form's order."""
    shown: list[str] = []

    def product(w: Writer, weights: str, value: str) -> str:
        made = Writer.product(w, weights, value)
        shown.append(input_of(w, "MatMul"))
        return made

    return with_output(twin(form, product=product, **steps), shown)


def scaled_weights(w: Writer, scores: str) -> str:
    return steps.times_by_head("Mul", 1, 2, 3, 4)(w, Writer.weights(w, scores))


def weighed_values(w: Writer, weights: str, value: str) -> str:
    """Multiply the values by a mean of their own weights."""
    return w.b.op("MatMul", weights, w.b.op("Mul", value, w.b.reduce("ReduceMean", weights, -1)))


def other_context(w: Writer, weights: str) -> str:
    """Multiply the weights by other values than the block's."""
    data = w.random(SIZES["B"], NUM_HEADS, ROWS, 3)
    return w.b.op("MatMul", weights, w.b.input("others", data, ("B", NUM_HEADS, "S", 3)))


def weighed_by(w: Writer, weights: str) -> str:
    """Multiply others by the weights."""
    data = w.random(SIZES["B"], NUM_HEADS, 3, ROWS)
    return w.b.op("MatMul", w.b.input("others", data, ("B", NUM_HEADS, 3, "S")), weights)


def entropy(w: Writer, weights: str) -> str:
    """Return what is left of the weights times their logarithm."""
    return w.b.reduce("ReduceSum", w.b.op("Mul", weights, w.b.op("Log", weights)), -1)


# Masks behind the softmax are brought before it, guards are the operator's own.
FUSED: dict[str, Make] = {
    "an output": shows,
    "its mean over the heads": partial(shows, lambda w, p: w.b.reduce("ReduceMean", p, 1)),
    "what a function makes of them": partial(shows, steps.unary("Sqrt")),
    "transposed": partial(shows, lambda w, p: w.b.transpose(p, 3, 0, 2, 1)),
    "of all heads and batches": partial(shows, of_all_heads_and_batches),
    "before a Dropout that drops nothing": partial(shows, change=weight_steps.drop_nothing),
    "before two casts": partial(
        shows, change=lambda w, p: w.b.op("Cast", w.b.op("Cast", p, to=twins.DOUBLE), to=1)
    ),
    "behind a softmax in float64": partial(shows, weights=weight_steps.in_float64),
    "and a function of them meets the values": lambda: twin(product=ways.viewed_twice("Sqrt")),
    "and parts of them meet others, too": partial(
        shows, lambda w, p: w.b.op("MatMul", w.b.slice(p, 0, 2, -1), w.b.slice(p, 0, 2, -2))
    ),
    "and they meet other values, too": partial(shows, other_context),
    "and another product sums their rows": partial(shows, weighed_by),
    "and a view of them meets other values, too": partial(
        shows, lambda w, p: other_context(w, w.b.op("Identity", p))
    ),
    "and their own logarithm meets them": partial(shows, entropy),
    **{
        f"where the form is {form}": partial(shows, form=form)
        for form in (
            *(Form(mask=mask, dims="dynamic") for mask in LEVELS["mask"]),
            *(Form(order=order, dims="dynamic") for order in LEVELS["order"]),
            *(Form(heads=heads, dims="dynamic") for heads in LEVELS["heads"]),
            *(Form(extra=extra) for extra in LEVELS["extra"] if extra != "written_softmax"),
        )
    },
    **{
        f"as the product has them in the order {order}": partial(in_between, Form(order=order))
        for order in ("4d", "3d", "seq_first")
    },
    "of heads that are folded into rows": partial(in_between, Form(heads="folded", dims="dynamic")),
}
# The operator has the weights that meet the values and no others.
DECLINED: dict[str, tuple[Make, Code]] = {
    "before a guard": (partial(shows, change=weight_steps.guard_with(0.0)), Code.WEIGHTS_READ),
    "before they are masked": (
        partial(shows, change=ways.zeroed, **after("scores", ways.selected(-1e9))),
        Code.WEIGHTS_READ,
    ),
    "before they are renormalised": (
        partial(shows, change=weight_steps.renormalised_by(1.0)),
        Code.WEIGHTS_READ,
    ),
    "before they are scaled": (
        partial(shows, change=steps.times_by_head("Mul", 1, 2, 3, 4)),
        Code.WEIGHTS_READ,
    ),
    "behind a scale": (partial(shows, weights=scaled_weights), Code.WEIGHTS_SCALED),
    "behind a scale and a view": (
        partial(in_between, Form(order="3d"), weights=scaled_weights),
        Code.WEIGHTS_READ,
    ),
    "before they meet the values, which are scaled by them": (
        lambda: twin(product=weighed_values),
        Code.WEIGHTS_READ,
    ),
    "with the column of a sink": (
        partial(
            shows, lambda w, p: input_of(w, "Slice"), weights=weight_steps.wrong_sink(1, 0, ROWS)
        ),
        Code.SHAPE_UNKNOWN,
    ),
    "in half of them": (
        partial(shows, weights=lambda w, s: w.b.slice(Writer.weights(w, s), 0, ROWS // 2, -1)),
        Code.UNSUPPORTED_OP,
    ),
}


@however_written(FUSED)
def test_weights_are_an_output_of_the_operator(name: str, write: Write) -> None:
    check_given(write(FUSED[name]()))


@pytest.mark.parametrize("turned", ["", "q", "kv", "qkv"])
def test_weights_are_given_where_positions_stand_in_another_order(turned: str) -> None:
    check_given(graph_twins.of_fields(*turned))


def check_given(sample: Sample) -> None:
    """The operator has two outputs, nothing else computes the weights, and both are right."""
    model = onnx_fuse.fuse(sample.model, threshold=None).model
    (node,) = fused_nodes(model)
    assert len(node.output) == 2
    assert "Softmax" not in [n.op_type for n in model.graph.node]
    check_same(sample, model)


@pytest.mark.parametrize("name", DECLINED)
def test_near_miss_is_declined_with_its_code(name: str) -> None:
    check_declined(*DECLINED[name])


def test_the_reason_names_who_asks_for_the_weights_and_not_their_guard() -> None:
    guarded = shows(change=weight_steps.guard_with(0.0))
    (block,) = onnx_fuse.explain(guarded.model, threshold=None).blocks
    assert "are also an output of the graph, where" in str(block.reason)
