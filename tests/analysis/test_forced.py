"""Extents that are declared to vary, and that the graph allows only one number for."""

from __future__ import annotations

import pytest
from onnx import parser

import onnx_fuse
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.ir.load import load
from tests.analysis.samples import operand_twins, steps
from tests.analysis.samples.forms import Form
from tests.analysis.samples.twins import BATCH, ROWS, Step, after, twin
from tests.analysis.verdicts import check_fused, operands

BATCH_AND_SEQ = "d = Shape(x) i = Constant<value_ints = [0, 1]>() bs = Gather(d, i)"
HEADS = f"{BATCH_AND_SEQ} h = Constant<value_ints = [2, 3]>() c = Concat<axis = 0>(bs, h)"
ONE_ROW = """d = Shape<start = 1>(x) o = Constant<value_ints = [1]>()
    c = Concat<axis = 0>(o, d)"""
FOUR = "f = Constant<value_ints = [4, 1]>() r = Tile(x, f)"
TABLE = "(float[b, s, 6] x, float[8, 6] t) => (y)"
SHAPES = {
    "a product sums it": (
        "(float[b, s] x, float[8, 6] v) => (y) { y = MatMul(x, v) }",
        "b, 8",
    ),
    "a product with a vector sums it": (
        "(float[b, s] x, float[8] v) => (y) { y = MatMul(x, v) }",
        "b, 8",
    ),
    "a table was added, and the elements are counted": (
        f"{TABLE} {{ a = Add(x, t) {HEADS} y = Reshape(a, c) }}",
        "b, 8, 6",
    ),
    "it follows from another one": (
        """(float[b, s] x, float[8, 6] v, float[s, b, 6] w) => (y) { p = MatMul(x, v)
        k = Constant<value_ints = [8, 96]>() r = Reshape(w, k) y = MatMul(p, r) }""",
        "16, 8",
    ),
    "four times it meets a number": (
        f"(float[b, s] x, float[8, 1] t) => (y) {{ {FOUR} y = Add(r, t) }}",
        "2, s",
    ),
    "a number meets four times it": (
        f"(float[b, s] x, bool[2, 8, 1] t) => (y) {{ {FOUR} y = Where(t, r, r) }}",
        "2, s",
    ),
    "four times it meets a number as the batch of a product": (
        """(float[b, 5, s] x, float[8, s, 3] v) => (y) {
        f = Constant<value_ints = [4, 1, 1]>() r = Tile(x, f) y = MatMul(r, v) }""",
        "2, 5, s",
    ),
    "a product sums one": (
        "(float[b, s] x, float[1, 6] v) => (y) { y = MatMul(x, v) }",
        "b, 1",
    ),
    "the elements of one are counted": (
        f"(float[b, s] x) => (y) {{ {ONE_ROW} y = Reshape(x, c) }}",
        "1, s",
    ),
    "four times it has the letter of a number": (
        f"""(float[b, s] x, float[s, 8] v) => (y) {{
        {FOUR} y = Einsum<equation = "bs, sb -> s">(r, v) }}""",
        "2, s",
    ),
    # Near misses:
    "a product sums none": (
        "(float[b, s] x, float[0, 6] v) => (y) { y = MatMul(x, v) }",
        "b, s",
    ),
    "a Reshape to one takes what is left": (
        "(float[b, s] x) => (y) { k = Constant<value_ints = [1, -1]>() y = Reshape(x, k) }",
        "b, s",
    ),
    "it has the letter of a number": (
        """(float[b, s] x, float[s, 8] v) => (y) { y = Einsum<equation = "bs, sb -> s">(x, v) }""",
        "b, s",
    ),
    "four times it has another letter than a number": (
        f"""(float[b, s] x, float[s, 8] v) => (y) {{
        {FOUR} y = Einsum<equation = "bs, sc -> bc">(r, v) }}""",
        "b, s",
    ),
    "four times it is where an ellipsis is": (
        f"""(float[b, s] x, float[s, 8] v) => (y) {{
        {FOUR} y = Einsum<equation = "...s, s... -> s">(r, v) }}""",
        "b, s",
    ),
    "it meets a number as the batch of a product": (
        "(float[b, 5, s] x, float[8, s, 3] v) => (y) { y = MatMul(x, v) }",
        "b, 5, s",
    ),
    "four times it meets a number that four doesn't divide": (
        f"(float[b, s] x, float[6, 1] t) => (y) {{ {FOUR} y = Add(r, t) }}",
        "b, s",
    ),
    "four times it meets one": (
        f"(float[b, s] x, float[1, 1] t) => (y) {{ {FOUR} y = Add(r, t) }}",
        "b, s",
    ),
    "one more than it meets a number": (
        """(float[b, s] x, float[1, s] u, float[8, 1] t) => (y) {
        r = Concat<axis = 0>(x, u) y = Add(r, t) }""",
        "b, s",
    ),
    "a table was added, which a single row would broadcast to": (
        f"{TABLE} {{ y = Add(x, t) }}",
        "b, s, 6",
    ),
    "the elements are counted, and two extents vary": (
        "(float[b, s] x) => (y) { k = Constant<value_ints = [4, 4]>() y = Reshape(x, k) }",
        "b, s",
    ),
    "a Reshape takes what is left": (
        """(float[b, 8] x) => (y) { k = Constant<value_ints = [2, -1]>() y = Reshape(x, k) }""",
        "b, 8",
    ),
    "a Reshape takes an extent as it is": (
        """(float[b, 8] x) => (y) { k = Constant<value_ints = [0, 8]>() y = Reshape(x, k) }""",
        "b, 8",
    ),
    "nothing reads the product": (
        "(float[b, s] x, float[8, 6] v) => (y) { p = MatMul(x, v) y = Relu(x) }",
        "b, s",
    ),
    "the product is in a branch": (
        """(float[b, s] x, float[8, 6] v, bool q) => (y) {
        y = If(q) <then_branch = t () => (r) { r = MatMul(x, v) },
                   else_branch = e () => (r) { r = Relu(x) }> }""",
        "b, s",
    ),
}


