"""The view algebra says of every element where it comes from exactly as numpy does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx.parser
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnx_fuse.analysis.algebra.axes import (
    ONE,
    Atom,
    Axis,
    Fixed,
    Index,
    Lookup,
    Range,
    evaluate,
    fixed,
    index_atoms,
    size,
)
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import Dim, truncated_quotient
from onnx_fuse.analysis.dims.order import maximum
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.ir.load import load
from onnx_fuse.ir.model import Model
from tests.analysis.samples.builder import Array, Builder
from tests.analysis.samples.view_chains import (
    ANY,
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
from tests.sessions import plain_session


def numbers(space: Space, ref: Ref, order: tuple[Atom, ...], shape: tuple[int, ...]) -> Array:
    """Return which element of `ref.value` is read, for each element of a tensor of this shape.

    `order` are the atoms of that tensor, in its order.
    """
    extents = [atom.extent.as_int() or 0 for atom in order]
    values = dict(zip(order, lanes(extents), strict=True))
    place = [evaluate(axis, values) for axis in space.resolve_index(ref.index)]
    known = [size(axis).as_int() or 0 for axis in space.resolve_index(ref.index)]
    flat = np.ravel_multi_index([*np.broadcast_arrays(*place)], known) if place else np.array(0)
    return np.broadcast_to(flat, math.prod(shape)).reshape(shape)


def lanes(extents: list[int]) -> list[Array]:
    """Return the digits of 0, 1, 2, .. in the mixed radix `extents`, a vector for each digit."""
    return list(np.unravel_index(np.arange(math.prod(extents)), extents)) if extents else []


def pulled(views: Views, ref: Ref, source: Value) -> Ref | None:
    """Pull up to the source; None where a step isn't understood."""
    while ref.value is not source:
        below = views.pull(ref)
        if below is None:
            return None
        ref = below
    return ref


def pushed(views: Views, ref: Ref, model: Model) -> Ref:
    """Push down through all nodes of a chain."""
    for node in list(model.graph.nodes):
        following = views.push(ref, node)
        assert following is not None
        ref = following
    return ref


@EXAMPLES
@given(chain=chains())
def test_pulled_index_is_where_numpy_reads_or_is_refused(chain: Chain) -> None:
    model, views = opened(chain)
    source = model.graph.inputs[0]
    top = views.ref(value_named(model, chain.names[-1]))
    assert top is not None
    found = pulled(views, top, source)
    assume(found is not None)
    assert found is not None
    order = index_atoms(views.space.resolve_index(top.index))
    read = numbers(views.space, found, order, chain.last.shape)
    np.testing.assert_array_equal(read, chain.last)


@EXAMPLES
@given(chain=chains())
def test_numpy_is_what_onnxruntime_computes(chain: Chain) -> None:
    model = chain.builder.model(chain.names[-1], rank=chain.last.ndim, dtype=7)
    (found,) = plain_session(model).run(None, chain.builder.feeds)
    np.testing.assert_array_equal(found, chain.last)


@pytest.mark.parametrize("kind", CHOOSING)
@EXAMPLES
@given(data=st.data())
def test_single_choosing_view_is_understood(kind: str, data: st.DataObject) -> None:
    chain = start(data.draw(ANY))
    assume(kind != "expand" or 1 in chain.last.shape)
    step(data.draw, chain, kind)
    model, views = opened(chain)
    top = views.ref(value_named(model, chain.names[-1]))
    assert top is not None
    found = pulled(views, top, model.graph.inputs[0])
    assert found is not None
    order = index_atoms(views.space.resolve_index(top.index))
    np.testing.assert_array_equal(numbers(views.space, found, order, chain.last.shape), chain.last)


