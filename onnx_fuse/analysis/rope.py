"""Rotary embeddings, by what they compute.

Whatever operators an exporter used, each element of the result is a sum of at most two elements of
the same row of one tensor, each multiplied by a table that doesn't depend on that tensor:

    result[j] = x[sigma(j)] * cos[j] + sign[j] * x[sigma(pair(j))] * sin[j]

All depth positions are followed at once, as lanes. What the lanes read, by which factors, is the
rotation; halves, interleaved pairs, partial and two-dimensional rotations, complex products and
products with a constant permutation matrix differ only in sigma and pair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnx_fuse.analysis.axes import Atom, Axis, Digit, Fixed, Index, atoms, fixed, index_atoms
from onnx_fuse.analysis.contraction import contraction_of
from onnx_fuse.analysis.dims import Dim
from onnx_fuse.analysis.expr import Call, Expr, Extents, arranged
from onnx_fuse.analysis.linear import gathered
from onnx_fuse.analysis.nodes import input_at
from onnx_fuse.analysis.views import Ref, Views
from onnx_fuse.ir.graph import Node, Value

_DEEPEST = 40  # values looked at between a rotation's result and its source
_LINEAR = frozenset({"Add", "Sub", "Mul", "Neg", "Concat", "Cast", "MatMul", "Div"})
_VIEWS = frozenset(
    {
        "Reshape",
        "Transpose",
        "Slice",
        "Split",
        "Gather",
        "Squeeze",
        "Unsqueeze",
        "Expand",
        "Flatten",
        "Identity",
        "Tile",
    }
)


@dataclass(frozen=True)
class Factor:
    """A table, and where its lanes' elements stand."""

    table: Expr
    index: Index

    @property
    def key(self) -> int:
        """Identity of the table."""
        return id(self.table)


@dataclass(frozen=True)
class Term:
    """For the lanes in `inside`: sign * source[index] * product of the factors."""

    inside: np.ndarray
    index: Index
    sign: np.ndarray
    factors: tuple[Factor, ...]


@dataclass(frozen=True)
class Rope:
    """A rotation of `head_dim` lanes; the tables are per lane.

    sigma[j]: the source's depth position that lane j passes straight on; pair[j]: the lane whose
    source position is crossed in (j itself where nothing is).
    """

    source: Ref  # with one new atom for each axis of the depth
    depth: Axis  # those atoms; sigma counts in this mixed radix
    sigma: np.ndarray
    pair: np.ndarray
    straight: tuple[tuple[Factor, ...], ...]  # by lane
    crossed: tuple[tuple[Factor, ...], ...]
    straight_sign: np.ndarray
    crossed_sign: np.ndarray

    @property
    def rotated(self) -> np.ndarray:
        """Which lanes are rotated."""
        return np.asarray(self.pair != np.arange(len(self.pair)))


