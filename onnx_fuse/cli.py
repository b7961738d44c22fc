"""The command line: parses, calls the API, prints.

Results go to stdout, progress and log to stderr.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import click
from rich.console import Console
from rich.markup import escape

from onnx_fuse import api, render
from onnx_fuse.bench_command import bench
from onnx_fuse.command import (
    EXIT_CODES,
    EXIT_INTERRUPTED,
    EXIT_MODEL,
    EXIT_REQUIRE,
    EXIT_USAGE,
    EXIT_VERIFY,
    PATH,
    check_apart,
    count,
    emit,
    example,
    html_option,
    json_option,
    model_argument,
    output_option,
    parsed,
    positive,
    progress,
    runnable,
    write,
)
from onnx_fuse.config import UNSET, Unset, parse_threshold
from onnx_fuse.errors import InvalidOption, OnnxFuseError
from onnx_fuse.op.schema import PRECISIONS, Precision
from onnx_fuse.report import Report
from onnx_fuse.runtime.machine import describe, versions
from onnx_fuse.runtime.verify import verify as compare


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
        _prepare_streams()
        with contextlib.suppress(ValueError):  # signals are the main thread's
            _prepare_signals()
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


def _prepare_streams() -> None:
    """Let output go where it can: closed streams take none, some have no letters for a name."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            sink = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # until the end
            setattr(sys, name, sink)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _prepare_signals() -> None:
    """Let scratch files go before a signal ends the process, in the code that shells report."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # else nohup's, or a caller's
            signal.signal(number, lambda received, _: sys.exit(128 + received))


def _judge(error: Exception) -> tuple[int, str]:
    """Exit code and one line for an exception."""
    text = " ".join(str(error).split())
    match error:
        case click.UsageError():
            hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
            return EXIT_USAGE, " ".join(error.format_message().split()) + hint
        case click.Abort():
            return EXIT_INTERRUPTED, "interrupted"
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


def _threshold(
    _ctx: click.Context, _param: click.Parameter, text: str | None
) -> int | Unset | None:
    return UNSET if text is None else parse_threshold(text, "--threshold")


def _required(text: str) -> int | str:
    return text if text == "all" else count(text)


def _binding(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=")
    if not name:
        raise ValueError(f"{text!r} is not NAME=N")
    return name, count(size, 1)


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
        click.option(
            "--batch", metavar="N", callback=positive, help="Bind the open batch dim to N."
        ),
        click.option("--seq", metavar="N", callback=positive, help="Bind the open sequence to N."),
        click.option(
            "--dim",
            "dims",
            metavar="NAME=N",
            callback=parsed(_binding),
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
    epilog=EXIT_CODES,
)
@click.version_option(versions()["onnx-fuse"], prog_name="onnx-fuse")
@click.pass_context
@example("onnx-fuse fuse model.onnx -o fused.onnx", "onnx-fuse explain model.onnx")
def main(ctx: click.Context) -> None:
    """Fuse the attention blocks of ONNX models into one fast, verified, portable operator."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(EXIT_USAGE)


@main.command(short_help="Fuse a model, check the result, and write it.", epilog=EXIT_CODES)
@model_argument
@output_option(required=False)
@_fuse_options
@click.option(
    "--require",
    metavar="N|all",
    callback=parsed(_required),
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
@json_option
@click.option("--dry-run", is_flag=True, help="Do everything, write nothing.")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Log the fused graph; say how far each declined block was understood.",
)
@example("onnx-fuse fuse model.onnx -o fused.onnx --batch 1 --seq 32 --require all")
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
    precision: Precision,
    json_path: Path | None,
    dry_run: bool,
    verbose: bool,
) -> int:
    """Replace the attention blocks of MODEL, check the result, and write it to OUT."""
    if output is None and not dry_run:
        raise click.UsageError("missing option '-o' / '--output' (or --dry-run)")
    check_apart(MODEL=model, OUT=output, **{"--json": json_path})
    log = render.make_console(stderr=True)
    with progress(log, f"fusing {model}") as tell:
        result = api.fuse(
            model,
            threshold=threshold,
            batch=batch,
            seq=seq,
            dims=dims,
            fallback=not no_fallback,
            precision=precision,
        )
        report = result.report
        if verbose:
            log.print(result.dump, markup=False, soft_wrap=True)
        if not no_verify and report.num_fused:
            with runnable(result, output) as fused:
                verdict = compare(model, fused, progress=tell)
            report = dataclasses.replace(report, verify=verdict)
        passed = report.verify is None or report.verify.passed
        if passed and output is not None and not dry_run:
            tell(f"writing {output}")
            result.save(output)
            report = dataclasses.replace(report, output=str(output))
    emit(render.render_report(report, details=verbose), report.to_json(), json_path)
    if report.verify is not None and not report.verify.passed:
        way_out = "" if report.verify.cases else " (--no-verify writes it unchecked)"
        log.print(f"onnx-fuse: verification failed, nothing written{way_out}", markup=False)
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


@main.command(short_help="Say what fuse would do, and why not more.", epilog=EXIT_CODES)
@model_argument
@_fuse_options
@json_option
@html_option
@example("onnx-fuse explain model.onnx --html model.html")
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
    check_apart(MODEL=model, **{"--json": json_path, "--html": html_path})
    log = render.make_console(stderr=True)
    with progress(log, f"reading {model}"):
        report = api.explain(model, threshold=threshold, batch=batch, seq=seq, dims=dims)
        if html_path is not None:
            from onnx_fuse.html import render_page

            write(html_path, render_page(model, report))
    emit(render.render_report(report, details=True), report.to_json(), json_path)


@main.command(short_help="Compare two models by running both.", epilog=EXIT_CODES)
@click.argument("original", type=PATH)
@click.argument("fused", type=PATH)
@json_option
@example("onnx-fuse verify model.onnx fused.onnx")
def verify(original: Path, fused: Path, json_path: Path | None) -> int:
    """Run ORIGINAL and FUSED on the same made-up inputs and compare all outputs."""
    check_apart(ORIGINAL=original, FUSED=fused, **{"--json": json_path})
    log = render.make_console(stderr=True)
    with progress(log, "verifying") as tell:
        verdict = compare(original, fused, progress=tell)
    report = Report(model=str(original), output=str(fused), verify=verdict)
    # The report's form, in which no block is looked at; and the verdict where a script would look.
    emit(render.render_verify(verdict), report.to_json() | verdict.to_json(), json_path)
    return 0 if verdict.passed else EXIT_VERIFY


@main.command(short_help="Turn a fused model back into standard ONNX.", epilog=EXIT_CODES)
@model_argument
@output_option(required=True)
@example("onnx-fuse unfuse fused.onnx -o standard.onnx")
def unfuse(model: Path, output: Path) -> None:
    """Turn the fused blocks of MODEL back into standard ONNX."""
    log = render.make_console(stderr=True)
    with progress(log, f"reading {model}"):
        api.save(api.unfused(model), output)
    render.print_result(f"standard ONNX -> {escape(str(output))}")


@main.command(short_help="Show versions, the library's path and the CPU's kernels.")
@json_option
@example("onnx-fuse info")
def info(json_path: Path | None) -> None:
    """Show versions, the library's path, and the instructions that its kernels use here."""
    facts = describe()
    emit(render.render_facts(facts), {"schema": 1, **facts}, json_path)


main.add_command(bench)
