"""Queries, keys and values: from the attention up to the projection.

Where something on the way has no place in the operator, a value enters instead.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import numpy as np

from onnx_fuse.analysis.algebra.axes import Atom, Axis, Index, atoms, index_atoms, size
from onnx_fuse.analysis.algebra.contraction import Contraction, contraction_of
from onnx_fuse.analysis.algebra.linear import (
    Projection,
    Step,
    projection_of,
    steps_of,
)
from onnx_fuse.analysis.algebra.linear_sums import sum_of_projections
from onnx_fuse.analysis.algebra.nodes import (
    CASTS,
    FLOATS,
    is_float_cast,
    joined_axis,
    padding_along_axis,
)
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.uniform import number_of, scaling_of
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.operands.norm import Norm, norm_of
from onnx_fuse.analysis.operands.rope import Rope
from onnx_fuse.analysis.operands.rope_normed import norm_before
from onnx_fuse.analysis.operands.rope_scaled import scaled_rope_of
from onnx_fuse.analysis.scores.chain import Placed
from onnx_fuse.analysis.splice import spliced
from onnx_fuse.analysis.trail import Trail
from onnx_fuse.ir.graph import Graph, Node, Value

_MOST_PADDED = 2**16  # numbers that are written down for a Pad; no real one is as long


@dataclass(frozen=True)
class Past:
    """Keys or values of earlier steps, joined before the new ones along the columns.

    Learned ones may stand behind the new ones in the graph (`is_behind`), and others behind those
    (`following`): a softmax doesn't mind in which order its columns are.
    """

    past: Placed
    present: Ref | None  # the joined tensor, at the attention's columns; None if nobody wants it
    old: Axis  # the columns of the past alone
    new: Axis  # the columns that are new
    is_behind: bool = False
    following: Past | None = None

    @property
    def each(self) -> tuple[Past, ...]:
        """The past and what follows it."""
        return (self, *(() if self.following is None else self.following.each))

    @property
    def length(self) -> Dim:
        """How many columns aren't new."""
        return reduce(operator.add, (size(past.old) for past in self.each))

    def resolve(self, views: Views) -> Past:
        """Return the same with split atoms replaced by their parts."""
        space = views.space
        return replace(
            self,
            past=Placed(self.past.expr, space.resolve_index(self.past.index)),
            present=None if self.present is None else self.present.resolve(space),
            old=space.resolve(self.old),
            new=space.resolve(self.new),
            following=None if self.following is None else self.following.resolve(views),
        )


@dataclass(frozen=True)
class ScaledPart:
    """What is joined with others, times a factor.

    column: its own positions if it is joined along those; None if along the depth.
    """

    ref: Ref
    depth: Axis
    factor: float = 1.0
    column: Axis | None = None


@dataclass(frozen=True)
class Operand:
    """What a query, key or value is made of, upwards: scale, rope, norm, projection.

    Without a projection the operator takes a value: one of `choices`, views of the same elements,
    nearest to the attention first.
    """

    choices: tuple[Ref, ...]
    depth: Axis  # of the operand at the attention
    scale: float = 1.0
    rope: Rope | None = None
    norm: Norm | None = None
    projection: Projection | None = None
    past: Past | None = None
    plain: Operand | None = None  # the same with less taken in, for when its parts don't fit
    steps: tuple[Step, ...] = ()  # what is added to a value before it enters
    joined: tuple[ScaledPart, ...] = ()  # what a value has to be joined of, if there is none
    column: Axis = ()  # all positions, where it is joined along those

    @property
    def inner_depth(self) -> Axis:
        """The depth atoms above the rotation."""
        return self.depth if self.rope is None else self.rope.depth

    def index_atoms(self) -> tuple[Atom, ...]:
        """Return every atom on which the operand's elements depend."""
        if self.joined:
            found = [
                atom
                for part in self.joined
                for atom in index_atoms(part.ref.index)
                if atom not in {*atoms(part.depth), *atoms(part.column or ())}
            ]
            found += atoms(self.column)
        elif self.projection is None:
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


