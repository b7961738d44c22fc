"""Which gates blocks can't take in: what multiplies a context is computed behind it, perhaps.

An operator has to have its gate before it gives anything. So a gate isn't computed from what its
own block makes on the way, as keys and weights are, nor from what a later block gives besides its
output: whose own gate may wait for this one's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from onnx_fuse.analysis.algebra.expr import leaves
from onnx_fuse.analysis.record.dependence import needs
from onnx_fuse.analysis.record.records import AttentionBlock, Site
from onnx_fuse.analysis.shapes.control import captured
from onnx_fuse.ir.graph import Value


def ungated(sites: Sequence[Site]) -> Iterator[Site]:
    """Yield the sites whose block has a gate that stays outside.

    So do both of two contexts that multiply each other: one output can't be both blocks'.
    """
    blocks = [site.block for site in sites if site.block is not None]
    made = Counter(block.output.value for block in blocks)
    besides = [value for block in blocks for value in _besides(block)]
    for site in sites:
        block = site.block
        if block is None or block.gate is None:
            continue
        own = [*block.node.made, *_besides(block)]
        first = min(map(_rank, own))
        late = {*own, *(value for value in besides if _rank(value) > first)}
        is_late = any(needs(value, late, _sources) for value in leaves(block.gate))
        if is_late or made[block.output.value] > 1:
            yield site


def _besides(block: AttentionBlock) -> list[Value]:
    """Return what a block gives besides its output."""
    return [result.ref.value for result in block.results[1:] if result.ref is not None]


def _rank(value: Value) -> float:
    return -math.inf if value.producer is None else value.producer.rank


def _sources(value: Value) -> Sequence[Value]:
    """Return all that has to be made before a value, if it were but for its shape."""
    node = value.producer
    return () if node is None else (*node.given, *captured(node))
