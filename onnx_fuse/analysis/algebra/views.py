"""Views: operators that choose, reorder or repeat elements, as maps between axes.

`pull` goes from an output to the input that its elements come from, by `view_rules` and through
what Concat joins; `push` goes the other way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_fuse.analysis.algebra.axes import (
    Atom,
    Axis,
    Digit,
    Fixed,
    Index,
    atoms,
    evaluate,
    merged,
    size,
)
from onnx_fuse.analysis.algebra.nodes import (
    CASTS,
    is_float_cast,
    is_random,
    joined_axis,
    keeps_type,
    readers,
)
from onnx_fuse.analysis.algebra.refs import Ref, Refs
from onnx_fuse.analysis.algebra.scatters import scatter_of
from onnx_fuse.analysis.algebra.view_rules import REGROUPED, RULES, SAME, permutation
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.shapes.folding import cut_into_sequence
from onnx_fuse.analysis.splice import spliced
from onnx_fuse.ir.graph import Node, Value

_COPIERS = frozenset({*SAME, *REGROUPED, "Expand", "Transpose"})  # of all elements
_PUSH = _COPIERS | {"Einsum"}
# The operators whose results hold numbers of their first input, or of all that a Concat joins; and
# no others, as those of a Pad do.
CARRIERS = frozenset({*RULES, "Concat"}) - {"Einsum", "Pad", "SequenceAt"}
_MOST_PARTS = 256  # that a Concat joins, of which each is looked at; as many as heads at most
# What may stand between a tensor and the Concat of all its parts.
_CUTS = ("Split", "SplitToSequence", "SequenceAt", "Slice", "Gather")
_PARTERS = frozenset({*_CUTS, "Squeeze", "Unsqueeze", "Transpose", "Identity"})


@dataclass(frozen=True)
class Views(Refs):
    """The view algebra over one graph's facts, for one block's atoms."""

    def pull(self, ref: Ref) -> Ref | None:
        """Return where a view's output comes from; None where no view is proved."""
        node = ref.value.producer
        if node is None:
            return None
        if node.op == "Concat":
            return _pull_concat(self, node, ref)
        if node.op == "ScatterND":
            return _pull_written(self, node, ref)
        rule = RULES.get(node.op)
        return None if rule is None else rule(self, node, ref)

    def chain(self, ref: Ref) -> Iterator[Ref]:
        """Yield the elements and where each view has them from, nearest first."""
        current: Ref | None = ref
        while current is not None:
            yield current
            current = self.pull(current)

    def origin(self, ref: Ref) -> Ref:
        """Return where elements come from: above every view, and every change of precision."""
        below: Ref | None = ref
        while below is not None:
            *_, ref = self.chain(below)
            below = self.before_cast(ref)
        return ref.resolve(self.space)

    def before_cast(self, ref: Ref) -> Ref | None:
        """Return the same elements before their precision was changed; None if it wasn't."""
        node = ref.value.producer
        if node is None or not is_float_cast(node, self.shapes):
            return None
        return Ref(node.given[0], ref.index)

    def same(self, first: Ref, second: Ref) -> bool:
        """Return whether two references are to the same numbers, but for their precision.

        Then both are to the same elements of one tensor, or of two constants that are equal.
        """
        first, second = self.origin(first), self.origin(second)
        if self.space.match(first.index, second.index) is None:
            return False
        return first.value is second.value or self._are_equal(first.value, second.value)

    def _are_equal(self, first: Value, second: Value) -> bool:
        """Return whether two values are constants of the same numbers."""
        if not all(map(self.shapes.is_constant, (first, second))):
            return False
        if self.shapes.shape(first) != self.shapes.shape(second):
            return False
        return np.array_equal(
            np.asarray(self.shapes.constant(first)), np.asarray(self.shapes.constant(second))
        )

    def constant(self, index: Index, value: Value) -> Ref | None:
        """Return of which constant's elements broadcasting reads copies of `value` at `index`.

        None if no constant is proved. It has no place on axes along which it repeats itself:
        exporters that don't broadcast write a bias or a norm's weight for each position.
        """
        ref = self.broadcast(index, value) if self.repeats_constant(value) else None
        constant = None if ref is None else self.constant_at(ref)
        return None if constant is None else self.varying(constant)

    def repeats_constant(self, value: Value) -> bool:
        """Return whether a value is made of copies of a constant: a hint, and no proof.

        What an index picks of a constant, as tokens pick embeddings, is none.
        """
        source: Value | None = value
        while source is not None and not self.shapes.is_constant(source):
            node = source.producer
            source = node.inputs[0] if node is not None and node.op in _COPIERS else None
        return source is not None

    def constant_at(self, ref: Ref) -> Ref | None:
        """Return the elements of a constant of which views make copies; None if none is proved.

        It is the one above all views, also where copies are constant themselves.
        """
        found = [at for at in self.chain(ref) if self.shapes.is_constant(at.value)]
        return found[-1] if found else None

    def varying(self, ref: Ref, among: Collection[Atom] | None = None) -> Ref:
        """Return elements of a constant without a place on axes along which it repeats itself.

        Only on those that `among` have a part in, if atoms are given.
        """
        atoms_of = self.space.atoms_of
        asked = [
            place
            for place, axis in enumerate(ref.index)
            if axis and (among is None or not atoms_of(axis).isdisjoint(among))
        ]
        data = self.shapes.constant(ref.value) if asked else None  # which may have to be read
        if data is None or not data.size:
            return ref
        repeated = {place for place in asked if (data == data.take([0], place)).all()}
        index = (() if place in repeated else axis for place, axis in enumerate(ref.index))
        return Ref(ref.value, tuple(index))

    def push(self, ref: Ref, node: Node) -> Ref | None:
        """Return the index of a view's output, given that of its first input, or None."""
        if node.op == "Split":
            return self._restacked(ref, node)
        if node.op == "Slice":
            return self._uncut(ref, node)
        if node.op not in _PUSH or node.inputs[0] is not ref.value:
            return None
        output = node.outputs[0]
        if output is None:
            return None
        if node.op in CASTS and not keeps_type(node, self.shapes):
            return None
        if node.op in SAME:
            return None if is_random(node, self.shapes) else Ref(output, ref.index)
        if node.op in ("Einsum", "Transpose"):
            perm = permutation(node, len(ref.index))
            return None if perm is None else Ref(output, tuple(ref.index[axis] for axis in perm))
        if node.op == "Expand":
            # To the shape that the tensor has: one that repeats makes elements without an index.
            shape = self.shapes.shape(output)
            is_same = shape is not None and shape == self.shapes.shape(ref.value)
            return Ref(output, ref.index) if is_same else None
        return self.regrouped(ref, output)

    def onward(self, ref: Ref, node: Node) -> Ref | None:
        """As `push`, and the elements in another precision."""
        is_cast = is_float_cast(node, self.shapes)
        return Ref(node.made[0], ref.index) if is_cast else self.push(ref, node)

    def _uncut(self, ref: Ref, node: Node) -> Ref | None:
        """Return a cut that leaves everything."""
        output = node.outputs[0]
        made = None if output is None else self.ref(output)
        above = None if made is None else self.pull(made)
        if output is None or made is None or above is None or above.value is not ref.value:
            return None
        if self.shapes.shape(output) != self.shapes.shape(ref.value):
            return None
        is_all = self.space.resolve_index(above.index) == self.space.resolve_index(made.index)
        return Ref(output, ref.index) if is_all else None

    def _restacked(self, ref: Ref, node: Node) -> Ref | None:
        """Parts cut along an axis, joined in order along it, or if they are equal along another."""
        outputs = node.made
        readers = {use.node for value in outputs for use in value.uses}
        join = readers.pop() if len(readers) == 1 else None
        shape = self.shapes.shape(outputs[0]) if outputs else None
        if join is None or join.op != "Concat" or join.outputs[0] is None:
            return None
        if shape is None or join.inputs != outputs or any(value.is_output for value in outputs):
            return None
        cut = int(node.attr("axis", 0)) % len(shape)
        axis = joined_axis(join, len(shape))
        if cut == axis:
            is_whole = len(outputs) == len(node.outputs)
            return Ref(join.outputs[0], ref.index) if is_whole else None
        parts = self.space.regroup((ref.index[cut],), (Dim.of(len(outputs)), shape[cut]))
        if parts is None:
            return None
        axes = list(ref.index)
        axes[cut] = parts[1]
        axes[axis] = (*parts[0], *axes[axis])
        return Ref(join.outputs[0], tuple(axes))

    def rejoined(self, ref: Ref) -> Ref | None:
        """Return the result of a Concat of all that is cut out of a tensor, part by part.

        None unless each element stands in it once, and nowhere else.
        """
        join = _join_of(ref.value)
        output = None if join is None else join.outputs[0]
        made = None if output is None else self.ref(output)
        if output is None or made is None:
            return None
        above = next((at for at in self.chain(made) if at.value is ref.value), None)
        if above is None:
            return None
        read = self.space.resolve_index(above.index)
        own = self.space.resolve_index(made.index)
        if sorted(map(id, merged(read))) != sorted(map(id, merged(own))):
            return None
        places: dict[Digit, Axis] = {}
        for axis, digits in zip(ref.index, read, strict=True):
            parts = self.space.regroup((axis,), tuple(size((digit,)) for digit in digits))
            if parts is None:
                return None
            places |= dict(zip(digits, parts, strict=True))
        return Ref(output, tuple(merged([places[digit] for digit in axis]) for axis in own))


