"""Factors of queries, keys and scores whose product may be more than float32 holds."""

from __future__ import annotations

import numpy as np
import pytest

import onnx_fuse
from onnx_fuse.report import Code
from tests.analysis.samples.forms import HEAD_DIM
from tests.analysis.samples.graphs import Sample, Writer
from tests.analysis.samples.twins import twin
from tests.analysis.verdicts import ALL, KEY, OUT, check_declined, check_fused


def scaled_up(first: float, second: float) -> Sample:
    """Multiply small keys by one number, and their products with small queries by another one."""
    amounts = {"q": second, "k": first}

    def normed(w: Writer, value: str, part: str) -> str:
        small = w.random(HEAD_DIM) / np.float32(amounts[part])
        made = w.b.op("Mul", value, w.b.const(small))
        return w.b.op("Mul", made, w.b.scalar(first)) if part == "k" else made

    def scored(w: Writer, query: str, key: str) -> str:
        product = w.b.op("MatMul", query, w.b.transpose(key, 0, 1, 3, 2))
        return w.b.op("Mul", product, w.b.scalar(second))

    return twin(normed=normed, scored=scored)


def scaled_twice(first: float, second: float, *, is_fused: bool) -> Sample:
    """Multiply the product by two numbers, of which the first may be the product's own factor."""

    def scored(w: Writer, query: str, key: str) -> str:
        key = w.b.transpose(key, 0, 1, 3, 2)
        if is_fused:
            made = w.b.op("FusedMatMul", query, key, alpha=first, domain="com.microsoft")
        else:
            made = w.b.op("Mul", w.b.op("MatMul", query, key), w.b.scalar(first))
        return w.b.op("Mul", made, w.b.scalar(second))

    return twin(scored=scored)


@pytest.mark.parametrize(
    ("first", "second", "expected"), [(1e18, 1e18, (*ALL, *OUT)), (1e20, 1e20, KEY)]
)
def test_factor_stays_outside_where_the_scale_would_be_infinite(
    first: float, second: float, expected: tuple[str, ...]
) -> None:
    check_fused(scaled_up(first, second), expected)


@pytest.mark.parametrize("is_fused", [False, True])
def test_scale_that_float32_holds_is_fused_whatever_its_factors(is_fused: bool) -> None:
    result = onnx_fuse.fuse(scaled_twice(1e-20, 1e20, is_fused=is_fused).model, threshold=None)
    assert result.report.num_fused == 1


@pytest.mark.parametrize(
    ("is_fused", "code"), [(False, Code.SCALE_NOT_SCALAR), (True, Code.UNSUPPORTED_ATTRIBUTE)]
)
def test_scale_that_float32_does_not_hold_is_declined(is_fused: bool, code: Code) -> None:
    check_declined(lambda: scaled_twice(1e20, 1e20, is_fused=is_fused), code)


def test_quotient_that_float32_does_not_hold_is_no_factor() -> None:
    """1e-45 is a float32 number of which the inverse is none."""

    def scored(w: Writer, query: str, key: str) -> str:
        product = w.b.op("MatMul", query, w.b.transpose(key, 0, 1, 3, 2))
        return w.b.op("Div", product, w.b.scalar(1e-45))

    check_declined(lambda: twin(scored=scored), Code.SCALE_NOT_SCALAR)
