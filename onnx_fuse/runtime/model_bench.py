"""Times a whole model in every precision beside its peers; measures what its sessions cost."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_fuse.errors import UnsupportedModel
from onnx_fuse.op.schema import Precision
from onnx_fuse.runtime.cases import fit
from onnx_fuse.runtime.inputs import InputMaker, Sizes
from onnx_fuse.runtime.peers import OURS, Peer, Run, onnxruntime_peer, openvino_peers
from onnx_fuse.runtime.sessions import open_session, open_source
from onnx_fuse.runtime.timing import PAST, Spread, clocked, interleave

ORIGINAL = "onnxruntime"
PLAIN = "fused file, plain session"
_KIB = 1024
_COST_SEQ = 16
_COST_REPEATS = 5


@dataclass(frozen=True)
class ModelMeasured:
    """A peer: microseconds of a run, and its first output beside the original's.

    `error` is the largest difference relative to the output's largest value, `cosine` the cosine
    between the two outputs, both taken as one vector.
    """

    us: Spread
    error: float
    cosine: float


@dataclass(frozen=True)
class ModelRow:
    """One length and number of threads, batch 1."""

    seq: int
    threads: int
    peers: Mapping[str, ModelMeasured]


@dataclass(frozen=True)
class SessionCost:
    """What one session takes: seconds to make it, bytes resident after a run, bytes at the peak."""

    name: str
    seconds: Spread
    resident: Spread
    peak: Spread


def model_bench(
    original: Path,
    fused: Mapping[Precision, Path],
    *,
    seqs: Sequence[int],
    threads: Sequence[int] = (1, 2),
    seconds: float = 1.0,
    progress: Callable[[str], None] | None = None,
) -> tuple[tuple[ModelRow, ...], tuple[str, ...]]:
    """Time a model of dynamic length, its fused files by precision, and OpenVINO; with notes.

    The file in "fp32" also runs in a session without the library, as in a host that lacks it.

    Raises: InvalidModel, UnsupportedModel, LibraryUnavailable.
    """
    tell = progress or (lambda _: None)
    maker = InputMaker(open_source(original, "the model").proto)
    if not maker.is_dynamic:
        raise UnsupportedModel(f"{original}: its shapes are static, it has one length only")
    rows: list[ModelRow] = []
    notes: dict[str, None] = {}
    for count in threads:
        peers = [onnxruntime_peer(ORIGINAL, original, count)]
        others, missing = openvino_peers(original, count)
        peers += others
        notes.update(dict.fromkeys(missing))
        if "fp32" in fused:
            peers.append(onnxruntime_peer(PLAIN, fused["fp32"], count))
        for precision, path in fused.items():
            peers.append(onnxruntime_peer(f"{OURS} {precision}", path, count, kernels=True))
        for seq in seqs:
            tell(f"{original.stem}: {seq} tokens, threads {count}")
            rows.append(ModelRow(seq, count, _measure(maker, peers, seq, seconds)))
    return tuple(rows), tuple(notes)


def _measure(
    maker: InputMaker, peers: Sequence[Peer], seq: int, seconds: float
) -> dict[str, ModelMeasured]:
    feeds = fit(maker, lambda given: peers[0].prepare(given)(), Sizes(1, seq, PAST)).feeds
    runs: dict[str, Run] = {peer.name: peer.prepare(feeds) for peer in peers}
    outputs = {name: run().astype(np.float64).ravel() for name, run in runs.items()}
    expected = outputs[peers[0].name]
    times = interleave({name: clocked(run) for name, run in runs.items()}, seconds)
    return {
        name: ModelMeasured(times[name].us, *_compare(outputs[name], expected)) for name in runs
    }


def _compare(output: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> tuple[float, float]:
    error = np.abs(output - expected).max() / np.abs(expected).max()
    cosine = output @ expected / np.sqrt((output @ output) * (expected @ expected))
    return float(error), float(cosine)


def session_costs(models: Mapping[str, tuple[Path, bool]]) -> tuple[SessionCost, ...]:
    """Return what sessions of these files cost, by name; True: with the kernels. Linux only.

    Each session is made five times, in a process of its own, in turn.
    """
    samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in models}
    context = multiprocessing.get_context("spawn")
    for _ in range(_COST_REPEATS):
        for name, (path, kernels) in models.items():
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                samples[name].append(pool.submit(_cost, path, kernels).result())
    return tuple(
        SessionCost(name, *map(Spread.of, zip(*taken, strict=True)))
        for name, taken in samples.items()
    )


def _cost(path: Path, kernels: bool) -> tuple[float, float, float]:
    """Return seconds and bytes of a session, in this process, which has had none before."""
    source = open_source(path, "the model")
    maker = InputMaker(source.proto)
    before, peak_before = _resident(), _peak()
    start = time.perf_counter()
    session = open_session(source, kernels=kernels, threads=1)
    seconds = time.perf_counter() - start
    fit(maker, lambda feeds: session.run(None, feeds), Sizes(1, _COST_SEQ, PAST))
    return seconds, _resident() - before, _peak() - peak_before


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * resource.getpagesize())


def _peak() -> float:
    # Not getrusage's: that one starts at the parent's peak.
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return float(int(line.split()[1]) * _KIB)


def to_json(rows: Sequence[ModelRow], costs: Sequence[SessionCost]) -> dict[str, Any]:
    """Return rows and costs as plain JSON values."""
    return {
        "rows": [
            {
                "seq": row.seq,
                "threads": row.threads,
                "peers": {name: asdict(measured) for name, measured in row.peers.items()},
            }
            for row in rows
        ],
        "sessions": [asdict(cost) for cost in costs],
    }