@dataclass(frozen=True)
class _Region:
    """The values between a rotation's result and one candidate for its source."""

    views: Views
    base: Value
    reaches: dict[int, bool]

    def terms(
        self, ref: Ref, inside: np.ndarray, sign: np.ndarray, factors: tuple[Factor, ...]
    ) -> list[Term] | None:
        """Return `ref` (at lanes) as a sum of products of base and tables; None if it is none."""
        if ref.value is self.base:
            return [Term(inside, ref.index, sign, factors)]
        node = ref.value.producer
        if node is None or not self.reaches.get(id(ref.value)):
            return None
        match node.op_type:
            case "Neg" | "Cast":
                below = self._same(node.inputs[0], ref)
                return self.terms(below, inside, -sign if node.op_type == "Neg" else sign, factors)
            case "Add" | "Sub":
                return self._sum(node, ref, inside, sign, factors)
            case "Mul":
                return self._product(node, ref, inside, sign, factors)
            case "Concat":
                return self._joined(ref, inside, sign, factors)
            case "MatMul":
                return self._permuted(node, ref, inside, sign, factors)
        pulled = self.views.pull(ref)
        return None if pulled is None else self.terms(pulled, inside, sign, factors)

    def _same(self, value: Value | None, ref: Ref) -> Ref:
        assert value is not None
        return Ref(value, ref.index)

    def _sum(
        self,
        node: Node,
        ref: Ref,
        inside: np.ndarray,
        sign: np.ndarray,
        factors: tuple[Factor, ...],
    ) -> list[Term] | None:
        found: list[Term] = []
        for value, side in zip(
            node.inputs, (1.0, -1.0 if node.op_type == "Sub" else 1.0), strict=True
        ):
            assert value is not None
            below = self.views.broadcast(ref.index, value)
            part = None if below is None else self.terms(below, inside, sign * side, factors)
            if part is None:
                return None
            found.extend(part)
        return found

    def _product(
        self,
        node: Node,
        ref: Ref,
        inside: np.ndarray,
        sign: np.ndarray,
        factors: tuple[Factor, ...],
    ) -> list[Term] | None:
        first, second = node.inputs
        assert first is not None
        assert second is not None
        if self.reaches.get(id(first)) == self.reaches.get(id(second)):
            return None
        variable, table = (first, second) if self.reaches.get(id(first)) else (second, first)
        below, at = (
            self.views.broadcast(ref.index, variable),
            self.views.broadcast(ref.index, table),
        )
        if below is None or at is None:
            return None
        return self.terms(below, inside, sign, (*factors, Factor(table, at.index)))

    def _joined(
        self, ref: Ref, inside: np.ndarray, sign: np.ndarray, factors: tuple[Factor, ...]
    ) -> list[Term] | None:
        parts = self.views.concat_parts(ref)
        if parts is None:
            pulled = self.views.pull(ref)
            return None if pulled is None else self.terms(pulled, inside, sign, factors)
        found: list[Term] = []
        for lanes, below in parts:
            both = inside & lanes
            if not both.any():
                continue
            part = self.terms(below, both, sign, factors)
            if part is None:
                return None
            found.extend(part)
        return found

    def _permuted(
        self,
        node: Node,
        ref: Ref,
        inside: np.ndarray,
        sign: np.ndarray,
        factors: tuple[Factor, ...],
    ) -> list[Term] | None:
        """A product with a constant that has at most one number in each column."""
        contraction = contraction_of(node, self.views.shapes)
        if contraction is None or not self.views.shapes.is_constant(contraction.right):
            return None
        operands = contraction.pull(self.views, ref)
        if operands is None or len(contraction.summed) != 1:
            return None
        source, weight = operands
        axis = source.index[contraction.left_labels.index(contraction.summed[0])]
        rows = atoms(axis)
        if (
            len(rows) != 1
            or {*index_atoms(weight.index)} != {*rows}
            or rows[0].extent.as_int() is None
        ):
            return None
        count = rows[0].extent.as_int() or 0
        matrix = gathered(weight, self.views.shapes, {rows[0]: np.arange(count)[:, None]})
        matrix = np.broadcast_to(matrix, (count, len(inside)))
        if ((matrix != 0).sum(axis=0) > 1).any():
            return None
        taken = np.argmax(matrix != 0, axis=0)
        number = matrix[taken, np.arange(len(inside))]
        index = tuple(
            fixed(taken, Dim.of(count)) if part == axis else part for part in source.index
        )
        return self.terms(Ref(source.value, index), inside & (number != 0), sign * number, factors)


def rope_of(ref: Ref, depth: Axis, views: Views) -> Rope | None:
    """Return the rotation along the `depth` atoms whose result `ref` is, or None if it is none."""
    node = ref.value.producer
    extents = [digit.extent.as_int() for digit in depth]
    if node is None or any(extent is None for extent in extents) or not depth:
        return None
    if node.op_type == "RotaryEmbedding":
        return _operator(node, ref, depth, views)
    if node.op_type not in ("Add", "Sub", "Concat", *_VIEWS):
        return None
    count = int(np.prod([extent or 0 for extent in extents]))
    digits = np.unravel_index(np.arange(count), [extent or 0 for extent in extents])
    at = {
        id(digit): np.asarray(lane, dtype=np.int64)
        for digit, lane in zip(depth, digits, strict=True)
    }
    index = tuple(
        tuple(
            Fixed(at[id(digit)], digit.extent) if id(digit) in at else digit
            for digit in views.space.resolve(axis)
        )
        for axis in ref.index
    )
    reached = _reachable(ref.value, views)
    for base in _candidates(ref.value, reached):
        region = _Region(views, base, _reaching(ref.value, base, reached))
        terms = region.terms(Ref(ref.value, index), np.ones(count, dtype=bool), np.ones(count), ())
        rope = None if terms is None else _rope(base, terms, count)
        if rope is not None:
            return rope
    return None


