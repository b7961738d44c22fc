"""Recognising and rewriting cost as much for each layer of a deep model as of a shallow one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_fuse
from tests.cost import count_calls

HIDDEN, HEADS = 8, 2
LAYERS = [24, 48, 96]
SHALLOW = 12
# What a model costs once is spread over its layers, so that deep ones are cheaper by layer. Above 1
# only what grows: names with more digits, tables that double.
GROWTH = 1.1


def tower(layers: int) -> onnx.ModelProto:
    """A model of `layers` blocks: shapes computed in the graph, one mask and scale for all."""
    rng = np.random.default_rng(0)
    constants = {
        "rows_axis": np.array([0]),
        "columns_axis": np.array([1]),
        "split_tail": np.array([HEADS, HIDDEN // HEADS]),
        "merge_tail": np.array([HIDDEN]),
        "scale": np.array(0.5, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Shape", ["x0"], ["shape"]),
        helper.make_node("Gather", ["shape", "rows_axis"], ["batch"]),
        helper.make_node("Gather", ["shape", "columns_axis"], ["length"]),
        helper.make_node("Concat", ["batch", "length", "split_tail"], ["split"], axis=0),
        helper.make_node("Concat", ["batch", "length", "merge_tail"], ["merge"], axis=0),
    ]
    for layer in range(layers):
        nodes += block(layer)
        for part in "qkvo":
            weight = rng.standard_normal((HIDDEN, HIDDEN)) / HIDDEN**0.5
            constants[f"{part}{layer}_weight"] = weight.astype(np.float32)
            bias = rng.standard_normal(HIDDEN)
            constants[f"{part}{layer}_bias"] = bias.astype(np.float32)
    hidden = ["batch", "length", HIDDEN]
    graph = helper.make_graph(
        nodes,
        "tower",
        [
            helper.make_tensor_value_info("x0", TensorProto.FLOAT, hidden),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 1, 1, "length"]),
        ],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, hidden)],
        [numpy_helper.from_array(data, name) for name, data in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def block(layer: int) -> list[onnx.NodeProto]:
    """The nodes of one layer, from x{layer} to x{layer + 1}."""
    made = []

    def add(op_type: str, inputs: str, output: str, **attributes: object) -> str:
        name = f"{output}{layer}"
        made.append(
            helper.make_node(op_type, inputs.split(), [name], name=f"{name}_node", **attributes)
        )
        return name

    def linear(part: str, source: str) -> str:
        product = add("MatMul", f"{source} {part}{layer}_weight", f"{part}_product")
        return add("Add", f"{product} {part}{layer}_bias", f"{part}_sum")

    q, k, v = (add("Reshape", f"{linear(p, f'x{layer}')} split", f"{p}_split") for p in "qkv")
    q = add("Transpose", q, "q", perm=[0, 2, 1, 3])
    k = add("Transpose", k, "k", perm=[0, 2, 3, 1])
    v = add("Transpose", v, "v", perm=[0, 2, 1, 3])
    scores = add("Mul", f"{add('MatMul', f'{q} {k}', 'scores')} scale", "scaled")
    weights = add("Softmax", add("Add", f"{scores} mask", "masked"), "weights", axis=-1)
    context = add("MatMul", f"{weights} {v}", "context")
    merged = add("Transpose", context, "turned", perm=[0, 2, 1, 3])
    out = linear("o", add("Reshape", f"{merged} merge", "merged"))
    made.append(helper.make_node("Add", [f"x{layer}", out], [f"x{layer + 1}"], name=f"end{layer}"))
    return made


def fuse(model: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx_fuse.fuse(model, threshold=None)
    assert result.report.num_declined == 0
    return result.model


def explain(model: onnx.ModelProto) -> None:
    assert onnx_fuse.explain(model, threshold=None).num_declined == 0


ACTIONS: dict[str, Callable[[onnx.ModelProto], object]] = {"explain": explain, "fuse": fuse}


@cache
def calls_per_layer(action: str, layers: int) -> float:
    model = tower(layers)
    return count_calls(lambda: ACTIONS[action](model)) / layers


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("action", ACTIONS)
def test_cost_of_a_layer_does_not_grow_with_their_number(action: str, layers: int) -> None:
    assert calls_per_layer(action, SHALLOW) > 100
    assert calls_per_layer(action, layers) <= GROWTH * calls_per_layer(action, SHALLOW)


def test_every_block_of_the_deepest_tower_is_fused() -> None:
    report = onnx_fuse.explain(tower(LAYERS[-1]), threshold=None)
    assert report.num_fused == LAYERS[-1]


def test_counting_notices_what_is_not_linear() -> None:
    """A search over all nodes for each block would be seen."""

    def search_all(model: onnx.ModelProto) -> None:
        loaded = onnx_fuse.load(model)
        nodes = list(loaded.graph.nodes)
        for node in nodes:
            if node.op == "Softmax":
                for other in nodes:
                    other.attr("axis")

    shallow, deep = (
        count_calls(lambda layers=layers: search_all(tower(layers))) / layers
        for layers in (SHALLOW, LAYERS[0])
    )
    assert deep > GROWTH * shallow
