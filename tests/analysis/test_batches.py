"""Batches that meet, one of which may be 1 in a run and broadcast."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.samples import operand_twins, output_twins, steps
from tests.analysis.samples.forms import SIZES, Form
from tests.analysis.samples.twins import after, twin
from tests.analysis.verdicts import Make, check_declined
from tests.sessions import plain_session

ROWS = SIZES["S"]

DECLINED: dict[str, Make] = {
    "scores of a named number of batches beside a mask of two": lambda: twin(
        Form(dims="batch"),
        **after("scores", steps.masked_by_input(2, 1, 1, ROWS)),
        output=output_twins.of_any_batches,
    ),
    "values of two batches, where there may be one": lambda: twin(
        Form(dims="batch"),
        product=operand_twins.values_of_two_batches,
        output=output_twins.of_any_batches,
    ),
    "values of two batches by labels, where there may be one": lambda: twin(
        Form(dims="batch"),
        product=operand_twins.values_of_two_batches_by_labels,
        output=output_twins.of_any_batches,
    ),
}


@pytest.mark.parametrize("name", DECLINED)
def test_batches_that_may_be_one_are_declined(name: str) -> None:
    check_declined(DECLINED[name], Code.SHAPE_UNKNOWN)


def test_mask_that_may_broadcast_tells_nothing_of_the_batches() -> None:
    # Only where batch = seq are these views the usual ones; with batch = 1 there are as many heads.
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, seq, 32] x, float[batch, seq] padding) => (float[n, seq, 32] y)
        <int64[1] heads = {4}, int64[1] rest = {-1}, int64[2] axes = {1, 2}> {
            length = Shape <start=1, end=2> (x)
            parts = Concat <axis=0> (length, length, heads, rest)
            view = Reshape(x, parts)
            q = Transpose <perm=[0, 2, 1, 3]> (view)
            k = Transpose <perm=[0, 2, 3, 1]> (view)
            scores = MatMul(q, k)
            mask = Unsqueeze(padding, axes)
            masked = Add(scores, mask)
            weights = Softmax <axis=3> (masked)
            context = MatMul(weights, q)
            turned = Transpose <perm=[0, 2, 1, 3]> (context)
            whole = Shape(x)
            y = Reshape(turned, whole)
        }""")
    report = onnx_fuse.fuse(model, threshold=None).report
    assert [block.code for block in report.blocks] == [Code.SHAPE_UNKNOWN]


