"""Projections: a contraction with a constant, and constants that scale and shift its columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from onnx_fuse.analysis.algebra.axes import (
    Atom,
    Axis,
    Lanes,
    are_numbers,
    evaluate,
    every_value,
    index_atoms,
)
from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.contraction import Contraction
from onnx_fuse.analysis.algebra.nodes import FLOATS
from onnx_fuse.analysis.algebra.quantized_products import are_dequantized
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.algebra.uniform import LARGEST_FLOAT
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.ir.graph import Node, Value

_NORM_INPUTS = 5  # of a BatchNormalization
_NORM_OPSET = 9  # from which it has one number for each channel, and says when it trains


@dataclass(frozen=True)
class Step:
    """x * factor or x + term with a constant that depends on columns only."""

    op: str  # "Mul" | "Div" | "Add" | "Sub" (x - term) | "Rsub" (term - x) | "Root" (x / root)
    constant: Ref
    factor: float = 1.0  # multiplies the constant (Gemm's beta)
    epsilon: float = 0.0  # is added to the constant whose root divides

    @property
    def scales(self) -> bool:
        """Whether it multiplies or divides, and shifts nothing."""
        return self.op in ("Mul", "Div", "Root")

    def resolve(self, space: Space) -> Step:
        """Return the same step with split atoms replaced by their parts."""
        return replace(self, constant=self.constant.resolve(space))

    def values(self, shapes: Facts, lanes: Lanes) -> np.ndarray:
        """Return the constant for each column, float64."""
        numbers = gathered(self.constant, shapes, lanes.values).astype(np.float64) * self.factor
        return np.sqrt(numbers + self.epsilon) if self.op == "Root" else numbers


def step_atoms(steps: Sequence[Step]) -> set[Atom]:
    """Return the atoms on which constant steps depend."""
    return {atom for step in steps for atom in index_atoms(step.constant.index)}


def scale_by(op: str, constant: Ref, shapes: Facts) -> Step | None:
    """Return the step that "Mul" or "Div" by a constant is; None by what isn't finite.

    Nor is it one by 0, or a number so small that float32 doesn't hold its inverse.
    """
    data = shapes.constant(constant.value)
    if data is None or not np.isfinite(data).all():
        return None
    if op == "Div" and not np.all(np.abs(data) >= 1.0 / LARGEST_FLOAT):
        return None
    return Step(op, constant)


def steps_of(node: Node, ref: Ref, views: Views) -> tuple[tuple[Step, ...], Ref] | None:
    """Return the steps by constants, innermost first, in which a node makes `ref` of x, and x."""
    normed, source = _steps_of_batch_norm(node, ref, views.shapes), node.input(0)
    if normed is not None and source is not None:
        return normed, Ref(source, ref.index)
    stepped = _step_of(node, ref, views)
    return None if stepped is None else ((stepped[0],), stepped[1])


def _step_of(node: Node, ref: Ref, views: Views) -> tuple[Step, Ref] | None:
    """Return what makes `ref` as x + constant, x * constant or their like: the step, and x."""
    if node.op not in ("Add", "Sub", "Mul", "Div"):
        return None
    shapes = views.shapes
    for main in (0, 1):
        value, other = node.inputs[main], node.inputs[1 - main]
        if value is None or other is None or (main == 1 and node.op == "Div"):
            continue
        constant = views.constant(ref.index, other)
        below = None if constant is None else views.broadcast(ref.index, value)
        if constant is None or below is None or shapes.dtype(value) not in FLOATS:
            continue
        if not are_numbers(constant.index):
            continue
        if node.op in ("Mul", "Div") and scale_by(node.op, constant, shapes) is None:
            continue
        is_taken_from = main == 1 and node.op == "Sub"
        return Step("Rsub" if is_taken_from else node.op, constant), below
    return None


def _steps_of_batch_norm(node: Node, ref: Ref, shapes: Facts) -> tuple[Step, ...] | None:
    """Return what a BatchNormalization by constants does to the elements `ref`, innermost first.

    None if it is another operator, or its moments are those of the batch.
    """
    if node.op != "BatchNormalization" or len(node.given) != _NORM_INPUTS:
        return None
    is_trained = node.attr("training_mode", 0) or len(node.made) > 1
    if is_trained or node.graph.opset < _NORM_OPSET or ref.value is not node.outputs[0]:
        return None
    channel = ref.index[1:2]  # the only axis of each constant
    scale, bias, mean, variance = (Ref(value, channel) for value in node.given[1:])
    data = [shapes.constant(constant.value) for constant in (scale, bias, mean, variance)]
    epsilon = float(node.attr("epsilon", 1e-5))
    if not channel or not are_numbers(channel):
        return None
    if not all(each is not None and np.isfinite(each).all() for each in data):
        return None
    if not np.all(np.asarray(data[3]) + epsilon > 0):
        return None
    return (
        Step("Sub", mean),
        Step("Root", variance, epsilon=epsilon),
        Step("Mul", scale),
        Step("Add", bias),
    )


def gathered(constant: Ref, shapes: Facts, values: Mapping[Atom, np.ndarray]) -> np.ndarray:
    """Return a constant's elements at its index, where each atom takes these values, broadcast.

    Raises: ValueError if it is no constant.
    """
    data = shapes.constant(constant.value)
    if data is None:
        raise ValueError(f"'{constant.value.name}' is no constant")
    place = tuple(evaluate(axis, values) for axis in constant.index)
    return np.asarray(data[place]) if place else np.asarray(data)


def apply_steps(
    steps: tuple[Step, ...], shapes: Facts, lanes: Lanes
) -> tuple[np.ndarray, np.ndarray]:
    """Return (factor, shift) such that all steps together are x * factor + shift.

    Both are float64, one number a lane.
    """
    factor, shift = np.ones(lanes.count), np.zeros(lanes.count)
    for step in steps:
        values = step.values(shapes, lanes)
        match step.op:
            case "Mul":
                factor, shift = factor * values, shift * values
            case "Div" | "Root":
                factor, shift = factor / values, shift / values
            case "Add":
                shift = shift + values
            case "Sub":
                shift = shift - values
            case "Rsub":
                factor, shift = -factor, values - shift
            case other:
                raise ValueError(other)
    return factor, shift


@dataclass(frozen=True)
class LinearMap:
    """columns = alpha * x . weight, then the steps (innermost first).

    `weight` has the summed axis and column atoms. `row_scales` multiply x along the summed axis
    before. before: the map that makes x, its columns, of another tensor. others: maps of the same
    tensor to the same columns, which are added before the last `outer` steps.
    """

    weight: Ref
    summed: tuple[Axis, ...]
    alpha: float
    steps: tuple[Step, ...]
    row_scales: tuple[Step, ...] = ()
    before: LinearMap | None = None
    others: tuple[LinearMap, ...] = ()
    outer: int = 0

    @property
    def column_atoms(self) -> tuple[Atom, ...]:
        """The atoms that choose a column, in the weight's own order."""
        inner = {*index_atoms(self.summed)}
        return tuple(atom for atom in index_atoms(self.weight.index) if atom not in inner)

    def are_of_columns(self, steps: Sequence[Step]) -> bool:
        """Return whether constants have numbers for nothing but the columns."""
        return step_atoms(steps) <= {*self.column_atoms}

    def resolve(self: Map, space: Space) -> Map:
        """Return the same map with split atoms replaced by their parts."""
        return replace(
            self,
            weight=self.weight.resolve(space),
            summed=space.resolve_index(self.summed),
            steps=tuple(step.resolve(space) for step in self.steps),
            row_scales=tuple(scale.resolve(space) for scale in self.row_scales),
            before=None if self.before is None else self.before.resolve(space),
            others=tuple(other.resolve(space) for other in self.others),
        )

    @property
    def each(self) -> tuple[LinearMap, ...]:
        """This map and all that it is made of."""
        parts = (*self.others, *(() if self.before is None else (self.before,)))
        return (self, *(map_ for part in parts for map_ in part.each))

    def matrix(self, shapes: Facts, lanes: Lanes) -> np.ndarray:
        """Return the weight, (rows, lanes), float32, times alpha and all that scales it."""
        data = self._own(shapes, lanes)
        if self.before is not None:
            rows = every_value(index_atoms(self.summed))
            data = self.before.matrix(shapes, rows).astype(np.float64) @ data
        if self.others:
            factor = self._outer_factor(shapes, lanes)
            sums = [other.matrix(shapes, lanes) * factor for other in self.others]
            data = np.sum([data, *sums], axis=0)
        return np.ascontiguousarray(data, dtype=np.float32)

    def _outer_factor(self, shapes: Facts, lanes: Lanes) -> np.ndarray:
        """Return what multiplies the sum with others, (lanes,)."""
        return apply_steps(self.steps[len(self.steps) - self.outer :], shapes, lanes)[0]

    def _own(self, shapes: Facts, lanes: Lanes) -> np.ndarray:
        """Return the weight alone, scaled."""
        rows = every_value(index_atoms(self.summed))
        values = {atom: number[:, None] for atom, number in rows.values.items()}
        values |= {atom: number[None, :] for atom, number in lanes.values.items()}
        data = np.broadcast_to(gathered(self.weight, shapes, values), (rows.count, lanes.count))
        factor, _ = apply_steps(self.steps, shapes, lanes)
        factor = factor * self.alpha
        if self.row_scales:
            factor = factor * apply_steps(self.row_scales, shapes, rows)[0][:, None]
        if (factor != 1.0).any():
            data = data.astype(np.float64) * factor
        return data

    def bias(self, shapes: Facts, lanes: Lanes) -> np.ndarray | None:
        """Return what is added to the columns, float32, (lanes,), or None if nothing is."""
        if all(step.scales for each in self.each for step in each.steps):
            return None
        shift = apply_steps(self.steps, shapes, lanes)[1]
        if self.before is not None:
            added = self.before.bias(shapes, every_value(index_atoms(self.summed)))
            shift = shift if added is None else shift + added @ self._own(shapes, lanes)
        for other in self.others:
            added = other.bias(shapes, lanes)
            if added is not None:
                shift = shift + added * self._outer_factor(shapes, lanes)
        return shift.astype(np.float32)


