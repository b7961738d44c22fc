"""Graphs in which one softmax runs over the scores of several sets of keys, joined before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import helper

from tests.analysis.samples.builder import Array, Builder
from tests.analysis.samples.graphs import Record, Sample

BATCH, HEADS, DEPTH, ROWS, OTHERS, LEARNED = 2, 3, 4, 6, 5, 3
HIDDEN = HEADS * DEPTH
TURNED = (0, 1, 3, 2)
Change = Callable[["KeySets", str], str]


@dataclass
class KeySets:
    """Writes the graph.

    sets: in order, of "own" (of the rows), "other", "learned", "cache" and "each row" (a key for
    each query).
    cut: how the weights are cut for the values of each set; not at all if these are joined.
    total: how the contexts are summed. `scores` changes those of the set that `of` names, `masks`
    those of each set, by its name.
    """

    sets: Sequence[str] = ("own", "other")
    factors: Sequence[float] = (1.0, 1.0, 1.0)
    cut: str = "Slice"
    total: str = "Add"
    of: str = "other"
    scores: Change | None = None
    masks: Mapping[str, Change] = field(default_factory=dict)
    query: Change | None = None
    joined: Change | None = None
    weights: Change | None = None
    context: Change | None = None
    keys: Change | None = None
    learned: int = LEARNED
    rows: int = ROWS
    ends: int = 0
    order: Sequence[int] = ()
    dynamic: str = ""
    shown: list[str] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    def sample(self) -> Sample:
        sizes = {"B": BATCH, "S": self.rows, "T": OTHERS}
        b = self.b = Builder(sizes, self.dynamic, 18)
        self.sources = {
            "own": b.input("x", self.random(BATCH, self.rows, HIDDEN), ("B", "S", HIDDEN)),
            "other": b.input("y", self.random(BATCH, OTHERS, HIDDEN), ("B", "T", HIDDEN)),
        }
        query = self.heads("own")
        keys, values = ([self.operand(name) for name in self.sets] for _ in "kv")
        count = len(keys)
        each = zip(self.sets, keys, self.factors[:count], strict=True)
        parts = [self.scored(query, *own) for own in each]
        made = b.op("Concat", *parts, axis=-1)
        made = b.op("Mul", self.joined(self, made) if self.joined else made, b.scalar(0.5))
        weights = b.op("Softmax", made, axis=-1)
        weights = self.weights(self, weights) if self.weights else weights
        context = b.transpose(self.product(weights, keys, values), 0, 2, 1, 3)
        merged = b.reshape(context, "B", "S", HIDDEN)
        output = b.op("MatMul", merged, b.const(self.random(HIDDEN, HIDDEN)))
        model = b.model(output)
        for name in self.shown:
            shape = (None,) * 4
            model.graph.output.append(helper.make_tensor_value_info(name, 1, shape))
        return Sample(model, b.feeds, Record())

    def random(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(np.float32)

    def heads(self, source: str) -> str:
        b, length = self.b, {"own": "S", "other": "T"}[source]
        made = b.op("MatMul", self.sources[source], b.const(self.random(HIDDEN, HIDDEN)))
        made = b.op("Add", made, b.const(self.random(HIDDEN)))
        return b.transpose(b.reshape(made, "B", length, HEADS, DEPTH), 0, 2, 1, 3)

    def operand(self, name: str) -> str:
        if name == "learned":
            return self.b.const(self.random(1, HEADS, self.learned, DEPTH))
        if name == "cache":
            data = self.random(BATCH, HEADS, OTHERS, DEPTH)
            return self.b.input(f"c{len(self.b.inputs)}", data, ("B", HEADS, "T", DEPTH))
        return self.heads("own" if name == "each row" else name)

    def scored(self, query: str, name: str, key: str, factor: float) -> str:
        b, is_changed = self.b, name == self.of
        query = self.query(self, query) if self.query and is_changed else query
        key = self.keys(self, key) if self.keys and is_changed else key
        if name == "each row":  # a key of its own
            made = b.reduce("ReduceSum", b.op("Mul", query, key), -1)
        else:
            made = b.op("MatMul", query, b.transpose(key, *TURNED))
        made = made if factor == 1.0 else b.op("Mul", made, b.scalar(factor))
        made = self.masks[name](self, made) if name in self.masks else made
        return self.scores(self, made) if self.scores and is_changed else made

    def product(self, weights: str, keys: Sequence[str], values: Sequence[str]) -> str:
        b = self.b
        if not self.cut:
            return b.op("MatMul", weights, b.op("Concat", *values, axis=2))
        parts = self.parts(weights, keys)
        order = self.order or range(len(parts))
        made = [
            b.op("Mul" if self.sets[at] == "each row" else "MatMul", parts[at], values[at])
            for at in order
        ]
        made[0] = self.context(self, made[0]) if self.context else made[0]
        if self.total == "Sum":
            return b.op("Sum", *made)
        total = made[0]
        for term in made[1:]:
            total = b.op(self.total, total, term)
        return total

    def parts(self, weights: str, keys: Sequence[str]) -> list[str]:
        """Cut the weights where the keys of a set end."""
        b = self.b
        lengths = [self.length(name, key) for name, key in zip(self.sets, keys, strict=True)]
        if self.cut == "Split":
            return b.ops(
                "Split", weights, b.op("Concat", *lengths, axis=0), count=len(keys), axis=3
            )
        stops = [lengths[0]]
        for length in lengths[1:]:
            stops.append(b.op("Add", stops[-1], length))
        bounds = [*zip([b.const([0], np.int64), *stops[:-1]], stops, strict=True)]
        cuts: dict[int, str] = {}
        for at in reversed(range(len(bounds))):  # the graph has the last one first
            start, stop = bounds[at]
            behind = b.op("Add", stop, b.const([self.ends], np.int64)) if self.ends else stop
            cuts[at] = b.op("Slice", weights, start, behind, b.const([3], np.int64))
        return [cuts[at] for at in range(len(bounds))]

    def length(self, name: str, key: str) -> str:
        number = {"own": self.rows, "other": OTHERS, "cache": OTHERS, "learned": self.learned}.get(
            name, 1
        )
        if not self.dynamic:
            return self.b.const([number], np.int64)
        return self.b.op("Gather", self.b.op("Shape", key), self.b.const([2], np.int64), axis=0)


def masked(w: KeySets, scores: str) -> str:
    return w.b.op("Add", scores, w.b.const(w.random(OTHERS)))


def added(*shape: int | str) -> Change:
    """Numbers of this shape, whose extents are given by name where they may be open."""

    def change(w: KeySets, scores: str) -> str:
        data = w.random(*(w.b.sizes.get(str(extent), extent) for extent in shape))
        return w.b.op("Add", scores, w.b.input(f"m{len(w.b.inputs)}", data, shape))

    return change


def added_by_name(w: KeySets, scores: str) -> str:
    """One number for all keys of a set, of which the graph doesn't say that it is one."""
    shape = ("B", 1, "R" if "R" in w.dynamic else 1, "M")
    return w.b.op("Add", scores, w.b.input("m", w.random(BATCH, 1, 1, 1), shape))


