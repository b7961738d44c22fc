"""Queries, keys and values: from the attention up to the projection, or to where a value stops being plain."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto

from onnx_fuse.analysis.axes import Atom, Axis, atoms, index_atoms
from onnx_fuse.analysis.contraction import contraction_of
from onnx_fuse.analysis.linear import Projection, Step, projection_of
from onnx_fuse.analysis.norm import Norm, norm_of
from onnx_fuse.analysis.rope import Rope, rope_of
from onnx_fuse.analysis.scores import Declined
from onnx_fuse.analysis.views import Ref, Views
from onnx_fuse.ir.graph import Graph, Node, Value
from onnx_fuse.report import Code

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Operand:
    """What a query, key or value is made of, from the attention upwards: scale, rope, norm, projection.

    Without a projection the operator takes a value: one of `choices`, views of the same elements, nearest to the
    attention first.
    """

    scale: float
    rope: Rope | None
    norm: Norm | None
    projection: Projection | None
    choices: tuple[Ref, ...]
    depth: Axis  # of the operand at the attention
    plain: (
        Operand | None
    )  # the same operand as a value right at the attention, for when its parts don't fit

    @property
    def inner_depth(self) -> Axis:
        """The depth atoms above the rotation."""
        return self.depth if self.rope is None else self.rope.depth

    def index_atoms(self) -> tuple[Atom, ...]:
        """Return every atom on which the operand's elements depend."""
        if self.projection is None:
            found = [*index_atoms(self.choices[0].index)]
        else:
            summed = index_atoms(self.projection.summed)
            found = [
                atom for atom in index_atoms(self.projection.source.index) if atom not in summed
            ]
            found += self.projection.column_atoms
        return tuple(found)

    @property
    def source(self) -> Value:
        """The tensor that the operator reads for this operand."""
        return self.choices[0].value if self.projection is None else self.projection.source.value


