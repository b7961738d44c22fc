"""Queries and keys that tables multiply: with a rotation or without, and what is nearly one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.samples import steps
from tests.analysis.samples.forms import HEAD_DIM, NUM_HEADS, Form
from tests.analysis.samples.graphs import Writer
from tests.analysis.samples.operand_twins import rotation, swapped
from tests.analysis.samples.twins import BATCH, ROWS, Step, on, twin
from tests.analysis.verdicts import ALL, BOTH, KEY, OUT, QUERY, ROTATED, TABLES, Make, check_fused

NORMED = (*ALL, *TABLES[:6], *OUT)
Q_TABLES, K_TABLES = TABLES[2:4], TABLES[4:6]


def turned(w: Writer, value: str, name: str) -> str:
    return rotation(w, value, swapped(w, value))


def kept(w: Writer, value: str, name: str) -> str:
    return value


def negated(w: Writer, value: str, name: str) -> str:
    return w.b.op("Neg", value)


def times(*shape: int, given: bool = True, rotated: Step = kept, behind: bool = False) -> Step:
    """Multiply by a table of this shape, an input or a constant; it stands before, or behind."""

    def step(w: Writer, value: str, name: str) -> str:
        data = np.abs(w.random(*shape)) + 0.5
        table = w.b.input(f"table_{name}", data, shape) if given else w.b.const(data)
        factors = [table, rotated(w, value, name)]
        return w.b.op("Mul", *(reversed(factors) if behind else factors))

    return step


def over(*shape: int, given: bool = True, rotated: Step = kept, first: float = 1.0) -> Step:
    """Divide by a table of this shape, an input or a constant, whose first row is a number."""

    def step(w: Writer, value: str, name: str) -> str:
        data = np.abs(w.random(*shape)) + 0.5
        data[0] = first
        table = w.b.input(f"table_{name}", data, shape) if given else w.b.const(data)
        return w.b.op("Div", rotated(w, value, name), table)

    return step


def turned_in_other_order(w: Writer, value: str, name: str) -> str:
    """Multiply where heads stand behind rows."""
    b = w.b
    table = b.input(f"table_{name}", np.abs(w.random(ROWS, 1, 1)) + 0.5, (ROWS, 1, 1))
    rows = b.op("Mul", b.transpose(turned(w, value, name), 0, 2, 1, 3), table)
    return b.transpose(rows, 0, 2, 1, 3)


def of_the_query_alone(step: Step) -> Step:
    return lambda w, value, name: step(w, value, name) if name == "q" else value


def of_the_key_alone(step: Step) -> Step:
    return lambda w, value, name: step(w, value, name) if name == "k" else value


TAKEN: dict[str, tuple[Make, tuple[str, ...]]] = {
    "rows": (lambda: twin(rotated=times(ROWS, 1)), ROTATED),
    "rows, the table behind them": (lambda: twin(rotated=times(ROWS, 1, behind=True)), ROTATED),
    "rows by constants": (lambda: twin(rotated=times(ROWS, 1, given=False)), ROTATED),
    "rows of a batch": (lambda: twin(rotated=times(BATCH, 1, ROWS, 1)), ROTATED),
    "rows over an input": (lambda: twin(rotated=over(ROWS, 1)), ROTATED),
    "rows over constants": (lambda: twin(rotated=over(ROWS, 1, given=False)), ROTATED),
    "rotated rows over constants": (
        lambda: twin(rotated=over(ROWS, 1, given=False, rotated=turned)),
        ROTATED,
    ),
    "rotated lanes over constants": (
        lambda: twin(rotated=over(ROWS, HEAD_DIM, given=False, rotated=turned)),
        ROTATED,
    ),
    "every number, turned round": (lambda: twin(rotated=negated), (*ALL, *OUT)),
    "rows of a head": (lambda: twin(rotated=times(NUM_HEADS, ROWS, 1)), ROTATED),
    "lanes of a row": (lambda: twin(rotated=times(ROWS, HEAD_DIM)), ROTATED),
    "rows, rotated": (lambda: twin(rotated=times(ROWS, 1, rotated=turned)), ROTATED),
    "rows, rotated, by constants": (
        lambda: twin(rotated=times(ROWS, 1, given=False, rotated=turned)),
        ROTATED,
    ),
    "lanes of a row, rotated": (
        lambda: twin(rotated=times(ROWS, HEAD_DIM, rotated=turned)),
        ROTATED,
    ),
    "rows twice, rotated": (
        lambda: twin(rotated=times(ROWS, 1, given=False, rotated=times(ROWS, 1, rotated=turned))),
        ROTATED,
    ),
    "rows, rotated, behind a view": (lambda: twin(rotated=turned_in_other_order), ROTATED),
    "rows, normed": (lambda: twin(Form(norm="rms"), rotated=times(ROWS, 1)), NORMED),
    "rows by constants, normed": (
        lambda: twin(Form(norm="rms"), rotated=times(ROWS, 1, given=False)),
        NORMED,
    ),
    "lanes of the query, both rotated": (
        lambda: twin(Form(rope="half"), **on("q", "rotated", steps.times(HEAD_DIM))),
        ROTATED,
    ),
    "rows of the query before its heads are split off": (
        lambda: twin(**on("q", "normed", steps.times(ROWS, 1, 1))),
        (*ALL, *Q_TABLES, *OUT),
    ),
    "rows of the query in that order, normed": (
        lambda: twin(Form(norm="rms"), **on("q", "normed", steps.times(ROWS, 1, 1))),
        (*ALL, *TABLES[:2], *Q_TABLES, *OUT),
    ),
    "rows of the query": (
        lambda: twin(rotated=of_the_query_alone(times(ROWS, 1))),
        (*ALL, *Q_TABLES, *OUT),
    ),
    "rows of the key by constants": (
        lambda: twin(rotated=of_the_key_alone(times(ROWS, 1, given=False))),
        (*ALL, *K_TABLES, *OUT),
    ),
    "rows of the query, both rotated": (
        lambda: twin(
            rotated=lambda w, value, name: (
                times(ROWS, 1, rotated=turned)(w, value, name)
                if name == "q"
                else turned(w, value, name)
            )
        ),
        ROTATED,
    ),
}


# What is nearly one -------------------------------------------------------------------------------


def times_its_own(w: Writer, value: str, name: str) -> str:
    """The table is computed from the numbers that it multiplies."""
    mean = w.b.op("ReduceMean", value, axes=[3], keepdims=1)
    return w.b.op("Mul", value, w.b.op("Sigmoid", mean))


def in_part(w: Writer, value: str, name: str) -> str:
    """Half of the lanes are rotated, all are multiplied."""
    first, rest = w.b.split(value, [HEAD_DIM // 2] * 2, 3)
    quarters = w.b.split(first, [HEAD_DIM // 4] * 2, 3)
    crossed = w.b.op("Concat", w.b.op("Neg", quarters[1]), quarters[0], axis=-1)
    cos, sin = (w.b.const(w.random(ROWS, HEAD_DIM // 2)) for _ in range(2))
    made = w.b.op("Add", w.b.op("Mul", first, cos), w.b.op("Mul", crossed, sin))
    return w.b.op("Concat", made, rest, axis=-1)


def but_the_last(w: Writer, value: str, name: str) -> str:
    """All rows but the last are rotated, by one angle."""
    first, last = w.b.split(value, [ROWS - 1, 1], 2)
    cos, sin = (w.b.const(w.random(HEAD_DIM)) for _ in range(2))
    crossed = w.b.op("Mul", swapped(w, first), sin)
    return w.b.op("Concat", w.b.op("Add", w.b.op("Mul", first, cos), crossed), last, axis=2)


def mixed(w: Writer, value: str, name: str) -> str:
    """Queries are multiplied alone, keys rotated, by neighbours."""
    if name == "q":
        return times(ROWS, 1)(w, value, name)
    odd = [w.b.slice(value, n, HEAD_DIM, -1, 2) for n in (1, 0)]
    pair = [w.b.unsqueeze(part, 4) for part in (w.b.op("Neg", odd[0]), odd[1])]
    joined = w.b.op("Concat", *pair, axis=4)
    return rotation(w, value, w.b.op("Reshape", joined, w.b.const([0, 0, 0, HEAD_DIM], np.int64)))


def divided(w: Writer, value: str, name: str) -> str:
    table = w.b.input(f"table_{name}", np.abs(w.random(ROWS, 1)) + 0.5, (ROWS, 1))
    return w.b.op("Div", table, value)


def behind_what_is_not_projected(w: Writer, value: str, name: str) -> str:
    """Nothing is gained by a table if what it multiplies enters as a value."""
    return times(ROWS, 1)(w, w.b.op("Relu", value), name)


NEARLY: dict[str, Step] = {
    "rows by what they are": times_its_own,
    "every number by one of its own": times(BATCH, NUM_HEADS, ROWS, HEAD_DIM),
    "every number by one of its own, behind it": times(
        BATCH, NUM_HEADS, ROWS, HEAD_DIM, behind=True
    ),
    "rows, rotated in part": times(ROWS, 1, rotated=in_part),
    "some rows, rotated": times(ROWS, 1, rotated=but_the_last),
    "every number without its sign": lambda w, value, name: w.b.op("Abs", value),
    "rows that divide": divided,
    "rotated rows over an input": over(ROWS, 1, rotated=turned),
    "rows of no projection": behind_what_is_not_projected,
}


@pytest.mark.parametrize("name", TAKEN)
def test_table_is_taken_in(name: str) -> None:
    make, expected = TAKEN[name]
    check_fused(make(), expected)


@pytest.mark.parametrize("name", NEARLY)
def test_what_is_nearly_one_enters_as_values(name: str) -> None:
    check_fused(twin(rotated=NEARLY[name]), BOTH)


def test_queries_over_constants_of_which_one_is_zero_enter_as_values() -> None:
    step = of_the_query_alone(over(ROWS, 1, given=False, rotated=turned, first=0.0))
    check_fused(twin(rotated=step), QUERY)


def test_keys_that_rotate_in_another_way_than_queries_are_multiplied_enter_as_values() -> None:
    check_fused(twin(rotated=mixed), (*KEY[:-2], *Q_TABLES, *OUT))
