"""Queries and keys that differ by one step from those that the operator takes in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from tests.analysis.samples import projections
from tests.analysis.samples.forms import HEAD_DIM, HIDDEN, NUM_HEADS
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import BATCH, ROWS, Step


def shifted_rotation(w: Writer, value: str, name: str) -> str:
    """x * cos + roll(x) * sin: three numbers round, not two."""
    b = w.b
    first, second = b.split(value, [3, HEAD_DIM - 3], 3)
    rolled = b.op("Concat", b.op("Neg", second), first, axis=-1)
    return rotation(w, value, rolled)


def mixing_rotation(w: Writer, value: str, name: str) -> str:
    """A rotation and the number itself once more."""
    return w.b.op("Add", rotation(w, value, swapped(w, value)), value)


def leaking_rotation(w: Writer, value: str, name: str) -> str:
    """The table is multiplied by numbers of the rotated tensor."""
    straight = w.b.op("Mul", value, value)
    return w.b.op("Add", straight, w.b.op("Mul", swapped(w, value), tables(w, ROWS, HEAD_DIM)[0]))


def exchanged(w: Writer, value: str, name: str) -> str:
    """Exchange the halves, and rotate nothing."""
    first, second = w.b.split(value, [HEAD_DIM // 2] * 2, 3)
    return w.b.op("Concat", second, first, axis=-1)


def nearly_permuted_rotation(w: Writer, value: str, name: str) -> str:
    """x * cos + (x . R) * sin with a matrix that exchanges halves, and mixes in one more number."""
    matrix, half = np.zeros((HEAD_DIM, HEAD_DIM), np.float32), HEAD_DIM // 2
    lane = np.arange(half)
    matrix[lane + half, lane], matrix[lane, lane + half] = -1.0, 1.0
    matrix[HEAD_DIM - 1, 0] = 0.5
    return rotation(w, value, w.b.op("MatMul", value, w.b.const(matrix)))


def dense_rotation(w: Writer, value: str, name: str) -> str:
    """x * cos + (x . R) * sin with a matrix that mixes all."""
    return rotation(w, value, w.b.op("MatMul", value, w.b.const(w.random(HEAD_DIM, HEAD_DIM))))


def mismatched_rotation(w: Writer, value: str, name: str) -> str:
    """Queries are rotated by halves, keys by pairs."""
    if name == "q":
        return rotation(w, value, swapped(w, value))
    odd = [w.b.slice(value, n, HEAD_DIM, -1, 2) for n in (1, 0)]
    pair = [w.b.unsqueeze(part, 4) for part in (w.b.op("Neg", odd[0]), odd[1])]
    joined = w.b.op("Concat", *pair, axis=4)
    crossed = w.b.op("Reshape", joined, w.b.const([0, 0, 0, HEAD_DIM], np.int64))
    return rotation(w, value, crossed)


def one_sided_rotation(w: Writer, value: str, name: str) -> str:
    """(-x1 * cos - x2 * sin, x1 * sin + x2 * cos): one half has both of the signs."""
    b, half = w.b, HEAD_DIM // 2
    first, second = b.split(value, [half] * 2, 3)
    cos, sin = (b.const(w.random(ROWS, half)) for _ in range(2))
    negative = b.op("Sub", b.op("Neg", b.op("Mul", first, cos)), b.op("Mul", second, sin))
    positive = b.op("Add", b.op("Mul", first, sin), b.op("Mul", second, cos))
    return b.op("Concat", negative, positive, axis=-1)


def rotation_of_rows(cut: int) -> Step:
    """Rotate a part of each head where rows hold all heads, `cut` of which the operator takes."""

    def rotated(w: Writer, value: str, name: str) -> str:
        b, heads = w.b, NUM_HEADS if name == "q" else w.kv_heads
        rows = b.reshape(b.transpose(value, 0, 2, 1, 3), "B", "S", heads * HEAD_DIM)
        ids = b.input(f"positions_{name}", np.tile(np.arange(ROWS), (BATCH, 1)), ("B", "S"))
        tables = [b.const(w.random(ROWS, HEAD_DIM // 4)) for _ in range(2)]
        sizes = {"num_heads": heads // cut, "rotary_embedding_dim": HEAD_DIM // 2}
        made = b.op("RotaryEmbedding", rows, ids, *tables, domain="com.microsoft", **sizes)
        return b.transpose(b.reshape(made, "B", "S", heads, HEAD_DIM), 0, 2, 1, 3)

    return rotated


def rotated_but_the_first(w: Writer, value: str, name: str) -> str:
    """Rotate all rows but the first, by the rows of longer tables that their number asks for."""
    b = w.b
    first, rest = b.slice(value, 0, 1, 2), b.slice(value, 1, 1 << 31, 2)
    length = b.op("Gather", b.op("Shape", value), b.const([2], np.int64))
    end = b.op("Sub", length, b.const([1], np.int64))
    zero = b.const([0], np.int64)
    cos, sin = (b.op("Slice", b.const(w.random(16, HEAD_DIM)), zero, end, zero) for _ in range(2))
    crossed = b.op("Mul", swapped(w, rest), sin)
    return b.op("Concat", first, b.op("Add", b.op("Mul", rest, cos), crossed), axis=2)


def rotated_twice(w: Writer, value: str, name: str) -> str:
    """Rotate what is rotated."""
    return Writer.rotated(w, Writer.rotated(w, value, name), name)


def less_value(w: Writer, value: str) -> str:
    """A table less the value."""
    return w.b.op("Sub", w.b.const(w.random(HEAD_DIM)), value)


def scaled_in_five_axes(w: Writer, value: str) -> str:
    """Multiply by a constant of more axes, and leave out the one that it adds."""
    made = w.b.op("Mul", value, w.b.const(np.full((1,) * 5, 3.0, np.float32)))
    return w.b.reshape(made, "B", "S", NUM_HEADS, HEAD_DIM)


def swapped(w: Writer, value: str) -> str:
    first, second = w.b.split(value, [HEAD_DIM // 2] * 2, 3)
    return w.b.op("Concat", w.b.op("Neg", second), first, axis=-1)


def tables(w: Writer, *shape: int) -> list[str]:
    """Cosines and sines, which are any numbers."""
    return [w.b.const(w.random(*shape)) for _ in range(2)]


def rotation(w: Writer, value: str, crossed: str) -> str:
    cos, sin = tables(w, ROWS, HEAD_DIM)
    return w.b.op("Add", w.b.op("Mul", value, cos), w.b.op("Mul", crossed, sin))


def added_at_ends(
    w: Writer, first: str, second: str, *, shift: int = 0, number: float = 0.0
) -> str:
    """Add halves, each made as long as both by zeros, or by a number.

    shift: by how many lanes the second one stands too early, over the last ones of the first.
    """
    b, half = w.b, HEAD_DIM // 2
    places = ((first, 0, half), (second, half - shift, shift))
    padded = (
        b.op("Pad", part, b.const([0, 0, 0, before, 0, 0, 0, behind], np.int64), b.scalar(number))
        for part, before, behind in places
    )
    return b.op("Add", *padded)


def crossed_by_pads(**changes: float) -> Step:
    """What is crossed in is such a sum."""

    def rotated(w: Writer, value: str, name: str) -> str:
        first, second = w.b.split(value, [HEAD_DIM // 2] * 2, 3)
        crossed = added_at_ends(w, w.b.op("Neg", second), first, **changes)  # type: ignore[arg-type]
        return rotation(w, value, crossed)

    return rotated


def repeated_first(axis: int) -> Step:
    """Put the first of an axis of (batch, seq, heads, depth) in place of all."""

    def normed(w: Writer, value: str) -> str:
        shape = w.b.shape(("B", "S", NUM_HEADS, HEAD_DIM))
        return w.b.op("Expand", w.b.slice(value, 0, 1, axis), shape)

    return normed


def halved(w: Writer, value: str) -> str:
    """Round to half precision and back."""
    half = w.b.op("Cast", value, to=onnx.TensorProto.FLOAT16)
    return w.b.op("Cast", half, to=onnx.TensorProto.FLOAT)


def quantized_projection(w: Writer, value: str) -> str:
    """Multiply by an int8 matrix, as dynamic quantization writes it."""
    b = w.b
    flat = b.reshape(value, "B", "S", NUM_HEADS * HEAD_DIM)
    whole, scale, zero = b.ops("DynamicQuantizeLinear", flat, count=3)
    weight = b.const(w.rng.integers(-90, 90, (NUM_HEADS * HEAD_DIM,) * 2), np.int8)
    made = b.op("Cast", b.op("MatMulInteger", whole, weight, zero), to=1)
    scaled = b.op("Mul", made, b.op("Mul", scale, b.scalar(0.01)))
    return b.reshape(scaled, "B", "S", NUM_HEADS, HEAD_DIM)


def runtime_projection(w: Writer, value: str) -> str:
    """Multiply by a matrix that is a graph input."""
    matrix = w.b.input("matrix", w.random(HEAD_DIM, HEAD_DIM), (HEAD_DIM, HEAD_DIM))
    return w.b.op("MatMul", value, matrix)


def chosen_by_batch(*, biased: bool) -> Step:
    """Take one of three projections instead: the batch size says which."""

    def chosen(w: Writer, value: str) -> str:
        b, width = w.b, 3 * NUM_HEADS * HEAD_DIM
        projected = b.op("MatMul", "hidden", b.const(w.random(HIDDEN, width)))
        if biased:
            projected = b.op("Add", projected, b.const(w.random(width)))
        parts = b.reshape(projected, "B", "S", 3, NUM_HEADS, HEAD_DIM)
        count, axis = b.const([3], np.int64), b.const([2], np.int64)
        return b.op("Squeeze", b.op("Slice", parts, b.extent("B"), count, axis), axis)

    return chosen


def by_batch(w: Writer, value: str) -> str:
    """Multiply each batch by a constant matrix of its own."""
    return w.b.op("MatMul", value, w.b.const(w.random(BATCH, 1, HEAD_DIM, HEAD_DIM)))


def picked_by_rank(w: Writer, key: str) -> str:
    """Put the keys of each batch's first head into the order of their first numbers."""
    first = w.b.reshape(w.b.slice(w.b.slice(key, 0, 1, 0), 0, 1, -1), -1, NUM_HEADS)
    ranked = w.b.ops("TopK", w.b.transpose(first, 1, 0), w.b.const([ROWS], np.int64), count=2)
    order = w.b.reshape(w.b.slice(ranked[1], 0, 1, 0), ROWS)
    return w.b.op("Gather", key, order, axis=1)


