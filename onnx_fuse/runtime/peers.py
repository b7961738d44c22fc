"""Who runs a model beside us: onnxruntime in all its forms, and OpenVINO where it is installed."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_fuse.ir.load import ModelLike
from onnx_fuse.op.schema import Precision
from onnx_fuse.runtime.block_models import (
    Block,
    BlockShape,
    attention_chain,
    exporter_chain,
    multi_head_chain,
)
from onnx_fuse.runtime.machine import versions
from onnx_fuse.runtime.sessions import one_line, open_source
from onnx_fuse.runtime.timing import open_timed_session

Feeds = Mapping[str, npt.NDArray[Any]]
Run = Callable[[], npt.NDArray[Any]]
Fuse = Callable[[onnx.ModelProto, Precision], onnx.ModelProto]

OURS = "onnx-fuse"


@dataclass(frozen=True)
class Peer:
    """One way to run a model. `prepare` returns what computes its first output from these feeds."""

    name: str
    prepare: Callable[[Feeds], Run]


def open_peers(
    shape: BlockShape,
    blocks: Sequence[Block],
    threads: int,
    precisions: Sequence[Precision],
    fuse: Fuse,
) -> tuple[list[Peer], list[str]]:
    """Return all that can run a chain of these blocks here, and notes on who can't.

    `fuse` makes our model from the exporter's. Raises: LibraryUnavailable.
    """
    exported = exporter_chain(shape, blocks)
    peers = [onnxruntime_peer("onnxruntime", exported, threads)]
    if not shape.rope:  # the operator Attention has no tables of its own
        packed = attention_chain(shape, blocks)
        peers.append(onnxruntime_peer("onnxruntime Attention", packed, threads))
    separate = multi_head_chain(shape, blocks)
    peers.append(onnxruntime_peer("onnxruntime MultiHeadAttention", separate, threads))
    others, notes = openvino_peers(exported, threads)
    peers.extend(others)
    for precision in precisions:
        fused = fuse(exported, precision)
        name = f"{OURS} {precision}"
        peers.append(onnxruntime_peer(name, fused, threads, kernels=True))
    return peers, notes


def onnxruntime_peer(name: str, model: ModelLike, threads: int, *, kernels: bool = False) -> Peer:
    """Return a session with all of onnxruntime's optimisations, and our kernels if asked for.

    Raises: LibraryUnavailable if the kernels are asked for and missing; InvalidModel.
    """
    session = open_timed_session(open_source(model, name), kernels=kernels, threads=threads)

    def prepare(feeds: Feeds) -> Run:
        given = dict(feeds)

        def run() -> npt.NDArray[Any]:
            result: npt.NDArray[Any] = session.run(None, given)[0]
            return result

        return run

    return Peer(name, prepare)


def openvino_peers(model: ModelLike, threads: int) -> tuple[list[Peer], list[str]]:
    """Return OpenVINO in float32, and in bfloat16 if the processor has it; or a note why not."""
    try:
        import openvino
    except ImportError:
        return [], ["OpenVINO is not installed (pip install 'onnx-fuse[bench]')"]
    core = openvino.Core()
    opened = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    try:
        read = core.read_model(opened)
    except Exception as error:  # OpenVINO's own classes share no base but this
        return [], [f"OpenVINO does not read the model: {one_line(error)}"]
    peers, notes = [_openvino(core, read, threads, "fp32", "f32")], []
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        peers.append(_openvino(core, read, threads, "bf16", "bf16"))
    else:
        notes.append("OpenVINO has no bfloat16 on this processor")
    return peers, notes


def peer_versions() -> dict[str, str]:
    """Return packages' versions by name, OpenVINO's too if it is installed."""
    found = versions()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["openvino"] = importlib.metadata.version("openvino")
    return found


def _openvino(core: Any, model: Any, threads: int, name: str, precision: str) -> Peer:
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": precision,
        # A calling thread that stays pinned to a core would hold the others' workers up.
        "ENABLE_CPU_PINNING": False,
    }

    def prepare(feeds: Feeds) -> Run:
        # Compiled for these very shapes: what it can do best.
        static = model.clone()
        static.reshape({name: list(array.shape) for name, array in feeds.items()})
        request = core.compile_model(static, "CPU", config).create_infer_request()
        request.infer(dict(feeds))  # the inputs stay set

        def run() -> npt.NDArray[Any]:
            request.infer()
            return np.asarray(request.get_output_tensor(0).data)

        return run

    return Peer(f"OpenVINO {name}", prepare)
