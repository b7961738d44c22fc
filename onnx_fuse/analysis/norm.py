"""Norms of queries and keys: RMSNorm, LayerNorm and L2, as one operator or written out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx_fuse.analysis.axes import Axis
from onnx_fuse.analysis.block_shapes import Facts
from onnx_fuse.analysis.linear import Step
from onnx_fuse.analysis.nodes import input_at, is_float_cast, keeps_axes, made_by, reduced_axes
from onnx_fuse.analysis.views import Ref, Views
from onnx_fuse.ir.graph import Node, Value

_LARGEST_FLOAT = 3e38  # at or above it, an upper bound is none
_ALIASES = {
    "RMSNormalization": "rms",
    "SimplifiedLayerNormalization": "rms",
    "LayerNormalization": "layer",
}


@dataclass(frozen=True)
class Norm:
    """A norm over the axes `over`; its scale and shift are the steps that follow it.

    "rms": x / sqrt(mean(x^2) + epsilon); "layer": (x - mean) / sqrt(variance + epsilon);
    "l2": x / max(|x|, epsilon).
    """

    kind: str
    epsilon: float
    over: tuple[Axis, ...]
    steps: tuple[Step, ...]  # innermost first

    def resolve(self, views: Views) -> Norm:
        """Return the same norm in today's atoms."""
        space = views.space
        return Norm(
            self.kind,
            self.epsilon,
            tuple(space.resolve(axis) for axis in self.over),
            tuple(step.resolve(space) for step in self.steps),
        )


def norm_of(ref: Ref, views: Views) -> tuple[Norm, Ref] | None:
    """Return the norm whose result `ref` is, and the elements that it normalises; None if none."""
    node = ref.value.producer
    if node is None or ref.value is not node.outputs[0]:
        return None
    if node.op_type in _ALIASES:
        return _operator(node, ref, views)
    if node.op_type == "LpNormalization" and int(node.attr("p", 2)) == 2:
        axis = int(node.attr("axis", -1)) % len(ref.index)
        source = node.inputs[0]
        return (
            None
            if source is None
            else (Norm("l2", 0.0, (ref.index[axis],), ()), Ref(source, ref.index))
        )
    return _written_out(node, ref, views)


def _operator(node: Node, ref: Ref, views: Views) -> tuple[Norm, Ref] | None:
    source = node.inputs[0]
    if source is None:
        return None
    first = int(node.attr("axis", -1)) % len(ref.index)
    steps: list[Step] = []
    for kind, value in zip(("mul", "add"), node.inputs[1:3], strict=False):
        if value is None:
            continue
        constant = views.broadcast(ref.index, value)
        if constant is None or not views.shapes.is_constant(value):
            return None
        steps.append(Step(kind, constant))
    epsilon = float(node.attr("epsilon", 1e-5))
    return Norm(_ALIASES[node.op_type], epsilon, ref.index[first:], tuple(steps)), Ref(
        source, ref.index
    )


def _plain(value: Value | None, shapes: Facts) -> Value | None:
    """Return the value before casts of floats, identities and expansions of a reduced axis."""
    while value is not None and value.producer is not None:
        node = value.producer
        if node.op_type not in ("Identity", "Expand") and not is_float_cast(node, shapes):
            break
        value = node.inputs[0]
    return value


def _made_by(value: Value | None, shapes: Facts, *op_types: str) -> Node | None:
    return made_by(_plain(value, shapes), *op_types)


def _axes(node: Node, shapes: Facts, rank: int) -> tuple[int, ...] | None:
    """Return the axes of a Reduce operator that keeps them."""
    return reduced_axes(node, shapes, rank) if keeps_axes(node) else None


def _other_constant(node: Node, shapes: Facts) -> tuple[Value, float] | None:
    """Return (the variable input, the scalar) of a commutative node with one scalar constant."""
    for variable, constant in ((0, 1), (1, 0)):
        first, second = node.inputs[variable], node.inputs[constant]
        scalar = None if second is None else shapes.scalar(second)
        if first is not None and scalar is not None:
            return first, scalar
    return None


def _square_of(value: Value | None, shapes: Facts) -> Value | None:
    node = _made_by(value, shapes, "Pow", "Mul")
    if node is None or node.inputs[0] is None or node.inputs[1] is None:
        return None
    if node.op_type == "Pow":
        return node.inputs[0] if shapes.scalar(node.inputs[1]) == 2.0 else None
    return node.inputs[0] if node.inputs[0] is node.inputs[1] else None


