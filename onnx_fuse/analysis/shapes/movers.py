"""Shape rules of operators that move elements: reshape, permute, slice, gather, join."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnx_fuse.analysis.dims.dim import Dim, ceil_quotient, numbers_of, product, total
from onnx_fuse.analysis.dims.order import broadcast, is_at_most, maximum, place_on, where_at_least
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.shapes.arithmetic import Array
from onnx_fuse.analysis.shapes.facts import (
    MAX_CONTENT,
    NOTHING,
    CallFacts,
    Content,
    Fact,
    PartialShape,
    Rule,
    Shape,
    content_of,
    normalized,
    of_rank,
)
from onnx_fuse.analysis.shapes.fold_rules import Known, folded
from onnx_fuse.analysis.shapes.lengths import are_lengths
from onnx_fuse.analysis.splice import spliced

# Ends of slices from here on mean "to the end": exporters write the greatest int32 or int64, or a
# thousand million, and no axis is as long.
_NO_END = 10**9


def _moved(call: CallFacts, *shapes: PartialShape | None, data: Sequence[int] = (0,)) -> list[Fact]:
    """Outputs of these shapes, with the integers of the inputs `data` as the operator moves them.

    All other inputs must be known as numbers for that.
    """
    numbers = all_known(map(numbers_of, shapes))
    moved: Sequence[Content] = ()
    if numbers is not None and sum(map(math.prod, numbers)) <= MAX_CONTENT:
        places = range(len(call.inputs))
        given = [call.content(at) if at in data else call.array(at) for at in places]
        if all(given[at] is not None or not call.has(at) for at in places):
            node = Known(call.node.op, given, call.attributes, call.opset, len(shapes))
            moved = list(map(_as_content, folded(node)))
    contents = moved if len(moved) == len(shapes) else [None] * len(shapes)
    dtype = call.dtype(data[0])
    return [Fact(shape, dtype, content) for shape, content in zip(shapes, contents, strict=True)]


def _as_content(array: Array) -> Content:
    """Return what an operator made of contents: it may have added numbers."""
    items = np.asarray(array, dtype=object)
    return content_of(items.reshape(-1).tolist()).reshape(items.shape)


def _regrouped(call: CallFacts, shape: PartialShape | None) -> list[Fact]:
    """One output of the first input's elements in their order."""
    numbers, content = numbers_of(shape), call.content(0)
    if numbers is None or content is None or content.size != math.prod(numbers):
        return [Fact(shape, call.dtype(0))]
    return [Fact(shape, call.dtype(0), content.reshape(numbers))]


# --- Reshape and its kind -------------------------------------------------------------------------


def _reshape(call: CallFacts) -> Sequence[Fact]:
    target = call.list_of("shape", 1)
    if target is None:
        return [Fact(of_rank(call.length(1)), call.dtype(0))]
    zero_is_copy = not call.attr("allowzero", 0)
    are_extents = are_lengths(call.node.input(1))
    return _regrouped(
        call,
        _reshaped(call.shape(0), target, zero_is_copy=zero_is_copy, are_extents=are_extents),
    )


def _reshaped(
    source: Shape | None, target: Sequence[Dim], *, zero_is_copy: bool, are_extents: bool
) -> PartialShape:
    """Return the shape that Reshape gives; a symbol in it is taken for an extent, never 0.

    What the source has for an extent isn't -1, though its formula alone would allow it. It is also
    that extent if it differs only where the source is empty.
    """
    target = [_as_in(source or (), dim) for dim in target]
    result: list[Dim | None] = []
    inferred: list[int] = []
    for axis, dim in enumerate(target):
        if dim == 0 and zero_is_copy:
            result.append(source[axis] if source is not None and axis < len(source) else None)
        elif dim.bounds()[0] < 0 and (source is None or dim not in source):
            # -1, or an extent: whichever it is, the others tell which extent results.
            inferred.append(axis)
            result.append(None)
        else:
            result.append(dim)
    if are_extents and len(inferred) > 1:  # none of them is -1
        for axis in inferred:
            result[axis] = target[axis]
        return result
    known = [dim for dim in result if dim is not None]
    if source is not None and len(inferred) == 1 and len(known) == len(result) - 1:
        divisor = product(known)
        if divisor != 0:
            result[inferred[0]] = product(source) // divisor
    return result


def _as_in(source: Shape, dim: Dim) -> Dim:
    """Return the extent of the source that `dim` is wherever the source isn't empty, else `dim`."""
    extent = where_at_least(1, dim)
    return dim if extent is None or extent not in source else extent


def _flatten(call: CallFacts) -> Sequence[Fact]:
    shape = call.shape(0)
    if shape is None:
        return [Fact([None, None], call.dtype(0))]
    axis = int(call.attr("axis", 1))
    axis = axis + len(shape) if axis < 0 else axis
    return _regrouped(call, [product(shape[:axis]), product(shape[axis:])])


