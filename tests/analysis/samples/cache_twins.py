"""Keys and values joined to those of earlier steps, and what only looks like that."""

from __future__ import annotations

import numpy as np
import onnx

from tests.analysis.samples import projections
from tests.analysis.samples.forms import HEAD_DIM, HIDDEN, NUM_HEADS, SIZES, Form
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.norm_twins import norm_along
from tests.analysis.samples.operand_twins import rotated_but_the_first, rotation, swapped
from tests.analysis.samples.twins import Step, after, twin

BATCH, ROWS, PAST = SIZES["B"], SIZES["S"], 3


def join(w: Writer, name: str, new: str, past: int = PAST) -> str:
    """Join what earlier steps left, (batch, heads, past, depth), before the new."""
    data = w.random(BATCH, NUM_HEADS, past, HEAD_DIM)
    return w.b.op("Concat", w.b.input(name, data, data.shape), new, axis=2)


def cached(change: Step | None = None, **steps: Step) -> Sample:
    """The usual graph, its keys and values joined by `change(w, query, key, value)`."""

    def operands(w: Writer) -> tuple[str, str, str]:
        query, key, value = map(w.heads_first, projections.project(w))
        if change is not None:
            return change(w, query, key, value)  # type: ignore[no-any-return]
        return query, join(w, "past_key", key), join(w, "past_value", value)

    made = twin(Form(), operands_of_product=operands, **steps)
    joined = [
        node.output[0]
        for node in made.model.graph.node
        if node.op_type == "Concat" and any(name.startswith("past_") for name in node.input)
    ]
    for name in joined:
        shown = onnx.ValueInfoProto(name=name)
        shown.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        made.model.graph.output.append(shown)
    return made