def _reachable(top: Value, views: Views) -> list[Value]:
    """Return the values above `top` through linear operators and views, nearest first."""
    found, queue = [top], [top]
    seen = {id(top)}
    while queue and len(found) < _DEEPEST:
        node = queue.pop(0).producer
        if node is None or node.op_type not in _LINEAR | _VIEWS or node.graph is not top.graph:
            continue
        sources = node.inputs if node.op_type in _LINEAR else node.inputs[:1]
        for value in sources:
            if value is not None and id(value) not in seen:
                seen.add(id(value))
                found.append(value)
                queue.append(value)
    return found


def _reaching(top: Value, base: Value, reached: list[Value]) -> dict[int, bool]:
    """Say of each value of the region whether it depends on the base."""
    known: dict[int, bool] = {id(base): True}
    inside = {id(value) for value in reached}

    def depends(value: Value) -> bool:
        if id(value) not in known:
            known[id(value)] = False
            node = value.producer
            if node is not None and id(value) in inside and node.op_type in _LINEAR | _VIEWS:
                sources = node.inputs if node.op_type in _LINEAR else node.inputs[:1]
                known[id(value)] = any(source is not None and depends(source) for source in sources)
        return known[id(value)]

    depends(top)
    for value in reached:
        depends(value)
    return known


def _candidates(top: Value, reached: list[Value]) -> list[Value]:
    """Return the values on which both sides of the first join depend, nearest first."""
    join = top
    while join.producer is not None and join.producer.op_type in _VIEWS:
        source = join.producer.inputs[0]
        if source is None:
            return []
        join = source
    if join.producer is None or join.producer.op_type not in ("Add", "Sub", "Concat"):
        return []
    sides = [value for value in join.producer.inputs if value is not None]
    found = []
    for value in reached:
        if value is top or value is join:
            continue
        known = _reaching(top, value, reached)
        if all(known.get(id(side)) for side in sides):
            found.append(value)
    return found[:8]


def _rope(base: Value, terms: list[Term], count: int) -> Rope | None:
    """Read sigma, pair and the factors off the terms; None if they aren't those of a rotation."""
    skeleton = _common_index(terms)
    if skeleton is None:
        return None
    index, depth, positions = skeleton
    by_lane: list[list[tuple[int, float, tuple[Factor, ...]]]] = [[] for _ in range(count)]
    for term, position in zip(terms, positions, strict=True):
        for lane in np.flatnonzero(term.inside):
            by_lane[lane].append((int(position[lane]), float(term.sign[lane]), term.factors))
    if any(not 1 <= len(found) <= 2 for found in by_lane):
        return None
    if all(len(found) == 1 for found in by_lane):
        return None
    groups: dict[tuple[int, ...], list[int]] = {}
    for lane, found in enumerate(by_lane):
        groups.setdefault(tuple(sorted(position for position, _, _ in found)), []).append(lane)
    sigma, pair = np.zeros(count, dtype=np.int64), np.arange(count)
    for members, at in groups.items():
        if len(members) == 1 and len(at) == 1:
            sigma[at[0]] = members[0]
            continue
        if len(members) != 2 or len(at) != 2 or members[0] == members[1]:
            return None
        negative = [lane for lane in at if any(sign < 0 for _, sign, _ in by_lane[lane])]
        if len(negative) == 1:
            straight = next(position for position, sign, _ in by_lane[negative[0]] if sign > 0)
            first, second = negative[0], at[0] if at[1] == negative[0] else at[1]
        else:
            first, second, straight = at[0], at[1], by_lane[at[0]][0][0]
        sigma[first], sigma[second] = straight, members[0] if members[1] == straight else members[1]
        pair[first], pair[second] = second, first
    if sorted(sigma.tolist()) != sorted(set(sigma.tolist())):
        return None
    straight_part, crossed_part = [], []
    signs = np.ones(count), np.ones(count)
    for lane, found in enumerate(by_lane):
        ordered = sorted(found, key=lambda entry: entry[0] != sigma[lane])
        straight_part.append(ordered[0][2])
        signs[0][lane] = ordered[0][1]
        if len(ordered) == 1 and (ordered[0][2] or ordered[0][1] != 1.0):
            return None
        crossed_part.append(ordered[1][2] if len(ordered) > 1 else ())
        signs[1][lane] = ordered[1][1] if len(ordered) > 1 else 0.0
    return Rope(
        Ref(base, index), depth, sigma, pair, tuple(straight_part), tuple(crossed_part), *signs
    )


