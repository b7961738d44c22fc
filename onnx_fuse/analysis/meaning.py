"""What a product of products means: attention over positions, or one of the things that only look like it."""

from __future__ import annotations

from onnx_fuse.analysis.axes import atoms, index_atoms
from onnx_fuse.analysis.contraction import contraction_of
from onnx_fuse.analysis.linear import projection_of
from onnx_fuse.analysis.scores import Declined, Placed, Scores, Select
from onnx_fuse.analysis.views import Ref, Views
from onnx_fuse.analysis.weights import Values
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.report import Code

_LONGEST_TRACE = 60  # nodes followed towards an operand's origin
_NEAR = 8  # steps within which two operands of self-attention meet
_SEARCHED = 4000  # nodes searched for a dependence
_CARRIES = frozenset({"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Cast", "Identity"})
_PRODUCTS = frozenset({"MatMul", "Einsum", "Add"})
_COMPARES = frozenset(
    {
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "IsNaN",
        "IsInf",
        "Not",
        "And",
        "Or",
        "Shape",
        "Size",
        "Sign",
    }
)


def check_meaning(views: Views, node: Node, scores: Scores, values: Values) -> None:
    """Raise Declined for what has the form of attention but another meaning."""
    _check_constants(views, node, scores, values)
    _check_channels(views, node, scores)
    _check_content(views, node, scores)


def _check_constants(views: Views, node: Node, scores: Scores, values: Values) -> None:
    """A constant in place of a query or a key is a learned one only if the other is a projection; else it is a gate."""
    shapes = views.shapes
    query, key = shapes.is_constant(scores.query.value), shapes.is_constant(scores.key.value)
    if not query and not key:
        return
    if query and key:
        raise Declined(Code.CONSTANT, node, node=node.name)
    other = scores.key if query else scores.query
    if not _is_projected(views, other):
        raise Declined(
            Code.LINEAR_ATTENTION if query else Code.GATE, node, node=node.name, what="keys"
        )
    if key and not shapes.is_constant(values.value.value):
        raise Declined(Code.GATE, node, node=node.name)


def _is_projected(views: Views, ref: Ref) -> bool:
    traced = _trace(views, ref)
    return traced is not None


def _trace(views: Views, ref: Ref) -> tuple[Ref, set[object]] | None:
    """Follow views and pointwise operators up to a projection; return its source and its column atoms."""
    for _ in range(_LONGEST_TRACE):
        node = ref.value.producer
        if node is None:
            return None
        contraction = contraction_of(node, views.shapes)
        if contraction is not None:
            projection = projection_of(contraction, ref, views)
            if projection is None:
                return None
            projection = projection.resolve(views)
            return projection.source, {*projection.column_atoms}
        pulled = views.pull(ref)
        if pulled is None:
            pulled = _pointwise(views, node, ref)
        if pulled is None:
            return None
        ref = pulled
    return None


def _pointwise(views: Views, node: Node, ref: Ref) -> Ref | None:
    """Return the input of the output's shape, if there is one: the operator treats each element alike or in rows."""
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
    for side in (scores.query, scores.key):
        traced = _trace(views, side)
        if traced is None:
            continue
        columns = traced[1]
        depth = {atom for axis in scores.depth for atom in atoms(views.space.resolve(axis))}
        column = {*atoms(views.space.resolve(scores.column))}
        if not depth <= columns and depth & {*index_atoms(traced[0].resolve(views.space).index)}:
            raise Declined(Code.CHANNEL_ATTENTION, node, node=node.name)
        if side is scores.key and column & columns:
            raise Declined(Code.CHANNEL_ATTENTION, node, node=node.name)


def _check_content(views: Views, node: Node, scores: Scores) -> None:
    """No bias is computed from what the query or the key is computed from."""
    sources = {_origin(views, scores.query), _origin(views, scores.key)}
    for kind, argument in scores.chain.operations:
        placed = argument[0] if kind == "bias" else argument  # type: ignore[index]
        exprs = [placed.fill, placed.condition] if isinstance(placed, Select) else [placed]
        for item in exprs:
            if not isinstance(item, Placed) or not isinstance(item.expr, Value):
                continue
            if depends_on(item.expr, sources):
                what = "query" if depends_on(item.expr, {_origin(views, scores.query)}) else "key"
                raise Declined(
                    Code.CONTENT_BIAS, item.expr.producer, value=item.expr.name, what=what
                )


def _origin(views: Views, ref: Ref) -> Value:
    """Return what an operand is projected from, or the operand itself, at its outermost view."""
    traced = _trace(views, ref)
    value = ref.value if traced is None else traced[0].value
    while value.producer is not None and value.producer.op_type in (
        "Reshape",
        "Transpose",
        "Cast",
        "Identity",
        "Flatten",
    ):
        source = value.producer.inputs[0]
        if source is None:
            break
        value = source
    return value


def depends_on(value: Value, sources: set[Value]) -> bool:
    """Return whether numbers of `value` are computed from numbers of a source. A comparison's result is a choice, not a
    number, and a shape is neither.
    """
    queue, seen = [value], {value}
    while queue and len(seen) < _SEARCHED:
        current = queue.pop()
        if current in sources:
            return True
        node = current.producer
        if node is None or node.op_type in _COMPARES:
            continue
        for source in node.inputs:
            if source is not None and source not in seen and source.constant is None:
                seen.add(source)
                queue.append(source)
    return False


def needs(value: Value, made: set[Value]) -> bool:
    """Return whether a value is computed from one of `made`, other than from its shape."""
    queue, seen = [value], {value}
    while queue:
        current = queue.pop()
        if current in made:
            return True
        node = current.producer
        if node is None or node.op_type == "Shape":
            continue
        for source in node.inputs:
            if source is not None and source not in seen and source.constant is None:
                seen.add(source)
                queue.append(source)
    return False


def kind_of(query: Value, key: Value, value: Value) -> str:
    """Return "self" if query and keys (or values) come from one tensor within a few steps, else "cross"."""
    near = _near(query)
    return "self" if near & _near(key) or near & _near(value) else "cross"


def _near(value: Value) -> set[Value]:
    found, edge = {value}, [value]
    for _ in range(_NEAR):
        following = []
        for current in edge:
            node = current.producer
            if node is None or node.op_type in _COMPARES:
                continue
            for source in node.inputs:
                if source is not None and source.constant is None and source not in found:
                    found.add(source)
                    following.append(source)
        edge = following
    return found


def joins(value: Value | None, *, through_products: bool) -> list[Node]:
    """Return the Concat nodes that a value reaches through views, sums and (if asked) products."""
    found: list[Node] = []
    edge, seen = [value], {value}
    for _ in range(_NEAR):
        following: list[Value | None] = []
        for current in edge:
            for use in current.uses if current is not None else ():
                node = use.node
                if node.op_type == "Concat":
                    found.append(node)
                elif node.op_type in _CARRIES or (through_products and node.op_type in _PRODUCTS):
                    following += [output for output in node.outputs if output not in seen]
                    seen.update(node.outputs)
        edge = following
    return found
