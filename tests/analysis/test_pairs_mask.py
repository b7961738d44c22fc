"""Masks with an extent that has a name of its own and may be 1: of batch and heads, or of rows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.check import fused_nodes
from tests.analysis.meanings import BIAS, SELECT
from tests.analysis.samples.forms import NUM_HEADS, Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import BATCH, ROWS, Step, after, twin
from tests.analysis.verdicts import ALL, OUT, check_fused
from tests.sessions import plain_session


def _masked(pairs: int, *, is_bool: bool) -> Step:
    """Apply a mask of so many pairs, called `pairs`, to scores of (batch * heads, rows, rows)."""

    def step(w: Writer, scores: str) -> str:
        numbers = w.random(pairs, ROWS, ROWS)
        mask = w.b.input("mask", numbers > 0 if is_bool else numbers, (pairs, "S", "S"))
        w.b.inputs[-1].type.tensor_type.shape.dim[0].dim_param = "pairs"
        return _applied(w, scores, mask, is_bool=is_bool)

    return step


def _applied(w: Writer, scores: str, mask: str, *, is_bool: bool) -> str:
    if is_bool:
        return w.b.op("Where", mask, scores, w.b.scalar(-np.inf))
    return w.b.op("Add", scores, mask)


MASKS = {False: BIAS, True: SELECT}


@pytest.mark.parametrize("is_bool", MASKS)
@pytest.mark.parametrize("pairs", [1, BATCH * NUM_HEADS])
def test_a_mask_of_pairs_may_be_one_for_all(pairs: int, is_bool: bool) -> None:
    masked = after("scored", _masked(pairs, is_bool=is_bool))
    sample = twin(Form(order="3d", dims="dynamic"), **masked)
    check_fused(sample, (*ALL, *MASKS[is_bool], *OUT))


@pytest.mark.parametrize("pairs", [1, BATCH * NUM_HEADS])
def test_pairs_are_counted_by_either_name_of_the_batch(pairs: int) -> None:
    """Queries and keys have names of their own for it, which the product proves to be equal."""

    def sources(w: Writer, name: str, seq: str, size: int) -> str:
        made = Writer.source(w, name, seq, size)
        w.b.inputs[-1].type.tensor_type.shape.dim[0].dim_param = f"batch of {name}"
        return made

    def step(w: Writer, scores: str) -> str:
        mask = w.b.input("mask", w.random(pairs, ROWS, w.b.sizes["T"]), (pairs, "S", "T"))
        w.b.inputs[-1].type.tensor_type.shape.dim[0].dim_param = "pairs"
        return w.b.op("Add", scores, mask)

    form = Form(order="3d", dims="dynamic", extra="cross")
    sample = twin(form, source=sources, **after("scored", step))
    both = ("hidden", "context", *(f"{p}_{k}" for k in ("weight", "bias") for p in "qkv"))
    check_fused(sample, (*both, *BIAS, *OUT))


@pytest.mark.parametrize("is_bool", MASKS)
@pytest.mark.parametrize("pairs", [1, BATCH * NUM_HEADS])
def test_a_name_beside_a_number_may_be_one(pairs: int, is_bool: bool) -> None:
    sample = twin(Form(order="3d"), **after("scored", _masked(pairs, is_bool=is_bool)))
    check_fused(sample, (*ALL, *MASKS[is_bool], *OUT))


def _masked_rows(count: int, *, is_bool: bool) -> Step:
    """Apply (batch, heads, ?, rows), reshaped from `pairs` and so many `rows`."""

    def step(w: Writer, scores: str) -> str:
        numbers = w.random(BATCH * NUM_HEADS, count, ROWS)
        mask = w.b.input("mask", numbers > 0 if is_bool else numbers, numbers.shape)
        for axis, name in enumerate(("pairs", "rows")):
            w.b.inputs[-1].type.tensor_type.shape.dim[axis].dim_param = name
        shape = w.b.const([BATCH, NUM_HEADS, -1, ROWS], np.int64)
        return _applied(w, scores, w.b.op("Reshape", mask, shape), is_bool=is_bool)

    return step


@pytest.mark.parametrize("is_bool", MASKS)
@pytest.mark.parametrize("count", [1, ROWS])
def test_rows_that_are_left_open_may_be_one(count: int, is_bool: bool) -> None:
    masked = after("scored", _masked_rows(count, is_bool=is_bool))
    check_fused(twin(**masked), (*ALL, *MASKS[is_bool], *OUT))


def _masked_groups(groups: int, *, is_bool: bool) -> Step:
    """Apply (batch, `groups`, 2, rows, rows) to scores of heads in groups of two."""

    def step(w: Writer, scores: str) -> str:
        numbers = w.random(BATCH, groups, 2, ROWS, ROWS)
        mask = w.b.input("mask", numbers > 0 if is_bool else numbers, numbers.shape)
        w.b.inputs[-1].type.tensor_type.shape.dim[1].dim_param = "groups"
        grouped = w.b.reshape(scores, "B", NUM_HEADS // 2, 2, "S", "S")
        masked = _applied(w, grouped, mask, is_bool=is_bool)
        return w.b.reshape(masked, "B", NUM_HEADS, "S", "S")

    return step


@pytest.mark.parametrize("is_bool", MASKS)
@pytest.mark.parametrize("groups", [1, NUM_HEADS // 2])
def test_groups_of_heads_may_be_one_for_all(groups: int, is_bool: bool) -> None:
    masked = after("scored", _masked_groups(groups, is_bool=is_bool))
    check_fused(twin(**masked), (*ALL, *MASKS[is_bool], *OUT))


def _named(w: Writer, *sizes: int) -> str:
    """Return a bool mask of these extents, each of a name of its own, whose first column shows."""
    shown = w.random(*sizes) > 0
    shown[..., 0] = True
    mask = w.b.input("mask", shown, sizes)
    for axis, dim in enumerate(w.b.inputs[-1].type.tensor_type.shape.dim):
        dim.dim_param = f"mask_{axis}"
    return mask


@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("heads", [1, NUM_HEADS])
@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("columns", [1, ROWS])
def test_each_extent_may_be_one(batch: int, heads: int, rows: int, columns: int) -> None:
    def step(w: Writer, scores: str) -> str:
        return _applied(w, scores, _named(w, batch, heads, rows, columns), is_bool=True)

    check_fused(twin(**after("scored", step)), (*ALL, *SELECT, *OUT))


@pytest.mark.parametrize("rows", [1, ROWS])
def test_weights_are_zeroed_by_the_same_mask(rows: int) -> None:
    def filled(w: Writer, scores: str) -> str:
        return w.b.op("Where", _named(w, BATCH, 1, rows, ROWS), scores, w.b.scalar(-1e9))

    def zeroed(w: Writer, weights: str) -> str:
        return w.b.op("Where", "mask", weights, w.b.scalar(0.0))

    check_fused(twin(**after("scores", filled), **after("weights", zeroed)), (*ALL, *SELECT, *OUT))


def of_batches(scores: str, masks: str) -> onnx.ModelProto:
    """Scores of so many batches, and a mask of so many."""
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[{scores}, 4, 5, 8] q, float[{scores}, 4, 5, 8] k, float[{masks}, 1, 1, 5] mask)
            => (float[m, 4, 5, 8] y) {{
            turned = Transpose <perm=[0, 1, 3, 2]> (k)
            scores = MatMul(q, turned)
            masked = Add(scores, mask)
            weights = Softmax <axis=-1> (masked)
            y = MatMul(weights, k)
        }}""")


