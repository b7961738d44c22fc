from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_fuse.errors import UnsupportedModel
from onnx_fuse.runtime.cases import Case, find_cases, fit
from onnx_fuse.runtime.inputs import InputMaker, Sizes
from onnx_fuse.runtime.signature import Input, Use, evaluate, read_signature, symbols
from tests.runtime.models import attention, parse
from tests.sessions import plain_session

TABLE = np.zeros((50, 4), np.float32)
TWO = np.full(1, 2, np.int64)
SHAPE = np.array([-1], np.int64)


def signature(text: str, **weights: np.ndarray) -> dict[str, Input]:
    return {given.name: given for given in read_signature(parse(text, **weights))}


def run_with(model: onnx.ModelProto) -> Any:
    session = plain_session(model)
    return lambda feeds: session.run(None, feeds)


def has_numbers(outputs: list[np.ndarray]) -> bool:
    return any(np.isfinite(made).any() for made in outputs)


def cases(text: str, **weights: np.ndarray) -> list[Case]:
    model = parse(text, **weights)
    return [case for case, _ in find_cases(InputMaker(model), run_with(model))]


USES = {
    "an index": ("int64[3] i", "y = Gather (table, i)", Use.INDEX, 50),
    "an index on the other axis": ("int64[3] i", "y = Gather <axis = 1> (table, i)", Use.INDEX, 4),
    "through a cast": ("int32[3] i", "j = Cast <to = 7> (i) y = Gather (table, j)", Use.INDEX, 50),
    "through a view": ("int64[3] i", "j = Reshape (i, m1) y = Gather (table, j)", Use.INDEX, 50),
    "of the smallest table": (
        "int64[3] i", "a = Gather (table, i) y = Gather <axis = 1> (table, i)", Use.INDEX, 4,
    ),
    "into a converted table": (
        "int64[3] i", "t = Cast <to = 10> (table) y = Gather (t, i)", Use.INDEX, 50,
    ),
    "into a computed table": (
        "int64[3] i", "t = Relu (table) y = Gather (t, i)", Use.FLAG, None,
    ),
    "twice into one": (
        "int64[3] i", "j = Concat <axis = 0> (i, i) y = Gather (table, j)", Use.INDEX, 50,
    ),
    "moved by a computed number": (
        "int64[3] i", "n = Size (i) j = Add (i, n) y = Gather (table, j)", Use.INDEX, 50,
    ),
    "moved by an int16": ("int16[3] i", "j = Add (i, short) y = Gather (table, j)", Use.INDEX, 50),
    "of several axes": ("int64[3,2] i", "y = GatherND (table, i)", Use.INDEX, 4),
    "a position of a rotation": (
        "int64[1,3] i", "y = com.microsoft.RotaryEmbedding (x, i, table, table)", Use.INDEX, 50,
    ),
    "mask that makes positions": (
        "int64[3] mask", "p = CumSum (mask, axis) y = Gather (table, p)", Use.FLAG, None,
    ),
    "compared": ("int64[3] i", "y = Equal (i, two)", Use.FLAG, None),
    "compared in order": ("int64[3] n", "y = Less (two, n)", Use.LENGTH, None),
    "compared in order behind a view": (
        "int32[3] n", "c = Cast <to = 7> (n) v = Unsqueeze (c, m1) y = Less (two, v)",
        Use.LENGTH, None,
    ),
    "mask compared in order": ("int64[3] mask", "y = Less (two, mask)", Use.FLAG, None),
    "switch compared in order": ("int64 n", "y = Less (two, n)", Use.FLAG, None),
    "ids compared in order": ("int64[3,4] i", "y = Less (two, i)", Use.FLAG, None),
    "index compared in order": (
        "int64[3] i", "z = Less (two, i) y = Gather (table, i)", Use.INDEX, 50,
    ),
    "boolean": ("bool[3] b", "y = Not (b)", Use.FLAG, None),
    "an extent": ("int64[1] n", "y = ConstantOfShape (n)", Use.COUNT, None),
    "real": ("float[3] x", "y = Relu (x)", Use.REAL, None),
    "added mask": ("float[3] mask", "y = Add (mask, mask)", Use.ADDED_MASK, None),
    "multiplied mask": ("float[3] mask", "y = Mul (mask, mask)", Use.FLAG, None),
}  # fmt: skip


