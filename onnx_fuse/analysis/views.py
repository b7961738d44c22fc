"""Views: operators that choose, reorder or repeat elements, as maps between axes.

`pull` goes from an output to the input that its elements come from, `push` the other way. One
function each for an operator; the tables at the end are the list of what counts as a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_fuse.analysis.axes import (
    ONE,
    Axis,
    Digit,
    Fixed,
    Index,
    Space,
    evaluate,
    fixed,
    product,
    size,
)
from onnx_fuse.analysis.block_shapes import Facts
from onnx_fuse.analysis.dims import Dim
from onnx_fuse.analysis.nodes import (
    CASTS,
    input_at,
    is_float_cast,
    is_random,
    keeps_type,
    made_by,
    sliced_axes,
)
from onnx_fuse.ir.graph import Node, Value


@dataclass(frozen=True)
class Ref:
    """Elements of a tensor: `index` has one axis for each axis of `value`."""

    value: Value
    index: Index

    def resolve(self, space: Space) -> Ref:
        """Return the same elements in today's atoms."""
        return Ref(self.value, space.resolve_index(self.index))


@dataclass(frozen=True)
class Views:
    """The view algebra over one graph's facts, for one block's atoms."""

    space: Space
    shapes: Facts

    def ref(self, value: Value, name: str = "") -> Ref | None:
        """Return a reference to a whole tensor, with one new atom for each axis."""
        shape = self.shapes.shape(value)
        if shape is None:
            return None
        return Ref(
            value,
            tuple(self.space.atom(extent, f"{name}{axis}") for axis, extent in enumerate(shape)),
        )

    def pull(self, ref: Ref) -> Ref | None:
        """Return where a view's output comes from; None where no view is proved."""
        node = ref.value.producer
        if node is None or node.op not in _PULL:
            return None
        return _PULL[node.op](self, node, ref)

    def chain(self, ref: Ref) -> Iterator[Ref]:
        """Yield the elements and where each view has them from, nearest first."""
        current: Ref | None = ref
        while current is not None:
            yield current
            current = self.pull(current)

    def origin(self, ref: Ref) -> Ref:
        """Return where elements come from: above every view, and every change of precision."""
        while True:
            *_, ref = self.chain(ref)
            node = ref.value.producer
            if node is None or not is_float_cast(node, self.shapes) or node.inputs[0] is None:
                return ref.resolve(self.space)
            ref = Ref(node.inputs[0], ref.index)

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

    def push(self, ref: Ref, node: Node) -> Ref | None:
        """Return the index of a view's output, given that of its first input, or None."""
        if node.op == "Split":
            return self._restacked(ref, node)
        if node.op not in _PUSH or node.inputs[0] is not ref.value:
            return None
        output = node.outputs[0]
        if output is None:
            return None
        if node.op in CASTS and not keeps_type(node, self.shapes):
            return None
        if node.op in _SAME:
            return None if is_random(node, self.shapes) else Ref(output, ref.index)
        if node.op == "Transpose":
            return Ref(output, tuple(ref.index[axis] for axis in _perm(node, len(ref.index))))
        if node.op == "Expand":
            # To the shape that the tensor has: one that repeats makes elements without an index.
            shape = self.shapes.shape(output)
            is_same = shape is not None and shape == self.shapes.shape(ref.value)
            return Ref(output, ref.index) if is_same else None
        return self.regrouped(ref, output)

    def _restacked(self, ref: Ref, node: Node) -> Ref | None:
        """Equal parts, cut along one axis and joined in order along another."""
        outputs = [value for value in node.outputs if value is not None]
        readers = {use.node for value in outputs for use in value.uses}
        join = readers.pop() if len(readers) == 1 else None
        shape = self.shapes.shape(outputs[0]) if outputs else None
        if join is None or join.op != "Concat" or join.outputs[0] is None:
            return None
        if shape is None or join.inputs != outputs or any(value.is_output for value in outputs):
            return None
        cut = int(node.attr("axis", 0)) % len(shape)
        axis = int(join.attr("axis", 1)) % len(shape)
        parts = self.space.regroup((ref.index[cut],), (Dim.of(len(outputs)), shape[cut]))
        if parts is None or cut == axis:
            return None
        axes = list(ref.index)
        axes[cut] = parts[1]
        axes[axis] = (*parts[0], *axes[axis])
        return Ref(join.outputs[0], tuple(axes))

    def regrouped(self, ref: Ref, other: Value) -> Ref | None:
        """Return the same elements in a tensor of another shape, which must have as many."""
        shape, own = self.shapes.shape(other), self.shapes.shape(ref.value)
        index = self.space.resolve_index(ref.index)
        count = product(map(size, index))
        # What is read beside other elements may broadcast: then its index tells nothing of extents.
        if shape is None or own is None or self.space.known(product(own)) != count:
            return None
        if not self.space.equate(count, product(shape)):
            return None
        shape = self.shapes.shape(other)
        grouped = None if shape is None else self.space.regroup(index, shape)
        return None if grouped is None else Ref(other, grouped)

    def broadcast(self, index: Index, source: Value) -> Ref | None:
        """Return what broadcasting reads of `source` at `index`; None if it can't be proved.

        Two names are taken for equal; a name beside a number is not, for it may be 1.
        """
        shape = self.shapes.shape(source)
        if shape is None or len(shape) > len(index):
            return None
        axes: list[Axis] = []
        for axis, extent in zip(index[len(index) - len(shape) :], shape, strict=True):
            own = self.space.resolve(axis)
            numbers = [each for each in (extent, size(own)) if each.as_int() is not None]
            if extent == ONE:
                axes.append(())
            elif extent == size(own):
                axes.append(own)
            elif numbers or not self.space.equate(size(own), extent):
                return None
            else:
                axes.append(self.space.resolve(own))
        return Ref(source, tuple(axes))

    def beside(self, index: Index, source: Value) -> Ref | None:
        """As `broadcast`, but without a claim about what is combined with elements at `index`.

        An axis with a name is taken for a full one beside another name, the last one beside a
        number, too. Should it be 1 in a run, broadcasting does as it would have in the graph;
        should it be anything else, the operator refuses it as the graph would have. Axes before the
        last may be split and merged with others, where one that is 1 would mean something else.
        """
        shape = self.shapes.shape(source)
        if shape is None or len(shape) > len(index):
            return None
        axes: list[Axis] = []
        for axis, extent in zip(index[len(index) - len(shape) :], shape, strict=True):
            own = self.space.resolve(axis)
            axes.append(() if extent == ONE else own)
            numbers = [each for each in (extent, size(own)) if each.as_int() is not None]
            is_last = len(axes) == len(shape)
            if extent not in (ONE, size(own)) and len(numbers) > (1 if is_last else 0):
                return None
        return Ref(source, tuple(axes))

    def concat_parts(self, ref: Ref) -> list[tuple[np.ndarray, Ref]] | None:
        """Split a Concat whose joined axis stands at known lanes.

        Return, for each input that is read, (the lanes that read it, where they do).
        """
        node = ref.value.producer
        if node is None or node.op != "Concat":
            return None
        axis = int(node.attr("axis", 1)) % len(ref.index)
        digits = self.space.resolve(ref.index[axis])
        if not all(isinstance(digit, Fixed) for digit in digits):
            return None
        lane = evaluate(digits, {})
        start, parts = 0, []
        for value in node.inputs:
            if value is None:
                return None
            shape = self.shapes.shape(value)
            extent = None if shape is None else shape[axis].as_int()
            if extent is None:
                return None
            inside = (lane >= start) & (lane < start + extent)
            if inside.any():
                local = fixed(np.where(inside, lane - start, 0), Dim.of(extent))
                parts.append(
                    (inside, Ref(value, (*ref.index[:axis], local, *ref.index[axis + 1 :])))
                )
            start += extent
        return parts


