"""Each Softmax of a model is told of: in a block, or as what it is instead."""

from __future__ import annotations

import onnx
import pytest

import onnx_fuse
from onnx_fuse.report import OtherSoftmax
from tests.analysis.samples import steps, twins

OTHERS = {
    "a router": (
        """
        p = Softmax(x)
        turned = Transpose(p)
        k = Constant<value = int64[1] {2}>()
        doubled = Add(p, p)
        y, i = TopK(turned, k)
        z = Add(y, doubled)
        """,
        "its weights choose among what they are of, by '4' (TopK)",
    ),
    "a mixture": (
        "p = Softmax(x)\nz = Mul(p, x)",
        "its weights go into '1' (Mul), not into a product with values",
    ),
    "a classifier": ("p = Softmax(x)\nz = Identity(p)", "its weights are the output 'z'"),
    "unread": ("p = Softmax(x)\nz = Neg(x)", "nobody reads its weights"),
}


def model_of(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> agraph (float[4, 4] x) => (float[N, M] z) {'
        + text
        + "}"
    )
    for number, node in enumerate(model.graph.node):
        node.name = str(number)
    return model


@pytest.mark.parametrize("name", OTHERS)
def test_softmax_that_is_no_attention_is_told_of(name: str) -> None:
    text, reason = OTHERS[name]
    report = onnx_fuse.explain(model_of(text))
    assert not report.blocks
    assert report.others == (OtherSoftmax("0", reason),)


@pytest.mark.parametrize("changed", [{}, twins.after("weights", steps.binary("Sub", 0.2))])
def test_softmax_of_a_site_is_no_other(changed: dict[str, twins.Step]) -> None:
    """Whether the block is fused or declined."""
    report = onnx_fuse.explain(twins.twin(**changed).model, threshold=None)
    assert len(report.blocks) == 1
    assert not report.others
