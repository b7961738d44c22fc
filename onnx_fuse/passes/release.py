"""Lets go of values that live on only because someone asks for their shape or their type.

Exporters read batch and sequence off whatever tensor is at hand. After a block became one node,
such a question would keep a whole projection alive; the block's own source answers it as well.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from onnx_fuse.analysis.algebra.expr import Expr, leaves
from onnx_fuse.analysis.algebra.nodes import asks_for_type, is_asked_view, is_question
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.record.records import AttentionBlock
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.passes.emit import Emitter

_LARGEST_BLOCK = 600  # nodes between a block's sources and its output


def interior(block: AttentionBlock) -> list[Node]:
    """Return the nodes between a block's sources and its output, last first.

    Those of which nobody reads more than shapes and types are as they were without the block.
    """
    given = [*block.sources.values(), *(() if block.gate is None else (block.gate,))]
    sources = {value for expr in given for value in leaves(expr)}
    found: dict[Node, None] = {}
    waiting = [block.replaced]
    while waiting and len(found) < _LARGEST_BLOCK:
        node = waiting.pop()
        if node in found or node.graph is not block.replaced.graph:
            continue
        found[node] = None
        for value in node.given:
            if value.producer is not None and value not in sources:
                waiting.append(value.producer)
    read = [node for node in found if not _is_only_asked(node)]
    return sorted(read, key=lambda node: node.rank, reverse=True)


def release(
    block: AttentionBlock, nodes: list[Node], emitter: Emitter, awaited: Container[Value]
) -> None:
    """Answer the questions for shapes and types of what the block doesn't need, and remove it.

    What other blocks have yet to read stays.
    """
    for node in nodes:
        outputs = node.made
        if not node.alive or not outputs:
            continue
        is_asked = _is_only_asked(node) and any(value.uses for value in outputs)
        if is_asked and not any(value.is_output for value in outputs):
            for value in outputs:
                _answer(block, value, emitter, awaited)
        node.graph.remove_dead([node], awaited)


def _answer(
    block: AttentionBlock, value: Value, emitter: Emitter, awaited: Container[Value]
) -> None:
    """Answer all questions for a value and for views of it that nobody else reads."""
    for use in value.uses:
        if is_asked_view(use):
            for view in use.node.made:
                _answer(block, view, emitter, awaited)
            use.node.graph.remove_dead([use.node], awaited)
    _answer_shapes(block, value, emitter)
    _answer_types(block, value)


def answer_after(block: AttentionBlock, value: Value, emitter: Emitter) -> None:
    """Answer the questions for shapes and types of a value and of what is computed from it.

    Until the block's output is made; what is computed then may wait for the value itself.
    """
    seen, waiting = {value}, [value]
    while waiting:
        current = waiting.pop()
        for use in current.uses:
            if use.node.graph is value.graph and use.node.rank < block.replaced.rank:
                waiting += [output for output in use.node.made if output not in seen]
                seen.update(use.node.made)
        _answer_shapes(block, current, emitter)
        _answer_types(block, current)


def _answer_shapes(block: AttentionBlock, value: Value, emitter: Emitter) -> None:
    """Compute every Shape of a value from the block's sources, where they are made by then."""
    kept = {leaf: None for expr in block.sources.values() for leaf in leaves(expr)}
    kept.pop(value, None)
    shape = block.extents.views.shapes.shape(value)
    for use in value.uses if shape is not None else ():
        node = use.node
        if node.op != "Shape" or node.graph is not value.graph or shape is None:
            continue
        asked = shape[slice(node.attr("start", 0), node.attr("end"))]
        made = tuple(leaf for leaf in kept if _is_made_before(leaf, node))
        extents = replace(block.extents, values=(*made, *node.graph.inputs))
        parts: list[Expr] | None = all_known(map(extents.expr, asked))
        if not parts:
            continue
        given = [emitter.value(part, "extent") for part in parts]
        node.graph.add_node(
            "Concat", given, [node.outputs[0]], attributes={"axis": 0}, name=node.name, before=node
        )
        node.graph.remove_dead([node])


def _answer_types(block: AttentionBlock, value: Value) -> None:
    """Write a Cast for every CastLike that takes on a value's type."""
    dtype = block.extents.views.shapes.dtype(value)
    for use in value.uses if dtype is not None else ():
        node = use.node
        if asks_for_type(use) and node.graph is value.graph:
            attributes = {**node.attributes, "to": dtype}
            node.graph.add_node(
                "Cast",
                node.inputs[:1],
                [node.outputs[0]],
                attributes=attributes,
                name=node.name,
                before=node,
            )
            node.graph.remove_dead([node])


def _is_only_asked(node: Node) -> bool:
    """Return whether nobody reads more of a node's results than their shapes and types."""
    return all(is_question(use) for value in node.made for use in value.uses)


def _is_made_before(value: Value, node: Node) -> bool:
    producer = value.producer
    return producer is None or producer.graph is not node.graph or producer.rank < node.rank