def _perm(node: Node, rank: int) -> list[int]:
    perm = node.attr("perm")
    return [int(axis) for axis in perm] if perm is not None else list(range(rank))[::-1]


def _pull_transpose(views: Views, node: Node, ref: Ref) -> Ref | None:
    source = node.inputs[0]
    assert source is not None
    perm = _perm(node, len(ref.index))
    return Ref(source, tuple(ref.index[perm.index(axis)] for axis in range(len(perm))))


def _pull_regrouped(views: Views, node: Node, ref: Ref) -> Ref | None:
    source = node.inputs[0]
    assert source is not None
    return views.regrouped(ref, source)


def _pull_same(views: Views, node: Node, ref: Ref) -> Ref | None:
    source = node.inputs[0]
    if source is None or ref.value is not node.outputs[0] or is_random(node, views.shapes):
        return None
    return Ref(source, ref.index)


def _pull_cast(views: Views, node: Node, ref: Ref) -> Ref | None:
    """A Cast to the type that a tensor has."""
    return _pull_same(views, node, ref) if keeps_type(node, views.shapes) else None


def _pull_expand(views: Views, node: Node, ref: Ref) -> Ref | None:
    source = node.inputs[0]
    assert source is not None
    return _expanded(views, ref, source)


def _expanded(views: Views, ref: Ref, source: Value) -> Ref | None:
    """As `Views.broadcast`, but an Expand may well repeat: only proved equality counts."""
    shape = views.shapes.shape(source)
    if shape is None or len(shape) > len(ref.index):
        return None
    tail = ref.index[len(ref.index) - len(shape) :]
    pairs = list(zip(tail, shape, strict=True))
    if any(extent != ONE and extent != size(views.space.resolve(axis)) for axis, extent in pairs):
        return None
    return Ref(source, tuple(() if extent == ONE else axis for axis, extent in pairs))


