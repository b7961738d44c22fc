"""What is read of a product is what onnxruntime computes, or nothing is read of it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from onnx_fuse.analysis.algebra.contraction import Contraction, Labels, contraction_of
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.ir.load import load
from tests.analysis.samples.builder import Array
from tests.sessions import plain_session

# The inputs' shapes, and the node; behind it is nothing.
READ = {
    "matrices": ("x[3,4], y[4,5]", "z = MatMul (x, y)"),
    "matrices of each batch": ("x[2,3,4], y[2,4,5]", "z = MatMul (x, y)"),
    "one matrix for all batches": ("x[2,3,4], y[1,4,5]", "z = MatMul (x, y)"),
    "matrices without a batch": ("x[2,3,4], y[4,5]", "z = MatMul (x, y)"),
    "rows and a vector": ("x[2,3,4], y[4]", "z = MatMul (x, y)"),
    "a vector and columns": ("x[4], y[2,4,5]", "z = MatMul (x, y)"),
    "two vectors": ("x[4], y[4]", "z = MatMul (x, y)"),
    "a Gemm": ("x[4,3], y[5,4]", "z = Gemm <transA = 1, transB = 1, alpha = 0.5> (x, y)"),
    "a biased Gemm": ("x[3,4], y[4,5], c[3,1]", "z = Gemm <beta = 2.0> (x, y, c)"),
    "a Gemm biased by column": ("x[3,4], y[4,5], c[5]", "z = Gemm (x, y, c)"),
    "matrices with the batch inside": (
        "x[3,2,4], y[2,4,5]",
        "z = com.microsoft.FusedMatMul <transBatchA = 1, alpha = 0.5> (x, y)",
    ),
    "a convolution": ("x[2,4,3], y[5,4,1]", "z = Conv (x, y)"),
    "a biased convolution": ("x[2,4,3,2], y[5,4,1,1], c[5]", "z = Conv (x, y, c)"),
    "a convolution by step 1": (
        "x[2,4,3], y[5,4,1]",
        'z = Conv <strides = [1], auto_pad = "SAME_UPPER"> (x, y)',
    ),
    "a convolution with no padding": ("x[2,4,3], y[5,4,1]", "z = Conv <pads = [0, 0]> (x, y)"),
    "labels": ("x[2,3,4], y[2,5,4]", 'z = Einsum <equation = "bsd, btd -> bts"> (x, y)'),
    "labels of several sums": (
        "x[2,3,4], y[5,3,4]",
        'z = Einsum <equation = "bnd,tnd->tb"> (x, y)',
    ),
    "labels that broadcast": (
        "x[1,3,4], y[2,5,4]",
        'z = Einsum <equation = "bsd,btd->bst"> (x, y)',
    ),
    "labels behind a run": ("x[2,3,4], y[5,4]", 'z = Einsum <equation = "...sd,td->...st"> (x, y)'),
    "a sum of products": (
        "x[2,3,4], y[2,1,4]",
        "p = Mul (x, y) z = ReduceSum <keepdims = 0> (p, i)",
    ),
    "a sum of products that keeps its axis": (
        "x[2,3,4], y[4]",
        "p = Mul (x, y) z = ReduceSum (p, i)",
    ),
    "a sum of products, turned before": (
        "x[2,3,4], y[2,1,4]",
        "p = Mul (x, y) t = Transpose <perm = [1, 0, 2]> (p) z = ReduceSum <keepdims = 0> (t, i)",
    ),
    "a sum of products, turned twice, that keeps its axis": (
        "x[4,2,3], y[4,1,3]",
        """p = Mul (x, y) t = Transpose <perm = [1, 2, 0]> (p)
        u = Transpose <perm = [1, 0, 2]> (t) z = ReduceSum (u, i)""",
    ),
}
UNREAD = {
    "a sum over an axis of one factor": (
        "x[2,3,4], y[2,5,6]",
        'z = Einsum <equation = "bsd,bte->bst"> (x, y)',
    ),
    "a diagonal": ("x[2,3,3], y[2,3,5]", 'z = Einsum <equation = "bss,bst->bt"> (x, y)'),
    "labels of an implied result": ("x[3,4], y[4,5]", 'z = Einsum <equation = "sd,dt"> (x, y)'),
    "labels of three": (
        "x[3,4], y[4,5], c[5,6]",
        'z = Einsum <equation = "sd,dt,tu->su"> (x, y, c)',
    ),
    "labels of one": ("x[3,4]", 'z = Einsum <equation = "sd->ds"> (x)'),
    "a sum of one broadcast factor": (
        "x[2,3,4], y[2,3,1]",
        "p = Mul (x, y) z = ReduceSum <keepdims = 0> (p, i)",
    ),
    "a sum of sums": ("x[2,3,4], y[2,3,4]", "p = Add (x, y) z = ReduceSum <keepdims = 0> (p, i)"),
    "a sum of products that others read": (
        "x[2,3,4], y[2,3,4]",
        "p = Mul (x, y) s = ReduceSum <keepdims = 1> (p, i) z = Div (p, s)",
    ),
    "a sum of one broadcast factor, turned": (
        "x[2,4,3], y[2,1,3]",
        "p = Mul (x, y) t = Transpose <perm = [0, 2, 1]> (p) z = ReduceSum <keepdims = 0> (t, i)",
    ),
    "a sum of turned products that others read": (
        "x[2,4,4], y[2,4,4]",
        """p = Mul (x, y) t = Transpose <perm = [0, 2, 1]> (p)
        s = ReduceSum <keepdims = 1> (t, i) z = Div (t, s)""",
    ),
    "a Gemm with an activation": (
        "x[3,4], y[4,5]",
        'z = com.microsoft.FusedGemm <activation = "Relu"> (x, y)',
    ),
    "a convolution of neighbours": ("x[2,4,3], y[5,4,2]", "z = Conv (x, y)"),
    "a convolution by steps of 2": ("x[2,4,3], y[5,4,1]", "z = Conv <strides = [2]> (x, y)"),
    "a padded convolution": ("x[2,4,3], y[5,4,1]", "z = Conv <pads = [1, 1]> (x, y)"),
    "a convolution of groups": ("x[2,4,3], y[6,2,1]", "z = Conv <group = 2> (x, y)"),
    "a transposed vector": (
        "x[4], y[4,5]",
        "z = com.microsoft.FusedMatMul <transA = 1> (x, y)",
    ),
}


def product(inputs: str, nodes: str) -> tuple[Contraction | None, Array, dict[str, Array]]:
    """Return what is read of the node that makes s or z, that result, and the tensors."""
    given = ", ".join(f"float{word[1:]} {word[0]}" for word in inputs.replace(", ", " ").split())
    made = "s" if " s = " in nodes else "z"
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> g ({given}) =>'
        f" (float {made}) <int64[1] i = {{-1}}> {{ {nodes} }}"
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    graph = load(model)
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.standard_normal(
            [d.dim_value for d in value.type.tensor_type.shape.dim], np.float32
        )
        for value in model.graph.input
    }
    node = next(n for n in graph.graph.nodes if n.made and n.made[0].name == made)
    (result,) = plain_session(model).run([made], feeds)
    return contraction_of(node, Shapes(graph)), result, feeds


def evaluated(read: Contraction, tensors: dict[str, Array]) -> Array:
    """Return what a contraction says that its node makes, axes of extent 1 that broadcast apart."""
    labels = dict.fromkeys((*read.left_labels, *read.right_labels, *read.out_labels))
    numbers = {label: place for place, label in enumerate(labels) if label is not None}

    def term(name: str, own: Labels) -> tuple[Array, list[int]]:
        left_out = tuple(axis for axis, label in enumerate(own) if label is None)
        return tensors[name].squeeze(left_out), [
            numbers[label] for label in own if label is not None
        ]

    out = [numbers[label] for label in read.out_labels if label is not None]
    factors = (*term(read.left.name, read.left_labels), *term(read.right.name, read.right_labels))
    made = read.alpha * np.einsum(*factors, out)
    if read.bias is not None:
        bias, own = term(read.bias.name, read.bias_labels)
        shape = [made.shape[out.index(label)] if label in own else 1 for label in out]
        made = made + read.beta * bias.reshape(shape)
    return np.asarray(made)


@pytest.mark.parametrize("name", READ)
def test_product_is_read_as_it_is_computed(name: str) -> None:
    read, expected, tensors = product(*READ[name])
    assert read is not None
    found = evaluated(read, tensors)
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=1e-5)
    kept = [
        extent
        for extent, label in zip(expected.shape, read.out_labels, strict=True)
        if label is not None
    ]
    assert list(found.shape) == kept


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_no_product_of_two_tensors_is_not_read(name: str) -> None:
    assert product(*UNREAD[name])[0] is None
