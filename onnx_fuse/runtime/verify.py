"""Runs original and fused model on the same inputs and compares every output.

The original runs with onnxruntime's optimisations off: the least that could change it. The fused
model runs with our kernels and in a plain session without the library, each as a user would run
it. A report passes only if something was compared that could have shown a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from onnx_fuse.errors import LibraryUnavailable, OnnxFuseError
from onnx_fuse.report import VerifyReport
from onnx_fuse.runtime.inputs import Case, InputMaker, find_cases
from onnx_fuse.runtime.sessions import Source, one_line, open_session, open_source, run
from onnx_fuse.runtime.tolerance import TELLING, bound, relative_error, scale

Model = str | Path | onnx.ModelProto
Progress = Callable[[str], None]
Array = npt.NDArray[Any]

_LEVELS = ort.GraphOptimizationLevel


@dataclass(frozen=True)
class _Reference:
    """A case with the original's outputs, and how far its own optimised run is from them."""

    case: Case
    outputs: list[Any]
    again: list[Any] | None


@dataclass
class _Tally:
    """What the comparisons found so far."""

    relative: float
    max_abs_err: float = 0.0
    worst_ratio: float = 0.0
    tolerance: float = 0.0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    telling: dict[str, list[bool]] = field(default_factory=dict)

    def count(self, name: str, telling: bool) -> None:
        """Note one comparison of an output, and whether it could have shown a difference."""
        self.telling.setdefault(name, []).append(telling)

    def is_telling(self, name: str) -> bool:
        """Whether at least half of an output's comparisons could have shown a difference."""
        counts = self.telling.get(name, [])
        return bool(counts) and 2 * sum(counts) >= len(counts)


def verify(
    original: Model, fused: Model, *, seed: int = 0, progress: Progress | None = None
) -> VerifyReport:
    """Whether `fused` computes what `original` computes, on inputs made from the graph's signature.

    Both are paths or messages; a model with external data is given as a path. `progress` is told
    each step.

    Raises: InvalidModel if one cannot be read; UnsupportedModel if a message is over 2 GiB.
    """
    tell = progress or (lambda _: None)
    first = open_source(original, "the original model")
    second = open_source(fused, "the fused model")
    tally = _Tally(relative_error(first.proto, second.proto))
    try:
        references = _run_original(first, seed, tell)
    except OnnxFuseError as error:
        return _failed(f"the models cannot be compared: {error}")
    except Exception as error:
        return _failed(f"the original does not run in onnxruntime: {one_line(error)}")
    names = [value.name for value in first.proto.graph.output]
    if names != [value.name for value in second.proto.graph.output]:
        return _failed("the models have different outputs")
    for where, kernels in _sessions(second, tally):
        tell(f"running the fused model ({where})")
        _check_run(second, where, kernels, names, references, tally)
    _check_telling(names, tally)
    return VerifyReport(
        passed=not tally.failures,
        max_abs_err=tally.max_abs_err,
        tolerance=tally.tolerance,
        worst_ratio=tally.worst_ratio,
        cases=len(references),
        runs=tuple(tally.runs),
        failures=tuple(tally.failures),
        notes=tuple(tally.notes),
    )


def _failed(sentence: str) -> VerifyReport:
    return VerifyReport(
        passed=False, max_abs_err=0.0, tolerance=0.0, worst_ratio=0.0, cases=0, failures=(sentence,)
    )


def _run_original(source: Source, seed: int, tell: Progress) -> list[_Reference]:
    """Find cases on which the original runs; raises what onnxruntime said if there is none."""
    tell("running the original model")
    found = _find(source, seed)
    tell("measuring the original's own noise")
    again: list[list[Any] | None] = [None] * len(found)
    try:
        optimised = open_session(source)
        again = [run(optimised, case.feeds) for case, _ in found]
    except Exception:  # what onnxruntime cannot optimise has no noise to be measured
        tell("the original does not run optimised")
    return [_Reference(c, outputs, other) for (c, outputs), other in zip(found, again, strict=True)]


def _find(source: Source, seed: int) -> list[tuple[Case, list[Any]]]:
    # A function of its own, so that its session is closed before the next one opens: a large model
    # stands in memory once.
    session = open_session(source, level=_LEVELS.ORT_DISABLE_ALL)
    return list(find_cases(InputMaker(source.proto, seed), lambda feeds: run(session, feeds)))


def _sessions(source: Source, tally: _Tally) -> list[tuple[str, bool]]:
    """The sessions in which the fused model is run: (name, with kernels)."""
    if not source.uses_operators:
        return [("plain", False)]
    sessions = [("kernel", True)]
    if source.has_fallback:
        sessions.append(("plain", False))
    else:
        tally.notes.append("not run in a plain session: the model carries no fallback")
    return sessions