class OperandWalk:
    """Walks up from the products of one attention."""

    def __init__(self, views: Views, graph: Graph) -> None:
        self.views = views
        self.shapes = views.shapes
        self.graph = graph

    def operand(self, ref: Ref, depth: Axis, steps: tuple[Step, ...], *, rotates: bool) -> Operand:
        """Return what `ref` is made of, before the `steps` that follow it.

        With `rotates` (queries and keys) scale, rope and norm are looked for too. Raises: Declined where steps are given
        and nothing takes them in.
        """
        plain = None if steps else Operand(1.0, None, None, None, self._views_of(ref), depth, None)
        scale, rope, norm = 1.0, None, None
        pending = list(steps)  # outermost first: steps that only a norm or a projection can take in
        held = plain
        while True:
            node = ref.value.producer
            if node is None or node.graph is not self.graph or self.shapes.is_constant(ref.value):
                break
            contraction = contraction_of(node, self.shapes)
            if contraction is not None:
                projection = projection_of(contraction, ref, self.views)
                if projection is None:
                    break
                inner = (*projection.steps, *reversed(pending))
                return Operand(
                    scale, rope, norm, replace(projection, steps=inner), (ref,), depth, held
                )
            pulled = self.views.pull(ref)
            if pulled is not None:
                ref = pulled
                continue
            if node.op_type == "Cast" and node.inputs[0] is not None:
                if self.shapes.dtype(node.inputs[0]) not in FLOATS:
                    break
                ref = Ref(node.inputs[0], ref.index)
                continue
            number = self._scalar_factor(node) if rotates and not pending else None
            if number is not None:
                scale *= number[1]
                ref = Ref(number[0], ref.index)
                held = self._held(scale, rope, norm, ref, depth, plain)
                continue
            stepped = self._constant_step(node, ref)
            if stepped is not None:
                pending.append(stepped[0])
                ref = stepped[1]
                continue
            normed = norm_of(ref, self.views) if rotates and norm is None else None
            if normed is not None:
                norm = replace(normed[0], steps=(*normed[0].steps, *reversed(pending)))
                pending, ref = [], normed[1]
                held = self._held(scale, rope, norm, ref, depth, plain)
                continue
            turned = None
            if rotates and rope is None and norm is None and not pending:
                turned = rope_of(
                    ref.resolve(self.views.space), self.views.space.resolve(depth), self.views
                )
            if turned is None:
                break
            rope, ref = turned, turned.source
            held = self._held(scale, rope, norm, ref, depth, plain)
        if held is None:
            raise Declined(
                Code.UNSUPPORTED_OP,
                ref.value.producer,
                node=ref.value.name,
                op="Add",
                what="projection and attention",
            )
        return held

    def _held(
        self,
        scale: float,
        rope: Rope | None,
        norm: Norm | None,
        ref: Ref,
        depth: Axis,
        plain: Operand | None,
    ) -> Operand:
        """The operand as a value after what was taken in so far."""
        return Operand(scale, rope, norm, None, self._views_of(ref), depth, plain)

    def _views_of(self, ref: Ref) -> tuple[Ref, ...]:
        found = [ref]
        while True:
            node = found[-1].value.producer
            if node is None or node.graph is not self.graph:
                return tuple(found)
            pulled = self.views.pull(found[-1])
            if pulled is None:
                return tuple(found)
            found.append(pulled)

    def _scalar_factor(self, node: Node) -> tuple[Value, float] | None:
        """Return (x, number) of x * number or x / number."""
        if node.op_type not in ("Mul", "Div") or node.domain not in ("", "ai.onnx"):
            return None
        for main in (0, 1) if node.op_type == "Mul" else (0,):
            value, factor = node.inputs[main], node.inputs[1 - main]
            number = None if factor is None else self.shapes.scalar(factor)
            if value is None or number is None or not math.isfinite(number) or number == 0:
                continue
            if len(self.shapes.shape(value) or ()) != len(self.shapes.shape(node.outputs[0]) or ()):  # type: ignore[arg-type]
                continue
            return value, number if node.op_type == "Mul" else 1.0 / number
        return None

    def _constant_step(self, node: Node, ref: Ref) -> tuple[Step, Ref] | None:
        """Return x + constant, x * constant and their like as a step, and x."""
        kinds = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}
        if node.op_type == "BatchNormalization":
            return None
        if node.op_type not in kinds or node.domain not in ("", "ai.onnx"):
            return None
        for main in (0, 1):
            value, other = node.inputs[main], node.inputs[1 - main]
            if value is None or other is None or not self.shapes.is_constant(other):
                continue
            if main == 1 and node.op_type == "Div":
                continue
            constant, below = (
                self.views.broadcast(ref.index, other),
                self.views.broadcast(ref.index, value),
            )
            if constant is None or below is None or self.shapes.dtype(value) not in FLOATS:
                continue
            kind = "rsub" if main == 1 and node.op_type == "Sub" else kinds[node.op_type]
            return Step(kind, constant), below
        return None


def resolved(operand: Operand, views: Views) -> Operand:
    """Return the operand in today's atoms."""
    space = views.space
    rope = operand.rope
    if rope is not None:
        rope = replace(rope, source=rope.source.resolve(space), depth=space.resolve(rope.depth))
    return replace(
        operand,
        rope=rope,
        norm=None if operand.norm is None else operand.norm.resolve(views),
        projection=None if operand.projection is None else operand.projection.resolve(views),
        choices=tuple(choice.resolve(space) for choice in operand.choices),
        depth=space.resolve(operand.depth),
    )


def step_atoms(steps: tuple[Step, ...]) -> set[Atom]:
    """Return the atoms on which constant steps depend."""
    return {atom for step in steps for atom in index_atoms(step.constant.index)}


def depth_positions(operand: Operand, order: np.ndarray) -> dict[Atom, np.ndarray]:
    """Return the depth atoms' values above the rotation, for each depth position of the operator in `order`."""
    position = order if operand.rope is None else operand.rope.sigma[order]
    axis = operand.inner_depth
    extents = [digit.extent.as_int() or 0 for digit in axis]
    digits = np.unravel_index(position, extents) if extents else ()
    return {atom: np.asarray(digit) for atom, digit in zip(atoms(axis), digits, strict=True)}
