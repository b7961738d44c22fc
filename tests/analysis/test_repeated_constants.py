"""Constants written out for each position are what they repeat, and others stay what they are."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper, parser

from tests.analysis.samples.forms import HEAD_DIM, NUM_HEADS, Form
from tests.analysis.samples.graphs import Record, Sample, Writer
from tests.analysis.samples.twins import BATCH, ROWS, Step, on, twin
from tests.analysis.verdicts import ALL, KEY, OUT, check_fused

EVERY = (BATCH, ROWS, NUM_HEADS, HEAD_DIM)
NORMED = (*ALL, "k_norm_weight", *OUT)
NORMED_AND_MOVED = (*ALL, "k_norm_weight", "k_norm_bias", *OUT)


def combined(op_type: str, *repeated: int, changed: bool = False) -> Step:
    """Combine the keys with random numbers, written once for each place along some axes."""

    def step(w: Writer, value: str) -> str:
        shape = tuple(1 if axis in repeated else extent for axis, extent in enumerate(EVERY))
        numbers = np.broadcast_to(1.0 + np.abs(w.random(*shape)), EVERY).copy()
        if changed:
            numbers[-1, -1, -1, -1] += 0.5
        return w.b.op(op_type, value, w.b.const(numbers, np.float32))

    return step


def expanded(op_type: str, *of: int) -> Step:
    """Combine the keys with random numbers of such a shape, expanded as the keys are."""

    def step(w: Writer, value: str) -> str:
        numbers = w.b.const(1.0 + np.abs(w.random(*of)), np.float32)
        return w.b.op(op_type, value, w.b.op("Expand", numbers, w.b.op("Shape", value)))

    return step


def after_norm(*steps: Step) -> Step:
    def step(w: Writer, value: str) -> str:
        value = w.b.op("LayerNormalization", value, w.b.const(np.ones(HEAD_DIM), np.float32))
        for following in steps:
            value = following(w, value)
        return value

    return step


@pytest.mark.parametrize("dims", ["static", "dynamic"])
@pytest.mark.parametrize(
    ("step", "operands"),
    [
        (expanded("Add", NUM_HEADS, HEAD_DIM), (*ALL, *OUT)),
        (expanded("Mul", NUM_HEADS, HEAD_DIM), (*ALL, *OUT)),
        (expanded("Mul", 1, 1, HEAD_DIM), (*ALL, *OUT)),
        (after_norm(expanded("Mul", HEAD_DIM), expanded("Add", 1, HEAD_DIM)), NORMED_AND_MOVED),
        (expanded("Add", ROWS, 1, HEAD_DIM), KEY),
        (expanded("Mul", ROWS, 1, 1), KEY),
        (after_norm(expanded("Mul", ROWS, 1, 1)), KEY),
    ],
)
def test_expanded_constant_is_what_it_expands(
    step: Step, operands: tuple[str, ...], dims: str
) -> None:
    check_fused(twin(Form(dims=dims), **on("k", "normed", step)), operands)


@pytest.mark.parametrize(
    ("step", "operands"),
    [
        (combined("Add", 0, 1), (*ALL, *OUT)),
        (combined("Mul", 0, 1), (*ALL, *OUT)),
        (combined("Div", 0, 1, 2), (*ALL, *OUT)),
        (after_norm(combined("Mul", 0, 1, 2)), NORMED),
        (after_norm(combined("Mul", 0, 1, 2), combined("Add", 0, 1, 2)), NORMED_AND_MOVED),
        (combined("Add", 0), KEY),
        (combined("Mul", 1), KEY),
        (combined("Add", 0, 1, changed=True), KEY),
        (after_norm(combined("Mul", 0, 1, 2, changed=True)), KEY),
    ],
)
def test_constant_is_taken_by_what_it_repeats(step: Step, operands: tuple[str, ...]) -> None:
    check_fused(twin(**on("k", "normed", step)), operands)


WIDTH, WORDS = 32, 50
BY_VALUE = ("query", "key", "value", "out_weight")


def batches_of_products(weight: tuple[int, ...], batch: str = "b", times: str = "") -> Sample:
    """Queries, keys, values and output by weights that are repeated for each batch.

    times: how many times a batch that the weight is repeated for. Tokens pick what is projected.
    """
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (int64[{batch}, s] tokens) => (float[c, s, {WIDTH}] y)
        <int64[2] sizes = {{{WIDTH}, {WIDTH}}}, int64[1] two = {{2}}> {{
            x = Gather(table, tokens)
            b = Shape<start = 0, end = 1>(x) {times or "n = Identity(b)"}
            to = Concat<axis = 0>(n, sizes)
            wq = Expand(q, to) wk = Expand(k, to) wv = Expand(v, to) wo = Expand(o, to)
            queries = MatMul(x, wq) keys = MatMul(x, wk) values = MatMul(x, wv)
            turned = Transpose<perm = [0, 2, 1]>(keys) scores = MatMul(queries, turned)
            weights = Softmax<axis = -1>(scores) context = MatMul(weights, values)
            y = MatMul(context, wo) }}"""
    )
    rng = np.random.default_rng(0)
    for name in "qkvo":
        # Those of the output are alike: no column of it may be lost by that.
        data = np.ones(weight) if name == "o" else rng.standard_normal(weight) / WIDTH**0.5
        model.graph.initializer.append(numpy_helper.from_array(data.astype(np.float32), name))
    table = rng.standard_normal((WORDS, WIDTH)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    count = 2 if batch == "b" else int(batch)
    feeds = {"tokens": rng.integers(WORDS, size=(count, ROWS))}
    return Sample(model, feeds, Record())


def test_weights_may_be_repeated_for_each_batch() -> None:
    check_fused(batches_of_products((WIDTH, WIDTH)), ("hidden", "qkv_weight", "out_weight"))


def test_weights_that_repeat_the_batch_repeat_the_output() -> None:
    twice = batches_of_products((WIDTH, WIDTH), batch="1", times="n = Mul(b, two)")
    check_fused(twice, ("hidden", "qkv_weight", "out_weight"))


def test_weights_of_each_batch_are_no_projection() -> None:
    check_fused(batches_of_products((2, WIDTH, WIDTH), batch="2"), BY_VALUE)


def test_learned_queries_may_be_repeated_for_each_batch() -> None:
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[b, s, {WIDTH}] x) => (float[b, 3, {WIDTH}] y)
        <int64[2] sizes = {{3, {WIDTH}}}> {{
            b = Shape<start = 0, end = 1>(x) to = Concat<axis = 0>(b, sizes)
            learned = Expand(o, to)
            queries = MatMul(learned, q) keys = MatMul(x, k) values = MatMul(x, v)
            turned = Transpose<perm = [0, 2, 1]>(keys) scores = MatMul(queries, turned)
            weights = Softmax<axis = -1>(scores) y = MatMul(weights, values) }}"""
    )
    rng = np.random.default_rng(0)
    for name, rows in (("q", WIDTH), ("k", WIDTH), ("v", WIDTH), ("o", 3)):
        data = rng.standard_normal((rows, WIDTH)).astype(np.float32) / WIDTH**0.5
        model.graph.initializer.append(numpy_helper.from_array(data, name))
    feeds = {"x": rng.standard_normal((2, ROWS, WIDTH)).astype(np.float32)}
    projected = ("hidden", "context", "q_weight", "k_weight", "v_weight")
    check_fused(Sample(model, feeds, Record()), projected)
