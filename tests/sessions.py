"""Sessions of onnxruntime alone, with nothing of ours registered."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort

LEVELS = ort.GraphOptimizationLevel


def plain_session(
    model: onnx.ModelProto | Path | bytes,
    level: ort.GraphOptimizationLevel = LEVELS.ORT_DISABLE_ALL,
) -> ort.InferenceSession:
    """Return a session on one thread that logs nothing but what is fatal."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    opened = str(model) if isinstance(model, Path) else model
    return ort.InferenceSession(opened, options, providers=["CPUExecutionProvider"])