def _inputs(text: str, opset: int = 17) -> list[str]:
    """Return what is known of the extents of each input."""
    proto = parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> g {text}')
    for output in proto.graph.output:
        output.ClearField("type")
    model = load(proto)
    shapes = Shapes(model)
    known = [shapes.shape(value) for value in model.graph.inputs]
    return ["?" if shape is None else ", ".join(map(str, shape)) for shape in known]


@pytest.mark.parametrize("why", SHAPES)
def test_what_an_extent_must_be(why: str) -> None:
    text, expected = SHAPES[why]
    assert _inputs(text)[0] == expected


AND_CACHE = "(float[b, 4, s, 8] x, float[c, 4, p, 8] w) => (y)"
JOINED = "y = Concat<axis = 2>(w, x)"
OF_CACHE = """i = Constant<value_ints = [0]>() d = Shape(w) e = Gather(d, i)
    j = Constant<value_ints = [1]>() g = Shape(x) f = Gather(g, j)
    h = Constant<value_ints = [-1, 8]>() k = Concat<axis = 0>(e, f, h) r = Reshape(x, k)"""
EQUAL = {
    "joined to a cache": (f"{AND_CACHE} {{ {JOINED} }}", ["b, 4, s, 8", "b, 4, p, 8"]),
    "joined, none of them named": (
        f"(float[?, 4, ?, 8] x, float[?, 4, ?, 8] w) => (y) {{ {JOINED} }}",
        ["?x[0], 4, ?x[2], 8", "?x[0], 4, ?w[2], 8"],
    ),
    "joined, three of them": (
        """(float[b, s] x, float[c, t] w, float[d, u] v) => (y) {
        y = Concat<axis = 1>(v, x, w) }""",
        ["b, s", "b, t", "b, u"],
    ),
    "joined one after the other": (
        """(float[b, s] x, float[c, t] w, float[d, u] v) => (y) {
        k = Concat<axis = 1>(w, v) r = Relu(x) l = Concat<axis = 0>(r, x)
        m = Concat<axis = 1>(v, x) y = Concat<axis = 1>(k, m) }""",
        ["b, s", "b, t", "b, u"],
    ),
    "equal to what must be a number": (
        """(float[b, s] x, float[c, 6] w, float[8, 3] v) => (y) {
        r = Transpose(x) m = MatMul(r, w) n = Concat<axis = 1>(w, v) y = MatMul(r, n) }""",
        ["8, s", "8, 6", "8, 3"],
    ),
    "summed by a product": (
        "(float[b, s] x, float[t, 6] v) => (y) { y = MatMul(x, v) }",
        ["b, s", "s, 6"],
    ),
    "as many heads are left as the cache has": (
        f"""(float[b, s, 32] x, float[c, 4, p, 8] w) => (y) {{ {OF_CACHE}
        q = Transpose<perm = [0, 2, 1, 3]>(r) y = Concat<axis = 2>(w, q) }}""",
        ["b, s, 32", "b, 4, p, 8"],
    ),
    # Near misses:
    "heads are left, and nothing tells how many": (
        f"(float[b, s, 32] x, float[c, 4, p, 8] w) => (y) {{ {OF_CACHE} y = Relu(r) }}",
        ["b, s, 32", "c, 4, p, 8"],
    ),
    "added, and either may be 1": (
        "(float[b, s] x, float[c, s] w) => (y) { y = Add(x, w) }",
        ["b, s", "c, s"],
    ),
    "batches of a product, and either may be 1": (
        "(float[b, 3, 4] x, float[c, 4, 5] w) => (y) { y = MatMul(x, w) }",
        ["b, 3, 4", "c, 4, 5"],
    ),
    "joined along it": (
        "(float[b, 4] x, float[c, 4] w) => (y) { y = Concat<axis = 0>(w, x) }",
        ["b, 4", "c, 4"],
    ),
    "joined, and nothing reads it": (
        f"{AND_CACHE} {{ z = Concat<axis = 2>(w, x) y = Relu(x) }}",
        ["b, 4, s, 8", "c, 4, p, 8"],
    ),
    "joined to something of any rank": (
        "(float[b, s] x, float[c, s] w) => (y) { n = NoSuch(w) y = Concat<axis = 1>(x, n) }",
        ["b, s", "c, s"],
    ),
}


