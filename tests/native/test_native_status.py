"""What is wrong with a node comes back as a status that names the node, at load or at the call."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_fuse.runtime import library
from tests.native import blocks
from tests.op import cases

NODE = "layer.3/attention"


def _model(**sizes: Any) -> onnx.ModelProto:
    model = cases.model(blocks.make(**sizes), 17, with_function=False)
    model.graph.node[0].name = NODE
    return model


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return library.session(model, options)


def _set(**attributes: Any) -> Callable[[onnx.ModelProto], None]:
    def tamper(model: onnx.ModelProto) -> None:
        node = model.graph.node[0]
        kept = [a for a in node.attribute if a.name not in attributes]
        del node.attribute[:]
        node.attribute.extend(kept)
        for name, value in attributes.items():
            if value is not None:
                node.attribute.append(helper.make_attribute(name, value))

    return tamper


def _replace(name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    def tamper(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.zeros(shape, dtype), name))

    return tamper


OPERANDS = "hidden,qkv_weight,qkv_bias,out_weight,out_bias"
TAMPERED = {
    "no operands": (_set(operands=None), "attribute 'operands' is missing"),
    "operands of another type": (_set(operands=3), "attribute 'operands' is missing"),
    "unknown operand": (_set(operands=OPERANDS + ",mask"), "'mask', which is no operand"),
    "operand twice": (_set(operands="hidden," + OPERANDS), "'hidden' twice or out of order"),
    "operands in another order": (
        _set(operands="qkv_weight,hidden,qkv_bias,out_weight,out_bias"),
        "'hidden' twice or out of order",
    ),
    "operands miss one": (_set(operands=OPERANDS[:-9]), "names 4 operands, the node has 5 inputs"),
    "operands without weights": (
        _set(operands="hidden,query,key,value,attn_bias"),
        "'hidden' is given, but nothing is projected from it",
    ),
    "no heads": (_set(num_heads=None), "attribute 'num_heads' is missing"),
    "zero heads": (_set(num_heads=0), "attribute 'num_heads' is 0"),
    "other heads": (_set(num_heads=4), "'qkv_weight' has shape (6, 32, 16), expected (8, 32, 16)"),
    "heads of uneven groups": (_set(num_heads=3), "'num_heads' is 3, no multiple of kv_num_heads"),
    "huge heads": (_set(num_heads=2**62), "attribute 'num_heads' is"),
    "negative head size": (_set(head_dim=-1), "attribute 'head_dim' is -1"),
    "other head size": (_set(head_dim=20), "operand 'qkv_weight' has shape"),
    "other value head size": (_set(v_head_dim=8), "operand 'qkv_weight' has shape"),
    "other output size": (_set(out_size=48), "operand 'out_weight' has shape"),
    "no output size": (_set(out_size=0), "'out_size' is 0, but operand 'out_weight' is given"),
    "scale of another type": (_set(scale="big"), "attribute 'scale' is missing or of another type"),
    "negative softcap": (_set(softcap=-1.0), "attribute 'softcap' is -1"),
    "softcap that is no number": (_set(softcap=float("nan")), "attribute 'softcap' is nan"),
    "endless softcap": (
        _set(softcap=float("inf")),
        "attribute 'softcap' is inf, expected a finite",
    ),
    "scale that is no number": (_set(scale=float("nan")), "attribute 'scale' is nan"),
    "endless scale": (_set(scale=float("-inf")), "attribute 'scale' is -inf"),
    "negative epsilon": (_set(q_norm_epsilon=-1e-5), "'q_norm_epsilon' is -1e-05, expected a"),
    "epsilon that is no number": (_set(k_norm_epsilon=float("nan")), "'k_norm_epsilon' is nan"),
    "causal and more": (_set(is_causal=2), "attribute 'is_causal' is 2"),
    "a window less than none": (_set(window_size=-1), "attribute 'window_size' is -1"),
    "a cache without a window": (_set(window_cache=1), "'window_cache' needs 'window_size'"),
    "a cache and more": (_set(window_cache=2), "attribute 'window_cache' is 2"),
    "a window without lengths": (_set(window_size=3), "'window_size' needs operand 'seqlens_k'"),
    "rotation without tables": (_set(rotary_embedding_dim=8), "rotation tables are absent"),
    "odd rotation": (_set(rotary_embedding_dim=7), "expected an even number"),
    "rotation beyond the head": (_set(rotary_embedding_dim=32), "expected 0 to 16"),
    "unknown norm": (_set(q_norm="batch"), "'q_norm' is \"batch\""),
    "norm over what": (_set(k_norm_over_heads=3), "'k_norm_over_heads' is 3"),
    "unknown precision": (_set(precision="fp8"), "'precision' is \"fp8\""),
    "truncated weight": (_replace("qkv_weight", (6, 31, 16)), "has shape (6, 31, 16)"),
    "weight of no panels": (_replace("qkv_weight", (32, 96)), "'qkv_weight' has 2 dimensions"),
    "weight of another type": (_replace("qkv_weight", (6, 32, 16), np.int32), "element type 6"),
    "half weight": (_replace("out_weight", (2, 32, 16), np.float16), "element type 10"),
    "bfloat16 weight without pairs": (
        _replace("out_weight", (2, 32, 16), ml_dtypes.bfloat16),
        "'out_weight' has 3 dimensions, expected 4",
    ),
    "bfloat16 weight of too few pairs": (
        _replace("out_weight", (2, 15, 16, 2), ml_dtypes.bfloat16),
        "'out_weight' has shape (2, 15, 16, 2), expected (2, 16, 16, 2)",
    ),
    "bfloat16 bias": (_replace("out_bias", (32,), ml_dtypes.bfloat16), "element type 16"),
    "short bias": (_replace("qkv_bias", (95,)), "'qkv_bias' has shape (95)"),
    "empty weight": (_replace("out_weight", (0, 32, 16)), "'out_weight' has shape (0, 32, 16)"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_node_is_refused_at_load(name: str) -> None:
    tamper, sentence = TAMPERED[name]
    model = _model()
    tamper(model)
    with pytest.raises(Exception, match=re.escape(sentence)) as caught:
        _session(model)
    assert f"node '{NODE}'" in str(caught.value)


def test_node_of_a_long_name_is_told_by_its_end() -> None:
    model = _model()
    _set(num_heads=0)(model)
    model.graph.node[0].name = name = "/".join(f"module.{index}" for index in range(100))
    with pytest.raises(Exception, match="attribute 'num_heads' is 0") as caught:
        _session(model)
    (shown,) = re.findall(r"node '\.\.\.([^']*)'", str(caught.value))
    assert name.endswith(shown)
    assert len(shown) > 200


def test_bfloat16_weight_of_an_odd_number_of_rows_is_refused_at_load() -> None:
    model = _model(hidden=33)
    _replace("qkv_weight", (6, 16, 16, 2), ml_dtypes.bfloat16)(model)
    with pytest.raises(Exception, match="'qkv_weight' is bfloat16 and has 33 rows, expected an ev"):
        _session(model)


def test_past_needs_its_outputs() -> None:
    model = _model(past=3)
    del model.graph.output[1:], model.graph.node[0].output[1:]
    with pytest.raises(Exception, match=f"node '{NODE}': with past_key the node needs 3 or 4"):
        _session(model)


def test_unknown_isa_is_refused() -> None:
    with (
        blocks.isa("sse9"),
        pytest.raises(
            Exception, match=r"ONNX_FUSE_ISA is 'sse9', which is none of this machine's: .*portable"
        ),
    ):
        _session(_model())


def _dynamic(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let all inputs have unknown dimensions, so that their shapes are seen at the call only."""
    for value in model.graph.input:
        kind = value.type.tensor_type
        rank = len(kind.shape.dim)
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind.elem_type, [None] * rank))
    return model