def _pull_tile(views: Views, node: Node, ref: Ref) -> Ref | None:
    source = node.inputs[0]
    assert source is not None
    shape = views.shapes.shape(source)
    if shape is None:
        return None
    axes: list[Axis] = []
    for axis, extent in zip(ref.index, shape, strict=True):
        total = size(axis)
        if total == extent:
            axes.append(axis)
            continue
        times = total.divide(extent)
        parts = None if times is None else views.space.regroup((axis,), (times, extent))
        if parts is None:
            return None
        axes.append(parts[1])
    return Ref(source, tuple(axes))


def _pull_slice(views: Views, node: Node, ref: Ref) -> Ref | None:
    source = node.inputs[0]
    assert source is not None
    shape = views.shapes.shape(source)
    slices = sliced_axes(node, views.shapes)
    if shape is None or slices is None:
        return None
    axes = list(ref.index)
    for position, start, step in slices:
        axis = position % len(shape)
        extent = shape[axis]
        if step < 1:
            return None
        number = start.as_int()
        if number is not None and number < 0:
            start = extent + start
            if extent.as_int() is not None and (start.as_int() or 0) < 0:
                start = Dim.of(0)
        taken = size(axes[axis])
        if taken == extent and step == 1:
            continue
        axes[axis] = views.space.ranged(views.space.resolve(axes[axis]), start, step, extent)
    return Ref(source, tuple(axes))


def _pull_split(views: Views, node: Node, ref: Ref) -> Ref | None:
    source = node.inputs[0]
    assert source is not None
    shape = views.shapes.shape(source)
    if shape is None:
        return None
    axis = int(node.attr("axis", 0)) % len(shape)
    start = Dim.of(0)
    for output in node.outputs:
        if output is ref.value:
            break
        before = None if output is None else views.shapes.shape(output)
        if before is None:
            return None
        start = start + before[axis]
    inner = views.space.resolve(ref.index[axis])
    axes = list(ref.index)
    axes[axis] = views.space.ranged(inner, start, 1, shape[axis])
    return Ref(source, tuple(axes))


def _pull_gather(views: Views, node: Node, ref: Ref) -> Ref | None:
    source, indices = node.inputs
    assert source is not None
    assert indices is not None
    shape, content = views.shapes.shape(source), views.shapes.constant(indices)
    if shape is None or content is None:
        return None
    axis = int(node.attr("axis", 0)) % len(shape)
    inner: list[Digit] = [digit for part in ref.index[axis : axis + content.ndim] for digit in part]
    picked = views.space.picked(
        views.space.resolve(tuple(inner)), content.astype(np.int64), shape[axis]
    )
    if picked is None:
        return None
    return Ref(source, (*ref.index[:axis], picked, *ref.index[axis + content.ndim :]))


