"""The function body computes what the reference says, in every opset and on every host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnx_fuse.op import schema
from onnx_fuse.op.form import OLDEST_OPSET, Form, form_of, neutral
from tests import sessions
from tests.op import cases
from tests.op.cases import Block, Case

LEVELS = {"off": sessions.LEVELS.ORT_DISABLE_ALL, "on": sessions.LEVELS.ORT_ENABLE_ALL}
MIDDLE = {
    "basic": sessions.LEVELS.ORT_ENABLE_BASIC,
    "extended": sessions.LEVELS.ORT_ENABLE_EXTENDED,
}


def session(model: onnx.ModelProto, level: str) -> onnxruntime.InferenceSession:
    return sessions.plain_session(model, (LEVELS | MIDDLE)[level])


def loads(opset: int) -> bool:
    """Return whether the installed onnxruntime knows this opset."""
    x = helper.make_tensor_value_info("x", schema.FLOAT, [1])
    y = helper.make_tensor_value_info("y", schema.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    opsets = [helper.make_opsetid("", opset)]
    try:
        session(helper.make_model(graph, opset_imports=opsets, ir_version=8), "off")
    except Exception:
        return False
    return True


OLDEST, NEWEST = OLDEST_OPSET, onnx.defs.onnx_opset_version()
OPSETS = tuple(opset for opset in range(OLDEST, NEWEST + 1) if loads(opset))


def table() -> list[Any]:
    """Return (case, opset, seed) in which every pair of features or feature and opset occurs."""
    rows = []
    for number, row in enumerate(cases.pairwise({"opset": OPSETS} | cases.FEATURES)):
        opset = row.pop("opset")
        if opset < 13:
            row["dtype"] = "float32"
        rows.append(pytest.param(Case(**row), opset, number, id=f"{number}-opset{opset}"))
    return rows


def assert_equal(found: list[NDArray[Any]], block: Block, tolerance: float | None = None) -> None:
    expected = cases.expected(block)
    tolerance = cases.tolerance(block) if tolerance is None else tolerance
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance, equal_nan=True)


TABLE = table()


@pytest.mark.parametrize(("case", "opset", "seed"), TABLE)
def test_body_computes_the_reference(case: Case, opset: int, seed: int) -> None:
    block = cases.make(case, seed)
    model = cases.model(block, opset)
    onnx.checker.check_model(model, full_check=True)
    feeds = cases.feeds(block.operands)
    for level in (*LEVELS, list(MIDDLE)[seed % 2]):
        assert_equal(session(model, level).run(None, feeds), block)


SMALL = st.integers(1, 3)
SIZES = st.builds(
    cases.Sizes,
    batch=SMALL,
    q_seq=SMALL,
    other_seq=SMALL,
    past_seq=st.integers(0, 2),
    num_heads=st.sampled_from((2, 4, 6)),
    head_dim=st.sampled_from((4, 6, 18)),
    hidden=st.integers(1, 20),
    context=SMALL,
    value_context=SMALL,
    out=st.integers(1, 40),
)


@given(sizes=SIZES, row=st.sampled_from(TABLE))
@settings(max_examples=100, deadline=None)
def test_body_computes_the_reference_at_any_size(sizes: cases.Sizes, row: Any) -> None:
    case, opset, seed = row.values
    block = cases.make(case, seed, sizes)
    found = session(cases.model(block, opset), "on").run(None, cases.feeds(block.operands))
    assert_equal(found, block)


# Case, operand, index: an infinity or NaN there.
NON_FINITE = [
    (Case(), "hidden", (0, 2, 3)),
    (Case(attn_bias="row"), "attn_bias", (2, 3)),
    (Case(attn_bias="row", is_causal=1), "attn_bias", (2, 3)),
    (Case(source="kv", mask="bool_inf"), "value", (0, 1, 3, 2)),
    (Case(source="kv", out="none"), "key", (0, 1, 3, 2)),
    (Case(source="kv", out="none", zero_nan=1), "key", (0, 1, 3, 2)),
    (Case(source="kv", out="none", zero_nan=2), "key", (0, 1, 3, 2)),
    (Case(attn_bias="row", zero_nan=2), "attn_bias", (2, 3)),
    (Case(source="kv", out="none", softcap=1.5), "key", (0, 1, 3, 2)),
    (Case(source="kv", out="none", norm="l2"), "key", (0, 1, 3, 2)),
    (Case(sinks=True, out="none"), "sinks", (1,)),
    (Case(mask="bool", out="none"), "mask_fill", ()),
]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("row", NON_FINITE, ids=str)
@pytest.mark.parametrize("level", LEVELS)
def test_non_finite_numbers_go_where_the_reference_sends_them(
    row: tuple[Case, str, tuple[int, ...]], value: float, level: str
) -> None:
    case, operand, index = row
    block = cases.make(case)
    block.operands[operand][index] = value
    found = session(cases.model(block, 17), level).run(None, cases.feeds(block.operands))
    # Finite numbers have a test of their own; infinite operands have no tolerance.
    for one, other in zip(found, cases.expected(block), strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
        np.testing.assert_array_equal(
            np.isinf(one) * np.sign(one), np.isinf(other) * np.sign(other)
        )


@pytest.mark.parametrize(("case", "opset", "seed"), TABLE)
def test_body_runs_in_the_onnx_reference(case: Case, opset: int, seed: int) -> None:
    if case.dtype == "bfloat16" and NEWEST < 25:
        pytest.skip("this onnx.reference has no bfloat16")
    block = cases.make(case, seed)
    evaluator = ReferenceEvaluator(cases.model(block, opset))
    with np.errstate(all="ignore"):
        assert_equal(evaluator.run(None, cases.feeds(block.operands)), block)


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.2501},
        {"softcap": 1.501},
        {"interleaved": 1},
        {"q_norm_epsilon": 1e-3},
        {"k_norm": "layer"},
        {"is_causal": 0},
    ],
    ids=str,
)
def test_wrong_attribute_is_outside_the_tolerance(change: dict[str, Any]) -> None:
    block = cases.make(Case(norm="rms", rope="partial", softcap=1.5, is_causal=1))
    wrong = replace(block, attributes=replace(block.attributes, **change))
    found = session(cases.model(wrong, 17), "on").run(None, cases.feeds(block.operands))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_equal(found, block)


@pytest.mark.parametrize("name", ["qkv_weight", "qkv_bias", "attn_bias", "out_weight", "out_bias"])
def test_wrong_operand_is_outside_the_tolerance(name: str) -> None:
    block = cases.make(Case(attn_bias="row"))
    expected = [out.astype(np.float32) for out in cases.expected(block)]
    wrong = {other: array.copy() for other, array in block.operands.items()}
    wrong[name].flat[3] += 1e-2
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_equal(expected, replace(block, operands=wrong), cases.tolerance(block))


def body_of(case: Case, opset: int = 17) -> onnx.FunctionProto:
    return cases.model(cases.make(case), opset).functions[0]


def steps(body: onnx.FunctionProto) -> list[str]:
    """Return the op types of the nodes that depend on an input, but for what unpacks a weight."""
    constant = {name for name in body.input if cases.is_constant(name)}
    found = []
    for node in body.node:
        if all(name in constant for name in node.input):
            constant.update(node.output)
        else:
            found.append(node.op_type)
    return found


PROJECTED = ["MatMul", "Add", "Reshape", "Transpose"]
PLAIN = [*PROJECTED * 3, "MatMul", "Mul", "Softmax", "MatMul", "Transpose", "Reshape"]
LONE = ["MatMul", "Add", "Unsqueeze"]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (Case(), [*PLAIN, "MatMul", "Add"]),
        (Case(scale=1.0), [*(op for op in PLAIN if op != "Mul"), "MatMul", "Add"]),
        (Case(out="none"), PLAIN),
        (
            Case(heads="lone", out="none"),
            [*LONE * 2, "Transpose", *LONE, "MatMul", "Mul", "Softmax", "MatMul", "Squeeze"],
        ),
        (Case(source="qkv", out="none"), ["Transpose", *PLAIN[12:]]),
        (
            Case(source="qkv", out="none", heads="grouped"),
            [
                "Transpose",
                "Reshape",
                "MatMul",
                "Mul",
                "Reshape",
                "Softmax",
                "Reshape",
                "MatMul",
                "Reshape",
                "Transpose",
                "Reshape",
            ],
        ),
    ],
    ids=["plain", "no scale", "no projection", "lone head", "values", "grouped"],
)
def test_body_has_the_steps_of_an_exported_graph(case: Case, expected: list[str]) -> None:
    assert steps(body_of(case)) == expected


@pytest.mark.parametrize(
    ("norm", "op", "oldest"),
    [("layer", "LayerNormalization", 17), ("rms", "RMSNormalization", 23)],
)
def test_a_norm_is_an_operator_where_there_is_one(norm: str, op: str, oldest: int) -> None:
    assert steps(body_of(Case(norm=norm), oldest)).count(op) == 2
    assert op not in steps(body_of(Case(norm=norm), oldest - 1))


@pytest.mark.parametrize(
    ("case", "added"),
    [
        (Case(attn_bias="row"), ["Add"]),
        (Case(mask="bool"), ["Where"]),
        (Case(zero_nan=1), ["IsNaN", "Where"]),
        (Case(zero_nan=2), ["Less", "Not", "Cast", "ReduceL1", "Less", "Where"]),
        (Case(softcap=1.0), ["Div", "Tanh", "Mul"]),
        (Case(sinks=True), ["Reshape", "Shape", "Slice", "Concat", "Expand", "Concat", "Slice"]),
        (Case(gate="full"), ["Reshape", "Mul", "Reshape"]),
    ],
    ids=["bias", "mask", "zero_nan", "zero_empty", "softcap", "sinks", "gate"],
)
def test_feature_adds_its_own_steps_only(case: Case, added: list[str]) -> None:
    assert sorted(steps(body_of(case))) == sorted([*steps(body_of(Case())), *added])


@pytest.mark.parametrize("opset", [OLDEST, 12, NEWEST])
def test_body_names_its_operands_outputs_and_attributes(opset: int) -> None:
    block = cases.make(Case(past=True, rope="half"))
    body = cases.model(block, opset).functions[0]
    assert (body.domain, body.name) == ("onnx_fuse", "FusedAttentionBlock")
    assert list(body.input) == list(block.operands)
    assert list(body.output) == ["output", "present_key", "present_value"]
    assert set(body.attribute) == set(block.attributes.to_onnx(block.operands))
    assert [(row.domain, row.version) for row in body.opset_import] == [("", opset)]
    inner = [name for node in body.node for name in node.output]
    assert len(set(inner) | set(body.input)) == len(inner) + len(body.input)
    node_names = [node.name for node in body.node]  # onnxruntime 1.20 makes others of them
    assert all(node_names)
    assert len(set(node_names)) == len(node_names)


@pytest.mark.parametrize("opset", [OLDEST, NEWEST])
def test_body_holds_no_weights(opset: int) -> None:
    body = body_of(
        Case(norm="layer_bias", rope="partial", past=True, is_causal=1, sinks=True), opset
    )
    assert body.ByteSize() < 20_000
    constants = [node.attribute[0].t for node in body.node if node.op_type == "Constant"]
    assert max(np.prod(tensor.dims) for tensor in constants) <= 4


def test_equal_forms_have_equal_bytes() -> None:
    one, other = (body_of(Case(rope="half", heads="grouped")) for _ in range(2))
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def test_sizes_are_not_part_of_the_form() -> None:
    def form(opset: int, **sizes: Any) -> Form:
        block = cases.make(Case())
        attributes = replace(block.attributes, **sizes)
        return form_of(block.op_type, block.arguments(), attributes, 1, opset)

    assert form(12) == form(12, num_heads=8, kv_num_heads=8, head_dim=16, out_size=4, scale=0.5)
    assert form(12) != form(12, scale=1.0)
    assert form(12) != form(12, kv_num_heads=2)
    assert form(11) != form(11, num_heads=8, kv_num_heads=8)


@pytest.mark.parametrize(
    ("operand", "lacking"),
    [
        ("attn_bias", Case()),
        ("attn_mask", Case()),
        ("sinks", Case()),
        ("qkv_bias", Case(bias="none")),
        ("out_bias", Case(out="plain")),
        ("q_bias", Case(source="split", bias="none")),
        ("k_bias", Case(source="split", bias="none", heads="one")),
        ("v_bias", Case(source="split", bias="none", v_head_dim=5)),
    ],
    ids=str,
)
@pytest.mark.parametrize("level", LEVELS)
def test_neutral_operand_changes_nothing(operand: str, lacking: Case, level: str) -> None:
    block = cases.make(lacking)
    given = ["attn_mask", "mask_fill"] if operand == "attn_mask" else [operand]
    operands = block.operands | {name: neutral(name, block.attributes) for name in given}
    more = replace(block, operands={name: operands[name] for name in schema.in_order(operands)})
    without, found = (
        session(cases.model(one, 17), level).run(None, cases.feeds(one.operands))
        for one in (block, more)
    )
    np.testing.assert_array_equal(found[0], without[0])


def test_operand_without_neutral_value_is_refused() -> None:
    with pytest.raises(schema.InvalidBlock, match="q_cos has no neutral value"):
        neutral("q_cos", cases.make(Case()).attributes)


@pytest.mark.parametrize(
    ("case", "opset", "sentence"),
    [
        (Case(), 8, "opset 8 is older than 9"),
        (Case(dtype="bfloat16"), 12, "qkv_weight is bfloat16, which opset 12 cannot cast"),
    ],
    ids=["opset", "bfloat16"],
)
def test_form_is_refused(case: Case, opset: int, sentence: str) -> None:
    with pytest.raises(schema.InvalidBlock, match=sentence):
        cases.model(cases.make(case), opset)


@pytest.mark.parametrize("opset", [12, 17, min(20, NEWEST)])
def test_blocks_of_two_sizes_share_one_body(opset: int) -> None:
    first = cases.make(Case(bias="none", out="plain"))
    sizes = {"num_heads": 2, "kv_num_heads": 2, "head_dim": 16, "v_head_dim": 16, "scale": 0.5}
    second = replace(first, attributes=replace(first.attributes, **sizes))
    model = cases.model(first, opset)
    node = model.graph.node.add()
    node.CopyFrom(model.graph.node[0])
    node.output[0] = "second"
    for attribute in node.attribute:
        if attribute.name in sizes:
            kept = helper.make_attribute(attribute.name, sizes[attribute.name])
            attribute.CopyFrom(kept)
    model.graph.output.append(helper.make_tensor_value_info("second", schema.FLOAT, [None] * 3))
    feeds = cases.feeds(first.operands)
    for level in LEVELS:
        found = session(model, level).run(None, feeds)
        assert_equal(found[:1], first)
        assert_equal(found[1:], second)


@pytest.mark.parametrize("opset", [OLDEST, 17, max(OPSETS)])
def test_inlined_body_is_standard_onnx_and_computes_the_same(opset: int) -> None:
    block = cases.make(Case(rope="half", heads="grouped", attn_bias="row", present=True))
    plain = onnx.inliner.inline_local_functions(cases.model(block, opset))
    assert {node.domain for node in plain.graph.node} == {""}
    onnx.checker.check_model(plain, full_check=True)
    assert_equal(session(plain, "on").run(None, cases.feeds(block.operands)), block)


@pytest.mark.skipif(NEWEST < 25, reason="this onnx infers no more than ranks")
def test_shapes_are_inferred_through_the_body() -> None:
    block = cases.make(Case(present=True))
    model = cases.model(block, 17)
    for value in model.graph.input:
        for axis, name in enumerate(("batch", "seq")):
            value.type.tensor_type.shape.dim[axis].dim_param = name
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in inferred.graph.output
    ]
    assert [shape[:1] for shape in shapes] == [["batch"]] * 3
    assert [len(shape) for shape in shapes] == [3, 4, 4]