def _exchanged(context: str) -> onnx.ModelProto:
    """Queries of a batch `n` are viewed as those of a batch `seq`; keys are of `context`."""
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, seq, 32] x, float[n, kv, 32] z) => (float[a, b, c, 8] y)
        <int64[1] heads = {{4}}, int64[1] size = {{8}}, int64[1] rest = {{-1}}> {{
            batch = Shape <start=0, end=1> (x)
            length = Shape <start=1, end=2> (x)
            parts = Concat <axis=0> (batch, length, heads, size)
            view = Reshape(x, parts)
            turned = Transpose <perm=[0, 2, 1, 3]> (view)
            exchanged = Concat <axis=0> (length, heads, batch, size)
            usual = Concat <axis=0> (batch, heads, length, size)
            q = Reshape(turned, {"exchanged" if context == "x" else "usual"})
            own = Shape <start=0, end=2> ({context})
            kv_parts = Concat <axis=0> (own, heads, size)
            kv = Reshape({context}, kv_parts)
            k = Transpose <perm=[0, 2, 3, 1]> (kv)
            v = Transpose <perm=[0, 2, 1, 3]> (kv)
            scores = MatMul(q, k)
            weights = Softmax <axis=3> (scores)
            y = MatMul(weights, v)
        }}""")


def test_batches_of_two_names_are_one_where_the_operator_checks_it() -> None:
    model = _exchanged("z")
    assert onnx_fuse.fuse(model, threshold=None).report.num_fused == 1


def test_batch_that_is_the_length_only_if_neither_is_1_is_declined() -> None:
    # The views are the usual ones where batch = seq; with batch = 1 they exchange heads and rows.
    report = onnx_fuse.fuse(_exchanged("x"), threshold=None).report
    assert [block.code for block in report.blocks] == [Code.SHAPE_UNKNOWN]


def _turned_beside(
    table: str, swapped: str, mask: str, values: str = "values = Identity(kv)"
) -> onnx.ModelProto:
    """Rotated queries and plain keys, perhaps viewed as those of a batch `seq`, and a mask."""
    own = "length, batch" if swapped == "x" else "batch, length"
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, seq, 32] x, float[{table}, 1, 8] cos, float[{table}, 1, 8] sin,
           float[{mask}] mask) => (float[a, b, 4, 8] y)
        <int64[1] heads = {{4}}, int64[1] size = {{8}}, int64[1] zero = {{0}},
         int64[1] half = {{4}}, int64[1] end = {{99}}, int64[1] last = {{-1}}> {{
            batch = Shape <start=0, end=1> (x)
            length = Shape <start=1, end=2> (x)
            parts = Concat <axis=0> ({own}, heads, size)
            made_of = MatMul(x, weight)
            kv = Reshape(made_of, parts)
            low = Slice(kv, zero, half, last)
            high = Slice(kv, half, end, last)
            minus = Neg(high)
            turned = Concat <axis=3> (minus, low)
            one = Mul(kv, cos)
            other = Mul(turned, sin)
            rotated = Add(one, other)
            q = Transpose <perm=[0, 2, 1, 3]> (rotated)
            k = Transpose <perm=[0, 2, 3, 1]> (kv)
            {values}
            v = Transpose <perm=[0, 2, 1, 3]> (values)
            product = MatMul(q, k)
            scores = Add(product, mask)
            weights = Softmax <axis=3> (scores)
            made = MatMul(weights, v)
            y = Transpose <perm=[0, 2, 1, 3]> (made)
        }}""")
    return _with_weights(model, "weight", "v_weight")


@pytest.mark.parametrize(
    ("table", "mask"),
    [("1, seq", "seq, seq"), ("1, t", "batch, 1, 1, t"), ("n, seq", "n, 1, seq, t")],
)
def test_tables_and_masks_of_other_names_are_fused(table: str, mask: str) -> None:
    model = _turned_beside(table, "", mask)
    assert onnx_fuse.fuse(model, threshold=None).report.num_fused == 1


@pytest.mark.parametrize(
    ("table", "mask"),
    [("batch, 1", "1"), ("1, seq", "1"), ("1, 1", "batch, 1, seq, 1"), ("1, 1", "1, 1, 1, seq")],
)
def test_tables_and_masks_tell_nothing_of_exchanged_axes(table: str, mask: str) -> None:
    # As if batch = seq; where one of them is 1, what meets exchanged views broadcasts.
    model = _turned_beside(table, "x", mask)
    made = onnx_fuse.fuse(model, threshold=None)
    rng = np.random.default_rng(0)
    sizes = {"batch": 1, "seq": 3} if "batch" in table + mask else {"batch": 3, "seq": 1}
    feeds = {"x": rng.standard_normal((*sizes.values(), 32)).astype(np.float32)}
    for name, dims in (("cos", f"{table}, 1, 8"), ("sin", f"{table}, 1, 8"), ("mask", mask)):
        shape = [sizes.get(dim) or int(dim) for dim in dims.split(", ")]
        feeds[name] = rng.standard_normal(shape).astype(np.float32)
    feeds["cos"][..., 4:], feeds["sin"][..., 4:] = feeds["cos"][..., :4], feeds["sin"][..., :4]
    _check_runs(model, made.model, feeds)


@pytest.mark.parametrize(("table", "mask"), [("1, n", "n, 1, 1, 1"), ("1, 1", "n, 1, 1, n")])
def test_a_name_of_masks_and_tables_does_not_stand_for_two_extents(table: str, mask: str) -> None:
    # As if batch = n = seq, where nothing is checked if n is 1.
    report = onnx_fuse.fuse(_turned_beside(table, "x", mask), threshold=None).report
    assert [block.code for block in report.blocks] == [Code.SHAPE_UNKNOWN]


