"""Whether a graph is valid: single assignment, defined before read, no cycle."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence

from onnx_fuse.errors import InvalidModel
from onnx_fuse.ir.graph import Graph, Node, Value
from onnx_fuse.ir.model import Model


def reads(node: Node) -> Iterator[Value]:
    """Yield the values that a node reads, those of its nested graphs included."""
    yield from node.given
    for nested in node.subgraphs:
        for inner in nested.nodes:
            yield from reads(inner)


def in_order(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes of one graph in topological order, as near to the given order as it can be.

    Raises: InvalidModel if there is a cycle, naming its nodes.
    """
    if _is_ordered(nodes):
        return list(nodes)
    rank = {node: index for index, node in enumerate(nodes)}
    needs = [{rank[v.producer] for v in reads(node) if v.producer in rank} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for index, producers in enumerate(needs):
        for producer in sorted(producers):
            readers[producer].append(index)
    missing = [len(producers) for producers in needs]
    ready = [index for index, number in enumerate(missing) if number == 0]
    result: list[Node] = []
    while ready:
        index = heapq.heappop(ready)
        result.append(nodes[index])
        for reader in readers[index]:
            missing[reader] -= 1
            if missing[reader] == 0:
                heapq.heappush(ready, reader)
    if len(result) < len(nodes):
        raise InvalidModel(_describe_cycle(nodes, needs, missing))
    return result


def _is_ordered(nodes: Sequence[Node]) -> bool:
    inside = set(nodes)
    done: set[Node] = set()
    for node in nodes:
        if any(v.producer in inside and v.producer not in done for v in reads(node)):
            return False
        done.add(node)
    return True


def _describe_cycle(
    nodes: Sequence[Node], needs: Sequence[set[int]], missing: Sequence[int]
) -> str:
    index = next(i for i, number in enumerate(missing) if number)
    seen: dict[int, int] = {}
    path: list[int] = []
    while index not in seen:
        seen[index] = len(path)
        path.append(index)
        index = min(producer for producer in needs[index] if missing[producer])
    cycle = path[seen[index] :]
    shown = ", ".join(str(nodes[i]) for i in cycle[:4]) + (", ..." if len(cycle) > 4 else "")
    return f"the graph has a cycle: each of these reads the next, the last the first: {shown}"


def check_model(model: Model) -> None:
    """Raise InvalidModel, naming node and value, unless every graph is valid.

    Valid is: each name is defined once; each input is defined before it is read; outputs are
    defined; node names are unique within a graph.
    """
    for graph in model.roots():
        _check_graph(graph)


def _check_graph(graph: Graph) -> None:
    names: dict[str, Value] = {}
    for value in (*graph.inputs, *graph.initializers):
        _define(names, value, graph)
    check_node_names(graph.nodes)
    for node in graph.nodes:
        for read in node.given:
            _check_read(node, read, names)
        for nested in node.subgraphs:
            _check_graph(nested)
        for index, output in enumerate(node.outputs):
            if output is not None:
                if output.producer is not node or output.graph is not graph:
                    raise InvalidModel(f"output {index} of {node} has another producer")
                _define(names, output, graph)
    for returned in graph.outputs:
        if names.get(returned.name) is not returned:
            raise InvalidModel(f"graph output '{returned.name}' is not defined")


def check_node_names(nodes: Iterable[Node]) -> None:
    """Raise InvalidModel if two nodes of one graph have the same name, as onnxruntime does.

    Constants don't count: it makes initializers of them first, and merging tools leave some alike.
    """
    seen: set[str] = set()
    for node in nodes:
        if not node.name or node.op == "Constant":
            continue
        if node.name in seen:
            raise InvalidModel(f"two nodes are named '{node.name}': rename one")
        seen.add(node.name)


def _define(names: dict[str, Value], value: Value, graph: Graph) -> None:
    if names.setdefault(value.name, value) is not value:
        raise InvalidModel(f"'{value.name}' is defined twice in graph '{graph.name}'")


def _check_read(node: Node, value: Value, names: dict[str, Value]) -> None:
    """Raise unless `value` is defined where `node` reads it.

    `names` are the node's graph's so far.
    """
    if value.graph is node.graph:
        if names.get(value.name) is not value:
            raise InvalidModel(f"{node} reads '{value.name}' before it is defined")
        return
    outer = node.graph.parent
    while outer is not None and outer.graph is not value.graph:
        outer = outer.graph.parent
    if outer is None:
        raise InvalidModel(f"{node} reads '{value.name}', a value of a graph that it is not in")
    if not _defined_before(value, outer):
        raise InvalidModel(f"{node} reads '{value.name}' before it is defined")


def _defined_before(value: Value, node: Node) -> bool:
    if value.producer is None:
        return value.is_input or value.is_initializer
    return value.producer.alive and value.producer.rank < node.rank
