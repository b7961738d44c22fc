"""Which of two symbolic integers is the greater one, as far as it can be proved."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

from onnx_fuse.analysis.dims.dim import Dim, ceil_quotient, operation
from onnx_fuse.analysis.dims.polynomials import bases_of


def is_at_most(left: int | Dim, right: int | Dim) -> bool:
    """Return whether `left <= right` is proved for all values of the leaves."""
    return _is_never_negative(right - Dim.of(left), 3)


def maximum(*dims: int | Dim) -> Dim:
    """Return the greatest of them."""
    return _extreme("max", map(Dim.of, dims))


def minimum(*dims: int | Dim) -> Dim:
    """Return the least of them."""
    return _extreme("min", map(Dim.of, dims))


def place_on(extent: Dim, bound: Dim) -> Dim | None:
    """Return where a Slice's bound stands on an axis; None if its sign is not known.

    Never behind its end, so that parts which end where others begin make up the axis, however long
    it is.
    """
    if is_at_most(0, bound):
        return _at_most(bound, extent)
    return extent - _at_most(-bound, extent) if is_at_most(bound, 0) else None


def _at_most(place: Dim, extent: Dim) -> Dim:
    """Return the smaller of the two; no axis is taken to be empty."""
    return place if is_at_most(place, 1) else minimum(place, extent)


def where_at_least(least: int, dim: Dim) -> Dim | None:
    """Return what the dim is wherever that is at least `least`: nothing there is rounded up to it.

    Quotients are rounded down then, not towards zero: nothing negative is divided. None where that
    isn't proved.
    """
    arguments = dim.arguments_of("max")
    greater = [arg for arg in arguments if arg.as_int() is None or is_at_most(least, arg)]
    if arguments and len(greater) == 1:
        return where_at_least(least, greater[0])
    if not _has_truncated(dim):
        return dim
    found = [term for term in dim.polynomial if term[0]]
    rest = dim - Dim(tuple(found))
    quotient, factor = Dim(((found[0][0], 1),)), found[0][1]
    arguments = quotient.arguments_of("truncdiv") or quotient.arguments_of("floordiv")
    if len(found) != 1 or factor <= 0 or not arguments:
        return None
    number = arguments[1].as_int() or 0
    lowest = ceil_quotient(Dim.of(least) - rest, factor).as_int()
    if number <= 0 or lowest is None or lowest < 0:
        return None
    divided = where_at_least(number * lowest, arguments[0])
    return None if divided is None else divided // number * factor + rest


def _has_truncated(dim: Dim) -> bool:
    return any(
        base.operation == "truncdiv" or any(_has_truncated(Dim(arg)) for arg in base.args)
        for base in bases_of(dim.polynomial)
    )


def broadcast(left: Dim, right: Dim) -> Dim:
    """Return the extent of an axis on which `left` meets `right`.

    In a run that succeeds they are equal, or one of them is 1. The result is the greater one,
    unless one is 0: an empty tensor.
    """
    if right.as_int() == 1 or left.is_not(1):
        return left
    if left.as_int() == 1 or right.is_not(1):
        return right
    if _is_one(right) or _is_one(left):
        return left if _is_one(right) else right
    # What is an extent wherever that isn't 0 meets it as itself or, where it is 0, as 0 or 1.
    if where_at_least(1, left) == right:
        return right
    return left if where_at_least(1, right) == left else maximum(left, right)


def _is_one(extent: Dim) -> bool:
    """Return whether an extent is 1 wherever it isn't 0."""
    return extent.as_int() == 1 or (is_at_most(extent, 1) and not extent.is_not(1))


def are_one_together(left: Dim, right: Dim) -> bool:
    """Return whether it is proved that one is 1 only where the other is, so that none broadcasts.

    A smallest of several is 1 exactly where a certain one of them is, if the others are greater.
    """
    return left == right or _deciding_one(left) == _deciding_one(right)


def _deciding_one(dim: Dim) -> Dim:
    """Return the argument of a smallest that is 1 exactly where this is; the dim if none is."""
    small = [arg for arg in dim.arguments_of("min") if not is_at_most(2, arg)]
    return small[0] if len(small) == 1 else dim


def _extreme(name: str, dims: Iterable[Dim]) -> Dim:
    """Return `max` or `min` of dims: nested ones are one, what another one bounds is dropped."""
    kept: list[Dim] = []
    for dim in dims:
        for candidate in _flat(name, dim):
            if not any(_dominates(name, other, candidate) for other in kept):
                kept = [other for other in kept if not _dominates(name, candidate, other)]
                kept.append(candidate)
    return reduce(lambda a, b: operation(name, a, b), sorted(kept, key=str))


def _flat(name: str, dim: Dim) -> list[Dim]:
    """Return the arguments, also of nested calls, if `dim` is just this operation."""
    result, stack = [], [dim]
    while stack:
        top = stack.pop()
        arguments = top.arguments_of(name)
        stack.extend(arguments)
        if not arguments:
            result.append(top)
    return result


def _dominates(name: str, winner: Dim, loser: Dim) -> bool:
    return is_at_most(loser, winner) if name == "max" else is_at_most(winner, loser)


def _is_at_most_one(quotient: Dim, depth: int) -> bool:
    """Return whether nothing is divided by less than itself."""
    arguments = quotient.arguments_of("floordiv")
    return (
        bool(arguments)
        and arguments[0].bounds()[0] >= 0
        and _is_never_negative(arguments[1] - arguments[0], depth)
    )


def _is_never_negative(dim: Dim, depth: int) -> bool:
    if dim.bounds()[0] >= 0:
        return True
    for monomial, factor in dim.polynomial if depth else ():
        if len(monomial) != 1:
            continue
        quotient = Dim(((monomial, 1),))
        if factor < 0 and _is_at_most_one(quotient, depth - 1):
            if _is_never_negative(dim + (1 - quotient) * factor, depth - 1):
                return True
            continue
        if monomial[0][0].operation not in ("min", "max"):
            continue
        # A smallest of two that is subtracted may be taken for either, one that is added must be
        # tried as both; and the other way round for a greatest.
        base = monomial[0][0]
        cases = (dim + (Dim(arg) - Dim.of_base(base)) * factor for arg in base.args)
        proofs = (_is_never_negative(case, depth - 1) for case in cases)
        if any(proofs) if (base.operation == "max") == (factor > 0) else all(proofs):
            return True
    return False
