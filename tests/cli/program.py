"""Runs the command line in this process, and says how a failure has to look."""

from __future__ import annotations

from click.testing import CliRunner, Result

from onnx_fuse import cli


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.main, [str(word) for word in words])


def failed(result: Result, code: int, *words: str) -> None:
    """The command ended with this code and one line on stderr that has these words."""
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("onnx-fuse: ")
    assert "Traceback" not in result.output
    for word in words:
        assert word in lines[0]
