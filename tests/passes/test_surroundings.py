"""What a user has in a model besides the block is there after the block was fused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_fuse
from tests.runtime.models import attention

BLOCK = {"Softmax", "MatMul", "Transpose"}


def sparse(name: str) -> onnx.SparseTensorProto:
    values = helper.make_tensor(name, TensorProto.FLOAT, [1], [7.0])
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [2])
    return helper.make_sparse_tensor(values, indices, [32])


def furnished() -> onnx.ModelProto:
    """The block amid everything that a reader or a writer may lose."""
    model = attention()
    graph = model.graph
    model.ir_version = 10
    model.doc_string, model.domain, model.model_version = "about", "org.example", 7
    model.producer_name, model.producer_version = "someone", "1.2"
    helper.set_model_props(model, {"author": "someone", "empty": ""})
    model.opset_import.add(domain="org.example", version=3)
    model.opset_import.add(domain="org.unused", version=1)
    double = helper.make_function(
        "org.example", "Double", ["a"], ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"], name="twice", doc_string="of the body")],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    double.doc_string = "a function of the user's"
    model.functions.append(double)

    graph.doc_string = "about the graph"
    graph.metadata_props.add(key="graph", value="g")
    for value in (*graph.input, *graph.output):
        value.doc_string = f"about {value.name}"
    graph.node[-1].output[0] = "attended"
    after = [
        helper.make_node("Double", ["attended"], ["doubled"], name="doubler", domain="org.example"),
        helper.make_node("Add", ["doubled", "used_sparse"], ["summed"], name="adder"),
        helper.make_node("Strange", ["summed", ""], ["odd", ""], domain="org.example", power=2.0),
        helper.make_node("Relu", ["summed"], ["output"], name="last", doc_string="the last"),
        helper.make_node("Neg", ["summed"], ["dead"], name="read by nobody"),
    ]
    after[3].metadata_props.add(key="origin", value="line 3")
    graph.node.extend(after)
    for name in ("hidden", "summed", "odd", "s2", "ghost"):
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        info.doc_string = f"about {name}"
        graph.value_info.append(info)
    graph.sparse_initializer.extend([sparse("used_sparse"), sparse("unused_sparse")])
    unused = numpy_helper.from_array(np.arange(3), "unused")
    unused.doc_string = "read by nobody"
    graph.initializer.insert(0, unused)
    for name in ("summed", "s2"):
        annotation = graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="unused")
    return model


@pytest.fixture(scope="module")
def pair() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The model before and after the fusion."""
    before = furnished()
    result = onnx_fuse.fuse(before)
    assert result.report.num_fused == 1
    return before, result.model


Pair = tuple[onnx.ModelProto, onnx.ModelProto]


def test_the_block_is_one_node_where_its_last_one_stood(pair: Pair) -> None:
    before, after = pair
    kinds = [node.op_type for node in after.graph.node]
    assert not BLOCK & set(kinds)
    assert kinds[-6:] == ["FusedAttentionBlock", "Double", "Add", "Strange", "Relu", "Neg"]
    kept = {node.SerializeToString() for node in after.graph.node}
    stayed = [node for node in before.graph.node if node.SerializeToString() in kept]
    fused = [node for node in after.graph.node if node.domain != "onnx_fuse"]
    assert fused == stayed


def test_who_asks_for_a_type_keeps_nothing_of_the_block() -> None:
    model = attention()
    given = helper.make_tensor_value_info("given", TensorProto.INT64, [3])
    model.graph.input.append(given)
    for node in list(model.graph.node):
        if node.op_type not in BLOCK:
            continue
        name = f"like_{node.output[0]}"
        like = helper.make_node("CastLike", ["given", node.output[0]], [name])
        model.graph.node.append(like)
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]))
    result = onnx_fuse.fuse(model)
    kinds = [node.op_type for node in result.model.graph.node]
    assert result.report.num_fused == 1
    assert not {*BLOCK, "CastLike"} & set(kinds)
    onnx.checker.check_model(result.model)


def test_what_stands_beside_the_graph_is_kept(pair: Pair) -> None:
    before, after = pair
    imports = [*before.opset_import, helper.make_opsetid("onnx_fuse", 1)]
    assert list(after.opset_import) == imports
    assert [f for f in after.functions if f.domain != "onnx_fuse"] == list(before.functions)
    rest = []
    for model in (before, after):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for field in ("graph", "opset_import", "functions"):
            copy.ClearField(field)
        rest.append(copy)
    assert rest[0] == rest[1]


def test_what_is_said_of_remaining_values_is_kept(pair: Pair) -> None:
    before, after = (model.graph for model in pair)
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)
    assert list(after.sparse_initializer) == list(before.sparse_initializer)
    assert (after.name, after.doc_string) == (before.name, before.doc_string)
    assert list(after.metadata_props) == list(before.metadata_props)
    gone = {"s2"}
    assert list(after.value_info) == [v for v in before.value_info if v.name not in gone]
    assert list(after.quantization_annotation) == [
        a for a in before.quantization_annotation if a.tensor_name not in gone
    ]


def test_initializers_that_are_read_or_never_were_are_kept_in_order(pair: Pair) -> None:
    before, after = (model.graph for model in pair)
    read = {name for node in after.node for name in node.input}
    were_read = {name for node in before.node for name in node.input}
    stayed = [t for t in before.initializer if t.name in read or t.name not in were_read]
    assert "unused" in [t.name for t in stayed]
    names = {t.name for t in before.initializer}
    assert [t for t in after.initializer if t.name in names] == stayed


def test_unfusing_keeps_it_too_and_restores_the_names(pair: Pair) -> None:
    before, after = pair
    plain = onnx_fuse.unfuse(after)
    assert b"onnx_fuse" not in plain.SerializeToString()
    assert list(plain.functions) == list(before.functions)
    assert list(plain.opset_import) == list(before.opset_import)
    assert list(plain.graph.value_info) == list(after.graph.value_info)
    assert "attended" in {name for node in plain.graph.node for name in node.output}
    assert list(plain.graph.node)[-5:] == list(before.graph.node)[-5:]


def test_saved_and_loaded_it_is_the_same(pair: Pair, tmp_path: Path) -> None:
    before, after = pair
    onnx_fuse.fuse(before).save(tmp_path / "fused.onnx")
    assert onnx.load(str(tmp_path / "fused.onnx")) == after
