"""Which blocks the pass fuses, what it names and shares, and where blocks may stand."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

import onnx_fuse
from onnx_fuse.op.schema import DOMAIN, Precision
from onnx_fuse.report import Code, Report
from tests.analysis.check import check_results, fused_nodes
from tests.analysis.samples.builder import Array
from tests.analysis.samples.forms import NUM_HEADS, SIZES, Form
from tests.analysis.samples.graphs import Writer, sample
from tests.sessions import plain_session

ROWS = SIZES["B"] * SIZES["S"]
STATIC, DYNAMIC = sample(Form()).model, sample(Form(dims="dynamic")).model
EMPTY = (
    Form(dims="dynamic"),
    Form(dims="dynamic", rope="interleaved"),
    Form(dims="dynamic", rope="complex", extra="softcap"),
    Form(dims="dynamic", mask="padding"),
    Form(dims="dynamic", mask="keep_twice", norm="l2"),
    Form(dims="dynamic", extra="sinks"),
)
THRESHOLD = "RLX_FUSE_ATTN_THRESHOLD"


def codes(report: Report) -> list[Code | None]:
    return [block.code for block in report.blocks]


# Size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "code"),
    [(ROWS, None), (ROWS - 1, Code.TOO_LARGE), (0, Code.DISABLED), (None, None), ("none", None)],
)
def test_threshold_is_inclusive(threshold: int | str | None, code: Code | None) -> None:
    assert codes(onnx_fuse.fuse(STATIC, threshold=threshold).report) == [code]


@pytest.mark.parametrize(
    ("setting", "code"), [(str(ROWS), None), (str(ROWS - 1), Code.TOO_LARGE), ("0", Code.DISABLED)]
)
def test_threshold_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, setting: str, code: Code | None
) -> None:
    monkeypatch.setenv(THRESHOLD, setting)
    assert codes(onnx_fuse.fuse(STATIC).report) == [code]
    assert codes(onnx_fuse.fuse(STATIC, threshold=ROWS).report) == [None]


def test_too_large_says_the_numbers() -> None:
    (block,) = onnx_fuse.fuse(STATIC, threshold=3).report.blocks
    assert block.reason == f"batch*q_seq = 2*5 = {ROWS} > threshold 3"
    assert block.hint == f"--threshold {ROWS} (or none) fuses it"
    assert (block.num_heads, block.batch, block.seq) == (NUM_HEADS, 2, 5)


def test_unknown_size_counts_as_small() -> None:
    (block,) = onnx_fuse.fuse(DYNAMIC, threshold=1).report.blocks
    assert block.status == "fused"
    assert (block.batch, block.seq) == ("B", "S")


@pytest.mark.parametrize(
    "bound",
    [{"batch": 3, "seq": 4}, {"dims": {"B": 3, "S": 4}}, {"batch": 3, "dims": {"S": 4}}],
    ids=["options", "dims", "both"],
)
def test_bound_size_is_judged_as_static(bound: dict[str, object]) -> None:
    assert codes(onnx_fuse.fuse(DYNAMIC, threshold=11, **bound).report) == [Code.TOO_LARGE]  # type: ignore[arg-type]
    assert codes(onnx_fuse.fuse(DYNAMIC, threshold=12, **bound).report) == [None]  # type: ignore[arg-type]


def test_one_bound_extent_is_not_enough() -> None:
    assert codes(onnx_fuse.fuse(DYNAMIC, threshold=1, seq=4).report) == [None]


def test_size_without_a_name_is_bound_by_its_axis() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(DYNAMIC)
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    assert codes(onnx_fuse.explain(model, threshold=11, batch=3, seq=4)) == [Code.TOO_LARGE]
    assert codes(onnx_fuse.explain(model, threshold=12, batch=3, seq=4)) == [None]
    assert codes(onnx_fuse.explain(model, threshold=11, batch=3)) == [None]


def test_size_of_an_axis_that_is_fixed_everywhere_is_noted() -> None:
    assert len(onnx_fuse.explain(STATIC, batch=3, seq=4).notes) == 2
    assert onnx_fuse.explain(DYNAMIC, batch=3, seq=4).notes == ()
    assert onnx_fuse.explain(STATIC).notes == ()


def test_name_that_no_input_has_is_refused_with_the_known_ones() -> None:
    with pytest.raises(onnx_fuse.InvalidOption, match=r"dim N=3: .*; known: B, S"):
        onnx_fuse.fuse(DYNAMIC, dims={"N": 3})
    with pytest.raises(onnx_fuse.InvalidOption, match="all of them are fixed"):
        onnx_fuse.explain(STATIC, dims={"B": 3})


def test_name_that_is_no_word_is_bound_too() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(DYNAMIC)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = f"size of {dim.dim_param}"
    bound = {"size of B": 3, "size of S": 4}
    assert codes(onnx_fuse.fuse(model, threshold=11, dims=bound).report) == [Code.TOO_LARGE]


@pytest.mark.parametrize(
    ("opset", "precision", "fused"),
    [
        (8, "fp32", False),
        (9, "fp32", True),
        (12, "bf16x3", True),
        (12, "bf16", False),
        (13, "bf16", True),
    ],
)
def test_older_opset_than_the_body_needs_is_declined(
    opset: int, precision: Precision, fused: bool
) -> None:
    model = _of_opset(opset)
    report = onnx_fuse.fuse(model, threshold=None, precision=precision).report
    assert codes(report) == [None if fused else Code.OLD_OPSET]
    explained = onnx_fuse.explain(model, threshold=None, precision=precision)
    assert explained.blocks == report.blocks


def _of_opset(opset: int) -> onnx.ModelProto:
    """Return the smallest attention, without an operator whose form depends on the opset."""
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        g (float[1,2,3,4] q, float[1,2,4,3] k, float[1,2,3,4] v) => (float[1,2,3,4] y) {{
            s = MatMul(q, k)
            p = Softmax <axis=3> (s)
            y = MatMul(p, v)
        }}""")
    onnx.checker.check_model(model)
    return model