def _squeeze(call: CallFacts) -> Sequence[Fact]:
    shape, axes = call.shape(0), call.ints_of("axes", 1)
    if shape is None or axes is None:
        return [Fact(None, call.dtype(0))]
    if not axes:
        if any(dim.as_int() is None and not dim.is_not(1) for dim in shape):
            return [Fact(None, call.dtype(0))]
        axes = [axis for axis, dim in enumerate(shape) if dim == 1]
    dropped = {normalized(axis, len(shape)) for axis in axes}
    return _regrouped(call, [dim for axis, dim in enumerate(shape) if axis not in dropped])


def _unsqueeze(call: CallFacts) -> Sequence[Fact]:
    shape, axes = call.shape(0), call.ints_of("axes", 1)
    if shape is None:
        return [Fact(None, call.dtype(0))]
    if axes is None:
        added = call.shape(1)
        count = None if added is None else product(added).as_int()
        return [Fact(of_rank(None if count is None else len(shape) + count), call.dtype(0))]
    rank = len(shape) + len(axes)
    ones = {normalized(axis, rank) for axis in axes}
    rest = iter(shape)
    return _regrouped(
        call, [Dim.of(1) if axis in ones else next(rest, None) for axis in range(rank)]
    )


def _transpose(call: CallFacts) -> Sequence[Fact]:
    shape, perm = call.shape(0), call.attr("perm")
    if shape is None:
        return [Fact(of_rank(None if perm is None else len(perm)), call.dtype(0))]
    order = list(range(len(shape)))[::-1] if perm is None else [int(axis) for axis in perm]
    if sorted(order) != list(range(len(shape))):
        return [Fact(None, call.dtype(0))]
    return _moved(call, [shape[axis] for axis in order])


# --- Expand, Tile, Pad ----------------------------------------------------------------------------


def _expand(call: CallFacts) -> Sequence[Fact]:
    shape, target = call.shape(0), call.list_of("shape", 1)
    length = call.length(1) if target is None else len(target)
    if shape is None or length is None:
        return [Fact(None, call.dtype(0))]
    rank = max(len(shape), length)
    if target is None:
        return [Fact(of_rank(rank), call.dtype(0))]
    ones = [Dim.of(1)] * rank
    are_extents = are_lengths(call.node.input(1))
    result = [
        _expanded(dim, wanted, is_extent=are_extents)
        for dim, wanted in zip(
            [*ones[len(shape) :], *shape], [*ones[len(target) :], *target], strict=True
        )
    ]
    return _moved(call, result)


def _expanded(dim: Dim, wanted: Dim, *, is_extent: bool) -> Dim | None:
    if dim.is_not(1) or wanted == 1:
        return dim
    # What is not proved to be an extent may be the -1 that some runtimes take for 1: nothing, where
    # the axis has the extent that is wanted or none.
    extent = where_at_least(1, dim)
    is_same = extent is not None and extent == where_at_least(1, wanted)
    is_extent = is_extent or is_same or wanted.bounds()[0] >= 0
    return broadcast(dim, wanted) if is_extent else None


def _tile(call: CallFacts) -> Sequence[Fact]:
    shape, repeats = call.shape(0), call.list_of("repeats", 1)
    if shape is None or repeats is None or len(shape) != len(repeats):
        return [Fact(of_rank(call.rank(0)), call.dtype(0))]
    return _moved(call, [dim * count for dim, count in zip(shape, repeats, strict=True)])


def _pad(call: CallFacts) -> Sequence[Fact]:
    shape, pads = call.shape(0), call.list_of("pads" if call.opset >= 2 else "paddings", 1)
    axes = call.ints(3) if call.has(3) else None if shape is None else list(range(len(shape)))
    if shape is None or pads is None or axes is None or len(pads) != 2 * len(axes):
        return [Fact(of_rank(call.rank(0)), call.dtype(0))]
    result: list[Dim | None] = list(shape)
    for index, axis in enumerate(axes):
        result[axis] = shape[axis] + pads[index] + pads[index + len(axes)]
    if call.opset < 11:  # which fills with an attribute
        return [Fact(result, call.dtype(0))]
    return _moved(call, result, data=(0, 2))


# --- Slice, Split, Concat -------------------------------------------------------------------------


def _slice(call: CallFacts) -> Sequence[Fact]:
    shape, starts, ends = call.shape(0), call.list_of("starts", 1), call.list_of("ends", 2)
    axes, steps = call.ints_of("axes", 3), call.ints_of("steps", 4)
    if shape is None:
        return [Fact(None, call.dtype(0))]
    if axes is None:
        return [Fact([None] * len(shape), call.dtype(0))]
    count = next((len(items) for items in (starts, ends, axes, steps) if items), len(shape))
    axes = axes or list(range(count))
    result: list[Dim | None] = list(shape)
    for index, axis in enumerate(axes):
        start, end, step = (
            _item(items, index) for items in (starts, ends, steps if steps != [] else None)
        )
        stride = 1 if steps == [] else step
        result[axis] = None
        if isinstance(start, Dim) and isinstance(end, Dim) and isinstance(stride, int):
            result[axis] = sliced(shape[axis], start, end, stride)
    return _moved(call, result)


def _item(items: Sequence[Dim] | Sequence[int] | None, index: int) -> Dim | int | None:
    return None if items is None or index >= len(items) else items[index]