@pytest.mark.parametrize("why", EQUAL)
def test_extents_that_must_be_one_another_are_the_first(why: str) -> None:
    text, expected = EQUAL[why]
    assert _inputs(text) == expected


@pytest.mark.parametrize("heads", ["", "2, "])
@pytest.mark.parametrize(("length", "expected"), [("t", "s"), ("5", "5")])
def test_an_attention_has_as_many_values_as_keys(heads: str, length: str, expected: str) -> None:
    own = "" if heads else "q_num_heads = 2, kv_num_heads = 2, "
    text = f"""(float[b, {heads}s, 8] k, float[b, {heads}{length}, 8] v, float[b, {heads}r, 8] q)
        => (y) {{ y = Attention<{own}is_causal = 0>(q, k, v) }}"""
    assert _inputs(text, opset=23) == [
        f"b, {heads}{expected}, 8",
        f"b, {heads}{expected}, 8",
        f"b, {heads}r, 8",
    ]


CUT = """i = Constant<value_ints = [-3]>() e = Constant<value_ints = [9223372036854775807]>()
    k = Constant<value_ints = [1]>() cut = Slice(x, i, e, k)"""
# The rows that `counted` has are counted; `a` is `x` with a table added.
MET = """(float[b, s, 6] x, float[{batch}, {rows}, 6] t) => (y) {{ a = Add(x, t)
    k = Constant<value_ints = [{count}, 6]>() r = Reshape({counted}, k)
    l = Constant<value_ints = [6, -1]>() m = Reshape(a, l) y = MatMul(r, m) }}"""