@pytest.mark.parametrize(
    "nodes",
    [
        "i = Constant <value = int64[1, 2] {1, 0}> () y = GatherND (x, i)",
        "i = Constant <value = int64[2, 1] {1, 0}> () y = GatherND <batch_dims = 1> (x, i)",
        "n = Constant <value_int = 1>() i = Neg (n) p = SplitToSequence(x, n) y = SequenceAt(p, i)",
    ],
    ids=["element by two indices", "row of each batch", "part counted from the end"],
)
def test_choosing_view_of_another_kind_is_refused(nodes: str) -> None:
    text = f'<ir_version: 8, opset_import: ["": 17]> g (int64[2,3] x) => (int64[n] y) {{ {nodes} }}'
    model = load(onnx.parser.parse_model(text))
    views = Views(Space(), Shapes(model))
    top = views.ref(value_named(model, "y"))
    assert top is not None
    assert views.pull(top) is None


@pytest.mark.parametrize(
    ("attributes", "part"),
    [
        ("starts = [1], ends = [3], axes = [1]", np.s_[:, 1:3]),
        ("starts = [-2], ends = [3], axes = [-1]", np.s_[:, -2:3]),
        ("starts = [1, 0], ends = [2, 2]", np.s_[1:2, :2]),
    ],
)
def test_slice_by_attributes_is_understood(attributes: str, part: tuple[slice, ...]) -> None:
    header = '<ir_version: 8, opset_import: ["": 9]> g (int64[2,3] x) => (int64[n,m] y)'
    model = load(onnx.parser.parse_model(f"{header} {{ y = Slice <{attributes}> (x) }}"))
    views, expected = Views(Space(), Shapes(model)), np.arange(6).reshape(2, 3)[part]
    top = views.ref(value_named(model, "y"))
    assert top is not None
    found = views.pull(top)
    assert found is not None
    order = index_atoms(views.space.resolve_index(top.index))
    np.testing.assert_array_equal(numbers(views.space, found, order, expected.shape), expected)


@EXAMPLES
@given(chain=chains(NESTED, REGULAR))
def test_pushed_index_is_where_numpy_puts(chain: Chain) -> None:
    model, views = opened(chain)
    ref = views.ref(model.graph.inputs[0])
    assert ref is not None
    below = pushed(views, ref, model)
    order = index_atoms(views.space.resolve_index(ref.index))
    where = numbers(views.space, below, order, chain.arrays[0].shape)
    np.testing.assert_array_equal(chain.last.ravel()[where], chain.arrays[0])


@EXAMPLES
@given(chain=chains(NESTED, REGULAR))
def test_pull_undoes_push(chain: Chain) -> None:
    model, views = opened(chain)
    source = model.graph.inputs[0]
    start = views.ref(source)
    assert start is not None
    back = pulled(views, pushed(views, start, model), source)
    assert back is not None
    resolve = views.space.resolve_index
    assert resolve(back.index) == resolve(start.index)


@EXAMPLES
@given(chain=chains(NESTED, REGULAR))
def test_splits_hold_for_every_tensor_that_mentions_the_atom(chain: Chain) -> None:
    model, views = opened(chain)
    source = model.graph.inputs[0]
    top = views.ref(value_named(model, chain.names[-1]))
    assert top is not None
    steps: list[Ref] = [top]
    while steps[-1].value is not source:
        below = views.pull(steps[-1])
        assert below is not None
        steps.append(below)
    order = index_atoms(views.space.resolve_index(top.index))
    for ref in steps:  # also those that were made before an atom was cut
        array = chain.arrays[chain.names.index(ref.value.name)]
        where = numbers(views.space, ref, order, chain.last.shape)
        np.testing.assert_array_equal(array.ravel()[where], chain.last)


# Extents that are symbols -------------------------------------------------------------------------

