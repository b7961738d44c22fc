"""GroupQueryAttention with its projections, whatever the lengths are, and what is declined."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.check import fused, fused_nodes
from tests.analysis.samples.builder import Array
from tests.op.buffers import LATEST, LENGTHS, POSITIONS, Lengths, resident
from tests.sessions import plain_session

NUM_HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 4, 2, 16, 24
WIDTHS = (NUM_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM)
CACHE = "past_key,past_value,seqlens_k,total_sequence_length"
BY_PLACE = f"cos_cache,sin_cache,{CACHE}"
BY_IDS = f"cos_cache,sin_cache,position_ids,{CACHE}"
# What is compared to the original: float32 sums of at most 300 products, after each other.
TOLERANCE = 2e-5

VERSION = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
HAS_OPERATOR = VERSION >= (1, 20)
pytestmark = pytest.mark.skipif(not HAS_OPERATOR, reason="this onnxruntime has no such kernel")


@dataclass
class Form:
    """How a graph writes the operator and what stands around it."""

    # "apart" or "packed"; "values": not projected; "values projected": only V is
    queries: str = "packed"
    bias: bool = False
    norm: bool = False
    out: bool = True
    sources: str = "xxx"  # the inputs from which queries, keys and values are projected
    rotated: bool = False  # queries and keys are rotated before, too
    inputs: dict[int, tuple[int, list[int | str]]] = field(default_factory=dict)  # type, dims
    attributes: dict[str, Any] = field(default_factory=lambda: {"do_rotary": 1})
    without: tuple[int, ...] = ()
    lengths: tuple[int | str, ...] = ()  # axes of the lengths behind the batch
    dtype: int = TensorProto.FLOAT
    since: tuple[int, int] = (1, 20)  # the first onnxruntime whose operator has all of it


class Writer:
    """Writes the nodes of one form."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def const(self, data: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(data, name))
        return name

    def weight(self, *shape: int) -> str:
        return self.const((self.random.standard_normal(shape) / 5).astype(np.float32))

    def input(self, name: str, dtype: int, dims: list[int | str]) -> str:
        if name not in [value.name for value in self.inputs]:
            self.inputs.append(helper.make_tensor_value_info(name, dtype, dims))
        return name

    def projected(self, width: int, heads: int, source: str = "x") -> str:
        if self.form.queries.startswith("values") and (heads or self.form.queries == "values"):
            return self.input(f"x{len(self.inputs)}", self.form.dtype, ["b", "s", width])
        x = self.input(source, self.form.dtype, ["b", "s", HIDDEN])
        made = self.op("MatMul", x, self.weight(HIDDEN, width))
        if self.form.bias:
            made = self.op("Add", made, self.weight(width))
        if self.form.norm and heads:
            shape = self.const(np.array([0, 0, heads, HEAD_DIM]))
            split = self.op("Reshape", made, shape)
            normed = self.op("LayerNormalization", split, self.weight(HEAD_DIM), axis=-1)
            made = self.op("Reshape", normed, self.const(np.array([0, 0, width])))
        return self.rotated(made, width, heads) if self.form.rotated and heads else made

    def rotated(self, value: str, width: int, heads: int) -> str:
        """Rotate the halves of each head against each other."""
        split = self.op("Reshape", value, self.const(np.array([0, 0, heads, HEAD_DIM])))
        half, end, last = (self.const(np.array([n])) for n in (HEAD_DIM // 2, HEAD_DIM, -1))
        first = self.op("Slice", split, self.const(np.array([0])), half, last)
        second = self.op("Slice", split, half, end, last)
        turned = self.op("Concat", self.op("Neg", second), first, axis=-1)
        tables = [
            self.input(name, self.form.dtype, ["b", "s", 1, HEAD_DIM])
            for name in ("cosine", "sine")
        ]
        parts = [self.op("Mul", *pair) for pair in zip((split, turned), tables, strict=True)]
        return self.op("Reshape", self.op("Add", *parts), self.const(np.array([0, 0, width])))

    def model(self) -> onnx.ModelProto:
        form, dtype = self.form, self.form.dtype
        slots = [""] * 18
        if form.queries == "packed" or (form.queries == "values" and not form.norm):
            slots[0] = self.projected(sum(WIDTHS), 0)
        else:
            heads = (NUM_HEADS, KV_HEADS, 0)
            slots[:3] = map(self.projected, WIDTHS, heads, form.sources)
        cache: list[int | str] = ["b", KV_HEADS, "p", HEAD_DIM]
        slots[3:5] = [self.input(name, dtype, cache) for name in ("past_key", "past_value")]
        slots[5] = self.input("seqlens_k", TensorProto.INT32, ["b", *form.lengths])
        slots[6] = self.input("total", TensorProto.INT32, [1])
        if form.attributes.get("do_rotary"):
            table: list[int | str] = [10 * POSITIONS, HEAD_DIM // 2]
            slots[7:9] = [self.input(name, dtype, table) for name in ("cos", "sin")]
        for position, (kind, dims) in form.inputs.items():
            slots[position] = self.input(f"extra_{position}", kind, dims)
        for position in form.without:
            slots[position] = ""
        while not slots[-1]:
            slots.pop()
        outputs = ["context", "present_key", "present_value"]
        attributes = {"num_heads": NUM_HEADS, "kv_num_heads": KV_HEADS} | form.attributes
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention", slots, outputs, domain="com.microsoft", **attributes
            )
        )
        result = "context"
        if form.out:
            result = self.op("MatMul", "context", self.weight(WIDTHS[0], HIDDEN))
        shown = [
            helper.make_tensor_value_info(name, dtype, None) for name in (result, *outputs[1:])
        ]
        graph = helper.make_graph(self.nodes, "g", self.inputs, shown, self.constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def feeds_of(model: onnx.ModelProto, lengths: Lengths) -> dict[str, Array]:
    random = np.random.default_rng(1)
    sizes = {"b": len(lengths.each), "s": lengths.q_seq, "p": lengths.past}
    sizes["t"] = lengths.total
    (seqlens,) = (value for value in model.graph.input if value.name == "seqlens_k")
    axes = len(seqlens.type.tensor_type.shape.dim)
    feeds: dict[str, Array] = {
        "seqlens_k": np.array(lengths.each, np.int32).reshape([-1] + [1] * (axes - 1)) - 1,
        "total": np.array([lengths.total], np.int32),
        f"extra_{POSITION_IDS}": random.integers(0, POSITIONS, (sizes["b"], sizes["s"])),
    }
    for value in model.graph.input:
        if value.name not in feeds:
            dims = value.type.tensor_type.shape.dim
            shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in dims]
            feeds[value.name] = random.standard_normal(shape).astype(np.float32)
    return {value.name: feeds[value.name] for value in model.graph.input}


POSITION_IDS, BIAS, SINK = 9, 10, 11
VALUES = "query,key,value"
FORMS: dict[str, tuple[Form, str]] = {
    "packed": (Form(), f"hidden,qkv_weight,{BY_PLACE},out_weight"),
    "packed with bias": (Form(bias=True), f"hidden,qkv_weight,qkv_bias,{BY_PLACE},out_weight"),
    "apart": (Form("apart"), f"hidden,qkv_weight,{BY_PLACE},out_weight"),
    "normed": (
        Form("apart", norm=True, bias=True),
        f"hidden,qkv_weight,qkv_bias,q_norm_weight,k_norm_weight,{BY_PLACE},out_weight",
    ),
    "apart, the values of another source": (
        Form("apart", sources="xxy"),
        f"hidden,value,q_weight,k_weight,{BY_PLACE},out_weight",
    ),
    "apart, keys and values of another source": (
        Form("apart", sources="xyy"),
        f"hidden,key,value,q_weight,{BY_PLACE},out_weight",
    ),
    "rotated before": (
        Form("apart", rotated=True),
        f"hidden,query,key,v_weight,{BY_PLACE},out_weight",
    ),
    "no output projection": (Form(out=False), f"hidden,qkv_weight,{BY_PLACE}"),
    "interleaved": (
        Form(attributes={"do_rotary": 1, "rotary_interleaved": 1}),
        f"hidden,qkv_weight,{BY_PLACE},out_weight",
    ),
    "no rotation": (Form(attributes={"do_rotary": 0}), f"hidden,qkv_weight,{CACHE},out_weight"),
    "scaled and capped": (
        Form(attributes={"do_rotary": 1, "scale": 0.4, "softcap": 2.0}),
        f"hidden,qkv_weight,{BY_PLACE},out_weight",
    ),
    "window": (
        Form(attributes={"do_rotary": 1, "local_window_size": 3}),
        f"hidden,qkv_weight,{BY_PLACE},out_weight",
    ),
    "capped window": (
        Form(attributes={"do_rotary": 1, "local_window_size": 2, "softcap": 2.0}),
        f"hidden,qkv_weight,{BY_PLACE},out_weight",
    ),
    "sinks": (
        Form(inputs={SINK: (TensorProto.FLOAT, [NUM_HEADS])}, since=(1, 23)),
        f"hidden,qkv_weight,{BY_PLACE},sinks,out_weight",
    ),
    "sinks in a window": (
        Form(
            inputs={SINK: (TensorProto.FLOAT, [NUM_HEADS])},
            attributes={"do_rotary": 1, "local_window_size": 3},
            since=(1, 23),
        ),
        f"hidden,qkv_weight,{BY_PLACE},sinks,out_weight",
    ),
    "smooth": (
        Form(attributes={"do_rotary": 1, "smooth_softmax": 1}),
        f"hidden,qkv_weight,{BY_PLACE},sinks,out_weight",
    ),
    "smooth with sinks": (
        Form(
            inputs={SINK: (TensorProto.FLOAT, [NUM_HEADS])},
            attributes={"do_rotary": 1, "smooth_softmax": 1},
            since=(1, 23),
        ),
        f"hidden,qkv_weight,{BY_PLACE},sinks,out_weight",
    ),
    "not smooth": (
        Form(attributes={"do_rotary": 1, "smooth_softmax": -1}),
        f"hidden,qkv_weight,{BY_PLACE},out_weight",
    ),
    "bias": (
        Form(inputs={BIAS: (TensorProto.FLOAT, ["b", NUM_HEADS, "s", "t"])}, since=(1, 22)),
        f"hidden,qkv_weight,{BY_PLACE},attn_bias,out_weight",
    ),
    "bias of all batches and heads": (
        Form(inputs={BIAS: (TensorProto.FLOAT, [1, 1, "s", "t"])}, since=(1, 22)),
        f"hidden,qkv_weight,{BY_PLACE},attn_bias,out_weight",
    ),
    "bias behind a cap": (
        Form(
            inputs={BIAS: (TensorProto.FLOAT, [1, NUM_HEADS, "s", "t"])},
            attributes={"do_rotary": 1, "softcap": 2.0},
            since=(1, 22),
        ),
        f"hidden,qkv_weight,{BY_PLACE},attn_bias,out_weight",
    ),
    "positions": (
        Form(inputs={POSITION_IDS: (TensorProto.INT64, ["b", "s"])}, since=(1, 22)),
        f"hidden,qkv_weight,{BY_IDS},out_weight",
    ),
    "positions that nothing reads": (
        Form(
            inputs={POSITION_IDS: (TensorProto.INT64, ["b", "s"])},
            attributes={"do_rotary": 0},
            since=(1, 22),
        ),
        f"hidden,qkv_weight,{CACHE},out_weight",
    ),
    "both directions": (
        Form(attributes={"do_rotary": 1, "causal": 0}, since=(1, 32)),
        f"hidden,qkv_weight,{BY_PLACE},out_weight",
    ),
    "all": (
        Form(
            inputs={
                POSITION_IDS: (TensorProto.INT64, ["b", "s"]),
                BIAS: (TensorProto.FLOAT, ["b", 1, "s", "t"]),
                SINK: (TensorProto.FLOAT, [NUM_HEADS]),
            },
            attributes={"do_rotary": 1, "rotary_interleaved": 1, "local_window_size": 2},
            since=(1, 23),
        ),
        f"hidden,qkv_weight,{BY_IDS},attn_bias,sinks,out_weight",
    ),
    "no window": (
        Form(attributes={"do_rotary": 1, "local_window_size": -1}),
        f"hidden,qkv_weight,{BY_PLACE},out_weight",
    ),
    "lengths below each other": (Form(lengths=(1,)), f"hidden,qkv_weight,{BY_PLACE},out_weight"),
    "side by side": (Form("values"), f"qkv,{BY_PLACE},out_weight"),
    "side by side, nothing projected": (Form("values", out=False), f"qkv,{BY_PLACE}"),
    "only values projected": (
        Form("values projected"),
        f"hidden,query,key,v_weight,{BY_PLACE},out_weight",
    ),
    "values": (Form("values", norm=True, out=False), f"{VALUES},{BY_PLACE}"),
}


def operands_of(model: onnx.ModelProto) -> str:
    (node,) = fused_nodes(model)
    return next(a.s.decode() for a in node.attribute if a.name == "operands")


@pytest.mark.parametrize("name", FORMS)
def test_operator_is_taken_with_its_projections(name: str) -> None:
    form, operands = FORMS[name]
    model = Writer(form).model()
    made = fused(model)
    assert operands_of(made) == operands
    if form.since <= VERSION:
        check_sessions(model, plain_session(model), plain_session(made))


@pytest.mark.parametrize("name", [name for name in FORMS if FORMS[name][0].since <= VERSION])
def test_kernel_computes_what_the_operator_does(name: str) -> None:
    model = Writer(FORMS[name][0]).model()
    check_sessions(model, plain_session(model), onnx_fuse.session(fused(model)))


def check_sessions(
    model: onnx.ModelProto,
    original: onnxruntime.InferenceSession,
    session: onnxruntime.InferenceSession,
) -> None:
    for lengths in LENGTHS.values():
        feeds = feeds_of(model, lengths)
        expected, found = original.run(None, feeds), session.run(None, feeds)
        for batch, length in enumerate(lengths.each):
            # What a padded prompt's last rows hold was undefined in older onnxruntimes.
            rows = lengths.q_seq if VERSION >= (1, 32) else min(length, lengths.q_seq)
            own, other = found[0][batch, :rows], expected[0][batch, :rows]
            np.testing.assert_allclose(own, other, rtol=0, atol=TOLERANCE)
        for own, other in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_allclose(own, other, rtol=0, atol=TOLERANCE)


LATEST_WINDOW = {"do_rotary": 1, "local_window_size": 4, "sliding_window_cache": 1}
LATEST_FORMS = {
    "plain": Form(attributes=LATEST_WINDOW),
    "sinks": Form(inputs={SINK: (TensorProto.FLOAT, [NUM_HEADS])}, attributes=LATEST_WINDOW),
    "bias": Form(
        inputs={BIAS: (TensorProto.FLOAT, ["b", 1, "s", "t"])},
        attributes=LATEST_WINDOW | {"softcap": 2.0},
    ),
}


@pytest.mark.skipif(VERSION < (1, 32), reason="this onnxruntime's operator has no such cache")
@pytest.mark.parametrize("name", LATEST_FORMS)
def test_cache_of_the_latest_positions_is_the_operators(name: str) -> None:
    model = Writer(LATEST_FORMS[name]).model()
    made = fused(model)
    original = plain_session(model)
    for session in (plain_session(made), onnx_fuse.session(made)):
        for lengths in LATEST.values():
            feeds = feeds_of(model, lengths)
            expected, found = original.run(None, feeds), session.run(None, feeds)
            np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=TOLERANCE)
            for own, other in zip(found[1:], expected[1:], strict=True):
                assert own.shape == other.shape
                for batch, length in enumerate(lengths.each):  # what lies behind is unspecified
                    held = np.s_[batch, :, : resident(length, lengths.past, 4)]
                    np.testing.assert_allclose(own[held], other[held], rtol=0, atol=TOLERANCE)


