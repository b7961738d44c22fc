"""Gates: what multiplies the context before the output projection, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx.parser
import pytest

import onnx_fuse
from tests.analysis.check import run_fused
from tests.analysis.meanings import Write, check_same, however_written
from tests.analysis.samples.forms import HEAD_DIM, HIDDEN, NUM_HEADS, SIZES, Form
from tests.analysis.samples.graphs import Record, Sample, Writer
from tests.analysis.samples.twins import Step, after, before, twin
from tests.analysis.test_shown_weights import shows, with_output
from tests.analysis.verdicts import ALL, OUT, PAST, QUERY, Make, check_fused, operands
from tests.analysis.verdicts import check_same as check_all_same

DYNAMIC = Form(dims="dynamic")
MERGED = NUM_HEADS * HEAD_DIM
GATED = (*ALL, "gate", *OUT)
Extents = tuple[int | str, ...]
Shapes = Mapping[str, tuple[int, ...]]


def sigmoid(w: Writer, *extents: int | str, name: str = "g") -> str:
    """Return a gate of an input of these extents."""
    data = w.random(*(SIZES[dim] if isinstance(dim, str) else dim for dim in extents))
    return w.b.op("Sigmoid", w.b.input(name, data, extents))


def times(*extents: int | str, op_type: str = "Mul") -> Step:
    """Multiply by a gate of these extents."""
    return lambda w, value: w.b.op(op_type, value, sigmoid(w, *extents))


def side_by_side(*extents: int | str) -> Step:
    """Multiply the context when its heads are one axis."""

    def step(w: Writer, context: str) -> str:
        flat = w.b.reshape(context, *w.positions, NUM_HEADS * w.value_dim)
        made = w.b.op("Mul", sigmoid(w, *extents), flat)
        return w.b.reshape(made, *w.positions, NUM_HEADS, w.value_dim)

    return step


def of_hidden(w: Writer, context: str) -> str:
    """Multiply by a gate of what the queries are projected from, in the context's layout."""
    weight = w.b.const(w.random(HIDDEN, MERGED))
    gate = w.b.op("Sigmoid", w.b.op("MatMul", next(iter(w.b.feeds)), weight))
    heads = w.b.transpose(w.b.reshape(gate, "B", "S", NUM_HEADS, HEAD_DIM), 0, 2, 1, 3)
    return w.b.op("Mul", context, heads)


def repeated(w: Writer, context: str) -> str:
    """Multiply by a gate of each head that was repeated for each lane."""
    shape = w.b.shape(("B", NUM_HEADS, "S", HEAD_DIM))
    return w.b.op("Mul", context, w.b.op("Expand", sigmoid(w, "B", NUM_HEADS, "S", 1), shape))


def scaled(w: Writer, context: str) -> str:
    """Multiply by a number of each head, by a gate, and by a number."""
    numbers = w.b.const(w.random(NUM_HEADS, 1, 1))
    gated = times("B", NUM_HEADS, "S", HEAD_DIM)(w, w.b.op("Mul", context, numbers))
    return w.b.op("Mul", gated, w.b.scalar(0.5))