SYMBOLIC: dict[str, tuple[Any, ...]] = {
    "heads": (("B", "S", 12), [("reshape", "B", "S", 4, 3), ("transpose", 0, 2, 1, 3)]),
    "folded": (("B", "S", 4, 3), [("transpose", 0, 2, 1, 3), ("reshape", ("B", 4), "S", 3)]),
    "unfolded": (
        ("B", "S", 12),
        [
            ("reshape", "B", "S", 4, 3),
            ("transpose", 0, 2, 1, 3),
            ("reshape", ("B", 4), "S", 3),
            ("reshape", "B", 4, "S", 3),
            ("transpose", 0, 2, 1, 3),
            ("reshape", ("B", "S"), 12),
        ],
    ),
    "rows": (("B", "S", 12), [("reshape", ("B", "S"), 12), ("reshape", "B", "S", 2, 6)]),
    "merged": (("S", "B", 6), [("reshape", "S", ("B", 2), 3), ("transpose", 1, 0, 2)]),
}


@pytest.mark.parametrize("name", SYMBOLIC)
@pytest.mark.parametrize("is_pushed", [False, True], ids=["pull", "push"])
def test_symbolic_views_are_numpys_for_any_size(name: str, is_pushed: bool) -> None:
    shape, steps = SYMBOLIC[name]
    sizes = {"B": 2, "S": 5}
    b = Builder(sizes, dynamic="BS")
    data = np.arange(math.prod(sizes.get(d, d) for d in shape)).reshape(
        [sizes.get(d, d) for d in shape]
    )
    value = b.input("x", data, shape)
    array = data
    for kind, *arguments in steps:
        if kind == "reshape":
            value = b.reshape(value, *arguments)
            array = array.reshape([_number(d, sizes) for d in arguments])
        else:
            value = b.transpose(value, *arguments)
            array = array.transpose(arguments)
    model = load(b.model(value, rank=array.ndim, dtype=7))
    views = Views(Space(), Shapes(model))
    top, source = value_named(model, value), model.graph.inputs[0]
    ref = _across(views, model, source if is_pushed else top, is_pushed)
    order = index_atoms(ref[0].index)
    values = dict(zip(order, lanes([a.extent.evaluate(sizes) or 0 for a in order]), strict=True))
    flat = _flat(ref[1].index, values, sizes)
    if is_pushed:
        np.testing.assert_array_equal(array.ravel()[flat].reshape(data.shape), data)
    else:
        np.testing.assert_array_equal(flat.reshape(array.shape), array)


def _number(dim: Any, sizes: dict[str, int]) -> int:
    parts = dim if isinstance(dim, tuple) else (dim,)
    return math.prod(sizes.get(part, part) for part in parts)


def _across(views: Views, model: Model, value: Value, is_pushed: bool) -> tuple[Ref, Ref]:
    """Return a ref to the whole value, and the same elements at the other end of the chain."""
    first = views.ref(value)
    assert first is not None
    ref = first
    for node in _chain(model) if is_pushed else reversed(_chain(model)):
        following = views.push(ref, node) if is_pushed else views.pull(ref)
        assert following is not None
        ref = following
    return first.resolve(views.space), ref.resolve(views.space)


def _chain(model: Model) -> list[Node]:
    return [node for node in model.graph.nodes if node.op in ("Reshape", "Transpose")]


def _flat(index: Index, values: dict[Atom, Array], sizes: dict[str, int]) -> Array:
    """Evaluate an index of atoms alone, whose extents are symbols."""
    total = np.int64(0)
    for axis in index:
        for digit in axis:
            assert isinstance(digit, Atom)
            total = total * (digit.extent.evaluate(sizes) or 0) + values[digit]
    return np.asarray(total)


@pytest.mark.parametrize("target", ["n", "m"])
def test_expand_of_an_unknown_extent_is_a_view_only_if_it_keeps_it(target: str) -> None:
    b = Builder({"n": 1, "m": 3}, dynamic="nm")
    value = b.input("x", np.arange(4).reshape(1, 4), ("n", 4))
    b.input("other", np.arange(3), ("m",))
    wide = b.op("Expand", value, b.shape((target, 4)))
    model = load(b.model(wide, rank=2, dtype=7))
    views = Views(Space(), Shapes(model))
    top = views.ref(value_named(model, wide))
    assert top is not None
    assert (views.pull(top) is not None) == (target == "n")


