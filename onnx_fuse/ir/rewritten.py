"""A model as loaded whose message was rewritten before anything reads it."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from onnx_fuse.errors import InvalidModel
from onnx_fuse.ir.build import build_model
from onnx_fuse.ir.check import check_model
from onnx_fuse.ir.model import Model
from onnx_fuse.ir.wire import DecodeError

Rewrite = Callable[[onnx.ModelProto], onnx.ModelProto | None]


def rewritten(model: Model, rewrite: Rewrite) -> Model | None:
    """Return a model as loaded, of what `rewrite` makes of a copy of its message.

    None where it makes nothing of it, or no valid model.
    """
    try:
        made = rewrite(onnx.ModelProto.FromString(bytes(model.data)))
        if made is None:
            return None
        data = memoryview(made.SerializeToString(deterministic=True))
        built = build_model(data, model.files.folder, model.path)
        check_model(built)
    except (DecodeError, InvalidModel):
        return None
    return built
