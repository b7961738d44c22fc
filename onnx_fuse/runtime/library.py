"""The shared library with the kernels: where it is, how a session gets it, what it uses here."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnxruntime
from onnx import helper

from onnx_fuse.errors import LibraryUnavailable
from onnx_fuse.ir.load import ModelLike
from onnx_fuse.op.schema import DOMAIN

_PATH = Path(__file__).parent.parent / "native" / "libonnx_fuse.so"


def get_library_path() -> str:
    """Return the path of the shared library, for `SessionOptions.register_custom_ops_library`.

    Raises: LibraryUnavailable if it isn't there.
    """
    if not _PATH.is_file():
        is_source = (_PATH.parent / "CMakeLists.txt").is_file()  # no wheel has it
        way_out = (
            "these are its sources, which `make build` compiles; Python finds an installed "
            "onnx-fuse from any other folder"
            if is_source
            else "install a wheel of onnx-fuse for this platform"
        )
        raise LibraryUnavailable(
            f"{_PATH.name} is not in {_PATH.parent}: {way_out} (fused models also run without it)"
        )
    return str(_PATH)


def register(session_options: onnxruntime.SessionOptions) -> None:
    """Let sessions made with these options run fused blocks in our kernel.

    Registering again does nothing.

    Raises: LibraryUnavailable if the library is missing, or onnxruntime doesn't take it; TypeError
    if these are no session options.
    """
    if not isinstance(session_options, onnxruntime.SessionOptions):
        kind = type(session_options).__name__
        raise TypeError(f"kernels are registered with SessionOptions, not with a {kind}")
    path = get_library_path()
    try:
        session_options.register_custom_ops_library(path)
    except Exception as error:  # onnxruntime's own classes share no base but this
        raise LibraryUnavailable(f"onnxruntime does not load {path}: {error}") from error


def session(
    path_or_model: ModelLike,
    sess_options: onnxruntime.SessionOptions | None = None,
) -> onnxruntime.InferenceSession:
    """Return a CPU session of a fused model with the library registered.

    Options that are given get the library registered, if they haven't yet.

    Raises: LibraryUnavailable; and what InferenceSession raises for a bad model.
    """
    options = onnxruntime.SessionOptions() if sess_options is None else sess_options
    register(options)
    if isinstance(path_or_model, onnx.ModelProto):
        model: str | bytes = path_or_model.SerializeToString()
    else:
        model = os.fspath(path_or_model)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def active_isa() -> str:
    """Return the instruction set that the kernel uses here, `""` if ONNX_FUSE_ISA names none.

    Raises: LibraryUnavailable.
    """
    return _info()[0]


def cpu_features() -> tuple[str, ...]:
    """Return the instruction sets that this machine has a kernel for, the fastest first.

    Raises: LibraryUnavailable.
    """
    return tuple(_info()[1].split(","))


def _info() -> tuple[str, str]:
    """Return what the library's own operator LibraryInfo says, cut at its colon."""
    node = helper.make_node("LibraryInfo", [], ["info"], domain=DOMAIN)
    info = helper.make_tensor_value_info("info", onnx.TensorProto.UINT8, [None])
    model = helper.make_model(
        helper.make_graph([node], "info", [], [info]),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)],
        ir_version=8,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    text = session(model, options).run(None, {})[0].tobytes().decode()
    active, _, available = text.partition(":")
    return active, available
