"""Polynomials with integer coefficients over bases, in the normal form of `monomials`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from onnx_fuse.analysis.dims.monomials import (
    Base,
    Bound,
    Monomial,
    Polynomial,
    Term,
    exponents,
    monomial_product,
    product_bounds,
    term_order,
    term_quotient,
)
from onnx_fuse.analysis.dims.operations import OPERATIONS

# Steps of a division; a longer quotient is of no use to anyone.
_MAX_STEPS = 128

ONE: Polynomial = (((), 1),)


def normal_form(terms: Mapping[Monomial, int]) -> Polynomial:
    """Return the sum of the terms."""
    kept = [term for term in terms.items() if term[1]]
    if len(kept) > 1:
        kept.sort(key=term_order)
    return tuple(kept)


def bases_of(polynomial: Polynomial) -> list[Base]:
    """Return the bases of all terms; one that several terms have comes several times."""
    return [base for monomial, _ in polynomial for base, _ in monomial]


def degree(polynomial: Polynomial) -> int:
    """Return the greatest number of bases that any term multiplies; 0 for a constant."""
    return max((sum(power for _, power in monomial) for monomial, _ in polynomial), default=0)


def bounds(polynomial: Polynomial) -> tuple[Bound, Bound]:
    """Return numbers that it is never below and never above; infinite where there is none."""
    low: Bound = 0
    high: Bound = 0
    for monomial, factor in polynomial:
        ends: tuple[Bound, Bound] = (factor, factor)
        for base, power in monomial:
            for _ in range(power):
                ends = product_bounds(ends, (base.minimum, base.maximum))
        low, high = low + ends[0], high + ends[1]
    return low, high


def text(polynomial: Polynomial) -> str:
    """Return the canonical text."""
    if not polynomial:
        return "0"
    result = ""
    for monomial, factor in polynomial:
        factors = [base.text if power == 1 else f"{base.text}**{power}" for base, power in monomial]
        if abs(factor) != 1 or not factors:
            factors.insert(0, str(abs(factor)))
        sign = "-" if factor < 0 else "+"
        result += (f" {sign} " if result else ("-" if factor < 0 else "")) + "*".join(factors)
    return result


def total(left: Polynomial, right: Polynomial, times: int = 1) -> Polynomial:
    """Return `left + times * right`."""
    terms = dict(left)
    for monomial, factor in right:
        terms[monomial] = terms.get(monomial, 0) + times * factor
    return normal_form(terms)


def product(left: Polynomial, right: Polynomial) -> Polynomial:
    """Return the product, every term with every other."""
    terms: dict[Monomial, int] = {}
    for a, factor_a in left:
        for b, factor_b in right:
            monomial = monomial_product(a, b)
            terms[monomial] = terms.get(monomial, 0) + factor_a * factor_b
    return normal_form(terms)


def exact_quotient(left: Polynomial, right: Polynomial) -> Polynomial | None:
    """Return the quotient if it is proved to be exact (wherever `right` is not 0), else None."""
    if not right:
        return None
    if left == right:
        return ONE
    order = sorted({base.text for each in (left, right) for base in bases_of(each)})

    def leading(polynomial: Polynomial) -> Term:
        return max(polynomial, key=lambda term: exponents(term[0], order))

    divisor = leading(right)
    quotient: Polynomial = ()
    rest = left
    for _ in range(_MAX_STEPS):
        if not rest:
            return quotient
        step = term_quotient(leading(rest), divisor)
        if step is None:
            return None
        quotient, rest = total(quotient, (step,)), total(rest, product((step,), right), -1)
    return None


def without_common_factors(left: Polynomial, right: Polynomial) -> tuple[Polynomial, Polynomial]:
    """Return both without the number and the bases of which each is a multiple."""
    number = math.gcd(*(factor for _, factor in (*left, *right)))
    factors: list[Polynomial] = [((((), number)),)] if number else []
    first = left[0][0] if left else ()
    factors += [((((base, 1),), 1),) for base, power in first for _ in range(power)]
    for common in factors:
        own, other = exact_quotient(left, common), exact_quotient(right, common)
        if own is not None and other is not None:
            left, right = own, other
    return left, right


def evaluate(polynomial: Polynomial, symbols: Mapping[str, int]) -> int | None:
    """Return the number for these values of the leaves, None if one that counts is missing.

    Raises: ZeroDivisionError if it divides by something that is 0 for them.
    """
    known: dict[str, int | None] = {}  # operations share arguments: each is evaluated once
    stack = bases_of(polynomial)
    while stack:
        base = stack[-1]
        inside: Iterable[Base] = (inner for arg in base.args for inner in bases_of(arg))
        missing = [inner for inner in inside if inner.text not in known]
        if missing:
            stack.extend(missing)
            continue
        stack.pop()
        if not base.operation:
            known[base.text] = symbols.get(base.text)
            continue
        left, right = (_sum(arg, known) for arg in base.args)
        known[base.text] = None
        if left is not None and right is not None:
            known[base.text] = OPERATIONS[base.operation][1](left, right)
    return _sum(polynomial, known)


def _sum(polynomial: Polynomial, known: Mapping[str, int | None]) -> int | None:
    result = 0
    for monomial, factor in polynomial:
        for base, power in monomial:
            number = known[base.text]
            if number is None:
                return None
            factor *= number**power
        result += factor
    return result
