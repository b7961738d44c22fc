"""A softmax whose weights meet what is made of them or their scores: no attention, and unnamed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnx_fuse
from onnx_fuse.report import Code

ROWS, HIDDEN, DEPTH = 6, 16, 8
SCORES = {
    "choices": "s = MatMul(x, w)",
    "pairs": (
        "q = MatMul(x, w) k = MatMul(x, u) t = Transpose<perm = [0, 2, 1]>(k) s = MatMul(q, t)"
    ),
}
SUM = "m = Mul(p, l) a = Constant<value_ints = [-1]>() y = ReduceSum<keepdims = 0>(m, a)"
ENTROPIES = {
    "the weights' logarithms": f"p = Softmax<axis = -1>(s) l = Log(p) {SUM}",
    "bounded logarithms": (
        "b = Constant<value_float = -9.0>() z = ReduceLogSumExp<axes = [-1]>(s) n = Sub(s, z) "
        f"p = Softmax<axis = -1>(n) l = Clip(n, b) {SUM}"
    ),
    "the scores": f"p = Softmax<axis = -1>(s) l = Identity(s) {SUM}",
    "the scores in one product": (
        'p = Softmax<axis = -1>(s) y = Einsum<equation = "bsv,bsv->bs">(p, s)'
    ),
}
OTHERS: dict[str, tuple[str, str, Code | None]] = {
    "other numbers of each row": (
        "choices",
        f"p = Softmax<axis = -1>(s) l = MatMul(x, u) {SUM}",
        Code.GATE,
    ),
    "the scores of all rows": (
        "choices",
        "p = Softmax<axis = -1>(s) l = Transpose<perm = [0, 2, 1]>(s) y = MatMul(p, l)",
        Code.GATE,
    ),
    "the scores of all rows as values": (
        "pairs",
        "p = Softmax<axis = -1>(s) l = Transpose<perm = [0, 2, 1]>(s) y = MatMul(p, l)",
        Code.SCORES_READ,
    ),
}


def codes(scores: str, body: str) -> list[Code | None]:
    header = '<ir_version: 8, opset_import: ["" : 17]>'
    graph = f"g (float[2, {ROWS}, {HIDDEN}] x) => (float[2, {ROWS}] y)"
    model = parser.parse_model(f"{header} {graph} {{ {SCORES[scores]} {body} }}")
    model.graph.output[0].ClearField("type")
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    width = ROWS if scores == "choices" else DEPTH
    rng = np.random.default_rng(0)
    for name in ("w", "u"):
        data = rng.standard_normal((HIDDEN, width)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(data, name))
    report = onnx_fuse.explain(model, threshold=None)
    return [block.code for block in report.blocks]


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("name", ENTROPIES)
def test_weighted_sum_of_what_the_weights_are_made_of_is_no_attention(
    name: str, scores: str
) -> None:
    assert codes(scores, ENTROPIES[name]) == []


@pytest.mark.parametrize("name", OTHERS)
def test_other_numbers_are_values(name: str) -> None:
    scores, body, code = OTHERS[name]
    assert codes(scores, body) == [code]
