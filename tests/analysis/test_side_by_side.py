"""Weights that meet several values, whose contexts stand side by side, meet the joined values."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from onnx_fuse.report import Code
from tests.analysis.samples import steps
from tests.analysis.samples.forms import NUM_HEADS, Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import Step, twin
from tests.analysis.verdicts import VALUE, check_declined, check_fused


def joined(
    order: Sequence[int] = (0, 1),
    *,
    axis: int = -1,
    first: Step | None = None,
    each: Step | None = None,
    whole: Step | None = None,
    beside: bool = False,
    read: str = "",
) -> Step:
    """Return a product of the weights with parts of the values' depth, joined in an order.

    `first` changes the first context, `each` all of them, `whole` what they are joined to. With
    `beside` the last part is not multiplied, but joined as it is. What `read` names ("weights", or
    the first "context") is read once more.
    """

    def product(w: Writer, weights: str, value: str) -> str:
        b, width = w.b, w.value_dim // len(order)
        parts = [b.slice(value, at * width, (at + 1) * width, -1) for at in range(len(order))]
        left = [parts.pop()] if beside else []
        made = [b.op("MatMul", weights, part) for part in parts] + left
        made[0] = first(w, made[0]) if first else made[0]
        made = [each(w, one) for one in made] if each else made
        context = b.op("Concat", *(made[number] for number in order), axis=axis)
        if read:
            most = b.reduce("ReduceMax", {"weights": weights, "context": made[0]}[read], -1)
            context = b.op("Add", context, most)
        return whole(w, context) if whole else context

    return product


def permuted(*perm: int) -> Step:
    return lambda w, value: w.b.transpose(value, *perm)


SEQ_FIRST = permuted(0, 2, 1, 3)
FUSED: dict[str, tuple[Form, Step]] = {
    "two": (Form(), joined()),
    "in another order": (Form(), joined((1, 0))),
    "four": (Form(), joined((2, 0, 1, 3))),
    "of open extents": (Form(dims="dynamic"), joined()),
    "of one head for all": (Form(heads="mqa_broadcast"), joined()),
    "with a mask": (Form(mask="padding"), joined()),
    "behind views": (Form(), joined(axis=3, each=SEQ_FIRST, whole=SEQ_FIRST)),
    "depths first": (Form(), joined(axis=0, each=permuted(3, 0, 1, 2), whole=permuted(1, 2, 3, 0))),
}
DECLINED: dict[str, tuple[Form, Step]] = {
    "a context that is scaled": (Form(), joined(first=steps.binary("Mul", 2.0))),
    "a context that others read": (Form(), joined(read="context")),
    "a context that is joined to the values": (Form(), joined((0, 1, 2, 3), beside=True)),
    "one context twice": (Form(), joined((0, 0))),
    "contexts as heads": (Form(), joined(axis=1)),
    "contexts of all heads": (
        Form(),
        joined(
            axis=2,
            each=lambda w, v: w.b.reshape(w.b.transpose(v, 0, 2, 1, 3), "B", "S", -1),
            whole=lambda w, v: w.b.transpose(
                w.b.reshape(v, "B", "S", NUM_HEADS, w.value_dim), 0, 2, 1, 3
            ),
        ),
    ),
    "contexts as rows": (
        Form(),
        joined(axis=2, whole=lambda w, v: w.b.reshape(v, "B", w.kv_heads, "S", -1)),
    ),
    "contexts one behind the other": (
        Form(),
        joined(
            axis=3,
            each=lambda w, v: w.b.unsqueeze(v, 3),
            whole=lambda w, v: w.b.reshape(v, "B", w.kv_heads, "S", -1),
        ),
    ),
    "values that no projection makes": (Form(extra="raw_values"), joined()),
}


@pytest.mark.parametrize("name", FUSED)
def test_products_side_by_side_are_one(name: str) -> None:
    form, product = FUSED[name]
    masks = ("attn_bias",) if form.mask == "padding" else ()
    check_fused(twin(form, product=product), (*VALUE[:7], *masks, *VALUE[7:]))


def test_keys_that_heads_of_joined_values_share_are_projected_once() -> None:
    operands = ("hidden", "key", "value", "q_weight", "q_bias", "out_weight", "out_bias")
    check_fused(twin(Form(heads="gqa_expand"), product=joined()), operands)


@pytest.mark.parametrize("name", DECLINED)
def test_what_does_not_stand_side_by_side_is_declined(name: str) -> None:
    form, product = DECLINED[name]
    check_declined(lambda: twin(form, product=product), Code.SEVERAL_PRODUCTS)


def test_weights_that_are_read_stay_in_two_products() -> None:
    check_declined(lambda: twin(product=joined(read="weights")), Code.WEIGHTS_READ)
