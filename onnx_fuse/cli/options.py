"""Arguments and options that several commands have, and how their text is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from onnx_fuse.config import UNSET, Unset, parse_threshold
from onnx_fuse.ir.atomic import check_writable
from onnx_fuse.op.schema import PRECISIONS

Function = TypeVar("Function", bound=Callable[..., Any])
Callback = Callable[[click.Context, click.Parameter, Any], Any]


def parsed(parse: Callable[[str], object]) -> Callback:
    """Return an option's callback: `parse` turns its text into a value, or raises ValueError."""

    def convert(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            if isinstance(value, tuple):
                return tuple(parse(item) for item in value)
            return parse(value) if isinstance(value, str) else value
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return convert


def count(text: str, least: int = 0) -> int:
    """Return the whole number that `text` states. Raises: ValueError if none, or below `least`."""
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise ValueError(f"{text!r} is no whole number of at least {least}")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """Return the positive numbers of a list such as "1,8,16". Raises: ValueError if one is none."""
    return tuple(count(word.strip(), 1) for word in text.split(","))


def writable(_ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """Refuse a report's place before any work is done for it: an option's callback."""
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
    """Return the option of the model to write."""
    return click.option(
        "-o",
        "--output",
        type=PATH,
        required=required,
        metavar="OUT",
        help="File to write.",
    )


def _threshold(
    _ctx: click.Context, _param: click.Parameter, text: str | None
) -> int | Unset | None:
    return UNSET if text is None else parse_threshold(text, "--threshold")


def _binding(text: str) -> tuple[str, int]:
    name, _, size = text.rpartition("=")
    if not name:
        raise ValueError(f"{text!r} is not NAME=N")
    return name, count(size, 1)


threshold_option = click.option(
    "--threshold",
    metavar="N|none",
    callback=_threshold,
    help="Fuse a block whose batch*sequence is at most N; 0 fuses none, 'none' all. "
    "Default: $RLX_FUSE_ATTN_THRESHOLD, else 64. Dynamic sizes count as small.",
)


def fuse_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that decide what is fused, and as what: those of `onnx_fuse.fuse`."""
    options = (
        threshold_option,
        click.option(
            "--batch", metavar="N", callback=positive, help="Take the dynamic batch size to be N."
        ),
        click.option(
            "--seq", metavar="N", callback=positive, help="Take the dynamic sequence to be N long."
        ),
        click.option(
            "--dim",
            "dims",
            metavar="NAME=N",
            callback=parsed(_binding),
            multiple=True,
            help="Take the dynamic dimension NAME to be N; may be repeated.",
        ),
        click.option(
            "--no-fallback",
            "fallback",
            is_flag=True,
            flag_value=False,
            default=True,
            help="Leave out the body for sessions without the library.",
        ),
        click.option(
            "--precision",
            type=click.Choice(PRECISIONS),
            default="fp32",
            show_default=True,
            help="Arithmetic of the matrix products.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


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
