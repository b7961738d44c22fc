"""Products of quantized numbers, known by name to say what a block meets: none is taken in."""

from __future__ import annotations

from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.ir.graph import Node, Value

# Where their operands are.
_PRODUCTS = {
    "MatMulInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "com.microsoft:DynamicQuantizeMatMul": (0, 1),
    "com.microsoft:MatMulBnb4": (0, 1),
    "com.microsoft:MatMulIntegerToFloat": (0, 1),
    "com.microsoft:MatMulNBits": (0, 1),
}
_DEQUANTIZERS = ("DequantizeLinear", "com.microsoft:DequantizeLinear")
# Whose dequantized operands onnxruntime multiplies as integers.
_OF_DEQUANTIZED = ("MatMul", "Gemm")


def is_quantized(node: Node) -> bool:
    """Return whether a node multiplies quantized numbers, or makes floats of them."""
    return node.op in _PRODUCTS or node.op in _DEQUANTIZERS


def is_quantized_product(node: Node, shapes: Facts) -> bool:
    """Return whether a node multiplies two computed tensors, one or both quantized."""
    return _computed(node, shapes) == (True, True)


def is_quantized_projection(node: Node | None, shapes: Facts) -> bool:
    """Return whether a node multiplies a computed tensor with quantized weights."""
    if node is None:
        return False
    if node.op in _OF_DEQUANTIZED and are_dequantized(node.input(0), node.input(1)):
        return shapes.is_constant(node.given[0]) != shapes.is_constant(node.given[1])
    return _computed(node, shapes) == (True, False)


def are_dequantized(left: Value | None, right: Value | None) -> bool:
    """Return whether both operands of a product are made of integers.

    onnxruntime multiplies the integers then (MatMulIntegerToFloat), faster than a block floats.
    """
    makers = [None if value is None else value.producer for value in (left, right)]
    return all(maker is not None and maker.op in _DEQUANTIZERS for maker in makers)


def _computed(node: Node, shapes: Facts) -> tuple[bool, ...]:
    """Return which operands are no constants; nothing for a node of another kind."""
    places = _PRODUCTS.get(node.op, ())
    operands = [node.input(place) for place in places]
    return tuple(value is not None and not shapes.is_constant(value) for value in operands)
