"""What a value is computed from, and where it leads: asked of the graph alone, not of its axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from onnx_fuse.analysis.algebra.nodes import SIZES, inputs_of, made_by
from onnx_fuse.analysis.algebra.views import CARRIERS, carried
from onnx_fuse.analysis.search import reachable
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Kind

LONGEST_TRACE = 60  # nodes followed towards an origin
NEAR = 8  # steps within which values belong together, as the operands of self-attention
_SEARCHED = 4000  # nodes searched for a dependence
_MOST_OF_CONSTANTS = 200  # values above one that is of constants alone
_NORMS = frozenset(
    {
        "LayerNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "InstanceNormalization",
    }
)
# Views whose further inputs are sizes and places, not numbers.
_SIZED = frozenset({"Reshape", "Expand", "Tile", "Slice", "Split", "Squeeze", "Unsqueeze"})
TYPED = frozenset({"CastLike"})  # nothing but the type of their second input is read
_PRODUCTS = frozenset({"MatMul", "Einsum", "Add"})
_WEIGHS = frozenset({"MatMul", "Einsum", "com.microsoft:FusedMatMul"})
_COMPARES = frozenset(
    {
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "IsNaN",
        "IsInf",
        "Not",
        "And",
        "Or",
        "Sign",
    }
)


def comes_from_softmax(value: Value) -> bool:
    """Return whether a value is computed from weights, with no norm between."""
    found = reachable(value, _unnormed, steps=LONGEST_TRACE - 1, limit=_SEARCHED)
    return any(made_by(above, "Softmax") for above in found)


def _unnormed(value: Value) -> Sequence[Value | None]:
    """Return what a value is computed from, if not by a norm, nor from a shape."""
    return () if made_by(value, *_NORMS, *SIZES) else inputs_of(value)


def _numbers(value: Value) -> Sequence[Value]:
    """Return the values, but for constants, whose numbers make a value's.

    A comparison's result is a choice, not a number, and a shape is neither.
    """
    return () if made_by(value, *_COMPARES, *SIZES) else _computed(value)


def unshaped(value: Value) -> Sequence[Value]:
    """Return what a value is computed from, but for constants, if not from a shape or type."""
    return () if made_by(value, "Shape") else _computed(value)


def _computed(value: Value) -> Sequence[Value]:
    sources = inputs_of(value)[:1] if made_by(value, *_SIZED, *TYPED) else inputs_of(value)
    return [found for found in sources if found is not None and found.constant is None]


def depends_on(value: Value, sources: set[Value]) -> bool:
    """Return whether numbers of `value` are computed from numbers of a source.

    What another attention makes is of all rows at once, no longer of the source's own.
    """
    return any(found in sources for found in reachable(value, _of_rows, limit=_SEARCHED))


def _of_rows(value: Value) -> Sequence[Value]:
    """Return the values whose numbers make a value's, if they aren't an attention's result."""
    return () if _is_context(value) else _numbers(value)


def _is_context(value: Value) -> bool:
    """Return whether a value is a product of a softmax's weights and computed values."""
    node = value.producer
    if node is None or node.op not in _WEIGHS:
        return node is not None and node.op.endswith("Attention")
    factors = [factor for factor in node.inputs if factor is not None]
    return any(map(_is_softmax, factors)) and all(factor.constant is None for factor in factors)


def _is_softmax(value: Value) -> bool:
    """Return whether a value is a softmax's result, perhaps guarded, seen in another way."""
    above = reachable(value, _seen, steps=NEAR)
    return any(made_by(found, "Softmax") for found in above)


def _seen(value: Value) -> Sequence[Value | None]:
    return inputs_of(value)[1:] if made_by(value, "Where") else carried(value)


def is_of_constants(value: Value) -> bool:
    """Return whether a value is computed from constants, and shapes perhaps, alone; few of them.

    What many layers compute is not searched to its end in each of them.
    """
    found = reachable(value, unshaped, limit=_MOST_OF_CONSTANTS)
    for count, each in enumerate(found, 1):
        node = each.producer
        is_open = node is None or node.subgraph_of or not node.inputs
        if count == _MOST_OF_CONSTANTS or (is_open and each.constant is None):
            return False
    return True


def needs(
    value: Value,
    made: set[Value],
    sources: Callable[[Value], Sequence[Value]] = unshaped,
) -> bool:
    """Return whether a value is computed from one of `made`, other than from its shape or type.

    sources: what a value is computed from, if it is to be asked in another way.
    """
    graphs = {found.graph for found in made}
    ranks = [-math.inf if found.producer is None else found.producer.rank for found in made]
    first = min(ranks, default=math.inf)

    def behind(found: Value) -> Sequence[Value]:
        """Return the sources of a value, if its node doesn't stand before all that make `made`."""
        node = found.producer
        is_before = node is not None and {node.graph} == graphs and node.rank < first
        return () if is_before else sources(found)

    return any(found in made for found in reachable(value, behind))


def kind_of(query: Value, key: Value, value: Value) -> Kind:
    """Return "self" if query and keys (or values) come from one tensor nearby, else "cross"."""
    near, keys, values = ({*reachable(v, _numbers, steps=NEAR)} for v in (query, key, value))
    return "cross" if near.isdisjoint(keys | values) else "self"


def joins(value: Value | None, *, through_products: bool) -> list[Node]:
    """Return the Concat nodes that a value reaches through views, sums and (if asked) products."""
    carries = CARRIERS | _PRODUCTS if through_products else CARRIERS

    def results(current: Value) -> Sequence[Value | None]:
        carriers = [use.node for use in current.uses if use.node.op in carries]
        return [output for node in carriers for output in node.outputs]

    found = () if value is None else reachable(value, results, steps=NEAR - 1)
    return [use.node for near in found for use in near.uses if use.node.op == "Concat"]
