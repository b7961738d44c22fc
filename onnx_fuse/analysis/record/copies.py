"""What joined scores cost: the block needs their keys joined, and values that were parts, too."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from onnx_fuse.analysis.algebra.axes import Atom, Axis, size
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.record.origins import is_projected
from onnx_fuse.analysis.scores.sums import Scores
from onnx_fuse.analysis.softmax.values import Values
from onnx_fuse.ir.graph import Node
from onnx_fuse.report import Code

_MOST_LEARNED = 64  # keys that cost next to nothing to copy
_FEWEST_QUERIES = 4  # for which it pays to copy keys that others have, too


def check_copies(views: Views, node: Node, scores: Scores, values: Values) -> None:
    """Check that what has to be joined is made for it, or learned and short.

    A projection costs much more than to copy what it makes; a cache may cost as much as the whole
    block, and so may what is repeated.

    Raises: Declined.
    """
    keys = [(part.key, part.column) for part in scores.products if part.column is not None]
    for parts in (keys, [(part.value, part.column or scores.column) for part in values.parts]):
        what = _costly(views, parts, scores)
        if what is not None and values.lanes:
            weights, reader = node.made[0].name, values.parts[0].context.value.producer
            assert reader is not None
            facts = {"value": weights, "reader": reader.label}
            raise Declined(Code.SEVERAL_PRODUCTS, node, **facts)
        if what is not None:
            product = scores.chain.product
            join = None if product is None else product.producer
            what = f"joins those of {what}, which would have to be copied"
            raise Declined(Code.SCORES_CHANGED, join, what=what)


def _costly(views: Views, parts: Sequence[tuple[Ref, Axis]], scores: Scores) -> str | None:
    """Return what is too much to be joined; None if nothing is."""
    scored = views.space.atoms_of(*scores.index)
    computed = [ref for ref, _ in parts if not views.shapes.is_constant(ref.value)]
    learned = [size(axis).as_int() for ref, axis in parts if ref not in computed]
    if any(count is None or count > _MOST_LEARNED for count in learned):
        return "many learned keys"
    if not all(is_projected(views, ref) for ref in computed):
        return "keys that no projection makes, as of a cache"
    axes = [scored & views.space.atoms_of(*ref.index) for ref in computed]
    each = set().union(*axes)  # for each of them the joined keys are others
    queries = scored - each - views.space.atoms_of(scores.column)
    if any(own != each for own in axes) and not _are_many(queries):
        return "keys that more queries share than others"
    return None


def _are_many(queries: Collection[Atom]) -> bool:
    """Return whether it is known that enough queries share a copy of keys to be worth it."""
    counts = all_known(atom.extent.as_int() for atom in queries)
    return counts is not None and math.prod(counts) >= _FEWEST_QUERIES
