"""Whole graphs that look like attention, and the usual graph with more that is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from tests.analysis.samples.forms import HEAD_DIM, HIDDEN, NUM_HEADS, OUT, Form
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.steps import channel_product, channel_scores
from tests.analysis.samples.twins import BATCH, DOUBLE, ROWS, USUAL, Step, before, twin
from tests.analysis.samples.weight_steps import softmax_along


def gate(change: Step = lambda _, hidden: hidden, size: int = OUT) -> Sample:
    """A mixture of experts: the weights of a softmax select among constant vectors.

    `change` makes of `hidden` what chooses, and the vectors have `size` elements.
    """
    w = Writer(USUAL)
    hidden = change(w, w.source("hidden", "S", HIDDEN))
    chosen = w.b.op("Softmax", w.b.op("MatMul", hidden, w.b.const(w.random(HIDDEN, 6))), axis=-1)
    made = w.b.op("MatMul", chosen, w.b.const(w.random(6, size)))
    return Sample(w.b.model(made), w.b.feeds, w.record)


def projected(w: Writer, hidden: str) -> str:
    return w.b.op("MatMul", hidden, w.b.const(w.random(HIDDEN, HIDDEN)))


def activated(w: Writer, hidden: str) -> str:
    return w.b.op("Relu", projected(w, hidden))


def normed_stream(w: Writer, hidden: str) -> str:
    """Add to a stream what a layer makes of it, and norm the sum."""
    total = w.b.op("Add", projected(w, hidden), hidden)
    return w.b.op("LayerNormalization", total, w.b.const(w.random(HIDDEN)), axis=-1)


def experts() -> Sample:
    """A mixture of experts: each one's result times its weight, where it is among the best two."""
    w = Writer(USUAL)
    hidden = w.source("hidden", "S", HIDDEN)
    scores = w.b.op("MatMul", hidden, w.b.const(w.random(HIDDEN, 3)))
    best, places = w.b.ops("TopK", scores, w.b.const([2], np.int64), count=2)
    weights = w.b.op("Softmax", best, axis=-1)
    made = w.b.scalar(0.0)
    for expert in range(3):
        chosen = w.b.op("Cast", w.b.op("Equal", places, w.b.const(expert, np.int64)), to=1)
        weight = w.b.reduce("ReduceSum", w.b.op("Mul", weights, chosen), -1)
        result = w.b.op("MatMul", hidden, w.b.const(w.random(HIDDEN, OUT)))
        made = w.b.op("Add", made, w.b.op("Mul", result, weight))
    return Sample(w.b.model(made), w.b.feeds, w.record)


def classifier() -> Sample:
    """A softmax at the end of a model."""
    w = Writer(USUAL)
    hidden = w.source("hidden", "S", HIDDEN)
    made = w.b.op("Softmax", w.b.op("MatMul", hidden, w.b.const(w.random(HIDDEN, 6))), axis=-1)
    return Sample(w.b.model(made), w.b.feeds, w.record)


