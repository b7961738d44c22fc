"""Fuses the attention blocks of ONNX models for fast transformers on CPUs under onnxruntime."""

from __future__ import annotations

from onnx_fuse.api import (
    FuseResult,
    explain,
    fuse,
    get_library_path,
    load,
    register,
    save,
    session,
    unfuse,
    verify,
)
from onnx_fuse.errors import (
    InvalidModel,
    InvalidOption,
    LibraryUnavailable,
    ModelNotWritable,
    OnnxFuseError,
    PassFailed,
    UnsupportedModel,
    VerificationFailed,
)
from onnx_fuse.passes import Pass, run_passes
from onnx_fuse.passes.fuse_attention_block import FuseAttentionBlock
from onnx_fuse.passes.unfuse import Unfuse
from onnx_fuse.report import BlockReport, Code, Report, VerifyReport

__version__ = "0.1.0"

__all__ = [
    "BlockReport",
    "Code",
    "FuseAttentionBlock",
    "FuseResult",
    "InvalidModel",
    "InvalidOption",
    "LibraryUnavailable",
    "ModelNotWritable",
    "OnnxFuseError",
    "Pass",
    "PassFailed",
    "Report",
    "Unfuse",
    "UnsupportedModel",
    "VerificationFailed",
    "VerifyReport",
    "explain",
    "fuse",
    "get_library_path",
    "load",
    "register",
    "run_passes",
    "save",
    "session",
    "unfuse",
    "verify",
]