@pytest.mark.parametrize(("given_input", "nodes", "use", "extent"), USES.values(), ids=USES)
def test_use_of_an_input_is_read_from_the_graph(
    given_input: str, nodes: str, use: Use, extent: int | None
) -> None:
    found = signature(
        f"g ({given_input}) => (float y) {{ {nodes} }}",
        table=TABLE, two=TWO, m1=SHAPE, axis=np.array(0), short=np.full(1, 2, np.int16),
    )  # fmt: skip
    (only,) = found.values()
    assert (only.use, only.extent) == (use, extent)


@pytest.mark.parametrize(
    ("step", "offset"),
    [
        ("Add (i, two)", 2),
        ("Sub (i, two)", -2),
        ("Add (i, starts)", 9),
        ("Sub (i, starts)", -1),
    ],
)
def test_offset_before_a_table_narrows_the_range(step: str, offset: int) -> None:
    text = f"g (int64[400] i) => (float y) {{ j = {step} y = Gather (table, j) }}"
    model = parse(text, table=TABLE, two=TWO, starts=np.arange(400) % 9 + 1)
    maker = InputMaker(model)
    assert maker.inputs[0].offset == offset
    drawn = maker.make({}, "none", 0)["i"] + offset
    assert (drawn.min(), drawn.max()) == (max(0, offset), 49)


