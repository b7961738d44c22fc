"""Functions written out compute what their calls did; where that isn't sure, they stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnx_fuse.ir.inline import written_out
from onnx_fuse.ir.load import load
from onnx_fuse.ir.save import to_proto
from tests.ir.samples import parse

HEAD = '<ir_version: 9, opset_import: ["": 17, "u": 1, "com.microsoft": 1]>'
OWN = '<domain: "u", opset_import: ["": 17, "u": 1]>'
X = np.array([-1.0, 2.0], np.float32)
# Each with what the main graph returns for X.
WRITTEN: dict[str, tuple[str, list[float]]] = {
    "an attribute given": (
        f"""{HEAD} g (float[2] x) => (y) {{ y = u.f <alpha = 0.25> (x) }}
        {OWN} f <alpha: float = 0.5> (x) => (y) {{ y = LeakyRelu <alpha: float = @alpha> (x) }}""",
        [-0.25, 2.0],
    ),
    "an attribute's default": (
        f"""{HEAD} g (float[2] x) => (y) {{ y = u.f (x) }}
        {OWN} f <alpha: float = 0.5> (x) => (y) {{ y = LeakyRelu <alpha: float = @alpha> (x) }}""",
        [-0.5, 2.0],
    ),
    "an attribute's default in a branch": (
        f"""{HEAD} g (float[2] x) => (y) {{
            c = Constant <value = bool {{1}}> ()
            y = If (c) <then_branch = a () => (r) {{ r = u.f (x) }},
                        else_branch = b () => (r) {{ r = Neg (x) }}>
        }}
        {OWN} f <alpha: float = 0.5> (x) => (y) {{ y = LeakyRelu <alpha: float = @alpha> (x) }}""",
        [-0.5, 2.0],
    ),
    "inputs left out": (
        f"""{HEAD} g (float[2] x) => (y) {{ y = u.f (x) }}
        {OWN} f (x, low, high) => (y) {{ y = Clip (x, low, high) }}""",
        [-1.0, 2.0],
    ),
    "an output left out": (
        f"""{HEAD} g (float[2] x) => (y) {{ "", y = u.f (x) }}
        {OWN} f (x) => (z, y) {{ z = Neg (x) y = Abs (z) }}""",
        [1.0, 2.0],
    ),
    "a function within another, and names used twice": (
        f"""{HEAD} g (float[2] x) => (y) {{ t = Neg (x) s = u.f (t) y = u.f (s) }}
        {OWN} f (x) => (y) {{ t = Abs (x) s = u.h (t) y = Sub (s, t) }}
        {OWN} h (x) => (y) {{ t = Add (x, x) y = Add (t, x) }}""",
        [4.0, 8.0],
    ),
    "one that a function which stays calls": (
        f"""{HEAD} g (float[2] x) => (y) {{ y = com.microsoft.k (x) }}
        <domain: "com.microsoft", opset_import: ["": 17, "u": 1]> k (x) => (y) {{ y = u.f (x) }}
        {OWN} f (x) => (y) {{ y = Neg (x) }}""",
        [1.0, -2.0],
    ),
}
DOUBLED = "\n".join(
    f"{OWN} f{step} (x) => (y) {{ t = u.f{step + 1} (x) y = u.f{step + 1} (t) }}"
    for step in range(20)
)
KEPT: dict[str, str] = {
    "no function": f"{HEAD} g (float[2] x) => (y) {{ y = Neg (x) }}",
    "one that may have a kernel": f"""{HEAD} g (float[2] x) => (y) {{ y = com.microsoft.f (x) }}
        <domain: "com.microsoft", opset_import: ["": 17]> f (x) => (y) {{ y = Neg (x) }}""",
    "another opset": f"""{HEAD} g (float[2] x) => (y) {{ y = u.f (x) }}
        <domain: "u", opset_import: ["": 12]> f (x) => (y) {{ y = Softmax <axis = 0> (x) }}""",
    "many calls of calls": f"""{HEAD} g (float[2] x) => (y) {{ y = u.f0 (x) }}
        {DOUBLED}
        {OWN} f20 (x) => (y) {{ y = Neg (x) }}""",
    "one that calls itself": f"""{HEAD} g (float[2] x) => (y) {{ y = u.f (x) }}
        {OWN} f (x) => (y) {{ y = u.f (x) }}""",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written_out_functions_compute_the_same(name: str) -> None:
    text, expected = WRITTEN[name]
    model = written_out(load(parse(text)))
    assert model is not None
    proto = to_proto(model)
    assert "u" not in {node.domain for node in proto.graph.node}
    assert "u" not in {function.domain for function in proto.functions}
    (found,) = ReferenceEvaluator(proto).run(None, {"x": X})
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


@pytest.mark.parametrize("name", KEPT)
def test_function_stays(name: str) -> None:
    assert written_out(load(parse(KEPT[name]))) is None


def test_functions_told_apart_by_their_overload_stay() -> None:
    text, _ = WRITTEN["an attribute given"]
    proto = parse(text)
    if "overload" not in onnx.FunctionProto.DESCRIPTOR.fields_by_name:
        pytest.skip("this onnx knows no overload")
    proto.functions[0].overload = proto.graph.node[0].overload = "other"
    assert written_out(load(proto)) is None