def test_newer_opset_than_known_is_declined() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(STATIC)
    model.opset_import[0].version = 99
    result = onnx_fuse.fuse(model)
    assert codes(result.report) == [Code.NEW_OPSET]
    assert "opset 99 is newer than" in str(result.report.blocks[0].reason)
    assert result.model == model


def test_what_is_not_fused_is_left_as_it_was() -> None:
    result = onnx_fuse.fuse(STATIC, threshold=1)
    assert result.model.SerializeToString() == STATIC.SerializeToString()


def test_block_may_read_what_is_inside_of_an_earlier_one() -> None:
    """The earlier one then stays: the model would compute all of it for the later one."""
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,2,5,4] q, float[1,2,4,5] k, float[1,2,5,4] v, float[8,6] w)
          => (float[1,5,6] x, float[1,2,5,4] y)
        <int64[3] rows = {1, 5, 8}> {
            scores = MatMul(q, k)
            weights = Softmax <axis=3> (scores)
            context = MatMul(weights, v)
            turned = Transpose <perm=[0, 2, 1, 3]> (context)
            merged = Reshape(turned, rows)
            x = MatMul(merged, w)
            again = Transpose <perm=[0, 2, 1, 3]> (turned)
            other_scores = MatMul(again, k)
            other_weights = Softmax <axis=3> (other_scores)
            y = MatMul(other_weights, v)
        }""")
    result = onnx_fuse.fuse(model, threshold=None)
    assert codes(result.report) == [Code.SCORES_READ, None]
    random = np.random.default_rng(0)
    feeds = {
        value.name: random.standard_normal([d.dim_value for d in value.type.tensor_type.shape.dim])
        for value in model.graph.input
    }
    feeds = {name: data.astype(np.float32) for name, data in feeds.items()}
    expected, found = (plain_session(each).run(None, feeds) for each in (model, result.model))
    for own, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, own, atol=1e-5)


# Bodies and weights -------------------------------------------------------------------------------


def layers(*forms: Form) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return one attention after the other, each with its own weights, over one hidden state."""
    parts = [Writer(form, seed).sample() for seed, form in enumerate(forms)]
    models = [
        onnx.compose.add_prefix(part.model, f"layer{number}/", rename_inputs=True)
        for number, part in enumerate(parts)
    ]
    joined = models[0]
    for model in models[1:]:
        joined = onnx.compose.merge_models(joined, model, io_map=[])
    feeds = {
        f"layer{number}/{name}": data
        for number, part in enumerate(parts)
        for name, data in part.feeds.items()
    }
    return joined, feeds


