"""The benchmarks of docs/benchmarks: `make bench` runs `python -m onnx_fuse.cli.benchmarks`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import onnx

from onnx_fuse import api
from onnx_fuse.errors import OnnxFuseError
from onnx_fuse.op.schema import PRECISIONS, Precision
from onnx_fuse.runtime.block_bench import BlockBenchReport, block_bench
from onnx_fuse.runtime.block_models import BlockShape
from onnx_fuse.runtime.model_bench import (
    ORIGINAL,
    PLAIN,
    ModelRow,
    SessionCost,
    model_bench,
    session_costs,
    to_json,
)
from onnx_fuse.runtime.plot import check_drawable, draw
from onnx_fuse.show import terminal
from onnx_fuse.show.bench_tables import block_page, model_page, render_block_bench

_SMALL, _LARGE = (1, 4, 8, 16, 32, 64), (128, 256, 512, 1024, 2048)
_PLAN: Mapping[BlockShape, Sequence[int]] = {
    BlockShape(128, 4): _SMALL,
    BlockShape(256, 4): _SMALL,
    BlockShape(384, 12): _SMALL + _LARGE,
    BlockShape(512, 8): _SMALL,
    BlockShape(768, 12): _SMALL + _LARGE,
    BlockShape(1024, 16): _SMALL,
    BlockShape(512, 8, rope=True): (1, 16, 64),
}
_QUICK: Mapping[BlockShape, Sequence[int]] = {BlockShape(128, 4): (1, 8, 128)}
_THREADS = (1, 2)
_TOKENS = (1, 8, 16, 32, 64, 128)
_COMMAND = "make bench BENCH=docs/benchmarks"


def bench_one_block(
    shape: BlockShape,
    *,
    seqs: Sequence[int],
    plot: Path | None = None,
    threads: Sequence[int],
    **options: Any,
) -> BlockBenchReport:
    """Measure one block and draw it; options as in block_bench.

    Raises: InvalidOption, LibraryUnavailable; what `draw` raises, before anything is measured.
    """
    if plot is not None:
        check_drawable([plot])
    report = block_bench({shape: seqs}, fuse=_fuse_fully, threads=threads, **options)
    if plot is not None:
        draw(report, threads[0], [plot])
    return report


def _fuse_fully(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    return api.fuse(model, threshold=None, precision=precision).model


@click.command()
@click.option(
    "--probe", type=click.Path(path_type=Path), required=True, help="Built by make bench."
)
@click.option("--model", type=click.Path(path_type=Path), required=True, help="MiniLM.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--seconds", type=float, default=1.0, help="Time for each point. Default: 1.")
@click.option("--quick", is_flag=True, help="A few points only: does everything work?")
def main(probe: Path, model: Path, output: Path, seconds: float, quick: bool) -> None:
    """Measure blocks, a whole model and its sessions; write figures, pictures and a page."""
    log = terminal.make_console(stderr=True)
    output.mkdir(parents=True, exist_ok=True)
    with log.status("making blocks") as status:
        try:
            report = block_bench(
                _QUICK if quick else _PLAN,
                fuse=_fuse_fully,
                threads=_THREADS,
                seconds=seconds,
                probe=probe,
                progress=status.update,
            )
            tokens = _TOKENS[:2] if quick else _TOKENS
            rows, costs, notes = _measure_model(model, tokens, seconds, status.update)
            pictures = _draw(report, output)
        except OnnxFuseError as error:
            raise click.ClickException(str(error)) from error
    _write(output / "blocks.json", [_compact(report.to_json())])
    _write(output / f"{model.stem}.json", [_compact(to_json(rows, costs))])
    page = [*block_page(report, _COMMAND, pictures), *model_page(model.stem, rows, costs, notes)]
    _write(output / "README.md", page)
    terminal.make_console().print(render_block_bench(report))


def _measure_model(
    model: Path, tokens: Sequence[int], seconds: float, tell: Callable[[str], None]
) -> tuple[tuple[ModelRow, ...], tuple[SessionCost, ...], tuple[str, ...]]:
    with tempfile.TemporaryDirectory() as folder:
        fused: dict[Precision, Path] = {p: Path(folder) / f"{p}.onnx" for p in PRECISIONS}
        for precision, path in fused.items():
            tell(f"fusing {model.stem}, {precision}")
            api.fuse(model, threshold=None, precision=precision).save(path)
        rows, notes = model_bench(
            model, fused, seqs=tokens, threads=_THREADS, seconds=seconds, progress=tell
        )
        tell(f"making sessions of {model.stem}")
        # Written like the others: what of a file is mapped with a page depends on who wrote it.
        original = Path(folder) / model.name
        api.save(api.load(model), original)
        kernels = {f"onnx-fuse {precision}": (path, True) for precision, path in fused.items()}
        models = {ORIGINAL: (original, False), PLAIN: (fused["fp32"], False), **kernels}
        return rows, session_costs(models), notes


def _draw(report: BlockBenchReport, output: Path) -> list[str]:
    """Write the pictures, and return the names of those that a page shows."""
    shown = []
    for count in _THREADS:
        stem = f"blocks-{count}-thread{'s' if count > 1 else ''}"
        draw(report, count, [output / f"{stem}.svg", output / f"{stem}.png"])
        shown.append(f"{stem}.svg")
    return shown


def _compact(data: dict[str, Any]) -> str:
    """Return JSON with a line for each item of a list, and no more digits than were measured."""
    parts = []
    for key, value in _rounded(data).items():
        if isinstance(value, list) and value:
            lines = ",\n".join(f"  {json.dumps(item)}" for item in value)
            parts.append(f' "{key}": [\n{lines}\n ]')
        else:
            parts.append(f' "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}"


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.5g}")
        case dict():
            return {key: _rounded(item) for key, item in value.items()}
        case list() | tuple():
            return [_rounded(item) for item in value]
        case _:
            return value


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
