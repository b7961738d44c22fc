from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import onnx_fuse.runtime.bench
from onnx_fuse.errors import UnsupportedModel
from onnx_fuse.runtime.bench import BenchReport, BenchRow, bench
from onnx_fuse.runtime.timing import Spread
from onnx_fuse.show.terminal import render_bench
from tests.runtime.conftest import Clock
from tests.runtime.models import attention, parse

QUICK: Any = {"seconds": 0.01, "threads": (1,)}


def test_each_sequence_and_thread_count_is_a_row() -> None:
    report = bench(attention(), attention(), seqs=(1, 5), threads=(1, 2), seconds=0.01)
    assert [(row.seq, row.threads) for row in report.rows] == [(1, 1), (5, 1), (1, 2), (5, 2)]
    assert all(row.rounds >= 3 for row in report.rows)
    assert all(row.ratio.low <= row.ratio.median <= row.ratio.high for row in report.rows)


def test_slower_model_has_a_ratio_below_one(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    class Slow:
        def __init__(self, session: Any) -> None:
            self._session = session

        def run(self, names: None, feeds: dict[str, np.ndarray]) -> Any:
            clock.wait(0.002)
            return self._session.run(names, feeds)

    real = onnx_fuse.runtime.bench._session
    opened: list[Any] = []

    def slow_second(*args: Any, **options: Any) -> Any:
        opened.append(real(*args, **options))
        return Slow(opened[-1]) if len(opened) == 2 else opened[-1]

    monkeypatch.setattr(onnx_fuse.runtime.bench, "_session", slow_second)
    (row,) = bench(attention(), attention(), seqs=(4,), **QUICK).rows
    assert row.after_us.median > 2000
    assert row.ratio.high < 1


def test_static_model_is_one_row_with_a_note() -> None:
    model = parse("g (float[2,5] x) => (float[2,5] y) { y = Relu (x) }")
    report = bench(model, model, seqs=(1, 8), **QUICK)
    assert [row.seq for row in report.rows] == [None]
    assert "static" in report.notes[0]


def test_size_that_does_not_run_is_a_note() -> None:
    model = parse(
        "g (float[batch,seq] x) => (float[batch,seq] y) { y = Add (x, w) }",
        w=np.zeros((1, 6), np.float32),
    )
    report = bench(model, model, seqs=(6, 7), **QUICK)
    assert [row.seq for row in report.rows] == [6]
    assert report.notes[0].startswith("seq 7")


def test_model_that_runs_at_no_size_is_an_error() -> None:
    model = parse(
        "g (float[batch,seq] x) => (float[batch,seq] y) { y = Add (x, w) }",
        w=np.zeros((1, 6), np.float32),
    )
    with pytest.raises(UnsupportedModel, match="none of these sizes"):
        bench(model, model, seqs=(7,), **QUICK)


def test_json_says_what_was_measured_where() -> None:
    data = json.loads(json.dumps(bench(attention(), attention(), seqs=(3,), **QUICK).to_json()))
    assert data["schema"] == 1
    assert {"cpu", "cores"} <= data["machine"].keys()
    assert {"onnxruntime", "numpy"} <= data["versions"].keys()
    assert data["rows"][0]["ratio"].keys() == {"median", "low", "high"}


@pytest.mark.parametrize(("low", "high", "says"), [(1.0, 1.4, False), (0.6, 1.4, True)])
def test_ratios_that_say_little_are_called_so(low: float, high: float, says: bool) -> None:
    times = Spread(100.0, 90.0, 110.0)
    row = BenchRow(1, 8, 2, times, times, Spread(1.2, low, high), 5)
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(render_bench(BenchReport("a", "b", (row,))))
    assert ("the ratios vary a lot" in console.export_text()) is says
