"""The process that compares a fused model with its original.

python -m tests.fuzz.comparison BYTES_OF_MEMORY [original]: with "original", the original runs by
itself, which it may not survive. Its answers are "invalid", "declined", "same", "rounded", or, what
is a finding, "different" and "broken".
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import onnx

import onnx_fuse
from tests.fuzz.extents import wrong_at_the_ends
from tests.fuzz.process import Answer, serve

# A change can make a model so unstable that roundings show in it (scores beside a fill of -1e4, a
# division by what is nearly zero): that many times the allowed difference comes of another meaning.
ANOTHER_MEANING = 1e4
SELF_COMPARISONS = 8  # of a model that a finding was made with
# What verify says of an original that shows nothing.
EMPTY = ("the original does not run", "nothing was compared")


def compared(path: Path) -> Answer:
    """Fuse the model and compare."""
    model = onnx.load(str(path))
    try:
        onnx.checker.check_model(model)
        result = onnx_fuse.fuse(model, threshold=None)
        fused = result.model
    except (onnx.checker.ValidationError, onnx_fuse.OnnxFuseError):
        return Answer("invalid")
    except Exception:
        fault = traceback.format_exc().strip()
        runs = not any(wrong.startswith(EMPTY) for wrong in onnx_fuse.verify(model, model).failures)
        return Answer("broken", fault) if runs else Answer("invalid")
    if not result.report.num_fused:
        return Answer("declined")
    try:
        report = onnx_fuse.verify(model, fused)
        wrong = wrong_at_the_ends(model, fused, ANOTHER_MEANING) if report.passed else ""
    except (onnx_fuse.OnnxFuseError, MemoryError):
        return Answer("invalid")
    if report.passed:
        return _different(model, wrong) if wrong else Answer("same")
    wrong = report.failures[0]
    if wrong.startswith(EMPTY):
        return Answer("invalid")
    if report.worst_ratio <= ANOTHER_MEANING:
        return Answer("rounded")
    return _different(model, wrong)


def _different(model: onnx.ModelProto, wrong: str) -> Answer:
    """What differs from itself, be it now and then, reads memory that nobody wrote."""
    is_steady = all(onnx_fuse.verify(model, model).passed for _ in range(SELF_COMPARISONS))
    return Answer("different", wrong) if is_steady else Answer("invalid")


def alone(path: Path) -> Answer:
    """Run the original only."""
    model = onnx.load(str(path))
    onnx_fuse.verify(model, model)
    wrong_at_the_ends(model, model, ANOTHER_MEANING)
    return Answer("same")


if __name__ == "__main__":
    serve(alone if "original" in sys.argv[2:] else compared)
