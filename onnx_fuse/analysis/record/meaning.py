"""What a product of products means: attention over positions, or what only looks like it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

from onnx import TensorProto

from onnx_fuse.analysis.algebra.axes import Atom
from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.contraction import Contraction, contraction_of
from onnx_fuse.analysis.algebra.expr import Call, Expr, leaves
from onnx_fuse.analysis.algebra.linear import projection_of
from onnx_fuse.analysis.algebra.nodes import FLOATS, readers
from onnx_fuse.analysis.algebra.quantized import is_quantized_projection
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import CARRIERS, Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.record.dependence import (
    LONGEST_TRACE,
    NEAR,
    SIZES,
    comes_from_softmax,
    depends_on,
    inputs_of,
    is_made_by,
    is_of_constants,
    needs,
)
from onnx_fuse.analysis.scores.chain import (
    Bias,
    Keep,
    Operation,
    Placed,
    RowScale,
    Sections,
    Select,
)
from onnx_fuse.analysis.scores.sums import Scores
from onnx_fuse.analysis.search import reachable
from onnx_fuse.analysis.softmax.ahead import SCALERS, leads_to_product
from onnx_fuse.analysis.softmax.weights import Values
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Code

_PICKS = frozenset({"Gather", "GatherND", "GatherElements"})
_MATRIX = 2  # the axes of one
_RANKINGS = frozenset({"TopK", "ArgMax", "ArgMin"})
_ACTIVATIONS = frozenset(
    {
        *("Celu", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu"),
        *("Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu"),
        *(f"com.microsoft:{name}" for name in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")),
    }
)
_TESTS = {("IsNaN",): "NaN", ("IsInf",): "infinite"}


def check_meaning(views: Views, node: Node, scores: Scores, values: Values) -> None:
    """Raise Declined for what has the form of attention but another meaning."""
    for part, own in itertools.product(scores.each, values.each):
        _check_types(views, part, own)
        if not scores.are_joined:  # learned keys may stand beside others
            _check_constants(views, node, part, own)
        _check_channels(views, node, part)
        check_content(views, part)
        _check_selection(views, part)
        _check_factors(part, own)
    for own in values.each:
        _check_use(views, node, own)


def _check_factors(scores: Scores, values: Values) -> None:
    """Raise Declined if rows of scores or weights are scaled by what is computed from the scores.

    The block would compute these a second time.
    """
    product = scores.chain.product
    made = set() if product is None else {product}
    for operation in scores.chain.operations:
        if isinstance(operation, RowScale) and all(needs(v, made) for v in operation.node.given):
            what = "scales them by numbers that are computed from them"
            raise Declined(Code.SCORES_CHANGED, operation.node, what=what)
    for _, factor in values.factors:
        found = next((value for value in leaves(factor.expr) if needs(value, made)), None)
        if found is not None:
            raise Declined(Code.WEIGHTS_SCALED, found.producer)


def _check_types(views: Views, scores: Scores, values: Values) -> None:
    for ref in (scores.query, scores.key, values.value):
        dtype = views.shapes.dtype(ref.value)
        if dtype is not None and dtype not in FLOATS:
            name = TensorProto.DataType.Name(dtype).lower()
            raise Declined(
                Code.UNSUPPORTED_TYPE, ref.value.producer, value=ref.value.name, dtype=name
            )


def _check_selection(views: Views, scores: Scores) -> None:
    """Queries and keys are not picked by what was computed from their content."""
    for what, side in (("query", scores.query), ("key", scores.key)):
        value = side.value
        for _ in range(LONGEST_TRACE):
            made = value.producer
            if made is None or contraction_of(made, views.shapes) is not None:
                break
            indices = made.input(1) if made.op in _PICKS else None
            if indices is not None and _is_ranked(indices):
                raise Declined(Code.GATHERED, made, what=what, value=indices.name)
            following = made.input(0)
            if following is None:
                break
            value = following


def _is_ranked(value: Value) -> bool:
    """Return whether indices come from sorting or ranking computed numbers."""
    near = reachable(value, inputs_of, steps=NEAR - 1)
    return any(is_made_by(found, _RANKINGS) for found in near)


def _check_use(views: Views, node: Node, values: Values) -> None:
    """Check that no other softmax's weights multiply the context, and that none made the values.

    Otherwise both approximate one attention.
    """
    given = views.origin(values.value).value.producer
    product = contraction_of(given, views.shapes)
    if given is not None and product is not None:
        weighed = any(_is_weight(views, side) for side in product.factors)
        if not weighed and any(map(comes_from_softmax, product.factors)):
            raise Declined(Code.PARTIAL, node, reader=given.name)
    met = _met(values.context.value, CARRIERS, views.shapes)
    if met is not None and comes_from_softmax(met.right):
        raise Declined(Code.PARTIAL, node, reader=met.node.name)


def _is_weight(views: Views, value: Value) -> bool:
    """Return whether a value is a weight, also one that callers may override or have to give.

    Weights that have to be given are matrices: they have no batch and no heads.
    """
    above = [found for found in reachable(value, inputs_of) if found.producer is None]
    if all(found.is_constant or found.is_initializer for found in above):
        return True
    ref = views.ref(value, "x")
    origin = None if ref is None else views.origin(ref)
    return origin is not None and origin.value.is_input and len(origin.index) == _MATRIX


def _check_constants(views: Views, node: Node, scores: Scores, values: Values) -> None:
    """Check that a constant for a query or key is a learned one: that the other is a projection.

    Otherwise it is a gate, or the last layer of a network. A gate are also learned keys behind an
    activation or a mixture of several tensors, and before values that are one number each: bins of
    which the mean is taken.
    """
    shapes = views.shapes
    query, key = shapes.is_constant(scores.query.value), shapes.is_constant(scores.key.value)
    if not query and not key:
        return
    other = scores.key if query else scores.query
    top = _ascent(views, other)[-1].value.producer
    if _trace(views, other) is None and not is_quantized_projection(top, shapes):
        if _is_product(views, other):
            raise Declined(Code.MIXED_SCORES, node)
        if query and not any(
            leads_to_product(use.node, shapes) for use in readers(values.context.value)
        ):
            raise _pooled(node, scores)
        raise _not_projected(node, values.value.value, is_query=query)
    check_network(views, node, scores)
    if key and not shapes.is_constant(values.value.value):
        raise Declined(Code.GATE, node)
    if key and (any(map(_is_activated, _ascent(views, other))) or _is_mixed(views, other)):
        raise Declined(Code.GATE, node)
    depth = views.space.atoms_of(*values.value.index) - views.space.atoms_of(*scores.index)
    if key and all(atom.extent == Dim.of(1) for atom in depth):
        raise Declined(Code.GATE, node)


def check_network(views: Views, node: Node, scores: Scores) -> None:
    """Raise Declined where a network scores each position by itself: its last layer is constant."""
    query = views.shapes.is_constant(scores.query.value)
    if query and any(_is_activated(ref) for ref in _ascent(views, scores.key)):
        raise _pooled(node, scores)


def _is_activated(ref: Ref) -> bool:
    """Return whether an activation makes elements, or one of two factors of them."""
    node = ref.value.producer
    factors = node.given if node is not None and node.op == "Mul" else [ref.value]
    return any(is_made_by(value, _ACTIVATIONS) for value in factors)


def _is_mixed(views: Views, ref: Ref) -> bool:
    """Return whether several tensors meet in elements, as in a stream of residuals.

    The parts of a rotation are of the same products.
    """
    shapes = views.shapes

    def above(value: Value) -> Sequence[Value | None]:
        return () if contraction_of(value.producer, shapes) is not None else inputs_of(value)

    def products(value: Value) -> frozenset[Value]:
        found = reachable(value, above, steps=LONGEST_TRACE)
        return frozenset(v for v in found if not shapes.is_constant(v) and not any(above(v)))

    for each in _ascent(views, ref):
        shape = shapes.shape(each.value)
        given = [] if each.value.producer is None else each.value.producer.given
        met = {products(value) for value in given if shapes.shape(value) == shape}
        if len(met - {frozenset()}) > 1:  # constants are of none
            return True
    return False


def check_factor(views: Views, node: Node, scores: Scores, weights: Value) -> None:
    """Raise Declined for a softmax over one factor of linear attention, changed before its product.

    Its scores are projected from what is no projection itself, so there is no query beside a key.
    """
    shapes = views.shapes
    query, key = shapes.is_constant(scores.query.value), shapes.is_constant(scores.key.value)
    met = _met(weights, CARRIERS | SCALERS, shapes) if query != key else None
    projected = scores.key if query else scores.query
    if met is None or _trace(views, projected) is not None or _is_product(views, projected):
        return
    declined = _not_projected(node, met.right, is_query=query)
    if declined.code is Code.LINEAR_ATTENTION:
        raise declined


def _met(value: Value, passed: frozenset[str], shapes: Facts) -> Contraction | None:
    """Return the product with a computed tensor to which a value comes through such operators.

    That tensor is on the right.
    """
    for _ in range(NEAR):
        found = readers(value)
        if len(found) != 1:
            return None
        reader = found[0].node
        contraction = contraction_of(reader, shapes)
        if contraction is not None:
            own = contraction.facing(value)
            return None if shapes.is_constant(own.right) else own
        if reader.op not in passed or reader.outputs[0] is None:
            return None
        value = reader.outputs[0]
    return None


def _pooled(node: Node, scores: Scores) -> Declined:
    """Return why positions that are weighed by scores of their own alone are no attention.

    No query follows, as the one of linear attention does.
    """
    product = scores.chain.product
    assert product is not None
    assert product.producer is not None
    what = f"'{product.name}' ({product.producer.op}) multiplies one tensor by constants"
    return Declined(Code.NO_SCORES, product.producer, node=node.name, what=what)


def _not_projected(node: Node, value: Value, *, is_query: bool) -> Declined:
    if is_query:
        return Declined(Code.LINEAR_ATTENTION, node, what="keys")
    if comes_from_softmax(value):
        return Declined(Code.LINEAR_ATTENTION, node, what="queries")
    return Declined(Code.GATE, node)


def _ascent(views: Views, ref: Ref) -> list[Ref]:
    """Return the elements and where they come from, up to what a product or no view makes.

    Only views and pointwise operators lie between them.
    """
    found = [ref]
    for _ in range(LONGEST_TRACE):
        node = ref.value.producer
        if node is None or contraction_of(node, views.shapes) is not None:
            break
        if is_quantized_projection(node, views.shapes):
            break
        below = views.pull(ref) or _pointwise(views, node, ref)
        if below is None:
            break
        ref = below
        found.append(ref)
    return found


def _is_product(views: Views, ref: Ref) -> bool:
    """Return whether views and pointwise operators lead up to a product of computed tensors."""
    contraction = contraction_of(_ascent(views, ref)[-1].value.producer, views.shapes)
    if contraction is None:
        return False
    return not any(map(views.shapes.is_constant, contraction.factors))


def _trace(views: Views, ref: Ref, *, given: bool = False) -> tuple[Ref, set[Atom]] | None:
    """Follow views and pointwise operators to a projection; return its source and column atoms.

    given: by a weight that callers may have to give, as those of a function do.
    """
    top = _ascent(views, ref)[-1]
    contraction = contraction_of(top.value.producer, views.shapes)
    projection = None if contraction is None else projection_of(contraction, top, views)
    if given and projection is None and contraction is not None:
        projection = projection_of(contraction, top, views, partial(_is_weight, views))
    if projection is None:
        return None
    projection = projection.resolve(views)
    return projection.source, {*projection.column_atoms}


def is_projected(views: Views, ref: Ref) -> bool:
    """Return whether views and pointwise operators lead up to a projection."""
    return _trace(views, ref) is not None


def _pointwise(views: Views, node: Node, ref: Ref) -> Ref | None:
    """Return the input of the output's shape, if there is one.

    Then the operator treats the elements one by one, or in rows.
    """
    shape = views.shapes.shape(ref.value)
    for value in node.inputs:
        if (
            value is not None
            and not views.shapes.is_constant(value)
            and views.shapes.shape(value) == shape
        ):
            return Ref(value, ref.index)
    return None


def _check_channels(views: Views, node: Node, scores: Scores) -> None:
    """Positions are compared by their channels, not channels by their positions."""
    depth = views.space.atoms_of(*scores.depth)
    column = views.space.atoms_of(scores.column)
    for at in _ascent(views, scores.key):  # which goes past convolutions that keep their shape
        if is_made_by(at.value, ("Conv",)) and column & views.space.atoms_of(*at.index[1:2]):
            raise Declined(Code.CHANNEL_ATTENTION, node)
    for side in (scores.query, scores.key):
        traced = _trace(views, side, given=True)
        if traced is None:
            continue
        source, columns = traced
        read = views.space.atoms_of(*source.index)
        by_position = depth.isdisjoint(columns) and not depth.isdisjoint(read)
        over_columns = side is scores.key and not column.isdisjoint(columns)
        if (by_position or over_columns) and not _mixes_positions(views, source, depth):
            raise Declined(Code.CHANNEL_ATTENTION, node)


def _mixes_positions(views: Views, source: Ref, depth: set[Atom]) -> bool:
    """Return whether a projection combines positions whose channels another one has made."""
    above = _trace(views, source, given=True)
    return above is not None and depth <= above[1]


def check_content(views: Views, scores: Scores) -> None:
    """No bias of pairs is computed from what the query or the key is computed from.

    One of keys alone says nothing of a query, and one of queries alone is lost in the softmax.
    """
    sides = {"query": scores.query, "key": scores.key}
    sources = {what: {_origin(views, side)} for what, side in sides.items()}
    products = {what: {*_way(views, side)} for what, side in sides.items()}
    # A packed projection is above both; what tells them apart is taken from it later.
    shared = products["query"] & products["key"]
    own = {what: made - shared for what, made in products.items()}
    for operation in scores.chain.operations:
        for part, item in _tensors(operation):
            for bias in _read_by(item.expr):
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
        asked = next((v for v in reachable(value, inputs_of, steps=2) if is_made_by(v, test)), None)
        if part == "mask" and asked is not None and asked.producer is not None:
            node = asked.producer
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


def _read_by(expr: Expr) -> list[Value]:
    """Return the values whose numbers, not only their shapes, an expression reads."""
    if not isinstance(expr, Call):
        return leaves(expr)
    parts = () if expr.op_type in SIZES else expr.inputs
    return [value for part in parts for value in _read_by(part)]


def _way(views: Views, ref: Ref) -> list[Value]:
    """Return an operand and the values above it, up to its projection's result.

    An empty tensor in which keys are written is nobody's content: another layer may share it.
    """
    above = (found.value for found in _ascent(views, ref))
    return [value for value in above if value.producer is not None and not is_of_constants(value)]


def _is_of_pairs(views: Views, ref: Ref, scores: Scores) -> bool:
    """Return whether a bias is projected from a tensor of pairs.

    Such a tensor has an element for each pair of row and column.
    """
    shape = views.shapes.shape(ref.value)
    if shape is None or len(shape) != len(ref.index):
        return False
    traced = _trace(views, ref)
    if traced is None:
        return False
    space = views.space
    have = space.atoms_of(*traced[0].index)
    keys = space.atoms_of(*scores.key.index)
    rows = space.atoms_of(*scores.query.index) - keys
    columns = space.atoms_of(scores.column)
    return bool(rows) and rows | columns <= have


def _is_of_sides(views: Views, item: Placed, scores: Scores, part: str) -> bool:
    """Return whether what is combined with all scores is of keys alone; a bias may have two sides.

    Then it is a sum of terms for keys alone and for queries alone. None of them may be computed
    from the scores: these would be computed twice.
    """
    space = views.space
    keys = space.atoms_of(*scores.key.index)
    rows = space.atoms_of(*scores.query.index) - keys
    columns = space.atoms_of(scores.column)
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

    if not rows or not isinstance(item.expr, Value):
        return False
    if not columns <= space.atoms_of(*scores.index):  # one set of keys among several
        return False
    shape = views.shapes.shape(item.expr)
    is_whole = shape is not None and len(shape) == len(item.index)
    return is_whole and is_of_one(Ref(item.expr, item.index), NEAR)


def _origin(views: Views, ref: Ref) -> Value:
    """Return what an operand is projected from, or the operand itself, at its outermost view."""
    traced = _trace(views, ref)
    return views.origin(ref if traced is None else traced[0]).value
