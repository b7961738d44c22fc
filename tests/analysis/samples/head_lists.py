"""Graphs in which heads are computed one by one, each with projections of its own, and joined."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.analysis.samples.builder import Array, Builder
from tests.analysis.samples.graphs import Record, Sample

HEADS, DEPTH, OUT, ROWS = 3, 4, 5, 6
HIDDEN = HEADS * DEPTH
Change = Callable[["HeadList", int, str], str]  # of what a head has, by the head's number


def unchanged(w: HeadList, head: int, value: str) -> str:
    return value


@dataclass
class HeadList:
    """Writes the graph; what a head does otherwise is a change of its own.

    order: in which heads are joined. shares: what all heads have in common of "q", "k" and "v".
    width: heads that are computed together. layout: where the heads' axis is when they are joined.
    """

    source: Change = unchanged
    key_source: Change = unchanged
    query: Change = unchanged
    key: Change = unchanged
    scores: Change = unchanged
    weights: Change = unchanged
    context: Change = unchanged
    joined: Callable[[HeadList, Sequence[str]], str] | None = None
    order: Sequence[int] = tuple(range(HEADS))
    shares: str = ""
    width: int = 1
    depths: Sequence[int] = (DEPTH,) * HEADS
    layout: str = "columns"
    dynamic: str = ""
    has_output: bool = True
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    def sample(self) -> Sample:
        self.b = Builder({"B": 2, "S": ROWS}, self.dynamic, 18)
        self.hidden = self.b.input("x", self.random(2, ROWS, HIDDEN), ("B", "S", HIDDEN))
        self.common = {name: self.projected(self.hidden, DEPTH) for name in self.shares}
        heads = [self.context(self, head, self.head(head)) for head in range(HEADS)]
        parts = [heads[head] for head in self.order]
        made = self.joined(self, parts) if self.joined else self.join(parts)
        if self.has_output:
            width = self.width * sum(self.depths[head] for head in self.order)
            made = self.projected(made, OUT, width)
        return Sample(self.b.model(made), self.b.feeds, Record())

    def random(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(np.float32)

    def projected(self, value: str, size: int, rows: int = HIDDEN) -> str:
        made = self.b.op("MatMul", value, self.b.const(self.random(rows, size)))
        return self.b.op("Add", made, self.b.const(self.random(size)))

    def head(self, head: int) -> str:
        """Return the context of one head, (batch, rows, depth), or of a group of some."""
        b, depth = self.b, self.depths[head]
        source = self.source(self, head, self.hidden)
        keys = self.key_source(self, head, source)
        sources = {"q": source, "k": keys, "v": keys}
        q, k, v = (
            self.common.get(name) or self.projected(sources[name], self.width * depth)
            for name in "qkv"
        )
        q, k = self.query(self, head, q), self.key(self, head, k)
        if self.width > 1:
            q, k, v = (self.apart(value) for value in (q, k, v))
        turned = (0, 2, 1) if self.width == 1 else (0, 1, 3, 2)
        scores = b.op("MatMul", q, b.transpose(k, *turned))
        scores = self.scores(self, head, b.op("Mul", scores, b.scalar(1 / math.sqrt(depth))))
        weights = self.weights(self, head, b.op("Softmax", scores, axis=-1))
        context = b.op("MatMul", weights, v)
        if self.width == 1 or self.layout != "columns":
            return context
        return b.reshape(b.transpose(context, 0, 2, 1, 3), "B", "S", self.width * depth)

    def apart(self, value: str) -> str:
        return self.b.transpose(self.b.reshape(value, "B", "S", self.width, DEPTH), 0, 2, 1, 3)

    def join(self, parts: Sequence[str]) -> str:
        """Join contexts, and bring heads and depth together."""
        b = self.b
        columns = len(parts) * self.width * DEPTH
        match self.layout:
            case "columns":
                return b.op("Concat", *parts, axis=-1)
            case "stacked":  # before the depth
                stacked = b.op("Concat", *(b.unsqueeze(part, 2) for part in parts), axis=2)
                return b.reshape(stacked, "B", "S", columns)
            case "stacked first":
                stacked = b.op("Concat", *(b.unsqueeze(part, 0) for part in parts), axis=0)
                return b.reshape(b.transpose(stacked, 1, 2, 0, 3), "B", "S", columns)
            case "stacked last":  # each depth has all its heads side by side
                stacked = b.op("Concat", *(b.unsqueeze(part, 3) for part in parts), axis=3)
                return b.reshape(stacked, "B", "S", columns)
            case _:  # (batch, heads, rows, depth)
                whole = b.op("Concat", *parts, axis=1)
                return b.reshape(b.transpose(whole, 0, 2, 1, 3), "B", "S", columns)


def only(head: int, change: Change) -> Change:
    """A change of one head alone."""
    return lambda w, own, value: change(w, own, value) if own == head else value


def hidden_behind(fill: float = -1e9, *, inverted: bool = False) -> Change:
    """A causal mask that each head has of its own."""

    def masked(w: HeadList, head: int, scores: str) -> str:
        shown = np.tril(np.ones((ROWS, ROWS), np.float32))
        place = w.b.op("Equal", w.b.const(shown.T if inverted else shown), w.b.scalar(0.0))
        return w.b.op("Where", place, w.b.scalar(fill), scores)

    return masked


def plus_own(w: HeadList, head: int, scores: str) -> str:
    """A bias of the head's number times the distance of places."""
    far = -np.abs(np.subtract.outer(np.arange(ROWS), np.arange(ROWS))).astype(np.float32)
    return w.b.op("Add", scores, w.b.const(far * 2.0**-head))


