"""Key and value heads that are repeated by a table, or by joining what is cut of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnx_fuse
from tests.analysis.check import fused_nodes
from tests.analysis.samples.forms import NUM_HEADS, Form
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.twins import Step, twin
from tests.analysis.verdicts import ALL, OUT, check_fused

EACH, ALL_OF_THEM, OTHER = (0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 1)


def gathered(*table: int) -> Step:
    def repeated(w: Writer, value: str, depth: int) -> str:
        return w.b.op("Gather", value, w.b.const(table, np.int64), axis=1)

    return repeated


def sliced(*table: int, changed: str = "") -> Step:
    """Join slices of one head each; the last one is changed by an operator."""

    def repeated(w: Writer, value: str, depth: int) -> str:
        heads = [w.b.slice(value, head, head + 1, 1) for head in table]
        if changed:
            heads[-1] = w.b.op(changed, heads[-1])
        return w.b.op("Concat", *heads, axis=1)

    return repeated


def cut(*table: int) -> Step:
    """Join parts of one Split."""

    def repeated(w: Writer, value: str, depth: int) -> str:
        heads = w.b.split(value, [1] * 2, 1)
        return w.b.op("Concat", *(heads[head] for head in table), axis=1)

    return repeated


def picked(*table: int) -> Step:
    """Join heads that are taken out one by one."""

    def repeated(w: Writer, value: str, depth: int) -> str:
        heads = [w.b.op("Gather", value, w.b.const(n, np.int64), axis=1) for n in table]
        return w.b.op("Concat", *(w.b.unsqueeze(head, 1) for head in heads), axis=1)

    return repeated


def halves(w: Writer, value: str, depth: int) -> str:
    """Both heads, and both again the other way round."""
    turned = w.b.op("Gather", value, w.b.const([1, 0], np.int64), axis=1)
    return w.b.op("Concat", value, turned, axis=1)


def of_two(w: Writer, value: str, depth: int) -> str:
    """Heads of a tensor, and those of what an activation makes of it."""
    heads = [w.b.slice(x, 0, 2, 1) for x in (value, w.b.op("Relu", value))]
    return w.b.op("Concat", *heads, axis=1)


def turned_lanes(w: Writer, value: str, depth: int) -> str:
    """Heads of which one has its lanes the other way round."""
    heads = [w.b.slice(value, head, head + 1, 1) for head in EACH]
    order = w.b.const(np.arange(depth)[::-1], np.int64)
    heads[-1] = w.b.op("Gather", heads[-1], order, axis=3)
    return w.b.op("Concat", *heads, axis=1)


REPEATED = {"gathered": gathered, "sliced": sliced, "cut": cut, "picked": picked}


def made(step: Step, dims: str = "static") -> Sample:
    return twin(Form(heads="gqa_expand", dims=dims), repeated=step)


def kv_heads(sample: Sample) -> int:
    (node,) = fused_nodes(onnx_fuse.fuse(sample.model, threshold=None).model)
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return int(found["kv_num_heads"])


@pytest.mark.parametrize("dims", ["static", "dynamic"])
@pytest.mark.parametrize("table", [EACH, ALL_OF_THEM, OTHER])
@pytest.mark.parametrize("name", REPEATED)
def test_repeated_heads_are_projected_once(name: str, table: tuple[int, ...], dims: str) -> None:
    sample = made(REPEATED[name](*table), dims)
    check_fused(sample, (*ALL, *OUT))
    assert kv_heads(sample) == (NUM_HEADS if table is OTHER else 2)


def test_one_head_for_all_is_projected_once() -> None:
    sample = made(sliced(1, 1, 1, 1))
    check_fused(sample, (*ALL, *OUT))
    assert kv_heads(sample) == 1


def test_heads_in_another_order_are_projected() -> None:
    check_fused(made(halves), (*ALL, *OUT))


@pytest.mark.parametrize("step", [sliced(*EACH, changed="Relu"), of_two, turned_lanes])
def test_heads_of_several_tensors_or_orders_are_values(step: Step) -> None:
    check_fused(made(step), ("hidden", "key", "value", "q_weight", "q_bias", *OUT))
