"""Runs original and fused model on the same inputs and compares every output.

The original runs with onnxruntime's optimisations off: the least that could change it. The fused
model runs with our kernels and in a plain session without the library, each as a user would run
it; where it fails and the original does, too, with optimisations, nothing is compared. A report
passes only if something was compared that could have shown a difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime as ort

from onnx_fuse.errors import LibraryUnavailable, OnnxFuseError
from onnx_fuse.ir.load import ModelLike
from onnx_fuse.report import VerifyReport
from onnx_fuse.runtime.cases import Case, find_cases
from onnx_fuse.runtime.chance import draws, seeded
from onnx_fuse.runtime.compare import Tally
from onnx_fuse.runtime.cut import cut, unknown_nodes
from onnx_fuse.runtime.inputs import InputMaker
from onnx_fuse.runtime.noise import noisy_sources
from onnx_fuse.runtime.sessions import (
    Source,
    one_line,
    open_session,
    open_source,
    run,
    run_into,
)
from onnx_fuse.runtime.tolerance import moved_weights, relative_error, rounding_error

Progress = Callable[[str], None]

_LEVELS = ort.GraphOptimizationLevel
_UNOPTIMISED: Mapping[str, Any] = {"level": _LEVELS.ORT_DISABLE_ALL}
# Of the original's noise, before what exceeds the first ones' bound counts as a difference.
_MORE_SAMPLES = 8


@dataclass(frozen=True)
class _Reference:
    """A case with the original's outputs, and those of other runs that are as good."""

    case: Case
    outputs: list[Any]
    others: tuple[list[Any], ...]


def verify(
    original: ModelLike, fused: ModelLike, *, seed: int = 0, progress: Progress | None = None
) -> VerifyReport:
    """Return whether `fused` computes what `original` does, on inputs made from its signature.

    Both are paths or messages; a model with external data is given as a path. `progress` is told
    each step.

    Raises: InvalidModel if one cannot be read; UnsupportedModel if a message is over 2 GiB.
    """
    tell = progress or (lambda _: None)
    first = seeded(open_source(original, "the original model"))
    second = seeded(open_source(fused, "the fused model"))
    if first.uses_operators and not first.has_fallback:
        return _failed(
            f"{first.name} is fused and has no fallback: an original has to run in a plain session"
        )
    notes: list[str] = []
    relative = relative_error(first.proto, second.proto)
    try:
        first, second, references = _run_or_cut(first, second, seed, notes, tell)
    except OnnxFuseError as error:
        return _failed(f"the models cannot be compared: {error}")
    except Exception as error:
        return _failed(f"the original does not run in onnxruntime: {one_line(error)}")
    names = [value.name for value in first.proto.graph.output]
    if names != [value.name for value in second.proto.graph.output]:
        return _failed("the models have different outputs")
    tally = _compared(first, second, names, references, Tally(relative, notes=[*notes]), tell)
    if tally.worst_ratio > 1:
        tell("measuring more of the original's own noise")
        references = _with_more_noise(first, references, seed)
        tally = _compared(first, second, names, references, Tally(relative, notes=[*notes]), tell)
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


def _run_or_cut(
    first: Source, second: Source, seed: int, notes: list[str], tell: Progress
) -> tuple[Source, Source, list[_Reference]]:
    """Run the original, without the operators that onnxruntime doesn't know if it must be."""
    try:
        return first, second, _run_original(first, second, seed, tell)
    except Exception:
        unknown = unknown_nodes(first.proto)
        if not unknown:
            raise
    cuts = [cut(source.proto, unknown, first.proto) for source in (first, second)]
    first, second = (
        open_source(model, source.name) for model, source in zip(cuts, (first, second), strict=True)
    )
    references = _run_original(first, second, seed, tell)
    notes.append(
        "onnxruntime does not know the operators that make these values, the rest was compared: "
        + ", ".join(unknown)
    )
    return first, second, references


def _run_original(source: Source, fused: Source, seed: int, tell: Progress) -> list[_Reference]:
    """Find cases on which the original runs. Raises: what onnxruntime said if there is none."""
    tell("running the original model")
    found = _find(source, seed)
    tell("measuring the original's own noise")
    cases = [case for case, _ in found]
    if draws(source.proto):  # runs that failed have drawn numbers, too
        again = _run_again(source, cases, _UNOPTIMISED)
        found = found if again is None else [*zip(cases, again, strict=True)]
    tries = [_run_again(source, cases, {}), _run_moved(source, cases, seed)]
    for noisy in noisy_sources(source, rounding_error(source.proto, fused.proto), seed):
        tries.append(_run_again(noisy, cases, _UNOPTIMISED))
    if any(node.op_type == "GroupQueryAttention" for node in source.proto.graph.node):
        # Up to onnxruntime 1.23 the last rows of a padded prompt are made of what a buffer held
        # before: of another case, if their order is another one.
        backwards = _run_again(source, cases[::-1], {})
        tries.append(backwards and backwards[::-1])
        # What lies behind the held positions of a cache isn't written: these runs differ there,
        # also if what a buffer held was a NaN.
        tries += [_run_again(source, cases, {}, content) for content in (math.nan, 0.0)]
    runs = [outputs for outputs in tries if outputs is not None]
    return [
        _Reference(case, outputs, tuple(again[index] for again in runs))
        for index, (case, outputs) in enumerate(found)
    ]