def test_body_keeps_the_operator_between_as_many_products() -> None:
    (body,) = fused(Writer(Form()).model()).functions
    operators = [node.op_type for node in body.node]
    assert operators.count("GroupQueryAttention") == 1
    assert operators.count("MatMul") == 2
    assert "Softmax" not in operators


def test_body_is_as_old_as_the_model() -> None:
    """Older onnxruntimes have a smooth softmax, and no input for its number."""
    (body,) = fused(Writer(FORMS["smooth"][0]).model()).functions
    (node,) = (node for node in body.node if node.op_type == "GroupQueryAttention")
    assert len(node.input) == 9
    assert [a.i for a in node.attribute if a.name == "smooth_softmax"] == [1]


def test_unfused_model_has_the_operator_again() -> None:
    model = Writer(Form(bias=True)).model()
    back = onnx_fuse.unfuse(fused(model))
    assert "GroupQueryAttention" in [node.op_type for node in back.graph.node]
    feeds = feeds_of(model, LENGTHS["ragged"])
    expected, found = (plain_session(each).run(None, feeds) for each in (model, back))
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=0, atol=TOLERANCE)


HALF = TensorProto.FLOAT16
DECLINED: dict[str, tuple[Form, str]] = {
    "window of nothing": (
        Form(attributes={"do_rotary": 1, "local_window_size": 0}),
        "local_window_size is 0",
    ),
    "window to both sides": (
        Form(attributes={"do_rotary": 1, "local_window_size": 3, "causal": 0}),
        "local_window_size is 3",
    ),
    "bias that broadcasts": (
        Form(inputs={BIAS: (TensorProto.FLOAT, ["s", "t"])}),
        "attention_bias is of shape (s, t)",
    ),
    "scale of a cache": (Form(inputs={13: (TensorProto.FLOAT, [1])}), "v_scale is given"),
    "norm of keys": (
        Form(inputs={15: (TensorProto.FLOAT, [HEAD_DIM])}),
        "k_norm_weight is given",
    ),
    "an input of later releases": (Form(inputs={17: (TensorProto.INT32, ["b"])}), "input 17"),
    "smoother": (Form(attributes={"smooth_softmax": 2}), "smooth_softmax is 2"),
    "more than causal": (Form(attributes={"causal": 2}), "causal is 2"),
    "cache of the latest without a window": (
        Form(attributes={"sliding_window_cache": 1}),
        "sliding_window_cache is 1",
    ),
    "cache of more": (
        Form(attributes={"sliding_window_cache": 2, "local_window_size": 3}),
        "sliding_window_cache is 2",
    ),
    "an attribute of later releases": (Form(attributes={"tree": 1}), "tree is 1"),
    "lengths of pairs": (Form(lengths=(2,)), "seqlens_k is of shape (b, 2)"),
    "lengths of unknown width": (Form(lengths=("n",)), "seqlens_k is of shape (b, n)"),
    "lengths of three axes": (Form(lengths=(1, 1)), "seqlens_k is of shape (b, 1, 1)"),
    "no past": (Form(without=(3, 4)), "past_key is not given"),
    "half precision": (Form(dtype=HALF, queries="values", out=False), "is float16: casts"),
    "quantized cache": (
        Form(attributes={"k_quant_type": "PER_TENSOR"}),
        "k_quant_type is PER_TENSOR",
    ),
}


