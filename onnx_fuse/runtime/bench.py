"""Times a model before and after fusion, in turn, in one process.

Machines drift: clocks change, neighbours come and go. The two models take turns, each pair of turns
makes one ratio, and medians with quartiles are what is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnxruntime as ort

from onnx_fuse.errors import OnnxFuseError, UnsupportedModel
from onnx_fuse.ir.load import ModelLike
from onnx_fuse.runtime.cases import fit
from onnx_fuse.runtime.inputs import Feeds, InputMaker, Sizes
from onnx_fuse.runtime.machine import processor, versions
from onnx_fuse.runtime.sessions import Source, one_line, open_source, run
from onnx_fuse.runtime.timing import PAST, Clocked, Spread, clocked, interleave, open_timed_session


@dataclass(frozen=True)
class BenchRow:
    """One point: times in microseconds, `ratio` = before / after (above 1 is faster now).

    `seq` is None where the model's shapes are static.
    """

    batch: int
    seq: int | None
    threads: int
    before_us: Spread
    after_us: Spread
    ratio: Spread
    rounds: int


@dataclass(frozen=True)
class BenchReport:
    """All points of one comparison, with what could not be measured in `notes`."""

    model: str
    fused: str
    rows: tuple[BenchRow, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return points, machine and versions as plain JSON values."""
        return {
            "schema": 1,
            "model": self.model,
            "fused": self.fused,
            "machine": processor(),
            "versions": versions(),
            "rows": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
        }


def bench(
    original: ModelLike,
    fused: ModelLike,
    *,
    batch: int = 1,
    seqs: Sequence[int] = (1, 8, 16, 32, 64),
    threads: Sequence[int] = (1, 2),
    seconds: float = 1.0,
    kernels: bool = True,
    progress: Callable[[str], None] | None = None,
) -> BenchReport:
    """Time both models at each sequence length and number of threads, `seconds` a point.

    Both run with all of onnxruntime's optimisations, the fused one with our kernels unless
    `kernels` is False (then as in a host without the library).

    Raises: InvalidModel, UnsupportedModel if a model cannot be read or run at any of the sizes;
    LibraryUnavailable if the kernels are missing.
    """
    tell = progress or (lambda _: None)
    first = open_source(original, "the original model")
    second = open_source(fused, "the fused model")
    maker = InputMaker(first.proto)
    wanted: Sequence[int | None] = seqs if maker.is_dynamic else (None,)
    rows: list[BenchRow] = []
    notes: list[str] = []
    if not maker.is_dynamic:
        notes.append("the model's shapes are static: --batch and --seq have no effect")
    for count in threads:
        before = _session(first, count, kernels=False)
        after = _session(second, count, kernels=kernels and second.uses_operators)
        for seq in wanted:
            tell(f"seq {seq or 'static'}, {count} thread{'s' if count > 1 else ''}")
            try:
                feeds = _feeds(maker, before, batch, seq)
                rows.append(_time(before, after, feeds, (batch, seq, count), seconds))
            except Exception as error:
                notes.append(f"seq {seq}, threads {count}: {one_line(error)}")
    if not rows:
        raise UnsupportedModel(f"{first.name} runs at none of these sizes: {notes[-1]}")
    return BenchReport(first.name, second.name, tuple(rows), tuple(notes))


def _session(source: Source, threads: int, *, kernels: bool) -> ort.InferenceSession:
    try:
        return open_timed_session(source, kernels=kernels, threads=threads)
    except OnnxFuseError:
        raise
    except Exception as error:  # onnxruntime's own classes share no base but this
        raise UnsupportedModel(f"{source.name} does not load: {one_line(error)}") from error


def _feeds(maker: InputMaker, session: ort.InferenceSession, batch: int, seq: int | None) -> Feeds:
    sizes = Sizes(batch, seq or 1, PAST)
    return fit(maker, lambda feeds: run(session, feeds), sizes).feeds


def _time(
    before: ort.InferenceSession,
    after: ort.InferenceSession,
    feeds: Feeds,
    point: tuple[int, int | None, int],
    seconds: float,
) -> BenchRow:
    run(after, feeds)  # with the library's own message, if it fails
    runs: dict[str, Clocked] = {
        "before": clocked(lambda: before.run(None, feeds)),
        "after": clocked(lambda: after.run(None, feeds)),
    }
    times = interleave(runs, seconds)
    ratio = times["before"].over(times["after"])
    return BenchRow(
        *point, times["before"].us, times["after"].us, ratio, len(times["before"].turns)
    )
