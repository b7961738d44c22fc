"""Scores of queries and keys that were repeated for every pair before their product."""

from __future__ import annotations

import pytest

from onnx_fuse.report import Code
from tests.analysis.samples.forms import HEAD_DIM, NUM_HEADS, Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import ROWS, Step, twin
from tests.analysis.verdicts import ALL, BOTH, OUT, check_declined, check_fused

_SMALLEST = 1e-8
_UNIT = (*ALL, "q_norm_weight", "k_norm_weight", *OUT)


def pairs(w: Writer, query: str, key: str) -> tuple[str, str]:
    """Return queries and keys for every pair, both (batch, heads, rows, columns, depth)."""
    dims = w.b.shape(("B", NUM_HEADS, "S", w.kv_seq, HEAD_DIM))
    first, second = w.b.unsqueeze(query, 3), w.b.unsqueeze(key, 2)
    return w.b.op("Expand", first, dims), w.b.op("Expand", second, dims)


def unit(w: Writer, value: str, over: int = -1) -> str:
    """Divide by the length, if that isn't too small."""
    length = w.b.reduce("ReduceL2", value, over)
    return w.b.op("Div", value, w.b.op("Clip", length, w.b.scalar(_SMALLEST)))


def summed(w: Writer, left: str, right: str) -> str:
    """Multiply pair by pair, and sum over the depth."""
    depth = w.b.const([-1], "int64")
    return w.b.op("ReduceSum", w.b.op("Mul", left, right), depth, keepdims=0)


def cosine(w: Writer, query: str, key: str) -> str:
    """The cosine of the angle between each pair."""
    left, right = pairs(w, query, key)
    return summed(w, unit(w, right), unit(w, left))


def plain(w: Writer, query: str, key: str) -> str:
    """The product of each pair, no norm."""
    return summed(w, *pairs(w, query, key))


def broadcast(w: Writer, query: str, key: str) -> str:
    """As `cosine`, but the product is what repeats."""
    return summed(w, unit(w, w.b.unsqueeze(query, 3)), unit(w, w.b.unsqueeze(key, 2)))


def powers(w: Writer, query: str, key: str) -> str:
    """Of what is computed of each pair, some is no projection and no norm."""
    left, right = pairs(w, query, key)
    return summed(w, w.b.op("Exp", left), w.b.op("Tanh", right))


def over_pairs(w: Writer, query: str, key: str) -> str:
    """Queries of length one over all keys of their row, which aren't of their own."""
    left, right = pairs(w, query, key)
    return summed(w, unit(w, w.b.op("Mul", left, right), 3), right)


def differences(w: Writer, query: str, key: str) -> str:
    """Each query times its difference to each key."""
    left, right = pairs(w, query, key)
    return summed(w, left, w.b.op("Sub", left, right))


def places(w: Writer) -> str:
    """Return numbers for each pair of positions."""
    return w.b.input("places", w.random(ROWS, ROWS, HEAD_DIM), ("S", "S", HEAD_DIM))


def keys_of_rows(w: Writer, query: str, key: str) -> str:
    """Each query times keys that are moved by places of its own."""
    keys = w.b.op("Add", w.b.unsqueeze(key, 2), places(w))
    return w.b.op("Einsum", query, keys, equation="bnsd,bnstd->bnst")


def values_of_rows(w: Writer, weights: str, value: str) -> str:
    """As `keys_of_rows`, of the values."""
    values = w.b.op("Add", w.b.unsqueeze(value, 2), places(w))
    return w.b.op("Einsum", weights, values, equation="bnst,bnstd->bnsd")


def bounded_product(w: Writer, query: str, key: str) -> str:
    """Divide by the product of both lengths, if that isn't too small: a number for each pair."""
    left, right = w.b.unsqueeze(query, 3), w.b.unsqueeze(key, 2)
    lengths = [w.b.op("ReduceL2", value, axes=[-1], keepdims=0) for value in (left, right)]
    length = w.b.op("Max", w.b.op("Mul", *lengths), w.b.scalar(_SMALLEST))
    return w.b.op("Div", summed(w, left, right), length)


FUSED: dict[str, tuple[Step, tuple[str, ...]]] = {
    "product": (plain, (*ALL, *OUT)),
    "cosine": (cosine, _UNIT),
    "cosine that broadcasts": (broadcast, _UNIT),
    "powers": (powers, BOTH),
}
DECLINED: dict[str, tuple[dict[str, Step], Code]] = {
    "lengths over pairs": ({"scored": over_pairs}, Code.NO_SCORES),
    "differences": ({"scored": differences}, Code.PAIRWISE),
    "keys of rows": ({"scored": keys_of_rows}, Code.PAIRWISE),
    "values of rows": ({"product": values_of_rows}, Code.PAIRWISE),
    "bounded product of lengths": ({"scored": bounded_product}, Code.SCALE_NOT_SCALAR),
}


@pytest.mark.parametrize("dims", ["static", "dynamic"])
@pytest.mark.parametrize("name", FUSED)
def test_what_is_repeated_is_read_once(name: str, dims: str) -> None:
    scored, operands = FUSED[name]
    check_fused(twin(Form(dims=dims), scored=scored), operands)


@pytest.mark.parametrize("dims", ["static", "dynamic"])
@pytest.mark.parametrize("name", DECLINED)
def test_what_is_of_pairs_is_declined(name: str, dims: str) -> None:
    steps, code = DECLINED[name]
    check_declined(lambda: twin(Form(dims=dims), **steps), code)
