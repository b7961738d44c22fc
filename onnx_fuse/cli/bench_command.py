"""The command `onnx-fuse bench`."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import click

from onnx_fuse import api
from onnx_fuse.cli.ends import EXIT_CODES
from onnx_fuse.cli.options import (
    PATH,
    check_apart,
    count,
    counts,
    example,
    json_option,
    parsed,
    positive,
    threshold_option,
    writable,
)
from onnx_fuse.cli.results import emit, progress, runnable
from onnx_fuse.config import Unset
from onnx_fuse.op.schema import PRECISIONS, Precision
from onnx_fuse.runtime.bench import bench as measure
from onnx_fuse.show import terminal


def _block(text: str) -> tuple[int, int]:
    hidden, cross, heads = text.partition("x")
    if not cross:
        raise ValueError(f"{text!r} is not HIDDENxHEADS")
    return count(hidden, 1), count(heads, 1)


def _finite(_ctx: click.Context, _param: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is no length of time")
    return value


@click.command(short_help="Time a model before and after, or one block.", epilog=EXIT_CODES)
@click.argument("model", type=PATH, required=False)
@click.option("--fused", type=PATH, help="The fused model; default: MODEL, fused in memory.")
@threshold_option
@click.option(
    "--block",
    metavar="HIDDENxHEADS",
    callback=parsed(_block),
    help="Time one attention block of this size beside its peers, instead of a MODEL.",
)
@click.option("--rope", is_flag=True, help="With --block: rotate queries and keys.")
@click.option(
    "--batch", metavar="N", callback=positive, default="1", help="Batch size. Default: 1."
)
@click.option(
    "--seq",
    "--rows",
    "seqs",
    metavar="N,...",
    callback=parsed(counts),
    default="1,8,16,32,64",
    help="Sequence lengths (a block's rows are batch times these). Default: 1,8,16,32,64.",
)
@click.option(
    "--threads",
    metavar="N,...",
    callback=parsed(counts),
    default="1,2",
    help="Numbers of threads. Default: 1,2.",
)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    help="Arithmetic of the fused blocks; may be repeated with --block. Default: fp32, with "
    "--block all.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.01),
    callback=_finite,
    default=1.0,
    help="Time for each point. Default: 1.",
)
@click.option(
    "--probe", type=PATH, metavar="FILE", help="With --block: the library that measures limits."
)
@click.option(
    "--plot",
    type=PATH,
    metavar="FILE",
    callback=writable,
    help="With --block: draw latency against rows (.svg, .png), on the first number of threads.",
)
@json_option
@example(
    "onnx-fuse bench model.onnx --seq 1,16,64 --threads 1",
    "onnx-fuse bench --block 384x12 --rows 1,16,64 --precision fp32",
)
def bench(
    model: Path | None,
    fused: Path | None,
    threshold: int | Unset | None,
    block: tuple[int, int] | None,
    rope: bool,
    batch: int,
    seqs: tuple[int, ...],
    threads: tuple[int, ...],
    precisions: tuple[Precision, ...],
    seconds: float,
    probe: Path | None,
    plot: Path | None,
    json_path: Path | None,
) -> None:
    """Time MODEL before and after fusion, or one block, in turn, in one process."""
    check_apart(MODEL=model, FUSED=fused, **{"--json": json_path, "--plot": plot})
    if (model is None) == (block is None):
        raise click.UsageError("give either MODEL or --block")
    points: dict[str, Any] = {"batch": batch, "seqs": seqs, "threads": threads, "seconds": seconds}
    log = terminal.make_console(stderr=True)
    if block is not None:
        if fused is not None:
            raise click.UsageError("--fused goes with MODEL, not with --block")
        from onnx_fuse.cli.benchmarks import bench_one_block
        from onnx_fuse.runtime.block_models import BlockShape
        from onnx_fuse.show.bench_tables import render_block_bench

        points |= {"precisions": precisions or PRECISIONS, "probe": probe}
        with progress(log, "making blocks") as tell:
            result = bench_one_block(BlockShape(*block, rope), plot=plot, progress=tell, **points)
        emit(render_block_bench(result), result.to_json(), json_path)
        return
    if model is None or rope or probe or plot or len(precisions) > 1:
        raise click.UsageError("--rope, --probe, --plot and a second --precision go with --block")
    precision = precisions[0] if precisions else "fp32"
    with progress(log, f"reading {model}") as tell, contextlib.ExitStack() as stack:
        after = fused or stack.enter_context(
            runnable(api.fuse(model, threshold=threshold, precision=precision), None)
        )
        report = measure(model, after, **points, progress=tell)
    emit(terminal.render_bench(report), report.to_json(), json_path)