def linear_attention(
    scale: float | None = None, *, is_masked: bool = False, change: Step | None = None
) -> Sample:
    """softmax(q) . (softmax(k)^T . v), each over its own axis, perhaps times a number behind it.

    is_masked: each times a mask of the rows. change: makes of `hidden` what is projected.
    """
    w = Writer(USUAL)
    if change is None:
        query, key, value = w.operands_of_product()
    else:
        hidden = change(w, w.source("hidden", "S", HIDDEN))
        shape = ("B", "S", NUM_HEADS, HIDDEN // NUM_HEADS)
        query, key, value = (
            w.heads_first(w.b.reshape(projected(w, hidden), *shape)) for _ in range(3)
        )
    query = w.b.op("Softmax", query, axis=-1)
    key = w.b.op("Softmax", key, axis=2)
    if scale is not None:
        query, key = (w.b.op("Mul", factor, w.b.scalar(scale)) for factor in (query, key))
    if is_masked:
        mask = w.b.input("mask", w.random(BATCH, 1, ROWS, 1), ("B", 1, "S", 1))
        query, key = (w.b.op("Mul", factor, mask) for factor in (query, key))
    table = w.b.op("MatMul", w.b.transpose(key, 0, 1, 3, 2), value)
    made = w.output(w.merged(w.b.op("MatMul", query, table)))
    return Sample(w.b.model(made), w.b.feeds, w.record)


def in_parts() -> Sample:
    """The first rows attend as usual, the others by rectified scores; their contexts are joined."""
    w = Writer(USUAL)
    query, key, value = w.operands_of_product()
    parts = []
    for start, stop, kind in ((0, 3, "Identity"), (3, ROWS, "Relu")):
        scores = w.b.op(kind, w.scored(w.b.slice(query, start, stop, 2), key))
        parts.append(w.b.op("MatMul", w.b.op("Softmax", scores, axis=-1), value))
    made = w.output(w.merged(w.b.op("Concat", *parts, axis=2)))
    return Sample(w.b.model(made), w.b.feeds, w.record)


def landmarks() -> Sample:
    """softmax(q . l^T) . (softmax(l . k^T) . v): both approximate one attention by landmarks."""
    w = Writer(USUAL)
    query, key, value = w.operands_of_product()
    few = w.b.op("ReduceMean", key, axes=[2], keepdims=1)
    few = w.b.op("Concat", few, w.b.slice(key, 0, 2, 2), axis=2)
    inner = w.b.op("MatMul", w.b.op("Softmax", w.scored(few, key), axis=-1), value)
    outer = w.b.op("Softmax", w.scored(query, few), axis=-1)
    made = w.output(w.merged(w.b.op("MatMul", outer, inner)))
    return Sample(w.b.model(made), w.b.feeds, w.record)


def weighed_by(
    *dims: int | str,
    may_be_overridden: bool = False,
    is_computed: bool = False,
    made_by: str = "Softmax",
) -> Sample:
    """What an operator makes is projected, values by a weight that callers give or override.

    is_computed: by what is computed of that weight.
    """
    w = Writer(USUAL)
    source = w.source("source", "S", HIDDEN)
    hidden = w.b.op(made_by, source, **({"axis": 1} if made_by == "Softmax" else {}))
    width = NUM_HEADS * HEAD_DIM
    sizes = [w.b.sizes[dim] if isinstance(dim, str) else dim for dim in (*dims, HIDDEN)]
    given = w.b.input("weight", w.random(*sizes, width), (*dims, HIDDEN, width))
    weight = w.b.op("Tanh", given) if is_computed else given
    products = [
        w.b.op("MatMul", hidden, weight)
        for weight in (*(w.b.const(w.random(HIDDEN, width)) for _ in range(2)), weight)
    ]
    parts = [
        w.heads_first(w.b.reshape(product, "B", "S", NUM_HEADS, HEAD_DIM)) for product in products
    ]
    weights = w.b.op("Softmax", w.scored(*parts[:2]), axis=-1)
    model = w.b.model(w.output(w.merged(w.b.op("MatMul", weights, parts[2]))))
    if may_be_overridden:
        tensor = onnx.numpy_helper.from_array(w.b.feeds[given] + 1, given)
        model.graph.initializer.append(tensor)
    return Sample(model, w.b.feeds, w.record)


def channels_by_given_weights() -> Sample:
    """Attention between channels in a graph of free extents, whose weights are its inputs."""
    w = Writer(Form(dims="dynamic"))
    hidden, width = w.source("hidden", "S", HIDDEN), NUM_HEADS * HEAD_DIM
    parts = []
    for name in ("q_weight", "k_weight", "v_weight"):
        weight = w.b.input(name, w.random(HIDDEN, width), (HIDDEN, width))
        made = w.b.reshape(w.b.op("MatMul", hidden, weight), "B", "S", NUM_HEADS, HEAD_DIM)
        parts.append(w.heads_first(made))
    weights = w.b.op("Softmax", channel_scores(w, *parts[:2]), axis=-1)
    model = w.b.model(w.output(w.merged(channel_product(w, weights, parts[2]))))
    return Sample(model, w.b.feeds, w.record)


def behind_a_convolution(equations: tuple[str, str]) -> Sample:
    """What a convolution of neighbours makes weighs itself, by what two products sum."""
    w = Writer(USUAL)
    b = w.b
    image = b.input("image", w.random(BATCH, HIDDEN, 3, 3), (BATCH, HIDDEN, 3, 3))
    made = b.op("Conv", image, b.const(w.random(HIDDEN, HIDDEN, 3, 3)), pads=[1, 1, 1, 1])
    flat = b.reshape(b.op("Relu", made), BATCH, HIDDEN, 9)
    weights = b.op("Softmax", b.op("Einsum", flat, flat, equation=equations[0]), axis=-1)
    context = b.op("Einsum", weights, flat, equation=equations[1])
    return Sample(b.model(context), b.feeds, w.record)


def pooled() -> Sample:
    """Each position is compared with itself alone, and the weights pool the positions."""
    w = Writer(USUAL)
    query, key, value = w.operands_of_product()
    scores = w.b.op("Einsum", query, key, equation="bnsd,bnsd->bns")
    weights = w.b.op("Softmax", scores, axis=-1)
    made = w.b.op("Einsum", weights, value, equation="bns,bnsd->bnd")
    return Sample(w.b.model(made), w.b.feeds, w.record)


def sized(
    *,
    hidden: int = HIDDEN,
    heads: int = NUM_HEADS,
    depth: int = HEAD_DIM,
    out: int = OUT,
    scored: Step = Writer.scored,
) -> Sample:
    """The usual graph with extents of its own."""
    w = Writer(USUAL)
    source = w.b.input("hidden", w.random(BATCH, ROWS, hidden), ("B", "S", hidden))
    parts = []
    for _ in range(3):
        made = w.b.op("MatMul", source, w.b.const(w.random(hidden, heads * depth)))
        shape = w.b.const([BATCH, ROWS, heads, depth], np.int64)
        parts.append(w.heads_first(w.b.op("Reshape", made, shape, allowzero=1)))
    weights = w.b.op("Softmax", scored(w, *parts[:2]), axis=-1)
    merged = w.merged(w.b.op("MatMul", weights, parts[2]))
    shape = w.b.const([BATCH, ROWS, heads * depth], np.int64)
    context = w.b.op("Reshape", merged, shape, allowzero=1)
    made = w.b.op("MatMul", context, w.b.const(w.random(heads * depth, out)))
    return Sample(w.b.model(made), w.b.feeds, w.record)


def pooled_by(activation: Step, weighed: Step | None = None) -> Sample:
    """Some numbers for each position, by each of which all positions are weighed.

    weighed: what changes the weights.
    """
    w = Writer(USUAL)
    x = w.b.input("hidden", w.random(BATCH, ROWS, HIDDEN), ("B", "S", HIDDEN))
    keys = activation(w, w.b.op("MatMul", x, w.b.const(w.random(HIDDEN, HEAD_DIM))))
    scores = w.b.op("MatMul", keys, w.b.const(w.random(HEAD_DIM, OUT)))
    weights = w.b.transpose(w.b.op("Softmax", scores, axis=1), 0, 2, 1)
    weights = weights if weighed is None else weighed(w, weights)
    return Sample(w.b.model(w.b.op("MatMul", weights, x)), w.b.feeds, w.record)


def double() -> Sample:
    """Attention in float64."""
    w = Writer(USUAL)
    hidden = w.b.input("hidden", w.random(BATCH, ROWS, HIDDEN).astype(float), ("B", "S", HIDDEN))
    parts = []
    for _ in range(3):
        weight = w.b.const(w.random(HIDDEN, NUM_HEADS * HEAD_DIM).astype(float) / 4)
        flat = w.b.op("MatMul", hidden, weight)
        parts.append(w.heads_first(w.b.reshape(flat, "B", "S", NUM_HEADS, HEAD_DIM)))
    weights = w.b.op("Softmax", w.scored(*parts[:2]), axis=-1)
    merged = w.merged(w.b.op("MatMul", weights, parts[2]))
    made = w.b.reshape(merged, "B", "S", NUM_HEADS * HEAD_DIM)
    return Sample(w.b.model(made, dtype=DOUBLE), w.b.feeds, w.record)


def of_gemms(
    *, terms: int = 1, biased_context: bool = False, late: bool = False, biased_sum: bool = False
) -> Sample:
    """One head of one sequence, whose scores are the sum of biased products.

    late: the powers' sum divides the context; biased_sum: what makes it adds to it, too.
    """
    w = Writer(USUAL)
    hidden = w.b.input("hidden", w.random(ROWS, HIDDEN), ("S", HIDDEN))

    def projected() -> str:
        return w.b.op("MatMul", hidden, w.b.const(w.random(HIDDEN, HEAD_DIM)))

    def added(columns: int) -> str:
        return w.b.const(w.random(ROWS, columns))

    products = [
        w.b.op("Gemm", projected(), projected(), added(ROWS), transB=1, beta=0.5)
        for _ in range(terms)
    ]
    scores = w.b.op("Mul", products[0], w.b.scalar(0.3))
    for product in products[1:]:
        scores = w.b.op("Sub", scores, w.b.op("Mul", product, w.b.scalar(0.2)))
    weights = w.b.op("Exp", scores) if late else w.b.op("Softmax", scores, axis=-1)
    factors = (weights, projected(), added(HEAD_DIM))
    context = w.b.op("Gemm", *factors) if biased_context else w.b.op("MatMul", *factors[:2])
    if late:
        total = w.b.reduce("ReduceSum", weights, -1)
        if biased_sum:
            total = w.b.op("Gemm", weights, w.b.const(np.ones((ROWS, 1), np.float32)), added(1))
            total = w.b.op("Add", total, w.b.scalar(0.5))
        context = w.b.op("Div", context, total)
    return Sample(w.b.model(context, rank=2), w.b.feeds, w.record)


def of_fields(*turned: str) -> Sample:
    """Attention among the places of a field, which some of "q", "k", "v" have in another order.

    Its weights are an output, too.
    """
    w, (height, width) = Writer(USUAL), (2, 3)
    count = height * width
    field = w.b.input("field", w.random(BATCH, height, width, HIDDEN), ("B", height, width, HIDDEN))
    parts = []
    for name in "qkv":
        made = w.b.op("MatMul", field, w.b.const(w.random(HIDDEN, NUM_HEADS * HEAD_DIM) / 4))
        made = w.b.transpose(made, 0, 2, 1, 3) if name in turned else made
        parts.append(w.heads_first(w.b.reshape(made, "B", count, NUM_HEADS, HEAD_DIM)))
    weights = w.b.op("Softmax", w.scored(*parts[:2]), axis=-1)
    context = w.b.transpose(w.b.op("MatMul", weights, parts[2]), 0, 2, 1, 3)
    model = w.b.model(w.b.reshape(context, "B", count, NUM_HEADS * HEAD_DIM))
    dims = [BATCH, NUM_HEADS, count, count]
    shown = onnx.helper.make_tensor_value_info(weights, onnx.TensorProto.FLOAT, dims)
    model.graph.output.append(shown)
    return Sample(model, w.b.feeds, w.record)


def side_by_side(*turned: str) -> Sample:
    """Queries, keys and values side by side in one tensor, of as many batches as rows.

    Those of some of "q", "k", "v" have the two exchanged.
    """
    w, width = Writer(USUAL), NUM_HEADS * HEAD_DIM
    packed = w.b.input("packed", w.random(ROWS, ROWS, 3 * width), ("S", "S", 3 * width))
    parts = []
    for start, name in enumerate("qkv"):
        whole = w.b.transpose(packed, 1, 0, 2) if name in turned else packed
        part = w.b.slice(whole, start * width, (start + 1) * width, 2)
        parts.append(w.heads_first(w.b.reshape(part, "S", "S", NUM_HEADS, HEAD_DIM)))
    weights = w.b.op("Softmax", w.scored(*parts[:2]), axis=-1)
    context = w.b.transpose(w.b.op("MatMul", weights, parts[2]), 0, 2, 1, 3)
    made = w.b.reshape(context, "S", "S", width)
    return Sample(w.b.model(made), w.b.feeds, w.record)


def old_softmax() -> Sample:
    """Before opset 13 a softmax of axis 2 normalises over axes 2 and 3 together."""
    made = twin(weights=softmax_along(2))
    made.model.opset_import[0].version = 12
    return made


def shown(*names: str) -> Callable[[], Sample]:
    """The usual graph with results of steps among its outputs."""

    def make() -> Sample:
        w = Writer(Form(mask="add2", norm="rms", rope="half"))
        found: list[str] = []
        for name in names:
            own = getattr(w, name)

            def step(*inputs: str, own: Step = own) -> str:
                found.append(own(*inputs))
                return found[-1]

            setattr(w, name, step)
        return _showing(w.sample(), found)

    return make


def shown_before(name: str, form: Form) -> Sample:
    """The form's graph with what a step changes among its outputs."""
    found: list[str] = []

    def noted(_: Writer, value: str) -> str:
        found.append(value)
        return value

    return _showing(twin(form, **before(name, noted)), found)


def _showing(made: Sample, names: Sequence[str]) -> Sample:
    for name in names:
        value = made.model.graph.output.add(name=name)
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return made


def read_twice(name: str) -> Callable[[], Sample]:
    """The usual graph with a second reader of a step's result, whose own result is an output."""

    def make() -> Sample:
        found: list[str] = []
        own = getattr(Writer, name)

        def step(w: Writer, *inputs: str) -> str:
            result = own(w, *inputs)
            found.append(w.b.op("Exp", w.b.op("Tanh", result)))
            return result

        made = twin(Form(mask="add2", norm="rms", rope="half"), **{name: step})
        return _showing(made, found[:1])

    return make


def replaceable(**steps: Step) -> Sample:
    """A graph whose weights are inputs, too, as in old exports."""
    made = twin(**steps)
    graph = made.model.graph
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            given = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(given)
    return made
