from __future__ import annotations

from types import SimpleNamespace

import pytest

import onnx_fuse.runtime.timing


class Clock:
    """A clock that goes on by a microsecond when it is read, and else when it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the timing reads instead of the machine's clock: no test depends on that one."""
    clock = Clock()
    monkeypatch.setattr(onnx_fuse.runtime.timing, "time", SimpleNamespace(perf_counter=clock))
    return clock
