"""Rotations that are written out in rare ways, and what is nearly one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests.analysis.samples.forms import HEAD_DIM, NUM_HEADS, Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.operand_twins import (
    added_at_ends,
    crossed_by_pads,
    rotation,
    swapped,
    tables,
)
from tests.analysis.samples.twins import BATCH, ROWS, Step, twin
from tests.analysis.verdicts import BOTH, KEY, OUT, ROTATED, Make, check_fused

HALF = HEAD_DIM // 2
WIDTH = NUM_HEADS * HEAD_DIM
INT64 = 7
Join = Callable[[Writer, str, str], str]


def joined(w: Writer, first: str, second: str) -> str:
    return w.b.op("Concat", first, second, axis=-1)


def of_halves(w: Writer, first: str, second: str, *, count: int = HALF, join: Join = joined) -> str:
    """(first * cos - second * sin, first * sin + second * cos)."""
    b, (cos, sin) = w.b, tables(w, ROWS, count)
    real = b.op("Sub", b.op("Mul", first, cos), b.op("Mul", second, sin))
    imaginary = b.op("Add", b.op("Mul", first, sin), b.op("Mul", second, cos))
    return join(w, real, imaginary)


def backwards(w: Writer, value: str, name: str) -> str:
    """What the first half becomes has the sine added, what the second becomes has it taken off."""
    first, second = w.b.split(value, [HALF] * 2, 3)
    return rotation(w, value, w.b.op("Concat", second, w.b.op("Neg", first), axis=-1))


def halves_made_longer(w: Writer, value: str, name: str) -> str:
    """What the halves become is made as long as both by zeros, and added."""
    return of_halves(w, *w.b.split(value, [HALF] * 2, 3), join=added_at_ends)


def gathered(w: Writer, value: str, *shape: int) -> list[str]:
    """Cut the lanes into (2, half) or (half, 2), and take both places of the 2."""
    cut = w.b.reshape(value, BATCH, NUM_HEADS, ROWS, *shape)
    axis = 3 + shape.index(2)
    return [w.b.op("Gather", cut, w.b.const(n, np.int64), axis=axis) for n in (0, 1)]


def gathered_halves(w: Writer, value: str, name: str) -> str:
    """The halves that are crossed are gathered, what is passed straight on is not."""
    first, second = gathered(w, value, 2, HALF)
    crossed = w.b.op("Concat", w.b.op("Neg", second), first, axis=-1)
    return rotation(w, value, crossed)


def halves_in_a_sequence(*places: int) -> Step:
    """The halves that are crossed are cut into a sequence, of which these are taken."""

    def rotated(w: Writer, value: str, name: str) -> str:
        parts = w.b.op("SplitToSequence", value, w.b.const(HALF, np.int64), axis=-1)
        places_of = [w.b.const(place, np.int64) for place in places]
        first, second = (w.b.op("SequenceAt", parts, place) for place in places_of)
        return rotation(w, value, w.b.op("Concat", w.b.op("Neg", second), first, axis=-1))

    return rotated


def by_numbers(*shape: int) -> Step:
    """Cosines and sines of this shape; every lane is turned by the same."""

    def rotated(w: Writer, value: str, name: str) -> str:
        b, (cos, sin) = w.b, tables(w, *shape)
        return b.op("Add", b.op("Mul", value, cos), b.op("Mul", swapped(w, value), sin))

    return rotated


def by_numbers_in_part(w: Writer, value: str, name: str) -> str:
    """One number for the lanes of the first quarter and their partners, tables for the others."""
    b, quarter = w.b, HEAD_DIM // 4
    parts = b.split(value, [quarter] * 4, 3)
    turns = [tables(w, 1), tables(w, ROWS, quarter)]
    real, imaginary = [], []
    for (cos, sin), first, second in zip(turns, parts[:2], parts[2:], strict=True):
        real.append(b.op("Sub", b.op("Mul", first, cos), b.op("Mul", second, sin)))
        imaginary.append(b.op("Add", b.op("Mul", first, sin), b.op("Mul", second, cos)))
    return b.op("Concat", *real, *imaginary, axis=-1)


def by_two_tables_in_part(w: Writer, value: str, name: str) -> str:
    """The first quarter of each half is multiplied by one table more than the second."""
    b, quarter = w.b, HEAD_DIM // 4
    parts = b.split(value, [quarter] * 4, 3)
    cos, sin = tables(w, ROWS, quarter)
    more = b.const(w.random(ROWS, quarter))
    straight = [
        b.op("Mul", b.op("Mul", part, more) if number % 2 == 0 else part, cos)
        for number, part in enumerate(parts)
    ]
    crossed = [b.op("Mul", part, sin) for part in parts]
    real = [b.op("Sub", straight[n], crossed[n + 2]) for n in (0, 1)]
    imaginary = [b.op("Add", crossed[n], straight[n + 2]) for n in (0, 1)]
    return b.op("Concat", *real, *imaginary, axis=-1)


def below_many_steps(w: Writer, value: str, name: str) -> str:
    """Rotate behind more operators than Python's calls may be deep."""
    minus = w.b.scalar(-1.0)
    for _ in range(1500):
        value = w.b.op("Mul", value, minus)
    return rotation(w, value, swapped(w, value))


