"""What less precise products do to a zoo's models: python -m tests.zoo.precision FOLDER [--write].

Each model runs on the folder's own inputs, fused with each precision; the fused model in fp32 is
what the others are compared with.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime as ort

import onnx_fuse
from onnx_fuse.op.schema import Precision
from onnx_fuse.runtime.library import active_isa, cpu_features
from tests.native.blocks import isa
from tests.zoo.check import Outputs, names_in, quiet_options, read_cases, run_all
from tests.zoo.options import DOCS, of_a_zoo
from tests.zoo.table import head_row, row, versions

PAGE = DOCS / "precision.md"
LESS = tuple(name for name in get_args(Precision) if name != "fp32")


@dataclass(frozen=True)
class Distance:
    """How far a model's outputs are from those in fp32, over all outputs and cases.

    `cosine` is the smallest cosine similarity, `error` the largest difference relative to the
    output's largest value; NaN where an output isn't finite.
    """

    cosine: float = 1.0
    error: float = 0.0

    def join(self, other: Distance) -> Distance:
        """Return the worse of each."""
        return Distance(
            float(np.minimum(self.cosine, other.cosine)), float(np.maximum(self.error, other.error))
        )


@dataclass(frozen=True)
class Comparison:
    """One model: its blocks that are fused, and the distance of each precision."""

    architecture: str
    fused: int
    distances: dict[str, Distance]


def distance(found: np.ndarray, expected: np.ndarray) -> Distance:
    """Return the distance of one output; nothing for what is no float, or zero everywhere."""
    if not np.issubdtype(expected.dtype, np.floating) or not np.any(expected):
        return Distance()
    left, right = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    finite = np.isfinite(right)
    left, right = left[finite], right[finite]
    cosine = left @ right / np.sqrt((left @ left) * (right @ right))
    return Distance(float(cosine), float(np.abs(left - right).max() / np.abs(right).max()))


def farthest(found: Sequence[Outputs], expected: Sequence[Outputs]) -> Distance:
    """Return the worst distance of all outputs of all cases."""
    worst = Distance()
    for mine, theirs in zip(found, expected, strict=True):
        for left, right in zip(mine, theirs, strict=True):
            worst = worst.join(distance(left, right))
    return worst


def unit_of(precision: str) -> str:
    """Return the instruction set that has products of that precision, or stands in for it."""
    stand_in = precision == "bf16x3" and "amx" not in cpu_features() and "avx512" in cpu_features()
    return "amx_standin" if stand_in else active_isa()


def compare(folder: Path, name: str) -> Comparison | None:
    """Run the model in each precision; None if nothing of it is fused."""
    facts = json.loads((folder / f"{name}.json").read_text())
    cases = read_cases(folder / f"{name}.npz")
    outputs: dict[str, list[Outputs]] = {}
    fused = 0
    for precision in get_args(Precision):
        result = onnx_fuse.fuse(folder / f"{name}.onnx", threshold=None, precision=precision)
        fused = result.report.num_fused
        if not fused:
            return None
        options = quiet_options(ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
        with isa(unit_of(precision)):
            session = onnx_fuse.session(result.model, options)
        outputs[precision] = run_all(session, cases)
    found = {less: farthest(outputs[less], outputs["fp32"]) for less in LESS}
    return Comparison(facts["architecture"], fused, found)


def markdown(comparisons: Sequence[Comparison]) -> str:
    """Return the page for the docs: one line for each architecture."""
    titles = ["architecture", "models", "blocks"]
    titles += [f"{less} {what}" for less in LESS for what in ("cosine", "error")]
    lines = [*_HEAD, f"{versions()}; bf16x3 by {unit_of('bf16x3')}.", ""]
    lines += head_row(titles)
    ordered = sorted(comparisons, key=lambda one: one.architecture)
    for architecture, group in groupby(ordered, key=lambda one: one.architecture):
        lines.append(_line(architecture, list(group)))
    return "\n".join([*lines, _line("**all**", ordered), ""])


def _line(name: str, models: Sequence[Comparison]) -> str:
    cells = [name, str(len(models)), str(sum(model.fused for model in models))]
    for less in LESS:
        worst = Distance()
        for model in models:
            worst = worst.join(model.distances[less])
        cells += [f"{worst.cosine:.6f}", f"{worst.error:.0e}"]
    return row(*cells)


_HEAD = (
    "# What less precision costs",
    "",
    "Written by `make precision ZOO=FOLDER ZOO_ARGS=--write`; don't edit it by hand.",
    "",
    "Each model ran on the folder's own inputs, fused with each `--precision`. A line shows the",
    "worst of an architecture's models against the same model fused in fp32: the smallest cosine",
    "similarity of an output, and the largest difference relative to the output's largest value.",
    "The weights of the zoo are random: an output of them can be a difference of near numbers, a",
    "choice between near scores, or a running sum, and then shows more than a trained model would.",
    "",
)


def main() -> int:
    """Parse the command line, compare, write."""
    arguments = of_a_zoo("tests.zoo.precision", PAGE).parse_args()
    names = names_in(arguments.folder, arguments.only)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        found = pool.map(partial(compare, arguments.folder), names)
        page = markdown([comparison for comparison in found if comparison])
    if arguments.write:
        PAGE.write_text(page)
    sys.stdout.write(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