Map = TypeVar("Map", bound=LinearMap)


@dataclass(frozen=True, kw_only=True)
class Projection(LinearMap):
    """A linear map of `source`, which has positional atoms and the summed axis."""

    source: Ref

    def resolve(self, space: Space) -> Projection:
        """As `LinearMap.resolve`."""
        return replace(super().resolve(space), source=self.source.resolve(space))


def _facing_weight(
    contraction: Contraction, views: Views, is_weight: Callable[[Value], bool] | None
) -> Contraction | None:
    """Return a contraction with its weight on the right; None if none is one, or both.

    Learned queries are copies of a constant, too, and projected by a constant that is no copy.
    """
    default = (views.shapes.is_constant, views.repeats_constant)
    for judge in (is_weight,) if is_weight else default:
        right, left = judge(contraction.right), judge(contraction.left)
        if right != left:
            return contraction if right else contraction.swapped()
    return None


def projection_of(
    contraction: Contraction,
    ref: Ref,
    views: Views,
    is_weight: Callable[[Value], bool] | None = None,
) -> Projection | None:
    """Return the projection that makes the elements `ref` of a contraction's output, or None.

    One operand is a weight (a constant or copies of one, if it isn't said what is one) and has
    elements, and no atom that chooses among them (but for what is summed) chooses among the
    other's: each position sees the same matrix. A product of quantized numbers is none.
    """
    if are_dequantized(contraction.left, contraction.right):
        return None
    facing = _facing_weight(contraction, views, is_weight)
    operands = None if facing is None else facing.pull(views, ref)
    if facing is None or operands is None:
        return None
    found = operands[1] if is_weight else views.constant_at(operands[1])
    if found is None:
        return None
    source, weight = operands[0].resolve(views.space), found.resolve(views.space)
    summed = facing.summed_axes(source.index)
    inner = {*index_atoms(summed)}
    positions = {atom for atom in index_atoms(source.index) if atom not in inner}
    weight = views.varying(weight, positions)
    columns = {atom for atom in index_atoms(weight.index) if atom not in inner}
    if positions & columns or not are_numbers(weight.index):
        return None
    if not all(atom.extent.as_int() for atom in inner | columns):
        return None
    steps: tuple[Step, ...] = ()
    bias = facing.added(ref.index)
    if bias is not None:
        if not views.shapes.is_constant(bias.value):
            return None
        steps = (Step("Add", views.varying(bias), facing.beta),)
    return Projection(weight, summed, facing.alpha, steps, source=source)
