"""Finds a rotation in whatever operators it is written: its source, and which lanes it pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np

from onnx_fuse.analysis.algebra.axes import (
    Atom,
    Axis,
    Digit,
    Fixed,
    Index,
    fixed,
    with_lanes_merged,
)
from onnx_fuse.analysis.algebra.block_shapes import Facts
from onnx_fuse.analysis.algebra.contraction import contraction_of
from onnx_fuse.analysis.algebra.nodes import inputs_of
from onnx_fuse.analysis.algebra.refs import Ref
from onnx_fuse.analysis.algebra.views import CARRIERS, Views, carried
from onnx_fuse.analysis.dims.dim import numbers_of
from onnx_fuse.analysis.known import all_known
from onnx_fuse.analysis.operands.joined import Joined, joined_of
from onnx_fuse.analysis.operands.rope import Rope, Side, Span, Turn
from onnx_fuse.analysis.operands.rope_operator import ROTATIONS, rope_of_operator
from onnx_fuse.analysis.operands.rope_terms import Coefficient, Region, Term
from onnx_fuse.analysis.scores.chain import Placed
from onnx_fuse.analysis.search import reachable
from onnx_fuse.ir.graph import Node, Value

_DEEPEST = 150  # values looked at between a rotation's result and its source
_SEARCHED = 4000  # values looked at above a table
_CANDIDATES = 8  # sources that are tried
_PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum", "ReduceSum"})
_LINEAR = frozenset({"Add", "Sub", "Mul", "Neg", "Div", *_PRODUCTS})


def rope_of(ref: Ref, depth: Axis, views: Views) -> Rope | None:
    """Return the rotation along the `depth` atoms whose result `ref` is, or None if it is none."""
    node = ref.value.producer
    extents = numbers_of(digit.extent for digit in depth)
    if node is None or extents is None:
        return None
    if node.op in ROTATIONS:
        return rope_of_operator(node, ref, depth, views)
    if node.op not in {"Add", "Sub", "ScatterND", *_PRODUCTS, *CARRIERS}:
        return None
    top, count = lanes_of(ref, depth, extents, views), math.prod(extents)
    joined = joined_of(top, views)
    reached = [*reachable(ref.value, _sources_within(ref.value), limit=_DEEPEST)]
    product = None if joined.positions else contraction_of(_join(ref.value), views.shapes)
    if product is None:
        sides = {part.ref.value for part in joined.parts} if joined.positions else _sides(ref.value)
        candidates = _candidates(sides, reached, views.shapes)
    else:
        candidates = iter(product.factors)
    for base in candidates:
        region = Region(views, base, _reaching(base, reached))
        terms = _terms(region, joined, count)
        rope = None if terms is None else _rope(base, terms, joined, count)
        others = () if product is None else {*product.factors} - {base}
        if rope is not None and not any(may_be_made_of(value, base) for value in others):
            return rope
    return None


def lanes_of(ref: Ref, depth: Axis, extents: tuple[int, ...], views: Views) -> Ref:
    """Return elements with all positions of the `depth` atoms, of these extents, as lanes."""
    digits = np.unravel_index(np.arange(math.prod(extents)), extents)
    at: dict[Digit, np.ndarray] = {
        digit: np.asarray(lane, dtype=np.int64) for digit, lane in zip(depth, digits, strict=True)
    }
    index = tuple(
        tuple(
            Fixed(at[digit], digit.extent) if digit in at else digit
            for digit in views.space.resolve(axis)
        )
        for axis in ref.index
    )
    return Ref(ref.value, index)


def may_be_made_of(value: Value, base: Value) -> bool:
    """Return whether a table may be computed from what is to be turned by it."""
    above = {*reachable(base, carried)}
    found = enumerate(reachable(value, inputs_of))
    return any(each in above or count > _SEARCHED for count, each in found)


def _sources(value: Value) -> Sequence[Value | None]:
    """Return the inputs of a linear operator or view whose elements become the value's."""
    node = value.producer
    if node is not None and node.op == "ScatterND":
        return node.inputs[0], node.inputs[2]
    if node is not None and node.op in (*ROTATIONS, "Pad"):
        return node.inputs[:1]
    return node.inputs if node is not None and node.op in _LINEAR else carried(value)


def _sources_within(top: Value) -> Callable[[Value], Sequence[Value | None]]:
    """Return `_sources`, restricted to the nodes of one graph."""

    def sources(value: Value) -> Sequence[Value | None]:
        inside = value.producer is not None and value.producer.graph is top.graph
        return _sources(value) if inside else ()

    return sources


