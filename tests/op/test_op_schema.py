"""The tables, the attributes' way to a node and back, and a sentence for each violation."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnx_fuse.op import schema
from onnx_fuse.op.block_attributes import BlockAttributes
from onnx_fuse.op.check_block import check
from onnx_fuse.op.schema import Argument, InvalidBlock
from tests.op import cases
from tests.op.cases import Case

NAMES = tuple(row.name for row in schema.OPERANDS)


def value(row: schema.Attribute) -> st.SearchStrategy[Any]:
    if row.choices:
        return st.sampled_from(row.choices)
    if row.type is int:
        return st.integers(int(row.minimum), 2**31)
    return st.floats(0, 2.0**99, width=32)


ATTRIBUTES = st.builds(BlockAttributes, **{row.name: value(row) for row in schema.ATTRIBUTES})


@given(attributes=ATTRIBUTES, operands=st.sets(st.sampled_from(NAMES), min_size=1))
def test_attributes_survive_the_way_through_a_node(
    attributes: BlockAttributes, operands: set[str]
) -> None:
    written = attributes.to_onnx(operands)
    node = helper.make_node("FusedAttentionBlock", [], [], domain=schema.DOMAIN, **written)
    node = onnx.NodeProto.FromString(node.SerializeToString())
    read = {row.name: helper.get_attribute_value(row) for row in node.attribute}
    read = {name: v.decode() if isinstance(v, bytes) else v for name, v in read.items()}
    assert BlockAttributes.from_onnx(read) == attributes
    assert set(schema.operand_names(read)) == operands


def test_fields_are_the_attribute_table() -> None:
    assert [field.name for field in fields(BlockAttributes)] == [r.name for r in schema.ATTRIBUTES]
    types = {field.name: field.type for field in fields(BlockAttributes)}
    assert types == {row.name: row.type.__name__ for row in schema.ATTRIBUTES}


def test_node_has_all_attributes_with_their_types() -> None:
    # An int where a float belongs would be written as another kind of attribute.
    written = BlockAttributes(1, 1, 8, 8, 0, scale=1).to_onnx(["value", "query", "key"])
    assert written["operands"] == "query,key,value"
    assert {name: type(v) for name, v in written.items() if name != "operands"} == {
        row.name: row.type for row in schema.ATTRIBUTES
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_heads": None}, "attribute num_heads is missing"),
        ({"num_heads": 4.0}, "attribute num_heads is 4.0, not of type int"),
        ({"scale": 1}, "attribute scale is 1, not of type float"),
        ({"is_causal": True}, "attribute is_causal is True, not of type int"),
        ({"q_norm": b"rms"}, "attribute q_norm is b'rms', not of type str"),
    ],
    ids=str,
)
def test_attributes_that_are_no_block_are_refused(change: dict[str, Any], sentence: str) -> None:
    written: dict[str, Any] = cases.make(Case()).attributes.to_onnx(["hidden"]) | change
    with pytest.raises(InvalidBlock, match=f"^{sentence}$"):
        BlockAttributes.from_onnx({name: v for name, v in written.items() if v is not None})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "attribute operands is None, not a list of names"),
        ("", "attribute operands is '', not a list of names"),
        ("hidden,weight", "there is no operand 'weight'"),
        ("hidden, q_weight", "there is no operand ' q_weight'"),
        ("hidden,hidden", "operand hidden is given twice"),
        ("q_weight,hidden", "operands are q_weight,hidden, their order is hidden,q_weight"),
    ],
    ids=str,
)
def test_operands_that_are_no_list_are_refused(text: str | None, sentence: str) -> None:
    with pytest.raises(InvalidBlock, match=f"^{sentence}$"):
        schema.operand_names({"operands": text})


def test_names_of_bodies() -> None:
    assert schema.op_type("FusedAttentionBlock") == "FusedAttentionBlock"
    assert schema.op_type("FusedCrossAttentionBlock", 1) == "FusedCrossAttentionBlock_2"
    assert schema.op_type("FusedAttentionBlock", 7) == "FusedAttentionBlock_8"
    with pytest.raises(InvalidBlock, match=r"^FusedAttentionBlock has 8 bodies, number 9 is none"):
        schema.op_type("FusedAttentionBlock", 8)
    with pytest.raises(InvalidBlock, match=r"^Attention is none of FusedAttentionBlock, "):
        schema.op_type("Attention")


def test_rows_of_the_tables_name_what_there_is() -> None:
    attributes = cases.make(Case()).attributes
    known = {*attributes.dims(), *(name for name, _ in schema.DIMS)}
    # Free dims, which the operands themselves tell.
    known |= {"batch", "q_seq", "past_seq", "hidden_size", "context_size", "value_context_size"}
    known |= {"max_positions"}
    for row in schema.OPERANDS:
        assert {name for needed in row.needs for name in needed.split("|")} <= set(NAMES)
        assert set(row.excludes) <= set(NAMES)
        assert {name for dim in row.shape for name in dim.split("|")} <= known | {"1", "16"}


CASES = [Case(**row) for row in cases.pairwise(cases.FEATURES)]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_every_case_is_a_block(number: int) -> None:
    block = cases.make(CASES[number])
    check(block.arguments(), block.attributes, block.outputs)


def test_unknown_types_and_dims_are_taken_to_be_right() -> None:
    block = cases.make(Case(source="cross", rope="half", attn_bias="full"))
    unknown = dict.fromkeys(block.operands, Argument(None, None))
    check(unknown, block.attributes)
    named = {
        name: Argument(None, tuple(f"{name}_{i}" for i in range(array.ndim)))
        for name, array in block.operands.items()
    }
    check(named, block.attributes)


def test_epsilon_zero_and_scale_below_zero_are_fine() -> None:
    block = cases.make(Case(norm="rms"))
    attributes = replace(block.attributes, q_norm_epsilon=0.0, scale=-1.0)
    check(block.arguments(), attributes)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_heads": 0}, "attribute num_heads is 0, less than 1"),
        ({"kv_num_heads": 3}, "num_heads 4 is no multiple of kv_num_heads 3"),
        ({"kv_num_heads": 8}, "num_heads 4 is no multiple of kv_num_heads 8"),
        ({"head_dim": -1}, "attribute head_dim is -1, less than 1"),
        ({"out_size": -1}, "attribute out_size is -1, less than 0"),
        ({"scale": float("nan")}, "attribute scale is nan, not a finite number"),
        ({"softcap": -1.0}, "attribute softcap is -1.0, less than 0"),
        ({"is_causal": 2}, "attribute is_causal is 2, none of 0, 1"),
        ({"interleaved": -1}, "attribute interleaved is -1, none of 0, 1"),
        ({"zero_nan": 3}, "attribute zero_nan is 3, none of 0, 1, 2"),
        ({"q_norm": "batch"}, "attribute q_norm is 'batch', none of none, rms, layer, l2"),
        ({"k_norm": ""}, "attribute k_norm is '', none of none, rms, layer, l2"),
        ({"q_norm_over_heads": 2}, "attribute q_norm_over_heads is 2, none of 0, 1"),
        ({"k_norm_over_heads": 2}, "attribute k_norm_over_heads is 2, none of 0, 1"),
        ({"q_norm_epsilon": -1e-5}, "attribute q_norm_epsilon is -1e-05, less than 0"),
        ({"k_norm_epsilon": float("inf")}, "attribute k_norm_epsilon is inf, not a finite number"),
        ({"precision": "int8"}, "attribute precision is 'int8', none of fp32, bf16x3, bf16"),
        ({"rotary_embedding_dim": 5}, "attribute rotary_embedding_dim is 5, an odd number"),
        ({"rotary_embedding_dim": 10}, "rotary_embedding_dim 10 is more than head_dim 8"),
        ({"rotary_embedding_dim": 8}, "rotary_embedding_dim is 8, but no tables are given"),
        ({"out_size": 0}, "out_size is 0, but out_weight is given"),
        ({"out_size": 17}, "operand out_bias has 18 in dim 0, but out_size is 17 by attributes"),
        ({"head_dim": 16}, "operand qkv_weight has 6 in dim 0, but qkv_panels is 10 by attributes"),
    ],
    ids=str,
)
def test_wrong_attribute_has_a_sentence(change: dict[str, Any], sentence: str) -> None:
    block = cases.make(Case())
    with pytest.raises(InvalidBlock, match=f"^{sentence}$"):
        check(block.arguments(), replace(block.attributes, **change))


SPLIT = Case(source="split")
CROSS = Case(source="cross")
ROPE = Case(rope="half")
NORM = Case(source="split", norm="layer_bias")
MASK = Case(mask="bool")


@pytest.mark.parametrize(
    ("case", "removed", "sentence"),
    [
        (Case(), "hidden", "operand qkv_weight needs hidden"),
        (SPLIT, "hidden", "operand q_weight needs hidden"),
        (Case(source="query"), "context", "operand k_weight needs context or hidden"),
        (Case(), "qkv_weight", "operand qkv_bias needs qkv_weight"),
        (
            Case(bias="none"),
            "qkv_weight",
            "the block has no query: query, q_weight, qkv or qkv_weight",
        ),
        (SPLIT, "q_weight", "operand q_bias needs q_weight"),
        (SPLIT, "k_weight", "operand k_bias needs k_weight"),
        (SPLIT, "v_weight", "operand v_bias needs v_weight"),
        (Case(source="qkv"), "key", "the block has no key: key, k_weight, qkv or qkv_weight"),
        (Case(source="qkv"), "value", "the block has no value: value, v_weight, qkv or qkv_weight"),
        (ROPE, "q_cos", "operand q_sin needs q_cos"),
        (ROPE, "q_sin", "operand q_cos needs q_sin"),
        (ROPE, "k_cos", "operand k_sin needs k_cos"),
        (ROPE, "k_sin", "operand k_cos needs k_sin"),
        (NORM, "q_norm_weight", "operand q_norm_bias needs q_norm_weight"),
        (NORM, "k_norm_weight", "operand k_norm_bias needs k_norm_weight"),
        (MASK, "attn_mask", "operand mask_fill needs attn_mask"),
        (MASK, "mask_fill", "operand attn_mask needs mask_fill"),
        (Case(past=True), "past_key", "operand past_value needs past_key"),
        (Case(past=True), "past_value", "operand past_key needs past_value"),
        (Case(), "out_weight", "operand out_bias needs out_weight"),
        (Case(gate="full"), "out_weight", "operand gate needs out_weight"),
        (Case(out="plain"), "out_weight", "out_size is 18, but out_weight is not given"),
    ],
    ids=str,
)
def test_missing_operand_has_a_sentence(case: Case, removed: str, sentence: str) -> None:
    block = cases.make(case)
    left = {name: row for name, row in block.arguments().items() if name != removed}
    with pytest.raises(InvalidBlock, match=f"^{sentence}$"):
        check(left, block.attributes, block.outputs)


@pytest.mark.parametrize(
    ("case", "added", "sentence"),
    [
        (Case(), "weight", "there is no operand 'weight'"),
        (Case(), "q_weight", "operands qkv_weight and q_weight exclude each other"),
        (Case(), "context", "operands qkv_weight and context exclude each other"),
        (Case(), "value_context", "operands qkv_weight and value_context exclude each other"),
        (Case(), "query", "operands query and qkv_weight exclude each other"),
        (SPLIT, "query", "operands query and q_weight exclude each other"),
        (SPLIT, "key", "operands key and k_weight exclude each other"),
        (SPLIT, "value", "operands value and v_weight exclude each other"),
        (SPLIT, "qkv_bias", "operand qkv_bias needs qkv_weight"),
        (
            Case(source="qkv"),
            "hidden",
            "operand hidden is given, but nothing is projected from it",
        ),
        (
            Case(source="kv"),
            "context",
            "operand context is given, but nothing is projected from it",
        ),
        (
            Case(source="value"),
            "value_context",
            "operand value_context is given, but nothing is projected from it",
        ),
        (SPLIT, "q_norm_weight", 'operand q_norm_weight is given, but q_norm is "none"'),
        (SPLIT, "k_norm_weight", 'operand k_norm_weight is given, but k_norm is "none"'),
        (Case(norm="rms"), "q_norm_bias", 'operand q_norm_bias goes with "layer", not with "rms"'),
        (Case(norm="l2"), "k_norm_bias", 'operand k_norm_bias goes with "layer", not with "l2"'),
        (Case(out="none"), "out_weight", "out_size is 0, but out_weight is given"),
    ],
    ids=str,
)
def test_operand_too_many_has_a_sentence(case: Case, added: str, sentence: str) -> None:
    block = cases.make(case)
    with pytest.raises(InvalidBlock, match=f"^{sentence}$"):
        check(block.arguments() | {added: Argument(None, None)}, block.attributes, block.outputs)


def test_tables_without_rotation_have_a_sentence() -> None:
    block = cases.make(ROPE)
    with pytest.raises(InvalidBlock, match=r"^rotary_embedding_dim is 0, but tables are given$"):
        check(block.arguments(), replace(block.attributes, rotary_embedding_dim=0))


@pytest.mark.parametrize(
    ("case", "outputs", "sentence"),
    [
        (Case(), 0, "the block has 0 outputs, expected 1 to 4"),
        (Case(), 5, "the block has 5 outputs, expected 1 to 4"),
        (Case(past=True), 1, "the block has 1 outputs, expected 3 or 4, because of past_key"),
    ],
    ids=str,
)
def test_wrong_number_of_outputs_has_a_sentence(case: Case, outputs: int, sentence: str) -> None:
    block = cases.make(case)
    with pytest.raises(InvalidBlock, match=f"^{sentence}$"):
        check(block.arguments(), block.attributes, outputs)


@pytest.mark.parametrize(
    ("case", "operand", "axis", "sentence"),
    [
        (SPLIT, "q_weight", 1, "hidden_size is 24 by hidden"),
        (CROSS, "context", 0, "batch is 2 by hidden"),
        (CROSS, "k_weight", 1, "context_size is 20 by context"),
        (CROSS, "v_weight", 1, "context_size is 20 by context"),
        (Case(source="three"), "v_weight", 1, "value_context_size is 12 by value_context"),
        (Case(source="three"), "value_context", 1, "kv_seq is 7 by context"),
        (SPLIT, "k_weight", 0, "k_panels is 2 by attributes"),
        (SPLIT, "v_weight", 2, "it must be 16"),
        (Case(), "qkv_bias", 0, "qkv_columns is 96 by attributes"),
        (SPLIT, "q_bias", 0, "q_columns is 32 by attributes"),
        (Case(source="qkv"), "query", 1, "num_heads is 4 by attributes"),
        (Case(source="qkv"), "key", 3, "head_dim is 8 by attributes"),
        (Case(source="qkv"), "value", 2, "kv_seq is 7 by key"),
        (Case(source="key"), "key", 2, "q_seq is 5 by hidden"),
        (NORM, "q_norm_weight", 0, "num_heads is 4 by attributes"),
        (NORM, "k_norm_bias", 1, "head_dim is 8 by attributes"),
        (ROPE, "q_cos", 0, "batch is 2 by hidden"),
        (ROPE, "q_sin", 2, "q_seq is 5 by hidden"),
        (ROPE, "k_cos", 3, "rotary_embedding_dim is 8 by attributes"),
        (ROPE, "k_sin", 1, "kv_num_heads is 4 by attributes"),
        (Case(past=True), "past_key", 3, "head_dim is 8 by attributes"),
        (Case(past=True), "past_value", 2, "past_seq is 3 by past_key"),
        (Case(attn_bias="full"), "attn_bias", 1, "num_heads is 4 by attributes"),
        (Case(attn_bias="row"), "attn_bias", 0, "q_seq is 5 by hidden"),
        (Case(attn_bias="row", past=True), "attn_bias", 1, r"total_seq is 8 by past_seq \+ kv_seq"),
        (
            Case(attn_bias="row", source="kv"),
            "attn_bias",
            1,
            r"total_seq is 7 by past_seq \+ kv_seq",
        ),
        (MASK, "attn_mask", 3, r"total_seq is 5 by past_seq \+ kv_seq"),
        (Case(sinks=True), "sinks", 0, "num_heads is 4 by attributes"),
        (Case(gate="full"), "gate", 0, "batch is 2 by hidden"),
        (Case(gate="full"), "gate", 1, "q_seq is 5 by hidden"),
        (Case(gate="heads"), "gate", 2, "num_heads is 4 by attributes"),
        (Case(gate="rows"), "gate", 2, "v_head_dim is 8 by attributes"),
        (Case(), "out_weight", 0, "out_panels is 2 by attributes"),
        (Case(v_head_dim=5), "out_weight", 1, "merged_size is 20 by attributes"),
        (Case(), "out_bias", 0, "out_size is 18 by attributes"),
        (Case(dtype="bfloat16"), "qkv_weight", 1, "hidden_size is 24 by hidden"),
        (Case(dtype="bfloat16"), "out_weight", 1, "merged_size is 32 by attributes"),
        (Case(dtype="bfloat16"), "out_weight", 3, "it must be 2"),
    ],
    ids=str,
)
def test_wrong_dim_has_a_sentence(case: Case, operand: str, axis: int, sentence: str) -> None:
    block = cases.make(case)
    arguments = block.arguments()
    dtype, shape = arguments[operand]
    assert shape is not None
    wrong = 99
    changed = (*shape[:axis], wrong, *shape[axis + 1 :])
    found = f"2 \\* {wrong}" if dtype == schema.BFLOAT16 and axis == 1 else wrong
    expected = f"^operand {operand} has {found} in dim {axis}, but {sentence}$"
    with pytest.raises(InvalidBlock, match=expected):
        check(arguments | {operand: Argument(dtype, changed)}, block.attributes, block.outputs)


@pytest.mark.parametrize(
    ("case", "operand", "dims", "sentence"),
    [
        (Case(), "hidden", (24,), r"has 1 dims, expected \(batch, q_seq, hidden_size\)"),
        (Case(), "out_weight", (32, 18), r"has 2 dims, expected \(out_panels, merged_size, 16\)"),
        (
            Case(dtype="bfloat16"),
            "out_weight",
            (2, 32, 16),
            r"has 3 dims, expected \(out_panels, merged_size / 2, 16, 2\)",
        ),
        (Case(attn_bias="row"), "attn_bias", (1, 1, 1, 1, 1), "has 5 dims, expected .*"),
    ],
    ids=str,
)
def test_wrong_rank_has_a_sentence(
    case: Case, operand: str, dims: tuple[int, ...], sentence: str
) -> None:
    block = cases.make(case)
    arguments = block.arguments()
    arguments[operand] = Argument(arguments[operand].dtype, dims)
    with pytest.raises(InvalidBlock, match=f"^operand {operand} {sentence}$"):
        check(arguments, block.attributes)


@pytest.mark.parametrize(
    ("operand", "dtype", "sentence"),
    [
        ("hidden", onnx.TensorProto.FLOAT16, "is float16, expected float"),
        ("hidden", schema.BFLOAT16, "is bfloat16, expected float"),
        ("qkv_weight", onnx.TensorProto.DOUBLE, "is double, expected float or bfloat16"),
        ("attn_mask", schema.FLOAT, "is float, expected bool"),
        ("mask_fill", schema.BOOL, "is bool, expected float"),
    ],
    ids=str,
)
def test_wrong_type_has_a_sentence(operand: str, dtype: int, sentence: str) -> None:
    block = cases.make(MASK)
    arguments = block.arguments()
    arguments[operand] = Argument(dtype, arguments[operand].shape)
    with pytest.raises(InvalidBlock, match=f"^operand {operand} {sentence}$"):
        check(arguments, block.attributes)


@pytest.mark.parametrize("precision", schema.PRECISIONS)
def test_weights_may_be_bfloat16_at_every_precision(precision: schema.Precision) -> None:
    block = cases.make(Case(dtype="bfloat16"))
    check(block.arguments(), replace(block.attributes, precision=precision))


@pytest.mark.parametrize("buffered", [False, True])
def test_columns_of_a_bias_are_as_many_as_a_tensor_of_lengths_says(buffered: bool) -> None:
    block = cases.make(Case(past=True, attn_bias="row"))
    arguments = block.arguments() | {"attn_bias": Argument(schema.FLOAT, (1, 1, 1, 99))}
    if not buffered:
        with pytest.raises(InvalidBlock, match=r"^operand attn_bias has 99 in dim 3"):
            check(arguments, block.attributes, block.outputs)
        return
    lengths = dict.fromkeys(("seqlens_k", "total_sequence_length"), Argument(None, None))
    check(arguments | lengths, block.attributes, block.outputs)


@pytest.mark.parametrize("dims", [(), (5,), (1, 5), (4, 1, 1), (2, 1, 5, 1)], ids=str)
def test_bias_of_any_rank_that_broadcasts_is_fine(dims: tuple[int, ...]) -> None:
    block = cases.make(Case(attn_bias="row"))
    check(block.arguments() | {"attn_bias": Argument(schema.FLOAT, dims)}, block.attributes)
