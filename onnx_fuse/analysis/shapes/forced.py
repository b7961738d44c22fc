"""Symbols of the inputs that the graph forces to be one number, in every run that succeeds.

A mask or a table that was traced at one length leaves extents that are declared to vary and can't:
a product sums axes of one length, a Reshape keeps the number of elements, and what can't be 1, as
four times a batch can't, isn't broadcast.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx_fuse.analysis.dims.dim import Dim, product
from onnx_fuse.analysis.dims.equations import solve
from onnx_fuse.analysis.dims.order import is_at_most
from onnx_fuse.analysis.shapes.control import captured, input_fact
from onnx_fuse.analysis.shapes.engine import Engine
from onnx_fuse.analysis.shapes.facts import Fact, as_dims
from onnx_fuse.ir.graph import Graph, Node
from onnx_fuse.ir.model import Model

_BROADCASTS = frozenset({"Add", "And", "Div", "Mul", "Sub", "Where"})


def engine_of(model: Model, bindings: Mapping[str, int]) -> Engine:
    """Return facts of a model with these symbols replaced, and with those that can't vary.

    What is declared inside the graph tells nothing of its inputs: it may be of the traced run.
    """
    names = {str(Dim.symbol(name)): name for name in _names(model.graph) if name not in bindings}
    known = dict(bindings)
    while names:
        found = _forced(Engine(model, known, trusts_declared=False), model.graph, names)
        if not found:
            break
        known |= {names.pop(symbol): number for symbol, number in found.items()}
    return Engine(model, known)


def _names(graph: Graph) -> set[str]:
    extents = (extent for value in graph.inputs for extent in value.shape or ())
    return {extent for extent in extents if isinstance(extent, str) and extent}


def _forced(engine: Engine, graph: Graph, names: Mapping[str, str]) -> dict[str, int]:
    """Return the symbols, by their text, for which some equation leaves one number."""
    found: dict[str, int] = {}
    for node in _always_run(graph):
        for sides in _equal(node, [input_fact(engine, node, index) for index in (0, 1)]):
            for left, right in (sides, sides[::-1]) if sides[0] != sides[1] else ():
                symbol, solution = solve(left, right) or ("", Dim.of(0))
                number = solution.as_int()
                if symbol in names and number is not None and number > 1:
                    found.setdefault(symbol, number)
    return found


def _equal(node: Node, facts: list[Fact]) -> list[tuple[Dim, Dim]]:
    """Return pairs of extents that are equal in every run of a node."""
    left, right = facts
    if left.shape is None:
        return []
    if node.op in _BROADCASTS:
        pairs = zip(left.extents[::-1], right.extents[::-1], strict=False) if right.shape else ()
        # What can't be 1 isn't broadcast.
        return [pair for pair in pairs if all(extent.is_not(1) for extent in pair)]
    if node.op == "MatMul" and left.shape and right.shape:
        return [(left.extents[-1], right.extents[-2 if len(right.shape) > 1 else 0])]
    stated = as_dims(right.content) if node.op == "Reshape" and right.content is not None else None
    if stated is None or any(is_at_most(extent, 0) for extent in stated):
        return []  # 0 and -1 stand for an extent of the input, and for what is left of it
    return [(product(left.extents), product(stated))]


def _always_run(graph: Graph) -> Iterator[Node]:
    """Yield the nodes that some output of the model is computed from: others may be left out."""
    waiting, seen = [*graph.outputs], set[Node]()
    while waiting:
        node = waiting.pop().producer
        if node is None or node in seen or node.graph is not graph:
            continue
        seen.add(node)
        waiting += node.given
        waiting += captured(node) if node.subgraph_of else ()
        yield node
