"""Benchmarks of blocks and models as tables: for a terminal, and as a Markdown page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from onnx_fuse.op.schema import Precision
    from onnx_fuse.runtime.block_bench import BlockBenchReport, BlockRow
    from onnx_fuse.runtime.model_bench import ModelRow, SessionCost

_SMALL = 64
_NONE = "-"
_FORMS = {
    "onnxruntime": "plain",
    "onnxruntime Attention": "Attention",
    "onnxruntime MultiHeadAttention": "MHA",
}


@dataclass(frozen=True)
class Cells:
    """A table's headings and lines."""

    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def block_cells(report: BlockBenchReport) -> Cells:
    """Return a line a point: the peers' microseconds, ours, ratios (above 1: we win), shares."""
    columns = [(head, cell) for head, cell in _COLUMNS if _has(report, head)]
    lines = tuple(tuple(cell(row) for _, cell in columns) for row in report.rows)
    return Cells(tuple(head for head, _ in columns), lines)


def _us(row: BlockRow, name: str | None) -> str:
    found = row.peers.get(name) if name else None
    return _time(found.us.median) if found else _NONE


def _time(us: float) -> str:
    return f"{us:.1f}" if us < 100 else f"{us:.0f}"


def _ratio(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}x"


def _best(row: BlockRow) -> str:
    best = row.best_onnxruntime()
    return f"{_us(row, best)} {_FORMS[best]}" if best else _NONE


def _limit(row: BlockRow, precision: Precision) -> str:
    limit = row.limits.get(precision)
    return f"{_time(limit.us)} {limit.by}" if limit else _NONE


def _share(row: BlockRow, precision: Precision) -> str:
    share = row.share(precision)
    return _NONE if share is None else f"{share:.0%}"


def _ours(precision: Precision) -> list[tuple[str, Callable[[BlockRow], str]]]:
    peer = "OpenVINO bf16" if precision == "bf16" else "OpenVINO fp32"
    return [
        (precision, lambda row: _us(row, f"onnx-fuse {precision}")),
        (f"{precision} / ort", lambda row: _ratio(row.ratio(row.best_onnxruntime(), precision))),
        (f"{precision} / ov", lambda row: _ratio(row.ratio(peer, precision))),
        (f"{precision} limit", lambda row: _limit(row, precision)),
        (f"{precision} share", lambda row: _share(row, precision)),
    ]


_COLUMNS: list[tuple[str, Callable[[BlockRow], str]]] = [
    ("block", lambda row: str(row.shape)),
    ("rows", lambda row: f"{row.batch}x{row.seq}" if row.batch > 1 else str(row.rows)),
    ("threads", lambda row: str(row.threads)),
    ("onnxruntime", _best),
    ("OpenVINO fp32", lambda row: _us(row, "OpenVINO fp32")),
    ("OpenVINO bf16", lambda row: _us(row, "OpenVINO bf16")),
    *_ours("fp32"),
    *_ours("bf16x3")[:2],
    *_ours("bf16"),
]


def _has(report: BlockBenchReport, head: str) -> bool:
    """Return whether any line has something in this column."""
    cell = dict(_COLUMNS)[head]
    return any(cell(row) != _NONE for row in report.rows)


def render_block_bench(report: BlockBenchReport) -> RenderableType:
    """Return the table, what its columns are, and the notes."""
    cells = block_cells(report)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for head in cells.heads:
        table.add_column(head, justify="left" if head == "block" else "right")
    for line in cells.lines:
        table.add_row(*map(_coloured, line))
    about = Text(
        "us of one block; / ort: against onnxruntime's best form, / ov: against OpenVINO; "
        f"kernels: {report.isa}",
        style="dim",
    )
    return Group(table, about, *(Text(f"note: {note}", style="yellow") for note in report.notes))


def _coloured(cell: str) -> Text:
    if not cell.endswith("x") or not cell[0].isdigit():
        return Text(cell)
    return Text(cell, style="green" if float(cell[:-1]) >= 1 else "red")


def block_page(report: BlockBenchReport, commands: str, pictures: Sequence[str]) -> Iterable[str]:
    """Yield the lines of a Markdown page about blocks."""
    yield from ("# Benchmarks", "")
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    versions = ", ".join(f"{name} {value}" for name, value in report.versions.items())
    yield f"Made by `{commands}`. Machine: {machine}; kernels: {report.isa}. Versions: {versions}."
    yield ""
    for limits in report.limits:
        peaks = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in limits.peaks.items())
        trip = f"; round trip {limits.round_trip * 1e9:.0f} ns" if limits.round_trip else ""
        yield f"Measured with {limits.threads} thread(s): GFLOP/s {peaks}{trip}."
        yield ""
    for picture in pictures:
        yield f"![latency against rows]({picture})"
        yield ""
    yield from ("## Summary", "")
    yield from _markdown(summary_cells(report))
    yield ""
    yield "Error after six blocks: rms difference from float64, relative to the result's rms."
    yield ""
    yield from _markdown(error_cells(report))
    yield from ("", "## One block", "", _METHOD, "")
    yield from _markdown(block_cells(report))
    yield from (f"\nNote: {note}." for note in report.notes)


