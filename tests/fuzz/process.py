"""A process in which a model may do harm: it answers a file's name with what became of it."""

from __future__ import annotations

import json
import resource
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Answer(NamedTuple):
    """What became of a model, and what is wrong with that, if anything."""

    outcome: str
    detail: str = ""


DEAD = "dead"  # the outcome of a model that the process didn't survive


class Worker:
    """A process that runs a module's `serve`, started again after each death."""

    def __init__(self, module: str, *arguments: str, memory: int, patience: float) -> None:
        """`memory` in bytes of address space, `patience` in seconds for one model."""
        self._command = [sys.executable, "-m", module, str(memory), *arguments]
        self._patience = patience
        self._process: subprocess.Popen[str] | None = None

    def ask(self, path: Path) -> Answer:
        """Return the process' answer, or that it died or fell silent."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], self._patience)
        line = self._process.stdout.readline() if ready else ""
        if line:
            return Answer(*json.loads(line))
        status = self.stop()
        fault = f"ended with status {status}" if ready else f"no answer in {self._patience:.0f} s"
        return Answer(DEAD, f"the worker: {fault}")

    def stop(self) -> int:
        """End the process and return its status."""
        if self._process is None:
            return 0
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._process = None
        return status


def serve(judge: Callable[[Path], Answer]) -> None:
    """Answer file names on stdin, one a line, with lines of JSON on stdout until stdin ends.

    The command line's first argument limits the memory.
    """
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(judge(Path(line.rstrip("\n")))) + "\n")
        sys.stdout.flush()
