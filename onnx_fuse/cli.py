"""The command line: parses, calls the API, prints.

Results go to stdout, progress and log to stderr.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import onnx
from rich.console import Console, RenderableType
from rich.markup import escape

from onnx_fuse import api, render
from onnx_fuse.config import PRECISIONS, UNSET, Precision, Unset, parse_threshold
from onnx_fuse.errors import InvalidOption, ModelNotWritable, OnnxFuseError, UnsupportedModel
from onnx_fuse.report import Report
from onnx_fuse.runtime.bench import bench as measure
from onnx_fuse.runtime.machine import describe, versions
from onnx_fuse.runtime.verify import verify as compare

EXIT_MODEL = 1
EXIT_USAGE = 2
EXIT_REQUIRE = 3
EXIT_VERIFY = 4
_EXIT_INTERRUPTED = 130

_EXIT_CODES = """\b
Exit codes: 0 done; 1 the model cannot be read or written; 2 usage;
3 fewer blocks fused than --require; 4 verification failed, nothing written."""


class _Cli(click.Group):
    """A group that ends in an exit code and one line, never in a traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, then exit with the documented code (or return what the command returns)."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            result = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
            code = result if isinstance(result, int) else 0
        except BrokenPipeError:
            # The reader of our output went away; the interpreter must not try to flush again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = EXIT_MODEL
        except Exception as error:
            code, message = _judge(error)
            click.echo(f"onnx-fuse: {message}", err=True)
        sys.exit(code)


def _judge(error: Exception) -> tuple[int, str]:
    """Exit code and one line for an exception."""
    text = " ".join(str(error).split())
    match error:
        case click.UsageError():
            hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
            return EXIT_USAGE, " ".join(error.format_message().split()) + hint
        case click.Abort():
            return _EXIT_INTERRUPTED, "interrupted"
        case click.ClickException():
            return EXIT_USAGE, " ".join(error.format_message().split())
        case InvalidOption():
            return EXIT_USAGE, text
        case OnnxFuseError():
            return EXIT_MODEL, text
        case OSError():
            place = f"{error.filename}: " if error.filename else ""
            return EXIT_MODEL, f"{place}{error.strerror or text}"
        case MemoryError():
            return EXIT_MODEL, "out of memory"
        case _:
            kind = type(error).__name__
            return EXIT_MODEL, f"internal error, please report it: {kind}: {text}"


Function = TypeVar("Function", bound=Callable[..., Any])
Callback = Callable[[click.Context, click.Parameter, Any], Any]


def _parsed(parse: Callable[[str], object]) -> Callback:
    """An option's callback: `parse` turns its text into a value, or says by ValueError why not."""

    def convert(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            if isinstance(value, tuple):
                return tuple(parse(item) for item in value)
            return parse(value) if isinstance(value, str) else value
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return convert


def _threshold(
    _ctx: click.Context, _param: click.Parameter, text: str | None
) -> int | Unset | None:
    return UNSET if text is None else parse_threshold(text, "--threshold")


def _count(text: str, least: int = 0) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise ValueError(f"{text!r} is no whole number of at least {least}")
    return int(text)


def _required(text: str) -> int | str:
    return text if text == "all" else _count(text)


def _binding(text: str) -> tuple[str, int]:
    name, equals, size = text.rpartition("=")
    if not name or not equals:
        raise ValueError(f"{text!r} is not NAME=N")
    return name, _count(size, 1)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(word.strip(), 1) for word in text.split(","))


def _block(text: str) -> tuple[int, int]:
    hidden, cross, heads = text.partition("x")
    if not cross:
        raise ValueError(f"{text!r} is not HIDDENxHEADS")
    return _count(hidden, 1), _count(heads, 1)


_PATH = click.Path(path_type=Path)
_model = click.argument("model", type=_PATH)
_output = click.option(
    "-o", "--output", type=_PATH, required=True, metavar="OUT", help="File to write."
)
_json = click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Write the report as JSON ('-' for stdout, instead of the table).",
)


def _example(*lines: str) -> Callable[[Function], Function]:
    """Add an example to a command's help, kept line by line."""

    def add(command: Function) -> Function:
        indented = [f"  {line}" for line in lines]
        command.__doc__ = "\n".join((command.__doc__ or "", "", "\b", "Example:", *indented))
        return command

    return add


def _fuse_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that decide what is fused, for every command that fuses."""
    options = (
        click.option(
            "--threshold",
            metavar="N|none",
            callback=_threshold,
            help="Fuse a block whose batch*sequence is at most N; 0 fuses none, 'none' all. "
            "Default: $RLX_FUSE_ATTN_THRESHOLD, else 64. Open dims count as small.",
        ),
        click.option("--batch", type=click.IntRange(min=1), help="Bind the open batch dim to N."),
        click.option("--seq", type=click.IntRange(min=1), help="Bind the open sequence to N."),
        click.option(
            "--dim",
            "dims",
            metavar="NAME=N",
            callback=_parsed(_binding),
            multiple=True,
            help="Bind the open dim NAME to N; may be repeated.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(
    cls=_Cli,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXIT_CODES,
)
@click.version_option(versions()["onnx-fuse"], prog_name="onnx-fuse")
@click.pass_context
@_example("onnx-fuse fuse model.onnx -o fused.onnx", "onnx-fuse explain model.onnx")
def main(ctx: click.Context) -> None:
    """Fuse the attention blocks of ONNX models into one fast, verified, portable operator."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(EXIT_USAGE)