def uneven(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """Two values more than keys from earlier steps, and two less that are new."""
    fewer = w.b.slice(value, 2, ROWS, 2)
    return query, join(w, "past_key", key), join(w, "past_value", fewer, PAST + 2)


def as_many(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """As many from earlier steps as there are new: two parts of one size."""
    return query, join(w, "past_key", key, ROWS), join(w, "past_value", value, ROWS)


def halves(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The same of values alone: what is joined of keys are other lengths."""
    fewer = w.b.slice(value, 1, ROWS, 2)
    return query, join(w, "past_key", key), join(w, "past_value", fewer, PAST + 1)


def learned(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """Learned keys and values before those of the rows."""
    key, value = (
        w.b.op("Concat", w.b.const(w.random(BATCH, NUM_HEADS, PAST, HEAD_DIM)), new, axis=2)
        for new in (key, value)
    )
    return query, key, value


def behind(w: Writer, new: str, count: int = PAST) -> str:
    """Join learned keys or values, (batch, heads, count, depth), behind the new ones."""
    learned = w.b.const(w.random(BATCH, NUM_HEADS, count, HEAD_DIM))
    return w.b.op("Concat", new, learned, axis=2)


def learned_behind(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """Learned keys and values behind those of the rows."""
    return query, behind(w, key), behind(w, value)


def repeated_behind(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The same, of one batch that is repeated."""
    key, value = (
        w.b.op("Concat", new, w.b.op("Tile", learned, w.b.const([BATCH, 1, 1, 1])), axis=2)
        for new in (key, value)
        for learned in (w.b.const(w.random(1, NUM_HEADS, PAST, HEAD_DIM)),)
    )
    return query, key, value


def learned_and_zeros_behind(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """Learned keys and values behind those of the rows, and zeros behind all."""
    zeros = w.b.op("ConstantOfShape", w.b.const([BATCH, NUM_HEADS, 1, HEAD_DIM]))
    parts = (behind(w, new, PAST - 1) for new in (key, value))
    key, value = (w.b.op("Concat", new, zeros, axis=2) for new in parts)
    return query, key, value


def zeros_behind(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """Zeros behind the keys and values of the rows, as many as an input has numbers."""
    w.b.dynamic |= {"N"}
    many = w.b.op("Shape", w.b.input("many", w.random(PAST), ("N",)))
    ends = w.b.const([BATCH, NUM_HEADS]), w.b.const([HEAD_DIM])
    zeros = w.b.op("ConstantOfShape", w.b.op("Concat", ends[0], many, ends[1], axis=0))
    key, value = (w.b.op("Concat", new, zeros, axis=2) for new in (key, value))
    return query, key, value


def padded(
    *pads: int, values: tuple[int, ...] = (), number: float = 0.5, mode: str = "constant"
) -> Step:
    """A number for keys and values that no row has, joined by a Pad of (batch, ..., depth).

    values: the pads of the values, where they have others.
    """

    def operands(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
        fill = (w.b.scalar(number),) if mode == "constant" else ()
        key, value = (
            w.b.op("Pad", new, w.b.const(own, np.int64), *fill, mode=mode)
            for new, own in ((key, pads), (value, values or pads))
        )
        return query, key, value

    return operands


def padded_by_input(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The number is one that only a run knows."""
    number = w.b.input("number", np.array(0.5, np.float32), ())
    pads = w.b.const([0, 0, 0, 0, 0, 0, 1, 0], np.int64)
    return query, w.b.op("Pad", key, pads, number), w.b.op("Pad", value, pads, number)


def given_behind(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The same, given as inputs: they are no learned ones."""
    key, value = (
        w.b.op("Concat", new, w.b.input(f"other_{name}", data, data.shape), axis=2)
        for name, new in (("key", key), ("value", value))
        for data in (w.random(BATCH, NUM_HEADS, PAST, HEAD_DIM),)
    )
    return query, key, value


def behind_and_before(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """Learned keys behind those of the rows, and learned values before them."""
    return query, behind(w, key), learned(w, query, key, value)[2]


def behind_an_earlier_one(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """Learned keys and values behind those of the rows, and others before all."""
    return learned(w, query, behind(w, key), behind(w, value))


def added(*shape: int, columns: int | str = ROWS + PAST) -> dict[str, Step]:
    """Add a bias of these extents and columns, which are in the graph's order."""

    def biased(w: Writer, scores: str) -> str:
        w.b.dynamic |= {"N"}
        bias = w.random(*shape, ROWS + PAST if columns == "N" else columns)
        return w.b.op("Add", scores, w.b.input("bias", bias, (*shape, columns)))

    return after("scores", biased)


def hidden(w: Writer, scores: str) -> str:
    """Choose a fill for each column where a mask of rows and columns says so."""
    keep = w.b.input("keep", np.tri(ROWS, ROWS + PAST, 1, dtype=bool), (ROWS, ROWS + PAST))
    return w.b.op("Where", keep, scores, w.b.const(-1e4 - np.arange(ROWS + PAST), np.float32))


def rotated_together(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """All keys are rotated, the earlier ones again: the cache has them unrotated."""
    joined = join(w, "past_key", key)
    tables = [w.b.const(w.random(1, HEAD_DIM)) for _ in range(2)]
    crossed = w.b.op("Mul", swapped(w, joined), tables[1])
    turned = w.b.op("Add", w.b.op("Mul", joined, tables[0]), crossed)
    return rotation(w, query, swapped(w, query)), turned, join(w, "past_value", value)


def normed_together(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """All keys are normed, the earlier ones again: the cache has them as they were projected."""
    joined = join(w, "past_key", key)
    return query, norm_along(3)(w, joined), join(w, "past_value", value)


def scaled_together(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The lanes of all keys are scaled, those of earlier steps again."""
    scaled = w.b.op("Mul", join(w, "past_key", key), w.b.const(w.random(HEAD_DIM)))
    return query, scaled, join(w, "past_value", value)


def values_of_no_weight(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The new values are made of projected ones: they enter as values, beside their cache."""
    return query, join(w, "past_key", key), join(w, "past_value", w.b.op("Tanh", value))


def keys_of_no_weight(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The same of keys."""
    return query, join(w, "past_key", w.b.op("Tanh", key)), join(w, "past_value", value)


def of_no_weight(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The same of both: the block would gain nothing by joining them."""
    key, value = (w.b.op("Tanh", part) for part in (key, value))
    return query, join(w, "past_key", key), join(w, "past_value", value)


def fewer_of_no_weight(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """Values that no weight makes, of which less are new than of the keys."""
    fewer = w.b.slice(w.b.op("Tanh", value), 1, ROWS, 2)
    return query, join(w, "past_key", key), join(w, "past_value", fewer, PAST + 1)


def asked_by_values(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The query is made of all values, which no weight makes."""
    joined = join(w, "past_value", w.b.op("Tanh", value))
    query = w.b.op("Mul", query, w.b.op("ReduceMean", joined, axes=[2], keepdims=1))
    return query, join(w, "past_key", key), joined


def asked_by_keys(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The query is projected from the mean of all keys: it can't be given before they are made."""
    joined = join(w, "past_key", key)
    mean = w.b.op("ReduceMean", joined, axes=[1, 2], keepdims=0)
    weight = w.b.const(w.random(HEAD_DIM, NUM_HEADS * HEAD_DIM))
    asked = w.b.op("MatMul", w.b.unsqueeze(mean, 1), weight)
    query = w.heads_first(w.b.reshape(asked, BATCH, 1, NUM_HEADS, HEAD_DIM))
    query = w.b.op("Expand", query, w.b.const([BATCH, NUM_HEADS, ROWS, HEAD_DIM], np.int64))
    return query, joined, join(w, "past_value", value)


def turned(w: Writer, part: str) -> str:
    """Rotate the second half of each head."""
    kept, last = w.b.split(part, [HEAD_DIM // 2] * 2, 3)
    first, second = w.b.split(last, [HEAD_DIM // 4] * 2, 3)
    crossed = w.b.op("Concat", w.b.op("Neg", second), first, axis=-1)
    tables = [w.b.const(w.random(ROWS, HEAD_DIM // 2)) for _ in range(2)]
    made = w.b.op("Add", w.b.op("Mul", last, tables[0]), w.b.op("Mul", crossed, tables[1]))
    return w.b.op("Concat", kept, made, axis=-1)


def last_rotated(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The second half of each head is rotated: the cache has its lanes in that order."""
    key = turned(w, key)
    return turned(w, query), join(w, "past_key", key), join(w, "past_value", value)


def last_of_query_rotated(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The same of the query alone: keys stay in the cache's order, so it does."""
    return turned(w, query), join(w, "past_key", key), join(w, "past_value", value)


def by_operator(w: Writer, part: str) -> str:
    """Rotate a part of each head by com.microsoft's RotaryEmbedding."""
    ids = w.b.const(np.tile(np.arange(ROWS), (BATCH, 1)), np.int64)
    tables = [w.b.const(w.random(ROWS, HEAD_DIM // 4)) for _ in range(2)]
    return w.b.op("RotaryEmbedding", part, ids, *tables, domain="com.microsoft")


def last_of_query_by_operator(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The same by an operator on the lanes that are rotated."""
    kept, last = w.b.split(query, [HEAD_DIM // 2] * 2, 3)
    query = w.b.op("Concat", kept, by_operator(w, last), axis=-1)
    return query, join(w, "past_key", key), join(w, "past_value", value)


def first_of_query_by_operator(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """Lanes that come first are in the cache's order: the rotation stays."""
    first, kept = w.b.split(query, [HEAD_DIM // 2] * 2, 3)
    query = w.b.op("Concat", by_operator(w, first), kept, axis=-1)
    return query, join(w, "past_key", key), join(w, "past_value", value)


def one_for_all_heads(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The rotated lanes of all keys are those of the first head, so they enter as they are."""
    kept, last = w.b.split(query, [HEAD_DIM // 2] * 2, 3)
    query = w.b.op("Concat", kept, by_operator(w, last), axis=-1)
    own, last = w.b.split(key, [HEAD_DIM // 2] * 2, 3)
    turned = by_operator(w, w.b.slice(last, 0, 1, 1))
    shape = w.b.const([BATCH, NUM_HEADS, ROWS, HEAD_DIM // 2], np.int64)
    key = w.b.op("Concat", own, w.b.op("Expand", turned, shape), axis=-1)
    return query, join(w, "past_key", key), join(w, "past_value", value)


def rotated_behind_one(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """All new rows are rotated but the first, before keys are joined with earlier ones."""
    turned = rotated_but_the_first(w, key, "k")
    query = rotated_but_the_first(w, query, "q")
    return query, join(w, "past_key", turned), join(w, "past_value", value)


def of_one_tensor(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """Keys are values, too, with one cache."""
    joined = join(w, "past_key", key)
    return query, joined, joined


def cache(w: Writer, name: str, new: str, shape: tuple[int, ...], axis: int) -> str:
    """Join a past of this shape before what is new."""
    data = w.random(*shape)
    return w.b.op("Concat", w.b.input(name, data, data.shape), new, axis=axis)


def place(w: Writer, value: str, number: int, axis: int = 0) -> str:
    return w.b.op("Gather", value, w.b.const(number, np.int64), axis=axis)


def stacked(w: Writer, name: str, *parts: str) -> str:
    """Stack the parts, and join them with a past."""
    new = w.b.op("Concat", *(w.b.unsqueeze(part, 0) for part in parts), axis=0)
    return cache(w, name, new, (len(parts), BATCH, NUM_HEADS, PAST, HEAD_DIM), 3)


def of_three(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The cache holds a third tensor beside keys and values."""
    joined = stacked(w, "past", key, value, w.b.op("Tanh", value))
    return query, place(w, joined, 0), place(w, joined, 1)


def keys_of_three(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The keys' cache holds two other tensors."""
    joined = stacked(w, "past", key, w.b.op("Tanh", key), w.b.op("Tanh", value))
    return query, place(w, joined, 0), join(w, "past_value", value)


def one_for_both(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """Keys are values, too, and the cache holds another tensor beside them."""
    joined = stacked(w, "past", key, value)
    return query, place(w, joined, 0), place(w, joined, 0)


def halves_of_two(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """Keys and values have a cache each, which hold other tensors as well."""
    keys = stacked(w, "past_key", key, w.b.op("Tanh", value))
    values = stacked(w, "past_value", w.b.op("Tanh", key), value)
    return query, place(w, keys, 0), place(w, values, 1)


def wide(w: Writer, name: str) -> str:
    """Return a cache of projected heads of twice the size."""
    flat = w.b.op("MatMul", "hidden", w.b.const(w.random(HIDDEN, NUM_HEADS * 2 * HEAD_DIM)))
    heads = w.heads_first(w.b.reshape(flat, BATCH, ROWS, NUM_HEADS, 2 * HEAD_DIM))
    return cache(w, name, heads, (BATCH, NUM_HEADS, PAST, 2 * HEAD_DIM), 2)


def keys_of_more_lanes(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The keys are the first lanes of what is cached."""
    keys = w.b.slice(wide(w, "past_key"), 0, HEAD_DIM, 3)
    return query, keys, join(w, "past_value", value)


def values_of_more_lanes(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """The values are the last lanes of what is cached."""
    values = w.b.slice(wide(w, "past_value"), HEAD_DIM, 2 * HEAD_DIM, 3)
    return query, join(w, "past_key", key), values


def across(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """Keys are the first row of four cached heads, values are the second column."""
    b = w.b
    query = b.slice(query, 0, 2, 1)
    flat = b.op("MatMul", "hidden", b.const(w.random(HIDDEN, 4 * HEAD_DIM)))
    new = b.transpose(b.reshape(flat, BATCH, ROWS, 2, 2, HEAD_DIM), 2, 3, 0, 1, 4)
    joined = cache(w, "past", new, (2, 2, BATCH, PAST, HEAD_DIM), 3)
    keys, values = place(w, joined, 0), place(w, joined, 1, 1)
    return query, b.transpose(keys, 1, 0, 2, 3), b.transpose(values, 1, 0, 2, 3)


def merged_two_heads(w: Writer, context: str) -> str:
    return w.b.reshape(w.b.transpose(context, 0, 2, 1, 3), BATCH, ROWS, 2 * HEAD_DIM)


def joined_twice(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """What is joined is joined with others once more."""
    key, value = join(w, "past_key", key), join(w, "past_value", value)
    return query, join(w, "older_key", key), join(w, "older_value", value)


def of_two_pasts(w: Writer, query: str, key: str, value: str) -> tuple[str, str, str]:
    """What is joined is of two lengths that only the run knows."""
    b = w.b
    keep = b.input("keep", np.array([True, False, True]), (PAST,))

    def joined(name: str, new: str) -> str:
        pasts = [w.random(BATCH, NUM_HEADS, PAST, HEAD_DIM) for _ in range(2)]
        given = [b.input(f"{name}_{n}", data, data.shape) for n, data in enumerate(pasts)]
        left = [b.op("Compress", past, keep, axis=2) for past in given]
        return b.op("Concat", b.op("Concat", *left, axis=2), new, axis=2)

    return query, joined("past_key", key), joined("past_value", value)


def biased_by_halves(w: Writer, scores: str) -> str:
    """Add one number to the first half of the columns, another one to the second."""
    half = (PAST + ROWS) // 2
    parted = w.b.reshape(scores, BATCH, NUM_HEADS, ROWS, 2, half)
    biased = w.b.op("Add", parted, w.b.const(w.random(2, 1)))
    return w.b.reshape(biased, BATCH, NUM_HEADS, ROWS, 2 * half)


def masked_by_length(w: Writer, scores: str) -> str:
    """Hide columns, counted by the shape of the joined keys."""
    b = w.b
    _, keys = [node.output[0] for node in b.nodes if node.op_type == "Concat"][:2]
    length = b.op("Gather", b.op("Shape", keys), b.const(2, np.int64))
    places = b.op("Range", b.const(0, np.int64), length, b.const(1, np.int64))
    seen = b.op("Cast", b.op("Less", places, b.const(6, np.int64)), to=1)
    return b.op("Add", scores, b.op("Mul", b.op("Sub", b.scalar(1.0), seen), b.scalar(-1e9)))
