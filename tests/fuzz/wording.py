"""Write nodes of a zoo's models in other words, and ask whether as much is fused, and rightly.

    python -m tests.fuzz.wording [--seconds 60] [--seed 0] [--keep FOLDER] [--zoo FOLDER]

Where a rewritten model computes what its original does on the folder's own inputs, as many blocks
must be fused, and the fused model must compute the same, with the kernel and without. A model in
which fewer are fused, or that breaks or differs, is a finding: it is kept in the folder, and the
exit code is 1.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from random import Random

import onnx
import onnxruntime as ort

import onnx_fuse
from tests.fuzz.loop import fuzz, fuzzing_a_zoo, small_models
from tests.fuzz.process import Answer
from tests.rewording import RULES, reword
from tests.zoo.check import (
    compare,
    describe,
    first_line,
    largest_difference,
    open_plain,
    read_cases,
    run_all,
    tolerance_for,
)

SHARES = (0.05, 0.2, 0.5)  # of the nodes that are written anew


def is_equal(path: Path, other: Path, name: str, folder: Path) -> bool:
    """Return whether two models compute the same; the other one has to load optimised, too."""
    level, cases = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, read_cases(folder / f"{name}.npz")
    try:
        first, second = (run_all(open_plain(str(p), level), cases) for p in (path, other))
        open_plain(str(other))
    except Exception:  # what a rule writes is of no use in this opset or type
        return False
    return largest_difference(second, first) <= tolerance_for(onnx.load(path), 0.0)


def judged(folder: Path, name: str, random: Random, target: Path) -> Answer:
    """Rewrite a model to `target`; return what becomes of it, and what was done or is wrong."""
    path = folder / f"{name}.onnx"
    model = onnx.load(path)
    used = Counter(reword(model, random, list(RULES), random.choice(SHARES)))
    words = f"{name}: {', '.join(f'{count} {rule}' for rule, count in used.items())}"
    onnx.save(model, target)
    if not is_equal(path, target, name, folder):
        return Answer("invalid", words)
    outcome = describe(folder, name)
    try:
        compare(target, read_cases(folder / f"{name}.npz"), outcome)
    except Exception as error:
        return Answer("broken", f"{words}\n{type(error).__name__}: {first_line(error)}")
    if outcome.problem:
        return Answer("different", f"{words}\n{outcome.problem}")
    before = onnx_fuse.explain(path, threshold=None).num_fused
    if outcome.fused < before:
        why = "; ".join(f"{decline.code}: {decline.reason}" for decline in outcome.declined)
        return Answer("fewer", f"{words}\n{outcome.fused} of {before}: {why}")
    return Answer("same", words)


def main() -> int:
    """Parse the command line and fuzz."""
    options = fuzzing_a_zoo("tests.fuzz.wording").parse_args()
    names, random = [path.stem for path in small_models(options.zoo)], Random(options.seed)
    return fuzz(
        options,
        "models in other words",
        lambda path: judged(options.zoo, random.choice(names), random, path),
        ("same", "invalid"),
        ("fewer", "different", "broken"),
    )


if __name__ == "__main__":
    sys.exit(main())
