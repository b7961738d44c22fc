"""Times one attention block beside everything else that runs it, against the machine's limit.

A point is (hidden_size, num_heads, batch, seq, threads). Six blocks with different weights run one
after the other in one model, so that weights come from where they come from in a model; the peers
take turns in one process; a sixth of the median run is a block's time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_fuse.errors import InvalidOption
from onnx_fuse.op.schema import PRECISIONS, Precision
from onnx_fuse.runtime.block_models import (
    BLOCKS,
    LONGEST,
    Array,
    Block,
    BlockShape,
    make_blocks,
    make_feeds,
    make_reference,
)
from onnx_fuse.runtime.library import active_isa, cpu_features
from onnx_fuse.runtime.limits import Bound, Limits, Probe, weight_bytes
from onnx_fuse.runtime.machine import processor
from onnx_fuse.runtime.peers import OURS, Feeds, Fuse, Peer, Run, open_peers, peer_versions
from onnx_fuse.runtime.sessions import one_line
from onnx_fuse.runtime.timing import Clocked, Spread, clocked, interleave

# An error above this is another result, not a rounded one: six blocks in bfloat16 stay below 0.02.
_WRONG = 0.1


@dataclass(frozen=True)
class Measured:
    """A peer at a point: microseconds of one block, and its error.

    `error` is the rms difference from float64 after all blocks, relative to the result's rms.
    """

    us: Spread
    error: float


@dataclass(frozen=True)
class BlockRow:
    """One point: what each peer took, and our limits by precision (none without a probe)."""

    shape: BlockShape
    batch: int
    seq: int
    threads: int
    peers: Mapping[str, Measured]
    limits: Mapping[Precision, Bound]

    @property
    def rows(self) -> int:
        """Rows of the products."""
        return self.batch * self.seq

    def best_onnxruntime(self) -> str | None:
        """Return the name of onnxruntime's fastest form."""
        forms = [name for name in self.peers if name.startswith("onnxruntime")]
        return min(forms, key=lambda name: self.peers[name].us.median, default=None)

    def ratio(self, peer: str | None, precision: Precision) -> float | None:
        """Return the peer's median over ours at a precision: above 1 we are faster."""
        ours = self.peers.get(f"{OURS} {precision}")
        other = self.peers.get(peer) if peer else None
        return other.us.median / ours.us.median if ours and other else None

    def share(self, precision: Precision) -> float | None:
        """Return the limit over our median: 1 is the machine's own speed."""
        ours, limit = self.peers.get(f"{OURS} {precision}"), self.limits.get(precision)
        return limit.us / ours.us.median if ours and limit else None


@dataclass(frozen=True)
class BlockBenchReport:
    """All points, on which machine, with what could not be measured in `notes`."""

    isa: str
    rows: tuple[BlockRow, ...]
    limits: tuple[Limits, ...] = ()
    notes: tuple[str, ...] = ()
    machine: Mapping[str, str] = field(default_factory=processor)
    versions: Mapping[str, str] = field(default_factory=peer_versions)

    def to_json(self) -> dict[str, Any]:
        """Return points, limits, machine and versions as plain JSON values."""
        return {
            "schema": 1,
            "isa": self.isa,
            "blocks": BLOCKS,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "limits": [asdict(limits) for limits in self.limits],
            "points": [_point(row) for row in self.rows],
            "notes": list(self.notes),
        }


def _point(row: BlockRow) -> dict[str, Any]:
    sizes = {**asdict(row.shape), "batch": row.batch, "seq": row.seq, "threads": row.threads}
    peers = {name: asdict(measured) for name, measured in row.peers.items()}
    return {**sizes, "peers": peers, "limits": {p: asdict(b) for p, b in row.limits.items()}}