EVEN, ODD = range(0, HEAD_DIM, 2), range(1, HEAD_DIM, 2)


def written(*lanes: Sequence[int], reduction: str = "none") -> Step:
    """Pairs of neighbours are rotated; their first lanes are written at these, then the second."""

    def rotated(w: Writer, value: str, name: str) -> str:
        b, (cos, sin) = w.b, tables(w, ROWS, HALF)
        first, second = (b.slice(value, start, HEAD_DIM, 3, 2) for start in (0, 1))
        parts = (
            b.op("Sub", b.op("Mul", first, cos), b.op("Mul", second, sin)),
            b.op("Add", b.op("Mul", first, sin), b.op("Mul", second, cos)),
        )
        made = b.const(np.zeros((HEAD_DIM, NUM_HEADS, ROWS, BATCH), np.float32))
        for part, places in zip(parts, lanes, strict=True):
            at = b.const(np.array(places)[:, None], np.int64)
            more = b.slice(part, 0, len(places) - HALF, 3)
            turned = b.transpose(b.op("Concat", part, more, axis=3), 3, 1, 2, 0)
            made = b.op("ScatterND", made, at, turned, reduction=reduction)
        return b.transpose(made, 3, 1, 2, 0)

    return rotated


def first_lanes_written(*, rows: Sequence[int] = range(ROWS), last: int = HALF) -> Step:
    """The first lanes are rotated and written where they were; each place is numbered."""

    def rotated(w: Writer, value: str, name: str) -> str:
        b, quarter = w.b, HALF // 2
        halves = (b.slice(value, start, start + quarter, 3) for start in (0, quarter))
        turned = of_halves(w, *halves, count=quarter)
        axes = (range(BATCH), range(NUM_HEADS), rows, [*range(HALF - 1), last - 1])
        places = np.stack(np.meshgrid(*map(np.array, axes), indexing="ij"), axis=-1)
        return b.op("ScatterND", value, b.const(places, np.int64), turned)

    return rotated