@pytest.mark.parametrize(("batches_of", "code"), [("x", None), ("cos", Code.SHAPE_UNKNOWN)])
def test_a_name_of_tables_does_not_view_values(batches_of: str, code: Code | None) -> None:
    # Of three batches beside tables of one, the heads would be one batch's, three times as wide.
    values = f"""
        batches = Shape <start=0, end=1> ({batches_of})
        value_parts = Concat <axis=0> (batches, length, heads, last)
        projected = MatMul(x, v_weight)
        values = Reshape(projected, value_parts)"""
    model = _turned_beside("n, seq", "", "1", values)
    report = onnx_fuse.fuse(model, threshold=None).report
    assert [block.code for block in report.blocks] == [code]


@pytest.mark.parametrize(("rows_of", "code"), [("x", None), ("sum", Code.SHAPE_UNKNOWN)])
def test_rows_of_a_sum_are_not_those_of_a_part(rows_of: str, code: Code | None) -> None:
    # Rows of the queries and columns of the keys may differ: nothing checks max(seq, t) = seq.
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, seq, 32] x, float[batch, t, 32] other) => (float[a, b, 4, 8] y)
        <int64[4] parts = {{0, 0, 4, 8}}, float one = {{1}}, float fill = {{-10000}}> {{
            sum = Add(x, other)
            projected = MatMul({rows_of}, q_weight)
            split = Reshape(projected, parts)
            made_of = MatMul(x, k_weight)
            kv = Reshape(made_of, parts)
            q = Transpose <perm=[0, 2, 1, 3]> (split)
            k = Transpose <perm=[0, 2, 3, 1]> (kv)
            v = Transpose <perm=[0, 2, 1, 3]> (kv)
            product = MatMul(q, k)
            length = Shape <start=1, end=2> (x)
            square = Concat <axis=0> (length, length)
            ones = Expand(one, square)
            kept = Trilu <upper=0> (ones)
            hidden = Sub(one, kept)
            mask = Mul(hidden, fill)
            scores = Add(product, mask)
            weights = Softmax <axis=3> (scores)
            made = MatMul(weights, v)
            y = Transpose <perm=[0, 2, 1, 3]> (made)
        }}""")
    report = onnx_fuse.fuse(_with_weights(model, "q_weight", "k_weight"), threshold=None).report
    assert [block.code for block in report.blocks] == [code]


def _turned_rows(rows: str) -> onnx.ModelProto:
    """Every row of the query meets a matrix of its own, of a table that is cut to the length."""
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, 4, seq, 8] x, float[{rows}, 8, 8] table) => (float[a, b, c, 8] y)
        <int64[1] zero = {{0}}> {{
            length = Shape <start=2, end=3> (x)
            own = Slice(table, zero, length, zero)
            q = Einsum <equation="nij,bhnj->bhni"> (own, x)
            k = Transpose <perm=[0, 1, 3, 2]> (x)
            scores = MatMul(q, k)
            weights = Softmax <axis=3> (scores)
            y = MatMul(weights, x)
        }}""")


def test_rows_of_a_table_that_is_cut_to_the_length_are_one_only_where_the_length_is() -> None:
    report = onnx_fuse.fuse(_turned_rows("24"), threshold=None).report
    assert report.num_fused == 1


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_of_a_table_that_may_have_one_only_broadcast(rows: int) -> None:
    _check_equal(_turned_rows("table_rows"), {"x": (2, 4, 3, 8), "table": (rows, 8, 8)})


