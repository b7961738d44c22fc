"""Which gates blocks can't take in: what multiplies a context is computed behind it, perhaps.

An operator has to have its gate, as all that it reads, before it gives anything. So a gate comes
from nothing that its own block makes on the way, be it through what other blocks read and give. Nor
does it come from what another block keeps to itself, which would be computed once more for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnx_fuse.analysis.algebra.expr import leaves
from onnx_fuse.analysis.record.records import AttentionBlock
from onnx_fuse.analysis.search import reachable
from onnx_fuse.analysis.shapes.control import captured
from onnx_fuse.ir.graph import Value


def stays_outside(own: AttentionBlock, blocks: Sequence[AttentionBlock]) -> bool:
    """Return whether a block can't take its gate in, beside all the blocks of its graph."""
    if own.gate is None:
        return False
    makers = {value: block for block in blocks for value in _given(block)}
    inside = {value for block in blocks for value in block.node.made} - makers.keys()
    late = inside | {*_given(own)}

    def sources(value: Value) -> Iterable[Value]:
        """Return all that has to be made before a value, if it were but for its shape."""
        node, block = value.producer, makers.get(value)
        if node is None or node.graph is not own.node.graph:
            return ()
        return (*node.given, *captured(node)) if block is None else block.read

    return any(value in late for gate in leaves(own.gate) for value in reachable(gate, sources))


def _given(block: AttentionBlock) -> list[Value]:
    """Return what a block gives: its output, and what it shows besides."""
    return [result.ref.value for result in block.results if result.ref is not None]
