"""Whether two values are computed alike: by the same operators from the same tensors."""

from __future__ import annotations

import numpy as np

from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.expr import Call, Expr
from onnx_fuse.analysis.algebra.nodes import is_random
from onnx_fuse.ir.graph import Node, Value

_LARGEST = 100  # pairs of values compared
_RANDOM = ("Bernoulli", "Multinomial", "Random")  # how their names begin


def are_alike(first: Expr | None, second: Expr | None, shapes: Facts) -> bool:
    """Return whether two expressions are the same number by number in every run."""
    match first, second:
        case Value(), Value():
            return _are_alike(first, second, shapes)
        case np.ndarray(), np.ndarray():
            return _are_equal(first, second)
        case Call(), Call():
            kinds = (first.op_type, first.attributes, len(first.inputs))
            return kinds == (second.op_type, second.attributes, len(second.inputs)) and all(
                are_alike(own, other, shapes)
                for own, other in zip(first.inputs, second.inputs, strict=True)
            )
        case _:
            return first is None and second is None


def _are_alike(first: Value, second: Value, shapes: Facts) -> bool:
    waiting, seen = [(first, second)], set[tuple[Value, Value]]()
    while waiting:
        pair = waiting.pop()
        if pair[0] is pair[1] or pair in seen:
            continue
        seen.add(pair)
        above = _sources(*pair, shapes)
        if above is None or len(seen) > _LARGEST:
            return False
        waiting += above
    return True


def _sources(first: Value, second: Value, shapes: Facts) -> list[tuple[Value, Value]] | None:
    """Return which values have to be alike for these two to be; None if these are not."""
    if all(map(shapes.is_constant, (first, second))):
        numbers = shapes.constant(first), shapes.constant(second)
        return [] if _are_equal(*numbers) else None
    node, twin = first.producer, second.producer
    if node is None or twin is None or not _is_same_operator(node, twin, shapes):
        return None
    if node.outputs.index(first) != twin.outputs.index(second):
        return None
    pairs = list(zip(node.inputs, twin.inputs, strict=True))
    found = [(own, other) for own, other in pairs if own is not None and other is not None]
    left_out = [pair for pair in pairs if pair == (None, None)]
    return found if len(found) + len(left_out) == len(pairs) else None


def _is_same_operator(first: Node, second: Node, shapes: Facts) -> bool:
    """Return whether two nodes are one operator of the standard that gives the same each time."""
    if (first.op, len(first.inputs)) != (second.op, len(second.inputs)) or first.domain:
        return False
    if first.op.startswith(_RANDOM) or is_random(first, shapes) or is_random(second, shapes):
        return False
    names = first.attributes.keys()
    return names == second.attributes.keys() and all(
        _are_equal(first.attributes[name], second.attributes[name]) for name in names
    )


def _are_equal(first: object, second: object) -> bool:
    """Return whether two attributes, or constants, are equal; sub-graphs are not."""
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    return type(first) is type(second) and bool(first == second)
