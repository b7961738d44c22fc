"""The view algebra says of every element where it comes from exactly as numpy does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from onnx_fuse.analysis.axes import (
    ONE,
    Atom,
    Axis,
    Fixed,
    Index,
    Range,
    Space,
    evaluate,
    fixed,
    index_atoms,
    size,
)
from onnx_fuse.analysis.dims import Dim
from onnx_fuse.analysis.shapes import Shapes
from onnx_fuse.analysis.views import Ref, Views
from onnx_fuse.ir.graph import Node, Value
from onnx_fuse.ir.load import load
from onnx_fuse.ir.model import Model
from tests.analysis.builder import Array, Builder
from tests.analysis.check import plain_session

EXAMPLES = settings(
    max_examples=120, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate)
)
LARGEST = 400  # elements of a tensor


@dataclass
class Chain:
    """Views one after the other: each step's value with what numpy makes of arange."""

    builder: Builder
    names: list[str]
    arrays: list[Array]

    @property
    def last(self) -> Array:
        return self.arrays[-1]

    def add(self, name: str, array: Array) -> None:
        self.names.append(name)
        self.arrays.append(array)


def start(shape: tuple[int, ...]) -> Chain:
    data = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    builder = Builder({})
    return Chain(builder, [builder.input("x", data, shape)], [data])


def factors(draw: st.DrawFn, number: int) -> tuple[int, ...]:
    """Draw extents whose product is the number."""
    found = []
    while number > 1 and len(found) < 4:
        divisor = draw(st.sampled_from([d for d in range(2, number + 1) if number % d == 0]))
        found.append(divisor)
        number //= divisor
    found.append(number)
    for _ in range(draw(st.integers(0, 1))):
        found.insert(draw(st.integers(0, len(found))), 1)
    return tuple(found)


def step(draw: st.DrawFn, chain: Chain, kind: str) -> None:
    """Add one view of a kind."""
    b, name, data = chain.builder, chain.names[-1], chain.last
    axis = draw(st.integers(0, data.ndim - 1))
    extent = data.shape[axis]
    match kind:
        case "reshape":
            shape = factors(draw, data.size)
            chain.add(b.reshape(name, *shape), data.reshape(shape))
        case "transpose":
            perm = draw(st.permutations(range(data.ndim)))
            chain.add(b.transpose(name, *perm), data.transpose(perm))
        case "unsqueeze":
            chain.add(b.unsqueeze(name, axis), np.expand_dims(data, axis))
        case "squeeze":
            assume(1 in data.shape and data.ndim > 1)
            at = data.shape.index(1)
            chain.add(b.op("Squeeze", name, b.const([at], np.int64)), data.squeeze(at))
        case "flatten":
            shape = (math.prod(data.shape[:axis]), -1)
            chain.add(b.op("Flatten", name, axis=axis), data.reshape(shape))
        case "identity":
            chain.add(b.op("Identity", name), data)
        case _:
            choose(draw, chain, kind, axis, extent)