def check_layers(forms: tuple[Form, ...], op_types: list[str]) -> onnx.ModelProto:
    model, feeds = layers(*forms)
    fused = onnx_fuse.fuse(model, threshold=None).model
    nodes = sorted(fused_nodes(fused), key=lambda node: node.input[0])  # layer0/hidden, layer1/...
    assert [node.op_type for node in nodes] == op_types
    assert sorted(f.name for f in fused.functions) == sorted(set(op_types))
    expected = plain_session(model).run(None, feeds)
    check_results(plain_session(fused).run(None, feeds), expected)
    return fused


BLOCK, CROSS = "FusedAttentionBlock", "FusedCrossAttentionBlock"


def test_equal_layers_share_one_body() -> None:
    check_layers((Form(), Form(projection="packed_3nd", order="3d")), [BLOCK, BLOCK])


def test_layers_with_and_without_a_mask_share_one_body() -> None:
    fused = check_layers((Form(), Form(mask="add2")), [BLOCK, BLOCK])
    operands = [{a.name: a for a in n.attribute}["operands"].s for n in fused_nodes(fused)]
    assert operands[0] == operands[1]
    assert b"attn_bias" in operands[0]


def test_layers_of_two_shapes_have_two_bodies() -> None:
    forms = (Form(), Form(rope="half"), Form(), Form(norm="rms"))
    check_layers(forms, [BLOCK, f"{BLOCK}_2", BLOCK, f"{BLOCK}_3"])


def test_cross_attention_is_an_operator_of_its_own() -> None:
    check_layers((Form(), Form(extra="cross")), [BLOCK, CROSS])


MANY = tuple(
    Form(rope=rope, norm=norm)
    for rope in ("none", "half", "partial", "interleaved")
    for norm in ("none", "rms", "layer")
)


def test_ninth_body_is_declined() -> None:
    model, feeds = layers(*MANY)
    result = onnx_fuse.fuse(model, threshold=None)
    found = codes(result.report)
    assert found.count(None) == 8
    assert found[8:] == [Code.TOO_MANY_FORMS] * 4
    expected = plain_session(model).run(None, feeds)
    check_results(plain_session(result.model).run(None, feeds), expected)


def test_same_weights_are_written_once() -> None:
    writer = Writer(Form(projection="no_bias"))
    first = writer.sample()
    again = onnx.compose.add_prefix(first.model, "b/", rename_initializers=False)
    joined = onnx.ModelProto()
    joined.CopyFrom(first.model)
    joined.graph.node.extend(again.graph.node)
    joined.graph.input.extend(again.graph.input)
    joined.graph.output.extend(again.graph.output)
    fused = onnx_fuse.fuse(joined, threshold=None).model
    nodes = fused_nodes(fused)
    assert len(nodes) == 2
    assert list(nodes[0].input[1:]) == list(nodes[1].input[1:])


def test_without_fallback_there_is_no_body() -> None:
    model = onnx_fuse.fuse(STATIC, threshold=None, fallback=False).model
    assert len(fused_nodes(model)) == 1
    assert not model.functions
    assert DOMAIN in {opset.domain for opset in model.opset_import}


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("fp32", TensorProto.FLOAT),
        ("bf16x3", TensorProto.FLOAT),
        ("bf16", TensorProto.BFLOAT16),
    ],
)
def test_precision_is_the_weights_and_the_nodes(precision: str, dtype: int) -> None:
    model = onnx_fuse.fuse(STATIC, threshold=None, precision=precision).model  # type: ignore[arg-type]
    (node,) = fused_nodes(model)
    assert {a.name: a for a in node.attribute}["precision"].s.decode() == precision
    types = {t.name: t.data_type for t in model.graph.initializer}
    assert types[node.input[1]] == dtype


