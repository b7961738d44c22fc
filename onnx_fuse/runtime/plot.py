"""Draws latency against rows, one line a peer, with the machine's limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_fuse.errors import ModelNotWritable, UnsupportedModel

if TYPE_CHECKING:
    from onnx_fuse.op.schema import Precision
    from onnx_fuse.runtime.block_bench import BlockBenchReport, BlockRow

# Name, colour, line style; in the order of the legend. Colours as in Okabe and Ito's set, which
# readers with any colour vision tell apart.
_LINES = (
    ("onnxruntime", "#999999", "-"),
    ("onnxruntime Attention", "#999999", "--"),
    ("onnxruntime MultiHeadAttention", "#999999", ":"),
    ("OpenVINO fp32", "#0072B2", "-"),
    ("OpenVINO bf16", "#0072B2", "--"),
    ("onnx-fuse fp32", "#D55E00", "-"),
    ("onnx-fuse bf16x3", "#D55E00", ":"),
    ("onnx-fuse bf16", "#D55E00", "--"),
)
_COLUMNS = 3
_LIMITS: Mapping[Precision, str] = {"fp32": "-", "bf16": "--"}


def check_drawable(paths: Sequence[Path]) -> None:
    """Find out whether `draw` can write these paths, before anything is measured for them.

    Raises: UnsupportedModel without matplotlib, or for a format that it cannot write.
    """
    try:
        import matplotlib.backend_bases
    except ImportError as error:
        raise UnsupportedModel("plots need matplotlib: pip install 'onnx-fuse[bench]'") from error
    formats = sorted(matplotlib.backend_bases.FigureCanvasBase.get_supported_filetypes())
    for path in paths:
        if path.suffix.removeprefix(".").lower() not in formats:
            raise UnsupportedModel(f"{path}: a plot's name ends in one of {', '.join(formats)}")


def draw(report: BlockBenchReport, threads: int, paths: Sequence[Path]) -> None:
    """Write one picture, a panel for each shape, to each of the paths; suffixes say the format.

    Raises: what `check_drawable` raises; ModelNotWritable.
    """
    check_drawable(paths)
    import matplotlib

    matplotlib.use("Agg")
    # The same figures give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "onnx-fuse", "font.size": 9})
    from matplotlib import pyplot

    rows = [row for row in report.rows if row.threads == threads]
    shapes = list(dict.fromkeys(row.shape for row in rows))
    columns = min(_COLUMNS, len(shapes))
    lines = math.ceil(len(shapes) / columns)
    size = (max(6.0, 4.2 * columns), 3.4 * lines + 1.1)
    figure, axes = pyplot.subplots(lines, columns, figsize=size, squeeze=False)
    for panel, shape in zip(axes.flat, shapes, strict=False):
        points = sorted((row for row in rows if row.shape == shape), key=lambda row: row.rows)
        _panel(panel, points)
    for panel in axes.flat[len(shapes) :]:
        panel.set_axis_off()
    legend = {
        text: handle
        for panel in axes.flat
        for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        legend.values(),
        legend.keys(),
        loc="lower center",
        ncols=min(5, 2 * columns),
        frameon=False,
        handlelength=3,
    )
    cpu, plural = report.machine.get("cpu", ""), "s" if threads > 1 else ""
    title = f"One attention block, {threads} thread{plural}, {cpu} ({report.isa})"
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 1.1 / size[1], 1, 1))
    try:
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(path, dpi=130, metadata=metadata)
    except OSError as error:
        raise ModelNotWritable(f"{path}: {error.strerror}") from error
    finally:
        pyplot.close(figure)


def _panel(panel: Any, points: Sequence[BlockRow]) -> None:
    rows = [row.rows for row in points]
    for name, colour, style in _LINES:
        if not any(name in row.peers for row in points):
            continue
        # A gap where a peer computed something else: it is not drawn as if it had been measured.
        times = [row.peers[name].us.median if name in row.peers else math.nan for row in points]
        ours = name.startswith("onnx-fuse")
        width, marker = (2.0, "o") if ours else (1.3, "")
        panel.plot(
            rows, times, style, color=colour, label=name, lw=width, marker=marker, markersize=3
        )
    for precision, style in _LIMITS.items():
        if all(precision in row.limits for row in points):
            times = [row.limits[precision].us for row in points]
            panel.plot(rows, times, style, color="black", lw=0.8, label=f"limit {precision}")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(rows, [str(count) for count in rows])
    panel.tick_params(axis="x", labelsize=7)
    panel.set_title(f"hidden x heads {points[0].shape}", fontsize=9)
    panel.set_xlabel("rows (batch x sequence)")
    panel.set_ylabel("us")
    panel.grid(which="major", lw=0.3)
