"""Write nodes of a zoo's models in other words, and ask whether as much is fused, and rightly.

    python -m tests.fuzz.wording [--seconds 60] [--seed 0] [--keep FOLDER] [--zoo FOLDER]

Where a rewritten model computes what its original does on the folder's own inputs, as many blocks
must be fused, and the fused model must compute the same, with the kernel and without. A model in
which fewer are fused, or that breaks or differs, is a finding: it is kept in the folder, and the
exit code is 1.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

import onnx
import onnxruntime as ort

import onnx_fuse
from tests.fuzz.options import fuzzing_a_zoo
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

FINDINGS = ("fewer", "different", "broken")
SHARES = (0.05, 0.2, 0.5)  # of the nodes that are written anew
LARGEST_SEED = 100_000  # bytes of a model


def is_equal(path: Path, other: Path, name: str, folder: Path) -> bool:
    """Return whether two models compute the same; the other one has to load optimised, too."""
    level, cases = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, read_cases(folder / f"{name}.npz")
    try:
        first, second = (run_all(open_plain(str(p), level), cases) for p in (path, other))
        open_plain(str(other))
    except Exception:  # what a rule writes is of no use in this opset or type
        return False
    return largest_difference(second, first) <= tolerance_for(onnx.load(path), 0.0)


def judged(folder: Path, name: str, random: Random, target: Path) -> tuple[str, str]:
    """Rewrite a model to `target`; return what becomes of it, and what was done or is wrong."""
    path = folder / f"{name}.onnx"
    model = onnx.load(path)
    used = Counter(reword(model, random, list(RULES), random.choice(SHARES)))
    words = f"{name}: {', '.join(f'{count} {rule}' for rule, count in used.items())}"
    onnx.save(model, target)
    if not is_equal(path, target, name, folder):
        return "invalid", words
    outcome = describe(folder, name)
    try:
        compare(target, read_cases(folder / f"{name}.npz"), outcome)
    except Exception as error:
        return "broken", f"{words}\n{type(error).__name__}: {first_line(error)}"
    if outcome.problem:
        return "different", f"{words}\n{outcome.problem}"
    before = onnx_fuse.explain(path, threshold=None).num_fused
    if outcome.fused < before:
        why = "; ".join(f"{decline.code}: {decline.reason}" for decline in outcome.declined)
        return "fewer", f"{words}\n{outcome.fused} of {before}: {why}"
    return "same", words


def fuzz(seconds: float, seed: int, keep: Path, folder: Path) -> int:
    """Fuzz, print one line of counts, and return the number of findings."""
    random, outcomes = Random(seed), Counter[str]()
    files = sorted(folder.glob("*.onnx"))
    names = [file.stem for file in files if file.stat().st_size <= LARGEST_SEED]
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "model.onnx"
        while time.monotonic() < deadline:
            kind, detail = judged(folder, random.choice(names), random, target)
            outcomes[kind] += 1
            if kind in FINDINGS:
                keep.mkdir(parents=True, exist_ok=True)
                path = keep / f"wording-{seed}-{outcomes.total()}.onnx"
                path.write_bytes(target.read_bytes())
                path.with_suffix(".txt").write_text(f"{detail}\n")
                sys.stderr.write(f"finding {path}: {detail}\n")
    counts = ", ".join(f"{outcomes[kind]} {kind}" for kind in ("same", "invalid", *FINDINGS))
    sys.stdout.write(f"{outcomes.total()} models in other words (seed {seed}): {counts}\n")
    return sum(outcomes[kind] for kind in FINDINGS)


def main() -> int:
    """Parse the command line and fuzz."""
    arguments = fuzzing_a_zoo("tests.fuzz.wording").parse_args()
    return 1 if fuzz(arguments.seconds, arguments.seed, arguments.keep, arguments.zoo) else 0


if __name__ == "__main__":
    sys.exit(main())
