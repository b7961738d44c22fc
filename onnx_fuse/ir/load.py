"""From a file or a ModelProto to Model; whatever is wrong is an InvalidModel of one line."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import onnx

from onnx_fuse.errors import InvalidModel
from onnx_fuse.ir.build import build_model
from onnx_fuse.ir.model import Model
from onnx_fuse.ir.wire import DecodeError

# A model as callers give it: a path, or a message.
ModelLike = str | os.PathLike[str] | onnx.ModelProto

# Protobuf's limit for one message: what is larger has its weights beside it.
MESSAGE_LIMIT = (1 << 31) - 1
# What onnxruntime's saved models begin with, behind an offset.
_ORT_FORMAT = b"ORTM"


def load(
    source: ModelLike,
    *,
    base_dir: str | os.PathLike[str] | None = None,
) -> Model:
    """Return the model in a file or in a ModelProto, which is copied, never changed.

    External data is found relative to `base_dir`; without it, to the file's folder, or to the
    current one for a ModelProto. It is checked now (does it exist, is it long enough) and read only
    where someone asks.

    Raises: InvalidModel naming the file, and the node, value or tensor at fault.
    """
    if isinstance(source, onnx.ModelProto):
        return _load_proto(source, Path(base_dir or "."))
    path = path_of(source)
    data = _read(path)
    try:
        return _parse(data, Path(base_dir or path.parent), path)
    except InvalidModel as error:
        raise InvalidModel(f"{path}: {error}") from error


def path_of(source: object) -> Path:
    """Return the path of a model that is no message. Raises: TypeError if it is no path, either."""
    if not isinstance(source, str | os.PathLike):
        kind = type(source).__name__
        raise TypeError(f"a model is given as a path or as an onnx.ModelProto, not as a {kind}")
    return Path(source)


def read_message(path: Path) -> onnx.ModelProto:
    """Return the message in a file that `load` takes, without its external data.

    Raises: InvalidModel naming the file.
    """
    load(path)
    try:
        return onnx.load(str(path), load_external_data=False)
    except DecodeError as error:  # nested too deeply, as a whole
        raise InvalidModel(f"{path}: this is no ONNX model") from error


def _load_proto(proto: onnx.ModelProto, folder: Path) -> Model:
    try:
        data = proto.SerializeToString(deterministic=True)
    except Exception as error:  # protobuf's implementations disagree on the type
        raise InvalidModel(
            "the ModelProto is over 2 GiB: save it with external data and give the path"
        ) from error
    return _parse(data, folder, None)


def _read(path: Path) -> bytes:
    try:
        status = path.stat()  # before opening: to open a pipe is to wait for its writer
        if stat.S_ISDIR(status.st_mode):
            raise InvalidModel(f"{path}: a directory; give the path of the .onnx file in it")
        if not stat.S_ISREG(status.st_mode):
            raise InvalidModel(f"{path}: not a regular file; give the path of an .onnx file")
        if status.st_size > MESSAGE_LIMIT:
            raise InvalidModel(
                f"{path}: over 2 GiB, which no ONNX file can be; keep the weights as external data"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidModel(f"{path}: {reason}") from error


def _parse(data: bytes, folder: Path, path: Path | None) -> Model:
    if not data:
        raise InvalidModel("the file is empty; was it copied or downloaded completely?")
    try:
        return build_model(memoryview(data), folder, path)
    except DecodeError as error:
        if data[4:8] == _ORT_FORMAT:
            raise InvalidModel(
                "in onnxruntime's own format (.ort); give the .onnx file that it was made of"
            ) from error
        raise InvalidModel(
            f"not an ONNX model, or not a complete one ({error}); was it downloaded completely?"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise InvalidModel(f"not a valid ONNX model ({error})") from error
