"""Times several things in turn, each as it runs when it runs again and again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from onnx_fuse.runtime.sessions import Source, open_session

Run = Callable[[], object]
# Runs once, and returns the seconds that it took.
Clocked = Callable[[], float]
# Positions that are in the cache of a model that has one.
PAST = 32

# A turn begins with untimed runs, the others have taken the caches and the cores. A single run over
# 30 ms mostly has its own doings in the caches anyway.
_UNTIMED_SECONDS = 0.001
_SHORT_SECONDS = 0.03
_SLICE_SECONDS = 0.002
_MOST_IN_A_ROW = 10
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 1000

# Between two runs of its turn a session's workers stay awake, as in anyone's loop, and when it is
# over they soon leave the cores to the others. Before 1.26 they can only be sent to sleep after
# each run, or be left awake for tens of milliseconds.
_AWAKE_SINCE = (1, 26)
_AWAKE = {"session.intra_op.spin_duration_us": "300"}
_ASLEEP = {"session.force_spinning_stop": "1"}


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(samples: Sequence[float]) -> Spread:
        """Return the spread of at least one sample."""
        low, median, high = np.quantile(np.asarray(samples), (0.25, 0.5, 0.75))
        return Spread(float(median), float(low), float(high))


@dataclass(frozen=True)
class Turns:
    """Microseconds of each timed run, by turns."""

    turns: tuple[tuple[float, ...], ...]

    @property
    def us(self) -> Spread:
        """The spread of all runs."""
        return Spread.of([each for turn in self.turns for each in turn])

    def over(self, other: Turns) -> Spread:
        """Return the spread of the turns' medians over those of the other's in the same rounds."""
        pairs = zip(self.turns, other.turns, strict=True)
        return Spread.of([statistics.median(a) / statistics.median(b) for a, b in pairs])


def open_timed_session(source: Source, *, kernels: bool, threads: int) -> ort.InferenceSession:
    """Return an optimised session that shares the cores with others that are timed, too.

    Raises: as open_session.
    """
    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    settings = _AWAKE if version >= _AWAKE_SINCE else _ASLEEP
    return open_session(source, kernels=kernels, threads=threads, settings=settings)


def clocked(run: Run) -> Clocked:
    """Return a run whose seconds are those until it returns."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        return max(time.perf_counter() - start, 1e-9)

    return timed


def interleave(runs: Mapping[str, Clocked], seconds: float) -> dict[str, Turns]:
    """Return times by name, from rounds over about `seconds`, at least three.

    In a round each has its turn, a different one first each time. A turn is untimed runs for a
    millisecond, then timed ones for two; a run over 30 ms is timed once, without untimed ones.
    """
    lasts = {name: _warm(run) for name, run in runs.items()}
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in runs}
    names = list(runs)
    ends = time.perf_counter() + seconds
    rounds = 0
    while rounds < _FEWEST_ROUNDS or (time.perf_counter() < ends and rounds < _MOST_ROUNDS):
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            turns[name].append(_turn(runs[name], lasts[name]))
        rounds += 1
    return {name: Turns(tuple(taken)) for name, taken in turns.items()}


def _turn(run: Clocked, lasts: float) -> tuple[float, ...]:
    if lasts < _SHORT_SECONDS:
        warm = time.perf_counter() + _UNTIMED_SECONDS
        run()
        while time.perf_counter() < warm:
            run()
    times = max(1, min(_MOST_IN_A_ROW, int(_SLICE_SECONDS / lasts)))
    return tuple(run() * 1e6 for _ in range(times))


def _warm(run: Clocked) -> float:
    """Return the seconds of a run that isn't the first."""
    first = run()
    return first if first > 10 * _SHORT_SECONDS else min(run() for _ in range(3))
