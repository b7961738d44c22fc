"""Shape rules of operators that move elements: reshape, permute, slice, gather, join."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from onnx_fuse.analysis.dims.dim import Dim, ceil_quotient, numbers_of, product, total
from onnx_fuse.analysis.dims.order import broadcast, is_at_most, maximum, place_on, where_at_least
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.shapes.facts import (
    MAX_CONTENT,
    NOTHING,
    CallFacts,
    Content,
    Fact,
    PartialShape,
    Rule,
    Shape,
    as_ints,
    normalized,
    of_rank,
)
from onnx_fuse.analysis.shapes.lengths import are_lengths
from onnx_fuse.analysis.splice import spliced

# Ends of slices from here on mean "to the end": exporters write the greatest int32 or int64, or a
# thousand million, and no axis is as long.
_NO_END = 10**9


def _moved(
    call: CallFacts, shape: PartialShape | None, move: Callable[[Content], Content] | None
) -> list[Fact]:
    """One output of the first input's type; `move` does to its content what the operator does."""
    content = call.content(0)
    moved = None
    if content is not None and move is not None:
        try:
            moved = move(content)
        except (IndexError, ValueError):  # an invalid node: nothing is known then
            moved = None
    return [Fact(shape, call.dtype(0), moved)]


def _reshaping(call: CallFacts, shape: PartialShape | None) -> list[Fact]:
    numbers = numbers_of(shape)
    return _moved(
        call, shape, None if numbers is None else lambda content: content.reshape(numbers)
    )


# --- Reshape and its kind -------------------------------------------------------------------------