def _common_index(terms: list[Term]) -> tuple[Index, Axis, list[np.ndarray]] | None:
    """Return (index, depth, positions) of what all terms read of the base.

    index: the base's index with new atoms, `depth`, for the digits in which the terms differ;
    positions: for each term, the depth position that each lane reads.
    """
    first = terms[0].index
    digits: list[list[list[Digit]]] = []
    for term in terms:
        if len(term.index) != len(first):
            return None
        digits.append([list(axis) for axis in term.index])
    axes: list[Axis] = []
    depth: list[Atom] = []
    positions = [np.zeros(len(terms[0].inside), dtype=np.int64) for _ in terms]
    for axis in range(len(first)):
        widths = {len(term[axis]) for term in digits}
        if len(widths) != 1:
            return None
        made: list[Digit] = []
        for place in range(widths.pop()):
            column = [term[axis][place] for term in digits]
            if all(digit is column[0] for digit in column) and not isinstance(column[0], Fixed):
                made.append(column[0])
                continue
            if not all(
                isinstance(digit, Fixed) and digit.extent == column[0].extent for digit in column
            ):
                return None
            used = [
                np.broadcast_to(digit.index, term.inside.shape)[term.inside]
                for digit, term in zip(column, terms, strict=True)
                if isinstance(digit, Fixed)
            ]
            everything = np.concatenate(used)
            extent = column[0].extent
            if (everything == everything[0]).all():
                made.extend(fixed(int(everything[0]), extent))
                continue
            number = extent.as_int()
            if number is None:
                return None
            atom = Atom(extent, "depth")
            made.append(atom)
            depth.append(atom)
            for number_of_term, digit in enumerate(column):
                assert isinstance(digit, Fixed)
                positions[number_of_term] = positions[number_of_term] * number + digit.index
        axes.append(tuple(made))
    return tuple(axes), tuple(depth), positions


def _operator(node: Node, ref: Ref, depth: Axis, views: Views) -> Rope | None:
    """RotaryEmbedding of the standard (opset 23) and of com.microsoft.

    Its tables are per row, or gathered by positions.
    """
    standard = not node.domain
    source = node.inputs[0]
    if source is None:
        return None
    order = (1, 2, 3) if standard else (2, 3, 1)
    cos, sin, ids = (input_at(node, position) for position in order)
    if cos is None or sin is None or float(node.attr("scale", 1.0)) != 1.0:
        return None
    resolved = views.space.resolve_index(ref.index)
    count = int(np.prod([digit.extent.as_int() or 0 for digit in depth]))
    rotated = int(node.attr("rotary_embedding_dim", 0)) or count
    axis = resolved[-1]
    heads, inner = axis[: len(axis) - len(depth)], axis[len(axis) - len(depth) :]
    if inner != depth or (len(resolved) == 4 and heads) or rotated % 2:
        return None
    batch, row = resolved[0], resolved[2] if len(resolved) == 4 else resolved[1]
    lane = np.arange(count)
    half = rotated // 2
    interleaved = bool(node.attr("interleaved", 0))
    at = lane // 2 if interleaved else lane % half
    pair = np.where(lane < rotated, lane ^ 1 if interleaved else (lane + half) % rotated, lane)
    first = (lane % 2 == 0) if interleaved else (lane < half)
    tables = [
        _table(table, ids, batch, row, np.minimum(at, half - 1), half, views)
        for table in (cos, sin)
    ]
    if tables[0] is None or tables[1] is None:
        return None
    new = tuple(Atom(digit.extent, "depth") for digit in depth)
    inside = lane < rotated
    return Rope(
        Ref(source, (*resolved[:-1], (*heads, *new))),
        new,
        lane,
        pair,
        tuple((tables[0],) if spins else () for spins in inside),
        tuple((tables[1],) if spins else () for spins in inside),
        np.ones(count),
        np.where(inside, np.where(first, -1.0, 1.0), 0.0),
    )


