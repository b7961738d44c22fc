"""What the machine allows: the least time that a block can take, from what is measured here."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_fuse.errors import InvalidOption
from onnx_fuse.op.schema import Precision
from onnx_fuse.runtime.block_models import BlockShape
from onnx_fuse.runtime.timing import Clocked

# How many products of a unit make one product at a precision; a unit that isn't named has no use
# there. Three bfloat16 numbers hold a float32, and six of their nine products are above its
# rounding; two of them need three.
_FLOATS = {"portable": 1, "neon": 1, "avx2": 1, "avx512": 1}
_PRODUCTS: Mapping[Precision, Mapping[str, int]] = {
    "fp32": {**_FLOATS, "amx": 6},
    "bf16x3": {**_FLOATS, "neonbf16": 3, "avx512bf16": 3, "amx": 3},
    "bf16": {**_FLOATS, "neonbf16": 1, "avx512bf16": 1, "amx": 1},
}
# What kernels of an instruction set may use besides it.
_WITHIN = ("portable", "neon", "neonbf16", "avx2", "avx512", "avx512bf16", "amx")
_LINE_BYTES = 64


@dataclass(frozen=True)
class Bound:
    """The least time of one block in microseconds, and what sets it: a unit's name, or "read"."""

    us: float
    by: str


@dataclass(frozen=True)
class Limits:
    """What a number of threads can do together: `peaks` are flop/s by unit.

    `round_trip`: seconds of a word to another thread and back (None with one thread). Cores that
    don't share a cache are several times as far from each other, and a virtual machine doesn't say
    which ones it has: figures of several threads compare only where this is the same.
    """

    threads: int
    peaks: Mapping[str, float]
    round_trip: float | None = None

    def unit(self, precision: Precision, isa: str) -> tuple[str, float]:
        """Return the unit that multiplies fastest at a precision in `isa`, and its flop/s."""
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
        reading_us: float,
        isa: str,
    ) -> Bound:
        """Return the bound of a block at (batch, seq) whose weights are read in `reading_us`.

        The larger of two times: all multiplications and additions at the unit's peak (attention's
        own at float32's in "bf16x3", which is about weights), and the weights read once.
        """
        batch, seq = point
        projections = 2 * batch * seq * shape.weight_elements
        attention = 4 * batch * seq * seq * shape.hidden_size
        unit, rate = self.unit(precision, isa)
        within = rate if precision == "bf16" else self.unit("fp32", isa)[1]
        compute_us = (projections / rate + attention / within) * 1e6
        return Bound(max(compute_us, reading_us), unit if compute_us > reading_us else "read")


def weight_bytes(shape: BlockShape, precision: Precision) -> int:
    """Return how many bytes a block's weights have at a precision."""
    return shape.weight_elements * (2 if precision == "bf16" else 4)


class Probe:
    """The library that measures the machine: native/probe.cpp, built with ONNX_FUSE_PROBE=ON."""

    def __init__(self, path: Path) -> None:
        """Raises: InvalidOption if the file isn't there, or isn't such a library."""
        size, count = ctypes.c_size_t, ctypes.c_int
        try:
            library = ctypes.CDLL(str(path.absolute()))
            self._unit = _declare(library.onnx_fuse_probe_unit, ctypes.c_char_p, count)
            self._peak = _declare(library.onnx_fuse_probe_peak, ctypes.c_double, count, count)
            self._round_trip = _declare(library.onnx_fuse_probe_round_trip, ctypes.c_double)
            self._read = _declare(
                library.onnx_fuse_probe_read, ctypes.c_double, ctypes.c_void_p, size, count
            )
        except (OSError, AttributeError) as error:
            raise InvalidOption(
                f"--probe {path} is not the library that `make bench` builds: {error}"
            ) from error

    def limits(self, threads: int) -> Limits:
        """Measure what this many threads can do together; it takes a second."""
        peaks: dict[str, float] = {}
        index = 0
        while (name := self._unit(index)) is not None:
            if name:
                peaks[name.decode()] = self._peak(index, threads)
            index += 1
        return Limits(threads, peaks, self._round_trip() if threads > 1 else None)

    def reader(self, count: int, threads: int) -> Clocked:
        """Return what reads `count` bytes of its own once, on this many threads."""
        room = np.ones(count + _LINE_BYTES, np.uint8)
        memory = room[-room.ctypes.data % _LINE_BYTES :]

        def read() -> float:
            seconds: float = self._read(memory.ctypes.data, count, threads)
            return seconds

        return read


def _declare(function: Any, result: Any, *arguments: Any) -> Callable[..., Any]:
    function.restype, function.argtypes = result, arguments
    declared: Callable[..., Any] = function
    return declared
