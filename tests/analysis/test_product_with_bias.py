"""Scores of a Gemm, which adds a bias to its product and scales both on its own."""

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


def model_of(scores: str, mask: str) -> onnx.ModelProto:
    """One head without a batch; `scores` makes s of q and k, and perhaps of the input `mask`."""
    model = onnx.parser.parse_model(f"""
      <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
      g (float[S, 8] x, float[{mask}] mask) => (float[S, 8] y) {{
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        {scores}
        p = Softmax(s)
        c = MatMul(p, v)
        y = MatMul(c, wo)
      }}""")
    rng = np.random.default_rng(0)
    for name in ("wq", "wk", "wv", "wo"):
        data = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(data, name))
    return model


def mask_of(dims: str) -> np.ndarray:
    sizes = [ROWS if dim == "S" else int(dim) for dim in dims.split(",")]
    return np.random.default_rng(1).standard_normal(sizes).astype(np.float32) * 3


def feeds_of(mask: np.ndarray) -> dict[str, np.ndarray]:
    x = np.random.default_rng(2).standard_normal((ROWS, WIDTH)).astype(np.float32)
    return {"x": x, "mask": mask}


HALVED = "s = Gemm <transB: int = 1, alpha: float = 0.35, beta: float = 0.5> (q, k, mask)"
SCALED = """
  s0 = Gemm <transB: int = 1, beta: float = 2.0> (q, k, mask)
  s = Mul(s0, factor)"""
# How the scores are made, and the extents of what is added to them.
CASES: dict[str, tuple[str, str]] = {
    "a number for each": (HALVED, "S,S"),
    "a number for each column": (HALVED, "S"),
    "a number for each column of one row": (HALVED, "1,S"),
    "a number for each row": (HALVED, "S,1"),
    "one number": (HALVED, "1,1"),
    "scaled afterwards": (SCALED.replace("factor", "scale"), "S,S"),
}


@pytest.mark.parametrize("name", CASES)
def test_bias_of_the_product_is_the_scores(name: str) -> None:
    scores, dims = CASES[name]
    model = model_of(scores, dims)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.35), "scale"))
    check_same(model, mask_of(dims))


def test_bias_that_hides_is_a_mask() -> None:
    shown = np.tril(np.ones((ROWS, ROWS), dtype=np.bool_))
    check_same(model_of(HALVED, "S,S"), np.where(shown, 0.0, -np.inf).astype(np.float32))


def test_bias_that_counts_nothing_is_not_read() -> None:
    scores = "s = Gemm <transB: int = 1, beta: float = 0.0> (q, k, mask)"
    made = check_same(model_of(scores, "S,S"), np.full((ROWS, ROWS), np.inf, dtype=np.float32))
    (node,) = fused_nodes(made)
    assert "mask" not in node.input


def check_same(model: onnx.ModelProto, mask: np.ndarray) -> onnx.ModelProto:
    made, feeds = fused(model), feeds_of(mask)
    assert len(fused_nodes(made)) == 1
    expected = plain_session(model).run(None, feeds)
    for session in (plain_session(made), onnx_fuse.session(made)):
        check_results(session.run(None, feeds), expected)
    return made


NEAR_MISSES: dict[str, tuple[str, str, Code]] = {
    "bias made of the query": (
        """m = MatMul(q, mask)
        s = Gemm <transB: int = 1> (q, k, m)""",
        "8,S",
        Code.CONTENT_BIAS,
    ),
    "activation behind the bias": (
        """s = com.microsoft.FusedGemm
          <transB: int = 1, activation: string = "Relu"> (q, k, mask)""",
        "S,S",
        Code.NO_SCORES,
    ),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_other_biases_are_declined(name: str) -> None:
    scores, dims, code = NEAR_MISSES[name]
    result = onnx_fuse.fuse(model_of(scores, dims), threshold=None)
    assert [block.code for block in result.report.blocks] == [code]
