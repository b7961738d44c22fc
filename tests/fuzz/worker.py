"""The process in which a damaged model may do harm: python -m tests.fuzz.worker BYTES_OF_MEMORY.

Its answers are "done", "refused", which is an OnnxFuseError and right for a damaged model, or
"defect": any other exception is a defect of ours.
"""

from __future__ import annotations

import traceback
from pathlib import Path

import onnx_fuse
from onnx_fuse.errors import OnnxFuseError
from tests.fuzz.process import Answer, serve


def exercise(path: Path) -> None:
    """Run all that rewrites models on the file; its results must be models again."""
    onnx_fuse.explain(path)
    result = onnx_fuse.fuse(path, threshold=None)
    target = path.with_suffix(".fused")
    result.save(target)
    onnx_fuse.unfuse(target)


def judge(path: Path) -> Answer:
    """Exercise the file and say what came of it."""
    try:
        exercise(path)
    except OnnxFuseError as error:
        return Answer("refused", f"{type(error).__name__}: {error}")
    except Exception:
        return Answer("defect", traceback.format_exc())
    return Answer("done")


if __name__ == "__main__":
    serve(judge)
