"""Compares one output of two models, and keeps count of what the comparisons could have shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_fuse.runtime.tolerance import TELLING, bound, scale

Array = npt.NDArray[Any]


@dataclass
class Tally:
    """Compares outputs, and holds what the comparisons found so far.

    relative: how far two right results may differ, as a share of the output's scale. `max_abs_err`,
    `worst_ratio` and `tolerance` are those of VerifyReport.
    """

    relative: float
    max_abs_err: float = 0.0
    worst_ratio: float = 0.0
    tolerance: float = 0.0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    telling: dict[str, list[bool]] = field(default_factory=dict)

    def is_telling(self, name: str) -> bool:
        """Return whether at least half of an output's comparisons could have shown a difference."""
        counts = self.telling.get(name, [])
        return bool(counts) and 2 * sum(counts) >= len(counts)

    def compare(self, name: str, right: Any, made: Any, others: Sequence[Any] = ()) -> str | None:
        """Return what is wrong with the output `made`, in words; None if it is as good as `right`.

        `others` are the same output of other runs of the original: they show its noise.
        """
        if isinstance(right, list):
            if not isinstance(made, list) or len(made) != len(right):
                return "a sequence of another length"
            pairs = zip(right, made, strict=True)
            sentences = [self.compare(name, piece, other) for piece, other in pairs]
            return next((sentence for sentence in sentences if sentence), None)
        if not isinstance(right, np.ndarray):
            return None if right == made else f"{made!r} instead of {right!r}"
        if right.dtype != made.dtype or right.shape != made.shape:
            return f"{made.dtype}{list(made.shape)} instead of {right.dtype}{list(right.shape)}"
        if not right.size:
            return None
        alike = [other for other in others if other.shape == right.shape]
        if right.dtype.kind != "f":
            return self._compare_exact(name, right, made, alike)
        wide = [other.astype(np.float64) for other in alike]
        return self._compare_real(name, right.astype(np.float64), made.astype(np.float64), wide)

    def _count(self, name: str, telling: bool) -> None:
        """Note one comparison of an output, and whether it could have shown a difference."""
        self.telling.setdefault(name, []).append(telling)

    def _compare_exact(
        self, name: str, right: Array, made: Array, others: Sequence[Array]
    ) -> str | None:
        """Compare integers, booleans, strings: equal, but where the original's own runs differ."""
        settled = np.logical_and.reduce([right == other for other in (right, *others)])
        self._count(name, bool(settled.any()))
        wrong = settled & (right != made)
        if right.dtype in (np.int8, np.uint8):  # a quantized value may round the other way
            wrong &= np.abs(right.astype(int) - made.astype(int)) > 1
        return f"{int(wrong.sum())} of {right.size} elements are not equal" if wrong.any() else None

    def _compare_real(
        self, name: str, right: Array, made: Array, others: Sequence[Array]
    ) -> str | None:
        """Compare real numbers: NaN and infinities in the same places, all else in the bound."""
        is_finite = np.isfinite(right)
        settled = np.logical_and.reduce([is_finite == np.isfinite(run) for run in (right, *others)])
        odd = settled & ~is_finite
        finite = settled & is_finite
        if (odd & ~_same_nonfinite(right, made)).any() or not np.isfinite(made[finite]).all():
            return "NaN or infinity in other places"
        if not finite.any():
            self._count(name, False)
            return None
        right, made = right[finite], made[finite]
        noise = max((float(np.abs(right - other[finite]).max()) for other in others), default=0.0)
        limit = bound(self.relative, right, noise)
        error = np.abs(right - made)
        ratio = error / np.maximum(limit, np.finfo(np.float64).tiny)
        worst = int(ratio.argmax())
        self.max_abs_err = max(self.max_abs_err, float(error.max()))
        if ratio[worst] >= self.worst_ratio:
            self.worst_ratio, self.tolerance = float(ratio[worst]), float(limit[worst])
        self._count(name, self._shows(right, made, [other[finite] for other in others], limit))
        if ratio[worst] <= 1:
            return None
        share = f"{int((ratio > 1).sum())} of {error.size} elements"
        return f"by {error[worst]:.3g} (allowed {limit[worst]:.3g}), {share}"

    def _shows(self, right: Array, made: Array, others: Sequence[Array], limit: Array) -> bool:
        """Return whether a wrong model would have shown.

        Either the bound is small; or the noise has made it large, and the result is as near to one
        of the original's runs as rounding alone allows, which it would not be by chance.
        """
        largest = TELLING * scale(right)
        if limit.min() < largest:
            return True
        rounding = bound(self.relative, right, 0.0)
        agrees = any((np.abs(made - run) <= rounding).all() for run in (right, *others))
        return bool(agrees and rounding.min() < largest)


def _same_nonfinite(right: Array, made: Array) -> Array:
    same: Array = (np.isnan(right) & np.isnan(made)) | (right == made)
    return same
