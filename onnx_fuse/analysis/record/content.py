"""What biases and masks are computed from: none of them may be made of the queries' content."""

from __future__ import annotations

from onnx_fuse.analysis.algebra.axes import Atom
from onnx_fuse.analysis.algebra.expr import values_read
from onnx_fuse.analysis.algebra.nodes import inputs_of, made_by
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.record.dependence import NEAR, depends_on, needs
from onnx_fuse.analysis.record.origins import source_of, trace, way
from onnx_fuse.analysis.scores.chain import Bias, Keep, Operation, Placed, Sections, Select
from onnx_fuse.analysis.scores.sums import Scores
from onnx_fuse.analysis.search import reachable
from onnx_fuse.ir.graph import Value
from onnx_fuse.report import Code

_TESTS = {"IsNaN": "NaN", "IsInf": "infinite"}


def check_content(views: Views, scores: Scores) -> None:
    """Raise Declined if a bias of pairs is computed from what makes the query or the key.

    One of keys alone says nothing of a query, and one of queries alone is lost in the softmax.
    """
    sides = {"query": scores.query, "key": scores.key}
    sources = {what: {source_of(views, side)} for what, side in sides.items()}
    products = {what: {*way(views, side)} for what, side in sides.items()}
    # A packed projection is above both; what tells them apart is taken from it later.
    shared = products["query"] & products["key"]
    own = {what: made - shared for what, made in products.items()}
    for operation in scores.chain.operations:
        for part, item in _tensors(operation):
            for bias in values_read(item.expr):
                if views.shapes.is_constant(bias):
                    continue  # a number, whatever its type is taken from
                if bias is item.expr and _is_of_sides(views, item, scores, part):
                    continue
                word = "the"
                found = [what for what, made in own.items() if needs(bias, made)]
                found = found or [what for what, made in products.items() if needs(bias, made)]
                if not found and not _is_of_pairs(views, Ref(bias, item.index), scores):
                    word = "the source of the"
                    found = [what for what, source in sources.items() if depends_on(bias, source)]
                if found:
                    what = f"{word} {' and the '.join(found)}"
                    raise _of_content(bias, part, what)


def _of_content(value: Value, part: str, what: str) -> Declined:
    """Return why what is combined with the scores can't be: it is computed from `what`."""
    for test, kind in _TESTS.items():
        near = reachable(value, inputs_of, steps=2)
        node = next((node for above in near if (node := made_by(above, test))), None)
        if part == "mask" and node is not None:
            what = f"replaces those that are {kind}"
            return Declined(Code.SCORES_CHANGED, node, what=what)
    return Declined(Code.CONTENT_BIAS, value.producer, value=value.name, part=part, what=what)


def _tensors(operation: Operation) -> list[tuple[str, Placed]]:
    """Return the tensors with which an operation on the scores combines them, by their part."""
    match operation:
        case Bias(term):
            found = [("bias", term)]
        case Select(condition, fill):
            found = [("fill", fill), ("mask", condition)]
        case Keep(condition):
            found = [("mask", condition)]
        case _:
            return []
    return [
        (part, own)
        for part, item in found
        for own in (item.terms if isinstance(item, Sections) else (item,))
    ]


def _is_of_pairs(views: Views, ref: Ref, scores: Scores) -> bool:
    """Return whether a bias is projected from a tensor of pairs.

    Such a tensor has an element for each pair of row and column.
    """
    shape = views.shapes.shape(ref.value)
    if shape is None or len(shape) != len(ref.index):
        return False
    traced = trace(views, ref)
    if traced is None:
        return False
    rows, columns = _rows_and_columns(views, scores)
    have = views.space.atoms_of(*traced[0].index)
    return bool(rows) and rows | columns <= have


def _rows_and_columns(views: Views, scores: Scores) -> tuple[set[Atom], set[Atom]]:
    """Return what only queries vary along, and the softmax's axis."""
    space = views.space
    rows = space.atoms_of(*scores.query.index) - space.atoms_of(*scores.key.index)
    return rows, space.atoms_of(scores.column)


def _is_of_sides(views: Views, item: Placed, scores: Scores, part: str) -> bool:
    """Return whether what is combined with all scores is of keys alone; a bias may have two sides.

    Then it is a sum of terms for keys alone and for queries alone. None of them may be computed
    from the scores: these would be computed twice.
    """
    space = views.space
    rows, columns = _rows_and_columns(views, scores)
    made = set() if scores.chain.product is None else {scores.chain.product}

    def is_of_one(at: Ref | None, deepest: int) -> bool:
        if at is None or not deepest:
            return False
        at = views.origin(at)
        own, node = space.atoms_of(*at.index), at.value.producer
        if own.isdisjoint(rows) or (part == "bias" and own.isdisjoint(columns)):
            return not needs(at.value, made)
        if node is None or node.op not in ("Add", "Sub"):
            return False
        parts = (views.beside(at.index, value) for value in node.given)
        return all(is_of_one(term, deepest - 1) for term in parts)

    if not rows or item.ref is None:
        return False
    if not columns <= space.atoms_of(*scores.index):  # one set of keys among several
        return False
    shape = views.shapes.shape(item.ref.value)
    is_whole = shape is not None and len(shape) == len(item.index)
    return is_whole and is_of_one(item.ref, NEAR)
