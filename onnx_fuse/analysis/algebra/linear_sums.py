"""Projections that are a sum of several of one tensor: their weights add up.

One of the terms may go through fewer columns in between, as what fine-tuning adds to a weight does:
x W + (x A) B is x (W + A B).
"""

from __future__ import annotations

from dataclasses import replace

from onnx_fuse.analysis.algebra.axes import index_atoms, size
from onnx_fuse.analysis.algebra.contraction import contraction_of
from onnx_fuse.analysis.algebra.linear import Projection, Step, projection_of, steps_of
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.ir.graph import Graph

_SUMS = frozenset({"Add", "Sub", "Sum"})
_MOST_TERMS = 8  # of a sum; more adapters than that are nowhere


def sum_of_projections(ref: Ref, graph: Graph, views: Views) -> tuple[Projection, Ref] | None:
    """Return the projection that makes elements as a sum, and its first product; None if none.

    One of the terms is a product with what all of them are made of. The others may be products of
    such products: their matrices are as large as its own.
    """
    terms = _terms(ref, graph, views)
    if terms is None or len(terms) < 2:
        return None
    for main, (base, product) in enumerate(terms):
        rest = [term for place, (term, _) in enumerate(terms) if place != main]
        others = [_alike(term, base, graph, views) for term in rest]
        found = tuple(other for other in others if other is not None)
        if len(found) == len(rest) and base.are_of_columns(base.steps):
            return replace(base, others=found), product
    return None


def _terms(ref: Ref, graph: Graph, views: Views) -> list[tuple[Projection, Ref]] | None:
    """Return the projections of which elements are the sum, with their products; None if of more.

    Constants scale all terms, and are added to the first. What is taken off is negative.
    """
    steps: list[Step] = []  # outermost first
    while True:
        node = ref.value.producer
        if node is None or node.graph is not graph or views.shapes.is_constant(ref.value):
            return None
        contraction = contraction_of(node, views.shapes)
        if contraction is not None:
            projection = projection_of(contraction, ref, views)
            if projection is None:
                return None
            inner = (*projection.steps, *reversed(steps))
            return [(replace(projection, steps=inner), ref)]
        below = views.pull(ref)
        if below is not None:
            ref = below
            continue
        stepped = steps_of(node, ref, views)
        if stepped is not None:
            steps += reversed(stepped[0])
            ref = stepped[1]
            continue
        break
    if node.op not in _SUMS:
        return None
    found: list[tuple[Projection, Ref]] = []
    for place, value in enumerate(node.given):
        at = views.broadcast(ref.index, value)
        same = views.shapes.shape(value) == views.shapes.shape(ref.value)
        own = _terms(at, graph, views) if at is not None and same else None
        if own is None or len(found) + len(own) > _MOST_TERMS:
            return None
        is_taken_off = node.op == "Sub" and place > 0
        found += [(_negated(term), product) for term, product in own] if is_taken_off else own
    first, *others = found
    scales = [step for step in steps[::-1] if step.scales]
    is_taken_off = sum(step.op == "Rsub" for step in steps) % 2 > 0
    return [
        (_stepped(first[0], steps[::-1]), first[1]),
        *(
            (_stepped(_negated(term) if is_taken_off else term, scales), product)
            for term, product in others
        ),
    ]


def _stepped(term: Projection, steps: list[Step]) -> Projection:
    return replace(term, steps=(*term.steps, *steps))


def _negated(term: Projection) -> Projection:
    """Return minus a product: so is all that is added to it, or that it is taken off."""
    steps = (step if step.scales else replace(step, factor=-step.factor) for step in term.steps)
    return replace(term, alpha=-term.alpha, steps=tuple(steps))


def _alike(term: Projection, base: Projection, graph: Graph, views: Views) -> Projection | None:
    """Return a term as a map of the tensor that the base reads to its columns; None if it isn't."""
    term, base = term.resolve(views.space), base.resolve(views.space)
    if {*term.column_atoms} != {*base.column_atoms} or not term.are_of_columns(term.steps):
        return None
    if _reads_alike(term, base, views):
        return term
    inner = _terms(term.source, graph, views)
    before = inner[0][0].resolve(views.space) if inner is not None and len(inner) == 1 else None
    if before is None or not before.are_of_columns(before.steps):
        return None
    term = term.resolve(views.space)
    if {*before.column_atoms} != {*index_atoms(term.summed)}:
        return None
    return replace(term, before=before) if _reads_alike(before, base, views) else None


def _reads_alike(term: Projection, base: Projection, views: Views) -> bool:
    """Return whether two projections read one tensor's rows, each as a whole and in its order."""
    own, other = views.origin(term.source), views.origin(base.source)
    if own.value is not other.value:
        return False
    space = views.space
    summed = [space.resolve_index(map_.summed) for map_ in (term, base)]
    for one, two in zip(own.index, other.index, strict=True):
        if one == two:
            continue
        whole = [axis in index for axis, index in zip((one, two), summed, strict=True)]
        if not all(whole) or size(one) != size(two):
            return False
    return len(summed[0]) == len(summed[1]) == 1
