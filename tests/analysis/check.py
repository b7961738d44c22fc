"""Fuses a sample and compares what its node says, and what the model computes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

import onnx_fuse
from onnx_fuse.op.block_attributes import BlockAttributes
from onnx_fuse.op.check_block import check
from onnx_fuse.op.layout import unpack
from onnx_fuse.op.schema import BODY_INPUT, DOMAIN, Argument
from tests.analysis.samples.builder import Array
from tests.analysis.samples.graphs import Record, Sample
from tests.sessions import plain_session

# A weight passes through at most three roundings (a factor, a shift, float32): 3 * 2^-24, and as
# many in the numbers that the record expects.
ROUNDING = 6 * 2.0**-24
_SCORES = ("attn_bias", "attn_mask", "mask_fill")
_TABLES = ("q_cos", "q_sin", "k_cos", "k_sin")


@dataclass(frozen=True)
class Run:
    """A fused sample: its model, the node's record and the results of original and fused model."""

    model: onnx.ModelProto
    record: Record
    expected: list[Array]
    found: list[Array]


def fused_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes of our domain in the main graph."""
    return [node for node in model.graph.node if node.domain == DOMAIN]


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its only block fused. Raises: AssertionError saying why it is not."""
    result = onnx_fuse.fuse(model, threshold=None)
    blocks = [(block.status, str(block.code), block.reason) for block in result.report.blocks]
    assert [status for status, _, _ in blocks] == ["fused"], blocks
    return result.model


def run(sample: Sample) -> Run:
    """Fuse the sample's only block and run both models."""
    return run_fused(sample, fused(sample.model))


def run_fused(sample: Sample, model: onnx.ModelProto) -> Run:
    """Run both models on the sample's inputs, with the only fused node's operands as outputs."""
    (node,) = fused_nodes(model)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    asked = list(dict.fromkeys(n for n in node.input if n not in constants | sample.feeds.keys()))
    known = {output.name for output in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in asked if n not in known)
    results = plain_session(probe).run(None, sample.feeds)
    count = len(sample.model.graph.output)
    values = constants | sample.feeds | dict(zip(asked, results[count:], strict=True))
    check_operands(node, values)
    expected = plain_session(sample.model).run(None, sample.feeds)
    return Run(model, record_of(node, values), expected, results[:count])


def check_operands(node: onnx.NodeProto, values: dict[str, Array]) -> None:
    """Check a fused node against the operator's tables, as the kernel does.

    Raises: InvalidBlock saying what is wrong.
    """
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    given = {k: v.decode() if isinstance(v, bytes) else v for k, v in given.items()}
    names = str(given["operands"]).split(",")
    operands = {
        name: Argument(helper.np_dtype_to_tensor_dtype(values[value].dtype), values[value].shape)
        for name, value in zip(names, node.input, strict=True)
        if not name.startswith(BODY_INPUT)
    }
    check(operands, BlockAttributes.from_onnx(given), len(node.output))


def record_of(node: onnx.NodeProto, values: dict[str, Array]) -> Record:
    """Return what a fused node says, given the contents of its inputs."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    attributes = {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes.items()}
    names = str(attributes.pop("operands")).split(",")
    operands = {
        name: values[value]
        for name, value in zip(names, node.input, strict=True)
        if not name.startswith(BODY_INPUT)
    }
    heads, kv_heads, depth, value_depth, out = (
        int(attributes[name])
        for name in ("num_heads", "kv_num_heads", "head_dim", "v_head_dim", "out_size")
    )
    widths = {"q": heads * depth, "k": kv_heads * depth, "v": kv_heads * value_depth, "out": out}
    widths["qkv"] = sum(widths[name] for name in "qkv")
    for name, columns in widths.items():
        if f"{name}_weight" in operands:
            operands[f"{name}_weight"] = unpack(operands[f"{name}_weight"], columns)
    return Record(node.op_type, attributes, operands)


def check_record(found: Record, expected: Record) -> None:
    """Compare two records; an operand that broadcasts is compared at the expected full size."""
    assert found.op_type == expected.op_type
    assert list(found.attributes) == list(found.attributes | expected.attributes)
    for name, value in expected.attributes.items():
        same = found.attributes[name]
        assert (
            np.isclose(same, value, rtol=ROUNDING, atol=0)
            if isinstance(value, float)
            else (same == value)
        ), (name, same, value)
    assert sorted(found.operands) == sorted(expected.operands)
    for name, data in expected.operands.items():
        own = found.operands[name]
        if name in (*_SCORES, *_TABLES):
            own = np.broadcast_to(own, data.shape)
        assert own.shape == data.shape, (name, own.shape, data.shape)
        np.testing.assert_allclose(own, data, rtol=ROUNDING, atol=0, err_msg=name)


def check_results(found: list[Array], expected: list[Array]) -> None:
    """Compare outputs of float32 models whose sums are of at most 32 terms, one after the other."""
    for own, other in zip(found, expected, strict=True):
        assert own.dtype == other.dtype
        assert own.shape == other.shape
        assert np.isfinite(other).all()
        bound = TOLERANCE * max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(own, other, rtol=0, atol=bound)


# Five sums of at most 32 terms follow each other (projection, scores, softmax, values, output);
# the softmax's exponent makes of an absolute error a relative one: scores here are below 2^5.
TOLERANCE = 5 * 32 * 2**5 * 2.0**-24 / 4