# Small cases that a random chain seldom meets -----------------------------------------------------


def atom(extent: int | str) -> Atom:
    return Atom(Dim.of(extent) if isinstance(extent, int) else Dim.symbol(extent))


def test_axis_of_extent_one_has_no_digits() -> None:
    space = Space()
    assert space.atom(ONE) == ()
    assert fixed(0, ONE) == ()
    assert size(()) == ONE


def test_reshape_across_a_symbol_needs_proof() -> None:
    space = Space()
    (axis,) = space.atom(Dim.symbol("n"))
    assert space.regroup(((axis,),), (Dim.of(2), Dim.symbol("m"))) is None


def test_reshape_cuts_a_symbol_where_the_quotient_is_exact() -> None:
    space = Space()
    index = (space.atom(Dim.symbol("n") * Dim.of(4)),)
    parts = space.regroup(index, (Dim.symbol("n"), Dim.of(4)))
    assert parts is not None
    assert [str(size(axis)) for axis in parts] == ["n", "4"]
    assert space.resolve(index[0]) == (*parts[0], *parts[1])


def test_reshape_to_another_number_of_elements_is_refused() -> None:
    space = Space()
    index = (space.atom(Dim.of(6)),)
    assert space.regroup(index, (Dim.of(4),)) is None
    assert space.regroup(index, (Dim.of(3),)) is None


def test_equal_symbols_are_known_from_then_on() -> None:
    space = Space()
    assert space.equate(Dim.symbol("n"), Dim.symbol("m"))
    assert space.known(Dim.symbol("n")) == space.known(Dim.symbol("m"))
    assert space.equate(Dim.symbol("m"), Dim.of(4))
    assert space.known(Dim.symbol("n")) == Dim.of(4)
    assert not space.equate(Dim.symbol("n"), Dim.of(5))


@pytest.mark.parametrize("succeeds", [True, False])
def test_reading_that_fails_teaches_nothing(succeeds: bool) -> None:
    space, n = Space(), Dim.symbol("n")
    axis = space.atom(n * Dim.of(4))

    def reads() -> bool | None:
        assert space.equate(n, Dim.symbol("m"), is_assumed=True)
        assert space.regroup((axis,), (Dim.symbol("m"), Dim.of(4))) is not None
        return succeeds or None

    assert space.tried(reads) == (succeeds or None)
    assert len(space.equations) == succeeds
    assert (space.known(n) == space.known(Dim.symbol("m"))) == succeeds
    assert len(space.resolve(axis)) == 1 + succeeds


@pytest.mark.parametrize("is_first", [True, False])
def test_lengths_rounded_towards_zero_are_taken_for_those_rounded_down(is_first: bool) -> None:
    space, frames = Space(), Dim.symbol("frames")
    down = (frames - 3) // 2 + 1
    other = maximum(truncated_quotient(frames - 3, Dim.of(2)) + 1, 0)
    assert space.equate(*((down, other) if is_first else (other, down)))
    assert (space.known(other), space.known(down)) == (down, down)


def test_factors_of_two_products_are_equated_where_those_of_one_are_the_greater() -> None:
    space = Space()
    batch, other, seq, length = map(Dim.symbol, ("batch", "other", "seq", "length"))
    batches, rows = maximum(batch, other), maximum(seq, length)
    assert space.equate(batch * seq * seq * 4, batches * rows * rows * 4)
    assert (space.known(batches), space.known(rows)) == (batch, seq)
    assert not Space().equate(batch * seq * seq * 4, batches * rows * 4)


def test_different_numbers_are_never_equated() -> None:
    assert not Space().equate(Dim.of(4), Dim.of(5))


