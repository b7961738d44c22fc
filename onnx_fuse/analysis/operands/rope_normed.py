"""A norm behind a rotation, read as the norm before it.

A rotation keeps the length of a row, and so what such a norm divides by. The norm's weight stands
behind the rotation; there it multiplies the tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnx_fuse.analysis.algebra.axes import Atom, Axis, index_atoms, lanes_at
from onnx_fuse.analysis.algebra.formula import Formula
from onnx_fuse.analysis.algebra.linear import Step, gathered
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import Views
from onnx_fuse.analysis.dims.dim import numbers_of
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.operands.norm import Norm
from onnx_fuse.analysis.operands.rope import Rope, Turn
from onnx_fuse.analysis.operands.rope_reading import lanes_of
from onnx_fuse.analysis.operands.rope_scaled import times
from onnx_fuse.analysis.scores.chain import Placed
from onnx_fuse.ir.graph import Value

_OF_LENGTHS = ("rms", "l2")  # norms that ask for nothing but the length
_LARGEST = 1 << 20  # numbers of constant tables that are looked at
# cos^2 + sin^2 of numbers in float32 is 1 within this.
_NEAR_ONE = 1e-6


def norm_before(rope: Rope, norm: Norm, depth: Axis, views: Views) -> tuple[Rope, Norm] | None:
    """Return the rotation and the norm below it that make what the norm makes behind the rotation.

    None if the lengths over the `depth` atoms aren't proved to be kept.
    """
    space = views.space
    over = [space.resolve(axis) for axis in norm.over]
    if norm.kind not in _OF_LENGTHS or over != [space.resolve(depth)]:
        return None
    if not all(_keeps_lengths(rope, span.turn, views) for span in rope.spans):
        return None
    for step in norm.steps:
        weight = _weight(step, over[0], views)
        weighted = None if weight is None else times(rope, weight)
        if weighted is None:
            return None
        rope = weighted
    return rope, replace(norm, over=(rope.depth,), steps=())


def _weight(step: Step, depth: Axis, views: Views) -> Placed | None:
    """Return a norm's weight as a table; None if it is none, or isn't finite."""
    extents = numbers_of(digit.extent for digit in depth)
    if step.op != "Mul" or step.factor != 1 or extents is None:
        return None
    data = views.shapes.constant(step.constant.value)
    if data is None or np.isinf(data).any() or np.isnan(data).any():
        return None
    constant = step.constant.resolve(views.space)
    return Placed.of(lanes_of(constant, depth, extents, views))


def _keeps_lengths(rope: Rope, turn: Turn, views: Views) -> bool:
    """Return whether each pair of lanes is turned by one angle, and not multiplied besides."""
    lanes = np.flatnonzero(rope.rotated & (turn.crossed.sign != 0))
    others = rope.pair[lanes]
    straight, crossed = turn.straight.sign, turn.crossed.sign
    if (np.abs([straight[lanes], crossed[lanes]]) != 1).any():
        return False
    if (straight[lanes] * crossed[others] != -crossed[lanes] * straight[others]).any():
        return False
    pairs = [
        (lane, other)
        for lane, other in zip(lanes.tolist(), others.tolist(), strict=True)
        if lane < other
    ]
    return bool(pairs) and all(_is_one_angle(turn, *pair, views) for pair in pairs)


def _is_one_angle(turn: Turn, lane: int, other: int, views: Views) -> bool:
    """Return whether two lanes have the cosine of one angle on their way, and its sine across."""
    found = [
        _only(side.factors[own], own)
        for side in (turn.straight, turn.crossed)
        for own in (lane, other)
    ]
    refs: list[Ref] | None = all_known(found)
    if refs is None:
        return False
    formula = Formula(views)
    angles = all_known(
        formula.operand(formula.made(ref, function), 0)
        for ref, function in zip(refs, ("Cos", "Cos", "Sin", "Sin"), strict=True)
    )
    if angles is None:
        numbers = _numbers(refs, views)
        return numbers is not None and _are_of_circle(*numbers)
    if all(views.same(angle, angles[0]) for angle in angles[1:]):
        return True
    numbers = _numbers(angles, views)
    return numbers is not None and all((own == numbers[0]).all() for own in numbers[1:])


def _only(factors: Sequence[Placed], lane: int) -> Ref | None:
    """Return where the only table of a lane has its element; None if there are more, or none."""
    if len(factors) != 1:
        return None
    (factor,) = factors
    if not isinstance(factor.expr, Value):
        return None
    return Ref(factor.expr, lanes_at(factor.index, np.asarray(lane)))


def _numbers(refs: Sequence[Ref], views: Views) -> list[np.ndarray] | None:
    """Return the numbers of constants, side by side; None if they are none, or too many."""
    refs = [views.origin(ref).resolve(views.space) for ref in refs]
    every = list(dict.fromkeys(atom for ref in refs for atom in index_atoms(ref.index)))
    extents = numbers_of(atom.extent for atom in every)
    known = all(views.shapes.is_constant(ref.value) for ref in refs)
    if not known or extents is None or math.prod(extents) > _LARGEST:
        return None
    places: dict[Atom, np.ndarray] = dict(zip(every, np.ix_(*map(np.arange, extents)), strict=True))
    return [gathered(ref, views.shapes, places).astype(np.float64) for ref in refs]


def _are_of_circle(
    cos: np.ndarray, same_cos: np.ndarray, sin: np.ndarray, same_sin: np.ndarray
) -> bool:
    """Return whether these are cosine and sine of one angle, twice."""
    wrong = (cos - same_cos, sin - same_sin, cos**2 + sin**2 - 1)
    return all(bool((np.abs(off) <= _NEAR_ONE).all()) for off in wrong)
