"""Equations between symbolic integers: what one of them must be, and what then follows."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.dims.monomials import Atom
from onnx_fuse.analysis.dims.polynomials import atoms_of, without_common_factors


def solve(left: Dim, right: Dim) -> tuple[str, Dim] | None:
    """Return an atom (by its text) of `left`, and what it must equal for `left` to be `right`.

    It is solved for an atom that each of its terms has, one with an operation if there is one, else
    for an atom that stands alone. None if there is no solution, or one that is no polynomial.
    """
    for atom, power in sorted(_common(left), key=lambda entry: not entry[0].operation):
        rest = left.divide(Dim.of_atom(atom)) if power == 1 else None
        solution = None if rest is None else right.divide(rest)
        if solution is not None and _tells(atom, solution):
            return atom.text, solution
    return _solve_sum(left, right) if len(left.polynomial) > 1 else None


def _common(dim: Dim) -> list[tuple[Atom, int]]:
    """Return the atoms, each with its power, that all terms of a dim have."""
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
    for atom, power in others:
        found = atom if left.get(atom) == power else _among(atom, power, left)
        if found is None:
            return {}
        del left[found]
        if found != atom:
            equal[atom.text] = Dim.of_atom(found)
    return {} if left else equal


def _among(greatest: Atom, power: int, factors: Mapping[Atom, int]) -> Atom | None:
    """Return the factor of that power which is one of those that a `max` is taken of."""
    arguments = Dim.of_atom(greatest).arguments_of("max")
    found = (atom for atom, own in factors.items() if own == power)
    return next((atom for atom in found if Dim.of_atom(atom) in arguments), None)


def _solve_sum(left: Dim, right: Dim) -> tuple[str, Dim] | None:
    left, right = map(Dim, without_common_factors(left.polynomial, right.polynomial))
    for monomial, factor in left.polynomial:
        if len(monomial) != 1 or monomial[0][1] != 1 or abs(factor) != 1:
            continue
        atom = monomial[0][0]
        solution = (right - (left - Dim(((monomial, factor),)))) * factor
        if _tells(atom, solution):
            return atom.text, solution
    return None


def _tells(atom: Atom, solution: Dim) -> bool:
    """Return whether an atom may be replaced by what it must equal, which doesn't have it again.

    An atom that is a multiple of itself is 0: replaced by that, it would never end. One that equals
    `k * (atom // k)` is a multiple of a number.
    """
    if atom.leaves.isdisjoint(solution.leaves):
        return True
    ((monomial, factor), *others) = solution.polynomial
    if monomial and factor > 1 and not others and solution == Dim.of_atom(atom) // factor * factor:
        return True
    inner = {other.text for other in atoms_of(solution.polynomial)}
    return bool(atom.operation) and atom.text not in inner


def substitute(dim: Dim, known: Mapping[str, Dim]) -> Dim:
    """Return the dim with atoms replaced by what they are known to equal.

    `known` is keyed by the atoms' texts.
    """
    if not any(atom.text in known for atom in atoms_of(dim.polynomial)):
        return dim
    total = Dim.of(0)
    for monomial, factor in dim.polynomial:
        term = Dim.of(factor)
        for atom, power in monomial:
            base = known.get(atom.text) or Dim.of_atom(atom)
            for _ in range(power):
                term = term * base
        total = total + term
    return total