def choose(draw: st.DrawFn, chain: Chain, kind: str, axis: int, extent: int) -> None:
    """Add a view that repeats elements or leaves some out."""
    b, name, data = chain.builder, chain.names[-1], chain.last
    match kind:
        case "slice":
            first = draw(st.integers(0, extent - 1))
            stop, by = draw(st.integers(first + 1, extent)), draw(st.integers(1, 3))
            taken = np.take(data, range(first, stop, by), axis)
            negative = draw(st.booleans())
            bounds = (first - extent, stop) if negative else (first, stop)
            chain.add(b.slice(name, *bounds, axis, by), taken)
        case "split":
            assume(extent > 1)
            at = draw(st.integers(1, extent - 1))
            which = draw(st.integers(0, 1))
            parts = b.split(name, [at, extent - at], axis)
            chain.add(parts[which], np.split(data, [at], axis)[which])
        case "gather":
            count = draw(st.integers(0, 3))
            drawn = draw(st.lists(st.integers(-extent, extent - 1), min_size=1, max_size=3))
            index = np.array(drawn[0] if count == 0 else drawn, np.int64)
            taken = np.take(data, index, axis)
            assume(taken.ndim > 0)
            chain.add(b.op("Gather", name, b.const(index), axis=axis), taken)
        case "expand":
            assume(1 in data.shape)
            at = data.shape.index(1)
            shape = (*data.shape[:at], draw(st.integers(2, 3)), *data.shape[at + 1 :])
            chain.add(b.op("Expand", name, b.shape(shape)), np.broadcast_to(data, shape))
        case "tile":
            times = [draw(st.integers(1, 2)) for _ in data.shape]
            chain.add(b.op("Tile", name, b.const(times, np.int64)), np.tile(data, times))
        case "concat":
            count = draw(st.integers(1, 3))
            joined = np.concatenate([data] * count, axis)
            chain.add(b.op("Concat", *[name] * count, axis=axis), joined)
        case "rejoin":
            other, count = draw(st.integers(0, data.ndim - 1)), draw(st.integers(2, 4))
            assume(extent % count == 0)
            parts = b.split(name, [extent // count] * count, axis)
            order = draw(st.permutations(range(count)))
            apart = np.split(data, count, axis)
            joined = np.concatenate([apart[n] for n in order], other)
            chain.add(b.op("Concat", *[parts[n] for n in order], axis=other), joined)


REGULAR = ("reshape", "transpose", "unsqueeze", "squeeze", "flatten", "identity")
CHOOSING = ("slice", "split", "gather", "expand", "tile", "concat")
ANYWAY = (*REGULAR, *CHOOSING, "rejoin")  # the last is understood only where it moves a digit


def shapes(*extents: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.sampled_from(extents), min_size=2, max_size=4).map(tuple)


ANY = shapes(1, 2, 3, 4, 6)
# Powers of two divide each other: every reshape cuts whole atoms, so that none may be refused.
NESTED = shapes(1, 2, 4, 8)


@st.composite
def chains(
    draw: st.DrawFn,
    extents: st.SearchStrategy[tuple[int, ...]] = ANY,
    kinds: tuple[str, ...] = ANYWAY,
) -> Chain:
    chain = start(draw(extents))
    for _ in range(draw(st.integers(1, 6))):
        usable = kinds if 1 in chain.last.shape else tuple({*kinds} - {"squeeze", "expand"})
        step(draw, chain, draw(st.sampled_from(sorted(usable))))
        assume(chain.last.size <= LARGEST and chain.last.ndim <= 6)
    return chain


def opened(chain: Chain) -> tuple[Model, Views]:
    model = load(chain.builder.model(chain.names[-1], rank=chain.last.ndim, dtype=7))
    return model, Views(Space(), Shapes(model))


def value_named(model: Model, name: str) -> Value:
    made = [value for node in model.graph.nodes for value in node.outputs if value is not None]
    return next(value for value in (*model.graph.inputs, *made) if value.name == name)


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


@EXAMPLES
@given(chain=chains(NESTED, REGULAR))
def test_pushed_index_is_where_numpy_puts(chain: Chain) -> None:
    model, views = opened(chain)
    ref = views.ref(model.graph.inputs[0])
    assert ref is not None
    own = ref
    for node in list(model.graph.nodes):
        following = views.push(ref, node)
        assert following is not None
        ref = following
    order = index_atoms(views.space.resolve_index(own.index))
    where = numbers(views.space, ref, order, chain.arrays[0].shape)
    np.testing.assert_array_equal(chain.last.ravel()[where], chain.arrays[0])


@EXAMPLES
@given(chain=chains(NESTED, REGULAR))
def test_pull_undoes_push(chain: Chain) -> None:
    model, views = opened(chain)
    source = model.graph.inputs[0]
    start_ref = views.ref(source)
    assert start_ref is not None
    ref = start_ref
    for node in list(model.graph.nodes):
        following = views.push(ref, node)
        assert following is not None
        ref = following
    back = pulled(views, ref, source)
    assert back is not None
    resolve = views.space.resolve_index
    assert resolve(back.index) == resolve(start_ref.index)


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


# What is the same -------------------------------------------------------------------------------


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
    return [node for node in model.graph.nodes if node.op_type in ("Reshape", "Transpose")]


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
