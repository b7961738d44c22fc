"""Why projections stay outside of a fused block: what the report says of each of them."""

from __future__ import annotations

import numpy as np
import pytest

import onnx_fuse
from tests.runtime.models import parse

STEPS = {
    "q": "q = MatMul (x, wq)",
    "k": "k = MatMul (x, wk)",
    "v": "v = MatMul (x, wv)",
    "scores": "t = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, t)",
    "weights": "p = Softmax <axis = -1> (s)",
    "context": "c = MatMul (p, v)",
    "out": "y = MatMul (c, wo)",
}

REPLACEABLE = "which callers may replace: drop it from the graph's inputs if nobody does"
INPUTS = {"k": "float[2, 5, 8] k", "wq": "float[8, 8] wq", "wo": "float[8, 8] wo"}

BEFORE = "quantized: fuse before quantizing"
JOINS = "joins what the attention makes with other tensors"
QUANTIZED = "u, scale, zero = DynamicQuantizeLinear (x) m = MatMulInteger (u, u8)"

CASES: dict[str, tuple[dict[str, str], str, list[tuple[str, str]]]] = {
    "nothing": ({}, "", []),
    "queries behind an activation": (
        {"q": "a = MatMul (x, wq) q = Tanh (a)"},
        "",
        [("q", "'q' (Tanh) makes the queries")],
    ),
    "queries behind an activation, turned": (
        {"q": "a = MatMul (x, wq) b = Tanh (a) d = Unsqueeze (b, one) q = Squeeze (d, one)"},
        "",
        [("q", "'b' (Tanh) makes the queries")],
    ),
    "keys that are given": ({"k": ""}, "k", [("k", "the input 'k' holds the keys")]),
    "queries that are learned": (
        {"q": "q = Identity (learned)"},
        "",
        [("q", "the constant 'learned' holds the queries")],
    ),
    "weights that callers may replace": (
        {},
        "wq",
        [("q", f"'q' (MatMul) makes the queries with 'wq', {REPLACEABLE}")],
    ),
    "an output weight that callers may replace": (
        {"out": "d = Identity (wo) y = MatMul (c, d)"},
        "wo",
        [("out", f"'y' (MatMul) reads what the attention makes with 'wo', {REPLACEABLE}")],
    ),
    "values that are shown": (
        {"out": "y = MatMul (c, wo) z = Relu (v)"},
        "z",
        [("v", "the product 'v', which holds the values, is read by 'z' (Relu), too")],
    ),
    "values that are shown, turned": (
        {"out": "y = MatMul (c, wo) z = Transpose <perm = [0, 2, 1]> (v)"},
        "z",
        [("v", "the product 'v', which holds the values, is needed as 'z', too")],
    ),
    "keys that are the values": (
        {"v": "", "context": "c = MatMul (p, k)"},
        "",
        [
            ("k", "the product 'k', which holds the keys, holds the values, too"),
            ("v", "the product 'k', which holds the values, holds the keys, too"),
        ],
    ),
    "an activation behind the context": (
        {"out": "d = Unsqueeze (c, one) e = Relu (d) f = Squeeze (e, one) y = MatMul (f, wo)"},
        "",
        [("out", "'e' (Relu) reads what the attention makes")],
    ),
    "the context in two places": (
        {"out": "d = Transpose <perm = [0, 2, 1]> (c) e = MatMul (d, c) y = MatMul (c, e)"},
        "",
        [("out", "'d' (Transpose) reads what the attention makes")],
    ),
    "queries of a quantized product": (
        {"q": f"{QUANTIZED} f = Cast <to = 1> (m) g = Mul (f, scale) q = Add (g, learned)"},
        "",
        [("q", f"'m' (MatMulInteger) makes the queries, {BEFORE}")],
    ),
    "queries of a sum with a quantized product": (
        {"q": f"{QUANTIZED} f = Cast <to = 1> (m) g = Mul (f, scale) h = Tanh (x) q = Add (g, h)"},
        "",
        [("q", "'q' (Add) makes the queries")],
    ),
    "a quantized context": (
        {
            "out": "u, scale, zero = DynamicQuantizeLinear (c) m = MatMulInteger (u, u8) "
            "y = Cast <to = 1> (m)"
        },
        "",
        [("out", f"'u' (DynamicQuantizeLinear) reads what the attention makes, {BEFORE}")],
    ),
    "a context beside another tensor": (
        {"out": "d = Concat <axis = 1> (c, x) e = Unsqueeze (d, one) y = MatMul (e, wo)"},
        "",
        [("out", f"'d' (Concat) {JOINS} before 'y' (MatMul) reads it")],
    ),
    "nothing behind the context": (
        {"out": "y = Unsqueeze (c, one)"},
        "",
        [("out", "what the attention makes is the output 'y'")],
    ),
    "no projection at all": (
        {"q": "q = Tanh (x)", "k": "k = Relu (x)", "v": "v = Sigmoid (x)", "out": "y = Tanh (c)"},
        "",
        [
            ("q", "'q' (Tanh) makes the queries"),
            ("k", "'k' (Relu) makes the keys"),
            ("v", "'v' (Sigmoid) makes the values"),
            ("out", "'y' (Tanh) reads what the attention makes"),
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_report_says_why_projections_stay_outside(name: str) -> None:
    changed, other, expected = CASES[name]
    rng = np.random.default_rng(5)
    weights = {key: rng.standard_normal((8, 8)) for key in ("wq", "wk", "wv", "wo")}
    weights["one"] = np.ones(1)
    weights["learned"] = rng.standard_normal((2, 5, 8))
    weights["u8"] = np.abs(rng.standard_normal((8, 8)))
    types = {"one": np.int64, "u8": np.uint8}
    body = " ".join((STEPS | changed).values())
    text = f"""g ({", ".join(["float[2, 5, 8] x", *([INPUTS[other]] if other in INPUTS else [])])})
    => (float[2, 5, 8] y{", float z" if other == "z" else ""}) {{ {body} }}"""
    used = {
        key: data.astype(types.get(key, np.float32)) for key, data in weights.items() if key in body
    }
    (block,) = onnx_fuse.explain(parse(text, **used), threshold=None).blocks
    assert block.status == "fused"
    assert [(each.part, each.reason) for each in block.outside] == expected


def test_report_says_which_other_block_has_the_same_keys() -> None:
    weights = {name: np.ones((8, 8), np.float32) for name in ("wq", "wk", "wv", "wo", "wr")}
    text = """g (float[2, 5, 8] x) => (float[2, 5, 8] y, float[2, 5, 8] z) {
        k = MatMul (x, wk) t = Transpose <perm = [0, 2, 1]> (k) v = MatMul (x, wv)
        q = MatMul (x, wq) s = MatMul (q, t) p = Softmax <axis = -1> (s)
        c = MatMul (p, v) y = MatMul (c, wo)
        r = MatMul (x, wr) u = MatMul (r, t) w = Softmax <axis = -1> (u) a = Relu (v)
        d = MatMul (w, a) z = MatMul (d, wo) }"""
    blocks = onnx_fuse.explain(parse(text, **weights), threshold=None).blocks
    keys = "the product 'k', which holds the keys, is read by the attention at"
    assert [each.reason for block in blocks for each in block.outside if each.part == "k"] == [
        f"{keys} 'w', too",
        f"{keys} 'p', too",
    ]


@pytest.mark.parametrize(("shown", "is_inside"), [("z = Relu (v)", False), ("z = Relu (x)", True)])
def test_a_product_that_stays_outside_is_none_of_the_blocks_nodes(
    shown: str, is_inside: bool
) -> None:
    weights = {name: np.ones((8, 8), np.float32) for name in ("wq", "wk", "wv", "wo")}
    body = f"{' '.join(STEPS.values())} {shown}"
    text = f"g (float[2, 5, 8] x) => (float[2, 5, 8] y, float[2, 5, 8] z) {{ {body} }}"
    (block,) = onnx_fuse.explain(parse(text, **weights), threshold=None).blocks
    assert ("v" in block.understood) is is_inside
    assert {"q", "k", "c", "y"} <= {*block.understood}
