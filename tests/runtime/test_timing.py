from __future__ import annotations

import pytest

from onnx_fuse.runtime.timing import Clocked, Spread, Turns, clocked, interleave
from tests.runtime.conftest import Clock


def test_spread_is_the_median_with_its_quartiles() -> None:
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Spread(3.0, 2.0, 4.0)


def test_ratio_is_of_turns_of_the_same_round() -> None:
    slow = Turns(((2.0, 90.0, 2.0), (8.0,), (30.0,)))
    fast = Turns(((1.0,), (2.0, 2.0), (10.0, 10.0, 1.0)))
    assert slow.us.median == 8.0
    assert slow.over(fast) == Spread(3.0, 2.5, 3.5)


def test_runs_take_turns(clock: Clock) -> None:
    order: list[str] = []

    def run(name: str, seconds: float) -> Clocked:
        def waiting() -> None:
            order.append(name)
            clock.wait(seconds)

        return clocked(waiting)

    times = interleave({"a": run("a", 0.003), "b": run("b", 0.006)}, 0.05)
    assert times["a"].us.median == pytest.approx(3001)
    assert times["b"].over(times["a"]).median == pytest.approx(2, rel=1e-3)
    timed = order[8:]  # after the warm-up: an untimed and a timed run each, then the order turns
    assert timed[:8] == ["a", "a", "b", "b", "b", "b", "a", "a"]


def test_a_turn_begins_with_a_millisecond_untimed(clock: Clock) -> None:
    lasts = iter([0.0001] * 4 + [0.0009] * 5 + [0.0001] * 1000)
    (times,) = interleave({"a": clocked(lambda: clock.wait(next(lasts)))}, 0.001).values()
    assert len(times.turns[0]) == 10
    assert times.turns[0] == pytest.approx([901, 901, 901] + [101] * 7)


def test_a_long_run_is_timed_at_once(clock: Clock) -> None:
    lasts = iter([0.5, 0.1, 0.1, 0.1, 0.1])
    (times,) = interleave({"a": clocked(lambda: clock.wait(next(lasts)))}, 0.001).values()
    assert [len(turn) for turn in times.turns] == [1, 1, 1]


def test_what_measures_itself_is_taken_at_its_word(clock: Clock) -> None:
    def run() -> float:
        clock.wait(0.001)
        return 0.0002

    (times,) = interleave({"a": run}, 0.001).values()
    assert times.us == Spread(pytest.approx(200), pytest.approx(200), pytest.approx(200))
