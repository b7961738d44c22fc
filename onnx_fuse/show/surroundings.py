"""Finds the nodes around an attention site that are worth drawing.

This is for the eye alone, nothing is decided by it: what a site computes is `analysis`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.ir.model import Model

_PRODUCTS = ("MatMul", "Gemm", "Conv", "Einsum", "MatMulInteger", "MatMulNBits", "FusedMatMul")
# Steps that may stand between the softmax and the output projection.
_PASSED = (
    "Add", "Cast", "Div", "Dropout", "Einsum", "Flatten", "Identity", "IsNaN", "MatMul", "Mul",
    "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip
_MOST_NODES = 90
_MOST_BELOW = 16
_NEAR = 4
_MOST_EXTENTS = 8  # numbers of a shape


def constant_dims(value: Value) -> tuple[int, ...] | None:
    """Return the dims of a constant tensor, also of an initializer that callers may override."""
    content = value.content or value.constant
    return None if content is None else content.shape


class Surroundings:
    """A model's nodes by name and by output.

    `extents` are the values that only say how large something is: the nodes that make them are
    never among those to draw.
    """

    def __init__(self, model: Model) -> None:
        self.extents: set[Value] = set()
        self._places: dict[Node, int] = {}
        self._named: dict[str, Node] = {}
        for graph in model.graphs():
            for node in graph.nodes:
                self._places[node] = len(self._places)
                for name in (*(value.name for value in node.made), node.name):
                    if name:
                        self._named.setdefault(name, node)
                if self._makes_extent(node):
                    self.extents.update(node.made)

    def around(self, anchor: str, stop: str, *others: str) -> list[Node]:
        """Return the nodes of the site around the node `anchor`, and these others, in file order.

        A name may be that of an output. The site goes from its anchor up to the products with
        constants, as far as nothing else reads what they make, and down to the next product with a
        constant; what is nearest to the node `stop` belongs to it too.
        """
        found = {self._named[name] for name in (anchor, stop, *others) if name in self._named}
        if anchor in self._named:
            node = self._named[anchor]
            found |= self._above(node) | self._below(node)
        if stop in self._named and (stop != anchor or len(found) == 1):
            found |= self._near(self._named[stop])
        return [node for node in self._in_order(found) if self._is_drawn(node)]

    def _in_order(self, nodes: Iterable[Node]) -> list[Node]:
        return sorted(nodes, key=self._places.__getitem__)

    def _is_drawn(self, node: Node) -> bool:
        return node.bare_op != "Constant" and not self.extents.intersection(node.made)

    def _makes_extent(self, node: Node) -> bool:
        if node.bare_op in ("Shape", "Size"):
            return True
        dims = {value: constant_dims(value) for value in node.given}
        sizes = [math.prod(known) for known in dims.values() if known is not None]
        computed = [value for value, known in dims.items() if known is None]
        # What is made of a few constant numbers alone is a size, too.
        is_small = bool(sizes) and max(sizes) <= _MOST_EXTENTS
        return (bool(computed) or is_small) and self.extents.issuperset(computed)

    def _above(self, start: Node) -> set[Node]:
        """Return the node and the producers that nothing outside of this set reads."""
        found, pending = {start}, [start]
        while pending and len(found) < _MOST_NODES:
            node = pending.pop(0)
            if node is not start and _has_weight(node):
                continue
            for producer in self._producers(node):
                if producer not in found and found.issuperset(self._readers(producer)):
                    found.add(producer)
                    pending.append(producer)
        return found

    def _below(self, start: Node) -> set[Node]:
        """Return what follows to the next product with a constant, its bias and V's way to it."""
        found: set[Node] = set()
        level = [start]
        for _ in range(_MOST_BELOW):
            readers = dict.fromkeys(r for node in level for r in self._readers(node))
            level = [r for r in readers if r.bare_op in _PASSED and r not in found]
            found.update(readers)
            if any(map(_has_weight, level)) or not level or len(found) > _MOST_BELOW:
                break
        for node in self._in_order(found):
            if node.bare_op in _PRODUCTS:
                found |= self._above_operands(node, found)
        return found

    def _above_operands(self, product: Node, known: set[Node]) -> set[Node]:
        """Return the producers of a product's other operand that only it reads."""
        found: set[Node] = set()
        for producer in self._producers(product):
            if producer not in known and self._readers(producer) == [product]:
                found |= self._above(producer)
        return found

    def _near(self, start: Node) -> set[Node]:
        found, level = {start}, [start]
        for _ in range(_NEAR):
            level = [producer for node in level for producer in self._producers(node)]
            found.update(level)
        return found

    def _producers(self, node: Node) -> list[Node]:
        """Return the nodes that compute a node's inputs, but for constants and extents."""
        return [
            value.producer
            for value in node.given
            if value.producer is not None
            and constant_dims(value) is None
            and value not in self.extents
        ]

    def _readers(self, node: Node) -> list[Node]:
        """Return the nodes that read what a node makes, but for those that only ask its size."""
        uses = (use for value in node.made for use in value.uses)
        return list(dict.fromkeys(u.node for u in uses if not self._is_extent(u.node)))

    def _is_extent(self, node: Node) -> bool:
        return not self.extents.isdisjoint(node.made)


def _has_weight(node: Node) -> bool:
    if node.bare_op not in _PRODUCTS:
        return False
    return any(math.prod(constant_dims(value) or (0,)) > 1 for value in node.given)