def _call(block: cases.Block, shapes: dict[str, tuple[int, ...]]) -> None:
    model = _dynamic(cases.model(block, 17, with_function=False))
    model.graph.node[0].name = NODE
    feeds = cases.feeds(block.operands)
    for name, shape in shapes.items():
        feeds[name] = np.zeros(shape, feeds[name].dtype)
    _session(model).run(None, feeds)


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({"hidden": (2, 9, 31)}, "'qkv_weight' has shape (6, 32, 16), expected (6, 31, 16)"),
        ({"hidden": (1, 9, 32)}, "'past_key' has shape (2, 2, 3, 16): dimension 0 is 2"),
        ({"past_key": (2, 1, 3, 16)}, "dimension 1 is 1, expected kv_num_heads = 2"),
        ({"past_key": (2, 2, 4, 16)}, "'past_value' has shape (2, 2, 3, 16): dimension 2 is 3"),
        ({"attn_bias": (9, 9)}, "'attn_bias' has shape (9, 9), which does not broadcast"),
        ({"attn_bias": (1, 11)}, "which does not broadcast"),
        ({"attn_mask": (2, 9, 13)}, "'attn_mask' has shape (2, 9, 13), which does not broadcast"),
        ({"mask_fill": (5, 1)}, "'mask_fill' has shape (5, 1)"),
        ({"sinks": (3,)}, "'sinks' has shape (3): dimension 0 is 3, expected num_heads = 2"),
        (
            {"gate": (9, 2, 15)},
            "to (batch, q_seq, num_heads, v_head_dim) = (2, 9, 2, 16)",
        ),
        ({"gate": (8, 1, 1)}, "'gate' has shape (8, 1, 1), which does not broadcast"),
        ({"q_cos": (2, 1, 8, 8)}, "'q_cos' has shape (2, 1, 8, 8): dimension 2 is 8"),
        ({"k_sin": (1, 1, 9, 6)}, "dimension 3 is 6, expected rotary_embedding_dim = 8"),
    ],
)
def test_wrong_shape_is_refused_at_the_call(
    shapes: dict[str, tuple[int, ...]], sentence: str
) -> None:
    table = np.ones((1, 1, 9, 8), np.float32)
    block = blocks.change(
        blocks.make(batch=2, q_seq=9, past=3),
        {"rotary_embedding_dim": 8},
        {
            "attn_bias": np.zeros((9, 12), np.float32),
            "attn_mask": np.ones((2, 9, 12), np.bool_),
            "mask_fill": np.zeros((1, 1), np.float32),
            "sinks": np.zeros(2, np.float32),
            "gate": np.zeros((9, 1, 1), np.float32),
            **{f"{part}_{name}": table for part in "qk" for name in ("cos", "sin")},
        },
    )
    _call(block, {})
    with pytest.raises(Exception, match=re.escape(sentence)) as caught:
        _call(block, shapes)
    assert f"node '{NODE}'" in str(caught.value)


def test_wrong_rank_is_refused_at_the_call() -> None:
    model = _model()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    session = _session(model)
    for shape in ((32,), (5, 32), (1, 1, 5, 32), (1, 1, 1, 1, 5, 32)):
        with pytest.raises(Exception, match=f"'hidden' has {len(shape)} dimensions, expected 3"):
            session.run(None, {"hidden": np.zeros(shape, np.float32)})


def test_session_works_on_after_a_refused_call() -> None:
    block = blocks.make()
    session = _session(_dynamic(cases.model(block, 17, with_function=False)))
    feeds = cases.feeds(block.operands)
    for _ in range(3):
        with pytest.raises(Exception, match="'qkv_weight' has shape"):
            session.run(None, {"hidden": np.zeros((1, 5, 33), np.float32)})
        blocks.assert_right(session.run(None, feeds), block)


def test_input_of_another_type_is_refused() -> None:
    model = _model()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    with pytest.raises(Exception, match="operand 'hidden' has element type 11, expected float"):
        _session(model)