def swapped_quarters(w: Writer, value: str) -> str:
    """What is crossed in where each half is turned by itself."""
    parts = w.b.split(value, [HALF // 2] * 4, 3)
    negative = [w.b.op("Neg", parts[n]) for n in (1, 3)]
    return w.b.op("Concat", negative[0], parts[0], negative[1], parts[2], axis=-1)


def by_tables_of_all_heads(*order: int, cross: Callable[[Writer, str], str] = swapped) -> Step:
    """The heads' tables stand side by side, with their lanes in the order (0, 2, 1, 3) or not."""

    def rotated(w: Writer, value: str, name: str) -> str:
        b, (cos, sin) = w.b, tables(w, ROWS, WIDTH)
        straight, crossed = (
            b.reshape(b.transpose(part, *order), BATCH, ROWS, WIDTH)
            for part in (value, cross(w, value))
        )
        made = b.op("Add", b.op("Mul", straight, cos), b.op("Mul", crossed, sin))
        shape = [(BATCH, NUM_HEADS, ROWS, HEAD_DIM)[axis] for axis in order]
        return b.transpose(b.reshape(made, *shape), *np.argsort(order).tolist())

    return rotated


def by_matrices(op_type: str, *, size: int = 2, given: bool = False, own: bool = False) -> Step:
    """Each pair of lanes (or `size` of them) is multiplied by a matrix of its own.

    given: the matrices are computed from an input; own: they are computed from the lanes.
    """

    def rotated(w: Writer, value: str, name: str) -> str:
        b, count = w.b, HEAD_DIM // size
        lanes, data = (
            b.reshape(value, BATCH, NUM_HEADS, ROWS, count, size),
            w.random(ROWS, count, size, size),
        )
        matrices = b.const(data)
        if given:
            matrices = b.op("Tanh", b.input(f"matrices_{name}", data, data.shape))
        if own:
            matrices = b.op("Mul", matrices, b.op("Tanh", b.unsqueeze(lanes, 5)))
        match op_type:
            case "Einsum":
                made = b.op("Einsum", lanes, matrices, equation="bhrdi,rdoi->bhrdo")
            case "MatMul":
                made = b.op("MatMul", matrices, b.unsqueeze(lanes, 5))
            case _:
                products = b.op("Mul", matrices, b.unsqueeze(lanes, 4))
                made = b.op("ReduceSum", products, b.const([-1], np.int64), keepdims=0)
        return b.reshape(made, BATCH, NUM_HEADS, ROWS, HEAD_DIM)

    return rotated


WHOLE: dict[str, tuple[Make, tuple[str, ...]]] = {
    "last lanes, of the keys one head's": (
        lambda: twin(rotated=last_lanes_of_one_head),
        (*KEY[:-2], "q_cos", "q_sin", *OUT),
    ),
    "lanes written": (lambda: twin(rotated=written(EVEN, ODD)), ROTATED),
    "first lanes written": (lambda: twin(rotated=first_lanes_written()), ROTATED),
    "backwards": (lambda: twin(rotated=backwards), ROTATED),
    "halves made longer": (lambda: twin(rotated=halves_made_longer), ROTATED),
    "crossed halves made longer": (lambda: twin(rotated=crossed_by_pads()), ROTATED),
    "halves that are gathered": (lambda: twin(rotated=gathered_halves), ROTATED),
    "halves in a sequence": (lambda: twin(rotated=halves_in_a_sequence(0, 1)), ROTATED),
    "some lanes by one table more": (lambda: twin(rotated=by_two_tables_in_part), ROTATED),
    "all lanes by one number": (lambda: twin(rotated=by_numbers(1, 1)), ROTATED),
    "all lanes of a row by one number": (lambda: twin(rotated=by_numbers(ROWS, 1)), ROTATED),
    "half of the lanes by one number": (lambda: twin(rotated=by_numbers_in_part), ROTATED),
    "lanes by the tables of all heads": (
        lambda: twin(rotated=by_tables_of_all_heads(0, 2, 1, 3)),
        ROTATED,
    ),
    "pairs by matrices and a sum": (lambda: twin(rotated=by_matrices("ReduceSum")), ROTATED),
    "pairs times matrices": (lambda: twin(rotated=by_matrices("MatMul")), ROTATED),
    "pairs by an Einsum with given matrices": (
        lambda: twin(rotated=by_matrices("Einsum", given=True)),
        ROTATED,
    ),
    "below many steps": (lambda: twin(rotated=below_many_steps), ROTATED),
}


# What is nearly a rotation ------------------------------------------------------------------------


def halves_and_pairs(w: Writer, value: str, name: str) -> str:
    """What is passed straight on are halves, what is crossed are neighbours."""
    halves, pairs = gathered(w, value, 2, HALF), gathered(w, value, HALF, 2)
    b, (cos, sin) = w.b, tables(w, ROWS, HALF)
    real = b.op("Sub", b.op("Mul", halves[0], cos), b.op("Mul", pairs[1], sin))
    imaginary = b.op("Add", b.op("Mul", pairs[0], sin), b.op("Mul", halves[1], cos))
    return b.op("Concat", real, imaginary, axis=-1)


def of_other_heads(w: Writer, value: str, name: str) -> str:
    """What is crossed in is another head's."""
    order = w.b.const([1, 0, 3, 2], np.int64)
    return rotation(w, value, swapped(w, w.b.op("Gather", value, order, axis=1)))


def of_turned_rows(w: Writer, value: str, name: str) -> str:
    """A square of lanes and rows is crossed with itself, turned."""
    lanes, _ = w.b.split(value, [ROWS, HEAD_DIM - ROWS], 3)
    turned = w.b.op("Relu", w.b.transpose(lanes, 0, 1, 3, 2))
    cos, sin = tables(w, ROWS, ROWS)
    straight = w.b.op("Mul", turned, cos)
    crossed = w.b.op("Mul", w.b.transpose(turned, 0, 1, 3, 2), sin)
    return w.b.transpose(w.b.op("Add", straight, crossed), 0, 1, 3, 2)


def some_lanes_twice(w: Writer, value: str, name: str) -> str:
    """Six lanes are rotated; the last two are copies of the first."""
    b, count = w.b, HEAD_DIM - 2
    first, second, _ = b.split(value, [count // 2, count // 2, 2], 3)
    made = of_halves(w, first, second, count=count // 2)
    return b.op("Concat", made, b.slice(value, 0, 2, 3), axis=-1)


def three_of_a_pair(w: Writer, value: str, name: str) -> str:
    """Both lanes of a pair have a part of a third one."""
    b, count = w.b, HEAD_DIM // 4
    first, second, third, _ = b.split(value, [count] * 4, 3)
    both = b.op("Concat", third, third, axis=-1)
    more = b.op("Mul", both, b.const(w.random(ROWS, 2 * count)))
    return b.op("Add", of_halves(w, first, second, count=count), more)


def crossed_in_whole_numbers(w: Writer, value: str, name: str) -> str:
    """What is crossed in loses its fractions."""
    whole = w.b.op("Cast", swapped(w, value), to=INT64)
    return rotation(w, value, w.b.op("Cast", whole, to=1))


def by_matrix(w: Writer, value: str, name: str) -> str:
    """The matrix that exchanges the lanes is known only at run time."""
    data = w.random(HEAD_DIM, HEAD_DIM)
    matrix = w.b.input(f"matrix_{name}", data, data.shape)
    return rotation(w, value, w.b.op("MatMul", value, matrix))


def by_row(w: Writer, value: str, name: str) -> str:
    """One lane is crossed with all, by a matrix of one row."""
    row = w.b.const(w.random(1, HEAD_DIM))
    return rotation(w, value, w.b.op("MatMul", w.b.slice(value, 0, 1, 3), row))


def exchanged_first(w: Writer, value: str, name: str) -> str:
    """The halves of what isn't projected change places and are rotated."""
    return of_halves(w, *reversed(w.b.split(w.b.op("Relu", value), [HALF] * 2, 3)))


def only_exchanged(w: Writer, value: str, name: str) -> str:
    """The halves change places, each by a matrix of its own, and nothing is rotated."""
    exchange = np.roll(np.eye(HEAD_DIM, dtype=np.float32), HALF, axis=1)
    of_first = np.arange(HEAD_DIM)[:, None] < HALF
    halves = (exchange * of_first, exchange * ~of_first)
    return w.b.op("Add", *(w.b.op("MatMul", value, w.b.const(half)) for half in halves))


def of_more_lanes(w: Writer, value: str, name: str) -> str:
    """What isn't projected has more lanes than are rotated and asked."""
    wide = w.b.op("Relu", w.b.op("Concat", value, w.b.op("Tanh", value), axis=-1))
    return of_halves(w, *w.b.split(wide, [HALF, HALF, HEAD_DIM], 3)[:2])


def behind_a_head_of_a_batch(w: Writer, value: str, name: str) -> str:
    """All heads of all batches, side by side, are rotated but the first."""
    b, count = w.b, BATCH * NUM_HEADS
    first, rest = b.split(b.reshape(value, count, ROWS, HEAD_DIM), [1, count - 1], 0)
    turned = of_halves(w, *b.split(rest, [HALF] * 2, 2))
    joined = b.op("Concat", first, turned, axis=0)
    return b.reshape(joined, BATCH, NUM_HEADS, ROWS, HEAD_DIM)


def last_lanes_of_one_head(w: Writer, value: str, name: str) -> str:
    """The last lanes are rotated, the keys' those of one head, which all heads share."""
    b = w.b
    kept, last = b.split(value, [HALF] * 2, 3)
    turned = of_halves(w, *b.split(last, [HALF // 2] * 2, 3), count=HALF // 2)
    if name == "k":
        shape = b.const([BATCH, NUM_HEADS, ROWS, HALF], np.int64)
        turned = b.op("Expand", b.slice(turned, 0, 1, 1), shape)
    return b.op("Concat", kept, turned, axis=-1)


def nothing_written(w: Writer, value: str, name: str) -> str:
    """No rows are written over any."""
    b = w.b
    rows = b.transpose(value, 2, 1, 0, 3)
    none = b.const(np.zeros((0, 1)), np.int64)
    made = b.op("ScatterND", rows, none, b.slice(rows, 0, 0, 0))
    return b.transpose(made, 2, 1, 0, 3)


IN_PART: dict[str, Step] = {
    "lanes written over others": written(EVEN, EVEN),
    "a lane written twice at once": written([*EVEN, EVEN[-1]], ODD),
    "lanes added to others": written(EVEN, ODD, reduction="add"),
    "first lanes written in other rows": first_lanes_written(rows=range(ROWS)[::-1]),
    "first lanes written, one of which is the last": first_lanes_written(last=HEAD_DIM),
    "halves made longer by ones": crossed_by_pads(number=1.0),
    "halves made longer that overlap": crossed_by_pads(shift=1),
    "halves with pairs": halves_and_pairs,
    "one half of a sequence, twice": halves_in_a_sequence(0, 0),
    "lanes of other heads": of_other_heads,
    "lanes with rows": of_turned_rows,
    "some lanes twice": some_lanes_twice,
    "two lanes of three": three_of_a_pair,
    "lanes in whole numbers": crossed_in_whole_numbers,
    "lanes by a matrix of the run": by_matrix,
    "lanes by a row": by_row,
    "halves exchanged before": exchanged_first,
    "halves exchanged, and no more": only_exchanged,
    "some lanes of a value": of_more_lanes,
    "all heads of all batches but one": behind_a_head_of_a_batch,
    "fours by matrices": by_matrices("ReduceSum", size=4),
    "pairs times matrices of their own": by_matrices("MatMul", own=True),
    "lanes of halves by the tables of all heads": by_tables_of_all_heads(
        0, 2, 1, 3, cross=swapped_quarters
    ),
    "lanes outermost, by the tables of all heads": by_tables_of_all_heads(0, 2, 3, 1),
    "nothing written over rows": nothing_written,
}


@pytest.mark.parametrize("name", WHOLE)
def test_rotation_is_taken_in(name: str) -> None:
    make, expected = WHOLE[name]
    check_fused(make(), expected)


@pytest.mark.parametrize("name", IN_PART)
def test_what_is_nearly_one_enters_as_values(name: str) -> None:
    check_fused(twin(rotated=IN_PART[name]), BOTH)


def test_a_norm_counts_each_lane_once() -> None:
    check_fused(twin(Form(norm="rms"), rotated=some_lanes_twice), BOTH)
