"""The exceptions that this package raises on purpose.

Every message is one line that a user can act on.
"""

from __future__ import annotations


class OnnxFuseError(Exception):
    """Base of all errors of this package. The message names the file, node or option at fault."""


class InvalidModel(OnnxFuseError):
    """The model cannot be read, or its graph or its external data is not valid ONNX."""


class UnsupportedModel(OnnxFuseError):
    """The model is valid, but what was asked of it cannot be done."""


class ModelNotWritable(OnnxFuseError):
    """The output cannot be written. No partial file is left behind and old files are intact."""


class LibraryUnavailable(OnnxFuseError):
    """The shared library with the kernels, or onnxruntime itself, is missing or does not load."""


class VerificationFailed(OnnxFuseError):
    """The fused model does not compute what the original computes."""


class PassFailed(OnnxFuseError):
    """A pass left a graph that is not valid; the message names the pass."""


class InvalidOption(OnnxFuseError, ValueError):
    """An option or environment variable has a value that makes no sense; the message names it."""
