"""What a product of products means: attention over positions, or what only looks like it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from onnx import TensorProto

from onnx_fuse.analysis.algebra.axes import Atom
from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.contraction import Contraction, contraction_of
from onnx_fuse.analysis.algebra.expr import leaves
from onnx_fuse.analysis.algebra.nodes import FLOATS, inputs_of, made_by, readers
from onnx_fuse.analysis.algebra.quantized_products import is_quantized_projection
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import CARRIERS, Views
from onnx_fuse.analysis.declined import Declined
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.record.content import check_content
from onnx_fuse.analysis.record.dependence import (
    LONGEST_TRACE,
    NEAR,
    comes_from_softmax,
    needs,
    unshaped,
)
from onnx_fuse.analysis.record.origins import ascent, is_product, is_weight, trace
from onnx_fuse.analysis.scores.chain import RowScale
from onnx_fuse.analysis.scores.sums import Scores
from onnx_fuse.analysis.search import reachable
from onnx_fuse.analysis.softmax.ahead import SCALERS, leads_to_product
from onnx_fuse.analysis.softmax.gate_sinks import gate_of
from onnx_fuse.analysis.softmax.values import Values
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Code

_PICKS = frozenset({"Gather", "GatherND", "GatherElements"})
_RANKINGS = frozenset({"TopK", "ArgMax", "ArgMin"})
_ACTIVATIONS = frozenset(
    {
        *("Celu", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu"),
        *("Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu"),
        *(f"com.microsoft:{name}" for name in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")),
    }
)


def check_meaning(views: Views, node: Node, scores: Scores, values: Values) -> None:
    """Raise Declined for what has the form of attention but another meaning."""
    for part, own in itertools.product(scores.each, values.each):
        _check_types(views, part, own)
        if not scores.are_joined:  # learned keys may stand beside others
            _check_constants(views, node, part, own)
        _check_channels(views, node, part)
        check_content(views, part)
        _check_selection(views, part)
        _check_factors(views, part, own)
    for own in values.each:
        _check_use(views, node, own)


def _check_factors(views: Views, scores: Scores, values: Values) -> None:
    """Raise Declined if scores, weights or context are scaled by what is computed from the scores.

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
    gate = gate_of(values.context, views)
    given = {values.context.value} | ({values.shown.value} if values.shown else set())

    def sources(value: Value) -> Sequence[Value]:
        return () if value in given else unshaped(value)

    if gate is not None and needs(gate.factor.value, made, sources):
        raise Declined(Code.WEIGHTS_SCALED, gate.node)


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
    return any(made_by(found, *_RANKINGS) for found in near)


def _check_use(views: Views, node: Node, values: Values) -> None:
    """Check that no other softmax's weights multiply the context, and that none made the values.

    Otherwise both approximate one attention.
    """
    given = views.origin(values.value).value.producer
    product = contraction_of(given, views.shapes)
    if given is not None and product is not None:
        weighed = any(map(comes_from_softmax, product.factors))
        if weighed and not any(is_weight(views, side) for side in product.factors):
            raise Declined(Code.PARTIAL, node, reader=given.name)
    met = _met(values.context.value, CARRIERS, views.shapes)
    if met is not None and comes_from_softmax(met.right):
        raise Declined(Code.PARTIAL, node, reader=met.node.name)


def _check_constants(views: Views, node: Node, scores: Scores, values: Values) -> None:
    """Check that a constant for a query or key is a learned one: that the other is a projection.

    Otherwise it is a gate, or the last layer of a network. A gate are also learned keys behind an
    activation or a mixture of several tensors, and before values that are one number each: bins of
    which the mean is taken.
    """
    shapes = views.shapes
    query, key = shapes.is_constant(scores.query.value), shapes.is_constant(scores.key.value)
    if not query and not key:
        _check_given(views, node, scores)
        return
    other = scores.key if query else scores.query
    top = ascent(views, other)[-1].value.producer
    if trace(views, other) is None and not is_quantized_projection(top, shapes):
        if is_product(views, other):
            raise Declined(Code.MIXED_SCORES, node)
        if query and not any(
            leads_to_product(use.node, shapes) for use in readers(values.context.value)
        ):
            raise _pooled(node, scores)
        raise _not_projected(node, values.value.value, is_query=query)
    _check_use(views, node, values)  # one part of two says more than a gate or a network
    check_network(views, node, scores)
    if key and not shapes.is_constant(values.value.value):
        raise Declined(Code.GATE, node)
    if key and (any(map(_is_activated, ascent(views, other))) or _is_mixed(views, other)):
        raise Declined(Code.GATE, node)
    depth = views.space.atoms_of(*values.value.index) - views.space.atoms_of(*scores.index)
    if key and all(atom.extent == Dim.of(1) for atom in depth):
        raise Declined(Code.GATE, node)


def _check_given(views: Views, node: Node, scores: Scores) -> None:
    """Check that no weight that callers may replace mixes the scores of other queries and keys."""
    for side, other in ((scores.query, scores.key), (scores.key, scores.query)):
        product = contraction_of(ascent(views, other)[-1].value.producer, views.shapes)
        if product is None or not views.origin(side).value.is_initializer:
            continue
        if not any(is_weight(views, factor) for factor in product.factors):
            raise Declined(Code.MIXED_SCORES, node)


def check_network(views: Views, node: Node, scores: Scores) -> None:
    """Raise Declined where a network scores each position by itself: its last layer is constant."""
    query = views.shapes.is_constant(scores.query.value)
    if query and any(_is_activated(ref) for ref in ascent(views, scores.key)):
        raise _pooled(node, scores)


def _is_activated(ref: Ref) -> bool:
    """Return whether an activation makes elements, or one of two factors of them."""
    node = ref.value.producer
    factors = node.given if node is not None and node.op == "Mul" else [ref.value]
    return any(made_by(value, *_ACTIVATIONS) for value in factors)


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

    for each in ascent(views, ref):
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
    if met is None or trace(views, projected) is not None or is_product(views, projected):
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


def _check_channels(views: Views, node: Node, scores: Scores) -> None:
    """Positions are compared by their channels, not channels by their positions."""
    depth = views.space.atoms_of(*scores.depth)
    column = views.space.atoms_of(scores.column)
    for at in ascent(views, scores.key):  # which goes past convolutions that keep their shape
        if made_by(at.value, "Conv") and column & views.space.atoms_of(*at.index[1:2]):
            raise Declined(Code.CHANNEL_ATTENTION, node)
    for side in (scores.query, scores.key):
        traced = trace(views, side, given=True)
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
    above = trace(views, source, given=True)
    return above is not None and depth <= above[1]