def _join_of(value: Value) -> Node | None:
    """Return the Concat to which all that reads a value leads, through what cuts and turns it."""
    waiting, joins = [value], dict[Node, None]()
    while waiting:
        at = waiting.pop()
        if at.is_output:
            return None
        for use in readers(at):
            if use.node.graph is not value.graph:
                return None
            if use.node.op == "Concat":
                joins[use.node] = None
            elif use.node.op in _PARTERS and use.index == 0:
                waiting += use.node.made
            else:
                return None
    return next(iter(joins)) if len(joins) == 1 else None


def _pull_concat(views: Views, node: Node, ref: Ref) -> Ref | None:
    values, axis = node.given, joined_axis(node, len(ref.index))
    return (
        _pull_joined(views, values, axis, ref)
        or _pull_part(views, values, axis, ref)
        or _pull_picked(views, values, axis, ref)
    )


def _pull_part(views: Views, values: list[Value], axis: int, ref: Ref) -> Ref | None:
    """Return the one part in which all places of the joined axis are."""
    start = 0
    for value in values:
        shape = views.shapes.shape(value)
        extent = None if shape is None else shape[axis].as_int()
        if shape is None or extent is None:
            return None
        place = views.space.within(views.space.resolve(ref.index[axis]), start, shape[axis])
        if place is not None:
            return Ref(value, spliced(ref.index, axis, place))
        start += extent
    return None