def _table(
    table: Value, ids: Value | None, batch: Axis, row: Axis, at: np.ndarray, half: int, views: Views
) -> Factor | None:
    shape = views.shapes.shape(table)
    if shape is None or shape[-1].as_int() != half:
        return None
    column = fixed(at, Dim.of(half))
    if ids is None:
        if len(shape) != 3:
            return None
        at_batch = () if shape[0].as_int() == 1 else batch
        return Factor(table, (at_batch, row, column))
    ids_shape = views.shapes.shape(ids)
    if ids_shape is None or len(ids_shape) != 2 or len(shape) != 2:
        return None
    at_batch = () if ids_shape[0].as_int() == 1 else batch
    return Factor(Call("Gather", (table, ids), (("axis", 0),)), (at_batch, row, column))


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


def table_of(
    rope: Rope,
    order: np.ndarray,
    interleaved: bool,
    crossed: bool,
    groups: list[Axis],
    extents: Extents,
) -> Expr | None:
    """Return the cos (or, `crossed`, sin) table as an operand.

    It has one axis for each group, then the rotated lanes. None if it can't be brought there.
    """
    lanes = order[: int(rope.rotated.sum())]
    factors = [(rope.crossed if crossed else rope.straight)[lane] for lane in lanes]
    sign = (rope.crossed_sign if crossed else rope.straight_sign)[lanes]
    if crossed:
        count = np.arange(len(lanes))
        first = count % 2 == 0 if interleaved else count < len(lanes) // 2
        sign = np.where(first, -sign, sign)
    pieces: list[Expr] = []
    start = 0
    for stop in range(1, len(lanes) + 1):
        if stop < len(lanes) and _same_tables(factors[stop], factors[start]):
            continue
        piece = _piece(factors[start], lanes[start:stop], groups, extents)
        if piece is None:
            return None
        pieces.append(piece)
        start = stop
    table = pieces[0] if len(pieces) == 1 else Call("Concat", tuple(pieces), (("axis", -1),))
    if (sign == 1.0).all():
        return table
    if (sign == -1.0).all():
        return Call("Neg", (table,))
    return Call("Mul", (table, sign.astype(np.float32)))


def _same_tables(first: tuple[Factor, ...], second: tuple[Factor, ...]) -> bool:
    return len(first) == len(second) and all(
        a.table is b.table and a.index is b.index for a, b in zip(first, second, strict=True)
    )


def _piece(
    factors: tuple[Factor, ...], lanes: np.ndarray, groups: list[Axis], extents: Extents
) -> Expr | None:
    """Return the product of the factors for these lanes, (groups..., len(lanes))."""
    total: Expr | None = None
    for factor in factors:
        lane_atom = Atom(Dim.of(len(lanes)), "lane")
        axes: list[Axis] = []
        source = factor.table
        for position, axis in enumerate(factor.index):
            resolved = extents.views.space.resolve(axis)
            if not any(isinstance(digit, Fixed) and digit.index.ndim for digit in resolved):
                axes.append(resolved)
                continue
            digit = resolved[0]
            if len(resolved) != 1 or not isinstance(digit, Fixed):
                return None
            picked = digit.index[lanes]
            if not (
                len(lanes) == digit.extent.as_int() and (picked == np.arange(len(lanes))).all()
            ):
                source = Call("Gather", (source, picked), (("axis", position),))
            axes.append((lane_atom,) if len(lanes) > 1 else ())
        arranged_factor = arranged(source, tuple(axes), [*groups, (lane_atom,)], extents)
        if arranged_factor is None:
            return None
        total = arranged_factor if total is None else Call("Mul", (total, arranged_factor))
    return np.ones((1,) * len(groups) + (len(lanes),), dtype=np.float32) if total is None else total


def with_source(rope: Rope, source: Ref) -> Rope:
    """Return the same rotation of other elements."""
    return replace(rope, source=source)