@pytest.mark.parametrize(("rows", "dtype"), [(4, TensorProto.BFLOAT16), (5, TensorProto.FLOAT)])
def test_a_weight_of_an_odd_number_of_rows_stays_float32(rows: int, dtype: int) -> None:
    numbers = ", ".join(str(i / 8) for i in range(6 * rows))
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,1,3,{rows}] q, float[1,1,{rows},3] k, float[1,1,3,{rows}] v) => (float[1,3,6] y)
        <float[{rows},6] w = {{ {numbers} }}, int64[3] shape = {{1, 3, {rows}}}> {{
            s = MatMul(q, k)
            p = Softmax <axis=3> (s)
            c = MatMul(p, v)
            t = Transpose <perm=[0,2,1,3]> (c)
            r = Reshape(t, shape)
            y = MatMul(r, w)
        }}""")
    fused = onnx_fuse.fuse(model, threshold=None, precision="bf16").model
    (node,) = fused_nodes(fused)
    types = {t.name: t.data_type for t in fused.graph.initializer}
    assert types[node.input[3]] == dtype


# Places -------------------------------------------------------------------------------------------


def in_a_branch() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Attention in one branch of an If, over a tensor that the branch captures."""
    made = sample(Form())
    body = made.model.graph
    inputs = list(body.input)
    del body.input[:]
    other = helper.make_graph(
        [helper.make_node("Slice", ["hidden", "zero", "ten", "two"], ["cut"], "cut")],
        "other",
        [],
        [helper.make_tensor_value_info("cut", TensorProto.FLOAT, [None] * 3)],
        [
            onnx.numpy_helper.from_array(np.array([number], np.int64), name)
            for name, number in (("zero", 0), ("ten", 10), ("two", 2))
        ],
    )
    node = helper.make_node("If", ["is_on"], ["y"], "choice", then_branch=body, else_branch=other)
    switch = helper.make_tensor_value_info("is_on", TensorProto.BOOL, [])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 3)
    graph = helper.make_graph([node], "outer", [*inputs, switch], [output])
    model = helper.make_model(graph, opset_imports=made.model.opset_import, ir_version=9)
    return model, made.feeds | {"is_on": np.array(True)}


def in_both_branches() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Attention in both branches of an If, with the same weights around them."""
    model, feeds = in_a_branch()
    branches = {attribute.name: attribute.g for attribute in model.graph.node[0].attribute}
    then, other = branches["then_branch"], branches["else_branch"]
    model.graph.initializer.extend(then.initializer)
    del then.initializer[:]
    other.CopyFrom(then)
    return model, feeds


def in_a_function() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Attention in a model-local function, its weights Constant nodes."""
    made = sample(Form())
    graph = made.model.graph
    constants = [
        helper.make_node("Constant", [], [tensor.name], tensor.name, value=tensor)
        for tensor in graph.initializer
    ]
    result = graph.output[0].name
    function = helper.make_function(
        "user",
        "Attention",
        ["hidden"],
        [result],
        [*constants, *graph.node],
        made.model.opset_import,
    )
    call = helper.make_node("Attention", ["hidden"], ["y"], "call", domain="user")
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 3)
    outer = helper.make_graph([call], "outer", list(graph.input), [output])
    imports = [*made.model.opset_import, helper.make_opsetid("user", 1)]
    model = helper.make_model(outer, opset_imports=imports, functions=[function], ir_version=9)
    return model, made.feeds


@pytest.mark.parametrize(
    ("make", "count"), [(in_a_branch, 1), (in_both_branches, 2), (in_a_function, 1)]
)
def test_block_is_fused_where_it_stands(
    make: Callable[[], tuple[onnx.ModelProto, dict[str, Array]]], count: int
) -> None:
    model, feeds = make()
    onnx.checker.check_model(model)
    result = onnx_fuse.fuse(model, threshold=None)
    assert codes(result.report) == [None] * count
    assert not fused_nodes(result.model)  # but inside
    onnx.checker.check_model(result.model)
    expected = plain_session(model).run(None, feeds)
    check_results(plain_session(result.model).run(None, feeds), expected)
    again = onnx_fuse.fuse(result.model, threshold=None)
    assert again.model.SerializeToString() == result.model.SerializeToString()


