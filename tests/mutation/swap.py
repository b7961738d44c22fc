"""Gives the functions of an imported package the code that a mutant makes of them."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FunctionType
from typing import NamedTuple

from tests.mutation.mutant import Mutant, places

LINES_AFTER = 3  # the rest of a condition over several lines, and what is done where it holds


class Swap(NamedTuple):
    """The functions that a mutant changes, whoever refers to them, and their code with it."""

    functions: dict[FunctionType, CodeType]
    near: frozenset[tuple[str, int]]  # the lines of the check and the next ones

    def carry_out(self) -> None:
        for function, code in self.functions.items():
            function.__code__ = code


def swaps(mutants: Sequence[Mutant], package: Path) -> list[Swap]:
    """Return how each mutant is made of a package, whose modules are imported.

    Raises: ValueError if a check isn't in the sources once, or not in a function.
    """
    functions = defaultdict(list)
    for thing in gc.get_objects():
        if type(thing) is FunctionType:
            functions[thing.__code__].append(thing)
    return [_swap(mutant, package, functions) for mutant in mutants]


def _swap(mutant: Mutant, package: Path, functions: dict[CodeType, list[FunctionType]]) -> Swap:
    found = places(mutant, package)
    if len(found) != 1:
        raise ValueError(f"{mutant.name}: the check is in the sources {len(found)} times")
    path = str(found[0])
    source = found[0].read_text()
    own = _outermost(_compiled(source, path))
    others = _outermost(_compiled(source.replace(mutant.check, mutant.without), path))
    changed = {
        function: other
        for code, other in zip(own, others, strict=True)
        if not _is_alike(code, other)
        for function in functions[code]
    }
    if not changed:
        raise ValueError(f"{mutant.name}: no function of {path} is changed")
    first = source[: source.index(mutant.check)].count("\n") + 1
    last = first + mutant.check.count("\n") + LINES_AFTER
    return Swap(changed, frozenset((path, line) for line in range(first, last + 1)))


@cache
def _compiled(source: str, path: str) -> CodeType:
    return compile(source, path, "exec", dont_inherit=True)


def _outermost(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of each function of a module and its classes, in order."""
    for const in code.co_consts:
        if isinstance(const, CodeType):
            if const.co_flags & CO_OPTIMIZED:
                yield const
            else:
                yield from _outermost(const)


def _is_alike(one: object, other: object) -> bool:
    """Return whether two constants, which may be code, differ at most in where they stand."""
    if not isinstance(one, CodeType) or not isinstance(other, CodeType):
        return type(one) is type(other) and one == other
    return (
        one.co_code == other.co_code
        and one.co_names == other.co_names
        and len(one.co_consts) == len(other.co_consts)
        and all(map(_is_alike, one.co_consts, other.co_consts))
    )
