"""Keys and values of some positions: as many as the slices leave."""

from __future__ import annotations

from itertools import product

import pytest

import onnx_fuse
from tests.analysis.check import fused_nodes
from tests.analysis.samples.forms import Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.twins import ROWS, Step, twin
from tests.analysis.verdicts import check_same

SLICES = [(a, b, step) for a, b, step in product(range(3), range(2, ROWS + 1), (2, 3)) if a < b]
END = 1 << 31


def positions(*slices: tuple[int, int, int]) -> Step:
    """Take slices of the keys' positions, and of the values'."""

    def operands(w: Writer) -> tuple[str, str, str]:
        query, *others = Writer.operands_of_product(w)
        key, value = (
            w.b.slice(operand, start, stop, 2, step)
            for operand, (start, stop, step) in zip(others, slices, strict=True)
        )
        return query, key, value

    return operands


@pytest.mark.parametrize("dims", ["static", "dynamic"])
@pytest.mark.parametrize("places", SLICES)
def test_slice_of_keys_and_values_is_theirs(places: tuple[int, int, int], dims: str) -> None:
    sample = twin(Form(dims=dims), operands_of_product=positions(places, places))
    model = onnx_fuse.fuse(sample.model, threshold=None).model
    assert len(fused_nodes(model)) == 1
    check_same(sample, model)


@pytest.mark.parametrize("dims", ["static", "dynamic"])
def test_other_values_than_keys_are_as_many(dims: str) -> None:
    sample = twin(Form(dims=dims), operands_of_product=positions((0, 4, 2), (1, END, 2)))
    model = onnx_fuse.fuse(sample.model, threshold=None).model
    assert len(fused_nodes(model)) == 1
    check_same(sample, model)
