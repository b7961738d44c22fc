"""Symbolic integers: the extents of tensors, and the integers that graphs compute from them.

A `Dim` is a polynomial with integer coefficients over bases. A base is a named symbol (`batch`),
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

from onnx_fuse.analysis.dims import polynomials
from onnx_fuse.analysis.dims.monomials import Base, Bound, Monomial, Polynomial, term_quotient
from onnx_fuse.analysis.dims.operations import OPERATIONS, operation_bounds
from onnx_fuse.analysis.known import all_known

# A name made of these needs no quotes to be told from an expression.
_PLAIN_NAME = re.compile(r"[A-Za-z_/][\w./:-]*")
# Longer texts of operations are abbreviated by a digest: nesting must not make them grow without
# limit.
_MAX_TEXT = 160
# A polynomial of more terms is of no use to anyone; the product becomes a base instead.
_MAX_TERMS = 128
# The same holds for a product of more bases, and for numbers that no tensor can hold.
_MAX_DEGREE = 32
_INT64 = 1 << 63


class Dim:
    """An immutable integer polynomial over bases.

    `+`, `-`, `*`, `//`, `%` take dims and ints. `//` and `%` are Python's (rounding down); what is
    not exact becomes a base.
    """

    __slots__ = ("_hash", "polynomial")
    polynomial: Polynomial

    def __init__(self, polynomial: Polynomial):
        """The polynomial as an integer; `of`, `symbol` and `unknown` make the usual ones."""
        self.polynomial = polynomial
        self._hash: int | None = None

    # --- making -----------------------------------------------------------------------------------

    @staticmethod
    def of(value: int | Dim) -> Dim:
        """Return the constant `value`, or `value` itself if it is a dim."""
        if isinstance(value, Dim):
            return value
        return Dim((((), int(value)),) if value else ())

    @staticmethod
    def of_base(base: Base) -> Dim:
        """Return the base alone."""
        return Dim(((((base, 1),), 1),))

    @staticmethod
    def symbol(name: str) -> Dim:
        """Return the extent with this name: one number >= 0, the same wherever the name stands."""
        return _leaf(_quoted(name), 0)

    @staticmethod
    def unknown(name: str, index: int, *, extent: bool) -> Dim:
        """Return the unknown extent (>= 0) of a value on axis `index`, or its element `index`."""
        return (
            _leaf(f"?{_quoted(name)}[{index}]", 0)
            if extent
            else _leaf(f"?{_quoted(name)}{{{index}}}", -math.inf)
        )

    # --- reading ----------------------------------------------------------------------------------

    def as_int(self) -> int | None:
        """Return the number, if it is one whatever the symbols are."""
        terms = self.polynomial
        if not terms:
            return 0
        return None if terms[0][0] else terms[0][1]  # a constant comes last

    @property
    def leaves(self) -> frozenset[str]:
        """Texts of all symbols and unknowns that it depends on."""
        return frozenset().union(*(base.leaves for base in polynomials.bases_of(self.polynomial)))

    @property
    def bases(self) -> frozenset[str]:
        """Texts of the symbols, unknowns and operations that it is a polynomial of."""
        return frozenset(base.text for base in polynomials.bases_of(self.polynomial))

    def bounds(self) -> tuple[Bound, Bound]:
        """Return what it is never below and what never above; infinite where there is none."""
        return polynomials.bounds(self.polynomial)

    def evaluate(self, symbols: Mapping[str, int]) -> int | None:
        """Return the number for these values of the leaves, None if one that counts is missing.

        Leaves are named by their text, `str(Dim.symbol(name))`.

        Raises: ZeroDivisionError if it divides by something that is 0 for them.
        """
        return polynomials.evaluate(self.polynomial, symbols)

    def divide(self, other: int | Dim) -> Dim | None:
        """Return the quotient if it is proved to be exact wherever `other` is not 0, else None."""
        quotient = polynomials.exact_quotient(self.polynomial, Dim.of(other).polynomial)
        return None if quotient is None else Dim(quotient)

    def degree(self) -> int:
        """Return the greatest number of bases that any term multiplies; 0 for a constant."""
        return polynomials.degree(self.polynomial)

    def terms(self) -> list[tuple[int, list[Dim]]]:
        """Return the dim as a sum of (factor, bases multiplied), each base a dim of its own."""
        return [
            (factor, [Dim.of_base(base) for base, power in monomial for _ in range(power)])
            for monomial, factor in self.polynomial
        ]

    def arguments_of(self, name: str) -> tuple[Dim, ...]:
        """Return the arguments, if it is just the operation of this name; else none."""
        if len(self.polynomial) != 1:
            return ()
        monomial, factor = self.polynomial[0]
        if factor != 1 or len(monomial) != 1 or monomial[0][1] != 1:
            return ()
        base = monomial[0][0]
        return tuple(map(Dim, base.args)) if base.operation == name else ()

    def fits_int64(self) -> bool:
        """Return whether no number in it is beyond what int64 holds."""
        return all(-_INT64 <= factor < _INT64 for _, factor in self.polynomial)

    def is_not(self, number: int) -> bool:
        """Return whether it is proved to differ from `number`."""
        low, high = self.bounds()
        if number < low or number > high:
            return True
        rest = (self - number).polynomial
        common = math.gcd(*(factor for monomial, factor in rest if monomial))
        constant = next((factor for monomial, factor in rest if not monomial), 0)
        return constant != 0 if common == 0 else constant % common != 0

    # --- arithmetic -------------------------------------------------------------------------------

    def __add__(self, other: int | Dim) -> Dim:
        """Sum."""
        return Dim(polynomials.total(self.polynomial, Dim.of(other).polynomial))

    def __neg__(self) -> Dim:
        """Negation."""
        return Dim(tuple((monomial, -factor) for monomial, factor in self.polynomial))

    def __sub__(self, other: int | Dim) -> Dim:
        """Difference."""
        return Dim(polynomials.total(self.polynomial, Dim.of(other).polynomial, -1))

    def __mul__(self, other: int | Dim) -> Dim:
        """Product."""
        right = Dim.of(other)
        # Most products of extents have a factor of 1.
        if right.polynomial == polynomials.ONE:
            return self
        if self.polynomial == polynomials.ONE:
            return right
        large = len(self.polynomial) * len(right.polynomial) > _MAX_TERMS
        if large or self.degree() + right.degree() > _MAX_DEGREE:
            return operation("mul", *sorted((self, right), key=str))
        return Dim(polynomials.product(self.polynomial, right.polynomial))

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
        return operation("mod", rest, right)

    # --- identity ---------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        """Return whether both are proved equal; an int is taken for the constant."""
        if isinstance(other, Dim):
            return self.polynomial == other.polynomial
        return self.as_int() == other if isinstance(other, int) else NotImplemented

    def __hash__(self) -> int:
        """Hash that agrees with `==`, also for ints."""
        if self._hash is None:
            number = self.as_int()
            self._hash = hash(self.polynomial) if number is None else hash(number)
        return self._hash

    def __str__(self) -> str:
        """Canonical text: the same for equal dims."""
        return polynomials.text(self.polynomial)

    __repr__ = __str__


def product(dims: Iterable[Dim]) -> Dim:
    """Return the product of all of them, 1 of none."""
    return reduce(lambda a, b: a * b, dims, Dim.of(1))


def numbers_of(dims: Iterable[Dim | None] | None) -> tuple[int, ...] | None:
    """Return the plain numbers that the dims are, if all of them are known to be such."""
    if dims is None:
        return None
    numbers = all_known(None if dim is None else dim.as_int() for dim in dims)
    return None if numbers is None else tuple(numbers)


def total(dims: Iterable[Dim]) -> Dim:
    """Return the sum of all of them, 0 of none."""
    return sum(dims, Dim.of(0))


def truncated_quotient(left: Dim, right: Dim) -> Dim:
    """Return the quotient rounded towards zero, as ONNX divides integers."""
    return _divided(left, right, "truncdiv")


def ceil_quotient(left: Dim, right: int | Dim) -> Dim:
    """Return the quotient rounded up."""
    return (left + right - 1) // right


def operation(name: str, left: Dim, right: Dim) -> Dim:
    """Return an operation that polynomials do not have, as a base."""
    text = OPERATIONS[name][0].format(*map(_operand_text, (left, right)))
    if len(text) > _MAX_TEXT:
        text = f"{name}#{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    low, high = operation_bounds(name, left.bounds(), right.bounds())
    return Dim.of_base(Base(text, low, high, name, (left.polynomial, right.polynomial)))


# --- implementation -------------------------------------------------------------------------------


def _quoted(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else repr(name)


def _leaf(text: str, low: Bound) -> Dim:
    return Dim.of_base(Base(text, low, math.inf))


def _operand_text(dim: Dim) -> str:
    return f"({dim})" if len(dim.polynomial) > 1 else str(dim)


def _divided(left: Dim, right: Dim, name: str) -> Dim:
    exact = left.divide(right)
    if exact is not None:
        return exact
    a, b = left.as_int(), right.as_int()
    if b == 0:
        return operation(name, left, right)
    if a is not None and b is not None:
        return Dim.of(OPERATIONS[name][1](a, b))
    left, right = map(Dim, polynomials.without_common_factors(left.polynomial, right.polynomial))
    if left.bounds()[0] >= 0 and right.bounds()[0] >= 0:
        name = "floordiv"
    if name == "floordiv":
        rest = _rest(left, right)
        if rest != left:  # (4 n + 2) // 4 = n + 2 // 4
            whole = (left - rest).divide(right)
            assert whole is not None
            return whole + _divided(rest, right, name)
        low, high = rest.bounds()
        if low >= 0 and high < right.bounds()[0]:
            return Dim.of(0)
        inner = _inner_quotient(left, right)
        if inner is not None:
            return _divided(*inner, name)
    return operation(name, left, right)


def _inner_quotient(left: Dim, right: Dim) -> tuple[Dim, Dim] | None:
    """Return what is divided by what if a quotient by a number is divided by another number.

    (n // 2 + 3) // 4 = (n + 6) // 8: the rest of n // 2 never reaches the next multiple of 4.
    """
    number = right.as_int() or 0
    found = [(Dim((term,)), Dim((term,)).arguments_of("floordiv")) for term in left.polynomial]
    quotients = [(term, *arguments) for term, arguments in found if arguments]
    if number <= 0 or len(quotients) != 1:
        return None
    term, divided, inner = quotients[0]
    if (inner.as_int() or 0) <= 0:
        return None
    return divided + (left - term) * inner, inner * number


def _rest(left: Dim, right: Dim) -> Dim:
    """Return `left` without the terms that one term `right` divides; a constant modulo a number."""
    number = right.as_int()
    if len(right.polynomial) != 1:
        return left
    kept: dict[Monomial, int] = {}
    for term in left.polynomial:
        monomial, factor = term
        if number:
            kept[monomial] = factor % number
        elif term_quotient(term, right.polynomial[0]) is None:
            kept[monomial] = factor
    return Dim(polynomials.normal_form(kept))