def _pull_written(views: Views, node: Node, ref: Ref) -> Ref | None:
    """Return what a ScatterND leaves as it is, or writes, where all places are of one of the two.

    It writes one run of places of an axis.
    """
    written = scatter_of(node, views.shapes)
    run = None if written is None else written.run
    shape = None if written is None else views.shapes.shape(written.data)
    if written is None or run is None or shape is None:
        return None
    space, axis, (first, stop) = views.space, written.axis, run
    own = space.resolve(ref.index[axis])
    inner = space.within(own, first, Dim.of(stop - first))
    if inner is not None:
        return Ref(written.updates, spliced(ref.index, axis, inner))
    before = space.within(own, 0, Dim.of(first))
    behind = space.within(own, stop, shape[axis] - Dim.of(stop))
    return None if before is None and behind is None else Ref(written.data, ref.index)


def _pull_joined(views: Views, values: list[Value], axis: int, ref: Ref) -> Ref | None:
    """Equal parts of one tensor: one part repeated, or all of them in order.

    In order, they were cut along one axis and are joined along another, or along the same one
    again: the number of the part moves from one axis to the other.
    """
    shape = views.shapes.shape(values[0])
    count = Dim.of(len(values))
    if shape is None:
        return None
    if views.space.resolve(ref.index[axis]) and size(ref.index[axis]).divide(count) != shape[axis]:
        return None
    parts = views.space.regroup((ref.index[axis],), (count, shape[axis]))
    if parts is None:
        return None
    inner = spliced(ref.index, axis, parts[1])
    chains = [list(views.chain(Ref(value, inner))) for value in values]
    for first in chains[0]:
        others = [next((r for r in chain if r.value is first.value), None) for chain in chains]
        column = [other for other in others if other is not None]
        index = _in_order(views, column, parts[0]) if len(column) == len(values) else None
        if index is not None:
            return Ref(first.value, index)
    return None


