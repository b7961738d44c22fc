"""Blocks that reach across functions are fused as if these were written out."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

import onnx_fuse
from onnx_fuse.ir.text import dump
from tests.analysis.samples.forms import Form
from tests.analysis.verdicts import ALL, OUT, check_same, operands
from tests.passes.test_fuse_attention_block import fused_nodes, sample

MODULES = ("MatMul", "Softmax", "Transpose")


def called(model: onnx.ModelProto, ops: tuple[str, ...], domain: str = "user") -> onnx.ModelProto:
    """Return the model with each of these operators inside of a function of its name."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    attributes: dict[str, set[str]] = {}
    ends: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in ops:
            attributes.setdefault(node.op_type, set()).update(each.name for each in node.attribute)
            ends[node.op_type] = len(node.input)
            node.domain = domain
    for op, names in attributes.items():
        inputs = [f"x{position}" for position in range(ends[op])]
        step = helper.make_node(op, inputs, ["y"])
        for name in sorted(names):
            kind = onnx.AttributeProto.INTS if name == "perm" else onnx.AttributeProto.INT
            step.attribute.add(name=name, ref_attr_name=name, type=kind)
        imports = [helper.make_opsetid("", model.opset_import[0].version)]
        model.functions.append(
            helper.make_function(domain, op, inputs, ["y"], [step], imports, sorted(names))
        )
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


@pytest.mark.parametrize("ops", [MODULES, ("MatMul",), ("Softmax",)])
def test_block_is_whole_across_functions(ops: tuple[str, ...]) -> None:
    made = sample(Form())
    model = called(made.model, ops)
    onnx.checker.check_model(model)
    result = onnx_fuse.fuse(model, threshold=None)
    assert operands(result.model) == [(*ALL, *OUT)]
    assert [each.domain for each in result.model.functions] == ["onnx_fuse"]
    check_same(made, result.model)
    explained = onnx_fuse.explain(model, threshold=None)
    assert explained.blocks == result.report.blocks
    step = onnx_fuse.FuseAttentionBlock(threshold=None)
    assert dump(onnx_fuse.run_passes(onnx_fuse.load(model), [step])) == result.dump


def test_nothing_is_written_out_where_nothing_is_fused() -> None:
    model = called(sample(Form()).model, MODULES)
    result = onnx_fuse.fuse(model, threshold=0)
    assert result.model.SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )


def test_function_that_has_no_part_in_a_whole_block_stays() -> None:
    model = sample(Form()).model
    made = model.graph.output[0].name
    model.graph.node.append(helper.make_node("Relu", [made], ["rectified"], "rectifier"))
    model.graph.output[0].name = "rectified"
    result = onnx_fuse.fuse(called(model, ("Relu",)), threshold=None)
    assert len(fused_nodes(result.model)) == 1
    assert {function.name for function in result.model.functions} >= {"Relu"}


def test_function_that_may_have_a_kernel_is_not_looked_into() -> None:
    model = called(sample(Form()).model, MODULES, "com.microsoft")
    result = onnx_fuse.fuse(model, threshold=None)
    assert not fused_nodes(result.model)
    assert result.model.SerializeToString(deterministic=True) == model.SerializeToString(
        deterministic=True
    )
