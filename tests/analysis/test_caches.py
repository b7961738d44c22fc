"""What stands below a cache is in the cache: it may not move out of the keys."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from tests.analysis.check import check_results, fused, plain_session

# Keys are scaled before they are joined with the past, after it, or both.
SCALED = {
    "below": ("k3 = Mul(k2, h)", "k5 = Identity(present)"),
    "above": ("k3 = Identity(k2)", "k5 = Mul(present, h)"),
    "both": ("k3 = Mul(k2, h)", "k5 = Mul(present, h)"),
    "divided below": ("k3 = Div(k2, h)", "k5 = Identity(present)"),
}


@pytest.mark.parametrize("name", SCALED)
def test_cache_holds_the_keys_as_they_were_joined(name: str) -> None:
    below, above = SCALED[name]
    model = onnx.parser.parse_model(f"""
      <ir_version: 8, opset_import: ["" : 17]>
      g (float[1,3,32] x, float[1,2,4,16] past, float[1,2,4,16] past_v)
          => (float[1,3,32] y, float[1,2,7,16] present, float[1,2,7,16] present_v)
      <int64[4] split = {{1, 3, 2, 16}}, int64[3] flat = {{1, 3, 32}}, float h = {{0.25}}> {{
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        q1 = Reshape(q, split)
        k1 = Reshape(k, split)
        v1 = Reshape(v, split)
        q2 = Transpose <perm: ints = [0, 2, 1, 3]> (q1)
        k2 = Transpose <perm: ints = [0, 2, 1, 3]> (k1)
        v2 = Transpose <perm: ints = [0, 2, 1, 3]> (v1)
        {below}
        present = Concat <axis: int = 2> (past, k3)
        present_v = Concat <axis: int = 2> (past_v, v2)
        {above}
        k6 = Transpose <perm: ints = [0, 1, 3, 2]> (k5)
        s = MatMul(q2, k6)
        w = Softmax(s)
        c = MatMul(w, present_v)
        c1 = Transpose <perm: ints = [0, 2, 1, 3]> (c)
        c2 = Reshape(c1, flat)
        y = MatMul(c2, wo)
      }}""")
    random = np.random.default_rng(0)
    for weight in ("wq", "wk", "wv", "wo"):
        data = (random.standard_normal((32, 32)) / 6).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(data, weight))
    feeds = {
        value.name: random.standard_normal(
            [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for value in model.graph.input
    }
    made = fused(model)
    expected = plain_session(model).run(None, feeds)
    check_results(plain_session(made).run(None, feeds), expected)