def block_bench(
    plan: Mapping[BlockShape, Sequence[int]],
    *,
    fuse: Fuse,
    batch: int = 1,
    threads: Sequence[int] = (1, 2),
    precisions: Sequence[Precision] = PRECISIONS,
    seconds: float = 1.0,
    probe: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> BlockBenchReport:
    """Time every shape of the plan at its lengths, on each number of threads; `seconds` a point.

    `fuse` is `onnx_fuse.fuse` at a precision; `probe` the library that measures limits, without
    which there are none.

    Raises: LibraryUnavailable; InvalidOption for another file as the probe, a length over 4096, or
    an ONNX_FUSE_ISA that this machine hasn't.
    """
    longest = max(max(seqs) for seqs in plan.values())
    if longest > LONGEST:
        raise InvalidOption(f"a block of {longest} rows: the longest sequence here is {LONGEST}")
    tell = progress or (lambda _: None)
    if probe is not None:
        tell("measuring the machine")
    machine = _Machine.measured(probe, threads)
    notes = {} if machine.limits else {"no probe, no limits: `make bench` builds one": None}
    rows: list[BlockRow] = []
    for shape, seqs in plan.items():
        blocks = make_blocks(shape)
        tell(f"{shape}: computing in float64")
        cases = {seq: _make_case(shape, blocks, batch, seq) for seq in seqs}
        for count in threads:
            tell(f"{shape}: opening sessions, threads {count}")
            peers, missing = open_peers(shape, blocks, count, precisions, fuse)
            readers = machine.readers(shape, precisions, count)
            notes.update(dict.fromkeys(missing))
            for seq, case in cases.items():
                tell(f"{shape}: {batch} x {seq} rows, threads {count}")
                runs, errors, wrong = _check_all(peers, case)
                notes.update((f"{shape}, {seq} rows: {note}", None) for note in wrong)
                times = interleave({**runs, **readers}, seconds)
                us = {name: _per_block(turns.us) for name, turns in times.items()}
                bounds = machine.bounds(shape, (batch, seq), precisions, count, us)
                measured = {name: Measured(us[name], errors[name]) for name in runs}
                rows.append(BlockRow(shape, batch, seq, count, measured, bounds))
    return BlockBenchReport(machine.isa, tuple(rows), tuple(machine.limits.values()), tuple(notes))


@dataclass(frozen=True)
class _Machine:
    """Gives the limits of blocks on this machine; without a probe there are none."""

    isa: str
    probe: Probe | None
    limits: Mapping[int, Limits]  # by number of threads

    @staticmethod
    def measured(probe: Path | None, threads: Sequence[int]) -> _Machine:
        """Return the machine as a probe measures it. Raises: LibraryUnavailable, InvalidOption."""
        isa = active_isa()
        if not isa:
            raise InvalidOption(
                "ONNX_FUSE_ISA names no kernel of this machine, which has "
                + ", ".join(cpu_features())
            )
        if probe is None:
            return _Machine(isa, None, {})
        library = Probe(probe)
        return _Machine(isa, library, {count: library.limits(count) for count in threads})

    def readers(
        self, shape: BlockShape, precisions: Sequence[Precision], threads: int
    ) -> dict[str, Clocked]:
        """Return what reads as many bytes as all blocks' weights have, by name.

        They take turns with the peers: these put each other's weights out of the caches.
        """
        if self.probe is None:
            return {}
        sizes = {_reader(shape, p): weight_bytes(shape, p) * BLOCKS for p in precisions}
        return {name: self.probe.reader(size, threads) for name, size in sizes.items()}

    def bounds(
        self,
        shape: BlockShape,
        point: tuple[int, int],
        precisions: Sequence[Precision],
        threads: int,
        us: Mapping[str, Spread],
    ) -> dict[Precision, Bound]:
        """Return the limits of a block at (batch, seq), whose readers took so many microseconds."""
        if self.probe is None:
            return {}
        reading = {p: us[_reader(shape, p)].median for p in precisions}
        limits = self.limits[threads]
        return {
            p: limits.bound(shape, point, p, isa=self.isa, reading_us=reading[p])
            for p in precisions
        }


def _reader(shape: BlockShape, precision: Precision) -> str:
    return f"reading {weight_bytes(shape, precision)} bytes"


@dataclass(frozen=True)
class _Case:
    """What a chain reads, and what it should compute."""

    feeds: Feeds
    expected: npt.NDArray[np.float64]


def _make_case(shape: BlockShape, blocks: Sequence[Block], batch: int, seq: int) -> _Case:
    feeds = make_feeds(shape, batch, seq)
    hidden: Array = feeds["hidden"].astype(np.float32, copy=False)
    return _Case(feeds, make_reference(shape, blocks, hidden))


def _check_all(
    peers: Sequence[Peer], case: _Case
) -> tuple[dict[str, Clocked], dict[str, float], list[str]]:
    """Return runs and errors of the peers that compute the right thing, and notes on the others."""
    runs: dict[str, Clocked] = {}
    errors: dict[str, float] = {}
    notes: list[str] = []
    for peer in peers:
        try:
            run, error = _check(peer, case)
        except Exception as failure:  # the runtimes' own classes share no base but this
            notes.append(f"{peer.name} does not run: {one_line(failure)}")
            continue
        if error < _WRONG:
            runs[peer.name], errors[peer.name] = clocked(run), error
        else:
            notes.append(f"{peer.name} computes something else, its error is {error:.2g}")
    return runs, errors, notes


def _check(peer: Peer, case: _Case) -> tuple[Run, float]:
    run = peer.prepare(case.feeds)
    difference = run().astype(np.float64) - case.expected
    error = np.sqrt(np.mean(difference**2) / np.mean(case.expected**2))
    return run, float(error) if np.isfinite(error) else float("inf")


def _per_block(us: Spread) -> Spread:
    return Spread(us.median / BLOCKS, us.low / BLOCKS, us.high / BLOCKS)