def _table_beside_batches(rows: str) -> onnx.ModelProto:
    """A table is cut to the length, and all that is left of it becomes batches of that length."""
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, 4, seq, 8] x, float[24, 8] table, float[n, 8] other)
            => (float[a, b, c, 8] y)
        <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] size = {{8}},
         int64[1] rest = {{-1}}> {{
            length = Shape <start=2, end=3> (x)
            own = Slice(table, zero, length, zero)
            parts = Concat <axis=0> (rest, one, length, size)
            rows = Reshape({rows}, parts)
            q = Mul(x, rows)
            k = Transpose <perm=[0, 1, 3, 2]> (x)
            scores = MatMul(q, k)
            weights = Softmax <axis=3> (scores)
            y = MatMul(weights, x)
        }}""")


def test_what_is_cut_to_the_length_has_it_once() -> None:
    assert onnx_fuse.fuse(_table_beside_batches("own"), threshold=None).report.num_fused == 1


@pytest.mark.parametrize("batches", [1, 2])
def test_rows_that_may_be_several_times_the_length_are_batches(batches: int) -> None:
    shapes = {"x": (2, 4, 3, 8), "table": (24, 8), "other": (batches * 3, 8)}
    _check_equal(_table_beside_batches("other"), shapes)


def _of_a_sum(batches_of: str) -> onnx.ModelProto:
    """Projections of a sum, viewed as so many batches as something has."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, seq, 32] x, float[n, seq, 32] other, float[batch, 1, 1, seq] mask)
            => (float[a, b, 4, c] y)
        <int64[1] heads = {{4}}, int64[1] rest = {{-1}}> {{
            hidden = Add(x, other)
            own = Shape <start=0, end=2> ({batches_of})
            parts = Concat <axis=0> (own, heads, rest)
            q_made = MatMul(hidden, q_weight)
            k_made = MatMul(hidden, k_weight)
            v_made = MatMul(hidden, v_weight)
            q_split = Reshape(q_made, parts)
            k_split = Reshape(k_made, parts)
            v_split = Reshape(v_made, parts)
            q = Transpose <perm=[0, 2, 1, 3]> (q_split)
            k = Transpose <perm=[0, 2, 3, 1]> (k_split)
            v = Transpose <perm=[0, 2, 1, 3]> (v_split)
            product = MatMul(q, k)
            scores = Add(product, mask)
            weights = Softmax <axis=3> (scores)
            context = MatMul(weights, v)
            y = Transpose <perm=[0, 2, 1, 3]> (context)
        }}""")
    return _with_weights(model, "q_weight", "k_weight", "v_weight")


@pytest.mark.parametrize(("batch", "n"), [(1, 3), (3, 1), (3, 3)])
def test_batches_of_a_sum_are_the_greater_ones(batch: int, n: int) -> None:
    shapes = {"x": (batch, 5, 32), "other": (n, 5, 32), "mask": (batch, 1, 1, 5)}
    _check_equal(_of_a_sum("hidden"), shapes)


@pytest.mark.parametrize("batches_of", ["x", "other"])
def test_batches_of_a_sum_are_those_of_neither_part(batches_of: str) -> None:
    # Of three batches and one, the heads would be one batch's, three times as wide.
    report = onnx_fuse.fuse(_of_a_sum(batches_of), threshold=None).report
    assert [block.code for block in report.blocks] == [Code.SHAPE_UNKNOWN]


def _with_weights(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    """Return the model with random weights, (32, 32) each, of these names."""
    for seed, name in enumerate(names):
        weight = np.random.default_rng(seed).standard_normal((32, 32)).astype(np.float32) / 6
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return model


def _check_equal(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that the block is fused, and computes the same."""
    made = onnx_fuse.fuse(model, threshold=None)
    assert made.report.num_fused == 1
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal(dims).astype(np.float32) for name, dims in shapes.items()}
    _check_runs(model, made.model, feeds)


def _check_runs(
    model: onnx.ModelProto, made: onnx.ModelProto, feeds: dict[str, NDArray[np.float32]]
) -> None:
    """Check that what was made of a model computes the same with and without the library."""
    expected = plain_session(model).run(None, feeds)[0]
    for session in (plain_session(made), onnx_fuse.session(made)):
        found = session.run(None, feeds)[0]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-5)
