"""Fuse one model of a zoo folder and compare it with its original on the folder's own inputs.

A zoo folder holds, for each model, NAME.onnx, NAME.npz (arrays `caseN/INPUT`) and NAME.json (facts:
architecture, exporter, attention_blocks, expressible, ...). Nothing here uses onnx_fuse's own
verifier: this is the second opinion.
"""

from __future__ import annotations

import json
import math
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
# Half of the last bit's step: what storing a number in the type costs at most, as a share of it.
ROUNDOFF = {onnx.TensorProto.FLOAT16: 2.0**-11, onnx.TensorProto.BFLOAT16: 2.0**-8}
# What moves numbers and rounds none.
MOVES = (
    *("Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Shape"),
    *("Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
)
# Noise above this is no rounding: that onnxruntime's optimiser changes the original's meaning (1.17
# does, for a half precision ViT), and the fused model's plain session is run without it.
LARGEST_NOISE = 0.1


@dataclass(frozen=True)
class Decline:
    """Why one block was declined: the stable code, and the sentence for this block."""

    code: str
    reason: str


@dataclass
class Outcome:
    """What became of one model.

    Errors are relative to each output's largest finite value, the largest of all cases; None if it
    could not be run. `problem` is empty if all is well; `unreadable` says why this onnxruntime does
    not run the original itself, which is no problem of ours. `fuse_seconds` is reading and fusing,
    `seconds` all of it.
    """

    name: str
    architecture: str
    exporter: str
    blocks: int
    expressible: int
    fused: int = 0
    declined: list[Decline] = field(default_factory=list)
    kernel_error: float | None = None
    plain_error: float | None = None
    noise: float = 0.0
    tolerance: float = TOLERANCE
    fuse_seconds: float = 0.0
    seconds: float = 0.0
    problem: str = ""
    unreadable: str = ""

    @property
    def codes(self) -> list[str]:
        """The codes of the declined blocks, in the graph's order."""
        return [decline.code for decline in self.declined]

    @property
    def error(self) -> float | None:
        """The larger of both sessions' errors."""
        errors = [e for e in (self.kernel_error, self.plain_error) if e is not None]
        return max(errors, default=None)

    @property
    def is_complete(self) -> bool:
        """Whether every expressible block is fused, and the model still computes the same."""
        return not self.problem and self.fused >= self.expressible


def names_in(folder: Path, only: str = "") -> list[str]:
    """Return the names of a folder's models that contain `only`, in order."""
    return sorted(file.stem for file in folder.glob("*.onnx") if only in file.stem)


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
    return ort.InferenceSession(model, quiet_options(level), providers=["CPUExecutionProvider"])


def quiet_options(level: ort.GraphOptimizationLevel) -> ort.SessionOptions:
    """Return options of a session that logs nothing but what is fatal."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    # From the second run on, 1.17.3 computes other numbers for float16 models, originals too, in
    # memory that it planned by the first run.
    options.enable_mem_pattern = not ort.__version__.startswith("1.17.")
    return options


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
    if not np.array_equal(np.isfinite(left), finite) or not np.array_equal(
        left[~finite], right[~finite], equal_nan=True
    ):
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
    """Return what two right results of the model may differ by, as a share of the largest value."""
    types = {tensor.data_type for tensor in model.graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in model.graph.input}
    roundoff = max((ROUNDOFF[t] for t in types if t in ROUNDOFF), default=0.0)
    return max(TOLERANCE, noise, half_tolerance(roundoff, count_roundings(model.graph)))


def half_tolerance(roundoff: float, roundings: int) -> float:
    """Return what two results may differ by of which each was rounded so often on its way.

    One rounding is wrong by at most `roundoff`, evenly spread: roundoff / sqrt(3) in the mean of
    squares. Independent ones add up as squares, in two results they differ by sqrt(2) times as
    much, and the largest of a million such differences stands at 5 sigma.
    """
    return 5 * math.sqrt(2 / 3) * roundoff * math.sqrt(roundings)


def count_roundings(graph: onnx.GraphProto) -> int:
    """Return the most operators that round their result on one way through the graph."""
    depth: dict[str, int] = {}
    for node in graph.node:
        before = max((depth.get(name, 0) for name in node.input), default=0)
        depth.update((name, before + (node.op_type not in MOVES)) for name in node.output)
    return max(depth.values(), default=0)


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
        outcome.problem = f"{type(error).__name__}: {first_line(error)}"
    outcome.seconds = time.perf_counter() - started
    return outcome


def first_line(error: Exception) -> str:
    """Return the first line of what an exception says, cut at 200 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def compare(path: Path, cases: list[Case], outcome: Outcome) -> None:
    """Fill in the outcome. Raises whatever the fusion or a session raises."""
    started = time.perf_counter()
    result = onnx_fuse.fuse(path, threshold=None)
    model = result.model
    outcome.fuse_seconds = time.perf_counter() - started
    outcome.fused = result.report.num_fused
    outcome.declined = [
        Decline(str(block.code), block.reason or "")
        for block in result.report.blocks
        if block.status == "declined"
    ]
    level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        expected = run_all(open_plain(str(path), level), cases)
    except Exception as error:
        outcome.unreadable = first_line(error)
        return
    outcome.noise = largest_difference(run_all(open_plain(str(path)), cases), expected)
    if outcome.noise <= LARGEST_NOISE:
        level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    else:
        outcome.noise = 0.0
    outcome.tolerance = tolerance_for(onnx.load(path, load_external_data=False), outcome.noise)
    quiet = quiet_options(level)
    kernel = run_all(onnx_fuse.session(model, quiet), cases)
    outcome.kernel_error = largest_difference(kernel, expected)
    plain = run_all(open_plain(model.SerializeToString(), level), cases)
    outcome.plain_error = largest_difference(plain, expected)
    for session, error in (("kernel", outcome.kernel_error), ("plain", outcome.plain_error)):
        if error > outcome.tolerance:
            outcome.problem = f"{session} session differs by {error:.1e} > {outcome.tolerance:.1e}"
