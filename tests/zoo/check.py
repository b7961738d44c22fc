"""Fuse one model of a zoo folder and compare it with its original on the folder's own inputs.

A zoo folder holds, for each model, NAME.onnx, NAME.npz (arrays `caseN/INPUT`) and NAME.json (facts:
architecture, exporter, attention_blocks, expressible, ...). Nothing here uses onnx_fuse's own
verifier: this is the second opinion.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import onnx_fuse

Outputs = list[np.ndarray]
Case = dict[str, np.ndarray]

# Largest accepted difference, relative to the output's largest finite value: float32 sums in
# another order stay well below it, a wrong mask, scale or rotation far above.
TOLERANCE = 1e-4
# A model whose own tensors are half precision rounds each of them to its 11 (8) bits.
HALF_TOLERANCE = {"float16": 2e-2, "bfloat16": 1e-1}
# Noise above this is no rounding: that onnxruntime's optimiser changes the original's meaning (1.17
# does, for a half precision ViT), and the fused model's plain session is run without it.
LARGEST_NOISE = 0.1
ROUNDING_TYPES = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16"}


@dataclass
class Outcome:
    """What became of one model.

    Errors are relative to each output's largest finite value, the largest of all cases; None if it
    could not be run. `problem` is empty if all is well.
    """

    name: str
    architecture: str
    exporter: str
    blocks: int
    expressible: int
    fused: int = 0
    codes: list[str] = field(default_factory=list)
    kernel_error: float | None = None
    plain_error: float | None = None
    noise: float = 0.0
    tolerance: float = TOLERANCE
    seconds: float = 0.0
    problem: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether every expressible block is fused, and the model still computes the same."""
        return not self.problem and self.fused >= self.expressible


def read_cases(path: Path) -> list[Case]:
    """Return the inputs of each case, in order."""
    cases: dict[str, Case] = {}
    with np.load(path) as file:
        for key in file.files:
            case, name = key.split("/", 1)
            cases.setdefault(case, {})[name] = file[key]
    return [cases[key] for key in sorted(cases)]


def open_plain(
    model: str | bytes,
    level: ort.GraphOptimizationLevel = ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
) -> ort.InferenceSession:
    """Return a session with nothing of ours registered."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_all(session: ort.InferenceSession, cases: list[Case]) -> list[Outputs]:
    """Return the outputs of each case."""
    return [session.run(None, case) for case in cases]


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference relative to the expected output's largest finite value.

    Infinite if shapes or types differ, if values that aren't finite stand elsewhere, or if
    anything that is no float differs.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return np.inf
    if not np.issubdtype(expected.dtype, np.floating):
        return 0.0 if np.array_equal(found, expected) else np.inf
    left, right = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(right)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return np.inf
    if not finite.any():
        return 0.0
    left, right = left[finite], right[finite]
    scale = float(np.abs(right).max())
    error = float(np.abs(left - right).max())
    return error / scale if scale else error


def largest_difference(found: list[Outputs], expected: list[Outputs]) -> float:
    """Return the largest difference of any output of any case."""
    pairs = [
        difference(left, right)
        for mine, theirs in zip(found, expected, strict=True)
        for left, right in zip(mine, theirs, strict=True)
    ]
    return max(pairs, default=0.0)


def tolerance_for(model: onnx.ModelProto, noise: float) -> float:
    """Return what two right results of the model may differ by."""
    types = {tensor.data_type for tensor in model.graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in model.graph.input}
    halves = [HALF_TOLERANCE[ROUNDING_TYPES[t]] for t in sorted(types) if t in ROUNDING_TYPES]
    return max([TOLERANCE, noise, *halves])


def describe(folder: Path, name: str) -> Outcome:
    """Return the outcome with the model's facts and nothing else."""
    facts: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return Outcome(
        name=name,
        architecture=facts["architecture"],
        exporter=facts["exporter"],
        blocks=facts["attention_blocks"],
        expressible=facts["expressible"],
    )


def check(folder: Path, name: str) -> Outcome:
    """Fuse the model, run it with and without the library, and compare; never raises."""
    outcome = describe(folder, name)
    started = time.perf_counter()
    try:
        compare(folder / f"{name}.onnx", read_cases(folder / f"{name}.npz"), outcome)
    except Exception as error:
        first = str(error).strip().splitlines() or [""]
        outcome.problem = outcome.problem or f"{type(error).__name__}: {first[0][:200]}"
    outcome.seconds = time.perf_counter() - started
    return outcome


def compare(path: Path, cases: list[Case], outcome: Outcome) -> None:
    """Fill in the outcome. Raises whatever the fusion or a session raises."""
    result = onnx_fuse.fuse(path, threshold=None)
    outcome.fused = result.report.num_fused
    outcome.codes = [str(b.code) for b in result.report.blocks if b.status == "declined"]
    level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected = run_all(open_plain(str(path), level), cases)
    outcome.noise = largest_difference(run_all(open_plain(str(path)), cases), expected)
    if outcome.noise <= LARGEST_NOISE:
        level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    else:
        outcome.noise = 0.0
    outcome.tolerance = tolerance_for(onnx.load(path, load_external_data=False), outcome.noise)
    kernel = run_all(onnx_fuse.session(result.model), cases)
    outcome.kernel_error = largest_difference(kernel, expected)
    plain = run_all(open_plain(result.model.SerializeToString(), level), cases)
    outcome.plain_error = largest_difference(plain, expected)
    for session, error in (("kernel", outcome.kernel_error), ("plain", outcome.plain_error)):
        if error > outcome.tolerance:
            outcome.problem = f"{session} session differs by {error:.1e} > {outcome.tolerance:.1e}"