def _reaching(base: Value, reached: Sequence[Value]) -> set[Value]:
    """Return those of the values `reached` that depend on the base, itself included."""
    inside = {*reached}
    known = {base: True}

    def depends(value: Value) -> bool:
        if value not in known:
            known[value] = value in inside and any(
                source is not None and depends(source) for source in _sources(value)
            )
        return known[value]

    return {value for value in reached if depends(value)}


def _join(top: Value) -> Node | None:
    """Return what makes a value, but for views."""
    node = top.producer
    while node is not None and node.op in CARRIERS - {"Concat"}:
        source = node.inputs[0]
        node = None if source is None else source.producer
    return node


def _sides(top: Value) -> set[Value]:
    """Return what the first join below a value's views joins; nothing if it is none of lanes."""
    join = _join(top)
    if join is None or join.op not in ("Add", "Sub", "Concat", "ScatterND"):
        return set()
    made = join.outputs[0]
    sources = () if made is None else _sources(made)
    return {value for value in sources if value is not None and not value.is_constant}


def _candidates(sides: set[Value], reached: Sequence[Value], shapes: Facts) -> Iterator[Value]:
    """Yield the values on which all sides of the first join depend, nearest first.

    Where the ways of all lanes meet first, there are at least two of them: what only one value is
    made of is passed over.
    """
    if not sides:
        return
    ways = Counter(source for value in reached for source in _sources(value))
    met = [value for value in reached if ways[value] > 1 and not shapes.is_constant(value)]
    found = (value for value in met if sides <= _reaching(value, reached))
    yield from islice(found, _CANDIDATES)


def _terms(region: Region, joined: Joined, count: int) -> list[tuple[int, Term]] | None:
    """Return (number of the part, term) for all that is read of the source.

    What a part reads is where the part stands in the whole. None if that isn't so, or not known.
    """
    whole = Coefficient(np.ones(count, dtype=bool), np.ones(count))
    found: list[tuple[int, Term]] = []
    for number, part in enumerate(joined.parts):
        terms = region.terms(part.ref, whole)
        if terms is None:
            return None
        found += [(number, term) for term in terms]
    reads = [(number, term.index) for number, term in found]
    indices = joined.in_place(reads, region.views.space)
    if indices is None:
        return None
    return [
        (number, replace(term, index=index))
        for (number, term), index in zip(found, indices, strict=True)
    ]


class _Read(NamedTuple):
    """What one lane of the result has of the source: sign * source[position] * factors."""

    position: int
    sign: float
    factors: tuple[Placed, ...]


_Lanes = list[list[_Read]]  # by lane


def _rope(
    base: Value, terms: Sequence[tuple[int, Term]], joined: Joined, count: int
) -> Rope | None:
    """Read sigma, pair and the factors off each part's terms; None if they are no rotation's."""
    skeleton = _common_index([term for _, term in terms])
    if skeleton is None:
        return None
    index, depth, positions = skeleton
    by_part: list[_Lanes] = [[[] for _ in range(count)] for _ in joined.parts]
    for (number, term), position in zip(terms, positions, strict=True):
        own = term.coefficient
        for lane in np.flatnonzero(own.inside).tolist():
            read = _Read(int(position[lane]), float(own.sign[lane]), own.factors)
            by_part[number][lane].append(read)
    shared = _shared_pairs(by_part)
    if shared is None:
        return None
    sigma, pair = shared
    if (pair == np.arange(count)).all():  # nothing is rotated
        return None
    spans: list[Span] = []
    for part, by_lane in zip(joined.parts, by_part, strict=True):
        turn = _turn(by_lane, sigma)
        if turn is None:
            return None
        spans.append(Span(part.positions, turn))
    return Rope(Ref(base, index), depth, sigma, pair, tuple(spans), joined.positions)


