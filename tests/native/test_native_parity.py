"""Every instruction set of this machine computes what the float64 reference says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest

from onnx_fuse.op import layout
from tests.native import blocks
from tests.op import cases
from tests.op.cases import Case

AWKWARD = (1, 15, 16, 17, 31, 33, 97)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize(
    ("case", "seed"),
    [
        pytest.param(Case(**row), number, id=str(number))
        for number, row in enumerate(cases.pairwise(cases.FEATURES))
    ],
)
def test_features_in_pairs(case: Case, seed: int, isa: str) -> None:
    block = cases.make(case, seed)
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("size", AWKWARD)
@pytest.mark.parametrize(
    "dimension", ["q_seq", "kv_seq", "hidden", "head_dim", "v_head_dim", "out", "past", "batch"]
)
def test_awkward_sizes(dimension: str, size: int, isa: str) -> None:
    sizes: dict[str, Any] = {dimension: size}
    if dimension in ("head_dim", "v_head_dim"):
        sizes = {"dims": (size, 16) if dimension == "head_dim" else (16, size)}
    block = blocks.make(**sizes, heads=(4, 2), seed=size)
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("q_seq", [1, 2, 3, 4, 6, 8, 9, 12, 13])
@pytest.mark.parametrize(
    ("hidden", "precision"), [(401, "fp32"), (402, "bf16"), (1101, "fp32"), (1102, "bf16")]
)
def test_few_rows_of_many_weights(hidden: int, precision: str, q_seq: int, isa: str) -> None:
    """Tiles of each height that read weights alone: from a cache and, above 4 MiB, from memory."""
    sizes = {"q_seq": q_seq, "hidden": hidden, "out": hidden, "seed": q_seq}
    block = blocks.make(**sizes, heads=(16, 16), dims=(32, 32), precision=precision)
    if precision == "bf16":
        block = _in_bfloat16(block)
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("size", AWKWARD)
@pytest.mark.parametrize("attn_weights", [False, True])
def test_all_sizes_awkward_at_once(attn_weights: bool, size: int, isa: str) -> None:
    block = blocks.make(
        q_seq=size,
        kv_seq=98 - size,
        hidden=size,
        heads=(3, 1),
        dims=(98 - size, size),
        out=size,
        attn_weights=attn_weights,
    )
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("past", [0, 300])
@pytest.mark.parametrize("attn_weights", [False, True])
def test_running_softmax_over_blocks_of_columns(
    attn_weights: bool, past: int, causal: int, isa: str
) -> None:
    sizes: dict[str, Any] = {"q_seq": 300, "past": past, "hidden": 16, "heads": (2, 1)}
    block = blocks.make(**sizes, attn_weights=attn_weights, is_causal=causal)
    bias = np.random.default_rng(1).standard_normal((300, 300 + past)).astype(np.float32) * 8
    bias[5, :280] = -np.inf  # the first block of a row holds nothing
    block = blocks.change(block, {}, {"attn_bias": bias})
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("dim", [16, 10, 64])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("norm", ["rms", "layer", "l2"])
@pytest.mark.parametrize("over_heads", [0, 1])
def test_norm_and_rotation(
    over_heads: int, norm: str, interleaved: int, dim: int, isa: str
) -> None:
    block = blocks.make(q_seq=19, heads=(4, 2), dims=(dim, 16), batch=2)
    random = np.random.default_rng(dim)
    angles = random.standard_normal((1, 1, 19, dim - dim % 4)).astype(np.float32)
    tables = {f"{part}_{name}": f(angles) for part in "qk" for name, f in _CIRCLE.items()}
    scales = {
        f"{part}_norm_weight": random.standard_normal((heads, dim)).astype(np.float32)
        for part, heads in (("q", 4), ("k", 2))
    }
    attributes = {
        "rotary_embedding_dim": angles.shape[-1],
        "interleaved": interleaved,
        "q_norm": norm,
        "k_norm": norm,
        "q_norm_over_heads": over_heads,
        "k_norm_over_heads": over_heads,
        "q_norm_epsilon": 1e-5,
        "k_norm_epsilon": 1e-5,
    }
    block = blocks.change(block, attributes, {**tables, **scales})
    blocks.assert_right(blocks.run(block, isa), block)


_CIRCLE = {"cos": np.cos, "sin": np.sin}


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize(
    "shape", [(), (21,), (9, 1), (9, 21), (4, 1, 1), (4, 9, 21), (2, 1, 1, 21), (2, 4, 9, 21)]
)
@pytest.mark.parametrize("operand", ["attn_bias", "attn_mask", "mask_fill"])
def test_masks_of_every_shape(operand: str, shape: tuple[int, ...], isa: str) -> None:
    random = np.random.default_rng(3)
    given: dict[str, Any] = {
        "attn_mask": random.random((2, 4, 9, 21)) < 0.7,
        "mask_fill": np.float32(-2),
    }
    if operand == "attn_mask":
        given["attn_mask"] = np.asarray(random.random(shape) < 0.7)
    else:
        given[operand] = np.asarray(random.standard_normal(shape), np.float32)
    arrays = {name: np.asarray(array) for name, array in given.items()}
    block = blocks.change(blocks.make(batch=2, q_seq=9, kv_seq=21, heads=(4, 2)), {}, arrays)
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("dim", [16, 10, 1])
@pytest.mark.parametrize("kv_seq", [9, 600])
@pytest.mark.parametrize(
    "shape", [(), (-1,), (4, 1), (4, -1), (9, 1, 1), (9, 4, -1), (2, 1, 1, -1), (2, 9, 4, -1)]
)
def test_gates_of_every_shape(shape: tuple[int, ...], kv_seq: int, dim: int, isa: str) -> None:
    random = np.random.default_rng(4)
    lanes = tuple(dim if extent < 0 else extent for extent in shape)
    gate = np.asarray(random.standard_normal(lanes), np.float32)
    sizes: dict[str, Any] = {"batch": 2, "q_seq": 9, "kv_seq": kv_seq, "heads": (4, 2)}
    block = blocks.change(blocks.make(**sizes, dims=(8, dim)), {}, {"gate": gate})
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_softcap_is_relatively_exact_for_small_scores(softcap: float, isa: str) -> None:
    for scale in (1e-4, 0.25, 40.0):
        block = blocks.make(q_seq=33, softcap=softcap, scale=scale)
        blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("past", [3, 700])
@pytest.mark.parametrize("q_seq", [1, 3, 33])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_beside_a_cache(precision: str, q_seq: int, past: int, isa: str) -> None:
    block = blocks.make(
        batch=2,
        q_seq=q_seq,
        past=past,
        heads=(6, 2),
        attn_weights=True,
        precision=precision,
    )
    blocks.assert_right(blocks.run(block, isa), block)


def _swap_heads(block: cases.Block) -> cases.Block:
    weight = layout.unpack(block.operands["qkv_weight"], block.attributes.dims()["qkv_columns"])
    swapped = weight.copy()
    swapped[:, :16], swapped[:, 16:32] = weight[:, 16:32], weight[:, :16]
    return blocks.change(block, {}, {"qkv_weight": layout.pack(swapped)})


def _change_one_product(block: cases.Block) -> cases.Block:
    weight = block.operands["out_weight"].copy()
    weight[1, 7, 3] = -weight[1, 7, 3]
    return blocks.change(block, {}, {"out_weight": weight})


def _miss_a_tile_of_the_mask(block: cases.Block) -> cases.Block:
    bias = block.operands["attn_bias"].copy()
    bias[16:, 32:48] = 0
    return blocks.change(block, {}, {"attn_bias": bias})


def _miss_the_last_column(block: cases.Block) -> cases.Block:
    bias = block.operands["attn_bias"].copy()
    bias[:, -1] = -np.inf
    return blocks.change(block, {}, {"attn_bias": bias})


@pytest.mark.parametrize(
    "spoil", [_swap_heads, _change_one_product, _miss_a_tile_of_the_mask, _miss_the_last_column]
)
@pytest.mark.parametrize("isa", blocks.ISAS)
def test_a_wrong_kernel_is_found(spoil: Any, isa: str) -> None:
    bias = np.random.default_rng(2).standard_normal((33, 50)).astype(np.float32)
    block = blocks.change(blocks.make(q_seq=33, past=17), {}, {"attn_bias": bias})
    found = blocks.run(block, isa)
    blocks.assert_right(found, block)
    assert blocks.worst(found, spoil(block)) > 10 * cases.tolerance(block)


@pytest.mark.parametrize("isa", blocks.ISAS)
def test_error_is_at_most_that_of_onnxruntime(isa: str) -> None:
    block = blocks.make(q_seq=24, hidden=768, heads=(6, 6), dims=(64, 64), out=256)
    exact = cases.expected(block)[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    plain = onnxruntime.InferenceSession(cases.model(block, 17).SerializeToString(), options)
    theirs, ours = plain.run(None, cases.feeds(block.operands))[0], blocks.run(block, isa)[0]

    def error(found: Any) -> float:
        return float(np.sqrt(np.mean((found - exact) ** 2)))

    # Both errors are means of squares over 6144 elements: equal ones differ by a few per cent.
    assert error(ours) <= 1.05 * error(theirs)


@pytest.mark.parametrize("isa", blocks.ISAS)
def test_bfloat16_weights_are_widened_exactly(isa: str) -> None:
    block = cases.make(Case(dtype="bfloat16"))
    block = replace(block, attributes=replace(block.attributes, precision="fp32"))
    blocks.assert_right(blocks.run(block, isa), block)


def _in_bfloat16(block: cases.Block) -> cases.Block:
    """Its weights in bfloat16, but those of an odd number of rows, which have no pairs."""
    narrow = {
        name: layout.pair(array.astype(ml_dtypes.bfloat16))
        for name, array in block.operands.items()
        if name.endswith("weight") and array.shape[1] % 2 == 0
    }
    return blocks.change(block, {"precision": "bf16"}, narrow)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("size", AWKWARD)
@pytest.mark.parametrize("dimension", ["q_seq", "hidden", "out", "batch"])
@pytest.mark.parametrize("precision", ["bf16", "bf16x3"])
def test_awkward_sizes_in_less_precision(
    precision: str, dimension: str, size: int, isa: str
) -> None:
    if precision == "bf16" and dimension == "hidden":
        size += size % 2
    block = blocks.make(**{dimension: size}, heads=(4, 2), seed=size, precision=precision)
    if precision == "bf16":
        block = _in_bfloat16(block)
        assert block.operands["qkv_weight"].ndim == 4
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("q_seq", [1, 9, 33])
def test_odd_rows_of_weights_stay_float32_in_bfloat16(q_seq: int, isa: str) -> None:
    block = _in_bfloat16(blocks.make(q_seq=q_seq, hidden=33, seed=q_seq))
    assert [block.operands[name].ndim for name in ("qkv_weight", "out_weight")] == [3, 4]
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("size", AWKWARD)
@pytest.mark.parametrize("dimension", ["q_seq", "kv_seq", "head_dim", "v_head_dim", "past"])
def test_awkward_sizes_of_attention_in_bfloat16(dimension: str, size: int, isa: str) -> None:
    sizes: dict[str, Any] = {"q_seq": 33, dimension: size}
    if dimension in ("head_dim", "v_head_dim"):
        del sizes[dimension]
        sizes["dims"] = (size, 16) if dimension == "head_dim" else (16, size)
    block = _in_bfloat16(blocks.make(**sizes, heads=(4, 2), seed=size))
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("past", [0, 291])
def test_running_softmax_in_bfloat16(past: int, causal: int, isa: str) -> None:
    block = blocks.make(q_seq=300, past=past, hidden=16, heads=(2, 1), is_causal=causal)
    bias = np.random.default_rng(1).standard_normal((300, 300 + past)).astype(np.float32)
    bias[5, :280] = -np.inf
    bias[:, -40:] = np.where(np.arange(300)[:, None] < 60, np.float32(-1e4), bias[:, -40:])
    block = _in_bfloat16(blocks.change(block, {}, {"attn_bias": bias}))
    blocks.assert_right(blocks.run(block, isa), block)


def _bands(kind: str, rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """What each row sees: (rows, columns)."""
    row, column = np.arange(rows)[:, None], np.arange(columns)
    past = columns - rows
    match kind:
        case "causal":
            return column <= row + past
        case "window":
            return (column <= row + past) & (column > row + past - 20)
        case "padded right":
            return np.broadcast_to(column < 40, (rows, columns))
        case "padded left":  # and so rows that see nothing
            return (column <= row + past) & (column >= past + 30)
        case _:
            return np.zeros((rows, columns), np.bool_)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("fill", [-np.inf, np.finfo(np.float32).min, -10000.0, -900.0, -50.0])
@pytest.mark.parametrize("selected", [True, False], ids=["selected", "added"])
@pytest.mark.parametrize("kind", ["causal", "window", "padded right", "padded left", "all hidden"])
def test_columns_that_no_row_sees_may_be_left_out(
    kind: str, selected: bool, fill: float, isa: str
) -> None:
    keep = _bands(kind, 60, 600)
    masked: dict[str, Any] = (
        {"attn_mask": keep, "mask_fill": np.float32(fill)}
        if selected
        else {"attn_bias": np.where(keep, np.float32(0), np.float32(fill))}
    )
    block = blocks.make(q_seq=60, past=540, hidden=16, heads=(2, 1))
    if kind in ("padded left", "all hidden") and fill == -np.inf:
        block = blocks.change(block, {"zero_nan": 1}, {})
    block = blocks.change(block, {}, {name: np.asarray(x) for name, x in masked.items()})
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("selected", [True, False], ids=["selected", "added"])
def test_a_hidden_column_that_outweighs_the_seen_ones_is_taken_in(selected: bool, isa: str) -> None:
    keep = _bands("padded right", 60, 600)
    low = np.float32(-2000)
    bias = np.where(keep, np.float32(-1990), low if not selected else np.float32(0))
    masked: dict[str, Any] = {"attn_bias": bias}
    if selected:
        masked |= {"attn_mask": keep, "mask_fill": np.asarray(low)}
    block = blocks.change(blocks.make(q_seq=60, past=540, hidden=16, heads=(2, 1)), {}, masked)
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("selected", [True, False], ids=["selected", "added"])
def test_a_hidden_column_of_little_weight_counts(selected: bool, isa: str) -> None:
    """What float32 can hold of a weight is not left out: e^-60 of 1e26 is about 1."""
    keep = _bands("padded right", 60, 600)
    bias = np.where(keep, np.float32(-990), np.float32(0 if selected else -1050))
    block = blocks.make(q_seq=60, past=540, hidden=16, heads=(2, 1), out=0)
    values = block.operands["past_value"].copy()
    values[..., 40:, :] *= np.float32(1e26)
    masked: dict[str, Any] = {"attn_bias": bias, "past_value": values}
    if selected:
        masked |= {"attn_mask": keep, "mask_fill": np.asarray(np.float32(-1050))}
    block = blocks.change(block, {}, masked)
    found = blocks.run(block, isa)
    without = blocks.change(block, {}, {"past_value": np.where(keep[0, :540, None], values, 0)})
    assert np.abs(found[0] - cases.expected(without)[0]).max() > 10 * blocks.tolerance(without)
    np.testing.assert_allclose(found[0], cases.expected(block)[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("fill_shape", [(), (600,), (60, 1)])
@pytest.mark.parametrize("mask_shape", [(60, 600), (1, 600), (60, 1)])
@pytest.mark.parametrize("fill", [-2.0, -1990.0])
def test_what_a_mask_fills_counts_whatever_is_added_there(
    fill: float, mask_shape: tuple[int, ...], fill_shape: tuple[int, ...], isa: str
) -> None:
    """A low bias hides no column whose score the mask replaces."""
    bias = np.where(np.arange(600) < 300, np.float32(-900 if fill < -2 else 0), np.float32(-3000))
    rows, columns = np.indices(mask_shape)
    fills = np.full(fill_shape, fill, np.float32)
    fills.flat[: fills.size // 30] = -2500  # the first ones do not speak for the others
    masked: dict[str, Any] = {
        "attn_bias": bias,
        "attn_mask": (rows % 3 == 0) & (columns < 450),
        "mask_fill": fills,
    }
    block = blocks.make(q_seq=60, past=540, hidden=16, heads=(2, 1))
    masked["past_value"] = block.operands["past_value"].copy()
    masked["past_value"][..., 450:, :] += 5  # so that it shows where they are left out
    block = blocks.change(block, {}, masked)
    blocks.assert_right(blocks.run(block, isa), block)


@pytest.mark.parametrize("isa", blocks.ISAS)
@pytest.mark.parametrize("scale", [0.25, -0.25])
def test_a_hidden_column_of_a_great_score_counts(scale: float, isa: str) -> None:
    """A score of 990 stands against a bias of -1001, whatever signs made it."""
    columns = np.arange(600) >= 40
    random = np.random.default_rng(4)
    key = np.where(columns[:, None], np.float32(np.sign(scale) * 247.5), np.float32(0))
    given: dict[str, Any] = {
        "query": np.ones((1, 1, 60, 16), np.float32),
        "key": np.broadcast_to(key, (1, 1, 600, 16)).astype(np.float32),
        "value": random.standard_normal((1, 1, 600, 16)).astype(np.float32),
        "attn_bias": np.where(columns, np.float32(-1001), np.float32(0)),
    }
    given["value"][:, :, columns] *= np.float32(1e6)
    whole = blocks.make(heads=(1, 1), out=0)
    block = replace(whole, attributes=replace(whole.attributes, scale=scale), operands=given)
    blocks.assert_right(blocks.run(block, isa), block)
    hidden = blocks.change(block, {}, {"attn_bias": np.where(columns, np.float32(-np.inf), 0)})
    assert blocks.worst(blocks.run(block, isa), hidden) > 10 * blocks.tolerance(hidden)


@pytest.mark.parametrize("isa", blocks.ISAS)
def test_a_hidden_value_that_is_not_finite_shows(isa: str) -> None:
    block = blocks.make(q_seq=60, past=540, hidden=16, heads=(2, 1))
    values = block.operands["past_value"].copy()
    values[..., 500, 3] = np.inf
    keep = _bands("padded right", 60, 600)
    masked = {"past_value": values, "attn_mask": keep, "mask_fill": np.float32(-np.inf)}
    block = blocks.change(block, {}, {name: np.asarray(x) for name, x in masked.items()})
    assert np.isnan(blocks.run(block, isa)[0]).any()
