from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_fuse.ir.external import ExternalFiles
from onnx_fuse.runtime.tolerance import bound, moved_weights, relative_error, scale
from tests.runtime.models import attention, parse

FLOAT = 2.0**-24


def layers(count: int, width: int, dtype: type[np.generic] = np.float32) -> onnx.ModelProto:
    kind = "float" if dtype is np.float32 else "float16"
    names = ["x", *(f"h{i}" for i in range(count))]
    nodes = " ".join(f"{b} = MatMul ({a}, w)" for a, b in itertools.pairwise(names))
    return parse(
        f"g ({kind}[2,{width}] x) => ({kind} h{count - 1}) {{ {nodes} }}",
        w=np.zeros((width, width), dtype),
    )


def of(model: onnx.ModelProto) -> float:
    return relative_error(model, model)


def test_one_product_has_the_error_of_its_sum() -> None:
    assert of(layers(1, 400)) == pytest.approx(5 * math.sqrt(2) * FLOAT * math.sqrt(400 + 1 / 6))


@pytest.mark.parametrize(("count", "width"), [(4, 100), (1, 400)])
def test_error_grows_with_the_root_of_all_terms(count: int, width: int) -> None:
    assert of(layers(count, width)) == pytest.approx(2 * of(layers(1, 100)), rel=0.01)


def test_half_precision_allows_its_own_roundoff() -> None:
    assert of(layers(1, 64, np.float16)) == pytest.approx(
        5 * math.sqrt(2) * 2.0**-11 / math.sqrt(6), rel=0.01
    )


@pytest.mark.parametrize(
    ("nodes", "terms"),
    [
        ("y = MatMul (x, w)", 24),
        ("y = Gemm (x, w)", 24),
        ("y = Gemm <transB = 1> (x, w)", 40),
        ("t = Transpose (w) y = MatMul (x, t)", 40),
        ("y = MatMul (w, x)", 40),
        ("y = MatMul (x, x)", 64),
        ("y = Relu (x)", 0),
    ],
)
def test_terms_of_a_product_come_from_its_constant(nodes: str, terms: int) -> None:
    model = parse(f"g (float[n,n] x) => (float y) {{ {nodes} }}", w=np.zeros((24, 40), np.float32))
    expected = 5 * math.sqrt(2) * FLOAT * math.sqrt(terms + 1 / 6)
    assert of(model) == pytest.approx(expected)


@pytest.mark.parametrize("calls", [1, 4])
def test_terms_in_a_function_count_for_each_call(calls: int) -> None:
    names = ["x", *(f"h{number}" for number in range(calls))]
    nodes = " ".join(f"{b} = f.body ({a}, w)" for a, b in itertools.pairwise(names))
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[2,2] x, float[2,2] w) => (float {names[-1]}) {{ {nodes} }}
        <domain: "f", opset_import: ["" : 17]> body (a, b) => (c) {{ c = MatMul (a, b) }}""")
    inline = parse(
        f"g (float[2,2] x, float[2,2] w) => (float {names[-1]}) {{ {nodes} }}".replace(
            "f.body", "MatMul"
        )
    )
    assert of(model) == of(inline)


def test_precision_of_the_fused_node_widens_the_bound() -> None:
    fused = attention()
    fused.graph.node.append(
        onnx.helper.make_node(
            "FusedAttentionBlock", [], ["z"], domain="onnx_fuse", precision="bf16"
        )
    )
    expected = 5 * math.sqrt(2) * 2.0**-8 * math.sqrt(8 / 6)
    assert relative_error(attention(), fused) == pytest.approx(expected, rel=0.01)


def test_scale_is_the_largest_magnitude() -> None:
    assert scale(np.array([1.0, -3.0, 2.0])) == 3.0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, -3.4e38, -3.4e38], 1.0),
        ([1.0, np.inf, np.nan], 1.0),
        ([1.0, 2e4], 2e4),
        ([0.0, 0.0], 0.0),
        ([5.0, 5.0], 5.0),
        ([np.nan], 0.0),
        ([-1e38, 1e30, 1e30, 2.0, -1e38], 2.0),
    ],
    ids=["fill", "not finite", "one outlier", "zeros", "all alike", "nothing", "two fills"],
)
def test_scale_leaves_out_the_fill_of_a_mask(values: list[float], expected: float) -> None:
    assert scale(np.array(values)) == expected


def test_bound_is_the_larger_of_rounding_and_four_times_the_noise() -> None:
    right = np.array([0.5, 2.0])
    np.testing.assert_allclose(bound(1e-3, right, 0.0), [2e-3, 2e-3])
    np.testing.assert_allclose(bound(1e-3, right, 1e-3), [4e-3, 4e-3])


MOVED = {
    "a weight": ("y = MatMul (x, w)", np.float32, True),
    "a weight of half precision": ("y = MatMul (x, w)", np.float16, True),
    "a weight that is turned and converted": (
        "t = Transpose <perm = [1, 0]> (w) c = Cast <to = 1> (t) y = MatMul (x, c)",
        np.float16,
        True,
    ),
    "a weight that is scaled": ("s = Mul (w, w) y = MatMul (x, s)", np.float32, False),
    "what is added": ("y = Add (x, w)", np.float32, False),
    "a weight of double precision": ("y = MatMul (x, w)", np.float64, False),
}


@pytest.mark.parametrize("name", MOVED)
def test_weights_of_products_move_by_the_error_of_the_product(name: str) -> None:
    nodes, dtype, moves = MOVED[name]
    weight = np.random.default_rng(3).standard_normal((64, 256)).astype(dtype)
    weight = weight if "Transpose" not in nodes else weight.T.copy()
    model = parse(f"g (float[4, 64] x) => (float[4, 256] y) {{ {nodes} }}", w=weight)
    moved = moved_weights(model, ExternalFiles(Path()), seed=1)
    assert list(moved) == (["w"] if moves else [])
    for changed in moved.values():
        assert changed.dtype == dtype
        step = np.abs(changed.astype(np.float64) / weight - 1).max()
        unit = np.finfo(dtype).eps / 2
        # A sum of 64 products, or of the one that half precision rounds: to the nearest number.
        sums = unit if dtype == np.float16 else unit * math.sqrt(65)
        assert sums / 2 <= step <= sums + 2 * unit