@pytest.mark.parametrize(
    ("start_at", "step_by", "count", "extent"),
    [(0, 1, 6, 6), (2, 1, 3, 6), (1, 2, 3, 6), (0, 3, 2, 6), (1, 2, 2, 7), (4, 1, 2, 6)],
)
def test_range_is_arithmetic(start_at: int, step_by: int, count: int, extent: int) -> None:
    space = Space()
    inner = space.atom(Dim.of(count))
    axis: Axis = space.ranged(inner, Dim.of(start_at), step_by, Dim.of(extent))
    values = {atom: np.arange(count) for atom in index_atoms((inner,))}
    assert size(axis) == Dim.of(extent)
    np.testing.assert_array_equal(evaluate(axis, values), start_at + step_by * np.arange(count))


@pytest.mark.parametrize("start_at", [0, 4, 8])
def test_range_of_whole_heads_is_cut_by_heads(start_at: int) -> None:
    space = Space()
    inner = (*space.atom(Dim.of(1)), *space.atom(Dim.of(4)))
    axis = space.ranged(inner, Dim.of(start_at), 1, Dim.of(12))
    parts = space.regroup((axis,), (Dim.of(3), Dim.of(4)))
    assert parts is not None
    (chosen,) = parts[0]
    assert isinstance(chosen, Fixed)
    assert int(chosen.index) == start_at // 4


def test_range_across_heads_is_not_cut() -> None:
    space = Space()
    axis = (Range(space.atom(Dim.of(4)), Dim.of(2), 1, Dim.of(12)),)
    assert space.regroup((axis,), (Dim.of(3), Dim.of(4))) is None


def test_range_of_whole_heads_of_an_open_number_is_cut_by_heads() -> None:
    space, n = Space(), Dim.symbol("n")
    axis = (Range(space.atom(n * 4 - 4), Dim.of(4), 1, n * 4),)
    parts = space.regroup((axis,), (n, Dim.of(4)))
    assert parts is not None
    (chosen,), (lane,) = parts
    assert isinstance(chosen, Range)
    assert (chosen.start, size(chosen.inner), lane.extent) == (ONE, n - 1, Dim.of(4))


def test_first_place_of_an_open_axis_is_the_first_of_its_parts() -> None:
    space, shape = Space(), (Dim.symbol("n"), Dim.symbol("m"))
    first, second = (space.regroup((fixed(at, shape[0] * shape[1]),), shape) for at in (0, 1))
    assert first is not None
    assert [int(evaluate(axis, {})) for axis in first] == [0, 0]
    assert second is None  # whose place is the number of columns, if there is one


@pytest.mark.parametrize(("table", "is_same"), [([3, 0, 2], True), ([3, 1, 2], False)])
def test_tables_match_where_they_are_the_same(table: list[int], is_same: bool) -> None:
    space, extent = Space(), Dim.of(4)
    own, other = (space.atom(Dim.of(3)) for _ in range(2))
    index = ((Lookup(own, np.array([3, 0, 2]), extent),),)
    found = space.match(index, ((Lookup(other, np.array(table), extent),),), free=own)
    assert found == (other if is_same else None)


@pytest.mark.parametrize(
    ("extents", "is_known"),
    [((1, 8), True), (("n", 8), True), (("m", 8), True), ((2, 8), False), (("n", "m"), True)],
)
def test_a_number_beside_a_name_is_not_claimed(
    extents: tuple[int | str, ...], is_known: bool
) -> None:
    """But for the last axis, where the operator refuses what broadcasts in no graph."""
    b = Builder({"n": 3, "m": 3}, dynamic="nm")
    value = b.input("x", np.zeros((3, 8), np.float32), ("n", 8))
    b.input("y", np.zeros([3 if isinstance(dim, str) else dim for dim in extents]), extents)
    model = load(b.model(value, rank=2))
    views = Views(Space(), Shapes(model))
    index = tuple(views.space.atom(extent) for extent in (Dim.symbol("n"), Dim.of(8)))
    assert (views.beside(index, model.graph.inputs[1]) is not None) == is_known