def plus_random(w: HeadList, head: int, scores: str) -> str:
    """Random numbers, others in each head."""
    noise = w.b.op("RandomNormal", shape=[ROWS, ROWS], scale=1e-9)
    return w.b.op("Add", scores, noise)


def times(number: float) -> Change:
    return lambda w, head, value: w.b.op("Mul", value, w.b.scalar(number))


def normed(epsilon: float = 1e-5) -> Change:
    """The root mean square norm of a head, with a weight of its own."""

    def made(w: HeadList, head: int, value: str) -> str:
        b = w.b
        mean = b.reduce("ReduceMean", b.op("Mul", value, value), -1)
        root = b.op("Sqrt", b.op("Add", mean, b.scalar(epsilon)))
        return b.op("Mul", b.op("Div", value, root), b.const(w.random(DEPTH)))

    return made


def rotated(speed: float = 1.0) -> Change:
    """A rotation by places, whose tables each head computes."""

    def made(w: HeadList, head: int, value: str) -> str:
        b = w.b
        angles = np.outer(np.arange(ROWS), speed * np.array([1.0, 0.1, 1.0, 0.1]))
        cos, sin = (b.const(f(angles).astype(np.float32)) for f in (np.cos, np.sin))
        back = b.op("Neg", b.slice(value, 2, 4, 2))
        turned = b.op("Concat", back, b.slice(value, 0, 2, 2), axis=-1)
        return b.op("Add", b.op("Mul", value, cos), b.op("Mul", turned, sin))

    return made


def other_input(w: HeadList, head: int, value: str) -> str:
    is_there = "y" in w.b.feeds
    return "y" if is_there else w.b.input("y", w.random(2, ROWS, HIDDEN), ("B", "S", HIDDEN))


def lanes_mixed(w: HeadList, head: int, value: str) -> str:
    """The lanes 0, 1, 2, 3 as 0, 2, 1, 3."""
    apart = w.b.reshape(value, "B", "S", 2, DEPTH // 2)
    return w.b.reshape(w.b.transpose(apart, 0, 1, 3, 2), "B", "S", DEPTH)


def shown(w: HeadList, head: int, value: str) -> str:
    """Read by something else, too."""
    w.b.op("Relu", value)
    return value


def beside_another(w: HeadList, parts: Sequence[str]) -> str:
    """Joined with what is no head."""
    return w.b.op("Concat", *parts[:-1], w.projected(w.hidden, DEPTH), axis=-1)