def test_index_in_a_function_is_found() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (int64[3] i) => (float[3,4] y) { j = f.keep (i) y = f.look (table, j) }
        <domain: "f", opset_import: ["" : 17]> look (t, k) => (o) { o = Gather (t, k) }
        <domain: "f", opset_import: ["" : 17]> keep (k) => (o) { o = Identity (k) }"""
    )
    assert read_signature(model)[0].use is Use.FLAG  # the table's extent isn't known in the body


def test_index_in_a_branch_is_found() -> None:
    found = signature(
        """g (bool c, int64[3] i) => (float[3,4] y) {
        y = If (c) <then_branch = a () => (float[3,4] p) { p = Gather (table, i) },
                    else_branch = b () => (float[3,4] q) { q = Gather (table, i) }> }""",
        table=TABLE,
    )
    assert (found["i"].use, found["i"].extent) == (Use.INDEX, 50)


def test_index_into_an_input_is_found() -> None:
    found = signature("g (float[9,4] t, int64[3] i) => (float y) { y = Gather (t, i) }")
    assert (found["i"].use, found["i"].extent) == (Use.INDEX, 9)


def test_initializer_that_is_an_input_is_not_asked_for() -> None:
    assert list(signature("g (float[1] x, float[1] w) => (float[1] y) { y = Add (x, w) }",
                          w=np.ones(1, np.float32))) == ["x"]  # fmt: skip


@pytest.mark.parametrize("kind", ["seq(float[2])", "optional(float[2])"])
def test_input_that_is_no_tensor_is_refused(kind: str) -> None:
    with pytest.raises(UnsupportedModel, match="'x'"):
        signature(f"g ({kind} x) => (float y) {{ y = Identity (x) }}")


def test_string_input_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="STRING"):
        InputMaker(parse("g (string[2] x) => (string[2] y) { y = Identity (x) }"))


EXPRESSIONS = st.recursive(
    st.sampled_from(["past", "seq", "2", "7"]),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(
        lambda part: f"({part[0]} {part[1]} {part[2]})"
    ),
    max_leaves=6,
)


@given(EXPRESSIONS, st.integers(0, 9), st.integers(1, 9))
def test_dim_expression_has_its_arithmetic_value(text: str, past: int, seq: int) -> None:
    sizes = {"past": past, "seq": seq}
    if symbols(text) != (text,):
        assert evaluate(text, sizes) == eval(text, {}, sizes)  # noqa: S307 - made above
    assert set(symbols(text)) <= {"past", "seq", "2", "7"}


@pytest.mark.parametrize(("text", "size"), [("seq / 2", 3), ("seq // past", 0)])
def test_quotient_of_dims_has_no_rest_and_of_nothing_is_nothing(text: str, size: int) -> None:
    assert evaluate(text, {"past": 0, "seq": 7}) == size


@pytest.mark.parametrize("name", ["seq len", "unk__12", "a.b", "f(x)", "x[0]", "__import__('os')"])
def test_name_that_is_no_arithmetic_is_a_symbol(name: str) -> None:
    assert symbols(name) == (name,)
    assert evaluate(name, {name: 3}) == 3


def test_dynamic_model_gets_every_mask_and_one_by_one() -> None:
    model = attention()
    found = list(find_cases(InputMaker(model), run_with(model)))
    shapes = [case.feeds["input_ids"].shape for case, _ in found]
    assert (1, 1) in shapes
    assert max(batch * seq for batch, seq in shapes) > 64
    words = [case.name.rsplit(" ", 1)[1] for case, _ in found]
    assert set(words) == {"none", "right", "left", "holes"}


def test_static_model_gets_every_mask() -> None:
    found = cases("g (float[2,5] x, bool[2,5] m) => (float[2,5] y) { y = Where (m, x, x) }")
    assert [case.name for case in found] == [
        f"mask {word}" for word in ("none", "right", "left", "holes")
    ]


SENSES = {
    "1 is kept": ("z = Where (m, x, inf) y = Where (n, z, z)", True, True),
    "1 is masked": ("z = Where (m, inf, x) y = Where (n, z, z)", False, False),
    "two, of the same sense": ("z = Where (m, inf, x) y = Where (n, inf, z)", False, False),
    "two, of both senses": ("z = Where (m, inf, x) y = Where (n, z, inf)", False, True),
    "no sense leaves a number": ("z = Where (m, inf, inf) y = Add (z, x)", True, True),
    "both leave numbers": ("y = Where (m, x, x)", True, True),
}


@pytest.mark.parametrize(("body", "first", "second"), SENSES.values(), ids=SENSES)
def test_nothing_is_masked_at_first_whichever_sense_a_mask_has(
    body: str, first: bool, second: bool
) -> None:
    text = f"g (float[2,5] x, bool[2,5] m, bool[2,5] n) => (float[2,5] y) {{ {body} }}"
    model = parse(text, inf=np.float32([-np.inf]))
    found = list(find_cases(InputMaker(model), run_with(model), has_numbers))
    plain, *others = [case.feeds for case, _ in found]
    assert (plain["m"] == first).all()
    assert (plain["n"] == second).all()
    assert all((feeds["m"] == first).any(axis=1).all() for feeds in others)


@pytest.mark.parametrize("mask", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 2), (2, 7), (2, 1, 1, 9), (4, 5, 6)])
def test_mask_has_its_form_and_leaves_something_of_each_row(
    mask: str, shape: tuple[int, ...]
) -> None:
    dims = ",".join(map(str, shape))
    maker = InputMaker(parse(f"g (int64[{dims}] mask) => (bool y) {{ y = Equal (mask, mask) }}"))
    drawn = maker.make({}, mask, 0)["mask"]
    assert drawn.shape == shape
    assert set(np.unique(drawn)) <= {0, 1}
    assert (drawn.max(axis=-1) == 1).all()
    step = np.diff(drawn, axis=-1)
    match mask:
        case "none":
            assert drawn.all()
        case "right":
            assert (step <= 0).all()
        case "left":
            assert (step >= 0).all()
        case "holes":
            assert shape[-1] == 1 or not drawn.all()


def test_mask_is_as_long_as_past_and_sequence_together() -> None:
    found = cases(
        """g (float[batch,seq] x, float[batch,past] past_key, int64[batch,n] mask) => (float y) {
        all = Concat <axis = 1> (past_key, x) m = Cast <to = 1> (mask) y = Mul (all, m) }"""
    )
    assert len(found) == 6
    for case in found:
        lengths = [case.feeds[name].shape[1] for name in ("past_key", "x", "mask")]
        assert lengths[0] + lengths[1] == lengths[2]
    assert any(case.feeds["past_key"].shape[1] == 0 for case in found)


def test_numbered_dims_of_caches_are_their_lengths_by_the_inputs_names() -> None:
    text = """g (float[s0,s1] x, float[s0,s2] past_key, int64[s0,s3] mask) => (float y) {
        all = Concat <axis = 1> (past_key, x) m = Cast <to = 1> (mask) y = Mul (all, m) }"""
    for case in cases(text):
        lengths = [case.feeds[name].shape[1] for name in ("past_key", "x", "mask")]
        assert lengths[0] + lengths[1] == lengths[2]
    with pytest.raises(Exception, match="Mul"):  # nothing says which of the two the mask goes on
        cases(text.replace("past_key", "other"))


def test_declared_sum_of_dims_is_kept() -> None:
    maker = InputMaker(_with_dims({"x": ("b", "seq"), "z": ("b", "past + seq")}))
    binding = next(maker.bindings(Sizes(2, 7, 3)))
    feeds = maker.make(binding, "none", 0)
    assert (feeds["x"].shape, feeds["z"].shape) == ((2, 7), (2, 10))


def _with_dims(dims: dict[str, tuple[str | int | None, ...]]) -> onnx.ModelProto:
    inputs = [onnx.helper.make_tensor_value_info(n, 1, list(d)) for n, d in dims.items()]
    node = onnx.helper.make_node("Sum", list(dims), ["y"])
    output = onnx.helper.make_tensor_value_info("y", 1, None)
    return onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", inputs, [output]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )


def test_names_that_mean_the_same_are_found_out() -> None:
    model = _with_dims({"x": ("unk__1", "unk__2"), "z": ("unk__3", "unk__4")})
    found = list(find_cases(InputMaker(model), run_with(model)))
    assert [case.feeds["x"].shape == case.feeds["z"].shape for case, _ in found] == [True] * 6


@pytest.mark.parametrize("name", [None, "?", "-1"])
def test_dims_without_names_are_found_out(name: str | None) -> None:
    model = _with_dims({"x": (name, name, 4), "z": (name, name, 4)})
    assert len(InputMaker(model).symbols) == 4
    assert len(list(find_cases(InputMaker(model), run_with(model)))) == 6


def test_size_that_an_export_baked_in_is_found() -> None:
    found = cases(
        "g (float[batch,seq] x) => (float y) { y = Reshape (x, shape) }",
        shape=np.array([2, 11], np.int64),
    )
    assert all(case.feeds["x"].shape == (2, 11) for case in found)
    assert len(found) == 6


def test_sizes_that_an_export_baked_in_for_two_names_are_found() -> None:
    found = cases(
        """g (float[batch,seq,4] x, float[batch,kv,4] z) => (float y, float w) {
        y = Reshape (x, of_x) w = Reshape (z, of_z) }""",
        of_x=np.array([-1, 21, 4], np.int64),
        of_z=np.array([0, 11, 4], np.int64),
    )
    shapes = [(case.feeds["x"].shape, case.feeds["z"].shape) for case in found]
    assert {(x[1], z[1]) for x, z in shapes} == {(21, 11)}
    assert {x[0] for x, _ in shapes} == {1, 2, 3}


def test_a_mask_of_batch_and_heads_has_as_many() -> None:
    found = cases(
        """g (float[b,s,4] x, float[n,s,s] m) => (float y) {
        a = Shape <start = 0, end = 1> (x) t = Shape <start = 1> (m)
        d = Concat <axis = 0> (a, heads, t) y = Reshape (m, d) }""",
        heads=np.array([3], np.int64), other=np.array([5], np.int64),
    )  # fmt: skip
    sizes = {(case.feeds["x"].shape[:2], case.feeds["m"].shape) for case in found}
    assert len(found) == 6
    assert all(m == (3 * b, s, s) for (b, s), m in sizes)


def test_a_name_within_other_inputs_is_no_batch() -> None:
    found = cases("g (float[b,s,4] x, float[s,s] m) => (float y) { y = MatMul (m, x) }")
    assert found[0].feeds["m"].shape == (7, 7)


def test_size_of_a_table_that_is_added_is_found() -> None:
    found = cases(
        "g (float[batch,seq,3] x) => (float y) { a = Add (x, table) y = Reshape (a, shape) }",
        shape=np.array([2, -1], np.int64),
        table=np.zeros((11, 3), np.float32),
    )
    assert {case.feeds["x"].shape[1] for case in found} == {11}


@pytest.mark.parametrize("features", ["80, t", "t, 80"])
def test_longest_row_is_as_long_as_the_sequence(features: str) -> None:
    """Positions up to the longest row are masked, so that it must be as long as all."""
    axis = 2 if features.startswith("80") else 1
    found = cases(
        f"""g (float[batch, {features}] x, int64[batch] n) => (float[batch, {features}] y) {{
            longest = ReduceMax <keepdims = 0> (n) p = Range (zero, longest, one)
            v = Unsqueeze (n, m1) b = Less (p, v) f = Cast <to = 1> (b)
            m = Unsqueeze (f, axis) y = Mul (x, m) }}""",
        zero=np.array(0), one=np.array(1), m1=np.array([-1]), axis=np.array([3 - axis]),
    )  # fmt: skip
    assert len(found) == 6
    for case in found:
        lengths, longest = case.feeds["n"], case.feeds["x"].shape[axis]
        assert lengths[0] == longest
        assert 1 <= lengths.min() <= lengths.max() <= longest
        if "mask none" in case.name:
            assert (lengths == longest).all()


def test_table_that_ends_early_gets_shorter_sequences() -> None:
    found = cases(
        """g (int64[batch,seq] ids) => (float y) {
        s = Shape <start = 1, end = 2> (ids) n = Squeeze (s) p = Range (zero, n, one)
        e = Gather (places, p) c = Cast <to = 1> (ids) y = Mul (c, e) }""",
        places=np.zeros(12, np.float32), zero=np.array(0), one=np.array(1),
    )  # fmt: skip
    assert len(found) == 6
    assert max(case.feeds["ids"].shape[1] for case in found) == 12 - 1


def test_volumes_stay_small_where_they_can() -> None:
    body = "w = Constant <value_float = 2.0> () y = Mul (x, w)"
    dynamic = cases(f"g (float[1, n, n, n, 64] x) => (float[1, n, n, n, 64] y) {{ {body} }}")
    assert max(case.feeds["x"].size for case in dynamic) == 33**3 * 64
    (static, *_) = cases(
        f"g (float[1, 70, 70, 70, 64] x) => (float[1, 70, 70, 70, 64] y) {{ {body} }}"
    )
    assert static.feeds["x"].size == 70**3 * 64


def test_sizes_that_tell_nothing_are_not_the_last_ones_tried() -> None:
    """Up to 600 samples make no frame: a length that runs, of which nothing can be compared."""
    text = "g (float[b, samples] x) => (float[b, frames] y) { y = Slice (x, from, to, axis) }"
    numbers = {"from": np.array([600]), "to": np.array([1 << 30]), "axis": np.array([1])}
    model = parse(text, **numbers)
    found = find_cases(InputMaker(model), run_with(model), lambda outputs: outputs[0].size > 0)
    assert {case.feeds["x"].shape[1] for case, _ in found} == {1024}
    (silent, *_) = find_cases(InputMaker(model), run_with(model), lambda outputs: False)
    assert silent[0].feeds["x"].shape == (2, 7)


def test_open_channels_come_from_the_weight() -> None:
    model = parse(
        'g (float[n,c,h,w] x) => (float y) { y = Conv (x, weight) }',
        weight=np.zeros((8, 3, 2, 2), np.float32),
    )  # fmt: skip
    for case, _ in find_cases(InputMaker(model), run_with(model)):
        assert case.feeds["x"].shape[1] == 3


def test_model_that_never_runs_says_why() -> None:
    def run(feeds: dict[str, np.ndarray]) -> None:
        raise RuntimeError(f"no {len(feeds)}")

    with pytest.raises(RuntimeError, match="no 2"):
        list(find_cases(InputMaker(attention()), run))


def test_fit_takes_just_the_sizes_asked_for() -> None:
    model = attention()
    case = fit(InputMaker(model), run_with(model), Sizes(3, 17, 0))
    assert case.feeds["input_ids"].shape == (3, 17)
    assert case.feeds["attention_mask"].all()


def test_same_seed_gives_the_same_feeds_and_another_seed_others() -> None:
    binding = {"batch": 2, "seq": 9}
    first, again, other = (
        InputMaker(attention(), seed).make(binding, "left", 1)["input_ids"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(("shape", "size"), [("", ()), ("3,0", (3, 0)), ("2,7", (2, 7))])
def test_added_mask_hides_some_and_is_any_numbers_where_nothing_is_masked(
    shape: str, size: tuple[int, ...]
) -> None:
    maker = InputMaker(parse(f"g (float[{shape}] mask) => (float y) {{ y = Add (mask, mask) }}"))
    drawn = maker.make({}, "right", 0)["mask"]
    assert drawn.shape == size
    assert set(drawn.ravel()) <= {0.0, -10000.0}
    assert (drawn.size > 1) == (-10000.0 in drawn)
    assert (maker.make({}, "none", 0)["mask"] > -10000.0).all()


def test_positions_without_a_table_ascend_from_0() -> None:
    maker = InputMaker(
        parse("g (int64[2,5] positions) => (float y) { y = Cast <to=1> (positions) }")
    )
    np.testing.assert_array_equal(maker.make({}, "none", 0)["positions"], [[0, 1, 2, 3, 4]] * 2)


def test_positions_ascend_inside_their_table() -> None:
    model = parse(
        "g (int64[batch,seq] position_ids) => (float y) { y = Gather (table, position_ids) }",
        table=TABLE,
    )
    drawn = InputMaker(model).make({"batch": 3, "seq": 20}, "none", 0)["position_ids"]
    assert (np.diff(drawn) == 1).all()
    assert drawn.max() < 50
