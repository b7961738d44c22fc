"""Opens models in onnxruntime, quietly, with or without the kernels."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from onnx_fuse.errors import UnsupportedModel
from onnx_fuse.ir.bodies import bodies
from onnx_fuse.ir.external import ExternalFiles
from onnx_fuse.ir.load import MESSAGE_LIMIT, ModelLike, path_of, read_message
from onnx_fuse.op.schema import DOMAIN

_FATAL_ONLY = 4  # of onnxruntime's levels of logging
# "[ONNXRuntimeError] : 1 : FAIL : ", and where in onnxruntime's own sources the check stands.
_NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+:\d+ (?:[^()]*\([^()]*\) )?"
)

# Weights beside a file that are copied into a message: not more bytes than that.
_MOST_COPIED = 1 << 30


@dataclass(frozen=True)
class Source:
    """A model on disk or in memory: its message without external data, and what a session opens."""

    name: str
    proto: onnx.ModelProto
    opened: str | bytes

    @property
    def files(self) -> ExternalFiles:
        """Its external data; that of a message is found from the current folder."""
        if isinstance(self.opened, bytes):
            return ExternalFiles(Path())
        path = Path(self.opened)
        return ExternalFiles(path.parent, path)

    def copied(self) -> onnx.ModelProto | None:
        """Return a copy of the message with its external data in it; None if that is too large."""
        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        if any(tensor.external_data for tensor in model.graph.initializer):
            if _external_bytes(model) > _MOST_COPIED:
                return None
            self.files.embed(model)
        return model

    @property
    def uses_operators(self) -> bool:
        """Whether a node of our domain stands in it."""
        # onnxruntime writes an import of every domain that the process knows.
        return any(n.domain == DOMAIN for body in bodies(self.proto) for n in body.node)

    @property
    def has_fallback(self) -> bool:
        """Whether it carries bodies of our operators for sessions without the library."""
        return any(f.domain == DOMAIN for f in self.proto.functions)


def _external_bytes(model: onnx.ModelProto) -> int:
    entries = (e for tensor in model.graph.initializer for e in tensor.external_data)
    return sum(int(entry.value) for entry in entries if entry.key == "length")


def open_source(model: ModelLike, name: str) -> Source:
    """Return the model ready for sessions; `name` is what a message calls a model without a path.

    Raises: InvalidModel if the file cannot be read as valid ONNX; UnsupportedModel if a model in
    memory is too large for one message (give its path instead), or the path is none for
    onnxruntime.
    """
    if isinstance(model, onnx.ModelProto):
        if model.ByteSize() > MESSAGE_LIMIT:
            raise UnsupportedModel(f"{name} is larger than 2 GiB in memory: save it, give its path")
        return Source(name, model, model.SerializeToString())
    path = path_of(model)
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise UnsupportedModel(
            f"{path}: onnxruntime opens no path that isn't UTF-8; rename it"
        ) from error
    # Checked before onnxruntime opens it: older ones read data files from anywhere, say.
    return Source(str(path), read_message(path), str(path))


def open_session(
    source: Source,
    *,
    level: ort.GraphOptimizationLevel = ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    kernels: bool = False,
    threads: int = 0,
    settings: Mapping[str, str] | None = None,
    overrides: Mapping[str, npt.NDArray[Any]] | None = None,
) -> ort.InferenceSession:
    """Return a session on the CPU, without logs. `threads` 0 leaves their number to onnxruntime.

    `overrides` are contents of initializers to be used instead of the model's own.

    Raises: LibraryUnavailable if `kernels` is asked for and the library is missing; whatever
    onnxruntime raises.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = threads
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    if kernels:
        from onnx_fuse.runtime.library import register

        register(options)
    values = {name: ort.OrtValue.ortvalue_from_numpy(a) for name, a in (overrides or {}).items()}
    for name, value in values.items():
        options.add_initializer(name, value)
    session = ort.InferenceSession(source.opened, options, providers=["CPUExecutionProvider"])
    session.overrides = values  # onnxruntime keeps no reference to them
    return session


def run(session: ort.InferenceSession, feeds: dict[str, Any]) -> list[Any]:
    """Return the session's outputs, in order, in memory of their own.

    onnxruntime's own arrays keep all memory of their session for as long as one of them is kept.
    """
    return [_owned(made) for made in session.run(None, feeds)]


def run_into(session: ort.InferenceSession, feeds: dict[str, Any], content: float) -> list[Any]:
    """Return the outputs in memory that held `content` before, as what isn't written still does.

    Outputs that are no floats have memory of their own.
    """
    shaped = run(session, feeds)
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for node, found in zip(session.get_outputs(), shaped, strict=True):
        if isinstance(found, np.ndarray) and found.dtype.kind == "f":
            value = ort.OrtValue.ortvalue_from_numpy(np.full_like(found, content))
            binding.bind_ortvalue_output(node.name, value)
        else:
            binding.bind_output(node.name)
    session.run_with_iobinding(binding)
    return [_owned(made) for made in binding.copy_outputs_to_cpu()]


def _owned(made: Any) -> Any:
    return np.array(made) if isinstance(made, np.ndarray) else made


def one_line(error: Exception) -> str:
    """Return what an exception of onnxruntime says, without prefixes and breaks, cut at 300."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = _NOISE.sub("", text)
    return text if len(text) <= 300 else text[:297] + "..."
