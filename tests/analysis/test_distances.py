"""Scores that are distances of queries and keys, written with their product or without."""

from __future__ import annotations

import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.samples.forms import Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import Step, twin
from tests.analysis.verdicts import BOTH, OUT, check_declined, check_fused

EACH = ("value_context", "query", "key", "v_weight", "v_bias", "attn_bias", *OUT)
KEY = ("hidden", "value_context", "key", "q_weight", "v_weight", "q_bias", "v_bias")


def squared(w: Writer, value: str) -> str:
    """The squared lengths of queries or keys, (batch, heads, rows, 1)."""
    return w.b.reduce("ReduceSum", w.b.op("Mul", value, value), -1)


def twice_product(w: Writer, query: str, key: str) -> str:
    product = w.b.op("MatMul", query, w.b.transpose(key, 0, 1, 3, 2))
    return w.b.op("Mul", product, w.b.scalar(2.0))


def of_keys(w: Writer, key: str) -> str:
    return w.b.transpose(squared(w, key), 0, 1, 3, 2)


def lengths_first(w: Writer, query: str, key: str) -> str:
    """(|q|^2 + |k|^2) - 2 q.k."""
    lengths = w.b.op("Add", squared(w, query), of_keys(w, key))
    return w.b.op("Sub", lengths, twice_product(w, query, key))


def product_between(w: Writer, query: str, key: str) -> str:
    """(|q|^2 - 2 q.k) + |k|^2."""
    less = w.b.op("Sub", squared(w, query), twice_product(w, query, key))
    return w.b.op("Add", less, of_keys(w, key))


def of_differences(w: Writer, query: str, key: str) -> str:
    """|q - k|^2, of each pair."""
    first, second = (
        w.b.op("Unsqueeze", value, w.b.const([axis])) for value, axis in ((query, 3), (key, 2))
    )
    taken = w.b.op("Sub", first, second)
    return w.b.op("ReduceSum", w.b.op("Mul", taken, taken), w.b.const([-1]), keepdims=0)


def less(distance: Step, root: str = "") -> dict[str, Step]:
    """Make scores of a distance, or of its root: the less, the greater it is."""

    def scores(w: Writer, query: str, key: str) -> str:
        found = distance(w, query, key)
        found = w.b.op(root, found) if root else found
        return w.b.op("Neg", found)

    return {"scores": scores}


def less_keys(w: Writer, query: str, key: str) -> str:
    """2 q.k - |k|^2: of the distance what the softmax doesn't lose."""
    return w.b.op("Sub", twice_product(w, query, key), of_keys(w, key))


@pytest.mark.parametrize("dims", ["static", "dynamic"])
@pytest.mark.parametrize("distance", [lengths_first, product_between])
def test_distance_is_a_product_and_a_bias(distance: Step, dims: str) -> None:
    check_fused(twin(Form(dims=dims), **less(distance)), EACH)


def test_product_less_the_length_of_keys_has_a_bias_of_keys() -> None:
    check_fused(twin(scores=less_keys), (*KEY, "attn_bias", *OUT))


def of_queries_alone(w: Writer, query: str, key: str) -> str:
    """Each query meets each query."""
    met = w.b.op("Einsum", query, query, equation="bnid,bnjd->bnij")
    return w.b.op("Mul", met, w.b.scalar(0.5))


def test_one_tensor_may_meet_itself() -> None:
    check_fused(twin(scores=of_queries_alone), BOTH)


@pytest.mark.parametrize("distance", [lengths_first, product_between])
def test_root_of_a_distance_is_declined(distance: Step) -> None:
    check_declined(lambda: twin(**less(distance, root="Sqrt")), Code.SCORES_CHANGED)


def test_squares_of_differences_are_declined_as_such() -> None:
    make = lambda: twin(**less(of_differences))  # noqa: E731
    check_declined(make, Code.NO_SCORES)
    (block,) = onnx_fuse.fuse(make().model, threshold=None).report.blocks
    assert "(ReduceSum) sums up squares; distances are, as |q|^2" in (block.reason or "")