def sliced(dim: Dim, start: Dim, end: Dim, step: int) -> Dim | None:
    """Return how many of `dim` >= 1 elements `start:end:step` takes (ONNX Slice).

    None if that depends on a sign that is not known.
    """
    if step == 0:
        return None
    numbers = (dim.as_int(), start.as_int(), end.as_int())
    if all(number is not None for number in numbers):
        size, first, last = (int(number or 0) for number in numbers)
        if step < 0 and last < -size:
            return Dim.of(len(range(*slice(first, None, step).indices(size))))
        return Dim.of(len(range(*slice(first, last, step).indices(size))))
    if step < 0:
        whole = (numbers[1] == -1 or (numbers[1] or 0) >= _NO_END) and (numbers[2] or 0) <= -_NO_END
        return ceil_quotient(dim, -step) if whole else None
    first_place = place_on(dim, start)
    unbounded = numbers[2] is not None and numbers[2] >= _NO_END
    last_place = dim if unbounded else place_on(dim, end)
    if first_place is None or last_place is None:
        return None
    taken = last_place - first_place
    # What is left of `dim`, which is at least 1, behind its first element is no negative number.
    if not is_at_most(0, taken) and not is_at_most(dim - 1, taken):
        taken = maximum(taken, 0)
    return taken if step == 1 else ceil_quotient(taken, step)


def _split(call: CallFacts) -> Sequence[Fact]:
    shape, sizes = call.shape(0), call.list_of("split", 1)
    axis = None if shape is None else normalized(int(call.attr("axis", 0)), len(shape))
    count = len(call.node.outputs)
    if shape is None or axis is None:
        return [Fact(None, call.dtype(0))] * count
    parts: Sequence[Dim | None] = [None] * count
    if sizes:
        parts = sizes
    elif sizes is not None:
        parts = _even_parts(shape[axis], int(call.attr("num_outputs", count)))
    return _moved(call, *(spliced(shape, axis, part) for part in parts))


def _even_parts(dim: Dim, count: int) -> list[Dim]:
    """Return all parts alike, but the last one smaller if need be."""
    part = ceil_quotient(dim, count)
    return [part] * (count - 1) + [dim - part * (count - 1)]


def _concat(call: CallFacts) -> Sequence[Fact]:
    shapes = [call.shape(index) for index in range(len(call.inputs))]
    known = [shape for shape in shapes if shape is not None]
    if not known:
        return [Fact(None, call.dtype(0))]
    rank = len(known[0])
    axis = normalized(int(call.attr("axis", 1)), rank)
    if axis is None or any(len(shape) != rank for shape in known):
        return [Fact(None, call.dtype(0))]
    result: list[Dim | None] = list(known[0])
    for other in known[1:]:  # all other axes agree: a number says more than a symbol
        result = [dim if other[i].as_int() is None else other[i] for i, dim in enumerate(result)]
    whole = len(known) == len(shapes)
    result[axis] = total(shape[axis] for shape in known) if whole else None
    return _moved(call, result, data=range(len(shapes)))


# --- Gather and Scatter ---------------------------------------------------------------------------


def _gather(call: CallFacts) -> Sequence[Fact]:
    shape, indices = call.shape(0), call.shape(1)
    if shape is None or indices is None:
        return [Fact(None, call.dtype(0))]
    axis = normalized(int(call.attr("axis", 0)), len(shape))
    if axis is None:
        return [Fact(None, call.dtype(0))]
    return _moved(call, spliced(shape, axis, *indices))


def _gather_elements(call: CallFacts) -> Sequence[Fact]:
    return [Fact(call.fact(1).shape, call.dtype(0))]


def _gather_nd(call: CallFacts) -> Sequence[Fact]:
    shape, indices = call.shape(0), call.shape(1)
    depth = None if not indices else indices[-1].as_int()
    if shape is None or indices is None or depth is None:
        return [Fact(None, call.dtype(0))]
    batch = int(call.attr("batch_dims", 0))
    return _moved(call, [*indices[:-1], *shape[batch + depth :]])


def _scatter_nd(call: CallFacts) -> Sequence[Fact]:
    return _moved(call, call.fact(0).shape, data=(0, 2))


def _one_hot(call: CallFacts) -> Sequence[Fact]:
    shape = call.shape(0)
    if shape is None:
        return [Fact(None, call.dtype(2))]
    axis = normalized(int(call.attr("axis", -1)), len(shape) + 1)
    return _moved(call, [*shape[:axis], call.item(1), *shape[axis:]], data=(2,))


def _depth_to_space(call: CallFacts) -> Sequence[Fact]:
    shape, size = call.shape(0), int(call.attr("blocksize", 1))
    if shape is None or len(shape) != 4:
        return [NOTHING]
    batch, channels, height, width = shape
    if call.node.op == "DepthToSpace":
        return [
            Fact([batch, channels // (size * size), height * size, width * size], call.dtype(0))
        ]
    return [Fact([batch, channels * (size * size), height // size, width // size], call.dtype(0))]


RULES: dict[str, Rule] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Slice": _slice,
    "SpaceToDepth": _depth_to_space,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
