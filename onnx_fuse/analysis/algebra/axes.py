"""Tensor axes as mixed-radix numbers over atoms, and how views map them.

A *view* (Reshape, Transpose, Slice, Expand, ...) moves no numbers about: each element of its output
is one element of its input. Where an element comes from is described here by giving each axis of a
tensor an index, written as a mixed-radix number whose digits are *atoms*: independent variables
that run from 0 to their extent. Reshape regroups the digits, Transpose reorders the axes, Slice
restricts a digit to a range, Expand drops one. An atom that a Reshape cuts in two is split once, in
the block's `Space`, for every tensor that mentions it.

So "which element of the projection does head h, depth d of the query read" has one answer, by
whatever chain of views an exporter wrote it down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_fuse.analysis.dims.dim import Dim, product

ONE = Dim.of(1)


@dataclass(frozen=True, eq=False)
class Atom:
    """An independent index variable, 0 <= value < extent. Compared by identity."""

    extent: Dim
    name: str = field(default="", compare=False)

    def __repr__(self) -> str:
        return f"{self.name or 'atom'}:{self.extent}"


@dataclass(frozen=True, eq=False)
class Fixed:
    """A digit of known value: one number, or one for each *lane*.

    Lanes are the elements of a vector that are followed in parallel.
    """

    index: np.ndarray  # int64, shape () or (lanes,)
    extent: Dim

    def __repr__(self) -> str:
        return f"{self.index.tolist()}of{self.extent}"


@dataclass(frozen=True, eq=False)
class Range:
    """A digit whose value is start + step * inner, where inner is itself a mixed-radix number."""

    inner: tuple[Digit, ...]
    start: Dim
    step: int
    extent: Dim

    def __repr__(self) -> str:
        return f"({self.start}+{self.step}*{list(self.inner)})of{self.extent}"


@dataclass(frozen=True, eq=False)
class Lookup:
    """A digit whose value is table[inner]: the general Gather by constant indices."""

    inner: tuple[Digit, ...]
    table: np.ndarray
    extent: Dim


Digit = Atom | Fixed | Range | Lookup
Axis = tuple[Digit, ...]  # most significant first; () is the only index of an axis of extent 1
Index = tuple[Axis, ...]  # one for each axis of a tensor


def fixed(index: int | np.ndarray, extent: Dim) -> Axis:
    """Return the axis that stands still at `index`."""
    return () if extent == ONE else (Fixed(np.asarray(index, dtype=np.int64), extent),)


def merged(axes: Iterable[Axis]) -> Axis:
    """Return several axes as one, the first outermost."""
    return tuple(digit for axis in axes for digit in axis)


def size(axis: Axis) -> Dim:
    """Return the extent of an axis: the product of its digits' extents."""
    return product(digit.extent for digit in axis)


def atoms(axis: Axis) -> tuple[Atom, ...]:
    """Return the atoms that an axis mentions, in order, also inside ranges."""
    found: list[Atom] = []
    for digit in axis:
        match digit:
            case Atom():
                found.append(digit)
            case Range() | Lookup():
                found.extend(atoms(digit.inner))
    return tuple(found)


def exchanged(index: Index, atom: Atom, by: Axis) -> Index | None:
    """Return an index with an axis in the place of an atom.

    None unless it mentions the atom once, as a digit of its own.
    """
    if index_atoms(index).count(atom) != 1 or not any(atom in axis for axis in index):
        return None
    return tuple(
        merged(by if digit is atom else (digit,) for digit in axis) if atom in axis else axis
        for axis in index
    )


def index_atoms(index: Index) -> tuple[Atom, ...]:
    """Return the atoms that an index mentions, in order."""
    return tuple(atom for axis in index for atom in atoms(axis))


def with_lanes_merged(axis: Axis, *, numbers: bool = False) -> Axis:
    """Return an axis with neighbouring lanes as one digit: others may have cut the same depth.

    With `numbers`, also those that stand at one number.
    """
    merged: list[Digit] = []
    for digit in axis:
        last = merged[-1] if merged else None
        if isinstance(digit, Fixed) and isinstance(last, Fixed):
            width = digit.extent.as_int()
            are_lanes = bool(digit.index.ndim and last.index.ndim)
            if (are_lanes or numbers) and width is not None:
                merged[-1] = Fixed(last.index * width + digit.index, last.extent * digit.extent)
                continue
        merged.append(digit)
    return tuple(merged)


def lanes_at(index: Index, at: np.ndarray) -> Index:
    """Return an index for other lanes: those at these numbers of its own."""
    return tuple(
        tuple(
            Fixed(digit.index[at], digit.extent)
            if isinstance(digit, Fixed) and digit.index.ndim
            else digit
            for digit in axis
        )
        for axis in index
    )


def are_numbers(index: Index) -> bool:
    """Return whether each range that an index mentions begins at a number, as for `evaluate`."""

    def is_number(digit: Digit) -> bool:
        match digit:
            case Range():
                return digit.start.as_int() is not None and are_numbers((digit.inner,))
            case Lookup():
                return are_numbers((digit.inner,))
        return True

    return all(is_number(digit) for axis in index for digit in axis)


def evaluate(axis: Axis, values: Mapping[Atom, np.ndarray]) -> np.ndarray:
    """Return the number that an axis stands for, given each atom's value; int64, broadcast.

    Raises: ValueError if an extent but the first, or the start of a range, is no integer.
    """
    total = np.asarray(0, dtype=np.int64)
    for digit in axis:
        number: np.ndarray
        match digit:
            case Atom():
                number = values[digit]
            case Fixed():
                number = digit.index
            case Range():
                start = digit.start.as_int()
                if start is None:
                    raise ValueError(f"the start {start} of a range is no integer")
                number = start + digit.step * evaluate(digit.inner, values)
            case Lookup():
                number = digit.table[evaluate(digit.inner, values)]
        extent = digit.extent.as_int()
        if extent is None:
            if digit is not axis[0]:
                raise ValueError(f"the extent {digit.extent} is no integer")
            extent = 0
        total = np.asarray(total * extent + number)
    return total


@dataclass(frozen=True, eq=False)
class Lanes:
    """The values of some atoms in each of `count` lanes; int64, (count,)."""

    values: Mapping[Atom, np.ndarray]
    count: int


def every_value(chosen: Sequence[Atom]) -> Lanes:
    """Return a lane for every combination of the values of atoms, the first one outermost.

    All extents must be integers.
    """
    extents = [atom.extent.as_int() or 0 for atom in chosen]
    count = math.prod(extents)
    digits = np.unravel_index(np.arange(count), extents) if extents else ()
    return Lanes(dict(zip(chosen, digits, strict=True)), count)
