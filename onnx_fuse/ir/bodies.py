"""The bodies in a message: its graph, its functions, and the graphs that nodes hold."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

Body = onnx.GraphProto | onnx.FunctionProto


def bodies(model: onnx.ModelProto) -> Iterator[Body]:
    """Yield every graph and function body, each before the graphs that are nested in it."""
    for body in (model.graph, *model.functions):
        yield from nest(body)


def nest(body: Body) -> Iterator[Body]:
    """Yield a body, then the graphs that are nested in it, depth first in node order."""
    yield body
    for node in body.node:
        for graph in held_by(node):
            yield from nest(graph)


def held_by(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs in a node's attributes, in their order."""
    return [
        graph
        for attribute in node.attribute
        for graph in ((attribute.g,) if attribute.HasField("g") else attribute.graphs)
    ]