def test_a_name_beside_one_may_be_any_number() -> None:
    # Scores of one batch under masks of n are those of n batches.
    report = onnx_fuse.fuse(of_batches("1", "n"), threshold=None).report
    assert [block.code for block in report.blocks] == [Code.MASK_SHAPE]


def test_a_number_beside_a_name_says_nothing() -> None:
    # Scores of one batch broadcast to masks of two.
    report = onnx_fuse.fuse(of_batches("n", "2"), threshold=None).report
    assert [block.status for block in report.blocks] == ["declined"]


def test_a_number_beside_heads_of_each_batch_is_all_of_them() -> None:
    made = twin(
        Form(order="3d", dims="dynamic"),
        **after("scored", _masked(BATCH * NUM_HEADS, is_bool=False)),
    )
    mask = next(value for value in made.model.graph.input if value.name == "mask")
    mask.type.tensor_type.shape.dim[0].dim_value = BATCH * NUM_HEADS
    check_fused(made, (*ALL, *BIAS, *OUT))


def _of_kinds(*order: int) -> Step:
    """Add a bias by the kind of a window: the batch counts windows, kind by kind.

    With another `order` the windows come back as others.
    """

    def step(w: Writer, scores: str) -> str:
        kinds = BATCH
        apart = w.b.reshape(scores, -1, kinds, NUM_HEADS, ROWS, ROWS)
        biased = w.b.op("Add", apart, w.b.const(w.random(1, kinds, NUM_HEADS, ROWS, ROWS)))
        turned = w.b.transpose(biased, *order, 2, 3, 4) if order else biased
        return w.b.reshape(turned, -1, NUM_HEADS, ROWS, ROWS)

    return step


@pytest.mark.parametrize("order", [(), (1, 0)])
def test_a_batch_of_windows_of_some_kinds_is_a_multiple_of_their_number(
    order: tuple[int, ...],
) -> None:
    sample = twin(Form(dims="dynamic"), **after("scored", _of_kinds(*order)))
    model = onnx_fuse.fuse(sample.model, threshold=None).model
    assert len(fused_nodes(model)) == 1
    sessions = plain_session(sample.model), plain_session(model), onnx_fuse.session(model)
    rng = np.random.default_rng(0)
    for batch in (BATCH, 3 * BATCH, BATCH + 1):
        feeds = {
            name: rng.standard_normal((batch, *data.shape[1:])).astype(np.float32)
            for name, data in sample.feeds.items()
        }
        if batch % BATCH:
            for session in sessions:
                with pytest.raises(Exception, match=r"Reshape|broadcast"):
                    session.run(None, feeds)
            continue
        expected, *others = (session.run(None, feeds)[0] for session in sessions)
        for found in others:
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
