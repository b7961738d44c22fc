"""Runs tests on mutants, as a plugin of the pytest that has collected them."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import onnxruntime
import pytest
from _pytest.runner import runtestprotocol

from tests.mutation.forks import forked
from tests.mutation.mutant import Mutant
from tests.mutation.swap import Swap, swaps

LONGEST_SECONDS = 900
Line = tuple[str, int]


class Mutation:
    """Decides for each mutant whether a test fails, in a fork that stops at the first.

    Of the tests that reach the changed function, those come first whose way through it, near the
    check above all, is the way of the fewest: where a check holds, its near-misses part from the
    rest. Those of one way come from each file in turn. What runs only while modules are imported
    and tests are collected has run before.
    """

    def __init__(self, mutants: Sequence[Mutant], package: Path, jobs: int) -> None:
        self.mutants, self.package, self.jobs = mutants, package, jobs
        self.items: list[pytest.Item] = []
        self.turns: list[int] = []  # of each test, among those of its file

    def pytest_configure(self) -> None:
        """Keep no example, as what a mutant fails on is none to try on the package; be quiet."""
        import hypothesis  # not before pytest has hooked the imports of its plugins

        onnxruntime.set_default_logger_severity(3)
        hypothesis.settings.register_profile("mutation", database=None, derandomize=True)
        hypothesis.settings.load_profile("mutation")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests on the mutants instead of on the package as it is."""
        self.items = session.items
        by_file: Counter[Path] = Counter()
        for item in self.items:
            self.turns.append(by_file[item.path])
            by_file[item.path] += 1
        made = swaps(self.mutants, self.package)
        reached = self._reached(made)
        decide = partial(self._first_failing, made, reached)
        for number, failed in forked(decide, range(len(made)), self.jobs, LONGEST_SECONDS):
            session.testsfailed += failed == ""
            where = "the process died" if failed is None else failed or "no test fails"
            _say(f"{'ALIVE' if failed == '' else 'dead '} {self.mutants[number].name}: {where}")
        _say(f"{len(made) - session.testsfailed} of {len(made)} mutants are noticed")
        return True

    def _reached(self, made: list[Swap]) -> dict[Line, list[int]]:
        """Return for each line of the functions that mutants change which tests reach it."""
        watched = {id(code) for swap in made for f in swap.functions for code in _all(f.__code__)}
        parts = [range(start, len(self.items), self.jobs) for start in range(self.jobs)]
        reach = partial(self._reaching, watched)
        reached = defaultdict(list)
        for _, result in forked(reach, parts, self.jobs, LONGEST_SECONDS):
            if result is None:
                raise pytest.UsageError("the tests die without any mutant")
            for line, numbers in result.items():
                reached[line] += numbers
        return reached

    def _reaching(self, watched: set[int], numbers: Sequence[int]) -> dict[Line, list[int]]:
        """Return for each line of the watched code which of some tests reach it."""
        reached = defaultdict(list)
        lines: set[Line] = set()

        def trace_line(frame: FrameType, event: str, argument: Any) -> Any:
            lines.add((frame.f_code.co_filename, frame.f_lineno))
            return trace_line

        def trace_call(frame: FrameType, event: str, argument: Any) -> Any:
            return trace_line if id(frame.f_code) in watched else None

        sys.settrace(trace_call)
        for number, passes in zip(numbers, self._results(numbers), strict=True):
            if not passes:
                raise pytest.UsageError(f"{self.items[number].nodeid} fails without any mutant")
            for line in lines:
                reached[line].append(number)
            lines.clear()
        sys.settrace(None)
        return reached

    def _first_failing(self, made: list[Swap], reached: dict[Line, list[int]], number: int) -> str:
        """Return the first test that fails with a mutant, "" if none does."""
        swap = made[number]
        reaches: dict[int, set[Line]] = defaultdict(set)
        for function in swap.functions:
            for code in _all(function.__code__):
                for *_, line in code.co_lines():
                    for test in reached.get((code.co_filename, line), ()):
                        reaches[test].add((code.co_filename, line))
        near = {test: frozenset(lines & swap.near) for test, lines in reaches.items()}
        whole = {test: frozenset(lines) for test, lines in reaches.items()}
        as_near, as_whole = Counter(near.values()), Counter(whole.values())

        def rank(test: int) -> tuple[int, int, int]:
            return as_near[near[test]], as_whole[whole[test]], self.turns[test]

        tests = sorted(reaches, key=rank)
        swap.carry_out()
        results = zip(tests, self._results(tests), strict=True)
        return next((self.items[test].nodeid for test, passes in results if not passes), "")

    def _results(self, numbers: Iterable[int]) -> Iterator[bool]:
        """Run tests, and yield of each whether it passes."""
        items = [self.items[number] for number in numbers]
        for item, after in pairwise([*items, None]):
            reports = runtestprotocol(item, log=False, nextitem=after)
            yield all(report.outcome != "failed" for report in reports)


def _all(code: CodeType) -> Iterator[CodeType]:
    """Yield a function's code and that of the functions in it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _all(const)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
