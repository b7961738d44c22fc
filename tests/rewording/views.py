"""Other words for views and copies, and views of nothing behind whatever there is."""

from __future__ import annotations

import numpy as np
import onnx

from tests.rewording.wording import (
    ANY,
    END,
    LETTERS,
    Array,
    Wording,
    attributes_of,
    exchanged,
    rule,
)

MOST_COPIES = 8


@rule("Transpose")
def in_two_turns(w: Wording, node: onnx.NodeProto) -> str | None:
    perm = attributes_of(node).get("perm")
    if perm is None or len(perm) < 3:
        return None
    first = w.random.sample(range(len(perm)), len(perm))
    return w.turn(w.turn(node.input[0], first), [first.index(axis) for axis in perm])


@rule("Transpose")
def turned_by_einsum(w: Wording, node: onnx.NodeProto) -> str | None:
    perm = attributes_of(node).get("perm")
    if perm is None or not w.is_float(node.input[0]):
        return None
    before = LETTERS[: len(perm)]
    return w.op(
        "Einsum", node.input[0], equation=f"{before}->{''.join(before[axis] for axis in perm)}"
    )


def plain_target(w: Wording, node: onnx.NodeProto) -> Array | None:
    """Return the constant shape of a Reshape without its rarer meanings."""
    target = w.constants.get(node.input[1])
    return None if target is None or attributes_of(node).get("allowzero") else target


@rule("Reshape")
def by_way_of_one_axis(w: Wording, node: onnx.NodeProto) -> str | None:
    target = plain_target(w, node)
    if target is None or 0 in target:
        return None
    return w.op("Reshape", w.op("Reshape", node.input[0], w.ints(-1)), node.input[1])


@rule("Reshape")
def to_joined_extents(w: Wording, node: onnx.NodeProto) -> str | None:
    target = plain_target(w, node)
    if target is None or target.size < 2:
        return None
    return w.op("Reshape", node.input[0], w.joined(*(w.ints(int(n)) for n in target)))


@rule("Reshape")
def to_extents_read(w: Wording, node: onnx.NodeProto) -> str | None:
    target = plain_target(w, node)
    if target is None or 0 not in target:
        return None
    parts = [
        w.extents(node.input[0], at, at + 1) if n == 0 else w.ints(int(n))
        for at, n in enumerate(target)
    ]
    return w.op("Reshape", node.input[0], w.joined(*parts))


def only_axis(w: Wording, node: onnx.NodeProto) -> int | None:
    """Return the axis of a node that has one."""
    axes = attributes_of(node).get("axes")
    if axes is None and len(node.input) > 1 and node.input[1] in w.constants:
        axes = w.constants[node.input[1]].ravel().tolist()
    return int(axes[0]) if axes is not None and len(axes) == 1 else None


@rule("Unsqueeze")
def reshaped_with_one_more(w: Wording, node: onnx.NodeProto) -> str | None:
    x, axis, rank = node.input[0], only_axis(w, node), w.rank(node.input[0])
    if axis is None or rank < 1:
        return None
    at = axis % (rank + 1)
    return w.op("Reshape", x, w.joined(w.extents(x, 0, at), w.ints(1), w.extents(x, at, rank)))


@rule("Squeeze")
def the_only_one_gathered(w: Wording, node: onnx.NodeProto) -> str | None:
    axis = only_axis(w, node)
    return None if axis is None else w.op("Gather", node.input[0], w.const(0, np.int64), axis=axis)


@rule("Slice")
def gathered_by_numbers(w: Wording, node: onnx.NodeProto) -> str | None:
    bounds = [w.constants.get(name) for name in node.input[1:]]
    if len(bounds) < 3 or any(bound is None or bound.size != 1 for bound in bounds):
        return None
    start, end, axis, *step = (int(bound.item()) for bound in bounds if bound is not None)
    extent = w.shapes[node.input[0]][axis] if node.input[0] in w.shapes else None
    if extent is None:
        return None
    numbers = range(extent)[start : min(end, extent) : step[0] if step else 1]
    return w.op("Gather", node.input[0], w.ints(*numbers), axis=axis) if numbers else None


@rule("Gather")
def sliced_and_squeezed(w: Wording, node: onnx.NodeProto) -> str | None:
    index = w.constants.get(node.input[1])
    if index is None or index.ndim > 0 or node.input[0] in w.constants:
        return None
    at, axis = int(index), int(attributes_of(node).get("axis", 0))
    return w.squeeze(w.slice(node.input[0], at, at + 1 if at != -1 else END, axis), axis)


@rule("Concat")
def joined_along_another_axis(w: Wording, node: onnx.NodeProto) -> str | None:
    rank = w.rank(node.output[0])
    if rank < 2 or not w.is_float(node.input[0]):
        return None
    axis = attributes_of(node)["axis"] % rank
    other = (axis + 1) % rank
    perm = exchanged(rank, axis, other)
    return w.turn(w.op("Concat", *(w.turn(x, perm) for x in node.input), axis=other), perm)


# --- copies


