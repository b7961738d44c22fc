"""The atoms of one attention block: how they were split, and which of their extents are equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from onnx_fuse.analysis.algebra.axes import (
    ONE,
    Atom,
    Axis,
    Digit,
    Fixed,
    Index,
    Lookup,
    Range,
    atoms,
    evaluate,
    fixed,
    index_atoms,
    merged,
    size,
)
from onnx_fuse.analysis.dims.dim import Dim
from onnx_fuse.analysis.dims.equations import equal_factors, solve, substitute
from onnx_fuse.analysis.dims.order import are_one_together, where_at_least

T = TypeVar("T")


@dataclass(frozen=True)
class Equation:
    """Two extents that were made equal; assumed where one may be 1 instead, and broadcast."""

    first: Dim
    second: Dim
    is_assumed: bool


class Space:
    """The atoms of one attention block.

    It knows what each atom was split into, and which symbolic extents are equal.
    """

    def __init__(self) -> None:
        self._parts: dict[Atom, Axis] = {}
        self._equal: dict[str, Dim] = {}
        self.equations: list[Equation] = []  # in the order in which they were learned

    def atom(self, extent: Dim, name: str = "") -> Axis:
        """Return a new axis of one new atom (of none if the extent is 1)."""
        return () if extent == ONE else (Atom(extent, name),)

    def split(self, atom: Atom, outer: Dim, inner: Dim) -> tuple[Atom, Atom]:
        """Replace an atom, wherever it is mentioned, by two whose extents multiply to its own."""
        parts = (Atom(outer, atom.name), Atom(inner, atom.name))
        self._parts[atom] = parts
        return parts

    def fit(self, axis: Axis, extent: Dim, *, is_assumed: bool) -> Axis | None:
        """Return the axis with the extent that it must have for the graph to be valid.

        None if it can't have it. `is_assumed`: either may be 1 instead, and broadcast.
        """
        own = size(self.resolve(axis))
        return self.resolve(axis) if self.equate(own, extent, is_assumed=is_assumed) else None

    def equate(self, first: Dim, second: Dim, *, is_assumed: bool = False) -> bool:
        """Note that two extents must be equal in a valid graph; return False if they can't be.

        Where a symbol is all that stands between the two, it is known from then on to equal what it
        must.
        """
        first, second = self.known(first), self.known(second)
        if first == second:
            return True
        if where_at_least(1, second) == first:  # the one that is simpler stays
            first, second = second, first
        for side, other in ((first, second), (second, first)):
            equal = equal_factors(side, other)
            if not equal and (solved := solve(side, other)) is not None and solved[1] != ONE:
                equal = dict([solved])
            if equal:
                is_assumed = is_assumed and not are_one_together(first, second)
                known = {name: substitute(dim, equal) for name, dim in self._equal.items()}
                self._equal = known | equal
                self.equations.append(Equation(first, second, is_assumed))
                return True
        return False

    def tried(self, attempt: Callable[[], T | None]) -> T | None:
        """Return what an attempt to read something finds; one that fails leaves nothing here."""
        parts, equal, learned = dict(self._parts), self._equal, len(self.equations)
        found = attempt()
        if found is None:
            self._parts, self._equal = parts, equal
            del self.equations[learned:]
        return found

    def known(self, extent: Dim) -> Dim:
        """Return an extent in terms of what is known to be equal."""
        return substitute(extent, self._equal) if self._equal else extent

    def resolve(self, axis: Axis) -> Axis:
        """Return the axis with split atoms replaced by their parts."""
        if not self._parts and not self._equal:
            return axis
        digits: list[Digit] = []
        for digit in axis:
            match digit:
                case Atom() if digit in self._parts:
                    digits.extend(self.resolve(self._parts[digit]))
                case Atom() if self.known(digit.extent) != digit.extent:
                    self._parts[digit] = self.atom(self.known(digit.extent), digit.name)
                    digits.extend(self._parts[digit])
                case Fixed() if self.known(digit.extent) != digit.extent:
                    digits.extend(fixed(digit.index, self.known(digit.extent)))
                case Range():
                    inner, extents = self.resolve(digit.inner), (digit.start, digit.extent)
                    start, extent = map(self.known, extents)
                    digits.extend(
                        (digit,)
                        if inner == digit.inner and (start, extent) == extents
                        else self.ranged(inner, start, digit.step, extent)
                    )
                case Lookup():
                    digits.append(Lookup(self.resolve(digit.inner), digit.table, digit.extent))
                case _:
                    digits.append(digit)
        return tuple(digits)

    def resolve_index(self, index: Index) -> Index:
        """Return the index with split atoms replaced by their parts."""
        return tuple(self.resolve(axis) for axis in index)

    def atoms_of(self, *axes: Axis) -> set[Atom]:
        """Return the atoms of today that the axes mention."""
        return {*index_atoms(self.resolve_index(axes))}

    def ranged(self, inner: Axis, start: Dim, step: int, extent: Dim) -> Axis:
        """Return start + step * inner as an axis of the given extent, in the simplest digits."""
        count, first = size(inner), start.as_int()
        if first == 0 and step == 1 and count == extent:
            return inner
        if first is not None and all(isinstance(digit, Fixed) for digit in inner):
            return fixed(first + step * evaluate(inner, {}), extent)
        if step != 1:
            if first is not None and first < step and extent == count * Dim.of(step):
                return (*inner, *fixed(first, Dim.of(step)))
            return (Range(inner, start, step, extent),)
        tail: Axis = ()
        while inner:
            last = inner[-1].extent
            outer_start, outer_extent = start.divide(last), extent.divide(last)
            if outer_start is None or outer_extent is None:
                return (Range(inner, start, step, extent), *tail)
            tail = (inner[-1], *tail)
            inner, start, extent = inner[:-1], outer_start, outer_extent
        first = start.as_int()
        if first is None:
            return (Range((), start, 1, extent), *tail)
        return (*fixed(first, extent), *tail)

    def within(self, axis: Axis, start: int, extent: Dim) -> Axis | None:
        """Return the same places on the part of an axis that begins at `start`, `extent` long.

        None unless all of them are proved to be on it.
        """
        number, limits = extent.as_int(), _limits(axis)
        inner = axis[-1].extent.as_int() if len(axis) > 1 else None
        if number is not None and inner and not (start % inner or number % inner):
            outer = self.within(axis[:-1], start // inner, Dim.of(number // inner))
            return None if outer is None else (*outer, axis[-1])
        if number is None or limits is None or limits[0] < start or limits[1] >= start + number:
            return None
        match axis:
            case (Range() as digit,):
                return self.ranged(digit.inner, digit.start - Dim.of(start), digit.step, extent)
            case (Fixed() as digit,):
                return fixed(digit.index - start, extent)
        return self.ranged(axis, Dim.of(-start), 1, extent) if start <= 0 else None

    def picked(self, inner: Axis, table: np.ndarray, extent: Dim) -> Axis | None:
        """Return table[inner] as an axis of the given extent; None if that can't be proved."""
        known = extent.as_int()
        if known is not None and ((table < -known) | (table >= known)).any():
            return None  # no run succeeds
        if (table < 0).any():
            if known is None and table.size == 1:
                return self.ranged((), extent + int(table.ravel()[0]), 1, extent)
            if known is None:
                return None
            table = np.where(table < 0, table + known, table)
        if table.size and (table == table.ravel()[0]).all():
            return fixed(int(table.ravel()[0]), extent)
        if all(isinstance(digit, Fixed) for digit in inner):
            return fixed(table.ravel()[evaluate(inner, {})], extent)
        steps = np.diff(table.ravel())
        if (steps == steps[0]).all() and steps[0] > 0:
            return self.ranged(inner, Dim.of(int(table.ravel()[0])), int(steps[0]), extent)
        return self._repeated(inner, table.ravel(), extent) or (
            Lookup(inner, table.ravel(), extent),
        )

    def _repeated(self, inner: Axis, table: np.ndarray, extent: Dim) -> Axis | None:
        """Return table[inner] where each place is repeated, or all of them are, one after another.

        Then one digit of `inner` chooses. None if the table is none of that kind.
        """
        each = int(np.argmax(table != table[0]) or len(table))
        ends = np.flatnonzero(table[each:] == table[0])
        run = each + int(ends[0]) if ends.size else len(table)
        places, step = table[:run:each], int(table[each % len(table)] - table[0])
        if run % each or len(table) % run or step <= 0:
            return None
        count, times = len(places), len(table) // run
        if not np.array_equal(table, table[0] + step * (np.arange(len(table)) // each % count)):
            return None
        digits = self.regroup((inner,), tuple(map(Dim.of, (times, count, each))))
        start = Dim.of(int(table[0]))
        return None if digits is None else self.ranged(digits[1], start, step, extent)

    def cut(self, digit: Digit, inner: Dim) -> tuple[Axis, Axis] | None:
        """Write a digit as two, the second of extent `inner`; None if that can't be proved."""
        outer = digit.extent.divide(inner)
        if outer is None:
            return None
        match digit:
            case Atom():
                first, second = self.split(digit, outer, inner)
                return (first,), (second,)
            case Fixed():
                step = inner.as_int()
                if step is None:
                    return (fixed(0, outer), fixed(0, inner)) if not digit.index.any() else None
                return fixed(digit.index // step, outer), fixed(digit.index % step, inner)
            case Range(step=1):
                start, count = digit.start.divide(inner), size(digit.inner).divide(inner)
                if start is None or count is None:
                    return None
                parts = self.regroup((digit.inner,), (count, inner))
                return None if parts is None else (self.ranged(parts[0], start, 1, outer), parts[1])
            case _:
                return None

    def regroup(self, index: Index, shape: Sequence[Dim]) -> Index | None:
        """Return the index of the same elements in another shape; None if it can't be proved."""
        digits = [digit for axis in index for digit in self.resolve(axis) if digit.extent != ONE]
        axes: list[Axis] = []
        for extent in shape:
            axis: list[Digit] = []
            rest = extent
            while rest != ONE:
                if not digits:
                    return None
                digit = digits.pop(0)
                smaller = rest.divide(digit.extent)
                if smaller is not None:
                    axis.append(digit)
                    rest = smaller
                    continue
                inner = digit.extent.divide(rest)
                parts = None if inner is None else self.cut(digit, inner)
                if parts is None:
                    return None
                axis.extend(parts[0])
                digits[:0] = parts[1]
                rest = ONE
            axes.append(tuple(axis))
        if digits:
            return None
        return tuple(self.resolve(axis) for axis in axes)

    def match(self, first: Index, second: Index, free: Axis = ()) -> Axis | None:
        """Return what `second` has where `first` has its `free` atoms, in their order.

        Both are indices of one tensor. None where they differ in anything else, or `second` has no
        atoms of its own there: with no free atoms, () says that the two are equal.
        """
        if len(first) != len(second):
            return None
        pairs = [self._aligned(*pair, free) for pair in zip(first, second, strict=True)]
        wanted, found = atoms(self.resolve(free)), dict[Atom, Atom]()
        for own, other in ((self.resolve(own), self.resolve(other)) for own, other in pairs):
            match own, other:
                case (Atom() as whole,), (Atom() as same,) if whole in wanted:
                    # All of one axis, whatever it was taken to be as long as.
                    if found.setdefault(whole, same) is not same:
                        return None
                case _ if not _match(own, other, wanted, found):
                    return None
        held = self.atoms_of(*first)
        if len({*found.values()} - held) != len(wanted):
            return None
        return tuple(found[atom] for atom in wanted)

    def _aligned(self, first: Axis, second: Axis, free: Axis) -> tuple[Axis, Axis]:
        """Cut two axes of one extent alike, where one of them mentions free atoms."""
        own, other = self.resolve(first), self.resolve(second)
        if {*atoms(own)}.isdisjoint(atoms(self.resolve(free))) or size(own) != size(other):
            return own, other
        if len(own) < len(other):
            parts = self.regroup((own,), [digit.extent for digit in other])
            own = own if parts is None else merged(parts)
        elif len(own) > len(other):
            parts = self.regroup((other,), [digit.extent for digit in own])
            other = other if parts is None else merged(parts)
        return own, other


def _limits(axis: Axis) -> tuple[int, int] | None:
    """Return the lowest and the highest place of an axis of one digit, or of whole ones."""
    extent, start = size(axis).as_int(), None
    match axis:
        case (Range() as digit,):
            extent, start = size(digit.inner).as_int(), digit.start.as_int()
            if extent is None or start is None:
                return None
            return start, start + digit.step * (extent - 1)
        case (Fixed() as digit,):
            return int(digit.index.min()), int(digit.index.max())
    whole = extent is not None and all(isinstance(digit, Atom) for digit in axis)
    return (0, extent - 1) if whole and extent is not None else None


def _match(first: Axis, second: Axis, free: Sequence[Atom], found: dict[Atom, Atom]) -> bool:
    """Compare two axes digit by digit, noting in `found` what stands for each free atom."""
    return len(first) == len(second) and all(
        _are_alike(own, other, free, found) for own, other in zip(first, second, strict=True)
    )


def _are_alike(own: Digit, other: Digit, free: Sequence[Atom], found: dict[Atom, Atom]) -> bool:
    """Compare two digits as `_match` does."""
    if own.extent != other.extent:
        return False
    match own, other:
        case Atom() as own, Atom() as other if own in free:
            return found.setdefault(own, other) is other
        case Fixed() as own, Fixed() as other:
            return np.array_equal(own.index, other.index)
        case Range() as own, Range() as other:
            is_same = (own.start, own.step) == (other.start, other.step)
            return is_same and _match(own.inner, other.inner, free, found)
        case Lookup() as own, Lookup() as other:
            is_same = np.array_equal(own.table, other.table)
            return is_same and _match(own.inner, other.inner, free, found)
    return own is other
