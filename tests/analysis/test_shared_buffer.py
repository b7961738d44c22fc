"""Keys that are written in an empty tensor, which another part of the model shares."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.check import check_results, fused, fused_nodes
from tests.sessions import plain_session

ROWS, WIDTH = 5, 8
ROW = "row = ReduceSum <keepdims: int = 0> (t, first)"
SHOWN = {
    # what hides scores is written in the same empty tensor
    "the empty tensor": "t = Transpose <perm: ints = [1, 0]> (empty)",
    "other numbers in it": "t = ScatterND(turned, places, other)",
}
CONTENT = {
    "the keys": "t = Identity(written)",
    "other numbers beside the keys": "t = ScatterND(written, places, other)",
}


def model_of(shown: str, row: str = ROW) -> onnx.ModelProto:
    """One head without a batch; `shown` makes t, (8, S), of which `row` makes what hides scores."""
    model = onnx.parser.parse_model(f"""
      <ir_version: 8, opset_import: ["" : 18]>
      g (float[S, 8] x, float[8, S] other) => (float[S, 8] y) {{
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        size = Shape(x)
        empty = ConstantOfShape(size)
        turned = Transpose <perm: ints = [1, 0]> (empty)
        turned_k = Transpose <perm: ints = [1, 0]> (k)
        written = ScatterND(turned, places, turned_k)
        {shown}
        {row}
        hidden = Less(row, zero)
        bias = Where(hidden, low, zero)
        s0 = MatMul(q, written)
        s = Add(s0, bias)
        p = Softmax(s)
        c = MatMul(p, v)
        y = MatMul(c, wo)
      }}""")
    rng = np.random.default_rng(0)
    made = {name: rng.standard_normal((WIDTH, WIDTH)) / 3 for name in ("wq", "wk", "wv", "wo")}
    constants: dict[str, np.ndarray] = {
        **{name: data.astype(np.float32) for name, data in made.items()},
        "places": np.arange(WIDTH)[:, None],
        "first": np.array([0]),
        "zero": np.float32(0),
        "low": np.float32(-1e9),
    }
    for name, data in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(data), name))
    return model


@pytest.mark.parametrize("shown", [*SHOWN.values(), *CONTENT.values()], ids=[*SHOWN, *CONTENT])
def test_mask_that_says_nothing_of_queries_is_fused(shown: str) -> None:
    model = model_of(shown)
    made = fused(model)
    assert len(fused_nodes(made)) == 1
    rng = np.random.default_rng(1)
    feeds = {
        "x": rng.standard_normal((ROWS, WIDTH)).astype(np.float32),
        "other": rng.standard_normal((WIDTH, ROWS)).astype(np.float32),
    }
    expected = plain_session(model).run(None, feeds)
    for session in (plain_session(made), onnx_fuse.session(made)):
        check_results(session.run(None, feeds), expected)


@pytest.mark.parametrize("name", CONTENT)
def test_mask_of_pairs_made_of_the_keys_is_declined(name: str) -> None:
    model = model_of(CONTENT[name], "turned_other = Transpose(other) row = MatMul(turned_other, t)")
    result = onnx_fuse.fuse(model, threshold=None)
    assert [block.code for block in result.report.blocks] == [Code.CONTENT_BIAS]
