"""The Python interface: load, rewrite, save, each in a few lines."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from onnx_fuse.config import UNSET, Bindings, Unset
from onnx_fuse.ir import save as writer
from onnx_fuse.ir.check import check_model
from onnx_fuse.ir.load import ModelLike, load
from onnx_fuse.ir.model import Model
from onnx_fuse.ir.text import dump
from onnx_fuse.op.schema import Precision
from onnx_fuse.passes import checked, run_passes
from onnx_fuse.passes.carry_out import carry_out
from onnx_fuse.passes.fuse_attention_block import FuseAttentionBlock
from onnx_fuse.passes.plan import Plan
from onnx_fuse.passes.unfuse import Unfuse
from onnx_fuse.report import Report, VerifyReport

if TYPE_CHECKING:
    import onnxruntime

__all__ = [
    "FuseResult",
    "explain",
    "fuse",
    "load",
    "register",
    "save",
    "session",
    "unfuse",
    "verify",
]


@dataclass(frozen=True)
class FuseResult:
    """A rewritten model and what happened to each of its attention blocks.

    It can be copied and pickled, as a message that holds external tensors, too: a model that one
    message can't hold raises UnsupportedModel then.
    """

    graph: Model
    report: Report

    @property
    def model(self) -> onnx.ModelProto:
        """The rewritten model as a new message, external tensors inside.

        Raises: UnsupportedModel if one message can't hold it: use `save`.
        """
        return writer.to_proto(self.graph)

    def __reduce__(self) -> tuple[Callable[[bytes, Report], FuseResult], tuple[bytes, Report]]:
        return _result, (self.model.SerializeToString(), self.report)

    @property
    def dump(self) -> str:
        """The graph as text, one line a node."""
        return dump(self.graph)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, atomically; external data goes beside it. Raises: ModelNotWritable."""
        writer.save(self.graph, path)


AnyModel = ModelLike | Model | FuseResult


def _given(model: AnyModel) -> ModelLike:
    """Return a model as a path or as a message. Raises: UnsupportedModel if none can hold it."""
    loaded = model.graph if isinstance(model, FuseResult) else model
    return writer.to_proto(loaded) if isinstance(loaded, Model) else loaded


def _result(message: bytes, report: Report) -> FuseResult:
    return FuseResult(load(onnx.ModelProto.FromString(message)), report)


def fuse(
    model: AnyModel,
    *,
    threshold: int | str | Unset | None = UNSET,
    batch: int | None = None,
    seq: int | None = None,
    dims: Bindings | None = None,
    fallback: bool = True,
    precision: Precision = "fp32",
) -> FuseResult:
    """Fuse the attention blocks of a model, which isn't changed itself.

    model: a path, a message, what `load` returns, or the result of another call.

    threshold: the most rows (batch * sequence) of a block that is fused; None fuses all; without
    it, RLX_FUSE_ATTN_THRESHOLD or 64. A block of dynamic size counts as small unless `batch`, `seq`
    and `dims` (extents by symbol name) say how large it will be. fallback: whether the model
    carries the operator's body in standard ONNX, for runtimes without the library. precision:
    arithmetic of the matrix products. Model-local functions are written out where that fuses a
    greater share of the blocks, and products of several tensors where that fuses more.

    Raises: InvalidModel, InvalidOption.
    """
    step = FuseAttentionBlock(threshold, batch, seq, dims, fallback=fallback, precision=precision)
    plan = step.plan(_valid(model))
    report = _report(model, plan)
    return FuseResult(checked(step, carry_out(plan)), report)


def _valid(model: AnyModel) -> Model:
    loaded = load(_given(model))
    check_model(loaded)
    return loaded


def _report(model: AnyModel, plan: Plan) -> Report:
    name = str(model) if isinstance(model, (str, os.PathLike)) else "(in memory)"
    return Report(
        model=name,
        blocks=tuple(plan.reports()),
        others=tuple(plan.others),
        notes=tuple(plan.notes),
    )


def explain(
    model: AnyModel,
    *,
    threshold: int | str | Unset | None = UNSET,
    batch: int | None = None,
    seq: int | None = None,
    dims: Bindings | None = None,
    fallback: bool = True,
    precision: Precision = "fp32",
) -> Report:
    """Say of every attention site what `fuse` with these options makes of it; change nothing.

    Raises: InvalidModel, InvalidOption.
    """
    step = FuseAttentionBlock(threshold, batch, seq, dims, fallback=fallback, precision=precision)
    return _report(model, step.plan(_valid(model)))


def save(model: AnyModel, path: str | os.PathLike[str]) -> None:
    """Write a model, atomically; external data goes beside it. Raises: ModelNotWritable."""
    graph = model.graph if isinstance(model, FuseResult) else model
    writer.save(graph if isinstance(graph, Model) else load(graph), path)


def unfuse(model: AnyModel) -> onnx.ModelProto:
    """Return the model in standard ONNX, with no trace of this package and its weights inside.

    Raises: InvalidModel; UnsupportedModel if one message can't hold it, as
    `save(run_passes(load(path), [Unfuse()]), other)` can.
    """
    return writer.to_proto(run_passes(load(_given(model)), [Unfuse()]))


def verify(original: AnyModel, fused: AnyModel) -> VerifyReport:
    """Run both models on the same inputs and compare all outputs.

    The fused one runs with our kernels and in a plain session.
    """
    from onnx_fuse.runtime.verify import verify as compare

    return compare(_given(original), _given(fused))


def register(session_options: onnxruntime.SessionOptions) -> None:
    """Register the kernels with a session's options. Raises: LibraryUnavailable."""
    from onnx_fuse.runtime import library

    library.register(session_options)


def session(
    path_or_model: AnyModel, sess_options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    """Return a CPU session with the kernels registered. Raises: LibraryUnavailable."""
    from onnx_fuse.runtime import library

    return library.session(_given(path_or_model), sess_options)


def get_library_path() -> str:
    """Return the path of the shared library with the kernels. Raises: LibraryUnavailable."""
    from onnx_fuse.runtime import library

    return library.get_library_path()