def _shared_pairs(parts: Sequence[_Lanes]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (sigma, pair) of parts of which some may stay unrotated; None where they differ."""
    found = all_known(map(_pairs, parts))
    if found is None:
        return None
    sigma, unpaired = found[0][0], np.arange(len(parts[0]))
    pair = next((own for _, own in found if (own != unpaired).any()), unpaired)
    for other, own in found:
        if (other != sigma).any() or ((own != pair).any() and (own != unpaired).any()):
            return None
    return sigma, pair


def _turn(by_lane: _Lanes, sigma: np.ndarray) -> Turn | None:
    """Return by what lanes are multiplied; None if one that isn't rotated is multiplied, too."""
    ordered = [
        [read for read in reads if read.position == own]
        + [read for read in reads if read.position != own]
        for reads, own in zip(by_lane, sigma.tolist(), strict=True)
    ]
    if any(len(reads) == 1 and (reads[0].factors or reads[0].sign != 1.0) for reads in ordered):
        return None
    nothing = _Read(0, 0.0, ())
    crossed = [reads[1] if len(reads) > 1 else nothing for reads in ordered]
    return Turn(_side([reads[0] for reads in ordered]), _side(crossed))


def _side(reads: Sequence[_Read]) -> Side:
    """Return by what the lanes multiply what each has of the source."""
    return Side(tuple(read.factors for read in reads), np.array([read.sign for read in reads]))


def _pairs(by_lane: _Lanes) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (sigma, pair), or None where lanes don't rotate in pairs."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for lane, reads in enumerate(by_lane):
        groups.setdefault(tuple(sorted(read.position for read in reads)), []).append(lane)
    sigma, pair = np.zeros(len(by_lane), dtype=np.int64), np.arange(len(by_lane))
    for members, at in groups.items():
        if len(members) == 1 and len(at) == 1:
            sigma[at[0]] = members[0]
            continue
        if len(members) != 2 or len(at) != 2:
            return None
        # The lane that subtracts is the first of the pair; it passes on what it does not subtract.
        negative = [lane for lane in at if any(read.sign < 0 for read in by_lane[lane])]
        kept = [read.position for lane in negative for read in by_lane[lane] if read.sign > 0]
        if len(negative) == 1 and kept:
            first, second = negative[0], at[0] if at[1] == negative[0] else at[1]
            straight = kept[0]
        else:
            first, second, straight = at[0], at[1], by_lane[at[0]][0].position
        sigma[first], sigma[second] = straight, members[0] if members[1] == straight else members[1]
        pair[first], pair[second] = second, first
    return (sigma, pair) if len({*sigma.tolist()}) == len(by_lane) else None


def _common_index(terms: Sequence[Term]) -> tuple[Index, Axis, list[np.ndarray]] | None:
    """Return (index, depth, positions) of what all terms read of the base.

    index: the base's index with new atoms, `depth`, for the digits in which the terms differ;
    positions: for each term, the depth position that each lane reads. None if they differ in more.
    """
    axes: list[Axis] = []
    depth: list[Atom] = []
    positions = [np.zeros(len(term.coefficient.inside), dtype=np.int64) for term in terms]
    for own in zip(*(term.index for term in terms), strict=True):
        columns = _cut_alike(own)
        if columns is None:
            return None
        made: list[Digit] = []
        for digits in zip(*columns, strict=True):
            common = _common_digit(digits, terms)
            if common is None:
                return None
            made += common
            if not (common and isinstance(common[0], Atom) and common[0] is not digits[0]):
                continue
            depth.append(common[0])
            width = common[0].extent.as_int() or 0
            for number, digit in enumerate(digits):
                assert isinstance(digit, Fixed)
                positions[number] = positions[number] * width + digit.index
        axes.append(tuple(made))
    return tuple(axes), tuple(depth), positions


def _cut_alike(axes: Sequence[Axis]) -> list[Axis] | None:
    """Return axes of one extent in digits of the same extents; None if they have no such."""
    for numbers in (False, True):
        cut = [with_lanes_merged(axis, numbers=numbers) for axis in axes]
        if len({tuple(digit.extent for digit in axis) for axis in cut}) == 1:
            return cut
    return None


def _common_digit(digits: Sequence[Digit], terms: Sequence[Term]) -> Axis | None:
    """Return the digit that all terms share, or a new atom where they stand at known numbers."""
    first = digits[0]
    if not isinstance(first, Fixed):
        return (first,) if all(digit is first for digit in digits) else None
    used: list[np.ndarray] = []
    for digit, term in zip(digits, terms, strict=True):
        if not isinstance(digit, Fixed):
            return None
        inside = term.coefficient.inside
        used.append(np.broadcast_to(digit.index, inside.shape)[inside])
    numbers = np.concatenate(used)
    if (numbers == numbers[0]).all():
        return fixed(int(numbers[0]), first.extent)
    return None if first.extent.as_int() is None else (Atom(first.extent, "depth"),)