def test_branches_share_the_weights_around_them() -> None:
    model, feeds = in_both_branches()
    fused = onnx_fuse.fuse(model, threshold=None).model
    branches = [attribute.g for attribute in fused.graph.node[0].attribute]
    large = [tensor.name for tensor in fused.graph.initializer if len(tensor.dims) == 3]
    assert len(large) == 2  # of Q, K and V together, and of the output
    for branch in branches:
        (node,) = (node for node in branch.node if node.domain == "onnx_fuse")
        assert {*large} <= {*node.input}
        assert not [tensor for tensor in branch.initializer if len(tensor.dims) == 3]
    back = onnx_fuse.unfuse(fused)
    for is_on in (True, False):
        given = feeds | {"is_on": np.array(is_on)}
        expected = plain_session(model).run(None, given)
        check_results(plain_session(back).run(None, given), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_result_can_be_copied_and_pickled(
    copied: Callable[[onnx_fuse.FuseResult], onnx_fuse.FuseResult], tmp_path: Path
) -> None:
    result = onnx_fuse.fuse(STATIC)
    other = copied(result)
    assert other.model.SerializeToString() == result.model.SerializeToString()
    assert other.report == result.report
    other.save(tmp_path / "fused.onnx")
    assert (tmp_path / "fused.onnx").read_bytes() == result.model.SerializeToString()


@pytest.mark.parametrize(
    "name",
    [
        "gemm_input_shape",
        "gemm_output_shape_token_3",
        "gemm_output_reshape_new_shape",
        "_inlfunc_FusedAttentionBlock_token_0_constant_3",
    ],
)
def test_names_that_onnxruntime_takes_for_itself_are_freed(name: str) -> None:
    model = onnx.ModelProto.FromString(STATIC.SerializeToString())
    shape = helper.make_tensor(name, TensorProto.INT64, [1], [-1])
    flat = helper.make_node("Reshape", [model.graph.output[0].name, name], ["flat"])
    model.graph.initializer.append(shape)
    model.graph.node.append(flat)
    model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, None))
    fused = onnx_fuse.fuse(model, threshold=None).model
    names = [tensor.name for tensor in fused.graph.initializer]
    assert name not in names
    assert fused.graph.node[-1].input[1] in names
    untouched = onnx_fuse.fuse(model, threshold=0).model
    assert untouched.SerializeToString() == model.SerializeToString()


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all its float32 inputs, weights and outputs as float16."""
    half = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            data = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(data, tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return half


def test_block_of_float16_is_fused_between_casts() -> None:
    made = sample(Form())
    model, feeds = in_half(made.model), {k: v.astype(np.float16) for k, v in made.feeds.items()}
    fused = onnx_fuse.fuse(model, threshold=None).model
    assert len(fused_nodes(fused)) == 1
    onnx.checker.check_model(fused, full_check=True)
    (expected,), (found,) = (plain_session(m).run(None, feeds) for m in (model, fused))
    assert found.dtype == np.float16
    # Of five products each rounds its result once to float16.
    bound = 5 * 2.0**-10 * float(np.abs(expected).max())
    np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=0, atol=bound)


@pytest.mark.parametrize("form", EMPTY, ids=str)
def test_batch_of_nothing_runs(form: Form) -> None:
    made = sample(form)
    feeds = {
        given.name: made.feeds[given.name][:0]
        for given in made.model.graph.input
        if given.type.tensor_type.shape.dim[0].dim_param == "B"
    }
    feeds = made.feeds | feeds
    result = onnx_fuse.fuse(made.model, threshold=None).model
    expected = [output.shape for output in plain_session(made.model).run(None, feeds)]
    for session in (onnx_fuse.session(result), plain_session(result)):
        assert [output.shape for output in session.run(None, feeds)] == expected
