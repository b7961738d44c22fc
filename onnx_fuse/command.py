"""What the commands share: options and how they are read, progress, and where results go."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import onnx
from rich.console import Console, RenderableType
from rich.markup import escape

from onnx_fuse import api, render
from onnx_fuse.errors import ModelNotWritable, UnsupportedModel
from onnx_fuse.ir.atomic import check_writable, write_text

EXIT_MODEL = 1
EXIT_USAGE = 2
EXIT_REQUIRE = 3
EXIT_VERIFY = 4
EXIT_INTERRUPTED = 130

EXIT_CODES = """\b
Exit codes: 0 done; 1 the model cannot be read or written; 2 usage;
3 fewer blocks fused than --require; 4 verification failed, nothing written."""

Function = TypeVar("Function", bound=Callable[..., Any])
Callback = Callable[[click.Context, click.Parameter, Any], Any]


def parsed(parse: Callable[[str], object]) -> Callback:
    """An option's callback: `parse` turns its text into a value, or says by ValueError why not."""

    def convert(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            if isinstance(value, tuple):
                return tuple(parse(item) for item in value)
            return parse(value) if isinstance(value, str) else value
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return convert


def count(text: str, least: int = 0) -> int:
    """The whole number that `text` states. Raises: ValueError if it is none, or below `least`."""
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise ValueError(f"{text!r} is no whole number of at least {least}")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """The positive numbers of a list such as "1,8,16". Raises: ValueError if one is none."""
    return tuple(count(word.strip(), 1) for word in text.split(","))


def writable(_ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """An option's callback: refuse a report's place before any work is done for it."""
    if path is not None and str(path) != "-":
        check_writable(path)
    return path


class _FilePath(click.Path):
    """The path of a file; a model's data files stand beside it, so no stream can take its place."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "-":
            self.fail("'-' is no path: only --json goes to stdout, nothing comes from stdin")
        return super().convert(value, param, ctx)


# Whoever opens a file says what is wrong with it: click's own check would call it wrong usage.
PATH = _FilePath(path_type=Path, readable=False)
positive = parsed(partial(count, least=1))
model_argument = click.argument("model", type=PATH)
json_option = click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    callback=writable,
    help="Write the report as JSON ('-' for stdout, instead of the table).",
)
html_option = click.option(
    "--html",
    "html_path",
    type=PATH,
    metavar="FILE",
    callback=writable,
    help="Write a page with drawings.",
)


def output_option(*, required: bool) -> Callable[[Function], Function]:
    """The option of the model to write."""
    return click.option(
        "-o",
        "--output",
        type=PATH,
        required=required,
        metavar="OUT",
        help="File to write.",
    )


def check_apart(**paths: Path | None) -> None:
    """Refuse a report that would take the place of a model, or of another report.

    Keys are what the user calls the paths, the reports' among them beginning with "--".
    """
    # Path.resolve would raise for a link to itself: whoever opens that says what is wrong with it.
    named = {
        name: os.path.realpath(path) for name, path in paths.items() if path and str(path) != "-"
    }
    for name, path in named.items():
        for other, taken in named.items():
            if name.startswith("--") and other != name and path == taken:
                raise click.UsageError(f"{name} {path} is the file of {other}, too")


def example(*lines: str) -> Callable[[Function], Function]:
    """Add an example to a command's help, kept line by line."""

    def add(command: Function) -> Function:
        indented = [f"  {line}" for line in lines]
        command.__doc__ = "\n".join((command.__doc__ or "", "", "\b", "Example:", *indented))
        return command

    return add


@contextlib.contextmanager
def runnable(result: api.FuseResult, output: Path | None) -> Iterator[Path | onnx.ModelProto]:
    """A result that a session can open before it is written.

    In memory, or in a folder beside the output if it has data files, which are found from a path
    alone, or if one message can't hold it.
    """
    in_memory: onnx.ModelProto | None = None
    with contextlib.suppress(UnsupportedModel):
        in_memory = None if result.graph.files.all() else result.model
    if in_memory is not None:
        yield in_memory
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


@contextlib.contextmanager
def progress(log: Console, first: str) -> Iterator[Callable[[str], None]]:
    """Show the current step on a terminal; nothing where there is none."""
    with log.status(escape(first)) as status:
        yield lambda step: status.update(escape(step))


def emit(table: RenderableType, data: dict[str, Any], json_path: Path | None) -> None:
    """Print the table, and write the JSON where it was asked for."""
    text = json.dumps(data, indent=2) + "\n"
    if json_path is not None and str(json_path) == "-":
        click.echo(text, nl=False)
        return
    render.print_result(table)
    if json_path is not None:
        write(json_path, text)


def write(path: Path, text: str) -> None:
    """Write a report, as a whole or not at all. Raises: ModelNotWritable."""
    try:
        write_text(path, text)
    except OSError as error:
        raise ModelNotWritable(f"{path}: {error.strerror}") from error
