"""Two values are the same tensor exactly where numpy has the same numbers in both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.ir.load import load
from tests.analysis.samples.builder import Builder
from tests.analysis.samples.view_chains import (
    ANYWAY,
    EXAMPLES,
    NESTED,
    REGULAR,
    Chain,
    start,
    step,
    value_named,
)


@st.composite
def branches(draw: st.DrawFn, kinds: tuple[str, ...]) -> tuple[Chain, Chain]:
    """Draw two chains of views from one input, in one graph, that end in tensors of one shape."""
    first = start(draw(NESTED))
    second = Chain(first.builder, first.names[:], first.arrays[:])
    for chain in (first, second):
        for _ in range(draw(st.integers(1, 3))):
            usable = kinds if 1 in chain.last.shape else tuple({*kinds} - {"squeeze", "expand"})
            step(draw, chain, draw(st.sampled_from(sorted(usable))))
    assume(first.last.size == second.last.size)
    shape = first.last.shape
    second.add(second.builder.reshape(second.names[-1], *shape), second.last.reshape(shape))
    return first, second


def are_same(first: Chain, second: Chain) -> bool:
    ends = (first.names[-1], second.names[-1])
    model = load(first.builder.model(*ends, rank=first.last.ndim, dtype=7))
    views = Views(Space(), Shapes(model))
    ref = views.ref(value_named(model, ends[0]))
    assert ref is not None
    return views.same(ref, Ref(value_named(model, ends[1]), ref.index))


@EXAMPLES
@given(pair=branches(ANYWAY))
def test_what_is_called_the_same_is_the_same(pair: tuple[Chain, Chain]) -> None:
    first, second = pair
    if are_same(first, second):
        np.testing.assert_array_equal(first.last, second.last)


@EXAMPLES
@given(pair=branches(REGULAR))
def test_regular_views_are_the_same_exactly_where_numpy_has_the_same(
    pair: tuple[Chain, Chain],
) -> None:
    first, second = pair
    assert are_same(first, second) == np.array_equal(first.last, second.last)


@pytest.mark.parametrize(("number", "expected"), [(0.5, True), (0.25, False)])
def test_equal_constants_are_the_same(number: float, expected: bool) -> None:
    b = Builder({})
    ends = [b.op("Identity", b.const(np.full((2, 3), n, np.float32))) for n in (0.5, number)]
    model = load(b.model(*ends, rank=2))
    views = Views(Space(), Shapes(model))
    ref = views.ref(value_named(model, ends[0]))
    assert ref is not None
    assert views.same(ref, Ref(value_named(model, ends[1]), ref.index)) is expected