def _inverse_root(value: Value | None, shapes: Facts) -> Value | None:
    """Return v where value = 1 / sqrt(v)."""
    node = _made_by(value, shapes, "Reciprocal", "Div", "Pow")
    if node is None:
        return None
    if node.op_type == "Reciprocal":
        return _root(node.inputs[0], shapes)
    if node.op_type == "Div":
        numerator = node.inputs[0]
        return (
            _root(node.inputs[1], shapes)
            if numerator is not None and shapes.scalar(numerator) == 1.0
            else None
        )
    exponent = node.inputs[1]
    return node.inputs[0] if exponent is not None and shapes.scalar(exponent) == -0.5 else None


def _root(value: Value | None, shapes: Facts) -> Value | None:
    node = _made_by(value, shapes, "Sqrt")
    return None if node is None else node.inputs[0]


def _written_out(node: Node, ref: Ref, views: Views) -> tuple[Norm, Ref] | None:
    """Match a norm of several nodes.

    It is x * rsqrt(mean(x^2) + eps) or x / sqrt(...), with x perhaps centred, or
    x / max(norm2(x), eps).
    """
    if node.op_type not in ("Mul", "Div") or node.domain:
        return None
    shapes = views.shapes
    pairs = [(node.inputs[0], node.inputs[1])]
    if node.op_type == "Mul":
        pairs.append((node.inputs[1], node.inputs[0]))
    for source, other in pairs:
        if source is None or other is None:
            continue
        power = _inverse_root(other, shapes) if node.op_type == "Mul" else _root(other, shapes)
        found = None
        if power is not None:
            found = _mean_square(source, power, shapes, len(ref.index))
        elif node.op_type == "Div":
            found = _length(source, other, shapes, len(ref.index))
        if found is None:
            continue
        kind, epsilon, axes, origin = found
        return Norm(kind, epsilon, tuple(ref.index[axis] for axis in axes), ()), Ref(
            origin, ref.index
        )
    return None


def _mean_square(
    source: Value, power: Value, shapes: Facts, rank: int
) -> tuple[str, float, tuple[int, ...], Value] | None:
    """Match power = mean(source^2) + eps; source may be x - mean(x)."""
    add = _made_by(power, shapes, "Add")
    parts = None if add is None else _other_constant(add, shapes)
    if parts is None:
        return None
    mean = _made_by(parts[0], shapes, "ReduceMean")
    if mean is None:
        return None
    axes = _axes(mean, shapes, rank)
    squared = _square_of(mean.inputs[0], shapes)
    plain = _plain(source, shapes)
    if axes is None or squared is None or _plain(squared, shapes) is not plain or plain is None:
        return None
    centred = _made_by(source, shapes, "Sub")
    if centred is not None and centred.inputs[0] is not None:
        average = _made_by(centred.inputs[1], shapes, "ReduceMean")
        of_same = average is not None and _plain(average.inputs[0], shapes) is _plain(
            centred.inputs[0], shapes
        )
        if average is not None and of_same and _axes(average, shapes, rank) == axes:
            return "layer", parts[1], axes, centred.inputs[0]
    return "rms", parts[1], axes, source


def _clipped(node: Node, shapes: Facts) -> tuple[Value, float] | None:
    """Return (x, the lower bound) of a Clip without an upper bound that a float32 can pass."""
    low, low_input, high = node.attr("min"), input_at(node, 1), input_at(node, 2)
    if float(node.attr("max", math.inf)) < _LARGEST_FLOAT:
        return None
    if low is None and low_input is not None:
        low = shapes.scalar(low_input)
    source = node.inputs[0]
    if low is None or source is None:
        return None
    unbounded = high is None or (shapes.scalar(high) or 0.0) >= _LARGEST_FLOAT
    return (source, float(low)) if unbounded else None


def _length(
    source: Value, other: Value, shapes: Facts, rank: int
) -> tuple[str, float, tuple[int, ...], Value] | None:
    """Match other = max(norm2(source), eps), the eps perhaps absent."""
    epsilon = 0.0
    bounded = _made_by(other, shapes, "Max", "Clip")
    length: Value | None = other
    if bounded is not None:
        is_max = bounded.op_type == "Max"
        parts = _other_constant(bounded, shapes) if is_max else _clipped(bounded, shapes)
        if parts is None:
            return None
        length, epsilon = parts
    reduced = _made_by(length, shapes, "ReduceL2")
    squared: Value | None
    if reduced is not None:
        squared = reduced.inputs[0]
    else:
        reduced = _made_by(_root(length, shapes), shapes, "ReduceSum", "ReduceSumSquare")
        if reduced is None:
            return None
        squared = reduced.inputs[0]
        if reduced.op_type == "ReduceSum":
            squared = _square_of(squared, shapes)
    axes = _axes(reduced, shapes, rank)
    if axes is None or _plain(squared, shapes) is not _plain(source, shapes):
        return None
    return "l2", epsilon, axes, source