def copied_axes(w: Wording, node: onnx.NodeProto) -> dict[int, int] | None:
    """Return the axes along which an Expand copies, and how often; None if that isn't known."""
    before, after = w.shapes.get(node.input[0]), w.shapes.get(node.output[0])
    if before is None or after is None or len(before) != len(after) or None in before:
        return None
    copied = {at: n for at, n in enumerate(after) if n is not None and n != before[at]}
    known = all(n is not None for n in after) and all(before[at] == 1 for at in copied)
    return copied if known else None


@rule("Expand")
def as_tiles(w: Wording, node: onnx.NodeProto) -> str | None:
    copied = copied_axes(w, node)
    if copied is None:
        return None
    counts = [copied.get(at, 1) for at in range(w.rank(node.input[0]))]
    return w.op("Tile", node.input[0], w.ints(*counts))


@rule("Expand")
def joined_copies(w: Wording, node: onnx.NodeProto) -> str | None:
    copied = copied_axes(w, node)
    if not copied or len(copied) > 1:
        return None
    ((axis, count),) = copied.items()
    return w.op("Concat", *[node.input[0]] * count, axis=axis) if count <= MOST_COPIES else None


@rule("Split")
def sliced_or_gathered(w: Wording, node: onnx.NodeProto) -> list[str] | None:
    x, given = node.input[0], attributes_of(node)
    sizes, axis = given.get("split"), int(given.get("axis", 0))
    if sizes is None and len(node.input) > 1 and node.input[1] in w.constants:
        sizes = w.constants[node.input[1]].tolist()
    if sizes is None:
        return None
    parts, start = [], 0
    for size in sizes:
        if w.random.random() < 0.5:
            parts.append(w.slice(x, start, start + size, axis))
        else:
            parts.append(w.op("Gather", x, w.ints(*range(start, start + size)), axis=axis))
        start += size
    return parts


# --- nothing, behind any value


def again(w: Wording, node: onnx.NodeProto) -> str:
    """Write the node as it is, its output under another name."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.output[0] = f"{node.output[0]}_before"
    w.nodes.append(copy)
    return copy.output[0]


@rule(ANY)
def identity_behind(w: Wording, node: onnx.NodeProto) -> str:
    return w.op("Identity", again(w, node))


@rule(ANY)
def dropout_behind(w: Wording, node: onnx.NodeProto) -> str:
    return w.op("Dropout", again(w, node))


@rule(ANY)
def cast_behind(w: Wording, node: onnx.NodeProto) -> str:
    return w.op("Cast", again(w, node), to=w.types[node.output[0]])


@rule(ANY)
def own_shape_behind(w: Wording, node: onnx.NodeProto) -> str:
    x = again(w, node)
    return w.op("Reshape", x, w.op("Shape", x))


@rule(ANY)
def own_extents_behind(w: Wording, node: onnx.NodeProto) -> str | None:
    rank = w.rank(node.output[0])
    return w.op("Reshape", again(w, node), w.ints(*[0] * rank)) if rank > 0 else None


@rule(ANY)
def axis_and_none_behind(w: Wording, node: onnx.NodeProto) -> str | None:
    rank = w.rank(node.output[0])
    if rank < 0:
        return None
    axis = w.random.randrange(rank + 1)
    return w.squeeze(w.unsqueeze(again(w, node), axis), axis)


@rule(ANY)
def times_one_behind(w: Wording, node: onnx.NodeProto) -> str:
    return w.op("Mul", again(w, node), w.like(node.output[0], 1.0))


@rule(ANY)
def plus_zero_behind(w: Wording, node: onnx.NodeProto) -> str:
    return w.op("Add", w.like(node.output[0], 0.0), again(w, node))


@rule(ANY)
def joined_alone_behind(w: Wording, node: onnx.NodeProto) -> str | None:
    return w.op("Concat", again(w, node), axis=0) if w.rank(node.output[0]) > 0 else None


@rule(ANY)
def whole_slice_behind(w: Wording, node: onnx.NodeProto) -> str | None:
    rank = w.rank(node.output[0])
    return w.slice(again(w, node), 0, END, w.random.randrange(rank)) if rank > 0 else None


@rule(ANY)
def two_turns_behind(w: Wording, node: onnx.NodeProto) -> str | None:
    rank = w.rank(node.output[0])
    if rank < 1:
        return None
    perm = w.random.sample(range(rank), rank)
    return w.turn(w.turn(again(w, node), perm), [perm.index(axis) for axis in range(rank)])


@rule(ANY)
def flat_and_back_behind(w: Wording, node: onnx.NodeProto) -> str | None:
    rank = w.rank(node.output[0])
    if rank < 2:
        return None
    x = again(w, node)
    return w.op("Reshape", w.op("Flatten", x, axis=w.random.randrange(rank)), w.op("Shape", x))


@rule(ANY)
def expanded_to_itself_behind(w: Wording, node: onnx.NodeProto) -> str:
    x = again(w, node)
    return w.op("Expand", x, w.op("Shape", x))