# Takes in what makes some elements: where what is left comes from, and what is known then.
Rule = Callable[[Node, Ref, Operand], tuple[Ref, Operand] | None]


class OperandWalk:
    """Walks up from the product of one attention to what one of its operands is made of.

    `depth` are the axes that the product sums, `column` the softmax's axis, `queries` the index of
    those along which keys or values may be repeated. Each rule takes in one more node; where none
    does, or a node's meaning has no place in the operator, the operand enters as the value that was
    reached.
    """

    def __init__(
        self,
        views: Views,
        graph: Graph,
        depth: Axis,
        column: Axis,
        trail: Trail,
        queries: Index = (),
    ) -> None:
        self.views = views
        self.queries = queries
        self.trail = trail
        self.shapes = views.shapes
        self.graph = graph
        self.depth = depth
        self.column = column
        # Outermost first: only a norm or a projection can take them in.
        self._pending: list[Step] = []
        self._cached: Operand | None = None  # a value that is joined with a cache

    def operand(
        self, ref: Ref, steps: tuple[Step, ...], past: Past | None, *, rotates: bool
    ) -> Operand:
        """Return what `ref` is made of, before the `steps` that follow it.

        `past` is the cache with which it is joined then. With `rotates` (queries and keys) scale,
        rope and norm are looked for too.
        """
        if not rotates:
            return self._walked(ref, steps, past, (self._past, self._step))
        rules = (self._past, self._scale, self._step, self._norm, self._rope)
        found = self._walked(ref, steps, past, rules)
        if not self._pending and self._steps_fit(found):
            return found
        # Constants that nothing takes in may be tables: each position has its own.
        tables_first = (self._past, self._scale, self._norm, self._rope, self._step)
        other = self._walked(ref, steps, past, tables_first)
        return found if other.rope is None else other

    def _walked(
        self, ref: Ref, steps: tuple[Step, ...], past: Past | None, rules: Sequence[Rule]
    ) -> Operand:
        choices = self._choices(ref)
        plain = Operand(choices, self.depth, past=past, steps=steps)
        held = plain
        self._pending, before_table = list(steps), plain
        self._cached, tried = None, self.views.space.tried
        while True:
            node = ref.value.producer
            if node is None or node.graph is not self.graph or self.shapes.is_constant(ref.value):
                break
            contraction = contraction_of(node, self.shapes)
            if contraction is not None:
                projected = tried(partial(self._projected, contraction, ref, held))
                if projected is not None:
                    return projected
            below = self.views.pull(ref) or self._cast(node, ref)
            if below is not None:
                self.trail.add(node)
                ref = below
                continue
            found = (tried(partial(rule, node, ref, held)) for rule in rules)
            taken = next((each for each in found if each is not None), None)
            if taken is None:
                summed = tried(partial(sum_of_projections, ref, self.graph, self.views))
                if summed is None:
                    break
                self.trail.add_between(ref.value, summed[0].source.value)
                return self._with_projection(*summed, held)
            self.trail.add_between(ref.value, taken[0].value)
            ref, after = taken
            before_table = held if held.rope is None else before_table
            if not self._pending:
                choices = self._choices(ref)
                held = replace(after, choices=choices, plain=plain, steps=())
        if held.rope is not None and not held.rope.turns and held.norm is None:
            held = before_table  # the graph multiplies as well
        return self._cached or held

    def _choices(self, ref: Ref) -> tuple[Ref, ...]:
        """Return views of the elements, nearest first, but for those that repeat them by query."""
        choices = tuple(self.views.chain(ref))
        space = self.views.space
        queries, varying = space.atoms_of(*self.queries), space.atoms_of(*choices[-1].index)
        repeats = (space.atoms_of(*choice.index) - varying for choice in choices)
        return tuple(
            choice
            for choice, along in zip(choices, repeats, strict=True)
            if not along or along - queries
        )

    def _steps_fit(self, found: Operand) -> bool:
        """Return whether a projection has all positions of the constants in its columns."""
        if found.projection is None:
            return True
        own = resolved(found, self.views)
        assert own.projection is not None
        steps = (*own.projection.steps, *(() if own.norm is None else own.norm.steps))
        return own.projection.are_of_columns(steps)

    def _projected(self, contraction: Contraction, ref: Ref, held: Operand) -> Operand | None:
        """Return the operand with its projection, or None if the product is none."""
        projection = projection_of(contraction, ref, self.views)
        if projection is None:
            return None
        self.trail.add(ref.value.producer)
        return self._with_projection(projection, ref, held)

    def _with_projection(self, projection: Projection, product: Ref, held: Operand) -> Operand:
        """Return the operand with a projection, before what is pending."""
        steps, outer = (*projection.steps, *reversed(self._pending)), len(self._pending)
        self._pending = []
        return replace(
            held,
            projection=replace(projection, steps=steps, outer=outer),
            choices=(product,),
            plain=self._cached or held,
            steps=(),
        )

    def _cast(self, node: Node, ref: Ref) -> Ref | None:
        source = node.inputs[0] if node.op in CASTS else None
        if source is None or self.shapes.dtype(source) not in FLOATS:
            return None
        return Ref(source, ref.index)

    def _past(self, node: Node, ref: Ref, held: Operand) -> tuple[Ref, Operand] | None:
        """Keys or values of earlier steps joined before the new ones, along the columns.

        Learned ones may be joined behind them; a Pad's number is a learned one.
        """
        outer = held.past if held.past is not None and held.past.is_behind else None
        column = self.views.space.resolve(self.column if outer is None else outer.new)
        if self._pending:
            return None
        if held.rope is not None or held.norm is not None:
            return None
        halves = self._halves(node, ref, column)
        if halves is None:
            return None
        if self._rope(node, ref, held) is not None:  # parts of one tensor
            return None
        before, behind, axis = halves
        is_behind = self._is_learned(behind) and not self._is_learned(before)
        if outer is not None and not is_behind:
            return None
        old, new = (behind, before) if is_behind else (before, behind)
        if new.ref is None:
            return None
        present = None if is_behind else ref
        columns = old.index[axis], new.index[axis]
        past = Past(old, present, *columns, is_behind=is_behind, following=outer)
        plain = held if outer is None else held.plain
        choices = tuple(self.views.chain(new.ref))
        self._cached = replace(held, choices=choices, past=past, plain=plain, steps=())
        return new.ref, replace(held, past=past)

    def _halves(self, node: Node, ref: Ref, column: Axis) -> tuple[Placed, Placed, int] | None:
        """Return the two tensors that a node joins along the columns, and the axis.

        A Pad joins a number, once for each element, before its input or behind it.
        """
        joined: list[Value | np.ndarray] = [*node.given]
        if node.op == "Concat" and len(node.inputs) == 2 == len(joined):
            axis = joined_axis(node, len(ref.index))
        elif node.op == "Pad":
            padding = padding_along_axis(node, self.shapes)
            if padding is None or min(padding.before, padding.behind) != 0:
                return None
            axis, count = padding.axis % len(ref.index), padding.before + padding.behind
            if count > _MOST_PADDED:
                return None
            extents = [count if at == axis else 1 for at in range(len(ref.index))]
            added = np.full(extents, padding.fill, dtype=np.float32)
            joined = [joined[0], added] if padding.behind else [added, joined[0]]
        else:
            return None
        if self.views.space.resolve(ref.index[axis]) != column:
            return None
        found = all_known(self._half(part, ref.index, axis) for part in joined)
        return None if found is None else (found[0], found[1], axis)

    def _half(self, part: Value | np.ndarray, index: Index, axis: int) -> Placed | None:
        """Return one part of what is joined along an axis, at columns of its own."""
        if isinstance(part, np.ndarray):
            index, extent = ((),) * len(index), Dim.of(part.shape[axis])
        else:
            shape = self.shapes.shape(part)
            if shape is None:
                return None
            extent = shape[axis]
        return Placed(part, spliced(index, axis, self.views.space.atom(extent, "column")))

    def _is_learned(self, placed: Placed) -> bool:
        """Return whether keys or values are constants, perhaps repeated for each batch."""
        ref = placed.ref
        if ref is None or number_of(ref.value, self.shapes) is not None:
            return True
        return self.shapes.is_constant(self.views.origin(ref).value)

    def _scale(self, node: Node, ref: Ref, held: Operand) -> tuple[Ref, Operand] | None:
        # What is below a cache is in the cache, and a norm takes a factor below it away.
        is_open = not self._pending and held.past is None and held.norm is None
        scaled = scaling_of(ref, self.views) if is_open else None
        if scaled is None or not scaled[1]:
            return None
        return scaled[0], replace(held, scale=held.scale * scaled[1])

    def _step(self, node: Node, ref: Ref, held: Operand) -> tuple[Ref, Operand] | None:
        stepped = steps_of(node, ref, self.views)
        if stepped is None:
            return None
        self._pending += reversed(stepped[0])
        return stepped[1], held

    def _norm(self, node: Node, ref: Ref, held: Operand) -> tuple[Ref, Operand] | None:
        source = node.input(0)
        if source is not None and is_float_cast(node, self.shapes):  # back from a wider type
            ref = Ref(source, ref.index)
        normed = norm_of(ref, self.views) if held.norm is None else None
        if normed is None:
            return None
        norm = replace(normed[0], steps=(*normed[0].steps, *reversed(self._pending)))
        self._pending = []
        return normed[1], replace(held, norm=norm)

    def _rope(self, node: Node, ref: Ref, held: Operand) -> tuple[Ref, Operand] | None:
        if held.rope is not None or self._pending:
            return None
        space = self.views.space
        rope = scaled_rope_of(ref.resolve(space), space.resolve(self.depth), self.views)
        if rope is None or held.norm is None:
            return None if rope is None else (rope.source, replace(held, rope=rope))
        moved = norm_before(rope, held.norm, self.depth, self.views)
        return None if moved is None else (rope.source, replace(held, rope=moved[0], norm=moved[1]))