def mixed_positions(w: Writer, value: str) -> str:
    """Put fixed mixtures of the positions of (batch, seq, heads, depth) in their places."""
    flat = w.b.reshape(value, BATCH, ROWS, NUM_HEADS * HEAD_DIM)
    mixed = w.b.op("MatMul", w.b.const(w.random(ROWS, ROWS)), flat)
    return w.b.reshape(mixed, BATCH, ROWS, NUM_HEADS, HEAD_DIM)


def activated_gemm(w: Writer, value: str) -> str:
    """Project the whole rows once more by a FusedGemm, which applies its activation."""
    b, width = w.b, NUM_HEADS * HEAD_DIM
    parts = (b.reshape(value, -1, width), b.const(w.random(width, width)), b.const(w.random(width)))
    made = b.op("FusedGemm", *parts, domain="com.microsoft", activation="Relu")
    return b.reshape(made, "B", "S", NUM_HEADS, HEAD_DIM)


def gemm_with_bias_of_rows(w: Writer, value: str) -> str:
    """Project the whole rows once more by a Gemm that adds numbers of its own to each row."""
    return _gemm(w, value, w.b.const(w.random(BATCH * ROWS, NUM_HEADS * HEAD_DIM)))


def gemm_with_bias_at_run_time(w: Writer, value: str) -> str:
    """Project the whole rows once more by a Gemm whose bias is an input."""
    data = w.random(NUM_HEADS * HEAD_DIM)
    return _gemm(w, value, w.b.input("bias", data, data.shape))


