"""The program in a process of its own: what it writes to terminals, pipes and closed streams."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import onnx
import pytest

from onnx_fuse import api
from tests.runtime.models import attention

GREEN = "\x1b[32m"


def test_program_writes_results_to_stdout_without_colour(model: Path, out: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from onnx_fuse.cli import main; main()", "fuse", model, "-o", out],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "1 of 1 block fused" in done.stdout


def in_terminal(*words: object, columns: int, **environment: str) -> str:
    """What the program writes to a terminal of this width."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    unwanted = ("NO_COLOR", "FORCE_COLOR", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    with subprocess.Popen(
        [sys.executable, "-m", "onnx_fuse", *map(str, words)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**kept, "TERM": "xterm-256color", **environment},
    ) as process:
        os.close(follower)
        written = b""
        with contextlib.suppress(OSError):  # the terminal is gone with its last user
            while part := os.read(leader, 1 << 16):
                written += part
        os.close(leader)
    assert process.returncode == 0
    return written.decode()


@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_take_nothing(closing: str, model: Path, out: Path) -> None:
    words = [sys.executable, "-m", "onnx_fuse", "fuse", model, "-o", out]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closing}', "sh", *words], capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert out.read_bytes() == api.fuse(model).model.SerializeToString()


def test_stream_without_the_letters_of_a_name(tmp_path: Path) -> None:
    model = tmp_path / "für.onnx"
    onnx.save(attention(), str(model))
    done = subprocess.run(
        [sys.executable, "-m", "onnx_fuse", "fuse", model, "-o", tmp_path / "öut.onnx"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\xf6ut.onnx" in done.stdout


def test_terminal_has_colour_unless_it_is_not_wanted(model: Path) -> None:
    assert GREEN in in_terminal("explain", model, columns=100)
    assert GREEN not in in_terminal("explain", model, columns=100, NO_COLOR="1")
    assert "\x1b" not in in_terminal("explain", model, columns=100, TERM="dumb")


def test_narrow_terminal_breaks_lines_and_no_words(model: Path) -> None:
    text = in_terminal("explain", model, columns=20, TERM="dumb")
    assert "status  block        kind  heads" in text
    assert "1 of 1 block fused" in text


def test_pipe_has_no_colour_even_if_it_is_forced(model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnx_fuse", "fuse", model, "-o", tmp_path / "out.onnx"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "FORCE_COLOR": "1"},
    )
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr == ""


def test_closed_pipe_is_no_traceback(model: Path) -> None:
    program = "from onnx_fuse.cli import main; main()"
    line = f"{sys.executable} -c '{program}' explain {model} --json - | true"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, timeout=60
    )
    assert "Traceback" not in done.stderr
