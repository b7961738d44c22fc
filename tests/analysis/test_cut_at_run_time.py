"""Parts of attention that are cut out at a place that only a run knows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnx_fuse
from tests.analysis.verdicts import operands
from tests.sessions import plain_session

LINES = {
    "p": "p = MatMul(x, w)",
    "e": "e = Add(start, width)",
    "q0": "q0 = Slice(p, zero, width, axis)",
    "k0": "k0 = Slice(p, width, twice, axis)",
    "v0": "v0 = Slice(p, twice, thrice, axis)",
    "q1": "q1 = Reshape(q0, heads)",
    "k1": "k1 = Reshape(k0, heads)",
    "v1": "v1 = Reshape(v0, heads)",
    "q": "q = Transpose<perm = [0, 2, 1, 3]>(q1)",
    "k": "k = Transpose<perm = [0, 2, 3, 1]>(k1)",
    "v": "v = Transpose<perm = [0, 2, 1, 3]>(v1)",
    "s": "s = MatMul(q, k)",
    "a": "a = Softmax<axis = -1>(s)",
    "c": "c = MatMul(a, v)",
    "c1": "c1 = Transpose<perm = [0, 2, 1, 3]>(c)",
    "y": "y = Reshape(c1, flat)",
}
_RNG = np.random.default_rng(0)
CONSTANTS = {
    "w": _RNG.standard_normal((32, 96)).astype(np.float32) / 4,
    "rows": _RNG.standard_normal((8, 1)).astype(np.float32),
    "lanes": _RNG.standard_normal(96).astype(np.float32),
    "zero": np.array([0]),
    "width": np.array([32]),
    "twice": np.array([64]),
    "thrice": np.array([96]),
    "end": np.array([128]),
    "axis": np.array([2]),
    "heads": np.array([2, 8, 4, 8]),
    "flat": np.array([2, -1, 32]),
}
CUT: dict[str, dict[str, str]] = {
    "nothing": {},
    "queries": {"q0": "q0 = Slice(p, start, e, axis)"},
    "keys": {"k0": "k0 = Slice(p, start, e, axis)"},
    "values": {"v0": "v0 = Slice(p, start, e, axis)"},
    "queries that aren't projected": {
        "p": "p0 = MatMul(x, w)\n p = Tanh(p0)",
        "q0": "q0 = Slice(p, start, e, axis)",
    },
    "queries with a bias": {
        "p": "p0 = MatMul(x, w)\n p = Add(p0, lanes)",
        "q0": "q0 = Slice(p, start, e, axis)",
    },
    "scaled scores": {
        "s": "s0 = MatMul(q, k)\n s1 = Mul(s0, rows)\n s = Slice(s1, start, end, axis)"
    },
    "scores with a bias": {
        "s": "s0 = MatMul(q, k)\n s1 = Add(s0, rows)\n s = Slice(s1, start, end, axis)"
    },
    "scaled weights": {
        "a": "a0 = Softmax<axis = -1>(s)\n a1 = Mul(a0, rows)\n a = Slice(a1, start, end, axis)"
    },
    "scaled queries": {
        "q": "q2 = Transpose<perm = [0, 2, 1, 3]>(q1)\n q3 = Mul(q2, rows)\n"
        " q = Slice(q3, start, end, axis)"
    },
    "scaled context": {
        "c": "c0 = MatMul(a, v)\n c2 = Mul(c0, rows)\n c = Slice(c2, start, end, axis)"
    },
}


def model_of(change: dict[str, str]) -> onnx.ModelProto:
    lines = {**LINES, **change}
    text = "\n ".join(lines.values())
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 17]>
        g (float[2, 8, 32] x, int64[1] start) => (float[2, rows_out, 32] y) {{ {text} }}"""
    )
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in CONSTANTS.items()
    )
    return model


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("start", [0, 3])
def test_place_that_only_a_run_knows_is_no_number(name: str, start: int) -> None:
    model = model_of(CUT[name])
    fused = onnx_fuse.fuse(model, threshold=None).model
    feeds = {
        "x": np.random.default_rng(1).standard_normal((2, 8, 32)).astype(np.float32),
        "start": np.array([start]),
    }
    right, made = (plain_session(each).run(None, feeds)[0] for each in (model, fused))
    np.testing.assert_allclose(made, right, rtol=1e-3, atol=1e-4)


def test_what_a_constant_cuts_is_projected_and_what_a_run_cuts_is_given() -> None:
    whole = onnx_fuse.fuse(model_of(CUT["nothing"]), threshold=None).model
    assert operands(whole) == [("hidden", "qkv_weight")]
    for name in ("queries", "queries that aren't projected"):
        cut = onnx_fuse.fuse(model_of(CUT[name]), threshold=None).model
        assert operands(cut) == [("query", "key", "value")]