def of_odd_groups(w: Writer, context: str) -> str:
    """Multiply groups of lanes that are no heads."""
    flat = w.b.reshape(context, "B", "S", 2 * NUM_HEADS, HEAD_DIM // 2)
    made = w.b.op("Mul", flat, sigmoid(w, "B", "S", 2 * NUM_HEADS, HEAD_DIM // 2))
    return w.b.reshape(made, "B", "S", NUM_HEADS, HEAD_DIM)


def behind(change: Step, form: Form = DYNAMIC) -> Make:
    """Change the context as the product gives it."""
    return lambda: twin(form, **after("product", change))


def turned(change: Step, form: Form = DYNAMIC) -> Make:
    """Change the context with its heads behind its rows."""
    return lambda: twin(form, **before("output", change))


ROWS: Extents = ("B", "S")
FUSED: dict[str, Make] = {
    "each number": behind(times("B", NUM_HEADS, "S", HEAD_DIM)),
    "static": behind(times("B", NUM_HEADS, "S", HEAD_DIM), Form()),
    "each head": behind(times("B", NUM_HEADS, "S", 1)),
    "each row": behind(times("B", 1, "S", 1)),
    "each lane": behind(times(HEAD_DIM)),
    "each head of all rows": behind(times(NUM_HEADS, 1, 1)),
    "each batch": behind(times("B", 1, 1, 1)),
    "heads behind rows": turned(times(*ROWS, NUM_HEADS, HEAD_DIM)),
    "each head, behind rows": turned(times(*ROWS, NUM_HEADS, 1)),
    "side by side": turned(side_by_side(*ROWS, MERGED)),
    "side by side, static": turned(side_by_side(*ROWS, MERGED), Form()),
    "each row, side by side": turned(side_by_side(*ROWS, 1)),
    "each lane, side by side": turned(side_by_side(MERGED)),
    "of the queries' source": behind(of_hidden),
    "repeated": behind(repeated),
    "scaled before and behind": behind(scaled),
    "of groups that are no heads": turned(of_odd_groups),
    "folded heads": behind(times("B", NUM_HEADS, "S", HEAD_DIM), Form(heads="folded")),
    "grouped heads": turned(side_by_side(*ROWS, MERGED), Form(heads="gqa_expand")),
    "wide values": turned(side_by_side(*ROWS, NUM_HEADS * 6), Form(extra="wide_values")),
    "rows first": turned(times("S", "B", NUM_HEADS, HEAD_DIM), Form(order="seq_first")),
    "by Einsum": turned(times("B", "S", NUM_HEADS, 1), Form(order="einsum")),
}


def own_batch(w: Writer, context: str) -> str:
    """Multiply by a gate whose batch has a name of its own."""
    w.b.sizes["G"], w.b.dynamic = SIZES["B"], w.b.dynamic | {"G"}
    data = w.random(SIZES["B"], NUM_HEADS, SIZES["S"], HEAD_DIM)
    return w.b.op("Mul", context, w.b.input("g", data, ("G", NUM_HEADS, "S", HEAD_DIM)))


def by_two(w: Writer, context: str) -> str:
    """Project two contexts that a gate makes of one."""
    gates = w.b.op("Mul", w.b.unsqueeze(context, 0), sigmoid(w, 2, 1, 1, 1, 1))
    cube = w.b.const(w.random(NUM_HEADS, HEAD_DIM, HIDDEN))
    made = w.b.op("Einsum", gates, cube, equation="gbsnd,ndf->gbsf")
    return w.b.reshape(made, (2, "B"), "S", HIDDEN)


def of_itself(w: Writer, context: str) -> str:
    return w.b.op("Mul", context, w.b.op("Sigmoid", context))


def of_its_sum(w: Writer, context: str) -> str:
    return w.b.op("Mul", context, w.b.op("Sigmoid", w.b.reduce("ReduceSum", context, -1)))


def of_its_shape(w: Writer, context: str) -> str:
    """Multiply by a gate that was repeated as the context's own shape says."""
    gate = sigmoid(w, "B", NUM_HEADS, "S", 1)
    return w.b.op("Mul", context, w.b.op("Expand", gate, w.b.op("Shape", context)))


def twice(w: Writer, context: str) -> str:
    first = times("B", NUM_HEADS, "S", HEAD_DIM)(w, context)
    return w.b.op("Mul", first, sigmoid(w, "B", NUM_HEADS, "S", 1, name="h"))


# Their output projection stays outside.
IN_PART: dict[str, Make] = {
    "batch of its own": behind(own_batch),
    "of more than the context": lambda: twin(DYNAMIC, output=by_two),
    "of itself": behind(of_itself),
    "of its sum": behind(of_its_sum),
    "of its shape": behind(of_its_shape),
    "two gates": behind(twice),
    "that divides": behind(times("B", NUM_HEADS, "S", HEAD_DIM, op_type="Div")),
    "that is added": behind(times("B", NUM_HEADS, "S", HEAD_DIM, op_type="Add")),
    "without a projection": turned(
        side_by_side(*ROWS, MERGED), Form(dims="dynamic", extra="no_output")
    ),
}


@however_written(FUSED)
def test_a_gate_is_the_block_s_own(name: str, write: Write) -> None:
    sample = write(FUSED[name]())
    model = onnx_fuse.fuse(sample.model, threshold=None).model
    (found,) = operands(model)
    assert {"gate", "out_weight"} <= {*found}
    check_same(sample, model)


@pytest.mark.parametrize("name", ["each number", "heads behind rows", "side by side", "each head"])
def test_all_else_is_fused_as_without_a_gate(name: str) -> None:
    check_fused(FUSED[name](), GATED)


@pytest.mark.parametrize("name", IN_PART)
def test_what_is_no_gate_stays_behind_the_block(name: str) -> None:
    check_fused(IN_PART[name](), ALL)


def test_a_batch_beside_the_context_s_is_no_gate_s_even_if_nothing_asks_for_it() -> None:
    """An Einsum takes any batch: of one context and two gates it makes two outputs."""
    sample = behind(own_batch, Form(dims="dynamic", projection="einsum3"))()
    model = onnx_fuse.fuse(sample.model, threshold=None).model
    assert not {"gate", "out_weight"} & {*operands(model)[0]}
    check_same(sample, model)


def given_out(change: Callable[[list[str]], Step]) -> Sample:
    shown: list[str] = []
    return with_output(twin(DYNAMIC, **after("product", change(shown))), shown)


def test_a_gated_context_that_is_given_out_stays_outside() -> None:
    def change(shown: list[str]) -> Step:
        def step(w: Writer, context: str) -> str:
            shown.append(times("B", NUM_HEADS, "S", HEAD_DIM)(w, context))
            return shown[0]

        return step

    check_fused(given_out(change), ALL)


def test_a_context_that_is_given_out_before_its_gate_ends_the_block() -> None:
    def change(shown: list[str]) -> Step:
        def step(w: Writer, context: str) -> str:
            shown.append(context)
            return times("B", NUM_HEADS, "S", HEAD_DIM)(w, context)

        return step

    check_fused(given_out(change), ALL)


def test_a_gate_of_the_weights_stays_outside() -> None:
    seen: list[str] = []

    def weights(w: Writer, made: str) -> str:
        seen.append(made)
        return made

    def gated(w: Writer, context: str) -> str:
        return w.b.op("Mul", context, w.b.reduce("ReduceMax", seen[0], -1))

    sample = shows(form=DYNAMIC, change=weights, **after("product", gated))
    check_fused(sample, ALL)


def test_a_gate_beside_queries_of_one_product_takes_their_projection_along() -> None:
    """The queries' product is computed for the gate anyway."""
    seen: list[str] = []

    def normed(w: Writer, value: str, name: str) -> str:
        if name == "q":
            seen.append(value)
        return value

    def gated(w: Writer, context: str) -> str:
        return w.b.op("Mul", context, w.b.op("Sigmoid", seen[0]))

    sample = twin(DYNAMIC, normed=normed, **before("output", gated))
    check_fused(sample, (*QUERY[:6], "gate", *OUT))


def attention(w: Writer, source: str, shown: list[str]) -> str:
    """Write one more attention of a tensor (batch, heads, rows, depth) to itself."""
    scores = w.b.op("MatMul", source, w.b.transpose(source, 0, 1, 3, 2))
    shown.append(w.b.op("Softmax", scores, axis=-1))
    return w.b.op("MatMul", shown[-1], source)


def check_two(sample: Sample, gates: int) -> None:
    """Both blocks are fused, and so many of them have gates."""
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert result.report.num_fused == 2
    assert sum("gate" in found for found in operands(result.model)) == gates
    check_same(sample, result.model)


def test_of_two_contexts_that_multiply_each_other_one_is_the_gate() -> None:
    def product(w: Writer, weights: str, value: str) -> str:
        other = attention(w, value, [])
        return w.b.op("Mul", Writer.product(w, weights, value), other)

    check_two(twin(DYNAMIC, product=product), 1)


def test_of_contexts_that_end_in_different_views_of_one_product_one_is_the_gate() -> None:
    """The one attention is along the sequence, the other one along the batches."""

    def product(w: Writer, weights: str, value: str) -> str:
        along = w.b.transpose(attention(w, w.b.transpose(value, 2, 1, 0, 3), []), 2, 1, 0, 3)
        return w.b.op("Mul", Writer.product(w, weights, value), along)

    turned_back = after("output", lambda w, made: w.b.transpose(made, 1, 0, 2))
    check_two(twin(DYNAMIC, product=product, **turned_back), 1)


def test_a_gate_may_be_of_another_attention() -> None:
    def product(w: Writer, weights: str, value: str) -> str:
        gate = w.b.op("Sigmoid", attention(w, value, []))
        return w.b.op("Mul", Writer.product(w, weights, value), gate)

    check_two(twin(DYNAMIC, product=product), 1)


def test_two_gates_do_not_wait_for_each_other() -> None:
    """Each one is of the other block's weights, which its node gives."""
    projected: list[str] = []

    def product(w: Writer, weights: str, value: str) -> str:
        shown: list[str] = []
        other = w.b.op("Mul", attention(w, value, shown), _largest(w, weights))
        flat = w.b.reshape(w.b.transpose(other, 0, 2, 1, 3), "B", "S", MERGED)
        projected.append(w.b.op("MatMul", flat, w.b.const(w.random(MERGED, HIDDEN))))
        return w.b.op("Mul", Writer.product(w, weights, value), _largest(w, shown[0]))

    sample = with_output(twin(DYNAMIC, product=product), projected)
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert sorted("gate" in found for found in operands(result.model)) == [False, True]
    check_all_same(sample, result.model)


def with_numbers(model: onnx.ModelProto, shapes: Shapes, weights: Sequence[str]) -> Sample:
    """Return a sample of a model: its inputs by shape, its weights (16, 16) by name."""
    random = np.random.default_rng(0)
    for name in weights:
        weight = 0.4 * random.standard_normal((16, 16)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    feeds = {name: random.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    return Sample(model, feeds, Record("", {}, {}))


def waiting(source: str) -> Sample:
    """Return two attentions with caches: the keys of the second one gate the first one's context.

    source: what the second one has a bias of.
    """
    past = [f"{name}{block}" for block in (2, 1) for name in "kv"]
    given = "".join(f", float[B,4,P,4] {name}" for name in past)
    made = "".join(f", float[B,4,R,4] present_{name}" for name in past)
    written = "".join(
        f"""
        flat_{name} = MatMul(x, weight_{name})
        split_{name} = Reshape(flat_{name}, split)
        new_{name} = Transpose<perm = [0, 2, 1, 3]>(split_{name})
        present_{name} = Concat<axis = 2>({name}, new_{name})"""
        for name in past
    )
    model = onnx.parser.parse_model(f"""
    <ir_version: 8, opset_import: ["" : 17]>
    agraph (float[B,S,16] x{given}) => (float[B,S,16] y1, float[B,S,16] y2{made})
    <int64[4] split = {{0, 0, 4, 4}}, int64[3] join = {{0, 0, 16}}, int64[1] last = {{3}}> {{
        r = Reshape(x, split)
        q = Transpose<perm = [0, 2, 1, 3]>(r){written}
        gate4 = ReduceMax<axes = [1, 2, 3]>(present_k2)
        gate = Squeeze(gate4, last)
        t1 = Transpose<perm = [0, 1, 3, 2]>(present_k1)
        s1 = MatMul(q, t1)
        p1 = Softmax<axis = -1>(s1)
        c1 = MatMul(p1, present_v1)
        m1 = Transpose<perm = [0, 2, 1, 3]>(c1)
        f1 = Reshape(m1, join)
        g1 = Mul(f1, gate)
        y1 = MatMul(g1, weight_k1)
        bias = ReduceMax<axes = [1, 2, 3]>({source})
        t2 = Transpose<perm = [0, 1, 3, 2]>(present_k2)
        s2 = MatMul(q, t2)
        b2 = Add(s2, bias)
        p2 = Softmax<axis = -1>(b2)
        c2 = MatMul(p2, present_v2)
        m2 = Transpose<perm = [0, 2, 1, 3]>(c2)
        f2 = Reshape(m2, join)
        y2 = MatMul(f2, weight_k2)
    }}""")
    shapes: Shapes = {"x": (2, 5, 16)} | dict.fromkeys(past, (2, 4, 3, 4))
    return with_numbers(model, shapes, [f"weight_{name}" for name in past])


@pytest.mark.parametrize(("source", "takes_gate"), [("present_k1", False), ("k1", True)])
def test_a_gate_does_not_wait_for_a_block_that_waits_for_its_own(
    source: str, takes_gate: bool
) -> None:
    """Both give keys that are made before either attention."""
    sample = waiting(source)
    result = onnx_fuse.fuse(sample.model, threshold=None)
    found = operands(result.model)
    assert all({*PAST} <= {*names} for names in found)
    assert sorted("gate" in names for names in found) == [False, takes_gate]
    check_all_same(sample, result.model)


@pytest.mark.parametrize(("viewed", "takes_gate"), [("mask", False), ("x", True)])
def test_what_a_gate_is_viewed_by_declines_no_block(viewed: str, takes_gate: bool) -> None:
    """Of the queries' source, viewed as the one batch of a mask: there is a block without it."""
    projected = "".join(
        f"""
        flat_{name} = MatMul(x, weight)
        split_{name} = Reshape(flat_{name}, split)
        {name} = Transpose<perm = [0, 2, 1, 3]>(split_{name})"""
        for name in "qkv"
    )
    model = onnx.parser.parse_model(f"""
    <ir_version: 8, opset_import: ["" : 17]>
    agraph (float[B,S,16] x, float[M,1,1,S] mask, float[16] lanes) => (float[D,S,16] y)
    <int64[4] split = {{0, 0, 4, 4}}, int64[3] join = {{0, 0, 16}}, int64[2] rest = {{-1, 16}},
     int64[1] zero = {{0}}, int64[1] one = {{1}}> {{{projected}
        turned = Transpose<perm = [0, 1, 3, 2]>(k)
        scores = MatMul(q, turned)
        masked = Add(scores, mask)
        weights = Softmax<axis = -1>(masked)
        context = MatMul(weights, v)
        rows = Transpose<perm = [0, 2, 1, 3]>(context)
        merged = Reshape(rows, join)
        batch = Shape<start = 0, end = 1>({viewed})
        parts = Concat<axis = 0>(batch, rest)
        view = Reshape(x, parts)
        first = Slice(view, zero, one, one)
        gate = Mul(first, lanes)
        gated = Mul(merged, gate)
        y = MatMul(gated, weight)
    }}""")
    shapes: Shapes = {"x": (3, 5, 16), "mask": (1, 1, 1, 5), "lanes": (16,)}
    sample = with_numbers(model, shapes, ["weight"])
    result = onnx_fuse.fuse(model, threshold=None)
    assert [block.status for block in result.report.blocks] == ["fused"]
    assert ("gate" in operands(result.model)[0]) == takes_gate
    check_all_same(sample, result.model)


def _largest(w: Writer, weights: str) -> str:
    return w.b.reduce("ReduceMax", weights, -1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_a_gate_of_no_number_is_multiplied_all_the_same(value: float) -> None:
    sample = behind(lambda w, context: w.b.op("Mul", context, _raw(w)))()
    sample.feeds["g"][0, 1, 2, 3] = value
    model = onnx_fuse.fuse(sample.model, threshold=None).model
    assert "gate" in operands(model)[0]
    made = run_fused(sample, model)
    np.testing.assert_array_equal(np.isnan(made.found[0]), np.isnan(made.expected[0]))
    np.testing.assert_array_equal(np.isinf(made.found[0]), np.isinf(made.expected[0]))


def _raw(w: Writer) -> str:
    extents: Extents = ("B", NUM_HEADS, "S", HEAD_DIM)
    return w.b.input("g", w.random(*(SIZES.get(str(d), d) for d in extents)), extents)  # type: ignore[arg-type]


def test_an_empty_batch_has_no_rows_to_gate() -> None:
    sample = FUSED["side by side"]()
    feeds = {name: array[:0] for name, array in sample.feeds.items()}
    model = onnx_fuse.fuse(sample.model, threshold=None).model
    for session in (onnx_fuse.session(model),):
        assert session.run(None, feeds)[0].shape[0] == 0


def test_the_model_of_a_gate_runs_without_the_library() -> None:
    sample = FUSED["each head"]()
    model = onnx_fuse.fuse(sample.model, threshold=None).model
    assert isinstance(model, onnx.ModelProto)
    check_same(sample, model)
