"""The process in which a damaged model may do harm: python -m tests.fuzz.worker BYTES_OF_MEMORY.

Reads file names from stdin, one a line, and answers each with one line of JSON on stdout:
{"outcome": "done" | "refused" | "defect", "detail": ...}. "refused" is an OnnxFuseError, which is
right for a damaged model; any other exception is a defect of ours.
"""

from __future__ import annotations

import json
import resource
import sys
import traceback
from pathlib import Path

import onnx_fuse
from onnx_fuse.errors import OnnxFuseError


def exercise(path: Path) -> None:
    """Run all that rewrites models on the file; its results must be models again."""
    onnx_fuse.explain(path)
    result = onnx_fuse.fuse(path, threshold=None)
    target = path.with_suffix(".fused")
    result.save(target)
    onnx_fuse.unfuse(target)


def outcome_of(path: Path) -> dict[str, str]:
    """Exercise the file and say what came of it."""
    try:
        exercise(path)
    except OnnxFuseError as error:
        return {"outcome": "refused", "detail": f"{type(error).__name__}: {error}"}
    except Exception:
        return {"outcome": "defect", "detail": traceback.format_exc()}
    return {"outcome": "done", "detail": ""}


def main() -> None:
    """Answer until stdin ends."""
    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        answer = outcome_of(Path(line.rstrip("\n")))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
