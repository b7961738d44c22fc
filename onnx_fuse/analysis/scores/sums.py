"""Scores that are a sum of products: one product, with queries and keys joined along the depth.

q1.k1 + q2.k2 = (q1, q2).(k1, k2). What else is added to the products stays a bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnx_fuse.analysis.algebra.axes import ONE, Atom, Axis, Index, merged, size
from onnx_fuse.analysis.algebra.contraction import contraction_of
from onnx_fuse.analysis.algebra.nodes import is_float_cast
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.algebra.uniform import scaling_of
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import Dim, numbers_of
from onnx_fuse.analysis.scores.chain import Chain
from onnx_fuse.analysis.scores.leads import Lead, Leads
from onnx_fuse.ir.graph import Value

_LONGEST_SUM = 16


@dataclass(frozen=True)
class Product:
    """factor * query.key, one of several whose sum the scores are, or which are joined to them.

    column: its own keys' axis if the scores are joined along that; None if they are a sum. made:
    what the graph computes as it.
    """

    query: Ref
    key: Ref
    depth: tuple[Axis, ...]
    factor: float = 1.0
    column: Axis | None = None
    made: Value | None = None

    @property
    def lanes(self) -> Axis:
        """All of the depth as one axis."""
        return merged(self.depth)


@dataclass(frozen=True)
class Scores:
    """The product of query and key, and what applies to it in order.

    products: what the scores are the sum of, where that is several; then `query` and `key` are
    those of the first, and `depth` is an axis as long as all of theirs. Or what they are joined of
    along the columns; then all have one query, and `key` is that of the first.
    """

    query: Ref
    key: Ref
    depth: tuple[Axis, ...]
    index: Index
    chain: Chain
    column: Axis
    products: tuple[Product, ...] = ()

    @property
    def are_joined(self) -> bool:
        """Whether they are joined along the columns of several products."""
        return any(part.column is not None for part in self.products)

    @property
    def made(self) -> tuple[Value, ...]:
        """The products as the graph computes them; none within an operator."""
        parts = [part.made for part in self.products] or [self.chain.product]
        return tuple(made for made in parts if made is not None)

    @property
    def each(self) -> tuple[Scores, ...]:
        """The scores as if each product were the only one."""
        return tuple(
            replace(
                self,
                query=part.query,
                key=part.key,
                depth=part.depth,
                column=self.column if part.column is None else part.column,
                products=(),
            )
            for part in self.products
        ) or (self,)


@dataclass(frozen=True)
class Addend:
    """factor * the elements `ref`, which a product of two computed tensors makes or none does."""

    ref: Ref
    factor: float
    is_product: bool


def addends_of(ref: Ref, views: Views, leads: Leads) -> list[Addend] | None:
    """Return what elements are the sum of, if two at least are products; None if they aren't."""
    found: list[Addend] = []
    waiting = [(ref, 1.0)]
    while waiting:
        at, factor = waiting.pop()
        is_product = contraction_of(at.value.producer, views.shapes) is not None
        if is_product or leads(at.value) is not Lead.PRODUCT:
            found.append(Addend(at, factor, is_product))
            continue
        below = views.pull(at)
        parts = [(below, 1.0)] if below is not None else _parts(at, views)
        if parts is None or len(found) + len(waiting) + len(parts) > _LONGEST_SUM:
            return None
        waiting += [(part, factor * own) for part, own in reversed(parts)]
    usable = all(math.isfinite(part.factor) and part.factor for part in found)
    return found if usable and sum(part.is_product for part in found) > 1 else None


def _parts(ref: Ref, views: Views) -> list[tuple[Ref, float]] | None:
    """Return what elements are the sum of, each with its factor; None for no linear operator."""
    node = ref.value.producer
    if node is None:
        return None
    match node.op:
        case "Cast" | "CastLike" if is_float_cast(node, views.shapes):
            factors: Sequence[float] = (1.0,)
        case "Add" | "Sum":
            factors = (1.0,) * len(node.inputs)
        case "Sub":
            factors = (1.0, -1.0)
        case _:
            scaled = scaling_of(ref, views)
            return None if scaled is None else [scaled]
    found: list[tuple[Ref, float]] = []
    for value, factor in zip(node.inputs, factors, strict=False):
        below = None if value is None else views.beside(ref.index, value)
        if below is None:
            return None
        found.append((below, factor))
    return found or None


def is_whole(ref: Ref, views: Views) -> bool:
    """Return whether each axis is proved to be as long as its index, or 1: no run broadcasts it."""
    shape = views.shapes.shape(ref.value)
    return shape is not None and all(
        extent in (ONE, size(views.space.resolve(axis)))
        for extent, axis in zip(shape, ref.index, strict=True)
    )


def joined(found: Sequence[Scores], factors: Sequence[float], space: Space) -> Scores | None:
    """Return scores whose products, each times a factor of its own, are summed.

    All but the first factor are the queries'; the first is left to the caller. None where it isn't
    known how deep one is.
    """
    first = found[0]
    depths = numbers_of(size(merged(one.depth)) for one in found)
    if depths is None:
        return None
    products = tuple(
        Product(one.query, one.key, one.depth, factor / factors[0], made=one.chain.product)
        for one, factor in zip(found, factors, strict=True)
    )
    return replace(first, depth=(space.atom(Dim.of(sum(depths)), "depth"),), products=products)


def share_positions(scores: Scores, values: Ref, space: Space) -> bool:
    """Return whether the keys of all products are of the same positions as the values.

    Those of a single product may be of each row, as relative places are; joined they would all be.
    """
    kept = space.atoms_of(*values.index)
    keys: list[set[Atom]] = []
    for part in scores.products:
        depth = space.atoms_of(*part.depth)
        keys.append(space.atoms_of(*part.key.index) - depth - kept)
    return all(own == keys[0] for own in keys)