@pytest.mark.parametrize("name", DECLINED)
def test_operator_is_declined(name: str) -> None:
    form, words = DECLINED[name]
    report = onnx_fuse.explain(Writer(form).model(), threshold=None)
    (block,) = report.blocks
    half = form.dtype == HALF
    assert block.code == (Code.CACHE_TYPE if half else Code.UNSUPPORTED_ATTRIBUTE)
    assert words in str(block.reason)


# Queries, keys and values that are cut from one tensor, in the order of their names or not.
ORDERS = {"qkv": "qkv", "vkq": "query,key,value", "kqv": "query,key,value"}


@pytest.mark.parametrize("order", ORDERS)
def test_only_in_their_order_they_are_one_operand(order: str) -> None:
    parts = ", ".join(order)
    model = onnx.parser.parse_model(f"""
      <ir_version: 8, opset_import: ["" : 17]>
      g (float[2, 3, 96] x) => (float[2, 3, 32] y)
      <int64[4] split = {{0, 0, 2, 16}}, int64[3] flat = {{0, 0, 32}}, float h = {{0.25}}> {{
        {parts} = Split <axis: int = 2> (x)
        q1 = Reshape(q, split)
        k1 = Reshape(k, split)
        v1 = Reshape(v, split)
        q2 = Transpose <perm: ints = [0, 2, 1, 3]> (q1)
        k2 = Transpose <perm: ints = [0, 2, 3, 1]> (k1)
        v2 = Transpose <perm: ints = [0, 2, 1, 3]> (v1)
        s = MatMul(q2, k2)
        s1 = Mul(s, h)
        w = Softmax(s1)
        c = MatMul(w, v2)
        c1 = Transpose <perm: ints = [0, 2, 1, 3]> (c)
        y = Reshape(c1, flat)
      }}""")
    made = fused(model)
    assert operands_of(made) == ORDERS[order]
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 96)).astype(np.float32)}
    (expected,), (found,) = (plain_session(each).run(None, feeds) for each in (model, made))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
