"""Products that a model computes beside its blocks: a block would compute them once more.

A gate stands beside the queries, later layers add the first one's values to their own, two blocks
share their keys, several heads of the keys share one of the values. Such a product stays where it
is, and the block takes its columns as a value. No block takes scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence

from onnx_fuse.analysis.algebra.nodes import readers
from onnx_fuse.analysis.algebra.views import CARRIERS
from onnx_fuse.analysis.record.records import AttentionBlock, Site
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
    replaced = _replaced(blocks)
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


def scores_read(sites: Sequence[Site], read: Container[Value]) -> list[tuple[Value, str] | None]:
    """Return of each block scores that the model needs besides, and as what; None if none.

    `read` are the values whose elements the blocks read.
    """
    blocks = [site.block for site in sites if site.block is not None]
    replaced, sharing = _replaced(blocks), dict[Value, list[Node]]()
    for block in blocks:
        for scores in block.scores:
            sharing.setdefault(scores, []).append(block.node)

    def elsewhere(scores: Value, site: Site) -> str | None:
        way = _way(scores, read, replaced, {*site.trail.nodes})
        if way is not None and way[1] is None:
            return f"needed as '{way[0].name}'"
        others = (node for node in sharing[scores] if node is not site.node)
        reader = next(others, None) if way is None else way[1]
        return None if reader is None else f"read by '{reader.label}'"

    def found(site: Site) -> Iterator[tuple[Value, str]]:
        for scores in () if site.block is None else site.block.scores:
            what = elsewhere(scores, site)
            if what is not None:
                yield scores, what

    return [next(found(site), None) for site in sites]


def _replaced(blocks: Sequence[AttentionBlock]) -> set[Value]:
    """Return what blocks make."""
    results = (result for block in blocks for result in block.results)
    return {result.ref.value for result in results if result.ref is not None}


def _way(
    product: Value,
    read: Container[Value],
    replaced: Container[Value],
    own: Container[Node] = (),
) -> _Way | None:
    """Return what else than what blocks make is computed from a product's elements; or None.

    No node of the block's `own` is told as the first one.
    """

    def onward(way: _Way) -> Iterator[_Way]:
        value, first = way
        for use in readers(value):
            is_passed = use.node.op in CARRIERS or use.node in own
            reader = first or (None if is_passed else use.node)
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
    if twin is not None:
        return Outside.double(part, own[0].name, twin)
    repeats = blocks[at].projection(part).repeats
    return Outside.by_several(part, own[0].name) if repeats else None
