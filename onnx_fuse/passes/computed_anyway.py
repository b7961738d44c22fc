"""Projections that a model computes beside its blocks: a block would compute them once more.

A gate stands beside the queries, later layers add the first one's values to their own, two blocks
share their keys. Such a product stays where it is, and the block takes its columns as a value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence

from onnx_fuse.analysis.algebra.nodes import readers
from onnx_fuse.analysis.algebra.views import CARRIERS
from onnx_fuse.analysis.record.records import AttentionBlock
from onnx_fuse.analysis.search import reachable
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Outside, Part

_PARTS: tuple[Part, ...] = ("q", "k", "v")
# What is computed from a product, and the first node on the way that is no view of it.
_Way = tuple[Value, Node | None]
# The columns that a block has of a product: equal where two blocks have the same.
_Columns = tuple[Value, tuple[object, ...]]


def repeated(blocks: Sequence[AttentionBlock], read: Container[Value]) -> list[dict[Part, Outside]]:
    """Return which projections of each block the model computes anyway, and for whom.

    `read` are the values whose elements the blocks read.
    """
    replaced = {
        result.ref.value for block in blocks for result in block.results if result.ref is not None
    }
    readers_of = Counter(value for block in blocks for value in block.products.values())
    ways = {value: _way(value, read, replaced) for value in readers_of}
    columns: list[dict[Part, _Columns]] = [
        {
            part: (value, block.projection(part).key() if readers_of[value] > 1 else ())
            for part in _PARTS
            if (value := block.products.get(part)) is not None
        }
        for block in blocks
    ]
    found: list[dict[Part, Outside]] = [{} for _ in blocks]
    for at, own in enumerate(columns):
        for part, (product, _) in own.items():
            way = ways[product]
            why = _shared(part, at, blocks, columns) if way is None else _read(part, product, way)
            if why is not None:
                found[at][part] = why
    return found


def _way(product: Value, read: Container[Value], replaced: Container[Value]) -> _Way | None:
    """Return what else than what blocks make is computed from a product's elements; or None."""

    def onward(way: _Way) -> Iterator[_Way]:
        value, first = way
        for use in readers(value):
            reader = first or (None if use.node.op in CARRIERS else use.node)
            yield from ((made, reader) for made in use.node.made if made not in replaced)

    start: _Way = (product, None)
    ways = reachable(start, onward)
    return next((way for way in ways if way[0].is_output or way[0] in read), None)


def _read(part: Part, product: Value, way: _Way) -> Outside:
    """Return that something else is computed from a product."""
    value, reader = way
    if reader is None:
        return Outside.kept(part, product.name, value.name)
    return Outside.needed(part, product.name, reader.label, reader.bare_op)


def _shared(
    part: Part,
    at: int,
    blocks: Sequence[AttentionBlock],
    columns: Sequence[dict[Part, _Columns]],
) -> Outside | None:
    """Return that another block has the same columns, or the block has them twice."""
    own = columns[at][part]
    for block, others in zip(blocks, columns, strict=True):
        if block is not blocks[at] and own in others.values():
            return Outside.shared(part, own[0].name, block.node.label)
    twins = (other for other, each in columns[at].items() if each == own and other != part)
    twin = next(twins, None)
    return None if twin is None else Outside.double(part, own[0].name, twin)
