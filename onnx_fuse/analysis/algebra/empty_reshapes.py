"""Reshapes of tensors that may be empty, which mean another shape then or don't run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.search import reachable
from onnx_fuse.ir.graph import Node

_SEARCHED = 4000  # nodes searched for a Reshape that can't be run


def opened_if_empty(node: Node, shapes: Facts) -> int | None:
    """Return the axis that a Reshape leaves open, if its shape means another one in some run.

    That is where it states an extent that may be 0: a 0 is that of the input's axis at its place.
    Unless this one is 0 then, too, the open axis becomes 0 instead, and the run goes on; but it
    doesn't come so far where a Reshape before can't have been run.
    """
    stated = None if node.attr("allowzero", 0) else _stated(node, shapes)
    if stated is None:
        return None
    extents, shape = stated
    opened = [axis for axis, extent in enumerate(extents) if extent.bounds()[0] < 0]
    if len(opened) != 1:
        return None
    pairs = zip(extents, shape, strict=False)
    differing = [extent for extent, other in pairs if not _is_empty_too(extent, other)]
    return None if not differing or _are_never_empty(differing, node, shapes) else opened[0]


def _stated(node: Node, shapes: Facts) -> tuple[list[Dim], Sequence[Dim]] | None:
    """Return the extents that a Reshape states, and its input's; None if either isn't known."""
    source, target = node.input(0), node.input(1)
    if node.op != "Reshape" or source is None or target is None:
        return None
    shape, content = shapes.shape(source), shapes.content(target)
    return None if shape is None or content is None else (list(content.ravel()), shape)


def _is_empty_too(extent: Dim, other: Dim) -> bool:
    """Return whether the other extent is 0 wherever this one, which is none left open, is."""
    if extent.bounds()[0] != 0 or extent == 0:
        return True
    if other.divide(extent) is not None:
        return True
    return all(other.divide(factor) is not None for factor in _factors(extent))


def _factors(extent: Dim) -> list[Dim]:
    """Return extents of which one is 0 wherever this one is."""
    terms = extent.terms()
    return terms[0][1] if len(terms) == 1 else [extent]


def _are_never_empty(empty: Iterable[Dim], node: Node, shapes: Facts) -> bool:
    """Return whether none of these extents is ever 0 in a run that comes as far as a node.

    A Reshape fails that leaves an axis open beside one that it states to be 0, as that of its input
    at this place is.
    """
    unproved = {factor for extent in empty for factor in _factors(extent)}
    for above in reachable(node, _makers, limit=_SEARCHED):
        if not unproved:
            break
        stated = _stated(above, shapes)
        if stated is not None and -1 in stated[0]:
            pairs = [*zip(*stated, strict=False)]
            unproved = {factor for factor in unproved if not _are_both_empty(factor, pairs)}
    return not unproved


def _are_both_empty(factor: Dim, pairs: Sequence[tuple[Dim, Dim]]) -> bool:
    """Return whether both extents of a pair are 0 wherever the factor is."""
    return any(all(extent.divide(factor) is not None for extent in pair) for pair in pairs)


def _makers(node: Node) -> list[Node | None]:
    """Return the nodes that make what a node reads, in its own graph."""
    makers = [value.producer for value in node.given]
    return [maker for maker in makers if maker is not None and maker.graph is node.graph]
