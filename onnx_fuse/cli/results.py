"""What a command shows while it works, and where its results go."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import onnx
from rich.console import Console, RenderableType
from rich.markup import escape

from onnx_fuse import api
from onnx_fuse.errors import ModelNotWritable, UnsupportedModel
from onnx_fuse.ir.atomic import write_text
from onnx_fuse.show import terminal


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
    terminal.print_result(table)
    if json_path is not None:
        write(json_path, text)


def write(path: Path, text: str) -> None:
    """Write a report, as a whole or not at all. Raises: ModelNotWritable."""
    try:
        write_text(path, text)
    except OSError as error:
        raise ModelNotWritable(f"{path}: {error.strerror}") from error
