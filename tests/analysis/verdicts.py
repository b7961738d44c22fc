"""What a test says of a sample: that it is fused with these operands, or declined, and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import onnx

import onnx_fuse
from onnx_fuse.report import BlockReport, Code
from tests.analysis.check import fused_nodes, run_fused
from tests.analysis.samples.builder import Array
from tests.analysis.samples.graphs import Sample
from tests.sessions import plain_session

Make = Callable[[], Sample]

OUT = ("out_weight", "out_bias")
ALL = ("hidden", "qkv_weight", "qkv_bias")
QUERY = ("context", "query", "k_weight", "v_weight", "k_bias", "v_bias", *OUT)
KEY = ("hidden", "value_context", "key", "q_weight", "v_weight", "q_bias", "v_bias", *OUT)
VALUE = ("hidden", "context", "value", "q_weight", "k_weight", "q_bias", "k_bias", *OUT)
PAST = ("past_key", "past_value")
BOTH = ("value_context", "query", "key", "v_weight", "v_bias", *OUT)
TABLES = ("q_norm_weight", "k_norm_weight", "q_cos", "q_sin", "k_cos", "k_sin", "attn_bias")
ROTATED = (*ALL, *TABLES[2:6], *OUT)
# Of an output's largest number: some hundred roundings of float32, for sums of at most 32 terms.
ROUNDINGS = 168 * 2.0**-24
FACTS = (
    "node",
    "value",
    "reader",
    "op",
    "dtype",
    "what",
    "part",
    "axis",
    "shape",
    "attribute",
    "setting",
)


def operands(model: onnx.ModelProto) -> list[tuple[str, ...]]:
    found = [{a.name: a for a in node.attribute}["operands"].s for node in fused_nodes(model)]
    return [tuple(text.decode().split(",")) for text in found]


def check_same(sample: Sample, model: onnx.ModelProto) -> None:
    _check_results(*(plain_session(m).run(None, sample.feeds) for m in (sample.model, model)))


def _check_results(expected: Sequence[Array], found: Sequence[Array]) -> None:
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        bound = ROUNDINGS * max(1.0, float(np.nanmax(np.abs(one), initial=0.0)))
        np.testing.assert_allclose(other, one, rtol=0, atol=bound)


def check_says_why(block: BlockReport, model: onnx.ModelProto) -> None:
    """The reason names a node of the model, and every fact of its sentence was known."""
    assert block.code is not None
    assert block.reason is not None
    names = {node.name for node in model.graph.node}
    assert block.node in names
    assert names.issuperset(block.understood)
    assert block.is_stopped
    marked = re.escape(block.code.reason(**{fact: f"<{fact}>" for fact in FACTS}))
    stated = re.fullmatch(re.sub(r"<(\w+)>", r"(?P<\1>.+)", marked), block.reason)
    assert stated is not None
    facts = stated.groupdict()
    assert all(fact != text for fact, text in facts.items())
    made = {node.name: node.op_type for node in model.graph.node}
    if "op" in facts and "node" in facts:
        assert made[facts["node"]] == facts["op"]


def check_declined(make: Make, code: Code) -> None:
    sample = make()
    result = onnx_fuse.fuse(sample.model, threshold=None)
    assert [block.code for block in result.report.blocks] == [code]
    check_says_why(result.report.blocks[0], sample.model)
    assert result.model.SerializeToString() == sample.model.SerializeToString()


def check_fused(sample: Sample, expected: tuple[str, ...]) -> None:
    """Its one block has these operands, of the operator's types and shapes; all is as it was."""
    made = run_fused(sample, onnx_fuse.fuse(sample.model, threshold=None).model)
    assert operands(made.model) == [expected]
    _check_results(made.expected, made.found)
