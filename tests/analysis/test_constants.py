"""What is the same in every run is folded as a run computes it; weights are read only then."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.errors import InvalidModel
from onnx_fuse.ir.constant import Constant
from onnx_fuse.ir.load import load
from onnx_fuse.ir.model import Model

Array = np.ndarray[Any, np.dtype[Any]]


def model_of(body: str, inputs: str, *, opset: int = 17) -> Model:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => (y) {{ {body} }}'
    proto = parser.parse_model(text)
    proto.graph.output[0].ClearField("type")
    return load(proto)


def folded(body: str, inputs: str = "float[n, 4, seq, 16] x", *, opset: int = 17) -> Array | None:
    model = model_of(body, inputs, opset=opset)
    shapes = Shapes(model)
    array = shapes.constant(model.graph.outputs[0])
    assert (array is not None) == shapes.is_constant(model.graph.outputs[0])
    return array


DEPTH = "s = Shape<start = 3>(x) i = Constant<value_ints = [0]>() d = Squeeze(s, i)"


@pytest.mark.parametrize(
    ("body", "scale"),
    [
        (f"{DEPTH} f = Cast<to = 1>(d) y = Sqrt(f)", 4.0),
        (f"{DEPTH} f = Cast<to = 1>(d) r = Sqrt(f) y = Reciprocal(r)", 0.25),
        (
            f"""{DEPTH} f = Cast<to = 1>(d) r = Sqrt(f) o = Constant<value_float = 1.0>()
            q = Div(o, r) y = Sqrt(q)""",
            0.5,
        ),
        (f"{DEPTH} f = Cast<to = 1>(d) e = Constant<value_float = -0.5>() y = Pow(f, e)", 0.25),
        (f"{DEPTH} f = Cast<to = 10>(d) y = Cast<to = 11>(f)", 16.0),
        ("a = Constant<value_int = -7>() b = Constant<value_int = 2>() y = Div(a, b)", -3.0),
        ("a = Constant<value_int = -7>() b = Constant<value_int = 3>() y = Mod(a, b)", 2.0),
        (
            "a = Constant<value_int = -7>() b = Constant<value_int = 3>() y = Mod<fmod = 1>(a, b)",
            -1,
        ),
        ("a = Constant<value_float = -2.5>() y = Cast<to = 7>(a)", -2.0),
    ],
)
def test_a_scale_is_a_number(body: str, scale: float) -> None:
    model = model_of(body, "float[n, 4, seq, 16] x")
    assert Shapes(model).scalar(model.graph.outputs[0]) == scale


def test_a_scale_from_an_extent_that_varies_is_none() -> None:
    model = model_of(
        "s = Shape<start = 2, end = 3>(x) f = Cast<to = 1>(s) y = Sqrt(f)", "float[n, 4, seq, 16] x"
    )
    assert Shapes(model).scalar(model.graph.outputs[0]) is None


@pytest.mark.parametrize(
    "body",
    [
        """o = ConstantOfShape<value = float[1] {1.0}>(n) t = Trilu<upper = 1>(o, k)
        z = Constant<value_float = 0.0>() f = Constant<value_float = -1e9>() c = Equal(t, z)
        n = Constant<value_ints = [5, 5]>() k = Constant<value_int = 1>() y = Where(c, z, f)""",
        """a = Constant<value_int = 0>() e = Constant<value_int = 5>() d = Constant<value_int = 1>()
        r = Range(a, e, d) i = Constant<value_ints = [0]>() row = Unsqueeze(r, j)
        j = Constant<value_ints = [1]>() col = Unsqueeze(r, i) b = LessOrEqual(col, row)
        z = Constant<value_float = 0.0>() f = Constant<value_float = -1e9>() y = Where(b, z, f)""",
        """o = ConstantOfShape<value = float[1] {1.0}>(n) n = Constant<value_ints = [5, 5]>()
        t = Trilu<upper = 0>(o) one = Constant<value_float = 1.0>() s = Sub(one, t)
        f = Constant<value_float = -1e9>() y = Mul(s, f)""",
    ],
    ids=["trilu", "range", "product"],
)
def test_a_static_causal_mask_is_an_array(body: str) -> None:
    expected = np.where(np.tri(5, dtype=bool), 0, -1e9).astype(np.float32)
    text = in_order(body)
    array = folded(text)
    assert array is not None
    assert array.dtype == np.float32
    assert np.array_equal(array, expected)


def in_order(body: str) -> str:
    """The statements, constants first."""
    statements = re.findall(r"\w+ = \w+(?:<[^<>]*>)?\([^()]*\)", " ".join(body.split()))
    makers = [s for s in statements if " = Constant<" in s]
    return "\n".join([*makers, *(s for s in statements if s not in makers)])


WEIGHT = np.arange(24, dtype=np.float32).reshape(4, 6)
VIEWS: dict[str, tuple[list[onnx.NodeProto], Array]] = {
    "transposed": ([helper.make_node("Transpose", ["w"], ["y"])], WEIGHT.T),
    "converted": (
        [helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT16)],
        WEIGHT.astype(np.float16),
    ),
    "second part": (
        [helper.make_node("Split", ["w", "sizes"], ["a", "y"], axis=1)],
        WEIGHT[:, 2:],
    ),
    "last of equal parts in a sequence": (
        [
            helper.make_node("SplitToSequence", ["w", "four"], ["parts"], axis=1),
            helper.make_node("SequenceAt", ["parts", "last"], ["y"]),
        ],
        WEIGHT[:, 4:],
    ),
    "second of parts in a sequence": (
        [
            helper.make_node("SplitToSequence", ["w", "sizes"], ["parts"], axis=-1),
            helper.make_node("SequenceAt", ["parts", "last"], ["y"]),
        ],
        WEIGHT[:, 2:],
    ),
    "last row in a sequence": (
        [
            helper.make_node("SplitToSequence", ["w"], ["parts"], keepdims=0),
            helper.make_node("SequenceAt", ["parts", "last"], ["y"]),
        ],
        WEIGHT[3],
    ),
    "last row in a sequence, kept": (
        [
            helper.make_node("SplitToSequence", ["w"], ["parts"]),
            helper.make_node("SequenceAt", ["parts", "last"], ["y"]),
        ],
        WEIGHT[3:],
    ),
    "scaled": ([helper.make_node("Mul", ["w", "half"], ["y"])], WEIGHT / 2),
    "written in place": (
        [helper.make_node("ScatterElements", ["w", "columns", "marks"], ["y"], axis=-1)],
        np.where(np.arange(6) == [[1], [4], [-1], [-1]], [[7], [8], [0], [0]], WEIGHT).astype(
            np.float32
        ),
    ),
    "added in place, twice to one row": (
        [helper.make_node("ScatterND", ["w", "rows", "w"], ["y"], reduction="add")],
        WEIGHT + np.stack([WEIGHT[0] + WEIGHT[2], WEIGHT[1] * 0, WEIGHT[1], WEIGHT[3]]),
    ),
    "dequantized": (
        [helper.make_node("DequantizeLinear", ["q", "scales", "zeros"], ["y"], axis=0)],
        (np.arange(24).reshape(4, 6) - np.array([[0], [1], [2], [3]])).astype(np.float32)
        * np.array([[1], [2], [4], [8]], dtype=np.float32),
    ),
}


def with_weights(nodes: list[onnx.NodeProto], **options: Any) -> onnx.ModelProto:
    weights = {
        "w": WEIGHT,
        "q": np.arange(24, dtype=np.uint8).reshape(4, 6),
        "scales": np.array([1, 2, 4, 8], dtype=np.float32),
        "zeros": np.array([0, 1, 2, 3], dtype=np.uint8),
        "sizes": np.array([2, 4], dtype=np.int64),
        "half": np.array(0.5, dtype=np.float32),
        "four": np.array(4, dtype=np.int64),
        "last": np.array(-1, dtype=np.int64),
        "columns": np.array([[1], [4]], dtype=np.int64),
        "marks": np.array([[7], [8]], dtype=np.float32),
        "rows": np.array([[0], [2], [0], [3]], dtype=np.int64),
    }
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
        *options.get("more", []),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name="y")], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_a_weight_is_folded(view: str) -> None:
    nodes, expected = VIEWS[view]
    model = load(with_weights(nodes))
    array = Shapes(model).constant(model.graph.outputs[0])
    assert array is not None
    assert array.dtype == expected.dtype
    assert np.array_equal(array, expected)
    assert not array.flags.writeable


def test_a_weight_that_the_caller_may_override_is_no_constant() -> None:
    more = [helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 6])]
    model = load(with_weights([helper.make_node("Transpose", ["w"], ["y"])], more=more))
    shapes = Shapes(model)
    assert not shapes.is_constant(model.graph.outputs[0])
    assert shapes.constant(model.graph.outputs[0]) is None


def test_what_depends_on_an_input_is_no_constant() -> None:
    nodes = [helper.make_node("Gather", ["w", "i"], ["y"])]
    more = [helper.make_tensor_value_info("i", TensorProto.INT64, [2])]
    model = load(with_weights(nodes, more=more))
    assert not Shapes(model).is_constant(model.graph.outputs[0])


def test_what_is_put_into_a_sequence_at_run_time_is_no_constant() -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["w", "four"], ["parts"], axis=1),
        helper.make_node("SequenceInsert", ["parts", "u"], ["all"]),
        helper.make_node("SequenceAt", ["all", "last"], ["y"]),
    ]
    more = [helper.make_tensor_value_info("u", TensorProto.FLOAT, [4, 6])]
    model = load(with_weights(nodes, more=more))
    assert not Shapes(model).is_constant(model.graph.outputs[0])
    assert Shapes(model).constant(model.graph.outputs[0]) is None


def test_a_part_that_is_chosen_at_run_time_is_no_constant() -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["w", "sizes"], ["parts"], axis=1),
        helper.make_node("SequenceAt", ["parts", "i"], ["y"]),
    ]
    more = [helper.make_tensor_value_info("i", TensorProto.INT64, [])]
    model = load(with_weights(nodes, more=more))
    assert not Shapes(model).is_constant(model.graph.outputs[0])


def test_random_numbers_are_no_constant() -> None:
    assert folded("y = RandomNormal<shape = [2]>()") is None


UNFOLDED = {
    "padding by what is there": helper.make_node("Pad", ["w", "pads"], ["y"], mode="reflect"),
    "the larger written in place": helper.make_node(
        "ScatterND", ["w", "rows", "w"], ["y"], reduction="max"
    ),
    "last of the largest": helper.make_node("ArgMax", ["w"], ["y"], select_last_index=1),
    "numbers of eight bits": helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT8E4M3FN),
    "dropout in training": helper.make_node("Dropout", ["w", "half", "yes"], ["y"]),
}


@pytest.mark.parametrize("name", UNFOLDED)
def test_what_is_not_folded_is_no_constant(name: str) -> None:
    model = with_weights([UNFOLDED[name]])
    model.opset_import[0].version = 19
    more = {
        "pads": np.array([1, 0, 1, 0], dtype=np.int64),
        "yes": np.array(True),
    }
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in more.items())
    loaded = load(model)
    assert not Shapes(loaded).is_constant(loaded.graph.outputs[0])
    assert Shapes(loaded).constant(loaded.graph.outputs[0]) is None


def test_asking_whether_something_is_constant_reads_no_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("Mul", ["t", "half"], ["y"]),
    ]
    proto = with_weights(nodes)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((512, 96), "f4"), "w"))
    path = tmp_path / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="data", size_threshold=1024)
    model = load(path)
    shapes = Shapes(model)
    read: list[str] = []
    numpy = Constant.numpy

    def noted(constant: Constant) -> Array:
        if constant.nbytes >= 1024:
            read.append(constant.name)
        return numpy(constant)

    monkeypatch.setattr(Constant, "numpy", noted)
    assert shapes.is_constant(model.graph.outputs[0])
    assert str(shapes.shape(model.graph.outputs[0])) == "(96, 512)"
    assert read == []
    (tmp_path / "data").unlink()
    with pytest.raises(InvalidModel):
        shapes.constant(model.graph.outputs[0])


def test_a_large_result_of_little_is_not_folded() -> None:
    body = "n = Constant<value_ints = [4096, 4096]>() y = ConstantOfShape(n)"
    model = model_of(body, "float[n] x")
    assert not Shapes(model).is_constant(model.graph.outputs[0])
    assert folded("n = Constant<value_ints = [64, 64]>() y = ConstantOfShape(n)") is not None
