"""What a value goes into further on, and with what: a hint for declines, and no proof."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.contraction import Contraction, contraction_of, is_matrix_product
from onnx_fuse.analysis.algebra.nodes import followers, made_by
from onnx_fuse.analysis.algebra.quantized_products import is_quantized_product
from onnx_fuse.analysis.algebra.views import CARRIERS
from onnx_fuse.analysis.search import reachable
from onnx_fuse.ir.graph import Node, Use, Value

QUANTIZERS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "com.microsoft:QuantizeLinear",
        "com.microsoft:DequantizeLinear",
    }
)
# What weights may be changed by on their way, each as one of its inputs.
SCALERS = frozenset(
    {
        *("Add", "Clip", "Conv", "CumSum", "Div", "LpNormalization", "Max", "Min", "Mul", "Pad"),
        *("Pow", "Relu", "Sub", "Trilu", "Where"),
        *("com.microsoft:QLinearAdd", "com.microsoft:QLinearMul"),
    }
)
_SUMS = frozenset({"Add", "Sub", "Sum"})
_SHORT_WAY = 6  # steps in which what is computed of weights meets them again
_NEAR = 12  # steps in which the weights of an attention meet the values


def combines_weights(node: Node) -> bool:
    """Return whether a node adds or joins the weights of several softmaxes, or takes some off."""

    def scaled(value: Value) -> Sequence[Value | None]:
        made = made_by(value, *CARRIERS, *SCALERS)
        return () if made is None else made.inputs

    def softmaxes(value: Value) -> set[Node]:
        found = reachable(value, scaled, steps=_NEAR)
        return {made for each in found if (made := made_by(each, "Softmax")) is not None}

    is_one_of_several = node.op in _SUMS or node.op == "Concat"
    each = [softmaxes(value) for value in node.given] if is_one_of_several else []
    return sum(map(bool, each)) > 1 and len(set[Node]().union(*each)) > 1


def leads_to_product(node: Node, shapes: Facts, *, in_place: bool = True) -> bool:
    """Return whether a node's result goes into a product with another computed tensor.

    Views, quantization and scalings may lie between. A product of which no more than its name is
    known counts, too; with `in_place` so does a sum over what two tensors of one shape multiply.
    """

    def carried_on(node: Node) -> Sequence[Node]:
        carries = node.op in CARRIERS | QUANTIZERS | SCALERS
        if not carries or contraction_of(node, shapes) is not None:
            return ()
        return followers(node)

    def is_product(node: Node) -> bool:
        product = contraction_of(node, shapes)
        if product is not None:
            factors: Sequence[Value | None] = product.factors
            if not in_place and _is_element_by_element(product, shapes):
                return False
        elif is_matrix_product(node):
            factors = node.inputs[:2]
        else:
            return is_quantized_product(node, shapes)
        return not any(value is None or shapes.is_constant(value) for value in factors)

    return any(map(is_product, reachable(node, carried_on, steps=_NEAR - 1)))


def _is_element_by_element(product: Contraction, shapes: Facts) -> bool:
    """Return whether each row of one factor is summed up with a row of the other, its own."""
    first, second = (shapes.shape(factor) for factor in product.factors)
    return product.node.op == "ReduceSum" and first is not None and first == second


def leads_to(node: Node, other: Node) -> bool:
    """Return whether another node nearby is computed from a node's result."""
    return any(found is other for found in reachable(node, followers, steps=_SHORT_WAY))


def mixing(node: Node, others: Sequence[Node], shapes: Facts) -> Node | None:
    """Return the nearest node that combines what readers of a value make, before any product."""

    def onward(node: Node) -> Sequence[Node]:
        carries = node.op in CARRIERS | SCALERS and contraction_of(node, shapes) is None
        return followers(node) if carries else ()

    found = {each for other in others for each in reachable(other, onward, steps=_SHORT_WAY)}
    ways = reachable(node, onward, steps=_SHORT_WAY)
    return next((each for each in ways if each.op in SCALERS and each in found), None)


def meets_itself(use: Use, uses: list[Use]) -> bool:
    """Return whether one of a value's readers also reads what others compute of it."""
    others = [other.node for other in uses if other.node is not use.node]
    return any(leads_to(other, use.node) for other in others)


def is_made_of(value: Value, sources: Sequence[Value], shapes: Facts) -> bool:
    """Return whether a value nearby is computed from one of others, with no product between."""

    def above(value: Value) -> Sequence[Value]:
        node = value.producer
        return () if node is None or contraction_of(node, shapes) is not None else node.given

    return any(found in sources for found in reachable(value, above, steps=_SHORT_WAY))
