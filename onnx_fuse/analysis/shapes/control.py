"""Facts of nodes that contain graphs (If, Loop, Scan) and of calls of model-local functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.shapes.facts import NOTHING, Fact, PartialShape, elements, normalized
from onnx_fuse.analysis.splice import spliced
from onnx_fuse.ir.graph import Graph, Node, Value

# Rounds after which nothing more is assumed of the values that a loop carries.
_ROUNDS = 3


class Evaluator(Protocol):
    """What finds the facts of the nodes in a graph."""

    loop_depth: int
    """Loops around what is being evaluated."""

    def fact(self, value: Value) -> Fact:
        """Return what is known of the value."""

    def opset(self, node: Node) -> int:
        """Version of the node's domain."""

    def run(self, graph: Graph, inputs: Sequence[Fact]) -> list[Fact]:
        """Evaluate a nested graph (again) for these inputs; return the facts of its outputs."""

    def exported(self, fact: Fact, graph: Graph) -> Fact:
        """Return the fact without what only has a meaning inside `graph`."""


def captured(node: Node) -> Iterator[Value]:
    """Yield the outer values that the node's graphs read, in node order, perhaps more than once."""
    inside = [graph for nested in node.subgraphs for graph in nested.walk()]
    own = dict.fromkeys(inside)
    for graph in inside:
        for inner in graph.nodes:
            yield from (value for value in inner.given if value.graph not in own)
        yield from (value for value in graph.outputs if value.graph not in own)


def common_fact(facts: Sequence[Fact]) -> Fact:
    """Return what holds of a value that is one of these."""
    first = facts[0]
    if any(fact.items is not None for fact in facts):
        return first if all(fact == first for fact in facts) else NOTHING
    shape: PartialShape | None = first.shape
    content, dtype = first.content, first.dtype
    for fact in facts[1:]:
        dtype = dtype if dtype == fact.dtype else None
        if shape is None or fact.shape is None or len(shape) != len(fact.shape):
            shape = content = None
            continue
        shape = [a if a == b else None for a, b in zip(shape, fact.shape, strict=True)]
        other = fact.content
        if content is None or other is None or content.shape != other.shape:
            content = None
            continue
        content = content if elements(content) == elements(other) else None
    return Fact(shape, dtype, content)


def evaluate_graphs(engine: Evaluator, node: Node) -> Sequence[Fact]:
    """Find the facts of everything inside the node's graphs, and of its outputs."""
    if node.op == "If":
        return _evaluate_if(engine, node)
    bodies = [graph for graph in (node.attr("body"),) if isinstance(graph, Graph)]
    if node.op == "Loop" and bodies:
        return _evaluate_loop(engine, node, bodies[0])
    if node.op == "Scan" and bodies and engine.opset(node) >= 9:
        return _evaluate_scan(engine, node, bodies[0])
    for graph in node.subgraphs:  # of an operator that we do not know: nor what they are given
        engine.run(graph, [NOTHING] * len(graph.inputs))
    return []


def _evaluate_if(engine: Evaluator, node: Node) -> Sequence[Fact]:
    branches = [
        [engine.exported(fact, graph) for fact in engine.run(graph, ())]
        for name in ("then_branch", "else_branch")
        if isinstance(graph := node.attr(name), Graph)
    ]
    item = input_fact(engine, node, 0).item
    condition = None if item is None else item.as_int()
    if len(branches) == 2 and condition is not None:
        return branches[0 if condition else 1]
    return [common_fact(facts) for facts in zip(*branches, strict=False)]


def input_fact(engine: Evaluator, node: Node, index: int) -> Fact:
    """Return what is known of one input, nothing if it is left out."""
    value = node.input(index)
    return NOTHING if value is None else engine.fact(value)


def _settled(
    engine: Evaluator,
    body: Graph,
    before: Sequence[Fact],
    carried: Sequence[Fact],
    after: Sequence[Fact],
    skipped: int,
) -> tuple[list[Fact], list[Fact]]:
    """Run a loop's body until what is assumed of the carried values holds after each round.

    The body's inputs are `before`, `carried` and `after`; its outputs follow `skipped` ones.
    Returns what holds of the carried values before and after every round (also if there is none),
    and the facts of all outputs of the body.
    """
    assumed = [fact if fact.items is None else NOTHING for fact in carried]
    if engine.loop_depth >= _ROUNDS:  # rounds multiply from loop to loop
        assumed = [Fact(dtype=fact.dtype) for fact in assumed]
    for left in reversed(range(_ROUNDS + 1)):
        engine.loop_depth += 1
        results = engine.run(body, [*before, *assumed, *after])
        engine.loop_depth -= 1
        pairs = zip(assumed, results[skipped : skipped + len(assumed)], strict=False)
        weaker = [_weakened(old, new) for old, new in pairs]
        if all(new is old for old, new in zip(assumed, weaker, strict=False)):
            break
        assumed = weaker if left > 1 else [Fact(dtype=fact.dtype) for fact in assumed]
    return assumed, results


def _weakened(assumed: Fact, result: Fact) -> Fact:
    """Return `assumed` itself if `result` is such a value, else what holds of both."""
    both = common_fact([assumed, result])
    kept_shape = assumed.shape is None or (
        both.shape is not None and list(both.shape) == list(assumed.shape)
    )
    if kept_shape and (assumed.content is None or both.content is not None):
        return assumed
    return Fact(both.shape, assumed.dtype, both.content)


def _evaluate_loop(engine: Evaluator, node: Node, body: Graph) -> Sequence[Fact]:
    carried = [input_fact(engine, node, index) for index in range(2, len(node.inputs))]
    assumed, results = _settled(engine, body, [Fact(()), Fact(())], carried, (), 1)
    collected = [
        _stacked(engine.exported(fact, body), None, 0) for fact in results[1 + len(assumed) :]
    ]
    return [*assumed, *collected]


def _stacked(fact: Fact, count: Dim | None, axis: int) -> Fact:
    if fact.shape is None:
        return Fact(dtype=fact.dtype)
    place = normalized(axis, len(fact.shape) + 1) or 0
    return Fact([*fact.shape[:place], count, *fact.shape[place:]], fact.dtype)


def _evaluate_scan(engine: Evaluator, node: Node, body: Graph) -> Sequence[Fact]:
    scanned = int(node.attr("num_scan_inputs", 0))
    states = len(node.inputs) - scanned
    facts = [input_fact(engine, node, index) for index in range(len(node.inputs))]
    axes = node.attr("scan_input_axes") or [0] * scanned
    slices: list[Fact] = []
    count: Dim | None = None
    for fact, axis in zip(facts[states:], axes, strict=False):
        place = None if fact.shape is None else normalized(int(axis), len(fact.shape))
        if fact.shape is None or place is None:
            slices.append(Fact(dtype=fact.dtype))
            continue
        count = fact.shape[place] if count is None else count
        slices.append(Fact(spliced(fact.shape, place), fact.dtype))
    assumed, results = _settled(engine, body, (), facts[:states], slices, 0)
    collected = results[states:]
    out_axes = node.attr("scan_output_axes") or [0] * len(collected)
    stacks = [
        _stacked(engine.exported(fact, body), count, int(axis))
        for fact, axis in zip(collected, out_axes, strict=False)
    ]
    return [*assumed, *stacks]
