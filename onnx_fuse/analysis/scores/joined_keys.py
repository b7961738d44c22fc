"""Scores of several sets of keys, joined before one softmax: they are those of the keys joined."""

from __future__ import annotations

import math
from typing import Protocol

from onnx_fuse.analysis.algebra.axes import Axis, atoms, merged
from onnx_fuse.analysis.algebra.nodes import joined_axis
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.scores.chain import Chain, Scale
from onnx_fuse.analysis.scores.joined_masks import Masks, joined_masks, masks_of
from onnx_fuse.analysis.scores.leads import Lead
from onnx_fuse.analysis.scores.sums import Product, Scores
from onnx_fuse.analysis.splice import spliced
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Code


class Walk(Protocol):
    """What follows scores up to their product: see `ScoreWalk`."""

    views: Views

    def scores(self, ref: Ref, column: Axis, chain: Chain) -> Scores:
        """Return the scores. Raises: Declined."""

    def leads(self, value: Value) -> Lead:
        """Say how surely a value holds scores."""


def joined_keys(node: Node, ref: Ref, column: Axis, chain: Chain, walk: Walk) -> Scores | None:
    """Return the scores that a Concat joins along the softmax's axis, as those of joined keys.

    They are products of one query, scaled and masked at most: the keys are scaled instead, but for
    the largest factor, and the masks are joined. None if the Concat joins anything else.

    Raises: Declined where one of them is no product, or more is done to it.
    """
    axis, space = joined_axis(node, len(ref.index)), walk.views.space
    if space.resolve(ref.index[axis]) != space.resolve(column):
        return None
    if not all(map(walk.leads, node.given)):
        return None
    parts: list[Scores] = []
    for value in node.given:
        shape = walk.views.shapes.shape(value)
        if shape is None:
            return None
        own = space.atom(shape[axis], "column")
        at = Ref(value, spliced(ref.index, axis, own))
        parts.append(walk.scores(at, own, Chain()))
    if all(_is_linear(part, walk.views) for part in parts):
        return None
    first, factors = parts[0], [part.chain.factor for part in parts]
    masks = all_known(_masks(part, walk.views) for part in parts)
    if masks is None:
        what = "joins those of several products, one of which is more than scaled and masked before"
        raise Declined(Code.SCORES_CHANGED, node, what=what)
    if not all(_has_same_query(first, part, walk.views) for part in parts[1:]):
        raise Declined(Code.SCORES_CHANGED, node, what="joins those of different queries")
    largest = max(factors, key=abs)
    columns = [part.column for part in parts]
    chain.operations += [*joined_masks(masks, columns, column), Scale(largest)]
    chain.product = ref.value
    products = tuple(
        Product(part.query, part.key, part.depth, factor / largest, part.column, part.chain.product)
        for part, factor in zip(parts, factors, strict=True)
    )
    return Scores(first.query, first.key, first.depth, ref.index, chain, column, products)


def _is_linear(scores: Scores, views: Views) -> bool:
    """Return whether a product is one of a tensor and of constants."""
    return any(views.shapes.is_constant(ref.value) for ref in (scores.query, scores.key))


def _masks(scores: Scores, views: Views) -> Masks | None:
    """Return the masks of a product; None if more happens to it, but that it is scaled."""
    chain = scores.chain
    others = (chain.roundings, chain.zeroings, chain.limits)
    is_finite = math.isfinite(chain.factor) and chain.factor != 0.0
    if not is_finite or scores.products or chain.sinks is not None or any(others):
        return None
    return masks_of(chain, views.shapes)


def _has_same_query(first: Scores, other: Scores, views: Views) -> bool:
    """Return whether two products are of the same queries, lane by lane."""
    own, others = views.origin(first.query), views.origin(other.query)
    depths = [merged(views.space.resolve_index(part.depth)) for part in (first, other)]
    found = views.space.match(own.index, others.index, depths[0])
    return own.value is others.value and found is not None and found == atoms(depths[1])
