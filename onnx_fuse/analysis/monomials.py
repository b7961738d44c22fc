"""Products of symbols, of which the polynomials of extents consist: order, quotients and text."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from onnx_fuse.analysis.dims import Dim

Bound: TypeAlias = int | float
"""An integer, or an infinity."""


class Atom:
    """A factor that a polynomial cannot take apart; identified by its text."""

    __slots__ = ("args", "leaves", "maximum", "minimum", "operation", "text")

    def __init__(
        self,
        text: str,
        minimum: Bound,
        maximum: Bound,
        operation: str = "",
        args: tuple[Dim, ...] = (),
    ):
        """An atom between `minimum` and `maximum`; a leaf if there is no `operation`."""
        self.text = text
        self.minimum = minimum
        self.maximum = maximum
        self.operation = operation
        self.args = args
        self.leaves: frozenset[str] = (
            frozenset().union(*(arg.leaves for arg in args)) if operation else frozenset((text,))
        )

    def __eq__(self, other: object) -> bool:
        """Whether both are the same factor."""
        return self is other or (isinstance(other, Atom) and self.text == other.text)

    def __hash__(self) -> int:
        """Hash of the text, which is what identifies an atom."""
        return hash(self.text)

    def __repr__(self) -> str:
        """The text."""
        return self.text


Monomial: TypeAlias = tuple[tuple[Atom, int], ...]
"""Atoms with their powers, sorted by text; empty for the constant term."""

Term: TypeAlias = tuple[Monomial, int]
"""A monomial and its factor."""


def product_bounds(a: tuple[Bound, Bound], b: tuple[Bound, Bound]) -> tuple[Bound, Bound]:
    """Return the bounds of a product of two numbers that lie between these bounds."""
    # 0 times anything is 0, also where the other end is infinite.
    ends = [x * y if x and y else 0 for x in a for y in b]
    return min(ends), max(ends)


def exponents(monomial: Monomial, order: list[str]) -> list[int]:
    """Return the power of each atom, given by its text, in this order."""
    powers = {atom.text: power for atom, power in monomial}
    return [powers.get(text, 0) for text in order]


def term_quotient(left: Term, right: Term) -> Term | None:
    """Return the quotient of two terms, or None if it is none."""
    if left[1] % right[1]:
        return None
    powers = dict(left[0])
    for atom, power in right[0]:
        if powers.get(atom, 0) < power:
            return None
        powers[atom] -= power
    return tuple((atom, power) for atom, power in powers.items() if power), left[1] // right[1]


def monomial_product(a: Monomial, b: Monomial) -> Monomial:
    """Return the product of two monomials."""
    if not a or not b:
        return a or b
    powers = dict(a)
    for atom, power in b:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: item[0].text))


def term_order(term: Term) -> tuple[int, list[tuple[str, int]]]:
    """Return the sorting key of terms: higher powers first, the constant last."""
    monomial = term[0]
    return -sum(power for _, power in monomial), [(atom.text, power) for atom, power in monomial]


def sum_text(terms: tuple[Term, ...]) -> str:
    """Return the canonical text of a sum of terms."""
    if not terms:
        return "0"
    text = ""
    for monomial, factor in terms:
        factors = [atom.text if power == 1 else f"{atom.text}**{power}" for atom, power in monomial]
        if abs(factor) != 1 or not factors:
            factors.insert(0, str(abs(factor)))
        sign = "-" if factor < 0 else "+"
        text += (f" {sign} " if text else ("-" if factor < 0 else "")) + "*".join(factors)
    return text
