"""Attention that already is one operator gives the record that it would give written out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

import onnx_fuse
from tests.analysis.check import check_record, check_results, fused, fused_nodes, run
from tests.analysis.samples.forms import HEAD_DIM, NUM_HEADS, SIZES, Form
from tests.analysis.samples.graphs import Sample, Writer
from tests.sessions import plain_session

OPSET = 23  # the first with Attention
MASKS = ("none", "bias", "choice")


def mask_of(w: Writer, kind: str) -> list[str]:
    """Add a mask as an input; its meaning goes to the record."""
    rows = SIZES["S"]
    match kind:
        case "bias":
            data = w.random(SIZES["B"], 1, rows, rows)
            w.operands["attn_bias"] = np.broadcast_to(data, w.score_shape)
            return [w.b.input("mask", data, ("B", 1, "S", "S"))]
        case "choice":
            keep = np.tril(np.ones((rows, rows), bool))
            w.operands["attn_mask"] = np.broadcast_to(keep, w.score_shape)
            w.operands["mask_fill"] = np.broadcast_to(np.float32(-np.inf), w.score_shape)
            return [w.b.input("mask", keep, ("S", "S"))]
    return []


def standard(w: Writer, mask: list[str]) -> str:
    """Attention of the standard on (batch, heads, seq, depth)."""
    query, key, value = w.operands_of_product()
    made = w.b.op("Attention", query, key, value, *mask, scale=w.scale)
    return w.output(w.merged(made))


def standard_flat(w: Writer, mask: list[str]) -> str:
    """Attention of the standard on (batch, seq, heads * depth), with its own scale."""
    counts = {"q_num_heads": NUM_HEADS, "kv_num_heads": kv_heads_of(w)}
    made = w.b.op("Attention", *flat(w), *mask, **counts)
    return w.output(w.b.reshape(made, "B", "S", NUM_HEADS, HEAD_DIM))


def multi_head(w: Writer, mask: list[str]) -> str:
    """MultiHeadAttention of com.microsoft, its bias after the mask of padding."""
    slots = ["", "", *mask] if mask else []
    options = {"num_heads": NUM_HEADS, "domain": "com.microsoft"}
    made = w.b.op("MultiHeadAttention", *flat(w), *slots, **options)
    return w.output(w.b.reshape(made, "B", "S", NUM_HEADS, HEAD_DIM))


def kv_heads_of(w: Writer) -> int:
    """How many heads of keys the operator gets: as many as of queries if they are repeated."""
    return NUM_HEADS if w.form.heads.startswith("gqa") else w.kv_heads


def flat(w: Writer) -> list[str]:
    """Queries, keys and values with their heads side by side."""
    w.heads_first = lambda value: value  # type: ignore[method-assign]
    heads = (NUM_HEADS, *[kv_heads_of(w)] * 2)
    parts = w.operands_of_product()
    return [w.b.reshape(p, "B", "S", n * HEAD_DIM) for p, n in zip(parts, heads, strict=True)]


OPERATORS = {"standard": standard, "standard_flat": standard_flat, "multi_head": multi_head}
CASES = [
    (operator, projection, heads, dims, mask)
    for operator in OPERATORS
    for projection in ("add_right", "packed_3nd", "gemm")
    for heads in ("mha", "folded")  # folded: fewer key heads, and nothing repeats them
    for dims in ("static", "dynamic")
    for mask in MASKS
    if operator != "multi_head" or (heads == "mha" and mask != "choice")
]


def made_of(operator: str, form: Form, mask: str) -> Sample:
    w = Writer(form)
    w.b.opset = 17 if operator == "multi_head" else OPSET
    output = OPERATORS[operator](w, mask_of(w, mask))
    w.record.attributes = w.attributes() | {"zero_nan": 0 if operator == "multi_head" else 2}
    return Sample(w.b.model(output), w.b.feeds, w.record)


@pytest.mark.parametrize(("operator", "projection", "heads", "dims", "mask"), CASES)
def test_operator_is_taken_with_its_projections(
    operator: str, projection: str, heads: str, dims: str, mask: str
) -> None:
    form = Form(projection=projection, heads=heads, dims=dims)
    made = made_of(operator, form, mask)
    result = run(made)
    check_record(result.record, made.record)
    check_results(result.found, result.expected)


@pytest.mark.parametrize(("is_causal", "are_behind"), [(0, False), (1, False), (0, True)])
def test_keys_joined_before_a_causal_operator_are_no_past(is_causal: int, are_behind: bool) -> None:
    """Its rows begin at the first of all columns, and those of a block behind its past.

    Nor are keys that stand behind the others: a mask of the operator's own isn't turned.
    """
    w = Writer(Form())
    w.b.opset = OPSET
    query, *parts = w.operands_of_product()
    learned = (w.b.const(w.random(SIZES["B"], NUM_HEADS, 2, HEAD_DIM)) for _ in parts)
    pairs = zip(learned, parts, strict=True)
    key, value = (w.b.op("Concat", *(pair[::-1] if are_behind else pair), axis=2) for pair in pairs)
    attention = w.b.op("Attention", query, key, value, is_causal=is_causal)
    made = Sample(w.b.model(w.output(w.merged(attention))), w.b.feeds, w.record)
    result = run(made)
    is_past = not (is_causal or are_behind)
    assert ("past_key" in result.record.operands) == is_past
    assert ("key" in result.record.operands) == (not is_past)
    check_results(result.found, result.expected)


def attention_and_projection(mask: str) -> onnx.ModelProto:
    """com.microsoft Attention on (2, 3, 32) with an output projection; `mask` is (2,) or (2, 3)."""
    rng = np.random.default_rng(0)
    weights = {"w": (32, 96), "b": (96,), "o": (32, 32)}
    given = {"none": "", "lengths": "int32[2] mask", "padding": "int32[2, 3] mask"}[mask]
    text = f"""
      <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
      g (float[2, 3, 32] x{", " if given else ""}{given}) => (float[2, 3, 32] y) {{
        c = com.microsoft.Attention <num_heads: int = 4> (x, w, b{", mask" if given else ""})
        y = MatMul(c, o)
      }}"""
    model = onnx.parser.parse_model(text)
    for name, shape in weights.items():
        data = (rng.standard_normal(shape) / 6).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(data, name))
    return model


def body_operators(model: onnx.ModelProto) -> list[str]:
    (body,) = model.functions
    return [node.op_type for node in body.node]


@pytest.mark.parametrize("mask", ["none", "lengths", "padding"])
def test_body_keeps_attention_with_its_packed_weight(mask: str) -> None:
    model = attention_and_projection(mask)
    made = fused(model)
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 3, 32)).astype(np.float32)}
    if mask != "none":
        content = [3, 2] if mask == "lengths" else [[1, 1, 1], [1, 0, 1]]
        feeds["mask"] = np.array(content, np.int32)
    assert body_operators(made).count("Attention") == 1
    expected, found = (plain_session(each).run(None, feeds) for each in (model, made))
    check_results(found, expected)
    with_kernels = onnx_fuse.session(made).run(None, feeds)
    check_results(with_kernels, expected)


@pytest.mark.parametrize("operator", OPERATORS)
def test_body_keeps_the_operator(operator: str) -> None:
    made = fused(made_of(operator, Form(), "bias").model)
    kept = "MultiHeadAttention" if operator == "multi_head" else "Attention"
    assert kept in body_operators(made)
    assert "Softmax" not in body_operators(made)


def test_body_has_no_operator_with_a_list_of_no_type() -> None:
    model = made_of("standard", Form(), "bias").model
    (node,) = (node for node in model.graph.node if node.op_type == "Attention")
    node.attribute.add(name="qk_matmul_output_mode", type=onnx.AttributeProto.INTS)
    result = onnx_fuse.fuse(model, threshold=None)
    assert result.report.num_fused == 1
    assert "Attention" not in body_operators(result.model)


@pytest.mark.parametrize("heads", ["gqa_expand", "gqa_concat"])
@pytest.mark.parametrize("rope", ["none", "half"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_body_repeats_for_its_operator_what_the_graph_repeated(
    operator: str, rope: str, heads: str
) -> None:
    order = "4d" if operator == "standard" else "einsum"  # heads before depth
    made = made_of(operator, Form(heads=heads, order=order, rope=rope), "bias")
    result = run(made)
    check_record(result.record, made.record)
    check_results(result.found, result.expected)
    kept = "MultiHeadAttention" if operator == "multi_head" else "Attention"
    assert kept in body_operators(fused(made.model))


@pytest.mark.parametrize("operator", OPERATORS)
def test_unfused_model_has_the_operator_again(operator: str) -> None:
    sample = made_of(operator, Form(), "bias")
    back = onnx_fuse.unfuse(fused(sample.model))
    assert "Softmax" not in [node.op_type for node in back.graph.node]
    expected, found = (plain_session(m).run(None, sample.feeds) for m in (sample.model, back))
    check_results(found, expected)


def test_without_a_fallback_nothing_is_read_for_the_body() -> None:
    made = onnx_fuse.fuse(attention_and_projection("padding"), fallback=False).model
    (node,) = fused_nodes(made)
    names = next(a.s for a in node.attribute if a.name == "operands").split(b",")
    assert len(names) == len(node.input)


def test_half_precision_blocks_have_a_body_of_their_own() -> None:
    """The block computes in float32, the operator would round its results."""
    model = onnx.parser.parse_model("""
      <ir_version: 10, opset_import: ["" : 23]>
      g (float16[1, 2, 3, 8] q, float16[1, 2, 3, 8] k, float16[1, 2, 3, 8] v)
          => (float16[1, 2, 3, 8] y) {
        y = Attention(q, k, v)
      }""")
    assert "Softmax" in body_operators(fused(model))


LOWEST = float(np.finfo(np.float32).min)
NEXT = float(np.nextafter(np.float32(LOWEST), np.float32(0)))


def masked_attention(fill: str, opset: int, *, causal: int = 0) -> onnx.ModelProto:
    """Attention on (2, 3, 8), two heads; `m` chooses 0 or the number `fill` for its mask."""
    return onnx.parser.parse_model(f"""
      <ir_version: 10, opset_import: ["" : {opset}]>
      g (float[2, 3, 8] q, float[2, 3, 8] k, float[2, 3, 8] v, bool[2, 1, 3, 3] m, float fill)
          => (float[2, 3, 8] y)
      <float zero = {{0}}, float lowest = {{{LOWEST!r}}}, float infinity = {{-inf}}> {{
        mask = Where(m, zero, {fill})
        y = Attention <q_num_heads: int = 2, kv_num_heads: int = 2, is_causal: int = {causal}>
            (q, k, v, mask)
      }}""")


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize("fill", [LOWEST, NEXT, -1e38, -1e9, -np.inf])
def test_what_hides_a_whole_row_is_what_the_runtime_takes_for_it(
    fill: float, opset: int, causal: int
) -> None:
    """Its kernel takes the lowest number for minus infinity; from opset 25 it has none."""
    model = masked_attention("fill", opset, causal=causal)
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 3, 8)).astype(np.float32) for name in "qkv"}
    shown = np.tri(3, dtype=bool) & np.array([False, True, True])  # nothing in the first row
    feeds |= {"m": np.stack([shown, ~shown])[:, None], "fill": np.array(fill, np.float32)}
    expected = plain_session(model).run(None, feeds)
    made = fused(model)
    for session in (plain_session(made), onnx_fuse.session(made)):
        check_results(session.run(None, feeds), expected)


@pytest.mark.parametrize(
    ("fill", "opset", "count"),
    [("fill", 24, 1), ("lowest", 24, 1), ("infinity", 24, 0), ("zero", 24, 0), ("lowest", 25, 0)],
)
def test_only_a_mask_that_may_hold_the_lowest_number_is_asked_for_it(
    fill: str, opset: int, count: int
) -> None:
    made = fused(masked_attention(fill, opset))
    assert [node.op_type for node in made.graph.node].count("Equal") == count


@pytest.mark.skipif(
    tuple(map(int, ort.__version__.split(".")[:2])) < (1, 32),
    reason="the kernel does as 1.32 does",
)
@pytest.mark.parametrize(
    "setting", ["local_window_size: int = -1", "local_window_size: int = 2", "softcap: float = 5.0"]
)
@pytest.mark.parametrize("rows", [3, 1])
@pytest.mark.parametrize("fill", [LOWEST, NEXT, -np.inf, -1e9])
def test_lowest_number_of_a_bias_hides_behind_a_cache(fill: float, rows: int, setting: str) -> None:
    """But not below a cap, and not where there is one column in all."""
    if fill == -np.inf and (rows == 1 or "softcap" in setting):
        pytest.skip("the original is NaN")
    model = onnx.parser.parse_model(f"""
      <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
      g (float[2, S, 32] x, float[2, 2, S, 16] past, float[1, 1, S, S] bias)
          => (float[2, S, 32] y, float[2, 2, S, 16] k, float[2, 2, S, 16] v)
      <int32[2] lengths = {{{rows - 1}, {rows - 1}}}, int32 total = {{{rows}}}> {{
        y, k, v = com.microsoft.GroupQueryAttention <num_heads: int = 2, kv_num_heads: int = 2,
            {setting}> (x, x, x, past, past, lengths, total, , , , bias)
      }}""")
    rng = np.random.default_rng(0)
    bias = np.where(np.arange(3) == [[2], [0], [0]], 0.5, fill).astype(np.float32)
    feeds = {
        "x": rng.standard_normal((2, rows, 32)).astype(np.float32),
        "past": np.zeros((2, 2, rows, 16), np.float32),
        "bias": bias[None, None, :rows, :rows],
    }
    expected = plain_session(model).run(None, feeds)
    made = fused(model)
    for session in (plain_session(made), onnx_fuse.session(made)):
        check_results(session.run(None, feeds), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("mask", ["bool[S, S] mask", "float[S, S] mask"])
@pytest.mark.parametrize("opset", [23, 25])
def test_standard_operator_hides_empty_rows_and_no_other_nan(
    opset: int, mask: str, value: float
) -> None:
    model = onnx.parser.parse_model(f"""
      <ir_version: 10, opset_import: ["" : {opset}]>
      g (float[2, S, 32] q, float[2, S, 32] k, float[2, S, 32] v, {mask}) => (float[2, S, 32] y) {{
        y = Attention <q_num_heads: int = 2, kv_num_heads: int = 2> (q, k, v, mask)
      }}""")
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 5, 32)).astype(np.float32) for name in "qkv"}
    feeds["q"][1, 2, 3] = value
    feeds["k"][0, 0, 3] = value
    keep = np.repeat(np.arange(5)[:, None] != 3, 5, axis=1)  # a row that shows nothing
    feeds["mask"] = keep if mask.startswith("bool") else np.where(keep, np.float32(0), -np.inf)
    expected = plain_session(model).run(None, feeds)
    is_nan = np.isnan(expected[0]).any(axis=2)
    assert is_nan[1].tolist() == [False, False, True, False, False]
    assert (expected[0][1, 3] == 0).all()
    made = fused(model)
    for session in (plain_session(made), onnx_fuse.session(made)):
        found = session.run(None, feeds)
        # Beside an additive mask, scores that are no numbers are NaN in empty rows, too.
        rows = [0, 1, 2, 4] if mask.startswith("float") else range(5)
        np.testing.assert_array_equal(np.isnan(found[0]).any(axis=2)[:, rows], is_nan[:, rows])
        check_results([np.nan_to_num(found[0][:, rows])], [np.nan_to_num(expected[0][:, rows])])


SCALED = {
    "standard": "Attention <q_num_heads: int = 2, kv_num_heads: int = 2> (q, k, v)",
    "multi_head": "com.microsoft.MultiHeadAttention <num_heads: int = 2> (q, k, v)",
    "grouped": """com.microsoft.GroupQueryAttention <num_heads: int = 2, kv_num_heads: int = 2>
        (q, k, v, past, past, lengths, total)""",
}


@pytest.mark.parametrize("factor", [0.5, -0.5, 0.0])
@pytest.mark.parametrize("scaled", ["product", "bounded", "x"])
@pytest.mark.parametrize("operator", SCALED)
def test_operator_gets_no_scale_that_it_does_not_take(
    operator: str, scaled: str, factor: float
) -> None:
    """The standard's takes none that isn't above 0, and for the others 0 says nothing."""
    results = "c, past_k, past_v" if operator == "grouped" else "c"
    model = onnx.parser.parse_model(f"""
      <ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
      g (float[1, 3, 32] x, float[1, 2, 3, 16] past) => (float[1, 3, 32] y)
      <float factor = {{{factor}}}, int32[1] lengths = {{2}}, int32 total = {{3}}> {{
        product = MatMul(x, w_q) bounded = Tanh(product) k = MatMul(x, w_k) v = MatMul(x, w_v)
        q = Mul({scaled}, factor)
        {results} = {SCALED[operator]}
        y = MatMul(c, w)
      }}""")
    rng = np.random.default_rng(0)
    for name in ("w_q", "w_k", "w_v", "w"):
        data = rng.standard_normal((32, 32)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(data, name))
    feeds = {
        "x": rng.standard_normal((1, 3, 32)).astype(np.float32),
        "past": np.zeros((1, 2, 3, 16), np.float32),
    }
    expected = plain_session(model).run(None, feeds)
    made = fused(model)
    for session in (plain_session(made), onnx_fuse.session(made)):
        check_results(session.run(None, feeds), expected)
    (node,) = fused_nodes(made)
    scale = next(a.f for a in node.attribute if a.name == "scale")
    assert scale == pytest.approx(max(factor, 0) / 4 or 1 / 4)


# Without a kernel, or where it doesn't know its value's columns, onnxruntime infers that the
# operator's result has none, and refuses what reads it.
INFERRED = {
    "a mask of integers": (
        "int64[1, 3] mask",
        """c = Attention <q_num_heads: int = 2, kv_num_heads: int = 2> (qb, kb, vb, mask)
        y = MatMul(c, w)""",
    ),
    "a gate behind the result": (
        "float[2, 3, 8] gate",
        """c = Attention <q_num_heads: int = 2, kv_num_heads: int = 2> (qb, kb, vb)
        y = Mul(c, gate)""",
    ),
}


@pytest.mark.parametrize("name", INFERRED)
def test_body_loads_whatever_is_inferred_of_its_operator(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    given, rest = INFERRED[name]
    model = onnx.parser.parse_model(f"""
      <ir_version: 10, opset_import: ["" : 24]>
      g (float[2, 3, 8] x, {given}) => (float[2, 3, 8] y) {{
        q = MatMul(x, w) k = MatMul(x, w) v = MatMul(x, w)
        qb = Add(q, b) kb = Add(k, b) vb = Add(v, b)
        {rest}
      }}""")
    rng = np.random.default_rng(0)
    for constant, shape in {"w": (8, 8), "b": (8,)}.items():
        data = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(data, constant))
    feeds = {"x": rng.standard_normal((2, 3, 8)).astype(np.float32)}
    if name == "a mask of integers":
        feeds["mask"] = np.array([[1, 0, 2]])
    else:
        feeds["gate"] = rng.standard_normal((2, 3, 8)).astype(np.float32)
    expected = plain_session(model).run(None, feeds)
    made = fused(model)
    plain = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    for session in (plain, plain_session(made), onnx_fuse.session(made)):
        check_results(session.run(None, feeds), expected)
    assert "shape" not in capfd.readouterr().err  # no warning of what was inferred, either