DECIDED = {
    "both meet a number": (2, 7, 14, "x", "2, 7, 6"),
    "both meet a number, and one is broadcast": (2, 7, 7, "x", "1, 7, 6"),
    # Near misses:
    "either may be the other one": (4, 4, 4, "x", "b, s, 6"),
    "one of them meets none": (2, 1, 14, "x", "b, s, 6"),
    "no run succeeds": (2, 7, 15, "x", "b, s, 6"),
    "what is broadcast is counted": (2, 7, 14, "a", "b, s, 6"),
}


@pytest.mark.parametrize("why", DECIDED)
def test_a_count_decides_between_what_extents_that_are_broadcast_may_be(why: str) -> None:
    batch, rows, count, counted, expected = DECIDED[why]
    text = MET.format(batch=batch, rows=rows, count=count, counted=counted)
    assert _inputs(text)[0] == expected


COMPUTED = {
    "a product sums it": (
        f"(float[b, p] x, float[3, 6] v) => (y) {{ {CUT} y = MatMul(cut, v) }}",
        "(b, 3)",
    ),
    "a product sums what is joined to it, and met a number": (
        f"""(float[b, p] x, float[b, 1] n, float[4] m, float[q, 6] v) => (y) {{ {CUT}
        j = Concat<axis = 1>(cut, n) a = Add(j, m) t = Transpose<perm = [1, 0]>(j)
        y = MatMul(a, t) }}""",
        "(b, 3)",
    ),
    # Near misses:
    "it meets a number": (
        f"(float[b, p] x, float[3] m) => (y) {{ {CUT} y = Add(cut, m) }}",
        "(b, min(3, p))",
    ),
    "a product sums one of it": (
        f"(float[b, p] x, float[1, 6] v) => (y) {{ {CUT} y = MatMul(cut, v) }}",
        "(b, min(3, p))",
    ),
    "it was joined and met a number": (
        f"""(float[b, p] x, float[b, 1] n, float[4] m) => (y) {{ {CUT}
        j = Concat<axis = 1>(cut, n) y = Add(j, m) }}""",
        "(b, min(3, p))",
    ),
}


@pytest.mark.parametrize("why", COMPUTED)
def test_what_is_computed_of_an_extent_may_be_one_number(why: str) -> None:
    text, expected = COMPUTED[why]
    model = load(parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]> g {text}'))
    shapes = Shapes(model)
    (cut,) = (node.made[0] for node in model.graph.nodes if node.op == "Slice")
    assert str(shapes.shape(cut)) == expected
    assert str(shapes.shape(model.graph.inputs[0])) == "(b, p)"


def test_a_shape_that_is_declared_inside_the_graph_forces_nothing() -> None:
    proto = parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 17, "other" : 1]> g (float[b, s] x, float[s, 6] v)
        => (y) <float[2, 8] o> { o = other.Own(x) y = MatMul(o, v) }"""
    )
    proto.graph.output[0].ClearField("type")
    model = load(proto)
    shapes = Shapes(model)
    assert [str(shapes.shape(value)) for value in model.graph.inputs] == ["(b, s)", "(s, 6)"]


def _added(*shape: int) -> Step:
    """Add constant numbers, as those are that were traced at one length."""
    return lambda w, value: w.b.op("Add", value, w.b.const(w.random(*shape)))


CONSTANT: dict[str, dict[str, Step]] = {
    "mask": after("scores", _added(ROWS, ROWS)),
    "mask of each batch": after("scores", _added(BATCH, 1, 1, ROWS)),
    "mask of two batches, given": after("scores", steps.masked_by_input(2, 1, 1, ROWS)),
    "table": after("source", _added(ROWS, 1)),
    "values": {"product": operand_twins.values_of_two_batches},
}


@pytest.mark.parametrize("what", CONSTANT)
@pytest.mark.parametrize("rope", ["none", "half"])
def test_what_was_traced_at_one_length_is_fused_as_if_no_extent_varied(
    what: str, rope: str
) -> None:
    varying, fixed = (
        twin(Form(dims=dims, rope=rope), **CONSTANT[what]) for dims in ("dynamic", "static")
    )
    (expected,) = operands(onnx_fuse.fuse(fixed.model, threshold=None).model)
    check_fused(varying, expected)
