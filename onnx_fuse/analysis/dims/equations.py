"""Equations between symbolic integers: what one of them must be, and what then follows."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.dims.monomials import Base
from onnx_fuse.analysis.dims.polynomials import bases_of, without_common_factors


def solve(left: Dim, right: Dim) -> tuple[str, Dim] | None:
    """Return a base (by its text) of `left`, and what it must equal for `left` to be `right`.

    It is solved for a base that each of its terms has, one with an operation if there is one, else
    for a base that stands alone. None if there is no solution, or one that is no polynomial.
    """
    for base, power in sorted(_common(left), key=lambda entry: not entry[0].operation):
        rest = left.divide(Dim.of_base(base)) if power == 1 else None
        solution = None if rest is None else right.divide(rest)
        if solution is not None and _tells(base, solution):
            return base.text, solution
    return _solve_sum(left, right) if len(left.polynomial) > 1 else None


def _common(dim: Dim) -> list[tuple[Base, int]]:
    """Return the bases, each with its power, that all terms of a dim have."""
    first, *others = [monomial for monomial, _ in dim.polynomial] or [()]
    return [entry for entry in first if all(entry in monomial for monomial in others)]


def equal_factors(product: Dim, greater: Dim) -> dict[str, Dim]:
    """Return what each greatest of several (by its text) equals if two products are equal.

    Where every factor of one is among those whose greatest stands in its place in the other, none
    of these can be more than that factor. Empty if the products aren't such.
    """
    if len(product.polynomial) != 1 or len(greater.polynomial) != 1:
        return {}
    (own, factor), (others, other_factor) = product.polynomial[0], greater.polynomial[0]
    if factor != other_factor:
        return {}
    left = dict(own)
    equal: dict[str, Dim] = {}
    for base, power in others:
        found = base if left.get(base) == power else _among(base, power, left)
        if found is None:
            return {}
        del left[found]
        if found != base:
            equal[base.text] = Dim.of_base(found)
    return {} if left else equal


def _among(greatest: Base, power: int, factors: Mapping[Base, int]) -> Base | None:
    """Return the factor of that power which is one of those that a `max` is taken of."""
    arguments = Dim.of_base(greatest).arguments_of("max")
    found = (base for base, own in factors.items() if own == power)
    return next((base for base in found if Dim.of_base(base) in arguments), None)


def _solve_sum(left: Dim, right: Dim) -> tuple[str, Dim] | None:
    left, right = map(Dim, without_common_factors(left.polynomial, right.polynomial))
    for monomial, factor in left.polynomial:
        if len(monomial) != 1 or monomial[0][1] != 1 or abs(factor) != 1:
            continue
        base = monomial[0][0]
        solution = (right - (left - Dim(((monomial, factor),)))) * factor
        if _tells(base, solution):
            return base.text, solution
    return None


def _tells(base: Base, solution: Dim) -> bool:
    """Return whether a base may be replaced by what it must equal, which doesn't have it again.

    A base that is a multiple of itself is 0: replaced by that, it would never end. One that equals
    `k * (base // k)` is a multiple of a number.
    """
    if base.leaves.isdisjoint(solution.leaves):
        return True
    ((monomial, factor), *others) = solution.polynomial
    if monomial and factor > 1 and not others and solution == Dim.of_base(base) // factor * factor:
        return True
    inner = {other.text for other in bases_of(solution.polynomial)}
    return bool(base.operation) and base.text not in inner


def substitute(dim: Dim, known: Mapping[str, Dim]) -> Dim:
    """Return the dim with bases replaced by what they are known to equal.

    `known` is keyed by the bases' texts.
    """
    if not any(base.text in known for base in bases_of(dim.polynomial)):
        return dim
    total = Dim.of(0)
    for monomial, factor in dim.polynomial:
        term = Dim.of(factor)
        for base, power in monomial:
            equal = known.get(base.text) or Dim.of_base(base)
            for _ in range(power):
                term = term * equal
        total = total + term
    return total