@main.command(epilog=_EXIT_CODES)
@_model
@click.option("-o", "--output", type=_PATH, metavar="OUT", help="File to write.")
@_fuse_options
@click.option(
    "--require",
    metavar="N|all",
    callback=_parsed(_required),
    help="Exit with 3 if fewer blocks than N (or not all) are fused.",
)
@click.option("--no-verify", is_flag=True, help="Don't compare the result with the original.")
@click.option(
    "--no-fallback", is_flag=True, help="Leave out the body for sessions without the library."
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Arithmetic of the matrix products.",
)
@_json
@click.option("--dry-run", is_flag=True, help="Do everything, write nothing.")
@click.option("-v", "--verbose", is_flag=True, help="Log the fused graph, line by line.")
@_example("onnx-fuse fuse model.onnx -o fused.onnx --batch 1 --seq 32 --require all")
def fuse(
    model: Path,
    output: Path | None,
    threshold: int | Unset | None,
    batch: int | None,
    seq: int | None,
    dims: Sequence[tuple[str, int]],
    require: int | Literal["all"] | None,
    no_verify: bool,
    no_fallback: bool,
    precision: Literal["fp32", "bf16x3", "bf16"],
    json_path: Path | None,
    dry_run: bool,
    verbose: bool,
) -> int:
    """Replace the attention blocks of MODEL, check the result, and write it to OUT."""
    if output is None and not dry_run:
        raise click.UsageError("missing option '-o' / '--output' (or --dry-run)")
    log = render.make_console(stderr=True)
    with _progress(log, f"fusing {model}") as tell:
        result = api.fuse(
            model,
            threshold=threshold,
            batch=batch,
            seq=seq,
            dims=dict(dims),
            fallback=not no_fallback,
            precision=precision,
        )
        report = result.report
        if verbose:
            log.print(result.dump, markup=False, soft_wrap=True)
        if not no_verify and report.num_fused:
            with _runnable(result, output) as fused:
                verdict = compare(model, fused, progress=tell)
            report = dataclasses.replace(report, verify=verdict)
        passed = report.verify is None or report.verify.passed
        if passed and output is not None and not dry_run:
            tell(f"writing {output}")
            result.save(output)
            report = dataclasses.replace(report, output=str(output))
    _emit(render.render_report(report, details=verbose), report.to_json(), json_path)
    if not passed:
        log.print("onnx-fuse: verification failed, nothing written", markup=False)
        return EXIT_VERIFY
    return _check_required(report, require, log)


def _check_required(report: Report, require: int | Literal["all"] | None, log: Console) -> int:
    """0 if enough blocks were fused. "all" wants at least one."""
    wanted = max(1, len(report.blocks)) if require == "all" else require or 0
    if report.num_fused >= wanted:
        return 0
    log.print(
        f"onnx-fuse: {report.num_fused} fused, --require {require} wants {wanted}", markup=False
    )
    return EXIT_REQUIRE


@contextlib.contextmanager
def _runnable(result: api.FuseResult, output: Path | None) -> Iterator[Path | onnx.ModelProto]:
    """A result that a session can open before it is written.

    In memory, or in a folder beside the output where its tensors are in files of their own: they
    are found from a path alone.
    """
    try:
        fused = result.model
        in_memory = not any(tensor.external_data for tensor in fused.graph.initializer)
    except UnsupportedModel:
        in_memory = False
    if in_memory:
        yield fused
        return
    folder = output.parent if output is not None else None
    try:
        scratch = tempfile.TemporaryDirectory(prefix=".onnx-fuse-", dir=folder)
    except OSError as error:
        raise ModelNotWritable(f"{folder or tempfile.gettempdir()}: {error.strerror}") from error
    with scratch as name:
        path = Path(name) / "model.onnx"
        result.save(path)
        yield path


@main.command(epilog=_EXIT_CODES)
@_model
@_fuse_options
@_json
@click.option("--html", "html_path", type=_PATH, metavar="FILE", help="Write a page with drawings.")
@_example("onnx-fuse explain model.onnx --html model.html")
def explain(
    model: Path,
    threshold: int | Unset | None,
    batch: int | None,
    seq: int | None,
    dims: Sequence[tuple[str, int]],
    json_path: Path | None,
    html_path: Path | None,
) -> None:
    """Say for every attention site of MODEL what it would be fused as, or why not."""
    log = render.make_console(stderr=True)
    with _progress(log, f"reading {model}"):
        report = api.explain(model, threshold=threshold, batch=batch, seq=seq, dims=dict(dims))
        if html_path is not None:
            from onnx_fuse.html import render_page

            _write(html_path, render_page(model, report))
    _emit(render.render_report(report, details=True), report.to_json(), json_path)