def _pull_gather_nd(views: Views, node: Node, ref: Ref) -> Ref | None:
    """GatherND by constant indices into the first axis: what Gather does."""
    source, indices = node.inputs
    assert source is not None
    assert indices is not None
    shape, content = views.shapes.shape(source), views.shapes.constant(indices)
    if shape is None or content is None or content.shape[-1] != 1 or node.attr("batch_dims", 0):
        return None
    table = content[..., 0]
    inner = tuple(digit for part in ref.index[: table.ndim] for digit in part)
    picked = views.space.picked(views.space.resolve(inner), table.astype(np.int64), shape[0])
    return None if picked is None else Ref(source, (picked, *ref.index[table.ndim :]))


def _pull_sequence_at(views: Views, node: Node, ref: Ref) -> Ref | None:
    """One part of a tensor that SplitToSequence cut."""
    sequence, position = node.inputs
    split = made_by(sequence, "SplitToSequence")
    number = None if position is None else views.shapes.scalar(position)
    if split is None or number is None or number < 0:
        return None
    source = split.inputs[0]
    shape = None if source is None else views.shapes.shape(source)
    if source is None or shape is None or not split.attr("keepdims", 1):
        return None
    axis = int(split.attr("axis", 0)) % len(shape)
    sizes = input_at(split, 1)
    parts = None if sizes is None else views.shapes.constant(sizes)
    if parts is None:
        return None
    start = int(number) * int(parts) if parts.ndim == 0 else int(parts[: int(number)].sum())
    inner = views.space.resolve(ref.index[axis])
    axes = list(ref.index)
    axes[axis] = views.space.ranged(inner, Dim.of(start), 1, shape[axis])
    return Ref(source, tuple(axes))


def _pull_concat(views: Views, node: Node, ref: Ref) -> Ref | None:
    values = [value for value in node.inputs if value is not None]
    if len(values) == 1:
        return Ref(values[0], ref.index)
    joined = _pull_joined(views, values, int(node.attr("axis", 1)) % len(ref.index), ref)
    if joined is not None:
        return joined
    branches = views.concat_parts(ref)
    if branches is None or len(branches) != 1 or not branches[0][0].all():
        return None
    return branches[0][1]


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
    inner = (*ref.index[:axis], parts[1], *ref.index[axis + 1 :])
    chains = [list(views.chain(Ref(value, inner))) for value in values]
    for first in chains[0]:
        others = [next((r for r in chain if r.value is first.value), None) for chain in chains]
        column = [other for other in others if other is not None]
        index = _in_order(views, column, parts[0]) if len(column) == len(values) else None
        if index is not None:
            return Ref(first.value, index)
    return None


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


def _pull_einsum(views: Views, node: Node, ref: Ref) -> Ref | None:
    equation = str(node.attr("equation", "")).replace(" ", "")
    if len(node.inputs) != 1 or "->" not in equation or "." in equation:
        return None
    before, after = equation.split("->")
    source = node.inputs[0]
    if source is None or sorted(before) != sorted(after) or len(set(before)) != len(before):
        return None
    return Ref(source, tuple(ref.index[after.index(label)] for label in before))


_SAME = frozenset({*CASTS, "Dropout", "Identity"})
_REGROUPED = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_PUSH = frozenset({*_SAME, *_REGROUPED, "Expand", "Transpose"})
_PULL: dict[str, Callable[[Views, Node, Ref], Ref | None]] = {
    **dict.fromkeys(CASTS, _pull_cast),
    "Concat": _pull_concat,
    "Dropout": _pull_same,
    "Einsum": _pull_einsum,
    "Expand": _pull_expand,
    "Gather": _pull_gather,
    "GatherND": _pull_gather_nd,
    "Identity": _pull_same,
    "SequenceAt": _pull_sequence_at,
    "Slice": _pull_slice,
    "Split": _pull_split,
    "Tile": _pull_tile,
    "Transpose": _pull_transpose,
    **dict.fromkeys(_REGROUPED, _pull_regrouped),
}
# The operators whose results hold numbers of their first input, or of all that a Concat joins.
CARRIERS = frozenset(_PULL) - {"Einsum", "SequenceAt"}


def carried(value: Value) -> Sequence[Value | None]:
    """Return what a value holds the numbers of if a carrier makes it: a hint, and no proof."""
    node = value.producer
    if node is None or node.op not in CARRIERS:
        return ()
    return node.inputs if node.op == "Concat" else node.inputs[:1]
