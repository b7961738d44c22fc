"""Symbolic integers say nothing that is not so for every value of their symbols."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_fuse.analysis.dims.dim import Dim, ceil_quotient, product, truncated_quotient
from onnx_fuse.analysis.dims.equations import equal_factors, solve
from onnx_fuse.analysis.dims.order import (
    are_one_together,
    broadcast,
    is_at_most,
    maximum,
    minimum,
    where_at_least,
)

NAMES = ("a", "b", "c")
A, B, C = map(Dim.symbol, NAMES)

# A dim, and what it must evaluate to for given values of the symbols.
Model = tuple[Dim, Callable[[dict[str, int]], int]]


def truncated(a: int, b: int) -> int:
    return int(math.copysign(abs(a) // abs(b), a * b)) if a else 0


OPERATIONS: dict[str, tuple[Callable[[Dim, Dim], Dim], Callable[[int, int], int]]] = {
    "+": (lambda x, y: x + y, lambda x, y: x + y),
    "-": (lambda x, y: x - y, lambda x, y: x - y),
    "*": (lambda x, y: x * y, lambda x, y: x * y),
    "//": (lambda x, y: x // y, lambda x, y: x // y),
    "%": (lambda x, y: x % y, lambda x, y: x % y),
    "trunc": (truncated_quotient, truncated),
    "ceil": (ceil_quotient, lambda x, y: -(-x // y)),
    "max": (maximum, max),
    "min": (minimum, min),
}


def leaf(choice: int | str) -> Model:
    if isinstance(choice, int):
        return Dim.of(choice), lambda _: choice
    return Dim.symbol(choice), lambda values: values[choice]


def joined(parts: tuple[Model, str, Model]) -> Model:
    (left, left_value), name, (right, right_value) = parts
    symbolic, numeric = OPERATIONS[name]
    if name in ("//", "%", "trunc", "ceil"):  # divisors as in graphs: numbers from 1 on
        right, right_value = maximum(right, 1), lambda values, old=right_value: max(old(values), 1)
    return symbolic(left, right), lambda values: numeric(left_value(values), right_value(values))


models = st.recursive(
    st.one_of(st.integers(-6, 12), st.sampled_from(NAMES)).map(leaf),
    lambda inner: st.tuples(inner, st.sampled_from(sorted(OPERATIONS)), inner).map(joined),
    max_leaves=8,
)
symbols = st.fixed_dictionaries(dict.fromkeys(NAMES, st.integers(0, 40)))


@given(models, symbols)
@settings(max_examples=600)
def test_a_dim_evaluates_to_what_was_computed(model: Model, values: dict[str, int]) -> None:
    dim, value = model
    assert dim.evaluate(values) == value(values)


@given(models, symbols)
def test_bounds_hold(model: Model, values: dict[str, int]) -> None:
    low, high = model[0].bounds()
    assert low <= model[1](values) <= high


@given(models, models, symbols)
@settings(max_examples=400)
def test_what_is_proved_of_two_dims_holds(
    left: Model, right: Model, values: dict[str, int]
) -> None:
    a, b = left[1](values), right[1](values)
    if left[0] == right[0]:
        assert a == b
    if is_at_most(left[0], right[0]):
        assert a <= b
    if (quotient := left[0].divide(right[0])) is not None and b:
        assert quotient.evaluate(values) == a // b
        assert a % b == 0


@given(models, st.integers(-3, 6), symbols)
def test_what_is_proved_not_to_be_a_number_is_not(
    model: Model, number: int, values: dict[str, int]
) -> None:
    if model[0].is_not(number):
        assert model[1](values) != number


@given(models, models)
def test_equal_dims_have_equal_hashes_and_texts(left: Model, right: Model) -> None:
    a, b = left[0], right[0]
    assert (a == b) == (str(a) == str(b))
    assert a + b == b + a
    assert hash(a + b) == hash(b + a)
    assert str((a + b) * 2) == str(b + a + a + b)


@given(models, models)
def test_a_product_is_divided_by_each_factor(left: Model, right: Model) -> None:
    a, b = left[0], right[0]
    if b != 0:
        assert (a * b).divide(b) == a
        assert a * b // b == a


def lengths(strides: tuple[int, ...], kernel: int) -> tuple[Dim, Dim]:
    """How many places a row of convolutions leaves, rounded towards zero and down."""
    towards_zero = down = A
    for stride in strides:
        towards_zero = truncated_quotient(towards_zero - kernel, Dim.of(stride)) + 1
        down = (down - kernel) // stride + 1
    return towards_zero, down


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("strides", [(2,), (4,), (2, 2), (3, 2, 5)], ids=str)
def test_lengths_are_rounded_alike_where_something_is_left(
    strides: tuple[int, ...], kernel: int
) -> None:
    towards_zero, down = lengths(strides, kernel)
    assert towards_zero != down
    for dim in (towards_zero, maximum(towards_zero, 0)):
        assert where_at_least(1, dim) == down
        assert broadcast(down, dim) == broadcast(dim, down) == down


@given(models, st.integers(-2, 4), symbols)
@settings(max_examples=600)
def test_a_dim_is_what_it_is_said_to_be_where_that_is_at_least_a_number(
    model: Model, least: int, values: dict[str, int]
) -> None:
    found = where_at_least(least, model[0])
    number = None if found is None else found.evaluate(values)
    if number is not None and number >= least:
        assert number == model[1](values)


@pytest.mark.parametrize(
    ("dim", "least"),
    [
        (truncated_quotient(A - 3, Dim.of(2)) + 2, 1),  # -1 is rounded to 0, and 2 are left
        (truncated_quotient(A - 3, Dim.of(2)), -1),
        (truncated_quotient(A - 3, Dim.of(2)) + B, 1),
        (truncated_quotient(A - 3, B) + 1, 1),
        (truncated_quotient(A - 3, Dim.of(2)) * B, 1),
        (5 - truncated_quotient(A - 3, Dim.of(2)), 1),
    ],
    ids=str,
)
def test_what_may_be_rounded_otherwise_is_not_said_to_be_down(dim: Dim, least: int) -> None:
    assert where_at_least(least, dim) is None


def test_what_a_greatest_may_be_is_not_left_out() -> None:
    assert where_at_least(1, maximum(A - 3, 0)) == A - 3
    assert where_at_least(1, maximum(A - 3, 1)) == maximum(A - 3, 1)
    assert where_at_least(0, maximum(A - 3, 0)) == maximum(A - 3, 0)
    assert where_at_least(1, maximum(A, B)) == maximum(A, B)


@given(symbols)
def test_broadcasting_gives_numpys_extent(values: dict[str, int]) -> None:
    a, b = values["a"], values["b"]
    result = broadcast(A, B).evaluate(values)
    if a == b or (1 in (a, b) and 0 not in (a, b)):
        assert result == max(a, b)


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (Dim.of(0), "0"),
        (Dim.of(-3), "-3"),
        (A + 1 + B - A, "b + 1"),
        (B * A * 2 - A * A, "2*a*b - a**2"),
        ((A * 4 + 6) // 4, "a + 1"),
        ((A - 1) // 2 + 1, "((a + 1) // 2)"),
        (A // 2 // 3, "(a // 6)"),
        (((A + 1) // 2 + 1) // 2, "((a + 3) // 4)"),
        ((A // 80 - 1) // 4 + 1, "((a + 240) // 320)"),
        ((A // 2 + B + 1) // 3, "((a + 2*b + 2) // 6)"),
        ((A // 2 + B // 2) // 3, "(((a // 2) + (b // 2)) // 3)"),
        ((A // B + 1) // 2, "(((a // b) + 1) // 2)"),
        ((A // 2 + 1) // B, "(((a // 2) + 1) // b)"),
        ((A * A - B * B) // (A + B), "a - b"),
        ((A * B) // B, "a"),
        ((A * 6) // 4, "(a // 2) + a"),
        ((A * 4 + 7) % 4, "3"),
        (A * B * 3 // (B * 6), "(a // 2)"),
        ((A + 1) * B * B // (B * B * C), "((a + 1) // c)"),
        ((A + B) // (B * C), "((a + b) // b*c)"),
        (A * 4 % 6, "(4*a % 6)"),
        (A % 1, "0"),
        (ceil_quotient(A, 3), "((a + 2) // 3)"),
        (truncated_quotient(A, Dim.of(2)), "(a // 2)"),
        (truncated_quotient(A - 3, Dim.of(2)), "trunc((a - 3) / 2)"),
        (truncated_quotient((A - 3) * B, B * 2), "trunc((a - 3) / 2)"),
        (truncated_quotient((A - 3) * 2, Dim.of(4)), "trunc((a - 3) / 2)"),
        (truncated_quotient(A // 2 - 3, Dim.of(2)), "trunc(((a // 2) - 3) / 2)"),
        (maximum(A, 0), "a"),
        (maximum(A + B, A), "a + b"),
        (maximum(B, maximum(A, B)), "max(a, b)"),
        (minimum(maximum(A, C), A), "a"),
        (maximum(0, minimum(A + B, 40) - A), "max((-a + min(40, (a + b))), 0)"),
        (broadcast(A, Dim.of(1)), "a"),
        (broadcast(A, Dim.of(5)), "5"),
        (broadcast(A, B * 2), "2*b"),
        (broadcast(A, A + B), "a + b"),
        (broadcast(A, minimum(A, 512)), "a"),
        (broadcast(B, minimum(A, 32) // A), "b"),
        (broadcast(B, Dim.of(0)), "0"),
        (broadcast(B, A // C), "max((a // c), b)"),
        (broadcast(B, maximum(0, minimum(A + B, 40) - A)), "b"),
        (broadcast(A, B), "max(a, b)"),
        (product([A, Dim.of(2), A]), "2*a**2"),
        (Dim.symbol("a + b"), "'a + b'"),
        (Dim.symbol("7"), "'7'"),
        (Dim.unknown("x", 1, extent=True), "?x[1]"),
        (Dim.unknown("x", 1, extent=False), "?x{1}"),
    ],
    ids=str,
)
def test_normal_form(dim: Dim, text: str) -> None:
    assert str(dim) == text


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (A, B),
        (Dim.symbol("a + b"), A + B),
        (Dim.symbol("(a // 2)"), A // 2),
        (Dim.symbol("?x[0]"), Dim.unknown("x", 0, extent=True)),
        (Dim.unknown("x", 0, extent=False), Dim.unknown("x", 0, extent=True)),
        (A // 2, (A + 1) // 2),
        (A // 2 * 2, A),
        (A // 2 * 2 // 3, A // 6),
        ((A // 2) * (A // 2) // 3, A // 6),
        (maximum(A, B), A),
    ],
    ids=str,
)
def test_what_may_differ_is_not_equal(left: Dim, right: Dim) -> None:
    assert left != right
    assert str(left) != str(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [(A + 1, Dim.of(2)), (A, B), (A * B, A * A), (A, Dim.of(0)), (A + B, A + C)],
    ids=str,
)
def test_what_may_leave_a_rest_is_not_divided(left: Dim, right: Dim) -> None:
    assert left.divide(right) is None


def test_an_unknown_element_may_be_negative_and_an_extent_may_not() -> None:
    assert Dim.unknown("x", 0, extent=True).is_not(-1)
    assert not Dim.unknown("x", 0, extent=False).is_not(-1)
    assert not A.is_not(0)
    assert not A.is_not(1)
    assert minimum(A, 3).is_not(4)
    assert not minimum(A, 3).is_not(3)


def test_which_extents_broadcast_only_if_they_are_equal() -> None:
    assert are_one_together(A, minimum(A, 24))
    assert are_one_together(minimum(A, 3), minimum(A, B + 2))
    assert not are_one_together(A, minimum(A, B))
    assert not are_one_together(A, minimum(B, 24))
    assert not are_one_together(A, maximum(A, 24))


def test_a_dim_compares_with_numbers() -> None:
    assert Dim.of(7) == 7
    assert hash(Dim.of(7)) == hash(7)
    assert A != 7
    assert (A - A).as_int() == 0
    assert A.as_int() is None


def test_a_missing_symbol_leaves_the_number_unknown() -> None:
    assert (A + B).evaluate({"a": 2}) is None
    assert (A - A + 3).evaluate({}) == 3


def test_nesting_does_not_let_texts_and_times_grow_without_limit() -> None:
    dim = A
    for _ in range(200):
        dim = maximum(dim // 3, dim % 7 - B)
    assert len(str(dim)) < 1000
    assert dim.evaluate({"a": 10**9, "b": 1}) is not None


def test_powers_do_not_grow_without_limit() -> None:
    dim = A + 1
    for _ in range(100):
        dim = dim * dim
    assert len(str(dim)) < 10_000
    assert not (Dim.of(1 << 62) * 4).fits_int64()
    assert Dim.of(-(1 << 63)).fits_int64()


def test_a_sum_is_solved_for_what_is_no_part_of_the_rest() -> None:
    unknown, seq = Dim.unknown("table", 0, extent=True), Dim.symbol("seq")
    greater = maximum(unknown, seq - 1)
    assert solve(greater + 1, seq) == (str(greater), seq - 1)
    assert solve(greater + 1, greater * 2) is None
    batch = Dim.symbol("batch")
    assert solve((greater + 1) * batch * 64, batch * seq * 64) == (str(greater), seq - 1)
    assert solve((greater + 1) * 64, batch * seq * 64 + 1) is None


def test_a_sum_is_solved_for_what_each_of_its_terms_has() -> None:
    parts, rest = Dim.symbol("parts"), A + B
    assert solve(parts * rest, C * rest * 2) == (str(parts), C * 2)
    assert solve(parts * rest, C) is None
    assert solve(parts * parts * rest, C * rest) is None
    assert solve(parts * rest, parts * rest * 2) is None
    assert solve(Dim.of(0), A) is None


def test_what_has_a_power_or_is_part_of_the_rest_is_not_solved_for() -> None:
    assert solve(A * A, B) is None
    assert solve(A * A + A * B, C) is None
    assert solve(A + 1, A // 2 + 4) is None
    assert solve(A * 64, A // 3 * 192) == (str(A), A // 3 * 3)  # a multiple of 3
    assert solve(A * B, A // 3 * B * 3) == (str(A), A // 3 * 3)
    assert solve(A, A // 3 * 2) is None
    assert solve(A, A // 3 * 3 + 1) is None
    assert solve(A, A // B * B) is None
    greater = maximum(A, B - 1)
    assert solve(greater * 2, B * 6) == (str(greater), B * 3)
    assert solve(greater * 2, greater * 6) is None  # else it were three times itself, for ever
    assert solve(greater * 2, greater * B * 6) is None


# Two products, and what follows for the greatest factors of the second if they are equal.
EQUAL_PRODUCTS: list[tuple[Dim, Dim, dict[Dim, Dim]]] = [
    (A * B, maximum(A, C) * B, {maximum(A, C): A}),
    (
        A * B * B * 4,
        maximum(A, C) * maximum(B, C) * maximum(B, C) * 4,
        {maximum(A, C): A, maximum(B, C): B},
    ),
    (A * B, maximum(A, B) * B, {maximum(A, B): A}),
    (A * B, maximum(A, B) * A, {maximum(A, B): B}),
    (A * B, A * B, {}),
    (A * B, maximum(A, C) * B * 2, {}),
    (A * B, maximum(A, C), {}),
    (A, maximum(A, C) * B, {}),
    (A * B, maximum(B, C) * B, {}),
    (A * A, maximum(A, C) * A, {}),
    (A * B, minimum(A, C) * B, {}),
    (A * B, maximum(A, C) * B + 1, {}),
    (A * B + 1, maximum(A, C) * B + 1, {}),
]


@pytest.mark.parametrize(("product", "greater", "equal"), EQUAL_PRODUCTS, ids=str)
def test_factors_of_equal_products(product: Dim, greater: Dim, equal: dict[Dim, Dim]) -> None:
    assert equal_factors(product, greater) == {str(each): own for each, own in equal.items()}


FACTORS = [A, B, C, *(maximum(x, y) for x, y in ((A, B), (A, C), (B, C)))]


@given(
    st.lists(st.sampled_from(FACTORS[:3]), min_size=1, max_size=4),
    st.lists(st.sampled_from(FACTORS), min_size=1, max_size=4),
    st.lists(st.integers(1, 3), min_size=3, max_size=3),
)
def test_factors_are_equal_wherever_the_products_are(
    left: list[Dim], right: list[Dim], numbers: list[int]
) -> None:
    known = dict(zip(map(str, (A, B, C)), numbers, strict=True))
    one, other = product(left), product(right)
    if one.evaluate(known) != other.evaluate(known):
        return
    for text, own in equal_factors(one, other).items():
        (greatest,) = (each for each in FACTORS if str(each) == text)
        assert greatest.evaluate(known) == own.evaluate(known)