def _reshape(call: CallFacts) -> Sequence[Fact]:
    target = call.list_of("shape", 1)
    if target is None:
        return [Fact(of_rank(call.length(1)), call.dtype(0))]
    zero_is_copy = not call.attr("allowzero", 0)
    are_extents = are_lengths(call.node.input(1))
    return _reshaping(
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
    return _reshaping(call, [product(shape[:axis]), product(shape[axis:])])


def _squeeze(call: CallFacts) -> Sequence[Fact]:
    shape, axes = call.shape(0), call.ints_of("axes", 1)
    if shape is None or axes is None:
        return [Fact(None, call.dtype(0))]
    if not axes:
        if any(dim.as_int() is None and not dim.is_not(1) for dim in shape):
            return [Fact(None, call.dtype(0))]
        axes = [axis for axis, dim in enumerate(shape) if dim == 1]
    dropped = {normalized(axis, len(shape)) for axis in axes}
    return _reshaping(call, [dim for axis, dim in enumerate(shape) if axis not in dropped])


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
    return _reshaping(
        call, [Dim.of(1) if axis in ones else next(rest, None) for axis in range(rank)]
    )


def _transpose(call: CallFacts) -> Sequence[Fact]:
    shape, perm = call.shape(0), call.attr("perm")
    if shape is None:
        return [Fact(of_rank(None if perm is None else len(perm)), call.dtype(0))]
    order = list(range(len(shape)))[::-1] if perm is None else [int(axis) for axis in perm]
    if sorted(order) != list(range(len(shape))):
        return [Fact(None, call.dtype(0))]
    return _moved(call, [shape[axis] for axis in order], lambda content: content.transpose(order))


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
    numbers = numbers_of(result)
    if numbers is None or math.prod(numbers) > MAX_CONTENT:
        return [Fact(result, call.dtype(0))]
    return _moved(call, result, lambda content: np.broadcast_to(content, numbers))


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
    result = [dim * count for dim, count in zip(shape, repeats, strict=True)]
    numbers = numbers_of(repeats)
    size = product(result).as_int()
    small = numbers is not None and size is not None and size <= MAX_CONTENT
    return _moved(
        call, result, (lambda content: np.tile(content, numbers or ())) if small else None
    )


def _pad(call: CallFacts) -> Sequence[Fact]:
    shape, pads = call.shape(0), call.list_of("pads" if call.opset >= 2 else "paddings", 1)
    axes = call.ints(3) if call.has(3) else None if shape is None else list(range(len(shape)))
    if shape is None or pads is None or axes is None or len(pads) != 2 * len(axes):
        return [Fact(of_rank(call.rank(0)), call.dtype(0))]
    result: list[Dim | None] = list(shape)
    before = [Dim.of(0)] * len(shape)
    for index, axis in enumerate(axes):
        result[axis] = shape[axis] + pads[index] + pads[index + len(axes)]
        before[axis] = pads[index]
    return _moved(call, result, _padding(call, pads, before, numbers_of(result)))


def _padding(
    call: CallFacts, pads: Sequence[Dim], before: Sequence[Dim], shape: tuple[int, ...] | None
) -> Callable[[Content], Content] | None:
    """Return what a Pad with integers of its own does to content; None if that is not known.

    Not followed: what is cut off, and fills that are attributes (before opset 11).
    """
    places = numbers_of(before)
    fill = call.item(2) if call.has(2) else Dim.of(0)
    is_followed = call.opset >= 11 and call.attr("mode", "constant") == "constant"
    if shape is None or places is None or not is_followed or math.prod(shape) > MAX_CONTENT:
        return None
    if any(pad.bounds()[0] < 0 for pad in pads):
        return None

    def pad(content: Content) -> Content:
        result = np.full(shape, fill, dtype=object)
        ends = [place + extent for place, extent in zip(places, content.shape, strict=True)]
        result[tuple(map(slice, places, ends))] = content
        return result

    return pad


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
    cuts: list[slice] | None = [slice(None)] * len(shape)
    for index, axis in enumerate(axes):
        start, end, step = (
            _item(items, index) for items in (starts, ends, steps if steps != [] else None)
        )
        stride = 1 if steps == [] else step
        result[axis] = None
        if isinstance(start, Dim) and isinstance(end, Dim) and isinstance(stride, int):
            result[axis] = sliced(shape[axis], start, end, stride)
            first, last = start.as_int(), end.as_int()
            if cuts is not None and first is not None and last is not None:
                cuts[axis] = slice(first, None if stride < 0 and last < -_NO_END else last, stride)
                continue
        cuts = None
    return _moved(call, result, None if cuts is None else lambda content: content[tuple(cuts)])


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
    content, facts, place = call.content(0), [], Dim.of(0)
    for part in parts:
        cut = None
        size, start = None if part is None else part.as_int(), place.as_int()
        if content is not None and size is not None and start is not None:
            cut = content[(slice(None),) * axis + (slice(start, start + size),)]
        place = place + (Dim.of(0) if part is None else part)
        facts.append(Fact(spliced(shape, axis, part), call.dtype(0), cut))
    return facts


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
    contents = all_known(call.content(index) for index in range(len(call.inputs)))
    if contents is not None and sum(content.size for content in contents) <= MAX_CONTENT:
        return _moved(call, result, lambda _: np.concatenate(contents, axis))
    return [Fact(result, call.dtype(0))]


# --- Gather and Scatter ---------------------------------------------------------------------------


def _gather(call: CallFacts) -> Sequence[Fact]:
    shape, indices = call.shape(0), call.shape(1)
    if shape is None or indices is None:
        return [Fact(None, call.dtype(0))]
    axis = normalized(int(call.attr("axis", 0)), len(shape))
    if axis is None:
        return [Fact(None, call.dtype(0))]
    places = call.ints(1)
    take = None
    if places is not None and (numbers := numbers_of(indices)) is not None:
        array = np.array(places, dtype=np.int64).reshape(numbers)

        def take(content: Content) -> Content:
            return np.asarray(np.take(content, array, axis=axis), dtype=object)

    return _moved(call, spliced(shape, axis, *indices), take)


def _gather_elements(call: CallFacts) -> Sequence[Fact]:
    return [Fact(call.fact(1).shape, call.dtype(0))]


def _gather_nd(call: CallFacts) -> Sequence[Fact]:
    shape, indices = call.shape(0), call.shape(1)
    depth = None if not indices else indices[-1].as_int()
    if shape is None or indices is None or depth is None:
        return [Fact(None, call.dtype(0))]
    batch = int(call.attr("batch_dims", 0))
    places, numbers = call.ints(1), numbers_of(indices)
    take = None
    if batch == 0 and places is not None and numbers is not None:
        array = np.array(places, dtype=np.int64).reshape(numbers)

        def take(content: Content) -> Content:
            return np.asarray(content[tuple(np.moveaxis(array, -1, 0))], dtype=object)

    return _moved(call, [*indices[:-1], *shape[batch + depth :]], take)


def _scatter_nd(call: CallFacts) -> Sequence[Fact]:
    indices, updates = call.ints(1), call.content(2)
    numbers = numbers_of(call.shape(1))
    put = None
    if (
        call.attr("reduction", "none") == "none"
        and indices is not None
        and updates is not None
        and numbers
    ):
        array = np.array(indices, dtype=np.int64).reshape(numbers)

        def put(content: Content) -> Content:
            result = content.copy()
            result[tuple(np.moveaxis(array, -1, 0))] = updates
            return result

    return _moved(call, call.fact(0).shape, put)


def _one_hot(call: CallFacts) -> Sequence[Fact]:
    shape = call.shape(0)
    if shape is None:
        return [Fact(None, call.dtype(2))]
    axis = normalized(int(call.attr("axis", -1)), len(shape) + 1)
    content = None if axis is None else _hot_content(call, axis)
    return [Fact([*shape[:axis], call.item(1), *shape[axis:]], call.dtype(2), content)]


def _hot_content(call: CallFacts, axis: int) -> Content | None:
    """Return the integers of a small OneHot, which may stand for extents."""
    indices, depth, values = call.content(0), call.item(1), call.content(2)
    size = None if depth is None else depth.as_int()
    if indices is None or not size or values is None or values.shape != (2,):
        return None
    numbers = as_ints(indices)
    if numbers is None or len(numbers) * size > MAX_CONTENT:
        return None
    off, hot = values
    places = np.array([number % size if -size <= number < size else -1 for number in numbers])
    chosen = places.reshape(indices.shape)[..., None] == np.arange(size)
    content = np.empty(chosen.shape, dtype=object)
    content[...] = off
    content[chosen] = hot
    return np.moveaxis(content, -1, axis)


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
