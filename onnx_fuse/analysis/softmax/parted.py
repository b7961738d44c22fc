"""Weights that are cut along their columns, each part meeting values of its own.

The sum of those products is one product, of the whole weights with all values joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_fuse.analysis.algebra.axes import Atom, Axis, atoms, size
from onnx_fuse.analysis.algebra.nodes import only_reader, readers
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.splice import spliced
from onnx_fuse.ir.graph import Value

_CUTS = ("Slice", "Split")
_SUMS = ("Add", "Sum")


def cut_weights(ref: Ref, column: Axis, views: Views) -> list[tuple[Ref, Axis]] | None:
    """Return the parts of weights in the order of their columns, each with the axis of its own.

    None unless whoever reads the weights cuts them so, and the parts are all of them.
    """
    nodes, space = [use.node for use in readers(ref.value)], views.space
    column = space.resolve(column)
    places = [at for at, axis in enumerate(ref.index) if space.resolve(axis) == column]
    if len(places) != 1 or not column or ref.value.is_output:
        return None
    if not nodes or any(node.op not in _CUTS or node.inputs[0] is not ref.value for node in nodes):
        return None
    values = [value for node in dict.fromkeys(nodes) for value in node.made if readers(value)]
    parts = all_known([_cut(value, ref, places[0], views) for value in values])
    return None if parts is None or len(parts) < 2 else _in_order(parts, size(column), space)


@dataclass(frozen=True)
class _Part:
    """A part, and what its columns are among those of the whole."""

    ref: Ref
    column: Axis
    among: Axis


def _cut(value: Value, whole: Ref, place: int, views: Views) -> _Part | None:
    """Return a part of the weights that is cut along one axis alone."""
    fresh = views.ref(value, "column")
    above = None if fresh is None else views.pull(fresh)
    if fresh is None or above is None or above.value is not whole.value:
        return None
    own, shape = fresh.resolve(views.space).index, views.shapes.shape(whole.value)
    for at, (new, old) in enumerate(zip(own, above.resolve(views.space).index, strict=True)):
        is_whole = new == old and shape is not None and size(new) == views.space.known(shape[at])
        if at != place and not is_whole:
            return None
    index = spliced(whole.index, place, own[place])
    return _Part(Ref(value, index), own[place], above.index[place])


def _in_order(parts: Sequence[_Part], extent: Dim, space: Space) -> list[tuple[Ref, Axis]] | None:
    """Return the parts one after the other; None if some columns are in none, or in several."""
    start, rest, found = Dim.of(0), [*parts], list[tuple[Ref, Axis]]()
    while rest:
        part = next((part for part in rest if _begins(part, start, extent, space)), None)
        if part is None:
            return None
        rest.remove(part)
        found.append((part.ref, part.column))
        start = space.known(start + size(part.column))
    return found if start == space.known(extent) else None


def _begins(part: _Part, start: Dim, extent: Dim, space: Space) -> bool:
    there = space.ranged(part.column, start, 1, space.known(extent))
    return space.match((there,), (space.resolve(part.among),)) is not None


def sum_of(contexts: Sequence[Ref], weights: Ref, views: Views) -> Ref | None:
    """Return the one sum of all contexts of some weights, with the lanes of the first.

    None if there is none, something else reads one of them, or an addition repeats one.
    """
    scored = views.space.atoms_of(*weights.index)
    layouts = [_layout(context, scored, views) for context in contexts]
    if any(layout != layouts[0] for layout in layouts):
        return None
    waiting = [context.value for context in contexts]
    while len(waiting) > 1:
        reads = {value: use.node for value in waiting if (use := only_reader(value)) is not None}
        sums = [node for node in reads.values() if node.op in _SUMS]
        node = next((node for node in sums if all(v in reads for v in node.given)), None)
        if node is None or node.outputs[0] is None:
            return None
        waiting = [value for value in waiting if value not in node.given] + [node.outputs[0]]
    return Ref(waiting[0], contexts[0].index)


def _layout(context: Ref, scored: set[Atom], views: Views) -> list[Axis | Dim]:
    """Return the axes of a context, those of its lanes as their extents."""
    axes = views.space.resolve_index(context.index)
    return [axis if {*atoms(axis)} <= scored else size(axis) for axis in axes]
