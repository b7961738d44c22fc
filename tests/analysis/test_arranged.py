"""What a rewrite computes of a tensor read through views is what those views make of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnx_fuse.analysis.algebra.arrange import arranged
from onnx_fuse.analysis.algebra.expr import Call, Expr
from onnx_fuse.analysis.algebra.extents import Extents
from onnx_fuse.analysis.shapes.fold_rules import Known, folded
from onnx_fuse.ir.graph import Value
from tests.analysis.samples.builder import Array
from tests.analysis.samples.view_chains import (
    CHOOSING,
    EXAMPLES,
    NESTED,
    REGULAR,
    Chain,
    chains,
    opened,
    start,
    step,
    value_named,
)

OPSET, OLD_OPSET = 17, 9
LONG = st.lists(st.sampled_from((1, 5, 9)), min_size=1, max_size=2).map(tuple)


def computed(expr: Expr, source: Value, data: Array, opset: int = OPSET) -> Array:
    """Evaluate an expression of one tensor."""
    if isinstance(expr, Value):
        assert expr is source
        return data
    if not isinstance(expr, Call):
        return np.asarray(expr)
    given = tuple(computed(part, source, data, opset) for part in expr.inputs)
    return np.asarray(folded(Known(expr.op_type, given, dict(expr.attributes), opset))[0])


def slices(expr: Expr) -> list[Call]:
    """Return each Slice of an expression."""
    if not isinstance(expr, Call):
        return []
    own = [expr] if expr.op_type == "Slice" else []
    return own + [found for part in expr.inputs for found in slices(part)]


def check_arranged(chain: Chain, opset: int = OPSET) -> Expr:
    model, views = opened(chain)
    source = model.graph.inputs[0]
    top = views.ref(value_named(model, chain.names[-1]))
    assert top is not None
    found = next((ref for ref in views.chain(top) if ref.value is source), None)
    assume(found is not None)
    assert found is not None
    groups = views.space.resolve_index(top.index)
    extents = Extents(views, (source,), opset=opset)
    made = arranged(source, found.index, groups, extents, whole=[True] * len(groups))
    assume(made is not None)
    assert made is not None
    np.testing.assert_array_equal(computed(made, source, chain.arrays[0], opset), chain.last)
    return made


def one_view(kind: str, data: st.DataObject) -> Chain:
    chain = start(data.draw(LONG))
    assume(kind != "expand" or 1 in chain.last.shape)
    step(data.draw, chain, kind)
    return chain


@EXAMPLES
@given(chain=chains())
def test_what_is_arranged_is_what_the_views_make(chain: Chain) -> None:
    check_arranged(chain)


@EXAMPLES
@given(chain=chains(NESTED, REGULAR))
def test_what_is_arranged_of_regular_views_is_what_they_make(chain: Chain) -> None:
    check_arranged(chain)


@pytest.mark.parametrize("kind", CHOOSING)
@EXAMPLES
@given(data=st.data())
def test_what_is_arranged_of_one_view_is_what_it_makes(kind: str, data: st.DataObject) -> None:
    check_arranged(one_view(kind, data))


@pytest.mark.parametrize("kind", CHOOSING)
@EXAMPLES
@given(data=st.data())
def test_slices_of_an_old_opset_have_plain_bounds(kind: str, data: st.DataObject) -> None:
    for made in slices(check_arranged(one_view(kind, data), OLD_OPSET)):
        *bounds, stride = made.inputs[1:]
        assert all(isinstance(bound, np.ndarray) for bound in bounds)
        assert stride == 1