def _check_run(
    source: Source,
    where: str,
    kernels: bool,
    names: Sequence[str],
    references: Sequence[_Reference],
    tally: _Tally,
) -> None:
    """Run every case in one session and note each output that differs."""
    try:
        session = open_session(source, kernels=kernels)
    except LibraryUnavailable as error:
        tally.notes.append(f"not run with the kernels: {error}")
        return
    except Exception as error:
        tally.failures.append(f"the fused model does not load ({where}): {one_line(error)}")
        return
    tally.runs.append(where)
    for reference in references:
        place = f"{where}, {reference.case.name}"
        try:
            outputs = run(session, reference.case.feeds)
        except Exception as error:
            tally.failures.append(f"the fused model does not run ({place}): {one_line(error)}")
            continue
        others = reference.again or reference.outputs
        for name, right, other, made in zip(names, reference.outputs, others, outputs, strict=True):
            sentence = _compare(name, right, other, made, tally)
            if sentence:
                tally.failures.append(f"output '{name}' differs ({place}): {sentence}")


def _compare(name: str, right: Any, other: Any, made: Any, tally: _Tally) -> str | None:
    """What is wrong with `made`, None if it is as good as `right`; `other` shows the noise."""
    if isinstance(right, list):
        if not isinstance(made, list) or len(made) != len(right):
            return "a sequence of another length"
        others = other if isinstance(other, list) and len(other) == len(right) else right
        items = zip(right, others, made, strict=True)
        sentences = [_compare(name, *item, tally=tally) for item in items]
        return next((sentence for sentence in sentences if sentence), None)
    if not isinstance(right, np.ndarray):
        return None if right == made else f"{made!r} instead of {right!r}"
    if right.dtype != made.dtype or right.shape != made.shape:
        return f"{made.dtype}{list(made.shape)} instead of {right.dtype}{list(right.shape)}"
    if not right.size:
        return None
    again = other if isinstance(other, np.ndarray) and other.shape == right.shape else right
    if right.dtype.kind != "f":
        return _compare_exact(name, right, again, made, tally)
    real = [array.astype(np.float64) for array in (right, again, made)]
    return _compare_real(name, real[0], real[1], real[2], tally)


def _compare_exact(name: str, right: Array, other: Array, made: Array, tally: _Tally) -> str | None:
    """Integers, booleans, strings: equal, but where the original's own optimised run differs."""
    settled = right == other
    tally.count(name, bool(settled.any()))
    wrong = settled & (right != made)
    if right.dtype in (np.int8, np.uint8):  # a quantized value may round the other way
        wrong &= np.abs(right.astype(int) - made.astype(int)) > 1
    return f"{int(wrong.sum())} of {right.size} elements are not equal" if wrong.any() else None


def _compare_real(name: str, right: Array, other: Array, made: Array, tally: _Tally) -> str | None:
    """Real numbers: NaN and infinities in the same places, all else within the bound."""
    settled = np.isfinite(right) == np.isfinite(other)
    odd = settled & ~np.isfinite(right)
    if (odd & ~_same_nonfinite(right, made)).any() or (settled & ~odd & ~np.isfinite(made)).any():
        return "NaN or infinity in other places"
    finite = settled & np.isfinite(right)
    if not finite.any():
        tally.count(name, False)
        return None
    right, other, made = right[finite], other[finite], made[finite]
    limit = bound(tally.relative, right, float(np.abs(right - other).max()))
    error = np.abs(right - made)
    ratio = error / np.maximum(limit, np.finfo(np.float64).tiny)
    worst = int(ratio.argmax())
    tally.max_abs_err = max(tally.max_abs_err, float(error.max()))
    if ratio[worst] >= tally.worst_ratio:
        tally.worst_ratio, tally.tolerance = float(ratio[worst]), float(limit[worst])
    tally.count(name, bool(limit.min() < TELLING * scale(right)))
    if ratio[worst] <= 1:
        return None
    wrong = int((ratio > 1).sum())
    return f"by {error[worst]:.3g} (allowed {limit[worst]:.3g}), {wrong} of {error.size} elements"


def _same_nonfinite(right: Array, made: Array) -> Array:
    same: Array = (np.isnan(right) & np.isnan(made)) | (right == made)
    return same


def _check_telling(names: Sequence[str], tally: _Tally) -> None:
    """A comparison that could not fail is a failure of its own."""
    if not tally.runs and not tally.failures:
        tally.failures.append("nothing was compared: the fused model could be run in no session")
        return
    silent = [name for name in names if not tally.is_telling(name)]
    if len(silent) == len(names):
        tally.failures.append("nothing was compared that could show a difference")
    elif silent:
        tally.notes.append("cannot show a difference: output " + ", ".join(silent))
