"""How a command ends: in a documented exit code and at most one line, never in a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from onnx_fuse.errors import InvalidOption, OnnxFuseError

EXIT_MODEL = 1
EXIT_USAGE = 2
EXIT_REQUIRE = 3
EXIT_VERIFY = 4
EXIT_INTERRUPTED = 130

EXIT_CODES = """\b
Exit codes: 0 done; 1 the model cannot be read or written; 2 usage;
3 fewer blocks fused than --require, all the same written;
4 verification failed, nothing written."""


class Cli(click.Group):
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
    """Return the exit code and the one line for an exception."""
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