def _gemm(w: Writer, value: str, bias: str) -> str:
    width = NUM_HEADS * HEAD_DIM
    flat = w.b.reshape(value, -1, width)
    made = w.b.op("Gemm", flat, w.b.const(w.random(width, width)), bias)
    return w.b.reshape(made, "B", "S", NUM_HEADS, HEAD_DIM)


def divided_by(w: Writer, value: str) -> str:
    """Divide a number by the value."""
    return w.b.op("Div", w.b.scalar(2.0), value)


def constant_positions(*names: str) -> Callable[[Writer], tuple[str, str, str]]:
    """Put constants in place of queries, keys or values: all of "qkv" that `names` has."""

    def operands(w: Writer) -> tuple[str, str, str]:
        shape = (BATCH, NUM_HEADS, ROWS, HEAD_DIM)
        made = map(w.heads_first, projections.project(w))
        query, key, value = (
            w.b.const(w.random(*shape)) if name in names else part
            for name, part in zip("qkv", made, strict=True)
        )
        return query, key, value

    return operands


def rotated_before_constants(w: Writer) -> tuple[str, str, str]:
    """Rotate the queries before keys and values that are constants."""
    query, key, value = constant_positions("k", "v")(w)
    return rotation(w, query, swapped(w, query)), key, value