@main.command(epilog=_EXIT_CODES)
@click.argument("original", type=_PATH)
@click.argument("fused", type=_PATH)
@_json
@_example("onnx-fuse verify model.onnx fused.onnx")
def verify(original: Path, fused: Path, json_path: Path | None) -> int:
    """Run ORIGINAL and FUSED on the same made-up inputs and compare all outputs."""
    log = render.make_console(stderr=True)
    with _progress(log, "verifying") as tell:
        report = compare(original, fused, progress=tell)
    _emit(render.render_verify(report), {"schema": 1, **report.to_json()}, json_path)
    return 0 if report.passed else EXIT_VERIFY


@main.command(epilog=_EXIT_CODES)
@click.argument("model", type=_PATH, required=False)
@click.option("--fused", type=_PATH, help="The fused model; default: MODEL, fused in memory.")
@click.option(
    "--block",
    metavar="HIDDENxHEADS",
    callback=_parsed(_block),
    help="Time one attention block of this size beside its peers, instead of a MODEL.",
)
@click.option("--rope", is_flag=True, help="With --block: rotate queries and keys.")
@click.option("--batch", type=click.IntRange(min=1), default=1, help="Batch size. Default: 1.")
@click.option(
    "--seq",
    "--rows",
    "seqs",
    metavar="N,...",
    callback=_parsed(_counts),
    default="1,8,16,32,64",
    help="Sequence lengths (a block's rows are batch times these). Default: 1,8,16,32,64.",
)
@click.option(
    "--threads",
    metavar="N,...",
    callback=_parsed(_counts),
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
    default=1.0,
    help="Time for each point. Default: 1.",
)
@click.option(
    "--probe", type=_PATH, metavar="FILE", help="With --block: the program that measures limits."
)
@click.option(
    "--plot",
    type=_PATH,
    metavar="FILE",
    help="With --block: draw latency against rows (.svg, .png), on the first number of threads.",
)
@_json
@_example(
    "onnx-fuse bench model.onnx --seq 1,16,64 --threads 1",
    "onnx-fuse bench --block 384x12 --rows 1,16,64 --precision fp32",
)
def bench(
    model: Path | None,
    fused: Path | None,
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
    if (model is None) == (block is None):
        raise click.UsageError("give either MODEL or --block")
    points: dict[str, Any] = {"batch": batch, "seqs": seqs, "threads": threads, "seconds": seconds}
    log = render.make_console(stderr=True)
    if block is not None:
        if fused is not None:
            raise click.UsageError("--fused goes with MODEL, not with --block")
        from onnx_fuse.benchmarks import bench_block, render_block_bench

        points |= {"precisions": precisions or PRECISIONS, "probe": probe}
        with _progress(log, "making blocks") as tell:
            result = bench_block((*block, rope), plot=plot, progress=tell, **points)
        _emit(render_block_bench(result), result.to_json(), json_path)
        return
    if model is None or rope or probe or plot or len(precisions) > 1:
        raise click.UsageError("--rope, --probe, --plot and a second --precision go with --block")
    precision = precisions[0] if precisions else "fp32"
    with _progress(log, f"reading {model}") as tell, contextlib.ExitStack() as stack:
        after = fused or stack.enter_context(
            _runnable(api.fuse(model, threshold=None, precision=precision), None)
        )
        report = measure(model, after, **points, progress=tell)
    _emit(render.render_bench(report), report.to_json(), json_path)


@main.command(epilog=_EXIT_CODES)
@_model
@_output
@_example("onnx-fuse unfuse fused.onnx -o standard.onnx")
def unfuse(model: Path, output: Path) -> None:
    """Turn the fused blocks of MODEL back into standard ONNX."""
    log = render.make_console(stderr=True)
    with _progress(log, f"reading {model}"):
        api.save(api.unfused(model), output)
    render.make_console().print(f"standard ONNX -> {escape(str(output))}")


@main.command()
@_json
@_example("onnx-fuse info")
def info(json_path: Path | None) -> None:
    """Show versions, the library's path, and the instructions that its kernels use here."""
    facts = describe()
    _emit(render.render_facts(facts), {"schema": 1, **facts}, json_path)


@contextlib.contextmanager
def _progress(log: Console, first: str) -> Iterator[Callable[[str], None]]:
    """Show the current step on a terminal; nothing where there is none."""
    with log.status(escape(first)) as status:
        yield lambda step: status.update(escape(step))


def _emit(table: RenderableType, data: dict[str, Any], json_path: Path | None) -> None:
    """Print the table, and write the JSON where it was asked for."""
    text = json.dumps(data, indent=2) + "\n"
    if json_path is not None and str(json_path) == "-":
        click.echo(text, nl=False)
        return
    render.make_console().print(table)
    if json_path is not None:
        _write(json_path, text)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ModelNotWritable(f"{path}: {error.strerror}") from error
