"""Fused models that onnxruntime optimised and wrote."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime

import onnx_fuse
from tests.analysis.check import fused_nodes
from tests.conftest import ZOO
from tests.sessions import plain_session


def test_what_onnxruntime_made_of_a_fused_model_is_fused_again(tmp_path: Path) -> None:
    """Where it shared the constants of an inlined body with the graph around, these stay."""
    first, inlined = tmp_path / "first.onnx", tmp_path / "inlined.onnx"
    model = onnx.load(ZOO["bert-dynamo-sdpa-dynamic"])
    model.ir_version = 8  # which all runtimes take
    onnx_fuse.fuse(model).save(first)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(inlined)
    options.log_severity_level = 3  # it warns that the file is for this machine
    onnxruntime.InferenceSession(str(first), options, providers=["CPUExecutionProvider"])
    again = onnx_fuse.fuse(inlined).model
    assert len(fused_nodes(again)) == 2
    plain_session(again)