def hidden(fill: float, *, shows: bool, rank: int = 4) -> Change:
    """Keys that each batch hides, or shows, by a condition of its own."""

    def change(w: KeySets, scores: str) -> str:
        b = w.b
        data = w.rng.random((BATCH, 1, 1, OTHERS)[4 - rank :]) < 0.5
        asked = b.input(f"m{len(b.inputs)}", data, ("B", 1, 1, "T")[4 - rank :])
        return b.op("Where", asked, *((scores, b.scalar(fill))[:: 1 if shows else -1]))

    return change


def chosen_anew(w: KeySets, scores: str) -> str:
    """Numbers of their own instead of some scores."""
    asked = w.b.const(w.rng.random(OTHERS) < 0.5, np.bool_)
    return w.b.op("Where", asked, scores, w.b.const(w.random(OTHERS)))


def capped(w: KeySets, scores: str) -> str:
    return w.b.op("Tanh", scores)


def rounded(w: KeySets, scores: str) -> str:
    """To half precision and back, behind a mask."""
    return w.b.op("Cast", w.b.op("Cast", masked(w, scores), to=10), to=1)


def chosen_by_arithmetic(w: KeySets, scores: str) -> str:
    """As a sum of the scores, and of the scores less a number, times zeros and ones."""
    b, shown = w.b, (w.rng.random(OTHERS) < 0.5).astype(np.float32)
    less = b.op("Mul", b.op("Sub", scores, b.scalar(1e4)), b.const(1 - shown))
    return b.op("Add", b.op("Mul", scores, b.const(shown)), less)


def bounded(w: KeySets, scores: str) -> str:
    return w.b.op("Max", scores, w.b.scalar(-1e38))


def by_content(w: KeySets, scores: str) -> str:
    """The mean of each row's scores added to it."""
    return w.b.op("Add", scores, w.b.reduce("ReduceMean", scores, -1))


def by_query(w: KeySets, scores: str) -> str:
    """A number of what each query is projected from added to its scores."""
    own = w.b.reduce("ReduceMean", w.sources["own"], -1)
    return w.b.op("Add", scores, w.b.unsqueeze(own, 1))


def each_of(*changes: Change) -> Change:
    """One change after the other."""

    def change(w: KeySets, value: str) -> str:
        for one in changes:
            value = one(w, value)
        return value

    return change


def masked_whole(w: KeySets, scores: str) -> str:
    return w.b.op("Add", scores, w.b.const(w.random(w.rows, w.rows + OTHERS)))


def times(number: float) -> Change:
    return lambda w, value: w.b.op("Mul", value, w.b.scalar(number))


def turned_around(w: KeySets, value: str) -> str:
    """The lanes in the opposite order."""
    return w.b.slice(value, -1, -(1 << 31), 3, -1)


def shown(w: KeySets, value: str) -> str:
    """Also an output."""
    w.shown.append(value)
    return value


def shared_by_batches(w: KeySets, key: str) -> str:
    """The first batch's keys for all."""
    return w.b.slice(key, 0, 1, 0)


def scaled_by_row(w: KeySets, scores: str) -> str:
    return w.b.op("Mul", scores, w.b.const(w.random(w.rows, 1)))
