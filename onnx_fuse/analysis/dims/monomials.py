"""Products of symbols, of which the polynomials of extents consist: order and quotients."""

from __future__ import annotations

from typing import TypeAlias

Bound: TypeAlias = int | float
"""An integer, or an infinity."""


class Base:
    """A factor that a polynomial cannot take apart; identified by its text."""

    __slots__ = ("args", "leaves", "maximum", "minimum", "operation", "text")

    def __init__(
        self,
        text: str,
        minimum: Bound,
        maximum: Bound,
        operation: str = "",
        args: tuple[Polynomial, ...] = (),
    ):
        """A base between `minimum` and `maximum`; a leaf if there is no `operation`."""
        self.text = text
        self.minimum = minimum
        self.maximum = maximum
        self.operation = operation
        self.args = args
        inner = (base.leaves for arg in args for monomial, _ in arg for base, _ in monomial)
        self.leaves: frozenset[str] = frozenset().union(*inner) if operation else frozenset((text,))

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same factor."""
        return self is other or (isinstance(other, Base) and self.text == other.text)

    def __hash__(self) -> int:
        """Hash of the text, which is what identifies a base."""
        return hash(self.text)

    def __repr__(self) -> str:
        """Return the text."""
        return self.text


Monomial: TypeAlias = tuple[tuple[Base, int], ...]
"""Bases with their powers, sorted by text; empty for the constant term."""

Term: TypeAlias = tuple[Monomial, int]
"""A monomial and its factor."""

Polynomial: TypeAlias = tuple[Term, ...]
"""The sum of terms in `term_order`, no factor of which is 0."""


def product_bounds(a: tuple[Bound, Bound], b: tuple[Bound, Bound]) -> tuple[Bound, Bound]:
    """Return the bounds of a product of two numbers that lie between these bounds."""
    # 0 times anything is 0, also where the other end is infinite.
    ends = [x * y if x and y else 0 for x in a for y in b]
    return min(ends), max(ends)


def exponents(monomial: Monomial, order: list[str]) -> list[int]:
    """Return the power of each base, given by its text, in this order."""
    powers = {base.text: power for base, power in monomial}
    return [powers.get(text, 0) for text in order]


def term_quotient(left: Term, right: Term) -> Term | None:
    """Return the quotient of two terms, or None if it is none."""
    if left[1] % right[1]:
        return None
    powers = dict(left[0])
    for base, power in right[0]:
        if powers.get(base, 0) < power:
            return None
        powers[base] -= power
    return tuple((base, power) for base, power in powers.items() if power), left[1] // right[1]


def monomial_product(a: Monomial, b: Monomial) -> Monomial:
    """Return the product of two monomials."""
    if not a or not b:
        return a or b
    powers = dict(a)
    for base, power in b:
        powers[base] = powers.get(base, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: item[0].text))


def term_order(term: Term) -> tuple[int, list[tuple[str, int]]]:
    """Return the sorting key of terms: higher powers first, the constant last."""
    monomial = term[0]
    return -sum(power for _, power in monomial), [(base.text, power) for base, power in monomial]