def joined_operand(parts: Sequence[ScaledPart], depth: Axis, column: Axis) -> Operand:
    """Return the operand of joined parts: along their depth, or (`column`) their positions."""
    own = () if parts[0].column is None else column
    return Operand(tuple(part.ref for part in parts), depth, joined=tuple(parts), column=own)


def resolved(operand: Operand, views: Views) -> Operand:
    """Return the operand with split atoms replaced by their parts."""
    space = views.space
    rope = operand.rope
    if rope is not None:
        rope = replace(rope, source=rope.source.resolve(space), depth=space.resolve(rope.depth))
    return replace(
        operand,
        rope=rope,
        norm=None if operand.norm is None else operand.norm.resolve(views),
        projection=None if operand.projection is None else operand.projection.resolve(space),
        choices=tuple(choice.resolve(space) for choice in operand.choices),
        past=None if operand.past is None else operand.past.resolve(views),
        depth=space.resolve(operand.depth),
        steps=tuple(step.resolve(space) for step in operand.steps),
        joined=tuple(
            replace(
                part,
                ref=part.ref.resolve(space),
                depth=space.resolve(part.depth),
                column=None if part.column is None else space.resolve(part.column),
            )
            for part in operand.joined
        ),
        column=space.resolve(operand.column),
    )


def depth_positions(operand: Operand, order: np.ndarray) -> dict[Atom, np.ndarray]:
    """Return the values of the depth atoms above the rotation.

    One int64 vector, (len(order),), for each atom: one number for each depth position of the
    operator, in `order`.
    """
    position = order if operand.rope is None else operand.rope.sigma[order]
    axis = operand.inner_depth
    extents = [digit.extent.as_int() or 0 for digit in axis]
    digits = np.unravel_index(position, extents) if extents else ()
    return {atom: np.asarray(digit) for atom, digit in zip(atoms(axis), digits, strict=True)}
