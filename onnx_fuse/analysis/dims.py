"""Symbolic integers: the extents of tensors, and the integers that graphs compute from them.

A `Dim` is a polynomial with integer coefficients over atoms. An atom is a named symbol (`batch`),
an unknown of one value (`?/NonZero_output_0[1]`), or an operation that no polynomial expresses
(`(seq // 4)`, `min(512, seq)`). Two dims are equal when their normal forms are: equality is proof,
inequality of the objects proves nothing.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from functools import reduce

from onnx_fuse.analysis.dim_operations import OPERATIONS, operation_bounds
from onnx_fuse.analysis.monomials import (
    Atom,
    Bound,
    Monomial,
    Term,
    exponents,
    monomial_product,
    product_bounds,
    sum_text,
    term_order,
    term_quotient,
)

# A name made of these needs no quotes to be told from an expression.
_PLAIN_NAME = re.compile(r"[A-Za-z_/][\w./:-]*")
# Longer texts of operations are abbreviated by a digest: nesting must not make them grow without
# limit.
_MAX_TEXT = 160
# A polynomial of more terms is of no use to anyone; the product becomes an atom instead.
_MAX_TERMS = 128
# The same holds for a product of more atoms, and for numbers that no tensor can hold.
_MAX_DEGREE = 32
_INT64 = 1 << 63
_ONE: tuple[Term, ...] = (((), 1),)


class Dim:
    """An immutable integer polynomial over atoms.

    `+`, `-`, `*`, `//`, `%` take dims and ints. `//` and `%` are Python's (rounding down); what is
    not exact becomes an atom.
    """

    __slots__ = ("_hash", "_terms")
    _terms: tuple[Term, ...]

    def __init__(self, terms: Mapping[Monomial, int]):
        """Sum of the terms; use `of`, `symbol` and `unknown` instead."""
        kept = [term for term in terms.items() if term[1]]
        if len(kept) > 1:
            kept.sort(key=term_order)
        self._terms = tuple(kept)
        self._hash: int | None = None

    # --- making -----------------------------------------------------------------------------------

    @staticmethod
    def of(value: int | Dim) -> Dim:
        """The constant `value`, or `value` itself if it is a dim."""
        return value if isinstance(value, Dim) else Dim({(): int(value)})

    @staticmethod
    def symbol(name: str) -> Dim:
        """The extent with this name: one number >= 0, the same wherever the name stands."""
        return _leaf(_quoted(name), 0)

    @staticmethod
    def unknown(name: str, index: int, *, extent: bool) -> Dim:
        """What is not known of a value: its extent (>= 0) on axis `index`, or element `index`."""
        return (
            _leaf(f"?{_quoted(name)}[{index}]", 0)
            if extent
            else _leaf(f"?{_quoted(name)}{{{index}}}", -math.inf)
        )

    # --- reading ----------------------------------------------------------------------------------

    def as_int(self) -> int | None:
        """The number, if it is one whatever the symbols are."""
        terms = self._terms
        if not terms:
            return 0
        return terms[0][1] if len(terms) == 1 and not terms[0][0] else None

    @property
    def leaves(self) -> frozenset[str]:
        """Texts of all symbols and unknowns that it depends on."""
        return frozenset().union(
            *(atom.leaves for monomial, _ in self._terms for atom, _ in monomial)
        )

    def bounds(self) -> tuple[Bound, Bound]:
        """Numbers that it is never below and never above; infinite where there is none."""
        low: Bound = 0
        high: Bound = 0
        for monomial, factor in self._terms:
            ends: tuple[Bound, Bound] = (factor, factor)
            for atom, power in monomial:
                for _ in range(power):
                    ends = product_bounds(ends, (atom.minimum, atom.maximum))
            low, high = low + ends[0], high + ends[1]
        return low, high

    def evaluate(self, symbols: Mapping[str, int]) -> int | None:
        """The number for these values of the leaves, None if one that counts is missing.

        Leaves are named by their text, `str(Dim.symbol(name))`.

        Raises: ZeroDivisionError if it divides by something that is 0 for them.
        """
        return _evaluate(self, symbols)

    def divide(self, other: int | Dim) -> Dim | None:
        """The quotient if it is proved to be exact (wherever `other` is not 0), else None."""
        return _exact_quotient(self, Dim.of(other))

    def degree(self) -> int:
        """The greatest number of atoms that any term multiplies; 0 for a constant."""
        return max((sum(power for _, power in monomial) for monomial, _ in self._terms), default=0)

    def terms(self) -> list[tuple[int, list[Dim]]]:
        """The dim as a sum of (factor, atoms multiplied), each atom a dim of its own."""
        return [
            (factor, [Dim({((atom, 1),): 1}) for atom, power in monomial for _ in range(power)])
            for monomial, factor in self._terms
        ]

    def substitute(self, known: Mapping[str, Dim]) -> Dim:
        """The dim with atoms replaced by what they are known to equal.

        `known` is keyed by the atoms' texts.
        """
        if not any(atom.text in known for monomial, _ in self._terms for atom, _ in monomial):
            return self
        total = Dim.of(0)
        for monomial, factor in self._terms:
            term = Dim.of(factor)
            for atom, power in monomial:
                base = known.get(atom.text) or Dim({((atom, 1),): 1})
                for _ in range(power):
                    term = term * base
            total = total + term
        return total

    def solve(self, other: Dim) -> tuple[str, Dim] | None:
        """An atom (by its text) of this dim, and what it must equal for the two dims to be equal.

        A product of atoms is solved for one that has an operation if there is one, else for the
        first; a sum for an atom that stands alone. None if there is no solution, or one that is no
        polynomial.
        """
        if len(self._terms) != 1:
            return self._solve_sum(other)
        monomial, factor = self._terms[0]
        for atom, power in sorted(monomial, key=lambda entry: not entry[0].operation):
            rest = Dim({tuple(entry for entry in monomial if entry[0] != atom): factor})
            solution = other.divide(rest) if power == 1 else None
            if solution is not None and atom.leaves.isdisjoint(solution.leaves) | bool(
                atom.operation
            ):
                return atom.text, solution
        return None

    def _solve_sum(self, other: Dim) -> tuple[str, Dim] | None:
        left, right = _without_common_factors(self, other)
        for monomial, factor in left._terms:
            if len(monomial) != 1 or monomial[0][1] != 1 or abs(factor) != 1:
                continue
            atom = monomial[0][0]
            solution = (right - (left - Dim({monomial: factor}))) * factor
            known = {inner.text for inner in _atoms(solution)}
            is_other = atom.operation and atom.text not in known
            if is_other or atom.leaves.isdisjoint(solution.leaves):
                return atom.text, solution
        return None

    def fits_int64(self) -> bool:
        """Whether no number in it is beyond what int64 holds."""
        return all(-_INT64 <= factor < _INT64 for _, factor in self._terms)

    def is_not(self, number: int) -> bool:
        """Whether it is proved to differ from `number`."""
        low, high = self.bounds()
        if number < low or number > high:
            return True
        rest = self - number
        common = math.gcd(*(factor for monomial, factor in rest._terms if monomial))
        constant = next((factor for monomial, factor in rest._terms if not monomial), 0)
        return constant != 0 if common == 0 else constant % common != 0

    # --- arithmetic -------------------------------------------------------------------------------

    def __add__(self, other: int | Dim) -> Dim:
        """Sum."""
        terms = dict(self._terms)
        for monomial, factor in Dim.of(other)._terms:
            terms[monomial] = terms.get(monomial, 0) + factor
        return Dim(terms)

    def __neg__(self) -> Dim:
        """Negation."""
        return Dim({monomial: -factor for monomial, factor in self._terms})

    def __sub__(self, other: int | Dim) -> Dim:
        """Difference."""
        return self + -Dim.of(other)

    def __mul__(self, other: int | Dim) -> Dim:
        """Product."""
        right = Dim.of(other)
        # Most products of extents have a factor of 1.
        if right._terms == _ONE:
            return self
        if self._terms == _ONE:
            return right
        large = len(self._terms) * len(right._terms) > _MAX_TERMS
        if large or self.degree() + right.degree() > _MAX_DEGREE:
            return _operation("mul", *sorted((self, right), key=str))
        terms: dict[Monomial, int] = {}
        for a, factor_a in self._terms:
            for b, factor_b in right._terms:
                monomial = monomial_product(a, b)
                terms[monomial] = terms.get(monomial, 0) + factor_a * factor_b
        return Dim(terms)

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: int | Dim) -> Dim:
        """Difference."""
        return Dim.of(other) - self

    def __floordiv__(self, other: int | Dim) -> Dim:
        """Quotient rounded down."""
        return _divided(self, Dim.of(other), "floordiv")

    def __mod__(self, other: int | Dim) -> Dim:
        """Rest of `//`; it has the sign of `other`."""
        right = Dim.of(other)
        rest = _rest(self, right)
        a, b = rest.as_int(), right.as_int()
        if a == 0 or b == 1:
            return Dim.of(0)
        if a is not None and b:
            return Dim.of(a % b)
        return _operation("mod", rest, right)

    # --- identity ---------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        """Whether both are proved equal; an int is taken for the constant."""
        if isinstance(other, Dim):
            return self._terms == other._terms
        return self.as_int() == other if isinstance(other, int) else NotImplemented

    def __hash__(self) -> int:
        """Hash that agrees with `==`, also for ints."""
        if self._hash is None:
            number = self.as_int()
            self._hash = hash(self._terms) if number is None else hash(number)
        return self._hash

    def __str__(self) -> str:
        """Canonical text: the same for equal dims."""
        return sum_text(self._terms)

    __repr__ = __str__


# --- operations that polynomials do not have ------------------------------------------------------


def truncated_quotient(left: Dim, right: Dim) -> Dim:
    """Quotient rounded towards zero, as ONNX divides integers."""
    return _divided(
        left, right, "floordiv" if left.bounds()[0] >= 0 and right.bounds()[0] >= 0 else "truncdiv"
    )


def ceil_quotient(left: Dim, right: int | Dim) -> Dim:
    """Quotient rounded up."""
    return (left + right - 1) // right


def maximum(*dims: int | Dim) -> Dim:
    """The greatest of them."""
    return _extreme("max", map(Dim.of, dims))


def minimum(*dims: int | Dim) -> Dim:
    """The least of them."""
    return _extreme("min", map(Dim.of, dims))


def broadcast(left: Dim, right: Dim) -> Dim:
    """Extent of an axis on which `left` meets `right`.

    In a run that succeeds they are equal, or one of them is 1. The result is the greater one,
    unless one is 0: an empty tensor.
    """
    if right.as_int() == 1 or left.is_not(1):
        return left
    if left.as_int() == 1 or right.is_not(1):
        return right
    return maximum(left, right)


def is_at_most(left: int | Dim, right: int | Dim) -> bool:
    """Whether `left <= right` is proved for all values of the leaves."""
    return _is_never_negative(right - Dim.of(left), 3)


def product(dims: Iterable[Dim]) -> Dim:
    """Product of all of them, 1 of none."""
    return reduce(lambda a, b: a * b, dims, Dim.of(1))


# --- implementation -------------------------------------------------------------------------------


def _quoted(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else repr(name)


def _leaf(text: str, low: Bound) -> Dim:
    return Dim({((Atom(text, low, math.inf), 1),): 1})


def _operation(name: str, left: Dim, right: Dim) -> Dim:
    text = OPERATIONS[name][0].format(*map(_operand_text, (left, right)))
    if len(text) > _MAX_TEXT:
        text = f"{name}#{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    low, high = operation_bounds(name, left.bounds(), right.bounds())
    return Dim({((Atom(text, low, high, name, (left, right)), 1),): 1})


def _arguments_of(name: str, dim: Dim) -> tuple[Dim, ...]:
    """The arguments, if `dim` is just this operation; else none."""
    if len(dim._terms) != 1:
        return ()
    monomial, factor = dim._terms[0]
    plain = factor == 1 and len(monomial) == 1 and monomial[0][1] == 1
    return monomial[0][0].args if plain and monomial[0][0].operation == name else ()


def _extreme(name: str, dims: Iterable[Dim]) -> Dim:
    """`max` or `min` of the dims: nested ones are one, what another one bounds is dropped."""
    kept: list[Dim] = []
    for dim in dims:
        for candidate in _flat(name, dim):
            if not any(_dominates(name, other, candidate) for other in kept):
                kept = [other for other in kept if not _dominates(name, candidate, other)]
                kept.append(candidate)
    return reduce(lambda a, b: _operation(name, a, b), sorted(kept, key=str))


def _flat(name: str, dim: Dim) -> list[Dim]:
    """The arguments, also of nested calls, if `dim` is just this operation."""
    result, stack = [], [dim]
    while stack:
        top = stack.pop()
        arguments = _arguments_of(name, top)
        stack.extend(arguments)
        if not arguments:
            result.append(top)
    return result


def _dominates(name: str, winner: Dim, loser: Dim) -> bool:
    return is_at_most(loser, winner) if name == "max" else is_at_most(winner, loser)


def _is_never_negative(dim: Dim, depth: int) -> bool:
    if dim.bounds()[0] >= 0:
        return True
    for monomial, factor in dim._terms if depth else ():
        if (
            len(monomial) != 1
            or monomial[0][1] != 1
            or monomial[0][0].operation not in ("min", "max")
        ):
            continue
        # A smallest of two that is subtracted may be taken for either, one that is added must be
        # tried as both; and the other way round for a greatest.
        atom = monomial[0][0]
        cases = (dim + (arg - Dim({monomial: 1})) * factor for arg in atom.args)
        proofs = (_is_never_negative(case, depth - 1) for case in cases)
        if any(proofs) if (atom.operation == "max") == (factor > 0) else all(proofs):
            return True
    return False


def _divided(left: Dim, right: Dim, name: str) -> Dim:
    exact = _exact_quotient(left, right)
    if exact is not None:
        return exact
    a, b = left.as_int(), right.as_int()
    if b == 0:
        return _operation(name, left, right)
    if a is not None and b is not None:
        return Dim.of(OPERATIONS[name][1](a, b))
    if name == "floordiv":
        rest = _rest(left, right)
        if rest != left:  # (4 n + 2) // 4 = n + 2 // 4
            whole = _exact_quotient(left - rest, right)
            assert whole is not None
            return whole + _divided(rest, right, name)
        low, high = rest.bounds()
        if low >= 0 and high < right.bounds()[0]:
            return Dim.of(0)
        inner = _arguments_of("floordiv", left)  # (n // 2) // 3 = n // 6
        if inner and b is not None and b > 0 and (inner[1].as_int() or 0) > 0:
            return _divided(inner[0], inner[1] * b, name)
    return _operation(name, left, right)


def _rest(left: Dim, right: Dim) -> Dim:
    """`left` without the terms that a single-term `right` divides; the constant modulo a number."""
    number = right.as_int()
    if len(right._terms) != 1:
        return left
    kept: dict[Monomial, int] = {}
    for monomial, factor in left._terms:
        if number:
            kept[monomial] = factor % number
        elif term_quotient((monomial, factor), right._terms[0]) is None:
            kept[monomial] = factor
    return Dim(kept)


def _exact_quotient(left: Dim, right: Dim) -> Dim | None:
    if not right._terms:
        return None
    if left._terms == right._terms:
        return Dim.of(1)
    order = sorted(
        {atom.text for dim in (left, right) for monomial, _ in dim._terms for atom, _ in monomial}
    )

    def leading(dim: Dim) -> Term:
        return max(dim._terms, key=lambda term: exponents(term[0], order))

    divisor = leading(right)
    quotient = Dim.of(0)
    rest = left
    for _ in range(_MAX_TERMS):
        if not rest._terms:
            return quotient
        step = term_quotient(leading(rest), divisor)
        if step is None:
            return None
        part = Dim(dict((step,)))
        quotient, rest = quotient + part, rest - part * right
    return None


def _without_common_factors(left: Dim, right: Dim) -> tuple[Dim, Dim]:
    """Both without the number and the atoms of which each is a multiple."""
    number = math.gcd(*(factor for _, factor in (*left._terms, *right._terms)))
    atoms = [Dim({((atom, 1),): 1}) for atom, _ in left._terms[0][0]] if left._terms else []
    for common in (Dim.of(number), *atoms):
        first, second = left.divide(common), right.divide(common)
        if first is not None and second is not None:
            left, right = first, second
    return left, right


def _operand_text(dim: Dim) -> str:
    return f"({dim})" if len(dim._terms) > 1 else str(dim)


def _atoms(dim: Dim) -> list[Atom]:
    return [atom for monomial, _ in dim._terms for atom, _ in monomial]


def _evaluate(dim: Dim, symbols: Mapping[str, int]) -> int | None:
    known: dict[str, int | None] = {}  # operations share arguments: each is evaluated once
    stack = _atoms(dim)
    while stack:
        atom = stack[-1]
        missing = [inner for arg in atom.args for inner in _atoms(arg) if inner.text not in known]
        if missing:
            stack.extend(missing)
            continue
        stack.pop()
        if not atom.operation:
            known[atom.text] = symbols.get(atom.text)
            continue
        left, right = (_sum(arg, known) for arg in atom.args)
        known[atom.text] = None
        if left is not None and right is not None:
            known[atom.text] = OPERATIONS[atom.operation][1](left, right)
    return _sum(dim, known)


def _sum(dim: Dim, known: Mapping[str, int | None]) -> int | None:
    total = 0
    for monomial, factor in dim._terms:
        for atom, power in monomial:
            number = known[atom.text]
            if number is None:
                return None
            factor *= number**power
        total += factor
    return total
