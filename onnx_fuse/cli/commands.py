"""The commands: each parses, calls the API, prints.

Results go to stdout, progress and log to stderr.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import click
from rich.console import Console
from rich.markup import escape

from onnx_fuse import api
from onnx_fuse.cli.bench_command import bench
from onnx_fuse.cli.ends import EXIT_CODES, EXIT_REQUIRE, EXIT_USAGE, EXIT_VERIFY, Cli
from onnx_fuse.cli.options import (
    PATH,
    check_apart,
    count,
    example,
    fuse_options,
    html_option,
    json_option,
    model_argument,
    output_option,
    parsed,
)
from onnx_fuse.cli.results import emit, progress, runnable, write
from onnx_fuse.op.schema import DOMAIN
from onnx_fuse.passes import run_passes
from onnx_fuse.passes.unfuse import Unfuse
from onnx_fuse.report import Report
from onnx_fuse.runtime.machine import describe, versions
from onnx_fuse.runtime.verify import verify as compare
from onnx_fuse.show import terminal


def _required(text: str) -> int | str:
    try:
        return text if text == "all" else count(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is neither 'all' nor a whole number") from error


@click.group(
    cls=Cli,
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
@fuse_options
@click.option(
    "--require",
    metavar="N|all",
    callback=parsed(_required),
    help="Exit with 3 if fewer blocks than N (or not all) are fused.",
)
@click.option("--no-verify", is_flag=True, help="Don't compare the result with the original.")
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
    require: int | Literal["all"] | None,
    no_verify: bool,
    json_path: Path | None,
    dry_run: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Replace the attention blocks of MODEL, check the result, and write it to OUT."""
    if output is None and not dry_run:
        raise click.UsageError("missing option '-o' / '--output' (or --dry-run)")
    check_apart(MODEL=model, OUT=output, **{"--json": json_path})
    log = terminal.make_console(stderr=True)
    with progress(log, f"fusing {model}") as tell:
        result = api.fuse(model, **options)
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
    emit(terminal.render_report(report, details=verbose), report.to_json(), json_path)
    if report.verify is not None and not report.verify.passed:
        way_out = "" if report.verify.cases else " (--no-verify writes it unchecked)"
        log.print(f"onnx-fuse: verification failed, nothing written{way_out}", markup=False)
        return EXIT_VERIFY
    return _check_required(report, require, log)


def _check_required(report: Report, require: int | Literal["all"] | None, log: Console) -> int:
    """Return 0 if enough blocks were fused. "all" wants at least one."""
    wanted = max(1, len(report.blocks)) if require == "all" else require or 0
    if report.num_fused >= wanted:
        return 0
    log.print(
        f"onnx-fuse: {report.num_fused} fused, --require {require} wants {wanted}", markup=False
    )
    return EXIT_REQUIRE


@main.command(short_help="Say what fuse would do, and why not more.", epilog=EXIT_CODES)
@model_argument
@fuse_options
@json_option
@html_option
@example("onnx-fuse explain model.onnx --html model.html")
def explain(model: Path, json_path: Path | None, html_path: Path | None, **options: Any) -> None:
    """Say for every attention site of MODEL what it would be fused as, or why not."""
    check_apart(MODEL=model, **{"--json": json_path, "--html": html_path})
    log = terminal.make_console(stderr=True)
    with progress(log, f"reading {model}"):
        report = api.explain(model, **options)
        if html_path is not None:
            from onnx_fuse.show.page import render_page

            write(html_path, render_page(model, report))
    emit(terminal.render_report(report, details=True), report.to_json(), json_path)


@main.command(short_help="Compare two models by running both.", epilog=EXIT_CODES)
@click.argument("original", type=PATH)
@click.argument("fused", type=PATH)
@json_option
@example("onnx-fuse verify model.onnx fused.onnx")
def verify(original: Path, fused: Path, json_path: Path | None) -> int:
    """Run ORIGINAL and FUSED on the same made-up inputs and compare all outputs."""
    check_apart(ORIGINAL=original, FUSED=fused, **{"--json": json_path})
    log = terminal.make_console(stderr=True)
    with progress(log, "verifying") as tell:
        verdict = compare(original, fused, progress=tell)
    report = Report(model=str(original), output=str(fused), verify=verdict)
    # The report's form, in which no block is looked at; and the verdict where a script would look.
    emit(terminal.render_verify(verdict), report.to_json() | verdict.to_json(), json_path)
    return 0 if verdict.passed else EXIT_VERIFY


@main.command(short_help="Turn a fused model back into standard ONNX.", epilog=EXIT_CODES)
@model_argument
@output_option(required=True)
@example("onnx-fuse unfuse fused.onnx -o standard.onnx")
def unfuse(model: Path, output: Path) -> None:
    """Turn the fused blocks of MODEL back into standard ONNX."""
    log = terminal.make_console(stderr=True)
    with progress(log, f"reading {model}"):
        loaded = api.load(model)
        fused = sum(n.domain == DOMAIN for graph in loaded.graphs() for n in graph.nodes)
        api.save(run_passes(loaded, [Unfuse()]), output)
    said = f"{fused} block{'s' * (fused != 1)} unfused" if fused else "no block was fused"
    terminal.print_result(f"{said} -> {escape(str(output))}")


@main.command(short_help="Show versions, the library's path and the CPU's kernels.")
@json_option
@example("onnx-fuse info")
def info(json_path: Path | None) -> None:
    """Show versions, the library's path, and the instructions that its kernels use here."""
    facts = describe()
    emit(terminal.render_facts(facts), {"schema": 1, **facts}, json_path)


main.add_command(bench)
