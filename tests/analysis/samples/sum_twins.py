"""Attention whose scores are a sum: each part a step between the product and the softmax."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from tests.analysis.samples.forms import HEAD_DIM, HIDDEN, NUM_HEADS, SIZES
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import Step

ROWS, WIDTH = SIZES["S"], 6
_OTHER = (NUM_HEADS, ROWS, WIDTH)


def projected(w: Writer, heads: int, width: int = WIDTH) -> str:
    """Return (batch, heads, rows, width), projected from what the block reads."""
    made = w.b.op("MatMul", "hidden", w.b.const(w.random(HIDDEN, heads * width) / 8))
    return w.b.transpose(w.b.reshape(made, "B", "S", heads, width), 0, 2, 1, 3)


def product(w: Writer, key_heads: int = NUM_HEADS) -> str:
    """Return a product of other queries and keys of the same heads and positions."""
    query, key = projected(w, NUM_HEADS), projected(w, key_heads)
    return w.b.op("MatMul", query, w.b.transpose(key, 0, 1, 3, 2))


def plus(op_type: str = "Add", key_heads: int = NUM_HEADS, factor: float = 1.0) -> Step:
    """Add such a product, perhaps of keys that all heads share, or take it off."""

    def step(w: Writer, scores: str) -> str:
        second = product(w, key_heads)
        if factor != 1.0:
            second = w.b.op("Mul", second, w.b.scalar(factor))
        return w.b.op(op_type, scores, second)

    return step


def plus_in_double(w: Writer, scores: str) -> str:
    """Add such a product in double precision."""
    both = (w.b.op("Cast", value, to=TensorProto.DOUBLE) for value in (scores, product(w)))
    return w.b.op("Cast", w.b.op("Add", *both), to=TensorProto.FLOAT)


def plus_vanishing(w: Writer, scores: str) -> str:
    """Add the scores to a product that is scaled until nothing is left of it."""
    second = product(w)
    for _ in range(9):
        second = w.b.op("Mul", second, w.b.scalar(1e-40))
    return w.b.op("Add", second, scores)


def taken_from(w: Writer, scores: str) -> str:
    """Take the scores off another product, and halve what is left."""
    return w.b.op("Div", w.b.op("Sub", product(w), scores), w.b.scalar(2.0))


def plus_of_own(w: Writer, scores: str) -> str:
    """Add the product of half of each query with half of each key."""
    query, key = next(node.input for node in reversed(w.b.nodes) if node.op_type == "MatMul")
    half = HEAD_DIM // 2
    part = w.b.op("MatMul", w.b.slice(query, 0, half, -1), w.b.slice(key, 0, half, -2))
    return w.b.op("Add", scores, part)


def plus_in_three_axes(w: Writer, scores: str) -> str:
    """Add a product whose batch holds the heads."""
    query, key = (
        w.b.reshape(projected(w, NUM_HEADS), ("B", NUM_HEADS), "S", WIDTH) for _ in range(2)
    )
    part = w.b.op("MatMul", query, w.b.transpose(key, 0, 2, 1))
    return w.b.op("Add", w.b.reshape(part, "B", NUM_HEADS, "S", "S"), scores)


def plus_two(w: Writer, scores: str) -> str:
    """Add a product, and numbers of each pair, in one sum."""
    bias = w.b.input("bias", w.random(1, NUM_HEADS, ROWS, ROWS), (1, NUM_HEADS, "S", "S"))
    return w.b.op("Sum", bias, scores, product(w))


def plus_of_other(w: Writer, scores: str) -> str:
    """Add a product of the first batch's queries with keys of a named number of batches."""
    keys = w.b.input("other", w.random(1, *_OTHER), (1, *_OTHER))
    w.b.inputs[-1] = helper.make_tensor_value_info(keys, TensorProto.FLOAT, ["n", *_OTHER])
    query = w.b.slice(projected(w, NUM_HEADS), 0, 1, 0)
    return w.b.op("Add", scores, w.b.op("MatMul", query, w.b.transpose(keys, 0, 1, 3, 2)))


def plus_masked(fill: float) -> Step:
    """Add a product together with a mask."""

    def step(w: Writer, scores: str) -> str:
        mask = np.where(np.tri(ROWS, dtype=bool), 0, fill).astype(np.float32)
        return w.b.op("Add", scores, w.b.op("Add", product(w), w.b.const(mask)))

    return step


def plus_capped(w: Writer, scores: str) -> str:
    """Add a product that a tangent bounds by itself."""
    return w.b.op("Add", scores, w.b.op("Tanh", product(w)))


def plus_by_row(w: Writer, scores: str) -> str:
    """Add a product times a number of each row."""
    factor = w.b.reduce("ReduceMean", projected(w, NUM_HEADS, 1), -1)
    return w.b.op("Add", scores, w.b.op("Mul", product(w), factor))


def plus_shifted(w: Writer, scores: str) -> str:
    """Add a product with relative places, each row moved by one against that before it."""
    places = w.b.const(w.random(1, NUM_HEADS, WIDTH, ROWS))
    keys = w.b.op("Mul", places, w.b.op("ReduceMax", "hidden", axes=[0, 1, 2], keepdims=0))
    part = w.b.op("MatMul", projected(w, NUM_HEADS), keys)
    zeros = w.b.op("Mul", w.b.slice(part, 0, 1, -1), w.b.scalar(0.0))
    wide = w.b.reshape(w.b.op("Concat", zeros, part, axis=-1), "B", NUM_HEADS, ROWS + 1, ROWS)
    return w.b.op("Add", scores, w.b.reshape(w.b.slice(wide, 1, ROWS + 1, 2), *_FOUR))


def plus_of_pairs(w: Writer, scores: str) -> str:
    """Add the product of each query with keys of its own row."""
    pairs = w.b.const(w.random(NUM_HEADS, ROWS, ROWS, WIDTH))
    keys = w.b.op("Mul", pairs, w.b.op("ReduceMax", "hidden", axes=[0, 1, 2], keepdims=0))
    part = w.b.op("Einsum", projected(w, NUM_HEADS), keys, equation="bnsd,nstd->bnst")
    return w.b.op("Add", scores, part)


def divided_by_own_sum(
    op_type: str = "Identity", *numbers: float, over: int = -1, is_first: bool = True
) -> Step:
    """Divide weights by their sum over an axis, to which numbers may be added or compared."""

    def step(w: Writer, weights: str) -> str:
        total = w.b.reduce("ReduceSum", weights, over)
        given = [total, *map(w.b.scalar, numbers)]
        return w.b.op("Div", weights, w.b.op(op_type, *(given if is_first else given[::-1])))

    return step


def times_inverse_of_sum(*, over: int = -1, op_type: str = "Reciprocal") -> Step:
    """Multiply weights by the inverse of their sum, or what else an operator makes of it."""

    def step(w: Writer, weights: str) -> str:
        return w.b.op("Mul", w.b.op(op_type, w.b.reduce("ReduceSum", weights, over)), weights)

    return step


def sum_by_own(w: Writer, weights: str) -> str:
    """Divide the sum of the weights by each of them."""
    return w.b.op("Div", w.b.reduce("ReduceSum", weights, -1), weights)


_FOUR = ("B", NUM_HEADS, "S", "S")