def _pull_picked(views: Views, values: list[Value], axis: int, ref: Ref) -> Ref | None:
    """Return the places of one tensor, along one axis of it, at which all parts are cut out.

    A Gather would take them by a table: heads that are repeated one by one, say.
    """
    if len(values) > _MOST_PARTS or not all(
        value.producer is not None and value.producer.op in RULES for value in values
    ):
        return None
    shapes = all_known(views.shapes.shape(value) for value in values)
    counts = None if shapes is None else all_known(shape[axis].as_int() for shape in shapes)
    if counts is None or not all(counts):
        return None
    own = [views.space.atom(Dim.of(count), "part") for count in counts]
    chains = [
        [*views.chain(Ref(value, spliced(ref.index, axis, part)))]
        for value, part in zip(values, own, strict=True)
    ]
    for first in chains[0]:
        others = [next((r for r in chain if r.value is first.value), None) for chain in chains]
        found = all_known(others)
        picked = None if found is None else _picked(views, found, own, ref.index[axis])
        if picked is not None:
            return picked
    return None


def _picked(views: Views, parts: list[Ref], own: list[Axis], whole: Axis) -> Ref | None:
    """Return where a tensor is read if its parts differ by their places on one axis alone."""
    space, shape = views.space, views.shapes.shape(parts[0].value)
    indices = [part.resolve(space).index for part in parts]
    differing = [
        place
        for place, column in enumerate(zip(*indices, strict=True))
        if any(space.match((column[0],), (other,)) is None for other in column)
    ]
    if shape is None or len(differing) != 1:
        return None
    (place,) = differing
    numbers: list[np.ndarray] = []
    for index, part in zip(indices, own, strict=True):
        free, count = atoms(space.resolve(part)), size(part).as_int() or 1
        if space.atoms_of(index[place]) - {*free} or len(free) > 1:
            return None
        at = evaluate(index[place], dict.fromkeys(free, np.arange(count)))
        if at.size not in (1, count):
            return None
        numbers.append(np.broadcast_to(at.ravel(), count))
    table = np.concatenate(numbers).astype(np.int64)
    picked = space.picked(space.resolve(whole), table, shape[place])
    return None if picked is None else Ref(parts[0].value, spliced(indices[0], place, picked))


def _in_order(views: Views, parts: list[Ref], number: Axis) -> Index | None:
    """Return where all parts of a tensor stand together: part i has i where this has `number`."""
    axes: list[Axis] = []
    for column in zip(*(part.resolve(views.space).index for part in parts), strict=True):
        first = column[0]
        if all(views.space.match((first,), (other,)) is not None for other in column):
            axes.append(first)
            continue
        numbered = all(
            bool(other)
            and isinstance(other[0], Fixed)
            and other[0].extent.as_int() == len(parts)
            and other[0].index.ndim == 0
            and int(other[0].index) == position
            and views.space.match((first[1:],), (other[1:],)) is not None
            for position, other in enumerate(column)
        )
        if not numbered:
            return None
        axes.append((*number, *first[1:]))
    return tuple(axes)


def carried(value: Value) -> Sequence[Value | None]:
    """Return what a value holds the numbers of if a carrier makes it: a hint, and no proof."""
    node = value.producer
    if node is not None and node.op == "SequenceAt":
        cut = cut_into_sequence(node)
        return () if cut is None else cut.inputs[:1]
    if node is None or node.op not in CARRIERS:
        return ()
    return node.inputs if node.op == "Concat" else node.inputs[:1]
