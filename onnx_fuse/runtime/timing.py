"""Times several things in turn, each as it runs when it runs again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from onnx_fuse.runtime.bench import Spread

Run = Callable[[], object]

# A run as short as this is made once untimed before it is timed: the others have taken the caches.
# What takes longer has mostly its own doings in them anyway.
_SHORT_SECONDS = 0.03
_SLICE_SECONDS = 0.002
_MOST_IN_A_ROW = 10
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 1000


def interleave(runs: Mapping[str, Run], seconds: float) -> dict[str, Spread]:
    """Microseconds of each run by name, from rounds over about `seconds`, at least three.

    In a round each has its turn, a different one first each time. A turn is one untimed run, then
    timed ones for two milliseconds; a run over 30 ms is timed once, without the untimed one.
    """
    lasts = {name: _warm(run) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    ends = time.perf_counter() + seconds
    rounds = 0
    while rounds < _FEWEST_ROUNDS or (time.perf_counter() < ends and rounds < _MOST_ROUNDS):
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            if lasts[name] < _SHORT_SECONDS:
                runs[name]()
            for _ in range(max(1, min(_MOST_IN_A_ROW, int(_SLICE_SECONDS / lasts[name])))):
                samples[name].append(_seconds(runs[name]) * 1e6)
        rounds += 1
    return {name: Spread.of(taken) for name, taken in samples.items()}


def _warm(run: Run) -> float:
    """Seconds of a run that isn't the first."""
    first = _seconds(run)
    return first if first > 10 * _SHORT_SECONDS else min(_seconds(run) for _ in range(3))


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return max(time.perf_counter() - start, 1e-9)
