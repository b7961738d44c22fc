"""What the operator reads of queries, keys and values: sources, weights, norms and caches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from onnx_fuse.analysis.algebra.arrange import arranged
from onnx_fuse.analysis.algebra.axes import (
    Axis,
    Lanes,
    are_numbers,
    atoms,
    evaluate,
    index_atoms,
    merged,
    size,
)
from onnx_fuse.analysis.algebra.expr import Call, Expr, nodes_added, same
from onnx_fuse.analysis.algebra.linear import apply_steps, step_atoms
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.operands.norm import Norm
from onnx_fuse.analysis.operands.operand import ScaledPart
from onnx_fuse.analysis.record.arrangement import Arrangement
from onnx_fuse.analysis.record.records import NormRecord, Weight
from onnx_fuse.analysis.record.roles import Misfit
from onnx_fuse.analysis.record.rotation import SharedRotation
from onnx_fuse.ir.graph import Value

_SOURCES = {"q": "hidden", "k": "context", "v": "value_context"}  # what each is projected from
_VALUES = {"q": "query", "k": "key", "v": "value"}  # what each is without a projection


def operands(
    block: Arrangement, rotation: SharedRotation, v_head_dim: int
) -> tuple[dict[str, Expr], dict[str, Weight]]:
    """Return the values that the operator reads or projects, and the weights of the projections.

    Raises: Misfit.
    """
    for name, factors in block.factors.items():
        part = block.parts[name]
        if factors and (part.projection or part.norm or part.rope or part.past):
            raise Misfit(name)
    sources: dict[str, Expr] = {}
    weights: dict[str, Weight] = {}
    orders = {"q": rotation.order, "k": rotation.order, "v": np.arange(v_head_dim)}
    for name, part in block.parts.items():
        positions = block.roles.positions(name)
        if part.projection is not None:
            inner = index_atoms(part.projection.summed)
            groups = [block.roles.batch, positions, inner]
            views = block.sources(part.projection.source)
            sources[_SOURCES[name]] = _shortest(block, name, views, groups)
            weights[name] = Weight(((part.projection, block.lanes(name, orders[name])),))
        else:
            groups = [block.roles.batch, block.heads(name), positions, part.inner_depth]
            sources[_VALUES[name]] = _value(block, name, rotation.reordered.get(name), groups)
    side_by_side = _side_by_side(block, orders)
    if side_by_side is not None:
        return {"qkv": side_by_side}, {}
    if block.lifted.lengths:
        sources = _from_one_source(sources)
    return _packed(sources, weights)


def _side_by_side(block: Arrangement, orders: dict[str, np.ndarray]) -> Value | None:
    """Return the tensor in which Q, K and V stand side by side, if they are values of one."""
    if any(block.factors.values()):
        return None
    lanes: dict[str, Lanes] = {}
    for name, part in block.parts.items():
        if part.projection is not None or part.joined:
            return None
        lanes[name] = block.lanes(name, orders[name])
    start, total = 0, sum(own.count for own in lanes.values())
    found: list[Value] = []
    for name, part in block.parts.items():
        rows = block.space.resolve_index((block.roles.batch, block.roles.positions(name)))
        own = lanes[name]
        stands = [
            choice.value
            for choice in part.choices
            if choice.index[:2] == rows
            and [size(axis).as_int() for axis in choice.index[2:]] == [total]
            and {*atoms(choice.index[2])} <= own.values.keys()
            and are_numbers(choice.index[2:])
            and (evaluate(choice.index[2], own.values) == start + np.arange(own.count)).all()
        ]
        found = [value for value in stands if name == "q" or value in found]
        start += own.count
    return found[0] if found else None


def _value(block: Arrangement, name: str, reordered: Expr | None, groups: list[Axis]) -> Expr:
    """Return the operand as a value, from the view of it that takes the fewest nodes.

    Raises: Misfit.
    """
    part = block.parts[name]
    if reordered is not None:
        value = reordered
    elif part.joined:
        value = _joined(block, name, part.joined, groups[:-1])
    else:
        value = _shortest(block, name, part.choices, groups)
    if part.steps:
        lanes = block.lanes(name, np.arange(size(groups[3]).as_int() or 0))
        _, shift = apply_steps(part.steps, block.shapes, lanes)
        added = shift.reshape(size(groups[1]).as_int() or 1, 1, -1).astype(np.float32)
        value = Call("Add", (value, added))
    for op, factor in block.factors.get(name, ()):
        scaling = factor.arranged([*groups[:-1], ()], block.extents)
        value = Call(op, (value, scaling))
    return value


def _shortest(block: Arrangement, name: str, views: Iterable[Ref], groups: list[Axis]) -> Expr:
    """Return elements on these axes from the view that takes the fewest nodes. Raises: Misfit."""
    whole = (True,) * len(groups)
    found = [arranged(view.value, view.index, groups, block.extents, whole=whole) for view in views]
    known = [expr for expr in found if expr is not None]
    if not known:
        raise Misfit(name)
    return min(reversed(known), key=nodes_added)


def _joined(block: Arrangement, name: str, parts: Sequence[ScaledPart], groups: list[Axis]) -> Expr:
    """Return parts, each times its factor, joined along depth or positions. Raises: Misfit."""
    found: list[Expr] = []
    for part in parts:
        own = groups if part.column is None else [*groups[:-1], part.column]
        value = _shortest(block, name, block.sources(part.ref), [*own, part.depth])
        if part.factor != 1.0:
            value = Call("Mul", (value, np.asarray(part.factor, dtype=np.float32)))
        found.append(value)
    return Call("Concat", tuple(found), (("axis", 3 if parts[0].column is None else 2),))


def _from_one_source(sources: dict[str, Expr]) -> dict[str, Expr]:
    """Return the operands of a buffered cache, whose new keys are of the queries' own sequence.

    So there is no context beside `hidden`. Raises: Misfit if the sources are not one.
    """
    own = {name: sources[source] for name, source in _SOURCES.items() if source in sources}
    for name, source in own.items():
        if not same(source, next(iter(own.values()))):
            raise Misfit(name)
    values = {name: expr for name, expr in sources.items() if name in _VALUES.values()}
    return values | ({"hidden": next(iter(own.values()))} if own else {})


def _packed(
    sources: dict[str, Expr], weights: dict[str, Weight]
) -> tuple[dict[str, Expr], dict[str, Weight]]:
    """Name what is the same once: one source for all, or one context for keys and values."""
    if len(weights) == len(_SOURCES) and all(
        same(source, sources["hidden"]) for source in sources.values()
    ):
        packed = Weight(tuple(part for name in "qkv" for part in weights[name].parts))
        return {"hidden": sources["hidden"]}, {"qkv": packed}
    if {"context", "value_context"} <= sources.keys() and same(
        sources["context"], sources["value_context"]
    ):
        del sources["value_context"]
    return sources, weights


def norms(block: Arrangement, order: np.ndarray, head_dim: int) -> dict[str, NormRecord]:
    """Return the norms of queries and keys. Raises: Misfit."""
    norms = {name: block.parts[name].norm for name in "qk"}
    return {
        name: _norm(block, name, norm, order, head_dim)
        for name, norm in norms.items()
        if norm is not None
    }


def _norm(
    block: Arrangement, name: str, norm: Norm, order: np.ndarray, head_dim: int
) -> NormRecord:
    heads = block.heads(name)
    own = {*atoms(block.parts[name].inner_depth)}
    over = {*index_atoms(norm.over)}
    all_heads = over == own | {*heads} and bool(heads)
    if over != own and not all_heads:
        raise Misfit(name)
    expected = head_dim * (block.number(heads, "the number of heads") if over != own else 1)
    if size(merged(norm.over)).as_int() != expected:
        raise Misfit(name)
    steps = norm.steps
    if name == "q":
        steps = (*steps, *(s.resolve(block.space) for s in block.scores.chain.query_steps))
    if step_atoms(steps) - own - {*heads}:
        raise Misfit(name)
    lanes = block.lanes(name, order)
    with np.errstate(invalid="ignore"):
        factor, shift = apply_steps(steps, block.shapes, lanes)
        factor = factor * norm.factor
    if not np.isfinite((factor, shift)).all():
        raise Misfit(name)
    if shift.any() and norm.kind != "layer":
        raise Misfit(name)
    shape = (lanes.count // head_dim, head_dim)
    bias = shift.reshape(shape).astype(np.float32) if shift.any() else None
    weight = np.broadcast_to(factor, (lanes.count,)).reshape(shape).astype(np.float32)
    return NormRecord(norm.kind, over != own, norm.epsilon, weight, bias)


def pasts(block: Arrangement) -> dict[str, Expr]:
    """Return the keys and values of earlier steps. Raises: Misfit."""
    found: dict[str, Expr] = {}
    for name, word in (("k", "past_key"), ("v", "past_value")):
        part = block.parts[name]
        if part.past is None:
            continue
        parts: list[Expr] = []
        for past in part.past.each:
            groups = [block.roles.batch, block.roles.kv_heads, past.old, part.depth]
            own, whole = past.past, (True,) * 4
            expr = arranged(own.expr, own.index, groups, block.extents, whole=whole)
            if expr is None:
                raise Misfit(name)
            parts.append(expr)
        found[word] = parts[0] if len(parts) == 1 else Call("Concat", tuple(parts), (("axis", 2),))
    return found
