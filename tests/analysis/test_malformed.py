"""Graphs that break ONNX's rules: the block is declined, in words that a user understands."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import pytest

import onnx_fuse
from onnx_fuse.analysis.algebra.axes import evaluate
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.report import Code
from tests.analysis.samples.twins import twin
from tests.analysis.verdicts import check_says_why


def without_last_input(node: onnx.NodeProto) -> None:
    del node.input[-1]


def with_longer_attribute(node: onnx.NodeProto) -> None:
    node.attribute[0].ints.append(9)


# The operator, which of its nodes, how it is broken, and where that shows.
BROKEN: dict[str, tuple[str, int, Callable[[onnx.NodeProto], None], str]] = {
    "bias of queries missing": ("Add", 0, without_last_input, "query"),
    "bias of keys missing": ("Add", 1, without_last_input, "key"),
    "scale missing": ("Mul", 0, without_last_input, "softmax"),
    "permutation longer than the context": ("Transpose", -1, with_longer_attribute, "values"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_rules_is_named_without_the_words_of_python(name: str) -> None:
    op_type, which, breaks, step = BROKEN[name]
    model = twin().model
    breaks([node for node in model.graph.node if node.op_type == op_type][which])
    result = onnx_fuse.fuse(model, threshold=None)
    (block,) = result.report.blocks
    assert block.code is Code.MALFORMED
    assert block.reason == Code.MALFORMED.reason(node=block.node, what=step)
    check_says_why(block, model)
    assert result.model.SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize(("sizes", "is_whole"), [([1, 1, 1], True), ([2, 1, 1], False)])
def test_parts_of_more_than_there_is_are_no_part_of_a_projection(
    sizes: list[int], is_whole: bool
) -> None:
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 17]>
      g (float[2, 5, 32] x) => (float[2, 5, 32] y)
        <int64[5] cut = {{2, 5, 3, 4, 8}}, int64[3] sizes = {{{str(sizes)[1:-1]}}},
         int64[3] flat = {{2, 5, 32}}> {{
        p = MatMul(x, w)
        c = Reshape(p, cut)
        t = Transpose <perm = [2, 0, 3, 1, 4]> (c)
        a, b, d = Split <axis = 0> (t, sizes)
        q = Gather <axis = 0> (a, zero)
        k = Gather <axis = 0> (b, zero)
        v = Gather <axis = 0> (d, zero)
        turned = Transpose <perm = [0, 1, 3, 2]> (k)
        s = MatMul(q, turned)
        weights = Softmax <axis = -1> (s)
        context = MatMul(weights, v)
        back = Transpose <perm = [0, 2, 1, 3]> (context)
        y = Reshape(back, flat)
      }}""")
    weight = np.random.default_rng(0).standard_normal((32, 96)).astype(np.float32)
    model.graph.initializer.extend(
        (
            onnx.numpy_helper.from_array(weight, "w"),
            onnx.numpy_helper.from_array(np.array(0), "zero"),
        )
    )
    (block,) = onnx_fuse.fuse(model, threshold=None).report.blocks
    assert ([each.part for each in block.outside] == ["out"]) == is_whole


_MOST_BYTES = 2**30  # that a block of any depth takes


@pytest.mark.parametrize(("depth", "code"), [(2**20, None), (2**31, Code.MALFORMED)])
def test_heads_deeper_than_any_are_not_looked_at_lane_by_lane(
    depth: int, code: Code | None
) -> None:
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 17]>
        g (float[1,2,3,{depth}] q, float[1,2,{depth},5] k, float[1,2,5,4] v) => (float[1,2,3,4] y)
        {{ s = MatMul(q, k) p = Softmax<axis = -1>(s) y = MatMul(p, v) }}""")
    tracemalloc.start()
    (block,) = onnx_fuse.explain(model, threshold=None).blocks
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert block.code is code
    assert most < _MOST_BYTES


def test_places_outside_of_an_axis_are_no_view() -> None:
    for place, found in ((-4, None), (-3, 0), (2, 2), (3, None), (2**43, None)):
        axis = Space().picked((), np.array([place]), Dim.of(3))
        assert (None if axis is None else int(evaluate(axis, {}))) == found


def test_type_that_is_no_number_is_not_known() -> None:
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 17]>
        g (float[3] x) => (float[3] y) { c = Cast<to = 1>(x) y = Relu(c) }""")
    model.graph.node[0].attribute[0].type = onnx.AttributeProto.TENSORS
    loaded = onnx_fuse.load(model)
    assert Shapes(loaded).dtype(loaded.graph.nodes[0].made[0]) is None


def test_the_same_unbroken_is_fused() -> None:
    assert onnx_fuse.fuse(twin().model, threshold=None).report.num_fused == 1
