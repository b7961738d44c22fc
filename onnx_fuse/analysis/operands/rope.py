"""Rotary embeddings, by what they compute.

Whatever operators an exporter used, each element of the result is a sum of at most two elements of
the same row of one tensor, each multiplied by a table that doesn't depend on that tensor:

    result[j] = x[sigma(j)] * cos[j] + sign[j] * x[sigma(pair(j))] * sin[j]

All depth positions are followed at once, as lanes. What the lanes read, by which factors, is the
rotation; halves, interleaved pairs, partial and two-dimensional rotations, complex products,
products of pairs with matrices and products with a constant permutation matrix differ only in sigma
and pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_fuse.analysis.algebra.axes import Axis
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.scores.chain import Placed


@dataclass(frozen=True)
class Side:
    """By which tables, and which sign, one of a lane's two elements is multiplied; by lane."""

    factors: tuple[tuple[Placed, ...], ...]
    sign: np.ndarray

    def times(self, factor: Placed) -> Side:
        """Return the same with one more table for each lane."""
        return Side(tuple((*own, factor) for own in self.factors), self.sign)


@dataclass(frozen=True)
class Turn:
    """What makes each lane: an element that it passes straight on, and one that is crossed in."""

    straight: Side
    crossed: Side


@dataclass(frozen=True)
class Span:
    """Positions that are turned alike; `positions` is an axis of their own."""

    positions: Axis
    turn: Turn


@dataclass(frozen=True)
class Rope:
    """A rotation of `head_dim` lanes; the tables are per lane.

    sigma[j]: the source's depth position that lane j passes straight on; pair[j]: the lane whose
    source position is crossed in (j itself where nothing is).

    Where only some positions are rotated, or some by tables of their own, `spans` of them make up
    the axis `positions`, in order; those that stay have no factors. Else there is one span, and
    neither names an axis.
    """

    source: Ref  # with one new atom for each axis of the depth
    depth: Axis  # those atoms; sigma counts in this mixed radix
    sigma: np.ndarray
    pair: np.ndarray
    spans: tuple[Span, ...]
    positions: Axis = ()

    @property
    def rotated(self) -> np.ndarray:
        """Which lanes are rotated."""
        return np.asarray(self.pair != np.arange(len(self.pair)))

    @property
    def turns(self) -> bool:
        """Whether any lane is crossed in; else tables multiply alone."""
        return any(span.turn.crossed.sign.any() for span in self.spans)


def canonical_order(rope: Rope) -> tuple[np.ndarray, bool]:
    """Return (order, interleaved): the lanes in the operator's order.

    The operator rotates the halves, or (interleaved) the pairs, of the first R lanes.

    The order is the identity wherever the lanes already stand so.
    """
    count = len(rope.pair)
    lane = np.arange(count)
    rotated = int(rope.rotated.sum())
    half = rotated // 2
    if (rope.pair == np.where(lane < rotated, (lane + half) % max(rotated, 1), lane)).all():
        return lane, False
    if (rope.pair == np.where(lane < rotated, lane ^ 1, lane)).all():
        return lane, True
    first = lane[rope.pair > lane]
    return np.concatenate([first, rope.pair[first], lane[rope.pair == lane]]), False
