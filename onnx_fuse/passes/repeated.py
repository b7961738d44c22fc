"""Projections that a model computes beside its blocks: a block would compute them once more.

A gate stands beside the queries, later layers add the first one's values to their own, two blocks
share their keys. Such a product stays where it is, and the block takes its columns as a value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from itertools import chain

from onnx_fuse.analysis.algebra.nodes import readers
from onnx_fuse.analysis.record.records import AttentionBlock
from onnx_fuse.analysis.search import reachable
from onnx_fuse.ir.graph import Value


def repeated(blocks: Sequence[AttentionBlock], read: Container[Value]) -> list[list[str]]:
    """Return which projections ("q", "k", "v") of each block the model computes anyway.

    `read` are the values whose elements the blocks read.
    """
    replaced = {
        result.ref.value for block in blocks for result in block.results if result.ref is not None
    }
    readers_of = Counter(value for block in blocks for value in block.products.values())
    needed = {value for value in readers_of if _is_needed(value, read, replaced)}
    columns = [
        {
            name: (value, block.projection(name).key() if readers_of[value] > 1 else ())
            for name, value in block.products.items()
        }
        for block in blocks
    ]
    times = Counter(chain.from_iterable(own.values() for own in columns))
    return [
        [name for name, own in each.items() if own[0] in needed or times[own] > 1]
        for each in columns
    ]


def _is_needed(product: Value, read: Container[Value], replaced: Container[Value]) -> bool:
    """Return whether more than what blocks make is computed from a product's elements."""

    def made_of(value: Value) -> list[Value]:
        return [made for use in readers(value) for made in use.node.made if made not in replaced]

    return any(value.is_output or value in read for value in reachable(product, made_of))