def _with_more_noise(
    source: Source, references: Sequence[_Reference], seed: int
) -> list[_Reference]:
    """Return the references with more runs of the original.

    One sample of the noise of a model that amplifies errors may be a tenth of another.
    """
    cases = [reference.case for reference in references]
    tries = [_run_moved(source, cases, seed + 1 + number) for number in range(_MORE_SAMPLES)]
    runs = [outputs for outputs in tries if outputs is not None]
    return [
        replace(reference, others=(*reference.others, *(again[index] for again in runs)))
        for index, reference in enumerate(references)
    ]


def _run_moved(source: Source, cases: Sequence[Case], seed: int) -> list[list[Any]] | None:
    """Return the cases' outputs with weights moved by rounding errors, None if it fails."""
    moved = moved_weights(source.proto, source.files, seed)
    return _run_again(source, cases, {**_UNOPTIMISED, "overrides": moved})


def _run_again(
    source: Source,
    cases: Sequence[Case],
    options: Mapping[str, Any],
    content: float | None = None,
) -> list[list[Any]] | None:
    """Return the cases' outputs in a session with memory of some content, None if it fails."""
    try:
        session = open_session(source, **options)
        if content is not None:
            return [run_into(session, case.feeds, content) for case in cases]
        return [run(session, case.feeds) for case in cases]
    except Exception:  # no noise can be measured; the bound from sizes and types stays
        return None


def _find(source: Source, seed: int) -> list[tuple[Case, list[Any]]]:
    # A function of its own, so that its session is closed before the next one opens: a large model
    # stands in memory once.
    session = open_session(source, **_UNOPTIMISED)
    maker = InputMaker(source.proto, seed)
    return list(find_cases(maker, lambda feeds: run(session, feeds), _has_numbers))


def _has_numbers(outputs: list[Any]) -> bool:
    """Return whether an output has a number that is neither NaN nor infinite."""
    return any(
        not isinstance(made, np.ndarray) or made.dtype.kind != "f" or np.isfinite(made).any()
        for made in outputs
    )


def _compared(
    original: Source,
    fused: Source,
    names: Sequence[str],
    references: Sequence[_Reference],
    tally: Tally,
    tell: Progress,
) -> Tally:
    """Run the fused model in each of its sessions, and tell `tally` what comes of it."""
    comparison = _Comparison(original, fused, names, references, tally)
    for where, kernels in _sessions(fused, tally):
        tell(f"running the fused model ({where})")
        comparison.run(where, kernels=kernels)
    _check_telling(names, tally)
    return tally


def _sessions(source: Source, tally: Tally) -> list[tuple[str, bool]]:
    """Return the sessions in which the fused model is run: (name, with kernels)."""
    if not source.uses_operators:
        return [("plain", False)]
    sessions = [("kernel", True)]
    if source.has_fallback:
        sessions.append(("plain", False))
    else:
        tally.notes.append("not run in a plain session: the model carries no fallback")
    return sessions


@dataclass(frozen=True)
class _Comparison:
    """The fused model, and what its outputs are compared with; `tally` is told what comes of it."""

    original: Source
    fused: Source
    names: Sequence[str]
    references: Sequence[_Reference]
    tally: Tally

    def run(self, where: str, *, kernels: bool) -> None:
        """Run every case in one session and note each output that differs."""
        try:
            session = self._session(kernels=kernels)
        except LibraryUnavailable as error:
            self.tally.notes.append(f"not run with the kernels: {error}")
            return
        except Exception as error:
            reason = one_line(error)
            self.tally.failures.append(f"the fused model does not load ({where}): {reason}")
            return
        self.tally.runs.append(where)
        for reference in self.references:
            place = f"{where}, {reference.case.name}"
            try:
                outputs = run(session, reference.case.feeds)
            except Exception as error:
                reason = one_line(error)
                if self._original_fails(reference.case):
                    self._note(f"not compared ({place}): as users run it, the original fails, too")
                else:
                    self.tally.failures.append(f"the fused model does not run ({place}): {reason}")
            else:
                self._compare(reference, outputs, place)

    def _session(self, *, kernels: bool) -> ort.InferenceSession:
        """Return a session as users open it, or unoptimised where only so the original loads."""
        try:
            return open_session(self.fused, kernels=kernels)
        except LibraryUnavailable:
            raise
        except Exception:
            if _is_loaded(self.original):
                raise
        session = open_session(self.fused, kernels=kernels, **_UNOPTIMISED)
        self._note("run without optimisations: with them, onnxruntime doesn't load the original")
        return session

    def _note(self, note: str) -> None:
        if note not in self.tally.notes:
            self.tally.notes.append(note)

    def _original_fails(self, case: Case) -> bool:
        """Return whether the original, which runs unoptimised, fails with all optimisations."""
        return _run_again(self.original, [case], {}) is None

    def _compare(self, reference: _Reference, outputs: list[Any], place: str) -> None:
        rows = zip(self.names, reference.outputs, outputs, *reference.others, strict=True)
        for name, right, made, *others in rows:
            sentence = self.tally.compare(name, right, made, others)
            if sentence:
                self.tally.failures.append(f"output '{name}' differs ({place}): {sentence}")


def _is_loaded(source: Source) -> bool:
    """Return whether onnxruntime loads a model as users do, with all optimisations."""
    try:
        open_session(source)
    except Exception:
        return False
    return True


def _check_telling(names: Sequence[str], tally: Tally) -> None:
    """Note as a failure that no comparison could have failed."""
    if not tally.runs and not tally.failures:
        tally.failures.append("nothing was compared: the fused model could be run in no session")
        return
    silent = [name for name in names if not tally.is_telling(name)]
    if len(silent) == len(names):
        tally.failures.append("nothing was compared that could show a difference")
    elif silent:
        tally.notes.append("cannot show a difference: output " + ", ".join(silent))
