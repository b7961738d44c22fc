"""What stands below a cache is in the cache: it may not move out of the keys."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.check import check_results, fused, fused_nodes
from tests.analysis.samples.builder import Array
from tests.sessions import plain_session

# Queries, keys and values by heads, (batch, heads, rows, depth).
PROJECTED = """
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    q1 = Reshape(q, split)
    k1 = Reshape(k, split)
    v1 = Reshape(v, split)
    q2 = Transpose <perm: ints = [0, 2, 1, 3]> (q1)
    k2 = Transpose <perm: ints = [0, 2, 1, 3]> (k1)
    v2 = Transpose <perm: ints = [0, 2, 1, 3]> (v1)
"""
# Keys are scaled before they are joined with the past, after it, or both.
SCALED = {
    "below": ("k3 = Mul(k2, h)", "k5 = Identity(present)"),
    "above": ("k3 = Identity(k2)", "k5 = Mul(present, h)"),
    "both": ("k3 = Mul(k2, h)", "k5 = Mul(present, h)"),
    "divided below": ("k3 = Div(k2, h)", "k5 = Identity(present)"),
}


def _add_weights(model: onnx.ModelProto, random: np.random.Generator) -> None:
    for name in ("wq", "wk", "wv", "wo"):
        data = (random.standard_normal((32, 32)) / 6).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(data, name))


def _check_same(model: onnx.ModelProto, made: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    check_results(*(plain_session(each).run(None, feeds) for each in (made, model)))


@pytest.mark.parametrize("name", SCALED)
def test_cache_holds_the_keys_as_they_were_joined(name: str) -> None:
    below, above = SCALED[name]
    model = onnx.parser.parse_model(f"""
      <ir_version: 8, opset_import: ["" : 17]>
      g (float[1,3,32] x, float[1,2,4,16] past, float[1,2,4,16] past_v)
          => (float[1,3,32] y, float[1,2,7,16] present, float[1,2,7,16] present_v)
      <int64[4] split = {{1, 3, 2, 16}}, int64[3] flat = {{1, 3, 32}}, float h = {{0.25}}> {{
        {PROJECTED}
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
    _add_weights(model, random)
    feeds = {
        value.name: random.standard_normal(
            [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for value in model.graph.input
    }
    made = fused(model)
    _check_same(model, made, feeds)


# A Reshape says before opset 14 no extent of 0: there the cache stays outside.
KEPT = "hidden,qkv_weight,past_key,past_value"
FLAT = {13: "hidden,key,value,q_weight", 14: KEPT, 21: KEPT}


@pytest.mark.parametrize("opset", FLAT)
def test_cache_of_heads_beside_batches_may_be_empty(opset: int) -> None:
    model = onnx.parser.parse_model(f"""
      <ir_version: 8, opset_import: ["" : {opset}]>
      g (float[b, s, 32] x, float[n, p, 16] past, float[n, p, 16] past_v)
          => (float[b, s, 32] y, float[n, t, 16] present, float[n, t, 16] present_v)
      <int64[4] split = {{0, 0, 2, 16}}, int64[3] flat = {{0, 0, 32}}, float h = {{0.25}},
       int64[3] heads = {{-1, 0, 16}}, int64[1] two = {{2}}, int64[1] depth = {{16}},
       int64[1] zero = {{0}}, int64[1] one = {{1}}> {{
        shape = Shape(x)
        b = Gather(shape, zero)
        s = Gather(shape, one)
        n = Mul(b, two)
        merged = Concat <axis: int = 0> (n, s, depth)
        apart = Concat <axis: int = 0> (b, two, s, depth)
        {PROJECTED}
        q3 = Reshape(q2, merged)
        k3 = Reshape(k2, merged)
        v3 = Reshape(v2, merged)
        present = Concat <axis: int = 1> (past, k3)
        present_v = Concat <axis: int = 1> (past_v, v3)
        k4 = Transpose <perm: ints = [0, 2, 1]> (present)
        scores = MatMul(q3, k4)
        scaled = Mul(scores, h)
        w = Softmax <axis: int = -1> (scaled)
        c = MatMul(w, present_v)
        c1 = Reshape(c, apart)
        c2 = Transpose <perm: ints = [0, 2, 1, 3]> (c1)
        c3 = Reshape(c2, flat)
        y = MatMul(c3, wo)
      }}""")
    random = np.random.default_rng(0)
    _add_weights(model, random)
    made = fused(model)
    (node,) = fused_nodes(made)
    operands = next(a.s.decode() for a in node.attribute if a.name == "operands")
    assert operands.startswith(FLAT[opset])
    for past in (0, 5):
        x = random.standard_normal((2, 3, 32)).astype(np.float32)
        caches = random.standard_normal((2, 4, past, 16)).astype(np.float32)
        feeds = {"x": x, "past": caches[0], "past_v": caches[1]}
        _check_same(model, made, feeds)


# A mask has a name of its own for the columns, so that nobody knows how many weights there are.
# Folded, they leave an extent open: for batches and heads, or for parts of the columns as well.
FOLDED = {"heads": ("s, t", None), "columns": ("s, s", Code.UNSUPPORTED_OP)}


@pytest.mark.parametrize("folds", FOLDED)
def test_what_a_mask_hides_of_a_cache_is_folded_with_its_heads(folds: str) -> None:
    kept, code = FOLDED[folds]
    model = onnx.parser.parse_model(f"""
      <ir_version: 8, opset_import: ["" : 17]>
      g (float[b, s, 32] x, float[b, 2, p, 16] past, float[b, 2, p, 16] past_v, float[m] hidden)
          => (float[b, s, 32] y)
      <int64[4] split = {{0, 0, 2, 16}}, int64[3] flat = {{0, 0, 32}}, int64[1] open = {{-1}},
       int64[1] two = {{2}}, int64[1] depth = {{16}}> {{
        shape = Shape(x)
        b = Slice(shape, zero, one)
        s = Slice(shape, one, two)
        {PROJECTED}
        present = Concat <axis: int = 2> (past, k2)
        present_v = Concat <axis: int = 2> (past_v, v2)
        long = Shape(present)
        t = Slice(long, two, three)
        k6 = Transpose <perm: ints = [0, 1, 3, 2]> (present)
        scores = MatMul(q2, k6)
        masked = Add(scores, hidden)
        w = Softmax <axis: int = -1> (masked)
        folded = Concat <axis: int = 0> (open, {kept})
        w1 = Reshape(w, folded)
        values = Concat <axis: int = 0> (open, {kept.split(", ")[1]}, depth)
        v4 = Reshape(present_v, values)
        c = MatMul(w1, v4)
        apart = Concat <axis: int = 0> (b, two, open, depth)
        c1 = Reshape(c, apart)
        c2 = Transpose <perm: ints = [0, 2, 1, 3]> (c1)
        c3 = Reshape(c2, flat)
        y = MatMul(c3, wo)
      }}""")
    random = np.random.default_rng(0)
    _add_weights(model, random)
    for name, number in (("zero", 0), ("one", 1), ("three", 3)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([number]), name))
    result = onnx_fuse.fuse(model, threshold=None)
    assert [block.code for block in result.report.blocks] == [code]
    for past in (0, 5):
        caches = random.standard_normal((2, 3, 2, past, 16)).astype(np.float32)
        feeds = {"x": random.standard_normal((3, 5, 32)).astype(np.float32)}
        feeds |= {"past": caches[0], "past_v": caches[1]}
        feeds["hidden"] = random.standard_normal(past + 5).astype(np.float32)
        _check_same(model, result.model, feeds)


def test_length_of_a_cache_is_asked_before_the_query_is_made() -> None:
    model = onnx.parser.parse_model(f"""
      <ir_version: 8, opset_import: ["" : 17]>
      g (float[b, s, 32] x, float[b, 2, p, 16] past, float[b, 2, p, 16] past_v)
          => (float[b, s, 32] y, float[b, 2, t, 16] present, float[b, 2, t, 16] present_v)
      <int64[4] split = {{0, 0, 2, 16}}, int64[3] flat = {{0, 0, 32}}, int64 two = {{2}},
       int64 zero = {{0}}, int64 one = {{1}}> {{
        y0 = Sigmoid(x)
        {PROJECTED.replace("(x, ", "(y0, ")}
        present = Concat <axis: int = 2> (past, k2)
        present_v = Concat <axis: int = 2> (past_v, v2)
        long = Shape(present)
        t = Gather(long, two)
        places = Range(zero, t, one)
        bias = Cast <to: int = 1> (places)
        q3 = Relu(q2)
        k6 = Transpose <perm: ints = [0, 1, 3, 2]> (present)
        scores = MatMul(q3, k6)
        biased = Add(scores, bias)
        w = Softmax <axis: int = -1> (biased)
        c = MatMul(w, present_v)
        c2 = Transpose <perm: ints = [0, 2, 1, 3]> (c)
        c3 = Reshape(c2, flat)
        y = MatMul(c3, wo)
      }}""")
    random = np.random.default_rng(0)
    _add_weights(model, random)
    made = fused(model)
    (node,) = fused_nodes(made)
    assert len(node.output) == 3
    x = random.standard_normal((2, 3, 32)).astype(np.float32)
    caches = random.standard_normal((2, 2, 2, 4, 16)).astype(np.float32)
    feeds = {"x": x, "past": caches[0], "past_v": caches[1]}
    _check_same(model, made, feeds)
