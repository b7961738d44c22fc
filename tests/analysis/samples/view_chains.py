"""Random chains of views, with what numpy makes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from hypothesis import Phase, assume, settings
from hypothesis import strategies as st

from onnx_fuse.analysis.algebra.space import Space
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.shapes.shapes import Shapes
from onnx_fuse.ir.graph import Value
from onnx_fuse.ir.load import load
from onnx_fuse.ir.model import Model
from tests.analysis.samples.builder import Array, Builder

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
        case "gather_nd":
            drawn = draw(st.lists(st.integers(-len(data), len(data) - 1), min_size=1, max_size=3))
            chain.add(b.op("GatherND", name, b.const([[n] for n in drawn], np.int64)), data[drawn])
        case "sequence":
            first = draw(st.integers(1, extent))
            is_even = first == extent or draw(st.booleans())
            apart = np.split(data, range(first, extent, first) if is_even else [first], axis)
            sizes = first if is_even else [part.shape[axis] for part in apart]
            split = b.const(sizes, np.int64)
            which = draw(st.integers(0, len(apart) - 1))
            parts = b.op("SplitToSequence", name, split, axis=axis)
            chain.add(b.op("SequenceAt", parts, b.const(which, np.int64)), apart[which])
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
        case _:
            join(draw, chain, kind, axis, extent)


def join(draw: st.DrawFn, chain: Chain, kind: str, axis: int, extent: int) -> None:
    """Add other numbers, all of them -1, along an axis, and cut some of all off again."""
    b, name, data = chain.builder, chain.names[-1], chain.last
    before, behind = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    pads = [(before, behind) if at == axis else (0, 0) for at in range(data.ndim)]
    wide = np.pad(data, pads, constant_values=-1)
    match kind:
        case "pad":
            amounts = b.const([number for ends in zip(*pads, strict=True) for number in ends])
            chain.add(b.op("Pad", name, amounts, b.const(-1, np.int64)), wide)
        case "beside":
            parts = [
                b.const(np.full((*data.shape[:axis], count, *data.shape[axis + 1 :]), -1))
                for count in (before, behind)
            ]
            chain.add(b.op("Concat", parts[0], name, parts[1], axis=axis), wide)
        case "written":
            places = np.moveaxis(np.indices(data.shape[: axis + 1]), 0, -1)
            places[..., axis] += before
            others = b.const(np.full(wide.shape, -1))
            chain.add(b.op("ScatterND", others, b.const(places), name), wide)
        case "overwritten":
            first = draw(st.integers(0, extent - 1))
            run = np.arange(first, draw(st.integers(first + 1, extent)))
            perm = [axis, *(other for other in range(data.ndim) if other != axis)]
            made, axis = data.transpose(perm).copy(), 0
            others = b.const(np.full((len(run), *made.shape[1:]), -1))
            made[run] = -1
            turned = b.transpose(name, *perm)
            chain.add(b.op("ScatterND", turned, b.const(run[:, None]), others), made)
    choose(draw, chain, "slice", axis, chain.last.shape[axis])


REGULAR = ("reshape", "transpose", "unsqueeze", "squeeze", "flatten", "identity")
CHOOSING = (*("slice", "split", "gather", "gather_nd", "sequence", "expand", "tile", "concat"),)
JOINING = ("pad", "beside", "written", "overwritten")
# The last ones are understood only where they move a digit, or a part is of the chain alone.
ANYWAY = (*REGULAR, *CHOOSING, "rejoin", *JOINING)


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
