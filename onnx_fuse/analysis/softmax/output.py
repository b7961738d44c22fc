"""From the context on: to the output projection, if one follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnx_fuse.analysis.algebra.axes import Axis, index_atoms
from onnx_fuse.analysis.algebra.contraction import Contraction, contraction_of
from onnx_fuse.analysis.algebra.empty_reshapes import opened_if_empty
from onnx_fuse.analysis.algebra.linear import (
    LinearMap,
    Step,
    step_atoms,
    steps_of,
)
from onnx_fuse.analysis.algebra.nodes import CASTS, FLOATS, only_reader
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.trail import Trail
from onnx_fuse.ir.graph import Node


@dataclass(frozen=True)
class Output:
    """Where the block ends: the tensor that it makes, perhaps through an output projection.

    The projection sums heads and value depth; `gate` multiplies what it reads. `plain` is the same
    without them.
    """

    ref: Ref  # the elements of the tensor that the block takes over
    choices: tuple[Ref, ...]  # the same elements in the views that follow, nearest first
    projection: LinearMap | None = None
    gate: Ref | None = None
    plain: Output | None = None


class OutputWalk:
    """Walks down from the context of one block, in the graph of its node."""

    def __init__(self, views: Views, node: Node, trail: Trail, *, takes_gate: bool = True) -> None:
        self.views = views
        self.takes_gate = takes_gate
        self.trail = trail
        self.shapes = views.shapes
        self.node = node

    def output(self, context: Ref) -> Output:
        """Return the output projection, or the context itself where none follows.

        Numbers by which the context's lanes are multiplied before go into the projection; one
        computed tensor may multiply it, too. Where a view has another shape in runs in which an
        extent is 0, only a product that sums the axis by which it differs can follow: it runs with
        no other.
        """
        ref, views = context, [context]
        scales: list[Step] = []
        differing: list[Axis] = []
        gate: Ref | None = None
        gated: list[Node] = []  # the gate, and what follows it
        while True:
            node, plain = self._reader(ref), Output(context, tuple(views))
            contraction = contraction_of(node, self.shapes)
            if contraction is not None:
                projected = self._projected(contraction, ref, scales)
                if projected is None or not self._are_summed(differing, projected[0]):
                    return plain
                found = self._with_constants(*projected)
                for behind in gated:
                    self.trail.add(behind)
                self.trail.add_between(found.ref.value, ref.value)
                return replace(found, gate=gate, plain=plain)
            below = None if node is None else self._carried(node, ref)
            if below is None and (below := self.views.rejoined(ref)) is not None:
                self.trail.add_between(below.value, ref.value)
            stepped = None if node is None or below is not None else self._stepped(node, ref)
            if stepped is not None and all(step.scales for step in stepped[0]):
                scales += stepped[0]
                below = stepped[1]
            if below is None and node is not None and gate is None and not differing:
                gate, below = self._gated(node, ref)
            if below is None:
                return plain
            if node is not None and gate is None:
                self.trail.add(node)
            elif node is not None:
                gated.append(node)
            ref = below
            if (axis := self._differing(node, ref)) is not None:
                differing.append(axis)
            if not scales and not differing and gate is None:  # behind one, these are other numbers
                views.append(ref)

    def _reader(self, ref: Ref) -> Node | None:
        """Return the only reader of a tensor, if it is in the block's graph."""
        use = only_reader(ref.value)
        return use.node if use is not None and use.node.graph is self.node.graph else None

    def _projected(
        self, contraction: Contraction, ref: Ref, scales: Sequence[Step]
    ) -> tuple[LinearMap, Ref] | None:
        """Return the projection that a contraction is of what was scaled before, and its result.

        None if it is none, or what was scaled has other numbers than one for each lane.
        """
        own = contraction.facing(ref.value)
        if not self.views.repeats_constant(own.right) or own.left is not ref.value:
            return None
        pushed = own.push(self.views, ref)
        constant = None if pushed is None else self.views.constant_at(pushed[0])
        if pushed is None or constant is None:
            return None
        space = self.views.space
        output, index = pushed[1].resolve(space), space.resolve_index(ref.index)
        summed = {*index_atoms(own.summed_axes(index))}
        positions = {*index_atoms(index)} - summed
        weight = self.views.varying(constant.resolve(space), positions)
        bias = own.added(output.index)
        steps = () if bias is None else (Step("Add", bias, own.beta),)
        before = tuple(scale.resolve(space) for scale in scales)
        made = LinearMap(weight, own.summed_axes(index), own.alpha, steps, row_scales=before)
        columns = {*made.column_atoms}
        if columns & positions:
            return None
        if step_atoms(before) - summed:
            return None
        if {*index_atoms(output.index)} - columns - positions:
            return None  # repeated for more than the context has
        if not all(atom.extent.as_int() for atom in summed | columns):
            return None
        if bias is not None and not self.shapes.is_constant(bias.value):
            return None
        return (made, output) if made.are_of_columns(steps) else None

    def _gated(self, node: Node, ref: Ref) -> tuple[Ref | None, Ref | None]:
        """Return the computed tensor by which a node multiplies the context, and the result.

        The result has no element more than the context.
        """
        output = node.outputs[0]
        if not self.takes_gate or node.op != "Mul" or output is None:
            return None, None
        other = node.given[1] if node.given[0] is ref.value else node.given[0]
        factor = None if self.shapes.is_constant(other) else self.views.beside(ref.index, other)
        if factor is None or self.shapes.shape(output) != self.shapes.shape(ref.value):
            return None, None
        return factor, Ref(output, ref.index)

    def _differing(self, node: Node | None, made: Ref) -> Axis | None:
        """Return the axis of a view that is 0 in some runs instead of another one."""
        axis = None if node is None else opened_if_empty(node, self.shapes)
        return None if axis is None else made.index[axis]

    def _are_summed(self, axes: list[Axis], projection: LinearMap) -> bool:
        """Return whether a projection sums all of these axes."""
        found = [self.views.space.atoms_of(axis) for axis in axes]
        return all(each and each <= {*index_atoms(projection.summed)} for each in found)

    def _carried(self, node: Node, ref: Ref) -> Ref | None:
        """Return the elements in the result of a view, or of a Cast to another float type."""
        output = node.outputs[0] if node.op in CASTS else None
        if output is None or self.shapes.dtype(output) not in FLOATS:
            return self.views.push(ref, node)
        return Ref(output, ref.index)

    def _with_constants(self, projection: LinearMap, made: Ref) -> Output:
        """Return a projection with what scales and shifts its columns, and the views after it."""
        ref, choices, steps = made, [made], list(projection.steps)
        space = self.views.space
        while True:
            node = self._reader(ref)
            if node is None:
                break
            below = self._carried(node, ref)
            if below is not None:
                if self._differing(node, below) is not None:
                    break
                ref = below
                choices.append(ref)
                continue
            stepped = self._stepped(node, ref)
            if stepped is None or not projection.resolve(space).are_of_columns(stepped[0]):
                break
            steps += stepped[0]
            ref = stepped[1]
            choices = [ref]
        return Output(choices[0], tuple(choices), replace(projection, steps=tuple(steps)))

    def _stepped(self, node: Node, ref: Ref) -> tuple[tuple[Step, ...], Ref] | None:
        """Return how constants scale and shift what a node reads, innermost first, and the result.

        None if it does anything else.
        """
        output = node.outputs[0]
        if output is None:
            return None
        made = Ref(output, ref.index)
        found = steps_of(node, made, self.views)
        if found is None or found[1].value is not ref.value:
            return None
        return tuple(step.resolve(self.views.space) for step in found[0]), made
