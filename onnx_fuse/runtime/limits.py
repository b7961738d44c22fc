"""What the machine allows: the least time that a block can take, from measured peaks."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_fuse.errors import InvalidOption
from onnx_fuse.op.schema import Precision
from onnx_fuse.runtime.block_models import BlockShape

# How many products of a unit make one product at a precision; a unit that isn't named has no use
# there. Three bfloat16 numbers hold a float32, and six of their nine products are above its
# rounding; two of them need three.
_PRODUCTS: Mapping[Precision, Mapping[str, int]] = {
    "fp32": {"portable": 1, "neon": 1, "avx2": 1, "avx512": 1, "amx": 6},
    "bf16x3": {"portable": 1, "neon": 1, "avx2": 1, "avx512": 1, "avx512bf16": 3, "amx": 3},
    "bf16": {"portable": 1, "neon": 1, "avx2": 1, "avx512": 1, "avx512bf16": 1, "amx": 1},
}
# What kernels of an instruction set may use besides it.
_WITHIN = ("portable", "neon", "avx2", "avx512", "avx512bf16", "amx")
_SECONDS = 120


@dataclass(frozen=True)
class Bound:
    """The least time of one block in microseconds, and what sets it: a unit's name, or "read"."""

    us: float
    by: str


@dataclass(frozen=True)
class Limits:
    """Peaks of a number of threads together: flop/s by unit, bytes/s by size of the working set.

    `round_trip`: seconds of a word to another thread and back (None with one thread). Cores that
    don't share a cache are several times as far from each other, and a virtual machine doesn't say
    which ones it has: figures of several threads compare only where this is the same.
    """

    threads: int
    peaks: Mapping[str, float]
    read: Sequence[tuple[int, float]]
    round_trip: float | None = None

    def bandwidth(self, working_set: int) -> float:
        """Bytes a second at which a working set is read over and over.

        Between two measured sizes it is interpolated. A larger set is never read faster: where that
        was measured, something disturbed the smaller one.
        """
        sizes = np.log2([size for size, _ in self.read])
        rates = np.maximum.accumulate([rate for _, rate in self.read][::-1])[::-1]
        return float(np.interp(np.log2(working_set), sizes, rates))

    def unit(self, precision: Precision, isa: str) -> tuple[str, float]:
        """The unit that multiplies fastest at a precision in kernels of `isa`, and its flop/s."""
        allowed = _WITHIN[: _WITHIN.index(isa) + 1] if isa in _WITHIN else _WITHIN
        rates = {
            name: self.peaks[name] / products
            for name, products in _PRODUCTS[precision].items()
            if name in self.peaks and name in allowed
        }
        best = max(rates, key=lambda name: rates[name])
        return best, rates[best]

    def bound(
        self,
        shape: BlockShape,
        point: tuple[int, int],
        precision: Precision,
        *,
        blocks: int,
        isa: str,
    ) -> Bound:
        """The bound of one of `blocks` blocks that run in turn, at (batch, seq).

        The larger of two times: all multiplications and additions at the unit's peak (attention's
        own at float32's in "bf16x3", which is about weights), and the weights read once at the
        bandwidth of a working set of all blocks' weights.
        """
        batch, seq = point
        projections = 2 * batch * seq * shape.weight_elements
        attention = 4 * batch * seq * seq * shape.hidden_size
        unit, rate = self.unit(precision, isa)
        within = rate if precision == "bf16" else self.unit("fp32", isa)[1]
        compute = projections / rate + attention / within
        size = shape.weight_elements * (2 if precision == "bf16" else 4)
        reading = size / self.bandwidth(size * blocks)
        return Bound(max(compute, reading) * 1e6, unit if compute > reading else "read")

    def to_json(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return {
            "threads": self.threads,
            "peaks": dict(self.peaks),
            "read": [*map(list, self.read)],
            "round_trip": self.round_trip,
        }


def measure_limits(probe: Path, threads: int) -> Limits:
    """Run the probe (native/probe.cpp, built with ONNX_FUSE_PROBE=ON); it takes some seconds.

    Raises: InvalidOption if it isn't there, or fails.
    """
    try:
        run = subprocess.run(
            [str(probe), str(threads)], capture_output=True, check=True, timeout=_SECONDS
        )
        data = json.loads(run.stdout)
        read = tuple((int(size), float(rate)) for size, rate in data["read"])
        peaks = {unit: float(rate) for unit, rate in data["peaks"].items()}
        trip = data.get("round_trip")
        return Limits(int(data["threads"]), peaks, read, None if trip is None else float(trip))
    except OSError as error:
        raise InvalidOption(f"probe {probe}: {error.strerror}") from error
    except (subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        raise InvalidOption(f"probe {probe} does not work: {error}") from error