_METHOD = (
    "Microseconds of one block, without a mask, batch 1: a sixth of the median run of a model of "
    "six blocks with different weights. The peers take turns in one process, each runs untimed "
    "for a millisecond before it is timed (over 30 ms it is timed at once). `onnxruntime` is the "
    "fastest of three "
    "forms: the exporter's graph with all optimisations, com.microsoft Attention, com.microsoft "
    "MultiHeadAttention (with rope also RotaryEmbedding); OpenVINO is compiled for the very shape. "
    "`/ ort`: onnxruntime's time over ours, `/ ov`: OpenVINO's over ours (bf16 against its bf16, "
    "else its fp32); above 1 ours is faster. `limit`: the larger of all multiplications and "
    "additions at the unit's peak, measured just before, and the reading of as many bytes as the "
    "weights have, which takes turns with the peers; and which it is. `share`: limit over ours."
)


def error_cells(report: BlockBenchReport) -> Cells:
    """Return one line a peer: median and largest error over all points."""
    names = dict.fromkeys(name for row in report.rows for name in row.peers)
    lines = []
    for name in names:
        errors = [row.peers[name].error for row in report.rows if name in row.peers]
        lines.append((name, f"{np.median(errors):.1e}", f"{max(errors):.1e}"))
    return Cells(("peer", "median error", "largest"), tuple(lines))


def summary_cells(report: BlockBenchReport) -> Cells:
    """Return median, worst and how many points are below 1, for each comparison and size."""
    lines: list[tuple[str, ...]] = []
    for size, rows in (
        (f"rows <= {_SMALL}", [row for row in report.rows if row.rows <= _SMALL]),
        (f"rows > {_SMALL}", [row for row in report.rows if row.rows > _SMALL]),
    ):
        for name, value in _COMPARISONS:
            values = [found for found in map(value, rows) if found is not None]
            if values:
                below = f"{sum(v < 1 for v in values)} of {len(values)}"
                lines.append((size, name, f"{np.median(values):.2f}", f"{min(values):.2f}", below))
    return Cells(("points", "comparison", "median", "worst", "below 1"), tuple(lines))


_COMPARISONS: list[tuple[str, Callable[[BlockRow], float | None]]] = [
    ("fp32 against onnxruntime's best", lambda row: row.ratio(row.best_onnxruntime(), "fp32")),
    ("fp32 against OpenVINO fp32", lambda row: row.ratio("OpenVINO fp32", "fp32")),
    ("bf16x3 against onnxruntime's best", lambda row: row.ratio(row.best_onnxruntime(), "bf16x3")),
    ("bf16 against onnxruntime's best", lambda row: row.ratio(row.best_onnxruntime(), "bf16")),
    ("bf16 against OpenVINO bf16", lambda row: row.ratio("OpenVINO bf16", "bf16")),
    (
        "fp32 share of the limit, 1 thread, rows < 8",
        lambda row: row.share("fp32") if row.threads == 1 and row.rows < 8 else None,
    ),
    (
        "fp32 share of the limit, 1 thread, rows >= 8",
        lambda row: row.share("fp32") if row.threads == 1 and row.rows >= 8 else None,
    ),
]


def model_page(
    name: str, rows: Sequence[ModelRow], costs: Sequence[SessionCost], notes: Sequence[str]
) -> Iterable[str]:
    """Yield the lines of a Markdown page about a whole model."""
    yield from ("", f"## {name}", "")
    yield (
        "Milliseconds of a run, batch 1; in brackets how much faster than the original in "
        "onnxruntime. The last lines: largest difference from the original's output relative to "
        "its largest value, over all points, and the smallest cosine."
    )
    yield ""
    yield from _markdown(model_cells(rows))
    yield from (f"\nNote: {note}." for note in notes)
    yield from ("", "Sessions of one thread, each in a process of its own, medians of five:", "")
    yield from _markdown(cost_cells(costs))


def model_cells(rows: Sequence[ModelRow]) -> Cells:
    """Return one line a length and number of threads, then the errors."""
    names = list(rows[0].peers) if rows else []
    lines = [
        (
            str(row.seq),
            str(row.threads),
            *(
                f"{m.us.median / 1e3:.2f} ({row.peers[names[0]].us.median / m.us.median:.2f}x)"
                for m in row.peers.values()
            ),
        )
        for row in rows
    ]
    errors = (f"{max(row.peers[name].error for row in rows):.1e}" for name in names)
    cosines = (f"{min(row.peers[name].cosine for row in rows):.7f}" for name in names)
    lines += [("error", "", *errors), ("cosine", "", *cosines)]
    return Cells(("tokens", "threads", *names), tuple(lines))


def cost_cells(costs: Sequence[SessionCost]) -> Cells:
    """Return one line a session."""
    lines = (
        (
            cost.name,
            f"{cost.seconds.median * 1e3:.0f}",
            f"{cost.resident.median / 2**20:.1f}",
            f"{cost.peak.median / 2**20:.1f}",
        )
        for cost in costs
    )
    heads = ("session", "made in ms", "resident MiB after a run", "peak MiB")
    return Cells(heads, tuple(lines))


def _markdown(cells: Cells) -> Iterable[str]:
    yield f"| {' | '.join(cells.heads)} |"
    yield f"|{'---|' * len(cells.heads)}"
    yield from (f"| {' | '.join(line)} |" for line in cells.lines)