def shifted_before_constants(w: Writer) -> tuple[str, str, str]:
    """Add a constant of their shape to the queries before keys and values that are constants."""
    query, key, value = constant_positions("k", "v")(w)
    shift = w.b.const(w.random(BATCH, NUM_HEADS, ROWS, HEAD_DIM))
    return w.b.op("Add", query, shift), key, value


def positions_of_batches(*names: str) -> Callable[[Writer], tuple[str, str, str]]:
    """Put constants, repeated for as many batches as an input has, in place of those of `names`."""

    def operands(w: Writer) -> tuple[str, str, str]:
        batches = w.b.op("Shape", w.b.input("many", w.random(BATCH), ("B",)))
        sizes = w.b.const(np.array([NUM_HEADS, ROWS, HEAD_DIM], np.int64))
        shape = w.b.op("Concat", batches, sizes, axis=0)
        made = map(w.heads_first, projections.project(w))
        query, key, value = (
            w.b.op("Expand", w.b.const(w.random(1, NUM_HEADS, ROWS, HEAD_DIM)), shape)
            if name in names
            else part
            for name, part in zip("qkv", made, strict=True)
        )
        return query, key, value

    return operands


def values_but_the_last(w: Writer, weights: str, value: str) -> str:
    """Multiply weights, of which there is one less, by all values but the last."""
    return w.b.op("MatMul", weights, w.b.slice(value, 0, ROWS - 1, 2))


def side_by_side(w: Writer) -> tuple[str, str, str]:
    """Cut queries, keys and values out of one tensor that no projection makes."""
    width = NUM_HEADS * HEAD_DIM
    packed = w.b.input("packed", w.random(BATCH, ROWS, 3 * width), ("B", "S", 3 * width))
    parts = w.b.split(packed, [width] * 3, 2)
    query, key, value = (
        w.heads_first(w.b.reshape(part, "B", "S", NUM_HEADS, HEAD_DIM)) for part in parts
    )
    return query, key, value


def beside_a_gate(w: Writer) -> tuple[str, str, str]:
    """The same where a fourth part stands behind them, which nobody reads."""
    width = NUM_HEADS * HEAD_DIM
    packed = w.b.input("packed", w.random(BATCH, ROWS, 4 * width), ("B", "S", 4 * width))
    query, key, value = (
        w.heads_first(
            w.b.reshape(
                w.b.slice(packed, start * width, (start + 1) * width, 2),
                *("B", "S", NUM_HEADS, HEAD_DIM),
            )
        )
        for start in range(3)
    )
    return query, key, value


def values_of_two_batches(w: Writer, weights: str, value: str) -> str:
    """Other values than the usual ones, of a known number of batches."""
    return w.b.op("MatMul", weights, w.b.const(w.random(BATCH, NUM_HEADS, ROWS, HEAD_DIM)))


def values_of_two_batches_by_labels(w: Writer, weights: str, value: str) -> str:
    """The same, as an Einsum."""
    constant = w.b.const(w.random(BATCH, NUM_HEADS, ROWS, HEAD_DIM))
    return w.b.op("Einsum", weights, constant, equation="bhqk,bhkd->bhqd")
