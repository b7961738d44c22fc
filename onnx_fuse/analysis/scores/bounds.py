"""How far from zero numbers can be: what a graph proves about their size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from onnx import TensorProto

from onnx_fuse.analysis.algebra.axes import Axis
from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.expr import Call, Expr
from onnx_fuse.analysis.algebra.nodes import is_float_cast
from onnx_fuse.analysis.algebra.views import Views, carried
from onnx_fuse.analysis.scores.chain import (
    Bias,
    Clamp,
    Keep,
    Operation,
    Placed,
    RowScale,
    Scale,
    Select,
    Shift,
    Tanh,
)
from onnx_fuse.ir.graph import Value

# The largest numbers of narrow types, and those of which the last bit is 2^-8.
_HIGHEST: dict[int | None, float] = {TensorProto.FLOAT16: 65504.0, TensorProto.BFLOAT16: 3.38e38}
_HIGHEST_EXACT: dict[int | None, float] = {TensorProto.FLOAT16: 2.0**3, TensorProto.BFLOAT16: 1.0}
_HIGHEST_EXACT_FLOAT = 2.0**16
# No product of real queries and keys comes near it: float32 has no fractions there, so that weights
# would be chance. Only such a product is taken to be below it, never what is added to one.
_HIGHEST_PRODUCT = 1e8
# No axis is as long: float32 doesn't tell neighbouring positions from there on apart.
_LONGEST_AXIS = 2.0**24
_POSITIONS = ("Shape", "NonZero")  # lengths of axes, and places on them
_DEEPEST = 12  # operators above each other that are looked into
_INTEGERS: dict[int | None, float] = {TensorProto.INT32: 2.0**31, TensorProto.INT64: 2.0**63}
# What is above the largest number by less than half of its last bit is rounded to it.
_HIGHEST_FLOAT = float(np.finfo(np.float32).max) + 2.0**102
_WITHIN_ONE = ("Tanh", "Sigmoid", "Softmax", "Sin", "Cos", "Erf")


def highest_score(operations: Sequence[Operation], product: Value | None, shapes: Facts) -> float:
    """Return what no score exceeds in size, after operations that stand innermost first.

    Infinite where nothing is known. Scores that overflow their type are none.
    """
    is_half = product is not None and shapes.dtype(product) == TensorProto.FLOAT16
    highest = _HIGHEST[TensorProto.FLOAT16] if is_half else _HIGHEST_PRODUCT
    greatest = highest  # which no score is above; -`highest` may be far below
    is_proved = is_half
    for operation in operations:
        match operation:
            case Scale(factor) | RowScale(highest=factor):
                # What is said of a wide product is meant of the scaled one, unless that is larger.
                highest = _scaled(highest, factor if is_proved else max(1.0, abs(factor)))
                greatest = highest
                continue
            case Tanh():
                highest = greatest = 1.0
            case Bias(term):
                added = magnitude(term.expr, shapes)
                highest, greatest = highest + added, greatest + added
            case Select(_, fill):
                highest = max(highest, magnitude(fill.expr, shapes))
                greatest = max(greatest, _greatest(fill, shapes))
            case Shift():  # takes off what is no greater
                highest = greatest = highest + greatest
            case Keep() | Clamp():
                pass
        is_proved = True
    return highest


def _greatest(fill: Placed, shapes: Facts) -> float:
    """Return what no element is above: of a constant its maximum."""
    data = fill.constant(shapes)
    if data is None or not data.size or np.isnan(data).any():
        return magnitude(fill.expr, shapes)
    return float(data.max())


def highest_added(operations: Sequence[Operation], shapes: Facts) -> float:
    """Return what nothing that is added to scores, or chosen instead, exceeds in size.

    Infinite where nothing is known; what is minus infinity hides for good and doesn't count.
    """
    return max((size for _, size in _added(operations, shapes)), default=0.0)


def keeps_logarithm(operations: Sequence[Operation], product: Value | None, shapes: Facts) -> bool:
    """Return whether scores stay small enough, or become infinite, for a logarithm to count."""
    dtype = None if product is None else shapes.dtype(product)
    return highest_added(operations, shapes) <= _HIGHEST_EXACT.get(dtype, _HIGHEST_EXACT_FLOAT)


def keeps_scores(operations: Sequence[Operation], dtype: int | None, shapes: Facts) -> bool:
    """Return whether rounding to a narrower type leaves the scores as they are, to a last bit.

    After operations that stand outermost first. In a row that a mask hides as a whole, scores show
    beside what is added to all of them, unless that is so large that they are rounded away. What is
    chosen instead must not become infinite.
    """
    exact, highest = _HIGHEST_EXACT[dtype], _HIGHEST[dtype]
    for operation, size in _added(operations, shapes):
        match operation:
            case Bias() if size > exact:
                return False
            case Select() | Clamp() if size > highest:
                return False
            case Shift() | Tanh():
                break  # what is inside is lost before, or stays as it is
    return True


def _added(operations: Sequence[Operation], shapes: Facts) -> Iterator[tuple[Operation, float]]:
    """Yield each operation, outermost first, and the most that it adds or chooses, as it comes out.

    Scaled by what stands outside; 0 for an operation that does neither.
    """
    factor = 1.0
    for operation in operations:
        size = 0.0
        match operation:
            case Scale(own) | RowScale(highest=own):
                factor *= own
            case Bias(term, sign):
                size = _shown(term.expr, sign * factor, shapes)
            case Select(_, fill):
                size = _shown(fill.expr, factor, shapes)
            case Clamp(low):
                size = abs(factor * low)
        yield operation, size


def _shown(expr: Expr, factor: float, shapes: Facts, deepest: int = _DEEPEST) -> float:
    """As `magnitude`, times a factor, without numbers that become minus infinity.

    Those are told of constants, and of what is chosen from them.
    """
    data: Expr = expr
    if isinstance(expr, Value) and shapes.is_constant(expr):
        data = np.asarray(shapes.constant(expr))
    if isinstance(data, np.ndarray):
        with np.errstate(invalid="ignore"):  # 0 * inf is no number
            scaled = data.astype(np.float64) * factor
        return _largest(scaled[scaled != -np.inf])
    if isinstance(expr, Call) and expr.op_type == "Concat":
        return max(_shown(part, factor, shapes, deepest) for part in expr.inputs)
    node = expr.producer if isinstance(expr, Value) and deepest else None
    if node is not None and node.op == "Where":
        chosen = [value for value in node.inputs[1:] if value is not None]
        return max(_shown(value, factor, shapes, deepest - 1) for value in chosen)
    return _scaled(magnitude(expr, shapes), factor)


def _scaled(size: float, factor: float) -> float:
    """Return a bound times a factor; no factor bounds what nothing is known of, nor does 0."""
    return size if math.isinf(size) else size * abs(factor)


def may_be_infinite(operations: Sequence[Operation], product: Value | None, shapes: Facts) -> bool:
    """Return whether a score may be infinite, after operations that stand outermost first.

    Only then can a row be NaN of which a mask shows something.
    """
    return highest_score(operations[::-1], product, shapes) > _HIGHEST_FLOAT


def may_hide_rows(
    operations: Sequence[Operation], product: Value | None, column: Axis, views: Views
) -> bool:
    """Return whether all scores of a row may be minus infinity, after operations, outermost first.

    Not if they are so by nothing but a constant that leaves something of each row.
    """
    for place, operation in enumerate(operations):
        others = [*operations[:place], *operations[place + 1 :]]
        if _leaves_some(operation, column, views) and not may_be_infinite(
            others, product, views.shapes
        ):
            return False
    return may_be_infinite(operations, product, views.shapes)


def _leaves_some(operation: Operation, column: Axis, views: Views) -> bool:
    """Return whether a constant mask or bias leaves some score of each row finite."""
    match operation:
        case Bias(placed):
            data = placed.constant(views.shapes)
            left = None if data is None else np.isfinite(data)
        case Select(placed, inverted=is_inverted):
            data = placed.constant(views.shapes)
            left = None if data is None else (data != 0) != is_inverted
        case _:
            return False
    if left is None or left.ndim != len(placed.index):
        return False
    space, columns = views.space, views.space.atoms_of(column)
    own = [space.atoms_of(axis) for axis in placed.index]
    axes = tuple(place for place, atoms in enumerate(own) if atoms & columns)
    return all(own[axis] <= columns for axis in axes) and bool(left.any(axis=axes).all())


def magnitude(expr: Expr, shapes: Facts, deepest: int = _DEEPEST) -> float:
    """Return what no element exceeds in size; infinite where nothing is known."""
    if isinstance(expr, np.ndarray):
        return _largest(expr)
    if isinstance(expr, Call):
        parts = [magnitude(part, shapes, deepest) for part in expr.inputs]
        return _combined(expr.op_type, parts)
    dtype = shapes.dtype(expr)
    if dtype == TensorProto.BOOL:
        return 1.0
    data = shapes.constant(expr)
    if data is not None:
        return _largest(data.astype(np.float64))
    # Integers that overflow are still of their type.
    highest, node = _INTEGERS.get(dtype, math.inf), expr.producer
    if node is None or not deepest:
        return highest
    if node.op in _POSITIONS:
        return _LONGEST_AXIS
    # A table has all that is taken from it by whatever indices.
    above = carried(expr) or (node.inputs[:1] if is_float_cast(node, shapes) else ())
    found = [None if part is None else magnitude(part, shapes, deepest - 1) for part in above]
    if found:
        return min(highest, max(math.inf if part is None else part for part in found))
    parts = [magnitude(value, shapes, deepest - 1) for value in node.given]
    return min(highest, _combined(node.op, parts))


def _largest(data: np.ndarray) -> float:
    """Return the greatest size of numbers; infinite if one is NaN."""
    largest = float(np.abs(data).max(initial=0.0))
    return math.inf if math.isnan(largest) else largest


def _combined(op_type: str, parts: list[float]) -> float:
    """Return the bound of an operator's result, given those of its inputs."""
    if op_type in _WITHIN_ONE:
        return 1.0
    match op_type:
        case "Where":
            return max(parts[1:])
        case "Add" | "Sub":
            return sum(parts)
        case "Mul":
            return math.inf if math.inf in parts else math.prod(parts)  # 0 * inf is no number
        case "Neg" | "Abs" | "Cast" | "CastLike":
            return parts[0]
        case "Range":
            return max(parts[:2])
        case "CumSum":
            return parts[0] * _LONGEST_AXIS
        case "Max" | "Min" | "Clip" | "Concat":
            # The larger of two may be either, and so may the smaller.
            return max(parts)
    return math.inf
